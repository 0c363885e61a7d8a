// The Python type Lock, which Mutex and RwLock of drust.sync derive from by way of the types below it: everything but
// entering and leaving (lock_guard.cpp).
#include <cstring>

#include "bind/hooks.hpp"
#include "bind/lock.hpp"
#include "bind/python.hpp"
#include "sync/deadlock.hpp"

namespace drust::bind {

PyTypeObject lock_type;
PyTypeObject mutex_type;
PyTypeObject rwlock_type;

void forget_value(LockObject* lock) noexcept {
  lock->views.clear();
  lock->read_views.clear();
  Py_CLEAR(lock->value);
  Py_CLEAR(lock->pin);
  lock->is_array = false;
}

namespace {

bool is_known_here(LockObject* lock) {
  if (!is_usable(&lock->base)) return refuse_unusable(&lock->base) != nullptr;
  if (lock->base.life != nullptr) return true;
  PyErr_SetString(PyExc_ValueError, "this lock is on another server");
  return false;
}

bool parse(PyObject* const* arguments, Py_ssize_t count, PyObject* names, double& timeout_s) {
  PyObject* timeout = count == 1 ? arguments[0] : nullptr;
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  bool is_fine = count + named <= 1;
  if (named == 1 && is_fine) {
    is_fine = PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "timeout") == 0;
    timeout = arguments[count];
  }
  if (is_fine) return to_timeout(timeout, timeout_s);
  PyErr_SetString(PyExc_TypeError, "expected at most one argument: timeout");
  return false;
}

template <Wish wish>
PyObject* guard_for(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  double timeout_s = -1;
  if (count != 0 || names != nullptr) {
    if (!parse(arguments, count, names, timeout_s)) return nullptr;
  }
  return make_lock_guard(as_lock(self), timeout_s, wish);
}

// _make(kind, value) -> handle of a new object of this server; the value is decoded here, and in no block.
PyObject* make(PyObject* cls, PyObject* arguments) {
  unsigned int kind = 0;
  PyObject* value = nullptr;
  if (PyArg_ParseTuple(arguments, "IO:_make", &kind, &value) == 0) return nullptr;
  Runtime* runtime = current_runtime();
  if (runtime == nullptr) {
    set_error(Status(Code::closed, "this process is not attached to a drust server"));
    return nullptr;
  }
  GlobalPointer object;
  const auto number = static_cast<sync::Kind>(kind);
  const auto hold = number == sync::Kind::rwlock
                        ? sync::make<sync::RwLockWords>(*runtime->heap, number, object, sync::LockWords::kChildren)
                        : sync::make<sync::LockWords>(*runtime->heap, number, object, sync::LockWords::kChildren);
  if (!hold.ok()) {
    set_error(hold.status());
    return nullptr;
  }
  PyObject* self = make_handle(reinterpret_cast<PyTypeObject*>(cls), number, object, hold.value(), 0);
  if (self == nullptr) return nullptr;
  as_lock(self)->value = Py_NewRef(value);
  as_lock(self)->is_behind = true;
  return self;
}

// _install(value, version, pin, is_array): what a codec decoded; an array lies over the pin's writable bytes.
PyObject* install(PyObject* self, PyObject* arguments) {
  PyObject* value = nullptr;
  unsigned long long version = 0;
  PyObject* pin = Py_None;
  int is_array = 0;
  if (PyArg_ParseTuple(arguments, "OKOp:_install", &value, &version, &pin, &is_array) == 0) return nullptr;
  LockObject* lock = as_lock(self);
  PyObject* parent = nullptr;
  if (is_array != 0) {
    if (!is_pin(pin) || find_exporter(value) == nullptr) {
      PyErr_SetString(PyExc_TypeError, "an array in a Mutex is an exact ndarray over a buffer of its Pin");
      return nullptr;
    }
    const Owned writable(make_writable_sibling(as_pin(pin)));
    parent = writable ? make_parent(value, as_pin(writable.get())) : nullptr;
    if (parent == nullptr) return nullptr;
  }
  const Owned kept_value = Owned::share(value);
  const Owned kept_pin = Owned::share(pin);
  forget_value(lock);
  if (parent != nullptr) {
    lock->views.parent = parent;
  } else {
    lock->value = Py_NewRef(value);
  }
  lock->pin = pin == Py_None ? nullptr : Py_NewRef(pin);
  lock->is_array = parent != nullptr;
  lock->is_behind = false;
  lock->version = version;
  return new_none();
}

// -- waiting here: the steps of drust.sync's loop

// What the steps say: a place to wait in; or
constexpr long kCrowded = -2;  // the line is full
constexpr long kInside = -3;   // it is held; or less by as much as the number of the slot that it is read in

PyObject* inside(std::uint32_t slot) { return PyLong_FromLong(kInside - static_cast<long>(slot)); }

bool is_inside(LockObject* lock, std::uint32_t place, bool reads, std::uint32_t& slot) noexcept {
  const sync::Who who = self_of(&lock->base);
  slot = 0;
  if (!reads) return sync::has_entered(*words_of(lock), who, place);
  const auto found = sync::has_entered_to_read(*lock->base.runtime->partition, *readable(lock), who, place,
                                               PyThread_get_thread_ident());
  slot = found.value_or(0);
  return found.has_value();
}

bool may_read(LockObject* lock, bool reads) {
  if (!is_known_here(lock)) return false;
  if (!reads || readable(lock) != nullptr) return true;
  PyErr_SetString(PyExc_TypeError, "a Mutex is not read: it is locked");
  return false;
}

// _queue_up(reads) -> where it waits
PyObject* queue_up(PyObject* self, PyObject* argument) {
  const bool reads = PyObject_IsTrue(argument) == 1;
  LockObject* lock = as_lock(self);
  if (!may_read(lock, reads)) return nullptr;
  const sync::Who who = self_of(&lock->base);
  const unsigned long me = PyThread_get_thread_ident();
  sync::QueuedToRead queued;
  if (reads) {
    queued = sync::queue_to_read(*lock->base.runtime->partition, *readable(lock), who, me);
  } else {
    const sync::Queued waiting = sync::queue_up(*words_of(lock), who, me);
    queued = {waiting.met, waiting.place, 0};
  }
  if (queued.met == sync::Met::locked) return inside(queued.slot);
  return PyLong_FromLong(queued.met == sync::Met::waiting ? static_cast<long>(queued.place) : kCrowded);
}

// _wait(place, wait_ms, reads) -> where it waits still, or that it is inside; with kCrowded: until there may be a place
PyObject* wait(PyObject* self, PyObject* arguments) {
  int place = 0;
  unsigned int wait_ms = 0;
  int reads = 0;
  if (PyArg_ParseTuple(arguments, "iIp:_wait", &place, &wait_ms, &reads) == 0) return nullptr;
  LockObject* lock = as_lock(self);
  if (!may_read(lock, reads != 0)) return nullptr;
  sync::Line& line = words_of(lock)->line;
  const auto index = static_cast<std::uint32_t>(place);
  std::uint32_t slot = 0;
  if (place >= 0 && is_inside(lock, index, reads != 0, slot)) return inside(slot);
  Wake wake{};
  {
    const Unlocked unlocked;
    wake = place < 0 ? line.wait_for_place(deadline_in(wait_ms)) : line.wait(index, deadline_in(wait_ms));
  }
  if (wake == Wake::interrupted && PyErr_CheckSignals() != 0) return nullptr;
  if (place >= 0 && is_inside(lock, index, reads != 0, slot)) return inside(slot);
  return PyLong_FromLong(place);
}

// _give_up(place, reads) -> whether the lock came first, and is held
PyObject* give_up(PyObject* self, PyObject* arguments) {
  unsigned int place = 0;
  int reads = 0;
  if (PyArg_ParseTuple(arguments, "Ip:_give_up", &place, &reads) == 0) return nullptr;
  LockObject* lock = as_lock(self);
  if (!may_read(lock, reads != 0)) return nullptr;
  heap::Partition& partition = *lock->base.runtime->partition;
  if (reads == 0) return PyBool_FromLong(sync::give_up(partition, *words_of(lock), self_of(&lock->base), place) ? 1 : 0);
  sync::give_up_reading(partition, *readable(lock), self_of(&lock->base), place);
  return Py_NewRef(Py_False);
}

// _end_read(slot)
PyObject* end_read(PyObject* self, PyObject* argument) {
  const unsigned long slot = PyLong_AsUnsignedLong(argument);
  if (slot == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) return nullptr;
  LockObject* lock = as_lock(self);
  if (!may_read(lock, true)) return nullptr;
  sync::end_read(*lock->base.runtime->partition, *readable(lock), static_cast<std::uint32_t>(slot));
  return new_none();
}

// _note(place, text) -> Pin: tells others where this thread waits, until the Pin dies
PyObject* note(PyObject* self, PyObject* arguments) {
  unsigned int place = 0;
  PyObject* words = nullptr;
  Py_ssize_t size = 0;
  if (PyArg_ParseTuple(arguments, "IU:_note", &place, &words) == 0) return nullptr;
  const char* text = PyUnicode_AsUTF8AndSize(words, &size);
  if (text == nullptr) return nullptr;
  LockObject* lock = as_lock(self);
  if (!is_known_here(lock) || place >= kWaitersMax) return nullptr;
  Runtime& runtime = *lock->base.runtime;
  const auto bytes = static_cast<std::uint64_t>(size);
  const Result<Address> address = runtime.heap->allocate({.codec = sync::kNoteCodec, .buffer_bytes = {&bytes, 1}});
  if (!address.ok()) {
    set_error(address.status());
    return nullptr;
  }
  const heap::Block block(runtime.partition->writable(address.value().offset_bytes()));
  if (size > 0) std::memcpy(block.buffer(0).data(), text, static_cast<std::size_t>(size));
  const GlobalPointer published = runtime.heap->publish(address.value());
  PyObject* pin = make_pin(published, published, false, OnRelease::free_tree, 0);
  if (pin != nullptr) sync::set_note(*words_of(lock), place, published);
  return pin;
}

// _find_cycle() -> [(server, slot, thread, where it waits)]: who holds the lock that this thread waits for, who holds
// the one that this holder waits for, and so on to this thread; empty if it is no cycle
PyObject* find_cycle(PyObject* self, PyObject*) {
  LockObject* lock = as_lock(self);
  if (!is_known_here(lock)) return nullptr;
  std::vector<sync::Link> links;
  {
    const sync::Who who = self_of(&lock->base);
    const unsigned long me = PyThread_get_thread_ident();
    const Unlocked unlocked;
    links = sync::find_cycle(*lock->base.runtime->partition, lock->base.object, who, me);
  }
  Owned result(PyList_New(0));
  for (const sync::Link& link : links) {
    const Owned note(PyUnicode_DecodeUTF8(link.note.data(), static_cast<Py_ssize_t>(link.note.size()), "replace"));
    const Owned row(result && note
                        ? Py_BuildValue("IIKO", static_cast<unsigned int>(link.holder.server()),
                                        static_cast<unsigned int>((link.holder.raw() >> 16) & 0xffU),
                                        static_cast<unsigned long long>(link.token), note.get())
                        : nullptr);
    if (!row || PyList_Append(result.get(), row.get()) != 0) return nullptr;
  }
  return result.release();
}

// _unlock(poisons=False): without the value
PyObject* unlock(PyObject* self, PyObject* arguments) {
  int poisons = 0;
  if (PyArg_ParseTuple(arguments, "|p:_unlock", &poisons) == 0) return nullptr;
  LockObject* lock = as_lock(self);
  if (!is_known_here(lock)) return nullptr;
  sync::unlock(*lock->base.runtime->partition, *words_of(lock), poisons != 0);
  return new_none();
}

// _try_lock() -> whether it is held now
PyObject* try_lock(PyObject* self, PyObject*) {
  LockObject* lock = as_lock(self);
  if (!is_known_here(lock)) return nullptr;
  return PyBool_FromLong(
      sync::try_enter(*lock->base.runtime->partition, *words_of(lock), self_of(&lock->base)) ? 1 : 0);
}

// -- the value, at home

// _current() -> (pointer of the block that holds the value, version)
PyObject* current(PyObject* self, PyObject*) {
  LockObject* lock = as_lock(self);
  if (!is_known_here(lock)) return nullptr;
  const sync::LockWords& words = *words_of(lock);
  const GlobalPointer value = sync::current_value(*lock->base.runtime->partition, lock->base.object, words);
  return Py_BuildValue("(KKK)K", static_cast<unsigned long long>(value.address.raw()),
                       static_cast<unsigned long long>(value.colour),
                       static_cast<unsigned long long>(value.extent_bytes),
                       static_cast<unsigned long long>(words.value.version.load()));
}

// _put(pin, keeps_before) -> version: the block becomes the value; the one before is freed, or its Pin's from now on
PyObject* put(PyObject* self, PyObject* arguments) {
  PyObject* pin = nullptr;
  int keeps = 0;
  if (PyArg_ParseTuple(arguments, "Op:_put", &pin, &keeps) == 0) return nullptr;
  LockObject* lock = as_lock(self);
  if (!is_known_here(lock)) return nullptr;
  if (!is_pin(pin)) {
    PyErr_SetString(PyExc_TypeError, "expected a Pin");
    return nullptr;
  }
  Runtime& runtime = *lock->base.runtime;
  std::vector<GlobalPointer> remote;
  lock->version = sync::put_value(*runtime.heap, lock->base.object, *words_of(lock), as_pin(pin)->pointer, remote,
                                  keeps != 0 ? sync::Before::kept : sync::Before::freed);
  as_pin(pin)->on_release = OnRelease::nothing;
  for (const GlobalPointer& pointer : remote) runtime.peers->free_later(pointer, false);
  lock->is_behind = false;
  return PyLong_FromUnsignedLongLong(lock->version);
}

// -- from another server

// _lock_remote(wait_ms, recovers, reads) -> (answer, version, bytes of the block or None)
PyObject* lock_remote(PyObject* self, PyObject* arguments) {
  unsigned int wait_ms = 0;
  int recovers = 0;
  int reads = 0;
  if (PyArg_ParseTuple(arguments, "Ipp:_lock_remote", &wait_ms, &recovers, &reads) == 0) return nullptr;
  LockObject* lock = as_lock(self);
  if (!is_usable(&lock->base)) return refuse_unusable(&lock->base);
  const std::uint64_t wish = wait_ms | (recovers != 0 ? wire::SharedOperand::kRecover : 0);
  const std::uint64_t known = lock->value != nullptr || lock->is_array ? lock->version : ~0ULL;
  std::array<std::uint64_t, 3> reply{};
  std::vector<std::byte> bytes;
  if (!call_home(&lock->base, reads != 0 ? wire::SharedVerb::read : wire::SharedVerb::lock,
                 {self_of(&lock->base).raw(), PyThread_get_thread_ident(), wish, known}, {}, reply, bytes))
    return nullptr;
  Owned body;
  if (bytes.size() > sizeof(wire::Trailer)) {
    body = Owned(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()),
                                           static_cast<Py_ssize_t>(bytes.size() - sizeof(wire::Trailer))));
    if (!body) return nullptr;
  }
  return Py_BuildValue("KKO", static_cast<unsigned long long>(reply[0]), static_cast<unsigned long long>(reply[1]),
                       body ? body.get() : Py_None);
}

