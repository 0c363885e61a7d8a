// The Python types Ref and RefMut: their methods apart from entering and leaving, which ref.cpp has.
#include "bind/box.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::EventKind;

namespace {

// A part goes to a task: the split is already a mutable borrow, so only the bytes have to be there.
PyObject* lend_part(GuardObject* guard, PyObject* lend) {
  BoxObject* box = guard->box;
  const protocol::Step step = protocol::apply(box->state, {EventKind::PartLend});
  if (!step.ok()) {
    set_refusal(box, step.verdict, "lend a part of it", -1);
    return nullptr;
  }
  PyObject* pin = ensure_published(box);
  if (pin == nullptr || !note_lend(box, lend)) return nullptr;
  box->state = step.state;
  return Py_NewRef(pin);
}

PyObject* py_lend(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  GuardObject* guard = as_guard(self);
  if (count > 1) {
    PyErr_SetString(PyExc_TypeError, "_lend(lend=None)");
    return nullptr;
  }
  if (guard->phase != GuardPhase::fresh) return refuse_phase(guard);
  PyObject* lend = count == 1 ? arguments[0] : nullptr;
  PyObject* pin =
      guard->is_part ? lend_part(guard, lend) : begin_lend(guard->box, guard->is_mutable, lend, guard->timeout_s);
  if (pin != nullptr) guard->phase = GuardPhase::lent;
  return pin;
}

PyObject* py_end_lend(PyObject* self, PyObject* arguments, PyObject* keywords) {
  static const char* const kNames[] = {"lend", "outcome", "pointer", "poison", nullptr};
  PyObject* poison = nullptr;
  GuardObject* guard = as_guard(self);
  PyObject* lend = Py_None;
  PyObject* name = nullptr;
  PyObject* pointer = Py_None;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "|OOOO:_end_lend", const_cast<char**>(kNames), &lend,
                                  &name, &pointer, &poison) == 0) {
    return nullptr;
  }
  Outcome outcome{};
  if (!to_outcome(name, outcome)) return nullptr;
  if (guard->phase != GuardPhase::lent) return refuse_phase(guard);
  if (guard->is_part) {
    forget_lend(guard->box, lend);
    if (outcome == Outcome::poisoned) set_poison(guard->box, poison);
  }
  const bool fine = guard->is_part ? end_part(guard, outcome == Outcome::poisoned, false)
                                   : end_lend(guard->box, lend, guard->is_mutable, outcome, pointer, poison);
  if (!fine) return nullptr;
  guard->phase = GuardPhase::ended;
  return new_none();
}

PyObject* py_region(PyObject* self, PyObject*) { return part_region(as_guard(self)); }

PyObject* get_box(PyObject* self, void*) { return Py_NewRef(as_object(as_guard(self)->box)); }

PyObject* get_access(PyObject* self, void*) {
  return PyUnicode_FromString(as_guard(self)->is_mutable ? "mutable" : "shared");
}

PyObject* get_undo(PyObject* self, void*) { return PyBool_FromLong(as_guard(self)->keeps_undo ? 1 : 0); }

PyObject* get_part(PyObject* self, void*) {
  const GuardObject* guard = as_guard(self);
  if (!guard->is_part) return new_none();
  return Py_BuildValue("(nni)", guard->part.start, guard->part.stop, guard->part.axis);
}

PyObject* get_phase(PyObject* self, void*) {
  static const char* const kNames[] = {"fresh", "active", "deferred", "lent", "ended"};
  return PyUnicode_FromString(kNames[static_cast<std::size_t>(as_guard(self)->phase)]);
}

// The coroutines of `async with` are Python's (drust.aio), imported when the first one is asked for.
PyObject* call_aio(const char* name, PyObject* argument) {
  const Owned module(PyImport_ImportModule("drust.aio"));
  return module ? PyObject_CallMethod(module.get(), name, "O", argument) : nullptr;
}

