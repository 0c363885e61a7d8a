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
#include "base/patience.hpp"
#include "tasks/arrivals.hpp"
#include "tasks/queue.hpp"

namespace drust::tasks {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the futex is the low half of the outcome, which comes first");
static_assert(sizeof(Record) == 56);

// pending: the record's colour above two zero bits and one that says that somebody sleeps until it changes (four bits
// of the incarnation fall out, the counter stays).
constexpr std::uint64_t kWaited = 4;
constexpr std::uint64_t kCondemned = RecordOutcome::kCondemned;
constexpr std::uint64_t pending_word(Colour record) noexcept { return (record << 3) & ~kCondemned; }
// Whoever sleeps there, and whether it is condemned or not.
constexpr bool is_pending(std::uint64_t word, Colour record) noexcept {
  return (word & ~(kCondemned | kWaited)) == pending_word(record);
}
constexpr std::uint64_t dropped_word(Colour record) noexcept {
  return pending_word(record) | static_cast<std::uint64_t>(RecordState::dropped);
}
// otherwise: where the completion block is, in units of its alignment, above the state.
constexpr std::uint64_t outcome_word(RecordState state, const GlobalPointer& completion) noexcept {
  const std::uint64_t units = completion.is_null() ? 0 : completion.address.offset_bytes() / kBlockAlignment;
  return (units << 2) | static_cast<std::uint64_t>(state);
}
constexpr RecordState state_of(std::uint64_t word) noexcept { return RecordOutcome::state_of(word); }
constexpr Address completion_of(ServerId server, std::uint64_t word) noexcept {
  const std::uint64_t units = word >> 2;
  return units < RecordOutcome::kBlocklessMax ? Address() : Address::make(server, units * kBlockAlignment);
}
static_assert(RecordOutcome::kBlocklessMax * kBlockAlignment < 4096, "the first page of a partition has no blocks");

const std::atomic<std::uint32_t>& futex_of(const Record& record) noexcept {
  const void* low_half = &record.state.word;  // its address is all the kernel needs
  return *static_cast<const std::atomic<std::uint32_t>*>(low_half);
}

Patience& patience() noexcept {
  thread_local Patience of_joins;
  return of_joins;
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

Address Queue::completion_in(const heap::Partition& partition, const GlobalPointer& pointer) noexcept {
  const Record* record = find_record(partition, pointer);
  if (record == nullptr) return {};
  const std::uint64_t word = record->state.word.load(std::memory_order_acquire);
  const RecordState state = state_of(word);
  const bool has_one = state != RecordState::pending && state != RecordState::dropped;
  return has_one ? completion_of(partition.server(), word) : Address();
}

Delivery Queue::complete(heap::Heap& heap, const GlobalPointer& record, RecordState state,
                         const GlobalPointer& completion) noexcept {
  Record* found = find_record(heap.partition(), record);
  if (found == nullptr || state == RecordState::pending) return Delivery::repeated;
  kill_point("record.complete.before");
  // Before the word changes: afterwards the record may be gone.
  const heap::ProcessId maker = maker_of(heap.partition(), record);
  std::uint64_t expected = found->state.word.load();
  while (is_pending(expected, record.colour) && (expected & kCondemned) == 0) {
    if (!found->state.word.compare_exchange_weak(expected, outcome_word(state, completion))) continue;
    kill_point("record.complete.after");
    if ((expected & kWaited) != 0) futex_wake(futex_of(*found), kEverybody);
    Arrivals::tell(heap.partition(), maker, record.address);
    return Delivery::applied;
  }
  // What comes from a lost server counts no longer: whoever brings it frees all of it, and the record stays.
  if (is_pending(expected, record.colour) || expected == (dropped_word(record.colour) | kCondemned))
    return Delivery::unwanted;
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
    if (!is_pending(word, pointer.colour)) return Status(Code::not_found, "the record is another's");
    if (patience().wait([&] { return record->state.word.load(std::memory_order_acquire) != word; })) continue;
    const std::uint64_t waited = word | kWaited;
    std::uint64_t seen = word;
    if (word != waited && !record->state.word.compare_exchange_strong(seen, waited)) continue;
    if (futex_wait(futex_of(*record), static_cast<std::uint32_t>(waited), slice) == Wake::interrupted) {
      return Status(Code::interrupted, "a signal arrived");
    }
  }
}

std::optional<RecordState> Queue::look(heap::Partition& partition, const GlobalPointer& record) noexcept {
  const Record* found = find_record(partition, record);
  if (found == nullptr) return std::nullopt;
  const std::uint64_t word = found->state.word.load();
  const bool is_condemned = is_pending(word, record.colour) && (word & kCondemned) != 0;
  return is_condemned ? RecordState::lost : state_of(word);
}

bool Queue::refuse(const heap::Partition& partition, const GlobalPointer& pointer) noexcept {
  Record* record = find_record(partition, pointer);
  if (record == nullptr) return false;
  std::uint64_t word = record->state.word.load();
  while (is_pending(word, pointer.colour)) {
    const std::uint64_t dropped = dropped_word(pointer.colour) | (word & kCondemned);
    if (record->state.word.compare_exchange_strong(word, dropped)) return true;
  }
  return (word & ~kCondemned) == dropped_word(pointer.colour);
}

bool Queue::condemn(heap::Heap& heap, const GlobalPointer& pointer) noexcept {
  const Result<heap::Block> block = heap.partition().find(pointer.address, pointer.colour);
  Record* record = find_record(heap.partition(), pointer);
  if (record == nullptr || !block.ok()) return false;
  std::uint64_t word = record->state.word.load();
  while (true) {
    const bool is_out = is_pending(word, pointer.colour) || word == dropped_word(pointer.colour);
    if (!is_out || (word & kCondemned) != 0) return false;
    if (record->state.word.compare_exchange_weak(word, word | kCondemned)) break;
  }
  return block.value().header().child_count == 0 && settle(heap, pointer);
}

bool Queue::settle(heap::Heap& heap, const GlobalPointer& pointer) noexcept {
  Record* record = find_record(heap.partition(), pointer);
  if (record == nullptr) return false;
  const heap::ProcessId maker = maker_of(heap.partition(), pointer);
  std::uint64_t word = record->state.word.load();
  while (is_pending(word, pointer.colour) && (word & kCondemned) != 0) {
    const std::uint64_t lost = outcome_word(RecordState::lost, {});
    if (!record->state.word.compare_exchange_weak(word, lost)) continue;
    futex_wake(futex_of(*record), kEverybody);
    Arrivals::tell(heap.partition(), maker, pointer.address);
    return true;
  }
  return word == (dropped_word(pointer.colour) | kCondemned) && heap.free_shallow(pointer).ok();
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
