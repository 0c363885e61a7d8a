// Task descriptors waiting in the partition, and the records their spawners wait on.
//
// A *task block* (codec kTaskCodec) holds what to run: pickled call, child pointers for moved boxes and
// lends. A *record* is a small block in the spawner's own partition: the one place a completion goes to, and
// the one word a join waits on. Queue: a ring of entries, each with a state word that names the process
// responsible, so no death leaves a gap nobody can attribute:
//
//     empty -> reserved(producer) -> ready -> running(worker) -> empty
//
// Rejected: a Vyukov ring (a producer that dies between claiming and publishing blocks all behind it).
// A consumer waits on a futex in the queue's head; a push wakes one.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"

namespace drust::tasks {

// dropped: the spawner no longer wants to know.
enum class RecordState : std::uint32_t { pending, done, lost, dropped };

// The whole outcome of a task in one word, so that it happens in one compare-and-swap: pending carries the
// record's own colour (a late completion cannot hit the block that reused the memory), anything else where
// the completion block is. The low half is the futex a join waits on.
struct RecordOutcome {
  std::atomic<std::uint64_t> word;
  [[nodiscard]] RecordState load() const noexcept {
    return static_cast<RecordState>(word.load(std::memory_order_acquire) & 3U);
  }
};

// The single buffer of a record block.
struct Record {
  RecordOutcome state;                   // any process, compare-and-swap from pending: complete()
  std::atomic<std::uint32_t> worker_pid; // who runs it, 0 before; the worker
  std::uint32_t server;                  // where the task was sent; constant after spawn
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

struct Entry {
  std::uint32_t index = 0;
  std::uint64_t ticket = 0;     // order of arrival
  GlobalPointer task;           // in this partition
  GlobalPointer record;         // in the spawner's partition, which may be another server's
  heap::ProcessId worker;       // while running
};

class Queue {
 public:
  explicit Queue(heap::Heap& heap);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Appends; wakes one consumer. full if every entry is taken.
  Status push(const GlobalPointer& task, const GlobalPointer& record);
  // The oldest ready entry, now running by this process. timed_out after `timeout_ms`; closed when the
  // partition closes; interrupted when a signal arrived.
  Result<Entry> take(std::uint32_t timeout_ms);
  // The task has completed: the entry is empty again (the task block is the caller's to free).
  void finish(const Entry& entry) noexcept;
  // Takes back one entry that still waits (cancel). False if it runs already.
  bool withdraw(const GlobalPointer& task) noexcept;
  // What a dead process was running (the caller completes their records as lost) and its reserved entries:
  // all are empty when it returns, finish() on them does nothing.
  std::vector<Entry> reap(heap::ProcessId dead);

  [[nodiscard]] std::uint32_t ready() const noexcept;    // looks at the entries between head and tail
  [[nodiscard]] std::uint32_t running() const noexcept;  // looks at every entry: 50 us or so

  // Records, in this partition.
  static Result<GlobalPointer> make_record(heap::Heap& heap, ServerId target);
  // pending -> state, with the completion block; wakes the waiter. False (and nothing changed) if it was not
  // pending or the record is gone: the caller frees its block.
  static bool complete(heap::Partition& partition, const GlobalPointer& record, RecordState state,
                       const GlobalPointer& completion) noexcept;
  // Waits for the record to leave pending: timed_out, interrupted or closed otherwise.
  static Result<Record*> wait(heap::Partition& partition, const GlobalPointer& record, std::uint32_t timeout_ms);
  // What wait() would find, without waiting; nothing if the record is gone.
  static std::optional<RecordState> look(heap::Partition& partition, const GlobalPointer& record) noexcept;
  // Frees the record and, if it has come, the completion nobody has taken; one that comes later is refused.
  // For a handle that is dropped before its task was joined.
  static void drop_record(heap::Heap& heap, const GlobalPointer& record, std::vector<GlobalPointer>& remote);

 private:
  class Ring;
  std::unique_ptr<Ring> ring_;
};

}  // namespace drust::tasks