// _unlock_remote(poisons, pin or None) -> version: with the value written back, or without
PyObject* unlock_remote(PyObject* self, PyObject* arguments) {
  int poisons = 0;
  PyObject* pin = Py_None;
  if (PyArg_ParseTuple(arguments, "pO:_unlock_remote", &poisons, &pin) == 0) return nullptr;
  LockObject* lock = as_lock(self);
  if (!is_usable(&lock->base)) return refuse_unusable(&lock->base);
  std::array<std::uint64_t, 3> reply{};
  std::vector<std::byte> none;
  if (!call_home(&lock->base, wire::SharedVerb::unlock,
                 {self_of(&lock->base).raw(), PyThread_get_thread_ident(),
                  poisons != 0 ? wire::SharedOperand::kPoisons : 0, 0},
                 is_pin(pin) ? as_pin(pin)->pointer : GlobalPointer{}, reply, none))
    return nullptr;
  lock->version = reply[1];
  return PyLong_FromUnsignedLongLong(reply[1]);
}

// _unread_remote(): 1 round trip
PyObject* unread_remote(PyObject* self, PyObject*) {
  LockObject* lock = as_lock(self);
  if (!is_usable(&lock->base)) return refuse_unusable(&lock->base);
  std::array<std::uint64_t, 3> reply{};
  std::vector<std::byte> none;
  if (!call_home(&lock->base, wire::SharedVerb::unread,
                 {self_of(&lock->base).raw(), PyThread_get_thread_ident(), 0, 0}, {}, reply, none))
    return nullptr;
  return new_none();
}

