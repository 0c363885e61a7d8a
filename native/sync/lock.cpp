#include "sync/lock.hpp"

#include "base/kill_point.hpp"

namespace drust::sync {
namespace {

// One step of the word; false: it has changed.
bool move(LockWords& lock, LockWord seen, LockWord next) noexcept {
  std::uint64_t expected = seen.raw();
  return lock.word.compare_exchange_strong(expected, next.raw());
}

bool has_readers(const LockWords& lock) noexcept {
  const RwLockWords* both = readable(lock);
  return both != nullptr && both->readers.has_reading();
}

bool is_viewed(const LockWords& lock, Address value) noexcept {
  const RwLockWords* both = readable(lock);
  return both != nullptr && both->readers.is_viewed(value);
}

void wake(heap::Partition& rings, LockWords& lock, Who who, std::uint32_t place) noexcept {
  lock.line.signal(place);
  if (who.server() != rings.server()) rings.ring_bell();
}

// From `holder`, who has the lock or is dead.
void pass_on(heap::Partition& rings, LockWords& lock, Who holder, bool poisons) noexcept {
  for (;;) {
    const LockWord seen = look(lock);
    if (seen.who() != holder) return;
    const std::optional<Line::Next> next = seen.has_line() ? lock.line.oldest() : std::nullopt;
    if (!next) {
      if (move(lock, seen, seen.give_back(poisons))) return;
      continue;
    }
    if (!move(lock, seen, seen.hand_over(next->who, next->place, poisons))) continue;
    kill_point("shared.lock.handed");
    wake(rings, lock, next->who, next->place);
    return;
  }
}

// Somebody has left: whoever is at the gate looks again.
void tell_gate(heap::Partition& rings, LockWords& lock) noexcept {
  const LockWord seen = look(lock);
  if (const auto place = seen.place(); place && *place < kWaitersMax) wake(rings, lock, seen.who(), *place);
}

// Into the line, and to the gate if nobody is there.
void go_to_gate(LockWords& lock, Who who, std::uint32_t place) noexcept {
  for (;;) {
    const LockWord seen = look(lock);
    if (seen.was_given(who, place)) return;
    if (const std::optional<LockWord> taken = seen.take_place(who, place); taken) {
      if (move(lock, seen, taken->queue_up())) return;
    } else if (move(lock, seen, seen.queue_up())) {
      return;
    }
  }
}

}  // namespace

bool try_write(heap::Partition& rings, RwLockWords& lock, Who who) noexcept {
  if (lock.readers.has_reading()) return false;
  const LockWord seen = look(lock);
  const std::optional<LockWord> arrived = seen.take_place(who, LockWord::kArriving);
  if (!arrived || !move(lock, seen, *arrived)) return false;
  while (!lock.readers.has_reading()) {
    const LockWord now = look(lock);  // others may have joined the line
    if (!move(lock, now, now.enter())) continue;
    kill_point("shared.lock.entered");
    return true;
  }
  pass_on(rings, lock, who, false);
  return false;
}

Queued queue_up(LockWords& lock, Who who, std::uint64_t token) noexcept {
  const std::optional<std::uint32_t> place = lock.line.join(who, token);
  if (!place) return {};
  go_to_gate(lock, who, *place);
  return {has_entered(lock, who, *place) ? Met::locked : Met::waiting, *place};
}

bool has_entered(LockWords& lock, Who who, std::uint32_t place) noexcept {
  for (;;) {
    const LockWord seen = look(lock);
    if (!seen.was_given(who, place) || has_readers(lock)) return false;
    if (!move(lock, seen, seen.enter())) continue;
    kill_point("shared.lock.entered");
    lock.line.leave(place);
    return true;
  }
}

bool give_up(heap::Partition& rings, LockWords& lock, Who who, std::uint32_t place) noexcept {
  if (!lock.line.begin_leaving(place, who)) return false;
  kill_point("shared.lock.leaving");
  for (;;) {
    const LockWord seen = look(lock);
    if (seen.was_given(who, place)) {
      if (has_entered(lock, who, place)) return true;
      if (!has_readers(lock)) continue;
      pass_on(rings, lock, who, false);
      lock.line.leave(place);
      return false;
    }
    if (move(lock, seen, seen.leave())) {
      lock.line.leave(place);
      return false;
    }
  }
}

void unlock(heap::Partition& rings, LockWords& lock, bool poisons) noexcept {
  if (!poisons && try_unlock(lock)) return;
  pass_on(rings, lock, look(lock).who(), poisons);
}

void clear_poison(LockWords& lock) noexcept {
  for (;;) {
    const LockWord seen = look(lock);
    if (move(lock, seen, seen.cleared())) return;
  }
}

void bury(heap::Heap& heap, const GlobalPointer& object, LockWords& lock, const IsDead& is_dead) noexcept {
  heap::Partition& rings = heap.partition();
  const bool had_places = lock.line.bury(is_dead);
  bool had_readers = false;
  if (RwLockWords* both = readable(lock); both != nullptr) {
    std::vector<GlobalPointer> left;
    had_readers = both->readers.bury(is_dead, [&](Address value) {
      const Result<heap::Block> block = rings.find(value, kNoColour);
      if (block.ok()) left.push_back({value, block.value().header().state.load(), block.value().header().extent_bytes});
    });
    std::vector<GlobalPointer> none;  // what only a RwLock's array has, which has no children
    for (const GlobalPointer& value : left) {
      if (value == current_value(rings, object, lock) || is_viewed(lock, value.address)) continue;
      static_cast<void>(heap.free(value, none));
    }
  }
  for (;;) {
    const LockWord seen = look(lock);
    if (!seen.who().is_nobody() && is_dead(seen.who())) {
      pass_on(rings, lock, seen.who(), !seen.place());
      continue;  // perhaps to another that is dead
    }
    // Whoever looked through the line before it was cleared must look again.
    if (!had_places || move(lock, seen, seen.leave())) break;
  }
  if (had_readers) tell_gate(rings, lock);
}

// -- reading

std::optional<std::uint32_t> try_read(heap::Partition& rings, RwLockWords& lock, Who who,
                                      std::uint64_t token) noexcept {
  if (!look(lock).who().is_nobody()) return std::nullopt;
  const std::optional<std::uint32_t> slot = lock.readers.claim(who, token);
  if (!slot || look(lock).who().is_nobody()) return slot;
  end_read(rings, lock, *slot);
  return std::nullopt;
}

QueuedToRead queue_to_read(heap::Partition& rings, RwLockWords& lock, Who who, std::uint64_t token) noexcept {
  const std::optional<std::uint32_t> place = lock.line.join(who, token);
  if (!place) return {};
  go_to_gate(lock, who, *place);
  const std::optional<std::uint32_t> slot = has_entered_to_read(rings, lock, who, *place, token);
  return {slot ? Met::locked : Met::waiting, *place, slot.value_or(0)};
}

std::optional<std::uint32_t> has_entered_to_read(heap::Partition& rings, RwLockWords& lock, Who who,
                                                 std::uint32_t place, std::uint64_t token) noexcept {
  if (!look(lock).was_given(who, place)) return std::nullopt;
  const std::optional<std::uint32_t> slot = lock.readers.claim(who, token);
  if (!slot) return std::nullopt;
  // First, so that the gate is not handed to this very place again.
  if (!lock.line.begin_leaving(place, who)) {  // this process was declared dead
    lock.readers.release(*slot);
    return std::nullopt;
  }
  pass_on(rings, lock, who, false);
  kill_point("shared.read.passed");
  lock.line.leave(place);
  return slot;
}

void give_up_reading(heap::Partition& rings, RwLockWords& lock, Who who, std::uint32_t place) noexcept {
  if (!lock.line.begin_leaving(place, who)) return;
  for (;;) {
    const LockWord seen = look(lock);
    if (seen.was_given(who, place)) {
      pass_on(rings, lock, who, false);
      break;
    }
    if (move(lock, seen, seen.leave())) break;
  }
  lock.line.leave(place);
}

void end_read(heap::Partition& rings, RwLockWords& lock, std::uint32_t slot) noexcept {
  lock.readers.release(slot);
  kill_point("shared.read.ended");
  tell_gate(rings, lock);
}

void begin_view(heap::Partition& rings, RwLockWords& lock, std::uint32_t slot, Who who, Address value) noexcept {
  lock.readers.begin_viewing(slot, who, value);
  tell_gate(rings, lock);
}

// Whoever puts another value in turns the word and looks for views, this one gives the slot back and looks at the
// word: one of the two frees the block, or both do, which is the same.
void end_view(heap::Heap& heap, const GlobalPointer& object, RwLockWords& lock, std::uint32_t slot,
              const GlobalPointer& value, std::vector<GlobalPointer>& remote) noexcept {
  end_read(heap.partition(), lock, slot);
  if (value == current_value(heap.partition(), object, lock) || lock.readers.is_viewed(value.address)) return;
  static_cast<void>(heap.free(value, remote));
}

std::optional<Readers::Reading> blocker(const LockWords& lock, Who who, std::uint64_t token,
                                        std::uint32_t index) noexcept {
  const LockWord seen = look(lock);
  if (seen.who().is_nobody()) return std::nullopt;
  const std::optional<std::uint32_t> place = lock.line.find(who, token);
  if (place && seen.was_given(who, *place)) {
    const RwLockWords* both = readable(lock);
    std::uint32_t slot = 0;
    for (; both != nullptr; --index) {
      const std::optional<Readers::Reading> found = both->readers.next(slot);
      if (!found || index == 0) return found;
    }
    return std::nullopt;
  }
  if (!place || index != 0) return std::nullopt;
  const std::optional<std::uint32_t> at = seen.place();
  const std::uint64_t holding = at ? lock.line.token(*at) : lock.token.load();
  if (holding == 0 || look(lock) != seen) return std::nullopt;
  return Readers::Reading{seen.who(), holding};
}

// -- the value

GlobalPointer current_value(const heap::Partition& partition, const GlobalPointer& object,
                            const LockWords& lock) noexcept {
  const heap::Block block(partition.writable(object.address.offset_bytes()));
  return block.children()[lock.value.current.load() & 1].pointer();
}

std::uint64_t put_value(heap::Heap& heap, const GlobalPointer& object, LockWords& lock, const GlobalPointer& value,
                        std::vector<GlobalPointer>& remote, Before keeps) noexcept {
  const heap::Block block(heap.partition().writable(object.address.offset_bytes()));
  const std::uint64_t before = lock.value.current.load() & 1;
  const GlobalPointer old = block.children()[before].pointer();
  heap::ChildPointer& spare = block.children()[1 - before];
  // What a writer that died has left there is freed with its estate, or was taken over and is freed here.
  if (spare.address != 0 && !is_viewed(lock, Address(spare.address)))
    static_cast<void>(heap.free(spare.pointer(), remote));
  spare = {value.address.raw(), value.colour, value.extent_bytes, 0};
  kill_point("shared.value.named");
  heap.set_owner(value, heap::parent_word(object.address));
  kill_point("shared.value.owned");
  const std::uint64_t version = lock.value.version.load() + 1;
  lock.value.current.store(1 - before);
  kill_point("shared.value.current");
  lock.value.version.store(version);
  if (!old.is_null() && keeps == Before::kept) {
    heap.set_owner(old, heap::owner_word(heap::OwnerKind::process, heap.process()));
  } else if (!old.is_null() && !is_viewed(lock, old.address)) {
    static_cast<void>(heap.free(old, remote));
  }
  block.children()[before] = {};
  return version;
}

}  // namespace drust::sync