PyObject* enter_async(PyObject* self, PyObject*) { return call_aio("enter", self); }

// At once, and in the caller's frame, which is looked through for views; then there is nothing to wait for.
PyObject* exit_async(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const Owned result(exit_guard(self, arguments, count));
  return result ? call_aio("completed", result.get()) : nullptr;
}

PyObject* get_timeout(PyObject* self, void*) {
  const GuardObject* guard = as_guard(self);
  return guard->timeout_s < 0 ? new_none() : PyFloat_FromDouble(guard->timeout_s);
}

PyObject* refuse_pickle(PyObject* self, PyObject*) {
  return set_box_conflict(as_guard(self)->box, "pickled",
                          "a reference cannot be pickled; pass it to a task as an argument of its own");
}

PyObject* repr(PyObject* self) {
  const GuardObject* guard = as_guard(self);
  const Owned name(label_of(guard->box));
  const Owned phase(get_phase(self, nullptr));
  if (!name || !phase) return nullptr;
  const char* kind = guard->is_mutable ? "RefMut" : "Ref";
  if (!guard->is_part) return PyUnicode_FromFormat("<%s of %U: %U>", kind, name.get(), phase.get());
  return PyUnicode_FromFormat("<%s of %U, %zd..%zd on axis %d: %U>", kind, name.get(), guard->part.start,
                              guard->part.stop, guard->part.axis, phase.get());
}

PyMethodDef methods[] = {
    {"__enter__", enter_guard, METH_NOARGS, "Begin the borrow and hand the value out."},
    {"__exit__", as_method(exit_guard), METH_FASTCALL, "End the borrow; arrays it handed out are revoked."},
    {"__aenter__", enter_async, METH_NOARGS, "As __enter__; an event loop goes on meanwhile."},
    {"__aexit__", as_method(exit_async), METH_FASTCALL, "As __exit__."},
    {"_lend", as_method(py_lend), METH_FASTCALL,
     "_lend(lend=None) -> Pin: lent to a task instead of entered."},
    {"_end_lend", as_method(py_end_lend), METH_VARARGS | METH_KEYWORDS,
     "_end_lend(lend=None, outcome='committed', pointer=None, poison=None): the task gave it back."},
    {"_region", py_region, METH_NOARGS,
     "(offset_bytes, chunk_bytes, count, stride_bytes) of a part, in the block's first buffer."},
    {"__reduce_ex__", refuse_pickle, METH_O, "Refused."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "Ref[T], for type hints."},
    kNoMoreMethods,
};

PyGetSetDef getters[] = {
    {"_box", get_box, nullptr, "The Box it borrows.", nullptr},
    {"_access", get_access, nullptr, "'shared' or 'mutable'.", nullptr},
    {"_undo", get_undo, nullptr, "Whether a borrower keeps the value before, whatever its size.", nullptr},
    {"_part", get_part, nullptr, "(start, stop, axis) of a part, or None.", nullptr},
    {"_timeout", get_timeout, nullptr, "Seconds it may wait to begin, or None: then it never waits.", nullptr},
    {"_phase", get_phase, nullptr, "fresh, active, deferred, lent or ended.", nullptr},
    kNoMoreGetSets,
};

bool add(PyObject* module, PyTypeObject& type, const char* name, const char* full_name, const char* doc) {
  prepare_guard_type(type);
  type.tp_name = full_name;
  type.tp_doc = doc;
  type.tp_repr = repr;
  type.tp_methods = methods;
  type.tp_getset = getters;
  return add_type(module, type, name);
}

}  // namespace

bool register_guards(PyObject* module) {
  return add(module, ref_type, "Ref", "drust.Ref",
             "A shared borrow, to be entered with `with` or lent to a task.") &&
         add(module, ref_mut_type, "RefMut", "drust.RefMut",
             "An exclusive borrow, to be entered with `with` or lent to a task.");
}

}  // namespace drust::bind
