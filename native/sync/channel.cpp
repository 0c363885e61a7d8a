#include "sync/channel.hpp"

#include <algorithm>

#include "base/kill_point.hpp"

namespace drust::sync {

Channel::Cell* Channel::find_cell(std::uint64_t ticket) const noexcept {
  const std::uint64_t index = ticket % words_.capacity.load();
  const Address segment(words_.segments[index / kCellsPerSegment].load());
  if (segment.is_null()) return nullptr;
  const heap::Block block(heap_.partition().writable(segment.offset_bytes()));
  return reinterpret_cast<Cell*>(block.buffer(0).data()) + index % kCellsPerSegment;
}

bool Channel::is_past(std::uint64_t state, std::uint64_t ticket) const noexcept {
  return ((lap_of(state) - lap(ticket)) & ((1ULL << (64 - kLapShift)) - 1)) == 1;
}

Result<Channel::Cell*> Channel::make_cell(std::uint64_t ticket) {
  if (Cell* cell = find_cell(ticket); cell != nullptr) return cell;
  const std::uint64_t capacity = words_.capacity.load();
  Word& place = words_.segments[ticket % capacity / kCellsPerSegment];
  const std::uint64_t bytes = std::min(capacity, kCellsPerSegment) * sizeof(Cell);
  const Result<Address> made = heap_.allocate({.codec = kSegmentCodec, .buffer_bytes = {&bytes, 1}});
  if (!made.ok()) return made.status();
  const heap::Block block(heap_.partition().writable(made.value().offset_bytes()));
  std::fill(block.buffer(0).begin(), block.buffer(0).end(), std::byte{0});
  const GlobalPointer segment = heap_.publish(made.value());
  std::uint64_t none = 0;
  if (place.compare_exchange_strong(none, segment.address.raw())) {
    kill_point("shared.channel.segment");  // it is this process's still: its reaper gives it to the channel
    heap_.set_owner(segment, heap::parent_word(object_.address));
  } else {
    static_cast<void>(heap_.free_shallow(segment));
  }
  return find_cell(ticket);
}

bool Channel::owns(std::uint64_t message) const noexcept {
  if (message == 0) return false;
  const Result<heap::Block> found = heap_.partition().find(Address(message), kNoColour);
  return found.ok() && found.value().header().owner.load() == heap::parent_word(object_.address);
}

void Channel::set_ready(Cell& cell, std::uint64_t lap) noexcept {
  cell.state.store(state_of(lap, Phase::ready, {}));
  words_.arrivals.fetch_add(1);
  if (words_.receivers_wait.load() != 0) futex_wake(words_.arrivals, 1);
  if (words_.remote_wait.load() != 0) heap_.partition().ring_bell();
}

void Channel::set_empty(Cell& cell, std::uint64_t lap) noexcept {
  cell.message.store(0);
  cell.state.store(state_of(lap + 1, Phase::empty, {}));
  advance_received();
  words_.rooms.fetch_add(1);
  if (words_.senders_wait.load() != 0) futex_wake(words_.rooms, 1);
  if (words_.remote_wait.load() != 0) heap_.partition().ring_bell();
}

void Channel::advance_received() noexcept {
  for (;;) {
    std::uint64_t ticket = words_.received.load();
    if (ticket >= words_.sent.load()) return;
    const Cell* cell = find_cell(ticket);
    if (cell == nullptr || lap_of(cell->state.load()) == lap(ticket)) return;  // not over yet
    words_.received.compare_exchange_strong(ticket, ticket + 1);
  }
}

Status Channel::try_send(Who who, const GlobalPointer& message) {
  for (;;) {
    if ((words_.ended.load() & (1U << ChannelWords::kReceivers)) != 0)
      return Status(Code::closed, "nobody receives any more");
    std::uint64_t ticket = words_.sent.load();
    const Result<Cell*> made = make_cell(ticket);
    if (!made.ok()) return made.status();
    Cell& cell = *made.value();
    std::uint64_t seen = cell.state.load();
    if (lap_of(seen) != lap(ticket) && !is_past(seen, ticket)) {  // not received yet, of the lap before
      if (words_.sent.load() != ticket) continue;
      return Status(Code::full, "the channel has no room for another message");
    }
    if (phase_of(seen) != Phase::empty || is_past(seen, ticket)) {
      words_.sent.compare_exchange_strong(ticket, ticket + 1);
      continue;
    }
    if (!cell.state.compare_exchange_strong(seen, state_of(lap(ticket), Phase::reserved, who))) continue;
    kill_point("shared.channel.reserved");
    std::uint64_t expected = ticket;
    words_.sent.compare_exchange_strong(expected, ticket + 1);
    cell.message.store(message.address.raw());
    kill_point("shared.channel.named");
    heap_.set_owner(message, heap::parent_word(object_.address));
    kill_point("shared.channel.sent");
    set_ready(cell, lap(ticket));
    return Status();
  }
}

Result<GlobalPointer> Channel::try_receive(Who who) {
  for (;;) {
    // A message that came behind the look, while those before it went: it was never empty.
    const std::uint32_t seen = words_.arrivals.load();
    Result<GlobalPointer> found = look_for_message(who);
    if (found.ok() || words_.arrivals.load() == seen) return found;
  }
}

Result<GlobalPointer> Channel::look_for_message(Who who) {
  const bool has_ended = (words_.ended.load() & (1U << ChannelWords::kSenders)) != 0;  // before the look
  const std::uint64_t last = words_.sent.load();
  for (std::uint64_t ticket = words_.received.load(); ticket < last; ++ticket) {
    Cell* cell = find_cell(ticket);
    if (cell == nullptr) continue;
    std::uint64_t seen = cell->state.load();
    if (phase_of(seen) != Phase::ready || lap_of(seen) != lap(ticket)) continue;
    if (!cell->state.compare_exchange_strong(seen, state_of(lap(ticket), Phase::taken, who))) continue;
    kill_point("shared.channel.taken");
    const Address address(cell->message.load());
    const Result<heap::Block> block = heap_.partition().find(address, kNoColour);
    GlobalPointer message;
    if (block.ok()) {
      message = {address, block.value().header().state.load(), block.value().header().extent_bytes};
      heap_.set_owner(message, heap::owner_word(heap::OwnerKind::process, heap_.process()));
    }
    kill_point("shared.channel.received");
    set_empty(*cell, lap(ticket));
    if (!message.is_null()) return message;
  }
  if (has_ended) return Status(Code::closed, "all messages are received, and nobody sends any more");
  return Status(Code::timed_out, "there is no message");
}

Wake Channel::wait_arrival(std::uint32_t seen, Deadline deadline) noexcept {
  words_.receivers_wait.fetch_add(1);
  const Wake wake = futex_wait(words_.arrivals, seen, deadline);
  words_.receivers_wait.fetch_sub(1);
  return wake;
}

Wake Channel::wait_room(std::uint32_t seen, Deadline deadline) noexcept {
  words_.senders_wait.fetch_add(1);
  const Wake wake = futex_wait(words_.rooms, seen, deadline);
  words_.senders_wait.fetch_sub(1);
  return wake;
}

std::uint64_t Channel::length() const noexcept {
  std::uint64_t count = 0;
  for (std::uint64_t ticket = words_.received.load(); ticket < words_.sent.load(); ++ticket) {
    const Cell* cell = find_cell(ticket);
    if (cell != nullptr && lap_of(cell->state.load()) == lap(ticket)) ++count;
  }
  return count;
}

void Channel::end(ChannelWords::End role) noexcept {
  words_.ended.fetch_or(1U << role);
  for (std::atomic<std::uint32_t>* word : {&words_.arrivals, &words_.rooms}) {
    word->fetch_add(1);
    futex_wake(*word, kEverybody);
  }
  heap_.partition().ring_bell();
}

void Channel::bury(const IsDead& is_dead, heap::ProcessId dead) noexcept {
  const std::uint64_t capacity = words_.capacity.load();
  for (std::uint64_t first = 0; first < capacity; first += kCellsPerSegment) {
    const Address segment(words_.segments[first / kCellsPerSegment].load());
    if (segment.is_null()) continue;
    const Result<heap::Block> block = heap_.partition().find(segment, kNoColour);
    if (!block.ok()) continue;
    const GlobalPointer pointer{segment, block.value().header().state.load(), 0};
    static_cast<void>(heap_.change_owner(pointer, heap::owner_word(heap::OwnerKind::process, dead),
                                         heap::parent_word(object_.address)));
    for (std::uint64_t index = first; index < std::min(capacity, first + kCellsPerSegment); ++index) {
      Cell& cell = *find_cell(index);
      const std::uint64_t seen = cell.state.load();
      const Phase phase = phase_of(seen);
      if ((phase != Phase::reserved && phase != Phase::taken) || !is_dead(Who(seen))) continue;
      if (owns(cell.message.load())) {
        set_ready(cell, lap_of(seen));
      } else {
        set_empty(cell, lap_of(seen));
      }
    }
  }
}

void Channel::clear(std::vector<GlobalPointer>& remote) noexcept {
  const std::uint64_t capacity = words_.capacity.load();
  for (std::uint64_t first = 0; first < capacity; first += kCellsPerSegment) {
    const Address segment(words_.segments[first / kCellsPerSegment].load());
    if (segment.is_null()) continue;
    for (std::uint64_t index = first; index < std::min(capacity, first + kCellsPerSegment); ++index) {
      const std::uint64_t message = find_cell(index)->message.load();
      if (!owns(message)) continue;
      const Result<heap::Block> block = heap_.partition().find(Address(message), kNoColour);
      static_cast<void>(heap_.free({Address(message), block.value().header().state.load(), 0}, remote));
    }
    const Result<heap::Block> block = heap_.partition().find(segment, kNoColour);
    if (block.ok()) static_cast<void>(heap_.free_shallow({segment, block.value().header().state.load(), 0}));
  }
}

}  // namespace drust::sync
