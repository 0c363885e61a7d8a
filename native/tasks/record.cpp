// Records: the one word a join waits on.
//
// The outcome is one compare-and-swap of one word. Rejected: writing address, colour and extent first and the
// state after them; two completers (the worker, and the server that thinks it lost) then write over each
// other, and a completer that is stopped in between writes into whatever the record's memory has become.
#include <algorithm>
#include <array>
#include <bit>

#include "base/futex.hpp"
#include "base/kill_point.hpp"
#include "base/limits.hpp"
#include "tasks/arrivals.hpp"
#include "tasks/queue.hpp"

namespace drust::tasks {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the futex is the low half of the outcome, which comes first");
static_assert(sizeof(Record) == 56);

// pending: the record's colour above two zero bits and one that says that somebody sleeps until it changes (three bits
// of the incarnation fall out, the counter stays).
constexpr std::uint64_t kWaited = 4;
constexpr std::uint64_t pending_word(Colour record) noexcept { return record << 3; }
constexpr std::uint64_t dropped_word(Colour record) noexcept {
  return pending_word(record) | static_cast<std::uint64_t>(RecordState::dropped);
}
// otherwise: where the completion block is, in units of its alignment, above the state.
constexpr std::uint64_t outcome_word(RecordState state, const GlobalPointer& completion) noexcept {
  const std::uint64_t units = completion.is_null() ? 0 : completion.address.offset_bytes() / kBlockAlignment;
  return (units << 2) | static_cast<std::uint64_t>(state);
}
constexpr RecordState state_of(std::uint64_t word) noexcept { return static_cast<RecordState>(word & 3U); }
constexpr Address completion_of(ServerId server, std::uint64_t word) noexcept {
  return (word >> 2) == 0 ? Address() : Address::make(server, (word >> 2) * kBlockAlignment);
}

const std::atomic<std::uint32_t>& futex_of(const Record& record) noexcept {
  const void* low_half = &record.state.word;  // its address is all the kernel needs
  return *static_cast<const std::atomic<std::uint32_t>*>(low_half);
}

heap::ProcessId maker_of(const heap::Partition& partition, const GlobalPointer& record) noexcept {
  const Result<heap::Block> block = partition.find(record.address, record.colour);
  return block.ok() ? heap::owner_process(block.value().header().owner.load()) : heap::ProcessId{};
}

}  // namespace

// A peer may name any block as a record: only one made by make_record() is.
Record* Queue::find_record(const heap::Partition& partition, const GlobalPointer& pointer) noexcept {
  Result<heap::Block> found = partition.find(pointer.address, pointer.colour);
  if (!found.ok() || found.value().header().codec != kRecordCodec) return nullptr;
  if (found.value().header().buffer_count != 1 || found.value().buffer(0).size() != sizeof(Record))
    return nullptr;
  return reinterpret_cast<Record*>(found.value().buffer(0).data());
}

Result<GlobalPointer> Queue::make_record(heap::Heap& heap, ServerId target,
                                         std::span<const heap::ChildPointer> lends, std::uint64_t under) {
  const std::array<std::uint64_t, 1> sizes = {sizeof(Record)};
  const Result<Address> address = heap.allocate(
      {.codec = kRecordCodec, .child_count = static_cast<std::uint32_t>(lends.size()), .buffer_bytes = sizes});
  if (!address.ok()) return address.status();
  const heap::Block block(heap.partition().writable(address.value().offset_bytes()));
  std::copy(lends.begin(), lends.end(), block.children().begin());
  auto* record = new (block.buffer(0).data()) Record{};
  record->server = target;
  record->under = under;
  const GlobalPointer pointer = heap.publish(address.value());
  kill_point("record.make.published");
  record->state.word.store(pending_word(pointer.colour));  // nobody else knows the pointer yet
  return pointer;
}

