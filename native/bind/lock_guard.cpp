// One `with mutex.lock()` block: entering and leaving, the hot path of every lock.
#include <array>

#include "bind/hooks.hpp"
#include "bind/lock.hpp"
#include "bind/python.hpp"

namespace drust::bind {

PyTypeObject lock_guard_type;

namespace {

constexpr std::size_t kFreeGuards = 32;
std::array<LockGuardObject*, kFreeGuards> free_guards;  // protected by the interpreter lock
std::size_t free_guard_count = 0;

LockGuardObject* as_guard(PyObject* object) noexcept { return reinterpret_cast<LockGuardObject*>(object); }

// A method of drust.sync's class; false with an error set.
bool call(LockObject* lock, const char* name, PyObject* first = nullptr, PyObject* second = nullptr) {
  const Owned result(PyObject_CallMethod(as_object(lock), name, first == nullptr ? nullptr : second == nullptr ? "(O)" : "OO",
                                         first, second));
  return static_cast<bool>(result);
}

// Takes the lock; the value may be an old one. False with an error set.
bool acquire(LockGuardObject* guard) {
  LockObject* lock = guard->lock;
  const unsigned long me = PyThread_get_thread_ident();
  if (lock->holder == me) return call(lock, "_refuse_again");
  sync::MutexWords* words = words_of(lock);
  if (words == nullptr || !sync::try_lock(*words, self_of(&lock->base))) {
    const Owned timeout(guard->timeout_s < 0 ? new_none() : PyFloat_FromDouble(guard->timeout_s));
    if (!timeout || !call(lock, "_acquire", timeout.get(), guard->recovers ? Py_True : Py_False)) return false;
  }
  lock->holder = me;
  if (words == nullptr) return true;
  words->token.store(me, std::memory_order_relaxed);
  if (!sync::look(*words).is_poisoned()) [[likely]]
    return true;
  if (guard->recovers) {
    sync::clear_poison(*words);
    return true;
  }
  lock->holder = 0;
  sync::unlock(*lock->base.runtime->partition, *words, false);
  return call(lock, "_refuse_poisoned");
}

bool has_value(const LockObject* lock) noexcept {
  if (lock->value == nullptr && !lock->is_array) return false;
  const sync::MutexWords* words = words_of(lock);
  return words == nullptr || lock->version == words->value.version.load();
}

// Gives the lock back, poisoned or not, whatever becomes of the value.
bool release(LockObject* lock, bool poisons, bool writes_back) {
  sync::MutexWords* words = words_of(lock);
  bool fine = true;
  if (words == nullptr) {
    lock->holder = 0;
    return call(lock, "_release_remote", poisons ? Py_True : Py_False, writes_back ? Py_True : Py_False);
  }
  if (is_alone(lock)) {
    if (!lock->is_array) lock->is_behind = true;
  } else if (lock->is_array) {
    if (writes_back) lock->version = words->value.version.fetch_add(1) + 1;
  } else if (writes_back) {
    fine = call(lock, "_store");
  }
  lock->holder = 0;
  words->token.store(0, std::memory_order_relaxed);
  const ErrorKept kept;
  sync::unlock(*lock->base.runtime->partition, *words, poisons || !fine);
  return fine;
}

PyObject* enter(PyObject* self, PyObject*) {
  LockGuardObject* guard = as_guard(self);
  LockObject* lock = guard->lock;
  if (guard->is_used) {
    PyErr_SetString(PyExc_RuntimeError, "this lock guard was entered before: call lock() again");
    return nullptr;
  }
  if (!is_usable(&lock->base)) [[unlikely]]
    return refuse_unusable(&lock->base);
  if (!acquire(guard)) return nullptr;
  guard->is_used = true;
  guard->is_active = true;
  if (!has_value(lock) && !call(lock, "_load")) {
    const ErrorKept kept;
    guard->is_active = false;
    if (!release(lock, false, false)) PyErr_Clear();
    return nullptr;
  }
  if (!lock->is_array) return Py_NewRef(lock->value);
  guard->parent = Py_NewRef(lock->views.parent);
  guard->handed = hand_out(&lock->views, guard->parent);
  if (guard->handed != nullptr) return Py_NewRef(guard->handed);
  const ErrorKept kept;
  Py_CLEAR(guard->parent);
  guard->is_active = false;
  if (!release(lock, false, false)) PyErr_Clear();
  return nullptr;
}

// Takes the array back. True if views of it are left: then the value has to move away from them.
bool take_back(LockGuardObject* guard, PyObject* error) {
  LockObject* lock = guard->lock;
  PyObject* handed = std::exchange(guard->handed, nullptr);
  PyObject* parent = std::exchange(guard->parent, nullptr);
  if (lock->views.parent != parent) {  // replaced in the block: what was handed out is its holders'
    Py_DECREF(handed);
    Py_DECREF(parent);
    return false;
  }
  Site ended;
  record_site(ended);
  const Remains remains = examine(handed, parent, 1 + own_references(lock->views), error, ended, true);
  ended.clear();
  if (!remains.has_survivors) keep_spare(lock->views, handed);
  if (remains.has_survivors) Py_DECREF(handed);
  Py_DECREF(parent);
  return remains.has_survivors;
}

bool leave(LockGuardObject* guard, PyObject* error) {
  LockObject* lock = guard->lock;
  guard->is_active = false;
  if (!is_usable(&lock->base)) [[unlikely]] {
    guard->handed = nullptr;  // its memory may be anybody's: it is not looked at again
    lock->holder = 0;
    return refuse_unusable(&lock->base) != nullptr;
  }
  bool fine = true;
  if (guard->handed != nullptr && take_back(guard, error)) fine = call(lock, "_move_away");
  const ErrorKept kept;
  return release(lock, error != nullptr || !fine, true) && fine;
}

PyObject* exit(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  LockGuardObject* guard = as_guard(self);
  if (!guard->is_active) {
    PyErr_SetString(PyExc_RuntimeError, "this lock is not held");
    return nullptr;
  }
  PyObject* error = count >= 2 && arguments[1] != Py_None ? arguments[1] : nullptr;
  return leave(guard, error) ? new_none() : nullptr;
}

PyObject* get_value(PyObject* self, void*) {
  const LockGuardObject* guard = as_guard(self);
  if (!guard->is_active) {
    PyErr_SetString(PyExc_RuntimeError, "this lock is not held: use its value inside the `with` block");
    return nullptr;
  }
  return Py_NewRef(guard->handed != nullptr ? guard->handed : guard->lock->value);
}

int set_value(PyObject* self, PyObject* value, void*) {
  LockGuardObject* guard = as_guard(self);
  if (!guard->is_active || value == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "this lock is not held: assign to its value inside the `with` block");
    return -1;
  }
  return call(guard->lock, "_replace", value) ? 0 : -1;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(as_guard(self)->lock);
  return 0;
}

void dealloc(PyObject* self) {
  LockGuardObject* guard = as_guard(self);
  PyObject_GC_UnTrack(self);
  if (guard->is_active) [[unlikely]] {  // a generator that was dropped inside its block
    const ErrorKept kept;
    Py_SET_REFCNT(self, 1);
    if (!leave(guard, nullptr)) PyErr_WriteUnraisable(nullptr);
    Py_SET_REFCNT(self, 0);
  }
  Py_CLEAR(guard->lock);
  if (free_guard_count < kFreeGuards) {
    free_guards[free_guard_count++] = guard;
  } else {
    PyObject_GC_Del(self);
  }
}

PyMethodDef methods[] = {
    {"__enter__", enter, METH_NOARGS, "Takes the lock; the value."},
    {"__exit__", as_method(exit), METH_FASTCALL, "Writes the value back and gives the lock back."},
    kNoMoreMethods,
};

PyGetSetDef getters[] = {
    {"value", get_value, set_value, "The value, while the lock is held; assigning replaces it.", nullptr},
    kNoMoreGetSets,
};

}  // namespace