// _abandon_remote(): whatever this thread has there, it gives up
PyObject* abandon_remote(PyObject* self, PyObject*) {
  LockObject* lock = as_lock(self);
  if (!is_usable(&lock->base)) return refuse_unusable(&lock->base);
  std::array<std::uint64_t, 3> reply{};
  std::vector<std::byte> none;
  if (!call_home(&lock->base, wire::SharedVerb::abandon,
                 {self_of(&lock->base).raw(), PyThread_get_thread_ident(), 0, 0}, {}, reply, none))
    return nullptr;
  return new_none();
}

// A block as it came over the wire, here, as its own Pin.
PyObject* keep_block(PyObject*, PyObject* argument) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(argument, &data, &size) != 0) return nullptr;
  Runtime* runtime = current_runtime();
  if (runtime == nullptr || static_cast<std::size_t>(size) < sizeof(heap::BlockHeader)) {
    set_error(Status(runtime == nullptr ? Code::closed : Code::bad_request, "no block can be kept here"));
    return nullptr;
  }
  const auto extent_bytes = static_cast<std::uint64_t>(size);
  const Result<Address> address = runtime->heap->allocate_extent(extent_bytes);
  if (!address.ok()) {
    set_error(address.status());
    return nullptr;
  }
  heap::BlockHeader header{};
  std::memcpy(static_cast<void*>(&header), data, sizeof header);
  std::byte* start = runtime->partition->writable(address.value().offset_bytes());
  std::memcpy(start + sizeof header, data + sizeof header, extent_bytes - sizeof header);
  const Result<GlobalPointer> kept = runtime->heap->publish_received(address.value(), header);
  if (!kept.ok()) {
    set_error(kept.status());
    return nullptr;
  }
  return make_pin(kept.value(), kept.value(), false, OnRelease::free_tree, 0);
}

