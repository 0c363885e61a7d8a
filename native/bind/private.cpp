// The underscore methods of Box: what drust.handles and drust.tasks need of it and users do not.
#include "bind/box.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::Ceiling;
using protocol::EventKind;

namespace {

PyObject* py_install(PyObject* self, PyObject* arguments) {
  PyObject* value = nullptr;
  PyObject* pin = nullptr;
  int is_array = 0;
  int writable = 0;
  if (PyArg_ParseTuple(arguments, "OOpp:_install", &value, &pin, &is_array, &writable) == 0) return nullptr;
  return install(as_box(self), value, pin, is_array != 0, writable != 0) ? new_none() : nullptr;
}

PyObject* py_state(PyObject* self, PyObject*) { return box_state(as_box(self)); }

PyObject* py_publish(PyObject* self, PyObject*) {
  PyObject* pin = ensure_published(as_box(self));
  if (pin == nullptr) return nullptr;
  as_box(self)->state.set(protocol::kPublished);  // its parent is about to be seen, and it inside
  return Py_NewRef(pin);
}

PyObject* lend(PyObject* self, PyObject* arguments, PyObject* keywords, bool is_mutable) {
  static const char* const kNames[] = {"lend", "timeout", nullptr};
  PyObject* borrower = nullptr;
  PyObject* timeout = Py_None;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "|OO", const_cast<char**>(kNames), &borrower,
                                  &timeout) == 0) {
    return nullptr;
  }
  const double timeout_s = timeout == Py_None ? -1 : PyFloat_AsDouble(timeout);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return begin_lend(as_box(self), is_mutable, borrower, timeout_s);
}

PyObject* py_lend_shared(PyObject* self, PyObject* arguments, PyObject* keywords) {
  return lend(self, arguments, keywords, false);
}

PyObject* py_lend_mut(PyObject* self, PyObject* arguments, PyObject* keywords) {
  return lend(self, arguments, keywords, true);
}

PyObject* py_end_lend(PyObject* self, PyObject* arguments, PyObject* keywords) {
  static const char* const kNames[] = {"lend", "mutable", "outcome", "pointer", "poison", nullptr};
  PyObject* poison = nullptr;
  PyObject* borrower = nullptr;
  int is_mutable = 0;
  PyObject* name = nullptr;
  PyObject* pointer = Py_None;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "Op|OOO:_end_lend", const_cast<char**>(kNames),
                                  &borrower, &is_mutable, &name, &pointer, &poison) == 0) {
    return nullptr;
  }
  Outcome outcome{};
  if (!to_outcome(name, outcome)) return nullptr;
  return end_lend(as_box(self), borrower, is_mutable != 0, outcome, pointer, poison) ? new_none() : nullptr;
}

PyObject* py_transfer(PyObject* self, PyObject* arguments, PyObject* keywords) {
  static const char* const kNames[] = {"location", "encode", nullptr};
  PyObject* location = Py_None;
  int encode = 1;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "|Op:_transfer", const_cast<char**>(kNames), &location,
                                  &encode) == 0) {
    return nullptr;
  }
  if (location != Py_None && !PyUnicode_Check(location)) {
    PyErr_SetString(PyExc_TypeError, "location is 'file:line' or None");
    return nullptr;
  }
  return give_away(as_box(self), EventKind::Transfer, encode != 0, location == Py_None ? nullptr : location);
}

PyObject* py_transfer_undone(PyObject* self, PyObject* arguments) {
  PyObject* pin = nullptr;
  PyObject* value = nullptr;
  if (PyArg_ParseTuple(arguments, "OO:_transfer_undone", &pin, &value) == 0) return nullptr;
  return undo_transfer(as_box(self), pin, value) ? new_none() : nullptr;
}

PyObject* py_give_back(PyObject* self, PyObject*) {
  return give_away(as_box(self), EventKind::Return, true, nullptr);
}

