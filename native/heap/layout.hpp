// The words every process of a host shares, at fixed places in the partition; and how a segment table entry
// is packed.
//
// Shared counters of segments (claimed, warm) are caches of the segment table: a process killed between the
// table and the counter leaves them off by one operation, and whoever adopts it counts the table again
// (segments.hpp, recount()).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/limits.hpp"
#include "heap/block.hpp"
#include "heap/latched.hpp"
#include "heap/partition.hpp"
#include "heap/watch.hpp"

namespace drust::heap {

using SharedWord = std::atomic<std::uint64_t>;
static_assert(SharedWord::is_always_lock_free && sizeof(SharedWord) == 8);

struct SharedHeader {
  // Constant after creation.
  std::uint64_t magic;
  std::uint64_t layout;  // fingerprint of every size in this file: another build is refused
  std::uint64_t file_bytes;
  std::uint64_t quota_segments;
  std::uint64_t warm_segments_kept;
  std::uint64_t segment_count;
  std::uint64_t segments_offset;
  std::uint32_t server;
  std::uint32_t incarnation;
  std::uint32_t replicates_all;
  // Atomic, by any process.
  alignas(64) SharedWord next_colour_range;  // ranges of kColourRange handed out so far
  alignas(64) SharedWord claimed_segments;   // cache of the table
  SharedWord warm_segments;                  // cache of the table
  SharedWord low_free;                       // hint: below this index hardly anything is free
  SharedWord high_water;                     // no segment from this index on was ever claimed
  std::atomic<std::uint32_t> recount_due;    // a recount found somebody in the middle of an operation
  alignas(64) SharedWord room_checked_ms;    // when the machine's memory was last looked at,
  SharedWord room_bytes;                     // what there was,
  SharedWord room_spent_bytes;  // and what has been backed since. Hints: racing writes do no harm.
  alignas(64) std::atomic<std::uint32_t> closed;  // 0 -> 1 once, by the server
  std::atomic<std::uint32_t> next_slot;  // where the search for a free process slot begins: reuse comes late
  SharedWord replica_stamp;              // the last one drawn
  alignas(64) std::atomic<std::uint32_t> bell;  // a futex: rung by anybody, waited for by the server's attendant
  std::atomic<std::uint32_t> marks;             // shared objects that were marked: by anybody, before the bell is rung
};
static_assert(sizeof(SharedHeader) <= 4096);

// A process slot. `word` is the only truth about who holds it:
//     pid (32 bits) | generation (24) | kind (4) | phase (4)
// free -> live by whoever claims; live -> dead -> free by the server's control plane.
enum class Phase : std::uint8_t { free, live, dead };
struct alignas(128) ProcessSlot {
  SharedWord word;         // compare-and-swap
  SharedWord start_time;   // the claimant, after the word
  SharedWord ops_started;  // segment operations of this process; it alone writes, anybody reads
  SharedWord ops_finished;
  SharedWord frees_open;  // frees of trees and runs under way; it alone writes, its adopter reads
  alignas(64) SharedWord
      remote_frees;  // hint: blocks of its spans freed by others since it last looked; anybody adds
};
static_assert(sizeof(ProcessSlot) == 128);
inline constexpr std::uint32_t kNobody = kProcessesMax;  // the slot under which the server trims: no process

constexpr std::uint64_t slot_word(std::uint32_t pid, std::uint32_t generation, ProcessKind kind,
                                  Phase phase) noexcept {
  return (static_cast<std::uint64_t>(pid) << 32) | (static_cast<std::uint64_t>(generation & 0xffffffU) << 8) |
         (static_cast<std::uint64_t>(kind) << 4) | static_cast<std::uint64_t>(phase);
}
constexpr std::uint32_t slot_pid(std::uint64_t word) noexcept {
  return static_cast<std::uint32_t>(word >> 32);
}
constexpr std::uint32_t slot_generation(std::uint64_t word) noexcept {
  return static_cast<std::uint32_t>(word >> 8) & 0xffffffU;
}
constexpr ProcessKind slot_kind(std::uint64_t word) noexcept {
  return static_cast<ProcessKind>((word >> 4) & 0xfU);
}
constexpr Phase slot_phase(std::uint64_t word) noexcept { return static_cast<Phase>(word & 0xfU); }

// Counters of a slot only ever grow, whoever holds it, so sums over slots never go backwards; what one
// process counted is the difference to `before`, which the control plane writes while the slot is nobody's.
struct CounterRow {
  SharedWord total[32];
  SharedWord before[32];
};
static_assert(kCounters <= 32);

struct OutboxRow {  // outbox.hpp; the process of the slot, then its reaper
  SharedWord colour;  // 0: an empty row
  SharedWord place;   // address and flags, after the colour
};

struct EndpointRow {  // processes.cpp; written by the control plane
  SharedWord server;  // plus one; 0: an unused row
  Latched<12> what;   // epoch, port, by, backup (the two plus one; 0: nobody), the host's 63 bytes and a zero
};

struct LoadRow {  // loads.cpp
  Latched<7> what;
  alignas(64) SharedWord sent;  // any process adds; the row's writer sets it back
};
static_assert(sizeof(LoadRow) == 192);

// A segment table entry, one atomic word:
//     0..1 status | 2..3 kind | 4..9 size class | 10..13 segments back to the head of a span | 14 backed
//     16..31 process slot | 32..55 generation   (of heads only: the rest belongs to whom the head does)
// `moving` heads are being claimed or given back: nobody but the process named may touch entries or memory,
// and headers in it mean nothing. A claim writes the head first and the rest in order, giving back goes from
// the end to the head, so at every instant a head and what follows it are a whole, if shorter, run.
enum class SegmentStatus : std::uint8_t { cold, warm, moving, claimed };
enum class SegmentKind : std::uint8_t { rest = 1, span, run };

class SegmentEntry {
 public:
  constexpr explicit SegmentEntry(std::uint64_t word) noexcept : word_(word) {}
  static constexpr SegmentEntry cold() noexcept { return SegmentEntry(0); }
  static constexpr SegmentEntry warm() noexcept { return SegmentEntry(1); }
  static constexpr SegmentEntry head(SegmentStatus status, SegmentKind kind, std::uint32_t size_class,
                                     ProcessId owner) noexcept {
    return SegmentEntry(static_cast<std::uint64_t>(status) | (static_cast<std::uint64_t>(kind) << 2) |
                        (std::uint64_t{size_class} << 4) | (std::uint64_t{owner.slot} << 16) |
                        (std::uint64_t{owner.generation & 0xffffffU} << 32));
  }
  // `back` is 0 in runs, where only the head is ever looked up.
  static constexpr SegmentEntry rest(std::uint64_t back) noexcept {
    return SegmentEntry(static_cast<std::uint64_t>(SegmentStatus::claimed) |
                        (static_cast<std::uint64_t>(SegmentKind::rest) << 2) | (back << 10));
  }
  [[nodiscard]] constexpr SegmentEntry with_backed(bool backed) const noexcept {
    return SegmentEntry((word_ & ~(1ULL << 14)) | (std::uint64_t{backed} << 14));
  }
  [[nodiscard]] constexpr SegmentEntry with_status(SegmentStatus status) const noexcept {
    return SegmentEntry((word_ & ~3ULL) | static_cast<std::uint64_t>(status));
  }
  [[nodiscard]] constexpr SegmentEntry with_owner(ProcessId owner) const noexcept {
    return head(status(), kind(), size_class(), owner).with_backed(was_backed());
  }
  [[nodiscard]] constexpr std::uint64_t word() const noexcept { return word_; }
  [[nodiscard]] constexpr SegmentStatus status() const noexcept {
    return static_cast<SegmentStatus>(word_ & 3U);
  }
  [[nodiscard]] constexpr bool is_free() const noexcept {
    return status() == SegmentStatus::cold || status() == SegmentStatus::warm;
  }
  [[nodiscard]] constexpr SegmentKind kind() const noexcept {
    return static_cast<SegmentKind>((word_ >> 2) & 3U);
  }
  [[nodiscard]] constexpr bool is_rest() const noexcept { return !is_free() && kind() == SegmentKind::rest; }
  [[nodiscard]] constexpr bool is_head() const noexcept { return !is_free() && kind() != SegmentKind::rest; }
  [[nodiscard]] constexpr std::uint32_t size_class() const noexcept {
    return static_cast<std::uint32_t>(word_ >> 4) & 0x3fU;
  }
  [[nodiscard]] constexpr std::uint64_t back() const noexcept { return (word_ >> 10) & 0xfU; }
  [[nodiscard]] constexpr bool was_backed() const noexcept { return ((word_ >> 14) & 1U) != 0; }
  [[nodiscard]] constexpr ProcessId owner() const noexcept {
    return {static_cast<std::uint32_t>(word_ >> 16) & 0xffffU,
            static_cast<std::uint32_t>(word_ >> 32) & 0xffffffU};
  }

