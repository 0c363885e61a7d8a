#include "sync/mutex.hpp"

#include "base/kill_point.hpp"

namespace drust::sync {
namespace {

// One step of the word; false: it has changed.
bool move(MutexWords& mutex, LockWord seen, LockWord next) noexcept {
  std::uint64_t expected = seen.raw();
  return mutex.word.compare_exchange_strong(expected, next.raw());
}

// From `holder`, who has the lock or is dead.
void pass_on(heap::Partition& rings, MutexWords& mutex, Who holder, bool poisons) noexcept {
  for (;;) {
    const LockWord seen = look(mutex);
    if (seen.who() != holder) return;
    const std::optional<Line::Next> next = seen.has_line() ? mutex.line.oldest() : std::nullopt;
    if (!next) {
      if (move(mutex, seen, seen.give_back(poisons))) return;
      continue;
    }
    if (!move(mutex, seen, seen.hand_over(next->who, next->place, poisons))) continue;
    kill_point("shared.lock.handed");
    mutex.line.signal(next->place);
    if (next->who.server() != rings.server()) rings.ring_bell();
    return;
  }
}

}  // namespace

Queued queue_up(MutexWords& mutex, Who who, std::uint64_t token) noexcept {
  const std::optional<std::uint32_t> place = mutex.line.join(who, token);
  if (!place) return {};
  for (;;) {
    const LockWord seen = look(mutex);
    if (seen.was_given(who, *place)) {
      if (has_entered(mutex, who, *place)) return {Met::locked, *place};
    } else if (const std::optional<LockWord> taken = seen.take(who); taken) {
      if (!move(mutex, seen, taken->queue_up())) continue;
      mutex.line.leave(*place);
      return {Met::locked, *place};
    } else if (move(mutex, seen, seen.queue_up())) {
      return {Met::waiting, *place};
    }
  }
}

bool has_entered(MutexWords& mutex, Who who, std::uint32_t place) noexcept {
  for (;;) {
    const LockWord seen = look(mutex);
    if (!seen.was_given(who, place)) return false;
    if (!move(mutex, seen, seen.enter())) continue;
    kill_point("shared.lock.entered");
    mutex.line.leave(place);
    return true;
  }
}

bool give_up(MutexWords& mutex, Who who, std::uint32_t place) noexcept {
  if (!mutex.line.begin_leaving(place, who)) return false;
  kill_point("shared.lock.leaving");
  for (;;) {
    const LockWord seen = look(mutex);
    if (seen.was_given(who, place)) {
      if (has_entered(mutex, who, place)) return true;
    } else if (move(mutex, seen, seen.leave())) {
      mutex.line.leave(place);
      return false;
    }
  }
}

void unlock(heap::Partition& rings, MutexWords& mutex, bool poisons) noexcept {
  if (!poisons && try_unlock(mutex)) return;
  pass_on(rings, mutex, look(mutex).who(), poisons);
}

void clear_poison(MutexWords& mutex) noexcept {
  for (;;) {
    const LockWord seen = look(mutex);
    if (move(mutex, seen, seen.cleared())) return;
  }
}

void bury(heap::Partition& rings, MutexWords& mutex, const IsDead& is_dead) noexcept {
  const bool had_places = mutex.line.bury(is_dead);
  for (;;) {
    const LockWord seen = look(mutex);
    if (!seen.who().is_nobody() && is_dead(seen.who())) {
      pass_on(rings, mutex, seen.who(), !seen.place());
      continue;  // perhaps to another that is dead
    }
    // Whoever looked through the line before it was cleared must look again.
    if (!had_places || move(mutex, seen, seen.leave())) return;
  }
}

GlobalPointer current_value(const heap::Partition& partition, const GlobalPointer& object,
                            const ValueWords& words) noexcept {
  const heap::Block block(partition.writable(object.address.offset_bytes()));
  return block.children()[words.current.load() & 1].pointer();
}

void release_value(heap::Heap& heap, const GlobalPointer& object, ValueWords& words) noexcept {
  const heap::Block block(heap.partition().writable(object.address.offset_bytes()));
  heap::ChildPointer& child = block.children()[words.current.load() & 1];
  heap.set_owner(child.pointer(), heap::owner_word(heap::OwnerKind::process, heap.process()));
  child = {};
}

std::uint64_t put_value(heap::Heap& heap, const GlobalPointer& object, ValueWords& words, const GlobalPointer& value,
                        std::vector<GlobalPointer>& remote) noexcept {
  const heap::Block block(heap.partition().writable(object.address.offset_bytes()));
  const std::uint64_t before = words.current.load() & 1;
  const GlobalPointer old = block.children()[before].pointer();
  heap::ChildPointer& spare = block.children()[1 - before];
  // What a writer that died has left there is freed with its estate, or was taken over and is freed here.
  if (spare.address != 0) static_cast<void>(heap.free(spare.pointer(), remote));
  spare = {value.address.raw(), value.colour, value.extent_bytes, 0};
  kill_point("shared.value.named");
  heap.set_owner(value, heap::parent_word(object.address));
  kill_point("shared.value.owned");
  const std::uint64_t version = words.version.load() + 1;
  words.current.store(1 - before);
  kill_point("shared.value.current");
  words.version.store(version);
  if (!old.is_null()) static_cast<void>(heap.free(old, remote));
  block.children()[before] = {};
  return version;
}

}  // namespace drust::sync
