// Task descriptors waiting in the partition, and the records their spawners wait on.
//
// A *task block* (codec kTaskCodec) holds what to run: pickled call, child pointers for moved boxes and
// lends. A *record* is a small block in the spawner's own partition: the one place a completion goes to, and
// the one word a join waits on; its child table is the record of what was lent. Queue: a ring of entries, each
// with a state word that names the process responsible, so no death leaves a gap nobody can attribute:
//
//     empty -> reserved(producer) -> ready -> running(worker) -> empty
//
// What becomes of a running task is a word of its own, its *fate* (protocol::TaskRecord), decided once by
// compare-and-swap: the worker's `Returned` or the reaper's `Lost`. The entry keeps the completion until its
// receiver has it, so a worker may die between the two.
//
// Rejected: a Vyukov ring (a producer that dies between claiming and publishing blocks all behind it).
// A consumer waits on a futex in the queue's head; a push wakes one.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"
#include "protocol/ownership_lend.hpp"

namespace drust::tasks {

// dropped: the spawner no longer wants to know; the completion that comes is freed by who brings it, and the
// record with it. So a record that is gone has had its completion.
// refused: the task has returned, but the record's server had no room for its completion; what it had made is
// freed, what it was lent is as it was lent, or, refused_poisoned, may have been written. These two bring no block.
enum class RecordState : std::uint32_t { pending, done, lost, dropped, refused = 6, refused_poisoned = 10 };

// What a completion met.
enum class Delivery : std::uint8_t {
  applied,   // the record has it: its block is the joiner's
  repeated,  // the record had one before, or is gone: only this copy of the block is to be freed
  unwanted,  // the record was dropped: the block and all it carries are to be freed
};

// The whole outcome of a task in one word, so that it happens in one compare-and-swap: pending carries the
// record's own colour (a late completion cannot hit the block that reused the memory) and whether anybody sleeps,
// anything else where the completion block is, or, below kBlocklessMax, the rest of a state that brings no block. The
// low half is the futex a join waits on.
struct RecordOutcome {
  static constexpr std::uint64_t kBlocklessMax = 16;  // no block begins below as many times its alignment
  std::atomic<std::uint64_t> word;
  static constexpr RecordState state_of(std::uint64_t word) noexcept {
    return static_cast<RecordState>((word & 3U) == 2 && (word >> 2) < kBlocklessMax ? word : word & 3U);
  }
  // Above a pending or a dropped word: see Queue::condemn(). It stands in the half that nobody sleeps on.
  static constexpr std::uint64_t kCondemned = 1ULL << 63;
  [[nodiscard]] RecordState load() const noexcept { return state_of(word.load(std::memory_order_acquire)); }
};

// The single buffer of a record block.
struct Record {
  RecordOutcome state;                   // any process, compare-and-swap from pending: complete()
  std::atomic<std::uint32_t> worker_pid; // who runs it, 0 before; the worker
  std::atomic<std::uint32_t> server;     // where the task was sent; then whoever gives it to another server
  std::uint64_t under;                   // Entry::id() of the task that lends on what it was lent, 0: none; constant
  // Address of the call block while it may not have arrived, then kCallArrived; 0 before it is sent. Its spawner.
  std::atomic<std::uint64_t> call;
  static constexpr std::uint64_t kCallArrived = ~0ULL;
  static constexpr std::uint64_t kCallUnsure = ~0ULL - 1;  // its spawner has asked another server to take it back
  // The completion block, in this partition; null if there is none. Filled by wait() before it returns, from
  // the outcome and the block's header: not before.
  std::atomic<std::uint64_t> address;
  std::atomic<std::uint64_t> colour;
  std::atomic<std::uint64_t> extent_bytes;
  [[nodiscard]] GlobalPointer completion() const noexcept { return {Address(address), colour, extent_bytes}; }
};
inline constexpr std::uint32_t kTaskCodec = 0xfffffff0U;
inline constexpr std::uint32_t kRecordCodec = 0xfffffff1U;
inline constexpr std::uint32_t kCompletionCodec = 0xfffffff2U;
// A loss: metadata Loss and a sentence; the child table has the mutable lends, in the call's order, under the
// colours that they have now.
inline constexpr std::uint32_t kLossCodec = 0xfffffff3U;
struct Loss {
  std::uint32_t is_poisoned = 0;  // else the mutable lends are as before the task
  std::uint32_t pid = 0;          // of the worker
  std::uint64_t at_ns = 0;        // since the epoch
};

struct Entry {
  std::uint32_t index = 0;
  std::uint64_t ticket = 0;     // order of arrival
  GlobalPointer task;           // in this partition
  GlobalPointer record;         // in the spawner's partition, which may be another server's
  heap::ProcessId worker;       // while running
  // Names this run of this task in its partition; never 0.
  [[nodiscard]] std::uint64_t id() const noexcept { return (ticket << 16 | index) + 1; }
};

// An entry of a dead worker, as its reaper finds it.
struct Held {
  Entry entry;
  protocol::TaskRecord fate;
  GlobalPointer completion;     // if it has returned
  std::uint32_t retries = 0;    // how often it may still be run again
};

class Queue {
 public:
  explicit Queue(heap::Heap& heap);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // How a task waits.
  struct Terms {
    std::uint32_t retries = 0;  // how often it may run again: a worker was lost, all that it had been lent rolled back
    bool is_bound = false;      // it runs here or nowhere
    // How long it is *kept*: left to its spawner, which may soon wait for it, and then runs it itself (withdraw()).
    std::uint32_t kept_us = 0;
  };
  // Appends; wakes one consumer. full if every entry is taken. Its ticket, for offer().
  Result<std::uint64_t> push(const GlobalPointer& task, const GlobalPointer& record, const Terms& terms);
  Result<std::uint64_t> push(const GlobalPointer& task, const GlobalPointer& record) { return push(task, record, {}); }
  // What was pushed with this ticket is kept no longer; wakes one consumer if it was. Nothing if it has been taken.
  void offer(std::uint64_t ticket) noexcept;
  // The oldest ready entry that is not kept, now running by this process. timed_out after `timeout_ms`; closed when
  // the partition closes; interrupted when a signal arrived.
  Result<Entry> take(std::uint32_t timeout_ms);
  // By its worker. The task can no longer be rolled back: a side effect escaped, or it writes in place.
  void forbid_rollback(const Entry& entry) noexcept;
  // Whether a task that runs, or has returned, did what cannot be rolled back.
  [[nodiscard]] bool is_forbidden(const Entry& entry) const noexcept;
  // By its worker: decides that it has returned, with this completion block. False if it was declared lost
  // before: the worker has been fenced, and nothing that it did counts.
  [[nodiscard]] bool returned(const Entry& entry, const GlobalPointer& completion) noexcept;
  // The completion has arrived, or nobody is left to get it: the entry is empty again (the task block is the
  // caller's to free).
  void finish(const Entry& entry) noexcept;
  // Takes the entry of this record's task, if it still waits, as its worker would: to run it, or to cancel it. For
  // that the caller says that it has returned, with no completion, settles its record, frees its block and finishes the
  // entry; wherever it dies on the way, its reaper finds a task that ran and goes on. Looks at the newest first.
  std::optional<Entry> withdraw(const GlobalPointer& record) noexcept;
  // For another server: of the tasks that wait, are neither bound nor kept, and whose records are in this partition, the older half
  // of those that this server's idle processes are not about to take, at most `most`. Each is running by this process
  // and has not begun: the caller hands it over and calls finish(), or run_again().
  std::vector<Held> take_unbound(std::uint32_t most);
  // A dead process's reserved entries are empty when it returns; what it was running stays until the caller,
  // its reaper, has decided each one's fate and calls finish() or run_again().
  std::vector<Held> reap(heap::ProcessId dead);
  // By the reaper: stores a fate that protocol::apply() gave for the one that was read.
  void decide(const Held& held, const protocol::TaskRecord& fate) noexcept;
  // By the reaper: the task waits again, at its old place in the order, with one retry less if it had begun.
  void run_again(const Held& held) noexcept;
  // Tasks that wait or run here for a server that is lost: all records of `lost` up to that incarnation. Those that
  // wait are appended to `queued`, their entries empty: the call blocks are the caller's to free. Those that run
  // with a lend that came through there are orphaned, and appended to `running` until they have ended.
  // Looks at every entry.
  void orphan(ServerId lost, std::uint16_t incarnation, std::vector<GlobalPointer>& queued,
              std::vector<Entry>& running) noexcept;
  // Whether some entry answers for this record's task. Looks at every entry.
  [[nodiscard]] bool knows(const GlobalPointer& record) const noexcept;

