// One `with mutex.lock()` block, or one that reads or writes a RwLock: entering and leaving, the hot path of every lock.
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

bool reads_already(const LockObject* lock, unsigned long thread) noexcept {
  for (const LockGuardObject* each = lock->readers; each != nullptr; each = each->next) {
    if (each->thread == thread) return true;
  }
  return false;
}

// A wait, in Python: the slot, of who reads. False with an error set.
bool acquire_slowly(LockGuardObject* guard) {
  const Owned timeout(guard->timeout_s < 0 ? new_none() : PyFloat_FromDouble(guard->timeout_s));
  const Owned slot(timeout ? PyObject_CallMethod(as_object(guard->lock), "_acquire", "OOO", timeout.get(),
                                                 guard->recovers ? Py_True : Py_False,
                                                 guard->reads ? Py_True : Py_False)
                           : nullptr);
  if (!slot) return false;
  guard->slot = static_cast<std::uint32_t>(PyLong_AsUnsignedLong(slot.get()));
  return PyErr_Occurred() == nullptr;
}

void link_reader(LockGuardObject* guard, unsigned long thread) noexcept {
  guard->thread = thread;
  guard->next = guard->lock->readers;
  guard->lock->readers = guard;
}

void unlink_reader(LockGuardObject* guard) noexcept {
  LockGuardObject** at = &guard->lock->readers;
  while (*at != guard) at = &(*at)->next;
  *at = guard->next;
}

// Gets inside to read. False with an error set.
bool acquire_to_read(LockGuardObject* guard, unsigned long me) {
  LockObject* lock = guard->lock;
  sync::RwLockWords* words = readable(lock);
  std::optional<std::uint32_t> slot;
  if (words != nullptr) slot = sync::try_read(*lock->base.runtime->partition, *words, self_of(&lock->base), me);
  if (slot) {
    guard->slot = *slot;
  } else if (!acquire_slowly(guard)) {
    return false;
  }
  if (words != nullptr && sync::look(*words).is_poisoned()) [[unlikely]] {
    sync::end_read(*lock->base.runtime->partition, *words, guard->slot);
    return call(lock, "_refuse_poisoned");
  }
  link_reader(guard, me);
  return true;
}

// Takes the lock; the value may be an old one. False with an error set.
bool acquire(LockGuardObject* guard) {
  LockObject* lock = guard->lock;
  const unsigned long me = PyThread_get_thread_ident();
  if (lock->holder == me || (lock->readers != nullptr && reads_already(lock, me)))
    return call(lock, "_refuse_again", lock->holder == me ? Py_False : Py_True, guard->reads ? Py_True : Py_False);
  if (guard->reads) return acquire_to_read(guard, me);
  sync::LockWords* words = words_of(lock);
  sync::RwLockWords* both = readable(lock);
  const bool is_taken =
      words != nullptr && (both == nullptr ? sync::try_lock(*words, self_of(&lock->base))
                                           : sync::try_write(*lock->base.runtime->partition, *both, self_of(&lock->base)));
  if (!is_taken && !acquire_slowly(guard)) return false;
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
  words->token.store(0, std::memory_order_relaxed);
  sync::unlock(*lock->base.runtime->partition, *words, false);
  return call(lock, "_refuse_poisoned");
}

bool has_value(const LockObject* lock) noexcept {
  if (lock->value == nullptr && !lock->is_array) return false;
  const sync::LockWords* words = words_of(lock);
  return words == nullptr || lock->version == words->value.version.load();
}