PyObject* py_from_pin(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* const kNames[] = {"pin", "access", "type_name", "parent", "undo", "lease", "kept",
                                       "excepted", nullptr};
  PyObject* pin = nullptr;
  const char* access = nullptr;
  PyObject* type_name = nullptr;
  PyObject* parent = Py_None;
  int undo = 0;
  PyObject* lease = Py_None;
  int kept = 0;
  int excepted = 0;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "O!sO|OpOpp:_from_pin", const_cast<char**>(kNames),
                                  &pin_type, &pin, &access, &type_name, &parent, &undo, &lease, &kept,
                                  &excepted) == 0) {
    return nullptr;
  }
  if (parent != Py_None && !is_box(parent)) {
    PyErr_SetString(PyExc_TypeError, "parent is a Box or None");
    return nullptr;
  }
  const std::string_view wanted(access);
  protocol::OwnerState state;
  if (wanted == "owned") {
    state = protocol::received_state();
  } else if (wanted == "shared") {
    state = protocol::reference_state(Ceiling::Shared);
  } else if (wanted == "mutable") {
    state = protocol::reference_state(Ceiling::Mutable);
  } else {
    return PyErr_Format(PyExc_ValueError, "access is owned, shared or mutable, not %s", access);
  }
  BoxObject* box = new_box();
  if (box == nullptr) return nullptr;
  box->state = protocol::received_state();
  if (parent != Py_None) {
    if (!set_parent(box, as_box(parent))) {
      Py_DECREF(box);
      return nullptr;
    }
    if (kept != 0 || as_box(parent)->state.has(protocol::kPreImage)) box->state.set(protocol::kPreImage);
  } else {
    box->state = state;
  }
  box->keeps_undo = undo != 0;
  box->is_excepted = excepted != 0;
  if (lease != Py_None) box->lease = Py_NewRef(lease);
  box->pin = Py_NewRef(pin);
  box->label = Py_NewRef(type_name);
  record_user_site(box->created);
  return as_object(box);
}

PyObject* py_set_parent(PyObject* self, PyObject* parent) {
  if (parent == Py_None) {
    leave_parent(as_box(self));
    return new_none();
  }
  if (!is_box(parent)) return PyErr_Format(PyExc_TypeError, "parent is a Box or None, not %R", parent);
  return set_parent(as_box(self), as_box(parent)) ? new_none() : nullptr;
}

// Only what nobody uses: a view that has escaped keeps the bytes by itself.
PyObject* py_forget(PyObject* self, PyObject*) {
  BoxObject* box = as_box(self);
  const bool is_decoded = box->kind == Kind::live || box->kind == Kind::array;
  const bool is_unused = box->state.local_readers == 0 && box->state.writer == protocol::Writer::None &&
                         box->guards == nullptr && box->escapes == nullptr && box->first_child == nullptr;
  if (!is_decoded || !is_elsewhere(box) || box->is_outdated || !is_unused) Py_RETURN_FALSE;
  forget_value(box);
  Py_RETURN_TRUE;
}

PyObject* py_clear_poison(PyObject* self, PyObject*) {
  as_box(self)->state = protocol::apply(as_box(self)->state, {EventKind::ClearPoison}).state;
  set_poison(as_box(self), nullptr);
  return new_none();
}

PyObject* py_wait_end(PyObject*, PyObject* argument) {
  const double timeout_s = PyFloat_AsDouble(argument);
  if (timeout_s == -1.0 && PyErr_Occurred() != nullptr) return nullptr;
  return wait_for_end(timeout_s) ? new_none() : nullptr;
}

}  // namespace

PyObject* box_value(PyObject* self, void*) {
  const BoxObject* box = as_box(self);
  if (box->kind == Kind::live) return Py_NewRef(box->value);
  if (box->kind == Kind::array)
    return Py_NewRef(box->read.parent != nullptr ? box->read.parent : box->write.parent);
  PyErr_SetString(PyExc_ValueError, "nothing is decoded here");
  return nullptr;
}

PyObject* box_pin(PyObject* self, void*) {
  PyObject* pin = as_box(self)->pin;
  return Py_NewRef(pin == nullptr ? Py_None : pin);
}

