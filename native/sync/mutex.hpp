// A lock that processes share, fair, and the value that it guards.
//
// Uncontended: one compare-and-swap to take it and one to give it back (lock_word.hpp). Otherwise a waiter takes a
// place in the line and sleeps on a word of that place; whoever gives the lock back hands it to the oldest waiter.
// The holder may die: its reaper (the server of the host; for a process of another server, that one tells this one)
// takes it out of the line, and gives back what it held, poisoned if it had entered.
//
// The value is a child of the object's block. There are two places for it in the child table, and a word that says
// which one is valid: a value is written back by putting a new block into the other place and then turning the word,
// so a death in between leaves the old value, and nothing that nobody owns.
#pragma once

#include <cstdint>
#include <optional>

#include "sync/line.hpp"
#include "sync/lock_word.hpp"

namespace drust::sync {

// Of objects that guard a value; only whoever has the lock writes.
struct ValueWords {
  Word version;  // raised with each change: what a process has decoded is of one version
  Word current;  // the child that is valid
};

struct MutexWords {
  static constexpr bool kFreesItself = true;
  static constexpr bool is_of(Kind kind) noexcept { return kind == Kind::mutex; }
  static constexpr std::uint32_t kChildren = 2;
  heap::SharedLife life;
  alignas(64) Word word;  // LockWord
  ValueWords value;
  Word token;  // of the holder: which thread; written by it after it has entered
  alignas(64) Line line;
};

// -- the lock. `rings`: the partition, whose bell is rung when a process of another server is chosen.

[[nodiscard]] inline bool try_lock(MutexWords& mutex, Who who) noexcept {
  std::uint64_t seen = mutex.word.load();
  const std::optional<LockWord> taken = LockWord(seen).take(who);
  return taken && mutex.word.compare_exchange_strong(seen, taken->raw());
}

// Gives it back in one step if nobody waits and it stays unpoisoned.
[[nodiscard]] inline bool try_unlock(MutexWords& mutex) noexcept {
  std::uint64_t seen = mutex.word.load();
  const LockWord word(seen);
  return !word.has_line() && mutex.word.compare_exchange_strong(seen, word.give_back(false).raw());
}

enum class Met : std::uint8_t { locked, waiting, crowded };
struct Queued {
  Met met = Met::crowded;
  std::uint32_t place = 0;
};
// Takes it, or a place in the line.
[[nodiscard]] Queued queue_up(MutexWords& mutex, Who who, std::uint64_t token) noexcept;
// Whether the lock was handed to this place; then it is entered.
[[nodiscard]] bool has_entered(MutexWords& mutex, Who who, std::uint32_t place) noexcept;
// Leaves the line. True: the lock came first, and is held.
[[nodiscard]] bool give_up(MutexWords& mutex, Who who, std::uint32_t place) noexcept;
void unlock(heap::Partition& rings, MutexWords& mutex, bool poisons) noexcept;
[[nodiscard]] inline LockWord look(const MutexWords& mutex) noexcept { return LockWord(mutex.word.load()); }
// By the holder.
void clear_poison(MutexWords& mutex) noexcept;
// By the reaper: the dead are taken out of the line, and what they held is handed on.
void bury(heap::Partition& rings, MutexWords& mutex, const IsDead& is_dead) noexcept;

// -- the value

// The block that holds it; null before the first was put in.
[[nodiscard]] GlobalPointer current_value(const heap::Partition& partition, const GlobalPointer& object,
                                          const ValueWords& words) noexcept;
// By the holder: the block of the value is this process's from now on (views of it are left), until put_value().
void release_value(heap::Heap& heap, const GlobalPointer& object, ValueWords& words) noexcept;
// By the holder: a block of this process becomes the value, and the one before is freed. Its version.
std::uint64_t put_value(heap::Heap& heap, const GlobalPointer& object, ValueWords& words, const GlobalPointer& value,
                        std::vector<GlobalPointer>& remote) noexcept;

}  // namespace drust::sync