// Who has it: (server, slot) or None
PyObject* get_holder(PyObject* self, void*) {
  LockObject* lock = as_lock(self);
  if (!is_usable(&lock->base) || lock->base.life == nullptr) return new_none();
  const sync::Who who = sync::look(*words_of(lock)).who();
  if (who.is_nobody()) return new_none();
  return Py_BuildValue("II", static_cast<unsigned int>(who.server()), static_cast<unsigned int>((who.raw() >> 16) & 0xffU));
}

PyObject* get_is_behind(PyObject* self, void*) { return PyBool_FromLong(as_lock(self)->is_behind ? 1 : 0); }
PyObject* get_is_array(PyObject* self, void*) { return PyBool_FromLong(as_lock(self)->is_array ? 1 : 0); }
PyObject* get_held(PyObject* self, void*) { return PyBool_FromLong(as_lock(self)->holder != 0 ? 1 : 0); }
PyObject* get_has_value(PyObject* self, void*) {
  return PyBool_FromLong(as_lock(self)->value != nullptr || as_lock(self)->is_array ? 1 : 0);
}
PyObject* get_value(PyObject* self, void*) {
  PyObject* value = as_lock(self)->value;
  return Py_NewRef(value == nullptr ? Py_None : value);
}
PyObject* get_pin(PyObject* self, void*) {
  PyObject* pin = as_lock(self)->pin;
  return Py_NewRef(pin == nullptr ? Py_None : pin);
}

