// Kill points: named places between two shared words, where a test may end or stop the process.
//
//     kill_point("queue.push.reserved");
//
// Idea: always compiled in, so that what is tested is what is shipped; off, each costs one relaxed load of a
// pointer that is null and a branch never taken. A test maps a *board*, a page of shared memory, into every
// process: it counts who passes which point, and its rows say which process shall die at which passing. Counts
// and rows outlive the process that was killed, so a test can say where it died and that every point was
// passed. A name that is not in the table below does not compile, so the table is complete.
//
// Rejected: a build with faults (tests another program); arming by message (a server cannot be told to die
// inside its own answer); registration at run time (a point in code that never ran would not be listed).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>

#include "base/limits.hpp"
#include "base/status.hpp"

namespace drust {

inline constexpr std::array kKillPoints = std::to_array<std::string_view>({
    // segments of the heap: the table, the counters beside it, and the memory behind it
    "heap.claim.counted",
    "heap.claim.marked",
    "heap.claim.backed",
    "heap.settle.before",
    "heap.take.segments",
    "heap.give_back.punched",
    "heap.give_back.freed",
    // blocks
    "heap.take.before",
    "heap.take.after",
    "heap.publish.before",
    "heap.publish.after",
    "heap.free.begun",
    "heap.free.leaf",
    "heap.free.child",
    "heap.free.given_back",
    "heap.adopt.inherited",
    "heap.adopt.opened",
    // shared objects
    "shared.hold.counted",
    "shared.hold.made",
    "shared.line.claimed",
    "shared.line.waiting",
    "shared.lock.entered",
    "shared.lock.handed",
    "shared.lock.leaving",
    "shared.read.claimed",
    "shared.read.passed",
    "shared.read.viewing",
    "shared.read.ended",
    "shared.value.named",
    "shared.value.owned",
    "shared.value.current",
    "shared.channel.segment",
    "shared.channel.reserved",
    "shared.channel.named",
    "shared.channel.sent",
    "shared.channel.taken",
    "shared.channel.received",
    "shared.dict.locked",
    "shared.dict.noted",
    "shared.dict.stored",
    "shared.dict.owned",
    "shared.dict.freed",
    "shared.answer.hold",  // read, and the hold named by nobody
    // the copy table
    "copies.stripe.locked",
    "copies.add.reserved",
    "copies.add.fetching",
    "copies.publish.named",
    "copies.publish.owned",
    "copies.publish.ready",
    "copies.pin.set",
    "copies.evict.evicting",
    "copies.evict.freed",
    // the task queue and records
    "queue.push.reserved",
    "queue.push.written",
    "queue.push.ready",
    "queue.take.looking",
    "queue.take.running",
    "queue.withdraw.running",
    "queue.return.written",
    "queue.return.decided",
    "queue.finish.before",
    "queue.finish.after",
    "record.make.published",
    "record.complete.before",
    "record.complete.after",
    "arrivals.tell.claimed",
    "record.wait.over",
    // a completion on its way home
    "deliver.versions.released",
    "deliver.completion.disowned",
    "deliver.completion.sent",
    // a version on its way to the backup
    "replicate.marked",
    "replicate.stored",
    // requests to other servers
    "call.request.before",
    "call.request.sent",
    "call.reply.read",
    "call.frees.sent",
    // requests from other servers
    "server.body.arrived",
    "server.execute.after",
    "server.reply.sent",
});
static_assert(kKillPoints.size() <= kKillPointsMax);

// The index of a name of the table; anything else does not compile.
class KillPoint {
 public:
  consteval KillPoint(const char* name) : index_(index_of(name)) {}  // NOLINT: implicit by design
  [[nodiscard]] constexpr std::uint32_t index() const noexcept { return index_; }

 private:
  static consteval std::uint32_t index_of(std::string_view name) {
    for (std::uint32_t index = 0; index < kKillPoints.size(); ++index) {
      if (kKillPoints[index] == name) return index;
    }
    throw "no such kill point: add it to the table";
  }
  std::uint32_t index_;
};

enum class KillAction : std::uint32_t { none, kill, stop, exit, segfault, abort };
inline constexpr std::uint32_t kAnyKillPoint = 0xffffffffU;

// In shared memory; drust/testing/faults.py writes the same layout. A row is one process's death to come.
struct KillRow {
  std::atomic<std::uint32_t> pid;     // 0: an unused row; written last by whoever arms
  std::atomic<std::uint32_t> point;   // an index, or kAnyKillPoint
  std::atomic<std::uint32_t> left;    // passings until it happens; any thread of the process counts it down
  std::atomic<std::uint32_t> action;  // KillAction
  std::atomic<std::uint32_t> fired;   // 1 + the index of the point where it happened; by the process that dies
  std::uint32_t unused[3];
};
static_assert(sizeof(KillRow) == 32);
struct KillBoard {
  std::atomic<std::uint64_t> passed[kKillPointsMax];  // by every process that maps the board
  KillRow rows[kKillRows];
};
static_assert(sizeof(KillBoard) == kKillBoardBytes);

// Null unless a test has mapped a board. Set once by a process, before or while other threads run.
extern std::atomic<KillBoard*> kill_board;

void pass_kill_point(KillBoard& board, std::uint32_t point) noexcept;

inline void kill_point(KillPoint point) noexcept {
  KillBoard* board = kill_board.load(std::memory_order_relaxed);
  if (board != nullptr) [[unlikely]]
    pass_kill_point(*board, point.index());
}

// Maps the file that DRUST_KILL_BOARD names; does nothing where it is not set. Once a process, at its start.
Status map_kill_board() noexcept;

// Arms this process alone, on a board of its own if it has none: at the `nth` passing of that point.
void arm_kill_point(std::uint32_t point, std::uint32_t nth, KillAction action) noexcept;

}  // namespace drust
