// The C types behind Mutex: the handle with what this process has of the value, and the guard of one `with` block.
//
//     Mutex -> lock() -> Guard -> __enter__: the lock, then the value -> __exit__: the value back, then the lock
//
// Uncontended and alone: one compare-and-swap each way and no Python. What waits, decodes or encodes is a method of
// drust.sync.Mutex that this calls by name: _acquire, _load, _store, _release_remote, _move_away.
#pragma once

#include <Python.h>

#include "bind/shared.hpp"
#include "bind/views.hpp"
#include "sync/mutex.hpp"

namespace drust::bind {

// All members are protected by the interpreter lock.
struct LockObject {
  SharedObject base;
  unsigned long holder;   // the thread of this process that has the lock; 0: none
  std::uint64_t version;  // of `value`, as the object counts
  PyObject* value;        // decoded; null if not
  PyObject* pin;          // of the block that `value` was decoded from, or null
  ViewSet views;          // of an array: its hidden parent, over the block itself
  bool is_array;
  bool is_behind;         // the block, if any, does not hold `value`: only this process ever saw it
};

struct LockGuardObject {
  PyObject_HEAD LockObject* lock;
  double timeout_s;   // negative: as long as it takes
  PyObject* handed;   // the array in the block's hands, or null
  PyObject* parent;   // its hidden parent
  bool recovers;      // takes a poisoned lock, and clears the poison
  bool is_active;
  bool is_used;
};

extern PyTypeObject lock_type;
extern PyTypeObject lock_guard_type;

[[nodiscard]] inline LockObject* as_lock(PyObject* object) noexcept { return reinterpret_cast<LockObject*>(object); }
[[nodiscard]] inline sync::MutexWords* words_of(const LockObject* lock) noexcept {
  return words_of<sync::MutexWords>(&lock->base);
}
[[nodiscard]] inline bool is_alone(const LockObject* lock) noexcept {
  const heap::SharedLife* life = lock->base.life;
  return life != nullptr && life->made[0].load(std::memory_order_relaxed) == 1;
}

[[nodiscard]] PyObject* make_lock_guard(LockObject* lock, double timeout_s, bool recovers) noexcept;
void forget_value(LockObject* lock) noexcept;

}  // namespace drust::bind
