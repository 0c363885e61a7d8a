// A lock that processes share, fair, and the value that it guards: what Mutex is, and RwLock for those who write.
//
// Uncontended: one compare-and-swap to take it and one to give it back (lock_word.hpp). Otherwise a waiter takes a
// place in the line and sleeps on a word of that place; whoever gives the lock back hands it to the oldest waiter.
// The holder may die: its reaper (the server of the host; for a process of another server, that one tells this one)
// takes it out of the line, and gives back what it held, poisoned if it had entered.
//
// The value is a child of the object's block. There are two places for it in the child table, and a word that says
// which one is valid: a value is written back by putting a new block into the other place and then turning the word,
// so a death in between leaves the old value, and nothing that nobody owns.
//
// Of a RwLock the word is the gate that everybody passes, in the order of the line. A writer keeps it until its end,
// and enters when no reader is inside; a reader takes a slot (readers.hpp) and passes the gate on at once. So a reader
// that comes after a waiting writer waits behind it, and those that follow each other in the line are inside together.
// Where nobody is at the gate, a reader takes a slot and looks at the word, a writer sets the word and looks at the
// slots: one of the two sees the other.
// Rejected: readers counted in the word (a count is wrong after a kill, and all readers write one cache line).
#pragma once

#include <cstdint>
#include <optional>

#include "sync/line.hpp"
#include "sync/lock_word.hpp"
#include "sync/readers.hpp"

namespace drust::sync {

// Of objects that guard a value; only whoever has the lock writes.
struct ValueWords {
  Word version;  // raised with each change: what a process has decoded is of one version
  Word current;  // the child that is valid
};

struct LockWords {
  static constexpr bool kFreesItself = true;
  static constexpr bool is_of(Kind kind) noexcept { return kind == Kind::mutex || kind == Kind::rwlock; }
  static constexpr std::uint32_t kChildren = 2;
  heap::SharedLife life;
  alignas(64) Word word;  // LockWord
  ValueWords value;
  Word token;  // of the holder: which thread; written by it after it has entered
  alignas(64) Line line;
};

struct RwLockWords : LockWords {
  static constexpr bool is_of(Kind kind) noexcept { return kind == Kind::rwlock; }
  alignas(64) Readers readers;
};

// Null if it is a Mutex.
[[nodiscard]] inline RwLockWords* readable(LockWords& lock) noexcept {
  return lock.life.kind == static_cast<std::uint32_t>(Kind::rwlock) ? static_cast<RwLockWords*>(&lock) : nullptr;
}
[[nodiscard]] inline const RwLockWords* readable(const LockWords& lock) noexcept {
  return lock.life.kind == static_cast<std::uint32_t>(Kind::rwlock) ? static_cast<const RwLockWords*>(&lock) : nullptr;
}

// -- the lock. `rings`: the partition, whose bell is rung when a process of another server is chosen.

[[nodiscard]] inline LockWord look(const LockWords& lock) noexcept { return LockWord(lock.word.load()); }

// Of a Mutex.
[[nodiscard]] inline bool try_lock(LockWords& mutex, Who who) noexcept {
  std::uint64_t seen = mutex.word.load();
  const std::optional<LockWord> taken = LockWord(seen).take(who);
  return taken && mutex.word.compare_exchange_strong(seen, taken->raw());
}
// Of a RwLock, to write.
[[nodiscard]] bool try_write(heap::Partition& rings, RwLockWords& lock, Who who) noexcept;
// Of either.
[[nodiscard]] inline bool try_enter(heap::Partition& rings, LockWords& lock, Who who) noexcept {
  RwLockWords* both = readable(lock);
  return both == nullptr ? try_lock(lock, who) : try_write(rings, *both, who);
}

// Gives it back in one step if nobody waits and it stays unpoisoned.
[[nodiscard]] inline bool try_unlock(LockWords& lock) noexcept {
  std::uint64_t seen = lock.word.load();
  const LockWord word(seen);
  return !word.has_line() && lock.word.compare_exchange_strong(seen, word.give_back(false).raw());
}

enum class Met : std::uint8_t { locked, waiting, crowded };
struct Queued {
  Met met = Met::crowded;
  std::uint32_t place = 0;
};
// Takes it, or a place in the line.
[[nodiscard]] Queued queue_up(LockWords& lock, Who who, std::uint64_t token) noexcept;
// Whether the lock was handed to this place, and no reader is inside; then it is entered.
[[nodiscard]] bool has_entered(LockWords& lock, Who who, std::uint32_t place) noexcept;
// Leaves the line. True: the lock came first, and is held.
[[nodiscard]] bool give_up(heap::Partition& rings, LockWords& lock, Who who, std::uint32_t place) noexcept;
void unlock(heap::Partition& rings, LockWords& lock, bool poisons) noexcept;
// By the holder.
void clear_poison(LockWords& lock) noexcept;
// By the reaper: the dead are taken out of the line, and what they held is handed on.
void bury(heap::Heap& heap, const GlobalPointer& object, LockWords& lock, const IsDead& is_dead) noexcept;

// -- reading: a slot each

[[nodiscard]] std::optional<std::uint32_t> try_read(heap::Partition& rings, RwLockWords& lock, Who who,
                                                    std::uint64_t token) noexcept;
struct QueuedToRead {
  Met met = Met::crowded;
  std::uint32_t place = 0;
  std::uint32_t slot = 0;
};
[[nodiscard]] QueuedToRead queue_to_read(heap::Partition& rings, RwLockWords& lock, Who who,
                                         std::uint64_t token) noexcept;
// The slot, if the gate was handed to this place and one is free.
[[nodiscard]] std::optional<std::uint32_t> has_entered_to_read(heap::Partition& rings, RwLockWords& lock, Who who,
                                                               std::uint32_t place, std::uint64_t token) noexcept;
void give_up_reading(heap::Partition& rings, RwLockWords& lock, Who who, std::uint32_t place) noexcept;
void end_read(heap::Partition& rings, RwLockWords& lock, std::uint32_t slot) noexcept;
// Instead: views of the value's block are left in this process, until end_view().
void begin_view(heap::Partition& rings, RwLockWords& lock, std::uint32_t slot, Who who, Address value) noexcept;
void end_view(heap::Heap& heap, const GlobalPointer& object, RwLockWords& lock, std::uint32_t slot,
              const GlobalPointer& value, std::vector<GlobalPointer>& remote) noexcept;

// Who keeps this thread, which waits, from going on: the holder; or of a writer at the gate, the readers. The
// `index`-th of them; none if there are not as many, or they are just changing.
[[nodiscard]] std::optional<Readers::Reading> blocker(const LockWords& lock, Who who, std::uint64_t token,
                                                      std::uint32_t index) noexcept;

// -- the value

// The block that holds it; null before the first was put in.
[[nodiscard]] GlobalPointer current_value(const heap::Partition& partition, const GlobalPointer& object,
                                          const LockWords& lock) noexcept;
// What becomes of the block before; one that is viewed stays, and goes with the last view.
enum class Before : std::uint8_t { freed, kept };  // kept: it is this process's
// By the holder: a block of this process becomes the value. Its version.
std::uint64_t put_value(heap::Heap& heap, const GlobalPointer& object, LockWords& lock, const GlobalPointer& value,
                        std::vector<GlobalPointer>& remote, Before before = Before::freed) noexcept;

}  // namespace drust::sync