Delivery Queue::complete(heap::Heap& heap, const GlobalPointer& record, RecordState state,
                         const GlobalPointer& completion) noexcept {
  Record* found = find_record(heap.partition(), record);
  if (found == nullptr || state == RecordState::pending) return Delivery::repeated;
  kill_point("record.complete.before");
  std::uint64_t expected = pending_word(record.colour);
  // Before the word changes: afterwards the record may be gone.
  const heap::ProcessId maker = maker_of(heap.partition(), record);
  bool is_applied = found->state.word.compare_exchange_strong(expected, outcome_word(state, completion));
  const bool is_waited = !is_applied && expected == (pending_word(record.colour) | kWaited);
  if (is_waited)
    is_applied = found->state.word.compare_exchange_strong(expected, outcome_word(state, completion));
  if (is_applied) {
    kill_point("record.complete.after");
    if (is_waited) futex_wake(futex_of(*found), kEverybody);
    Arrivals::tell(heap.partition(), maker, record.address);
    return Delivery::applied;
  }
  // Freeing the record decides between two that come for a dropped one.
  const bool was_dropped = expected == dropped_word(record.colour);
  return was_dropped && heap.free_shallow(record).ok() ? Delivery::unwanted : Delivery::repeated;
}

Result<Record*> Queue::wait(heap::Partition& partition, const GlobalPointer& pointer,
                            std::uint32_t timeout_ms) {
  Record* record = find_record(partition, pointer);
  if (record == nullptr) return Status(Code::not_found, "no record there");
  const Deadline deadline = deadline_in(timeout_ms);
  while (true) {
    const std::uint64_t word = record->state.word.load(std::memory_order_acquire);
    if (state_of(word) == RecordState::dropped) return Status(Code::not_found, "the record was dropped");
    if (state_of(word) != RecordState::pending) {
      const Address address = completion_of(partition.server(), word);
      Result<heap::Block> block = partition.find(address, kNoColour);
      if (block.ok() && record->colour.load() == kNoColour) {
        record->extent_bytes.store(block.value().header().extent_bytes);
        record->address.store(address.raw());
        record->colour.store(block.value().header().state.load());
      }
      kill_point("record.wait.over");
      return record;
    }
    if (partition.is_closed()) return Status(Code::closed, "the runtime has been shut down");
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline) return Status(Code::timed_out, "the task has not completed");
    const Deadline slice = std::min(deadline, now + std::chrono::milliseconds(kWaitSliceMs));
    // By compare-and-swap, as all that is done to a record: another thread may have freed it meanwhile.
    const std::uint64_t waited = pending_word(pointer.colour) | kWaited;
    std::uint64_t seen = pending_word(pointer.colour);
    if (!record->state.word.compare_exchange_strong(seen, waited) && seen != waited) {
      if (state_of(seen) == RecordState::pending) return Status(Code::not_found, "the record is another's");
      continue;
    }
    if (futex_wait(futex_of(*record), static_cast<std::uint32_t>(waited), slice) == Wake::interrupted) {
      return Status(Code::interrupted, "a signal arrived");
    }
  }
}

std::optional<RecordState> Queue::look(heap::Partition& partition, const GlobalPointer& record) noexcept {
  const Record* found = find_record(partition, record);
  if (found == nullptr) return std::nullopt;
  return found->state.load();
}

bool Queue::refuse(const heap::Partition& partition, const GlobalPointer& pointer) noexcept {
  Record* record = find_record(partition, pointer);
  if (record == nullptr) return false;
  for (const std::uint64_t pending : {pending_word(pointer.colour), pending_word(pointer.colour) | kWaited}) {
    std::uint64_t word = pending;
    const bool is_done = record->state.word.compare_exchange_strong(word, dropped_word(pointer.colour));
    if (is_done || word == dropped_word(pointer.colour)) return true;
  }
  return false;
}

bool Queue::drop_record(heap::Heap& heap, const GlobalPointer& pointer, std::vector<GlobalPointer>& remote) {
  heap::Partition& partition = heap.partition();
  if (refuse(partition, pointer)) return true;
  const Record* record = find_record(partition, pointer);
  if (record == nullptr) return false;
  const std::uint64_t word = record->state.word.load();
  // It has completed. If wait() has looked, the colour says whether the completion is still what it was.
  const Address address = completion_of(partition.server(), word);
  Result<heap::Block> block = partition.find(address, record->colour.load());
  if (block.ok()) {
    static_cast<void>(heap.free({address, block.value().header().state.load(), 0}, remote));
  }
  static_cast<void>(heap.free_shallow(pointer));
  return false;
}

}  // namespace drust::tasks