PyMethodDef box_private_methods[] = {
    {"_install", py_install, METH_VARARGS,
     "_install(value, pin, is_array, writable): what materialise decoded."},
    {"_state", py_state, METH_NOARGS, "A dictionary for tools; changes nothing."},
    {"_publish", py_publish, METH_NOARGS,
     "Encode if need be; the Pin of the current bytes. Ignores the parent's borrow."},
    {"_lend_shared", as_method(py_lend_shared), METH_VARARGS | METH_KEYWORDS,
     "_lend_shared(lend=None, timeout=None) -> Pin"},
    {"_lend_mut", as_method(py_lend_mut), METH_VARARGS | METH_KEYWORDS,
     "_lend_mut(lend=None, timeout=None) -> Pin"},
    {"_end_lend", as_method(py_end_lend), METH_VARARGS | METH_KEYWORDS,
     "_end_lend(lend, mutable, outcome='committed', pointer=None, poison=None)"},
    {"_transfer", as_method(py_transfer), METH_VARARGS | METH_KEYWORDS,
     "_transfer(location=None, encode=True) -> (Pin | None, value): the Box is moved from now on."},
    {"_transfer_undone", py_transfer_undone, METH_VARARGS, "_transfer_undone(pin, value): nobody saw it."},
    {"_give_back", py_give_back, METH_NOARGS,
     "A reference's end: (Pin, value), and the reference is used up."},
    {"_from_pin", as_method(py_from_pin), METH_VARARGS | METH_KEYWORDS | METH_CLASS,
     "_from_pin(pin, access, type_name, parent=None, undo=False, lease=None, kept=False, excepted=False) -> Box: a "
     "handle that came from elsewhere. `lease`: the task it was lent to. `kept`: the pre-image of its parent owns it "
     "as well. `excepted`: of replicas, from what the session says."},
    {"_set_parent", py_set_parent, METH_O, "_set_parent(box | None): this Box lies inside that one's value."},
    {"_forget", py_forget, METH_NOARGS,
     "_forget() -> bool: lets go of what was read of a value elsewhere, if nobody borrows it; the copy stays in the "
     "copy table as long as there is room."},
    {"_clear_poison", py_clear_poison, METH_NOARGS, "Accept the value as the dead writer left it."},
    {"_wait_end", py_wait_end, METH_O,
     "_wait_end(timeout_s): wait for any borrow of this process to end, or less."},
    kNoMoreMethods,
};

PyObject* box_server(PyObject* self, void*) {
  const BoxObject* box = as_box(self);
  if (box->pin != nullptr) return PyLong_FromUnsignedLong(pin_of(box)->pointer.address.server());
  const Runtime* runtime = current_runtime();
  return PyLong_FromUnsignedLong(runtime == nullptr ? 0 : runtime->partition->server());
}

PyObject* box_lease(PyObject* self, void*) {
  PyObject* lease = find_lease(as_box(self));
  return Py_NewRef(lease == nullptr ? Py_None : lease);
}

PyObject* box_is_poisoned(PyObject* self, void*) {
  return PyBool_FromLong(as_box(self)->state.has(protocol::kPoisoned) ? 1 : 0);
}

PyObject* box_is_kept(PyObject* self, void*) {
  return PyBool_FromLong(as_box(self)->state.has(protocol::kPreImage) ? 1 : 0);
}

PyObject* box_is_excepted(PyObject* self, void*) { return PyBool_FromLong(as_box(self)->is_excepted ? 1 : 0); }

PyObject* box_is_excepted_with_all(PyObject* self, void*) {
  return PyBool_FromLong(is_excepted_with_all(as_box(self)) ? 1 : 0);
}

PyGetSetDef box_getters[] = {
    {"server", box_server, nullptr, "The number of the server whose heap holds the value. No message.",
     nullptr},
    {"_value", box_value, nullptr, "The live value or the array's hidden parent; never hand it to users.",
     nullptr},
    {"_pin", box_pin, nullptr, "The Pin that owns the block, or None.", nullptr},
    {"_lease", box_lease, nullptr, "The task that it, or a value around it, was lent to; None for an owner.", nullptr},
    {"_poisoned", box_is_poisoned, nullptr, "Whether a lost task left it half written.", nullptr},
    {"_kept", box_is_kept, nullptr, "Whether its block is part of a pre-image.", nullptr},
    {"_excepted", box_is_excepted, nullptr, "Whether its replicas= is another choice than the session's.", nullptr},
    {"_excepted_with_all", box_is_excepted_with_all, nullptr,
     "The same of the outermost Box that it is inside of: what a hand-over of it says.", nullptr},
    kNoMoreGetSets,
};

}  // namespace drust::bind