// How many blocks of it, in all processes, are kept for views; 0 elsewhere
PyObject* get_viewing(PyObject* self, void*) {
  const sync::RwLockWords* words = readable(as_lock(self));
  return PyLong_FromUnsignedLong(words == nullptr ? 0 : words->readers.viewing());
}
PyObject* get_kind(PyObject* self, void*) { return PyLong_FromUnsignedLong(static_cast<unsigned long>(as_lock(self)->base.kind)); }
// Whether its block, which this process has decoded, is the value's, and no views of it are left
PyObject* get_is_writable(PyObject* self, void*) { return PyBool_FromLong(may_write_block(as_lock(self)) ? 1 : 0); }
// The Pin of the value's block, if views of it are left in this process
PyObject* get_viewed(PyObject* self, void*) {
  PyObject* pin = as_lock(self)->viewed;
  return Py_NewRef(pin == nullptr ? Py_None : pin);
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(as_lock(self)->value);
  return 0;
}

int clear(PyObject* self) {
  Py_CLEAR(as_lock(self)->value);
  return 0;
}

void dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  forget_value(as_lock(self));
  drop_handle(&as_lock(self)->base);
  Py_TYPE(self)->tp_free(self);
}

PyMethodDef methods[] = {
    {"_make", make, METH_VARARGS | METH_CLASS, "_make(kind, value) -> handle"},
    {"_install", install, METH_VARARGS, "_install(value, version, pin, is_array)"},
    {"_queue_up", queue_up, METH_O, "_queue_up(reads) -> place, CROWDED, or INSIDE less the slot"},
    {"_wait", wait, METH_VARARGS, "_wait(place, wait_ms, reads) -> likewise"},
    {"_give_up", give_up, METH_VARARGS, "_give_up(place, reads) -> whether the lock came first"},
    {"_end_read", end_read, METH_O, "_end_read(slot)"},
    {"_note", note, METH_VARARGS, "_note(place, text) -> Pin"},
    {"_find_cycle", find_cycle, METH_NOARGS, "_find_cycle() -> [(server, slot, thread, where it waits)]"},
    {"_try_lock", try_lock, METH_NOARGS, "_try_lock() -> whether it is locked now"},
    {"_unlock", unlock, METH_VARARGS, "_unlock(poisons=False)"},
    {"_current", current, METH_NOARGS, "_current() -> (pointer, version)"},
    {"_put", put, METH_VARARGS, "_put(pin, keeps_before) -> version"},
    {"_lock_remote", lock_remote, METH_VARARGS, "_lock_remote(wait_ms, recovers, reads) -> (answer, version, bytes or None)"},
    {"_unlock_remote", unlock_remote, METH_VARARGS, "_unlock_remote(poisons, pin) -> version"},
    {"_unread_remote", unread_remote, METH_NOARGS, "_unread_remote()"},
    {"_abandon_remote", abandon_remote, METH_NOARGS, "_abandon_remote()"},
    {"_keep_block", keep_block, METH_O | METH_STATIC, "_keep_block(bytes) -> Pin"},
    kNoMoreMethods,
};

