// The C types behind Mutex and RwLock: the handle with what this process has of the value, and the guard of one `with`
// block.
//
//     Mutex -> lock() -> Guard -> __enter__: the lock, then the value -> __exit__: the value back, then the lock
//
// Uncontended and alone: one compare-and-swap each way and no Python. What waits, decodes or encodes is a method of
// drust.sync.Guarded that this calls by name: _acquire, _load, _store, _release_remote, _move_away.
//
// Readers of a RwLock use the same decoded value, an array over the read-only mapping. If views of it outlive their
// block, its Pin gets a *view* (lock_view.cpp): the reader's slot stays, viewing, until the Pin dies, and the next
// writer leaves that block to it.
#pragma once

#include <Python.h>

#include "bind/shared.hpp"
#include "bind/views.hpp"
#include "sync/lock.hpp"

namespace drust::bind {

struct LockGuardObject;

// All members are protected by the interpreter lock.
struct LockObject {
  SharedObject base;
  unsigned long holder;   // the thread of this process that has the lock; 0: none
  std::uint64_t version;  // of `value`, as the object counts
  PyObject* value;        // decoded; null if not
  PyObject* pin;          // of the block that `value` was decoded from, or null
  ViewSet views;          // of an array: its hidden parent, over the block itself
  ViewSet read_views;     // likewise, over the read-only mapping
  LockGuardObject* readers;  // blocks of this process that read, through `next`
  PyObject* viewed;       // the Pin of a block that views were left of; not owned: its view clears it
  bool is_array;
  bool is_behind;         // the block, if any, does not hold `value`: only this process ever saw it
};

struct LockGuardObject {
  PyObject_HEAD LockObject* lock;
  double timeout_s;   // negative: as long as it takes
  PyObject* handed;   // the array in the block's hands, or null
  PyObject* parent;   // its hidden parent
  ViewSet* views;     // that the parent is of; null if it is its own
  LockGuardObject* next;  // of LockObject::readers
  unsigned long thread;   // that reads
  std::uint32_t slot;     // likewise: its slot in the object, if that is here
  bool reads;
  bool recovers;      // takes a poisoned lock, and clears the poison
  bool is_active;
  bool is_used;
};

extern PyTypeObject lock_type;
extern PyTypeObject mutex_type;
extern PyTypeObject rwlock_type;
extern PyTypeObject lock_guard_type;

[[nodiscard]] inline LockObject* as_lock(PyObject* object) noexcept { return reinterpret_cast<LockObject*>(object); }
[[nodiscard]] inline sync::LockWords* words_of(const LockObject* lock) noexcept {
  return words_of<sync::LockWords>(&lock->base);
}
// Null if it is a Mutex, or elsewhere.
[[nodiscard]] inline sync::RwLockWords* readable(const LockObject* lock) noexcept {
  sync::LockWords* words = words_of(lock);
  return words == nullptr ? nullptr : sync::readable(*words);
}
[[nodiscard]] inline bool is_alone(const LockObject* lock) noexcept {
  const heap::SharedLife* life = lock->base.life;
  return life != nullptr && life->made[0].load(std::memory_order_relaxed) == 1;
}

enum class Wish : std::uint8_t { lock, recover, read };
[[nodiscard]] PyObject* make_lock_guard(LockObject* lock, double timeout_s, Wish wish) noexcept;
void forget_value(LockObject* lock) noexcept;
// False: its array is a copy of this process's own, or views are left of its block: it may not be written in place.
[[nodiscard]] bool may_write_block(const LockObject* lock) noexcept;
// Views of the block of `pin` are left after a block that read it in that slot: it stays as it is for them. The slot is
// given back, or becomes theirs.
[[nodiscard]] bool leave_to_views(LockObject* lock, PinObject* pin, std::uint32_t slot);

}  // namespace drust::bind