// Gives the lock back, poisoned or not, whatever becomes of the value.
bool release(LockObject* lock, bool poisons, bool writes_back) {
  sync::LockWords* words = words_of(lock);
  bool fine = true;
  if (words == nullptr) {
    lock->holder = 0;
    return call(lock, "_release_remote", poisons ? Py_True : Py_False, writes_back ? Py_True : Py_False);
  }
  if (is_alone(lock) && lock->base.kind == sync::Kind::mutex) {
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

// After a block that read. `pin`: of the block that views are left of, or null.
bool end_reading(LockGuardObject* guard, PinObject* pin) {
  LockObject* lock = guard->lock;
  unlink_reader(guard);
  const ErrorKept kept;
  if (readable(lock) == nullptr) {
    if (pin != nullptr) forget_value(lock);  // the next block gets another copy
    return call(lock, "_unread_remote");
  }
  if (pin != nullptr) return leave_to_views(lock, pin, guard->slot);
  sync::end_read(*lock->base.runtime->partition, *readable(lock), guard->slot);
  return true;
}

// Ends a block that has handed out nothing.
void end_empty(LockGuardObject* guard) {
  const ErrorKept kept;
  guard->is_active = false;
  if (!(guard->reads ? end_reading(guard, nullptr) : release(guard->lock, false, false))) PyErr_Clear();
}

// The hidden parent of the array for this block: the handle's, unless another thread reads it just now.
bool choose_parent(LockGuardObject* guard) {
  LockObject* lock = guard->lock;
  guard->views = guard->reads ? &lock->read_views : &lock->views;
  if (guard->reads && lock->read_views.parent == nullptr) {
    lock->read_views.parent = make_parent(lock->views.parent, as_pin(lock->pin));
    if (lock->read_views.parent == nullptr) return false;
  }
  if (guard->views->is_busy) {
    guard->views = nullptr;
    guard->parent = make_parent(lock->views.parent, as_pin(lock->pin));
    return guard->parent != nullptr;
  }
  guard->views->is_busy = true;
  guard->parent = Py_NewRef(guard->views->parent);
  return true;
}

// Whether views may be left of so many blocks that this block reads a copy: the slots that they take are readers'.
bool has_too_many_views(const LockObject* lock) noexcept {
  const sync::RwLockWords* words = readable(lock);
  const PinObject* pin = as_pin(lock->pin);
  return words != nullptr && lock->is_array && pin->on_release == OnRelease::nothing &&
         words->readers.viewing() >= kReadersMax / 2;
}

PyObject* enter(PyObject* self, PyObject*) {
  LockGuardObject* guard = as_guard(self);
  LockObject* lock = guard->lock;
  if (guard->is_used) {
    PyErr_SetString(PyExc_RuntimeError, "this lock guard was entered before: call lock(), read() or write() again");
    return nullptr;
  }
  if (!is_usable(&lock->base)) [[unlikely]]
    return refuse_unusable(&lock->base);
  if (!acquire(guard)) return nullptr;
  guard->is_used = true;
  guard->is_active = true;
  if ((!has_value(lock) && !call(lock, "_load")) ||
      (guard->reads && has_too_many_views(lock) && !call(lock, "_load_copy")) ||
      (!guard->reads && !may_write_block(lock) && !call(lock, "_leave_block"))) {
    end_empty(guard);
    return nullptr;
  }
  if (!lock->is_array) return Py_NewRef(lock->value);
  if (choose_parent(guard)) guard->handed = hand_out(guard->views, guard->parent);
  if (guard->handed != nullptr) return Py_NewRef(guard->handed);
  if (guard->views != nullptr && guard->parent != nullptr) guard->views->is_busy = false;
  Py_CLEAR(guard->parent);
  end_empty(guard);
  return nullptr;
}

// Takes the array back. True if views of it are left: then the value has to move away from them. `pin`, if not null:
// of the block that they are of.
bool take_back(LockGuardObject* guard, PyObject* error, Owned* pin) {
  PyObject* handed = std::exchange(guard->handed, nullptr);
  const Owned parent(std::exchange(guard->parent, nullptr));
  ViewSet* views = guard->views;
  if (views != nullptr && views->parent != parent.get()) {  // replaced, or left to views
    if (!guard->reads) {  // what was handed out is its holders'
      Py_DECREF(handed);
      return false;
    }
    views = nullptr;
  }
  Site ended;
  record_site(ended);
  const Py_ssize_t own = 1 + (views == nullptr ? 0 : own_references(*views));
  const Remains remains = examine(handed, parent.get(), own, error, ended, !guard->reads);
  ended.clear();
  if (views != nullptr) views->is_busy = false;
  if (pin != nullptr && remains.has_survivors) *pin = Owned::share(find_exporter(parent.get())->keep);
  if (views != nullptr && !remains.has_survivors) {
    keep_spare(*views, handed);
  } else {
    Py_DECREF(handed);
  }
  return remains.has_survivors;
}

bool leave(LockGuardObject* guard, PyObject* error) {
  LockObject* lock = guard->lock;
  guard->is_active = false;
  if (!is_usable(&lock->base)) [[unlikely]] {
    guard->handed = nullptr;  // its memory may be anybody's: it is not looked at again
    if (guard->reads) {
      unlink_reader(guard);
    } else {
      lock->holder = 0;
    }
    return refuse_unusable(&lock->base) != nullptr;
  }
  if (guard->reads) {
    Owned pin;
    if (guard->handed != nullptr) take_back(guard, error, &pin);
    return end_reading(guard, pin ? as_pin(pin.get()) : nullptr);
  }
  bool fine = true;
  if (guard->handed != nullptr && take_back(guard, error, nullptr)) fine = call(lock, "_move_away");
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
  if (guard->reads) {
    PyErr_SetString(PyExc_RuntimeError, "this block only reads the value: assign to it in one of write()");
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

PyObject* make_lock_guard(LockObject* lock, double timeout_s, Wish wish) noexcept {
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
  guard->views = nullptr;
  guard->next = nullptr;
  guard->thread = 0;
  guard->slot = 0;
  guard->reads = wish == Wish::read;
  guard->recovers = wish == Wish::recover;
  guard->is_active = false;
  guard->is_used = false;
  PyObject_GC_Track(as_object(guard));
  return as_object(guard);
}

bool register_lock_guard(PyObject* module) {
  lock_guard_type.tp_name = "drust._core.LockGuard";
  lock_guard_type.tp_doc = "One `with mutex.lock()` block, or one of a RwLock's read() or write().";
  lock_guard_type.tp_basicsize = sizeof(LockGuardObject);
  lock_guard_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
  lock_guard_type.tp_dealloc = dealloc;
  lock_guard_type.tp_traverse = traverse;
  lock_guard_type.tp_methods = methods;
  lock_guard_type.tp_getset = getters;
  return add_type(module, lock_guard_type, "LockGuard");
}

}  // namespace drust::bind