PyObject* make_lock_guard(LockObject* lock, double timeout_s, bool recovers) noexcept {
  LockGuardObject* guard = nullptr;
  if (free_guard_count != 0) {
    guard = free_guards[--free_guard_count];
    PyObject_INIT(as_object(guard), &lock_guard_type);
  } else {
    guard = PyObject_GC_New(LockGuardObject, &lock_guard_type);
    if (guard == nullptr) return nullptr;
  }
  guard->lock = reinterpret_cast<LockObject*>(Py_NewRef(as_object(lock)));
  guard->timeout_s = timeout_s;
  guard->handed = nullptr;
  guard->parent = nullptr;
  guard->recovers = recovers;
  guard->is_active = false;
  guard->is_used = false;
  PyObject_GC_Track(as_object(guard));
  return as_object(guard);
}

bool register_lock_guard(PyObject* module) {
  lock_guard_type.tp_name = "drust._core.LockGuard";
  lock_guard_type.tp_doc = "One `with mutex.lock()` block.";
  lock_guard_type.tp_basicsize = sizeof(LockGuardObject);
  lock_guard_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
  lock_guard_type.tp_dealloc = dealloc;
  lock_guard_type.tp_traverse = traverse;
  lock_guard_type.tp_methods = methods;
  lock_guard_type.tp_getset = getters;
  return add_type(module, lock_guard_type, "LockGuard");
}

}  // namespace drust::bind