PyGetSetDef getters[] = {
    {"_holder", get_holder, nullptr, "(server, process slot) of whoever has it, or None.", nullptr},
    {"_is_behind", get_is_behind, nullptr, "Whether no block holds the value.", nullptr},
    {"_is_array", get_is_array, nullptr, "Whether the value is an array in place.", nullptr},
    {"_is_held", get_held, nullptr, "Whether a thread of this process has it.", nullptr},
    {"_value", get_value, nullptr, "The decoded value.", nullptr},
    {"_has_value", get_has_value, nullptr, "Whether there is one, of whatever version.", nullptr},
    {"_pin", get_pin, nullptr, "The Pin that it was decoded from.", nullptr},
    {"_kind", get_kind, nullptr, "Its number.", nullptr},
    {"_is_writable", get_is_writable, nullptr, "Whether the block is the value's, and has no views.", nullptr},
    {"_viewing", get_viewing, nullptr, "How many blocks of it are kept for views.", nullptr},
    {"_viewed", get_viewed, nullptr, "The Pin of such a block of this process, or None.", nullptr},
    kNoMoreGetSets,
};

}  // namespace

namespace {

PyMethodDef mutex_methods[] = {
    {"lock", as_method(guard_for<Wish::lock>), METH_FASTCALL | METH_KEYWORDS,
     "lock(timeout=None) -> guard: `with mutex.lock() as value:` has the lock from the start of the block to its end."},
    {"recover", as_method(guard_for<Wish::recover>), METH_FASTCALL | METH_KEYWORDS,
     "recover(timeout=None) -> guard: as lock(), of a poisoned mutex too, whose value is accepted as it is."},
    kNoMoreMethods,
};

PyMethodDef rwlock_methods[] = {
    {"read", as_method(guard_for<Wish::read>), METH_FASTCALL | METH_KEYWORDS,
     "read(timeout=None) -> guard: `with lock.read() as value:` reads it, as others may at the same time."},
    {"write", as_method(guard_for<Wish::lock>), METH_FASTCALL | METH_KEYWORDS,
     "write(timeout=None) -> guard: `with lock.write() as value:` has it alone."},
    {"recover", as_method(guard_for<Wish::recover>), METH_FASTCALL | METH_KEYWORDS,
     "recover(timeout=None) -> guard: as write(), of a poisoned lock too, whose value is accepted as it is."},
    kNoMoreMethods,
};

bool add_below(PyObject* module, PyTypeObject& type, const char* name, const char* full, const char* doc,
               PyMethodDef* its_methods) {
  type.tp_name = full;
  type.tp_doc = doc;
  type.tp_basicsize = sizeof(LockObject);
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
  type.tp_base = &lock_type;
  type.tp_methods = its_methods;
  return add_type(module, type, name);
}

}  // namespace