 private:
  std::uint64_t word_;
};

// The order of the areas; each begins on a page.
constexpr std::uint64_t pages(std::uint64_t bytes) noexcept { return (bytes + 4095) & ~4095ULL; }
inline constexpr std::uint64_t kProcessesOffset = 4096;
inline constexpr std::uint64_t kCountersOffset =
    kProcessesOffset + pages((kProcessesMax + 1) * sizeof(ProcessSlot));
inline constexpr std::uint64_t kEndpointsOffset = kCountersOffset + pages(kProcessesMax * sizeof(CounterRow));
inline constexpr std::uint64_t kLoadsOffset =
    kEndpointsOffset + pages(kServersPerClusterMax * sizeof(EndpointRow));
inline constexpr std::uint64_t kQueueOffset = kLoadsOffset + pages(kServersPerClusterMax * sizeof(LoadRow));
inline constexpr std::uint64_t kCopiesOffset = kQueueOffset + pages(Partition::kQueueAreaBytes);
inline constexpr std::uint64_t kOutboxOffset = kCopiesOffset + pages(Partition::kCopyAreaBytes);
inline constexpr std::uint64_t kArrivalsOffset =
    kOutboxOffset + pages(std::uint64_t{kProcessesMax} * kOutboxRows * sizeof(OutboxRow));
inline constexpr std::uint64_t kWatchOffset = kArrivalsOffset + pages(Partition::kArrivalsAreaBytes);
inline constexpr std::uint64_t kTableOffset = kWatchOffset + pages(Watch::kAreaBytes);

inline constexpr std::uint64_t kMagic = 0x7470'7361'6568'7264ULL;
inline constexpr std::uint64_t kLayout = [] {
  std::uint64_t fingerprint = 1;
  for (const std::uint64_t size :
       {std::uint64_t{kProtocolVersion}, std::uint64_t{sizeof(SharedHeader)},
        std::uint64_t{sizeof(BlockHeader)}, std::uint64_t{kCounters}, kTableOffset, kSegmentBytes,
        kSpanBytesMax, kSmallBlockBytesMax, kQueueOffset, std::uint64_t{sizeof(EndpointRow)}, std::uint64_t{sizeof(LoadRow)}}) {
    fingerprint = (fingerprint ^ size) * 0x9e37'79b9'7f4a'7c15ULL;
  }
  return fingerprint;
}();

}  // namespace drust::heap
