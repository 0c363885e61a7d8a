// The base type of handles of shared objects: how they come, travel and end.
#include <map>
#include <tuple>

#include "base/kill_point.hpp"
#include "bind/anchor.hpp"
#include "bind/box.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"
#include "bind/shared.hpp"

namespace drust::bind {

PyTypeObject shared_type;

namespace {

using heap::ChildPointer;

// The handles of objects of this host. Protected by the interpreter lock.
using Key = std::tuple<std::uint64_t, Colour, std::uint32_t>;
std::map<Key, SharedObject*>& known() {
  static auto* const all = new std::map<Key, SharedObject*>();  // never destroyed: handles may die very late
  return *all;
}
Key key_of(const GlobalPointer& object, std::uint32_t role) { return {object.address.raw(), object.colour, role}; }

PyObject* find_known(const GlobalPointer& object, std::uint32_t role) {
  const auto found = known().find(key_of(object, role));
  if (found == known().end() || !is_usable(found->second)) return nullptr;  // or an earlier session's
  return Py_NewRef(as_object(found->second));
}

Owned fail(const Status& status) {
  set_error(status);
  return Owned();
}

// A Pin of a fresh hold, made by way of `hold`, which somebody else owns.
Owned another_hold(Runtime& runtime, const GlobalPointer& hold, std::uint64_t kind_flags) {
  if (runtime.partition->is_local(hold.address)) {
    std::uint32_t role = 0;
    const GlobalPointer object = heap::find_held(*runtime.partition, hold, &role);
    const Result<GlobalPointer> made = heap::make_hold(*runtime.heap, object, role);
    if (!made.ok()) return fail(made.status());
    return Owned(make_pin(made.value(), made.value(), false, OnRelease::free_tree, 0));
  }
  std::vector<std::byte> none;
  GlobalPointer made;
  // It stands in a block of this process, so that its reaper finds it.
  const Result<GlobalPointer> holder = [&]() -> Result<GlobalPointer> {
    const Unlocked unlocked;
    const auto reply = runtime.peers->shared(hold.address.server(), hold, wire::SharedVerb::hold, {}, {}, none);
    if (!reply.ok()) return reply.status();
    kill_point("shared.answer.hold");
    made = {Address(reply.value()[0]), reply.value()[1], reply.value()[2]};
    Result<GlobalPointer> around = make_holder(*runtime.heap, made, heap::kHoldCodec, kind_flags);
    if (!around.ok()) runtime.peers->free_later(made, false);
    return around;
  }();
  if (!holder.ok()) return fail(holder.status());
  return Owned(make_held(made, holder.value()));
}

std::uint64_t kind_flags_of(sync::Kind kind, std::uint32_t role) noexcept {
  const std::uint64_t number = static_cast<std::uint64_t>(kind) | (role == 0 ? 0 : 16);
  return ChildPointer::kHold | (number << ChildPointer::kHoldKindShift);
}

PyObject* new_handle(PyTypeObject* type, sync::Kind kind, const GlobalPointer& object, Owned pin, std::uint32_t role) {
  Runtime* runtime = current_runtime();
  PyObject* self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  SharedObject* shared = as_shared(self);
  shared->pin = pin.release();
  shared->object = object;
  shared->runtime = runtime;
  shared->kind = kind;
  shared->role = role;
  shared->epoch = process_epoch();
  if (!object.is_null()) {
    shared->life = heap::find_shared(*runtime->partition, object);
    known()[key_of(object, role)] = shared;
  }
  return self;
}

// open(hold, owns, flags, holder, index): a handle for a hold that came. `owns`: it is this handle's from now on.
PyObject* open(PyObject* cls, PyObject* arguments) {
  unsigned long long address = 0;
  unsigned long long colour = 0;
  unsigned long long extent_bytes = 0;
  unsigned long long flags = 0;
  int owns = 0;
  PyObject* holder = Py_None;
  unsigned int index = 0;
  if (PyArg_ParseTuple(arguments, "(KKK)pK|OI:_open", &address, &colour, &extent_bytes, &owns, &flags, &holder, &index) == 0)
    return nullptr;
  Runtime* runtime = current_runtime();
  if (runtime == nullptr) {
    set_error(Status(Code::closed, "this process is not attached to a drust server"));
    return nullptr;
  }
  const GlobalPointer hold{Address(address), colour, extent_bytes};
  const auto number = static_cast<std::uint32_t>((flags & ChildPointer::kHoldKind) >> ChildPointer::kHoldKindShift);
  const auto kind = static_cast<sync::Kind>(number & 15U);
  std::uint32_t role = number >> 4;
  GlobalPointer object;
  Owned pin;
  if (runtime->partition->is_local(hold.address)) {
    object = heap::find_held(*runtime->partition, hold, &role);
    if (object.is_null()) {
      set_error(Status(Code::not_found, "the shared object is gone"));
      return nullptr;
    }
    if (owns != 0) {
      runtime->heap->set_owner(hold, heap::owner_word(heap::OwnerKind::process, runtime->process));
      pin = Owned(make_pin(hold, hold, false, OnRelease::free_tree, 0));
      if (!pin) return nullptr;
    }
    if (PyObject* before = find_known(object, role); before != nullptr) return before;  // and the hold is not needed
  } else if (owns != 0) {
    pin = Owned(make_hold(hold, OnRelease::free_tree));
    if (!pin) return nullptr;
    if (is_pin(holder)) {
      as_pin(pin.get())->holder = Py_NewRef(holder);
      as_pin(pin.get())->holder_index = index;
    } else if (const Status anchored = anchor(as_pin(pin.get())); !anchored.ok()) {
      set_error(anchored);
      return nullptr;
    }
  }
  if (!pin) pin = another_hold(*runtime, hold, flags);
  if (!pin) return nullptr;
  return new_handle(reinterpret_cast<PyTypeObject*>(cls), kind, object, std::move(pin), role);
}

// A fresh hold for whoever gets the handle: (Pin, None), as a Box's _transfer().
Owned share(SharedObject* shared) {
  if (!is_usable(shared)) {
    refuse_unusable(shared);
    return Owned();
  }
  return another_hold(*shared->runtime, hold_of(shared), kind_flags_of(shared->kind, shared->role));
}

PyObject* transfer(PyObject* self, PyObject*) {
  const Owned pin = share(as_shared(self));
  return pin ? PyTuple_Pack(2, pin.get(), Py_None) : nullptr;
}

PyObject* publish(PyObject* self, PyObject*) { return share(as_shared(self)).release(); }

PyObject* nothing(PyObject*, PyObject*) { return new_none(); }

PyObject* clone(PyObject* self, PyObject*) { return Py_NewRef(self); }

PyObject* refuse_pickle(PyObject* self, PyObject*) {
  const Owned message(PyUnicode_FromFormat(
      "%s: the process that unpickles it would not be known to it; pass it to a task, return it from one, or put it "
      "into a Box or a channel",
      Py_TYPE(self)->tp_name));
  const Owned name(PyUnicode_FromFormat("this %s", Py_TYPE(self)->tp_name));
  const Owned fields(name ? Py_BuildValue("{sO}", "box_label", name.get()) : nullptr);
  return fields ? set_conflict(nullptr, "pickled", message.get(), fields.get()) : nullptr;
}

PyObject* get_kept(PyObject*, void*) { return Py_NewRef(Py_False); }
PyObject* get_lease(PyObject*, void*) { return new_none(); }

PyObject* get_flags(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(kind_flags_of(as_shared(self)->kind, as_shared(self)->role));
}

PyObject* get_hold(PyObject* self, void*) {
  if (!is_usable(as_shared(self))) return refuse_unusable(as_shared(self));
  const GlobalPointer hold = hold_of(as_shared(self));
  return Py_BuildValue("(KKK)", static_cast<unsigned long long>(hold.address.raw()),
                       static_cast<unsigned long long>(hold.colour), static_cast<unsigned long long>(hold.extent_bytes));
}

PyObject* get_object(PyObject* self, void*) {
  const GlobalPointer& object = as_shared(self)->object;
  if (object.is_null()) return new_none();
  return Py_BuildValue("(KKK)", static_cast<unsigned long long>(object.address.raw()),
                       static_cast<unsigned long long>(object.colour),
                       static_cast<unsigned long long>(object.extent_bytes));
}

PyObject* get_server(PyObject* self, void*) {
  if (as_shared(self)->pin == nullptr) return new_none();
  return PyLong_FromUnsignedLong(hold_of(as_shared(self)).address.server());
}

// Whether somebody else has, or ever had, a handle: what only one process can see is not encoded.
PyObject* get_is_shared(PyObject* self, void*) {
  const heap::SharedLife* life = as_shared(self)->life;
  if (!is_usable(as_shared(self))) return refuse_unusable(as_shared(self));
  return PyBool_FromLong(life == nullptr || life->made[0].load() + life->made[1].load() > 1 ? 1 : 0);
}

void dealloc(PyObject* self) {
  drop_handle(as_shared(self));
  Py_TYPE(self)->tp_free(self);
}

PyMethodDef methods[] = {
    {"clone", clone, METH_NOARGS, "clone() -> the same handle: handles of one object are interchangeable."},
    {"_open", open, METH_VARARGS | METH_CLASS, "_open(hold, owns, flags, holder=None, index=0) -> handle"},
    {"_transfer", transfer, METH_NOARGS, "_transfer() -> (Pin of a hold for the receiver, None)"},
    {"_transfer_undone", nothing, METH_VARARGS, "The hold dies with its Pin."},
    {"_publish", publish, METH_NOARGS, "_publish() -> Pin of a hold, to stand in a block"},
    {"_set_parent", nothing, METH_O, "Handles stand by themselves."},
    {"__reduce_ex__", refuse_pickle, METH_O, "Refused: see the message."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "For type hints."},
    kNoMoreMethods,
};

PyGetSetDef getters[] = {
    {"server", get_server, nullptr, "The number of its home server.", nullptr},
    {"_kept", get_kept, nullptr, "As a Box's.", nullptr},
    {"_lease", get_lease, nullptr, "As a Box's.", nullptr},
    {"_flags", get_flags, nullptr, "What a child pointer says of its holds.", nullptr},
    {"_hold", get_hold, nullptr, "The pointer of this handle's hold.", nullptr},
    {"_object", get_object, nullptr, "The pointer of the object, if it is on this server.", nullptr},
    {"_is_shared", get_is_shared, nullptr, "Whether anybody else ever had a handle.", nullptr},
    kNoMoreGetSets,
};

}  // namespace

PyObject* refuse_unusable(const SharedObject* shared) {
  const bool is_forked = shared->epoch != process_epoch();
  const Owned message(PyUnicode_FromString(is_forked ? "it belongs to the process that made it"
                                                     : "the drust runtime that made this handle has been closed"));
  return set_conflict(nullptr, is_forked ? "forked" : "closed", message.get(), nullptr);
}

PyObject* make_handle(PyTypeObject* type, sync::Kind kind, const GlobalPointer& object, const GlobalPointer& hold,
                      std::uint32_t role) {
  Owned pin(make_pin(hold, hold, false, OnRelease::free_tree, 0));
  return pin ? new_handle(type, kind, object, std::move(pin), role) : nullptr;
}

bool call_home(const SharedObject* shared, wire::SharedVerb verb, const std::array<std::uint64_t, 4>& operands,
               const GlobalPointer& body, std::array<std::uint64_t, 3>& reply, std::vector<std::byte>& bytes) {
  const GlobalPointer hold = hold_of(shared);
  const Owned alive = Owned::share(shared->pin);
  Result<std::array<std::uint64_t, 3>> answer = [&] {
    const Unlocked unlocked;
    return shared->runtime->peers->shared(hold.address.server(), hold, verb, operands, body, bytes);
  }();
  if (!answer.ok()) {
    set_error(answer.status());
    return false;
  }
  reply = answer.value();
  return true;
}

void drop_handle(SharedObject* shared) noexcept {
  if (shared->weak_references != nullptr) PyObject_ClearWeakRefs(as_object(shared));
  const auto found = known().find(key_of(shared->object, shared->role));
  if (!shared->object.is_null() && found != known().end() && found->second == shared) known().erase(found);
  Py_CLEAR(shared->pin);
}

bool to_timeout(PyObject* argument, double& timeout_s) {
  timeout_s = -1;
  if (argument == nullptr || argument == Py_None) return true;
  timeout_s = PyFloat_AsDouble(argument);
  if (timeout_s == -1.0 && PyErr_Occurred() != nullptr) return false;
  if (timeout_s >= 0) return true;
  PyErr_SetString(PyExc_ValueError, "timeout is a number of seconds, not negative, or None");
  return false;
}

bool register_shared(PyObject* module) {
  shared_type.tp_name = "drust._core.Shared";
  shared_type.tp_doc = "A handle of a shared object: see drust.sync.";
  shared_type.tp_basicsize = sizeof(SharedObject);
  shared_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
  shared_type.tp_dealloc = dealloc;
  shared_type.tp_weaklistoffset = offsetof(SharedObject, weak_references);
  shared_type.tp_methods = methods;
  shared_type.tp_getset = getters;
  return add_type(module, shared_type, "Shared") &&
         PyModule_AddIntConstant(module, "HOLD", static_cast<long>(ChildPointer::kHold)) == 0 &&
         PyModule_AddIntConstant(module, "HOLD_KIND_SHIFT", ChildPointer::kHoldKindShift) == 0 &&
         PyModule_AddIntConstant(module, "CHILD_MADE", static_cast<long>(ChildPointer::kMade)) == 0;
}

}  // namespace drust::bind