bool register_lock(PyObject* module) {
  lock_type.tp_name = "drust._core.Lock";
  lock_type.tp_doc = "A lock that processes share, and its value: see drust.sync.";
  lock_type.tp_basicsize = sizeof(LockObject);
  lock_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  lock_type.tp_base = &shared_type;
  lock_type.tp_dealloc = dealloc;
  lock_type.tp_traverse = traverse;
  lock_type.tp_clear = clear;
  lock_type.tp_free = PyObject_GC_Del;
  lock_type.tp_methods = methods;
  lock_type.tp_getset = getters;
  return add_type(module, lock_type, "Lock") &&
         add_below(module, mutex_type, "MutexLock", "drust._core.MutexLock", "The lock of a Mutex.", mutex_methods) &&
         add_below(module, rwlock_type, "ReadWriteLock", "drust._core.ReadWriteLock", "The lock of a RwLock.",
                   rwlock_methods) &&
         PyModule_AddIntConstant(module, "KIND_MUTEX", static_cast<long>(sync::Kind::mutex)) == 0 &&
         PyModule_AddIntConstant(module, "KIND_RWLOCK", static_cast<long>(sync::Kind::rwlock)) == 0 &&
         PyModule_AddIntConstant(module, "VIEWS_MAX", static_cast<long>(kReadersMax / 2)) == 0 &&
         PyModule_AddIntConstant(module, "INSIDE", kInside) == 0 && PyModule_AddIntConstant(module, "CROWDED", kCrowded) == 0;
}

}  // namespace drust::bind