  // The blocks that entries name: calls, and completions on their way. Looks at every entry.
  void each_named(const std::function<void(Address)>& visit) const;
  // The completion that a record of this partition has; null if it has none.
  static Address completion_in(const heap::Partition& partition, const GlobalPointer& record) noexcept;

  [[nodiscard]] std::uint32_t idle() const noexcept;  // processes that wait in take()
  // Looks at the entries between head and tail, until it has seen `most` that wait.
  [[nodiscard]] std::uint32_t ready(std::uint32_t most = kQueueEntries) const noexcept;
  [[nodiscard]] std::uint32_t running() const noexcept;  // looks at every entry: 50 us or so

  // Records, in this partition. `lends`: what the task is lent, with kShared or kMutable; `under`: Record::under.
  static Result<GlobalPointer> make_record(heap::Heap& heap, ServerId target,
                                           std::span<const heap::ChildPointer> lends = {}, std::uint64_t under = 0);
  // pending -> state, with the completion block; wakes who waits for it, and tells the process that made the record
  // (arrivals.hpp). A dropped record goes with the call.
  static Delivery complete(heap::Heap& heap, const GlobalPointer& record, RecordState state,
                           const GlobalPointer& completion) noexcept;
  // Waits for the record to leave pending: timed_out, interrupted or closed otherwise.
  static Result<Record*> wait(heap::Partition& partition, const GlobalPointer& record, std::uint32_t timeout_ms);
  // The server of its task is lost. A record with lends is *condemned*: nothing that its task may still send
  // completes it, and it stays pending, to whoever joins, until settle(): tasks further down may have what was
  // lent. One without lends is settled at once. True if it is settled. For each record once a loss.
  static bool condemn(heap::Heap& heap, const GlobalPointer& record) noexcept;
  // Nothing below any lost server runs any more: a condemned record is lost, or gone if nobody joins it. False if
  // it is none.
  static bool settle(heap::Heap& heap, const GlobalPointer& record) noexcept;
  // What wait() would find, without waiting, and lost if it is condemned; nothing if the record is gone.
  static std::optional<RecordState> look(heap::Partition& partition, const GlobalPointer& record) noexcept;
  // pending -> dropped. False if it has completed, or is gone.
  static bool refuse(const heap::Partition& partition, const GlobalPointer& record) noexcept;
  // Frees the record and, if it has come, the completion nobody has taken. Before that, the record stays as
  // dropped, and true is returned. For a handle that is dropped before its task was joined.
  static bool drop_record(heap::Heap& heap, const GlobalPointer& record, std::vector<GlobalPointer>& remote);
  // The record behind a pointer, null if it is gone or none.
  static Record* find_record(const heap::Partition& partition, const GlobalPointer& record) noexcept;

 private:
  class Ring;
  std::unique_ptr<Ring> ring_;
};

}  // namespace drust::tasks
