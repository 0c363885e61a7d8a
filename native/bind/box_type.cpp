// The Python type Box: construction and its public methods. Their names are few on purpose: a Box shall be
// able to dereference itself some day.
#include <iterator>
#include <vector>

#include "bind/box.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"

namespace drust::bind {

PyTypeObject box_type;

extern PyGetSetDef box_getters[];  // private.cpp

namespace {

// The arguments of borrow(timeout=None) and borrow_mut(timeout=None, *, undo=False), parsed by hand: hot calls
// have none.
struct Wish {
  double timeout_s = -1;
  bool keeps_undo = false;
};

bool parse_wish(PyObject* const* arguments, Py_ssize_t count, PyObject* names, bool may_undo, Wish& wish) {
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  if (count + named == 0) return true;
  PyObject* timeout = count == 1 ? arguments[0] : nullptr;
  bool is_fine = count <= 1;
  for (Py_ssize_t i = 0; is_fine && i < named; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    if (timeout == nullptr && PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
      timeout = arguments[count + i];
    } else if (may_undo && PyUnicode_CompareWithASCIIString(name, "undo") == 0) {
      const int truth = PyObject_IsTrue(arguments[count + i]);
      if (truth < 0) return false;
      wish.keeps_undo = truth != 0;
    } else {
      is_fine = false;
    }
  }
  if (!is_fine) {
    PyErr_SetString(PyExc_TypeError, may_undo ? "expected at most timeout and undo=" : "expected at most one argument: timeout");
    return false;
  }
  if (timeout == nullptr || timeout == Py_None) return true;
  wish.timeout_s = PyFloat_AsDouble(timeout);
  if (wish.timeout_s == -1.0 && PyErr_Occurred() != nullptr) return false;
  if (!(wish.timeout_s >= 0)) {
    PyErr_SetString(PyExc_ValueError, "timeout is a number of seconds, not negative, or None");
    return false;
  }
  return true;
}

PyObject* borrow(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  Wish wish;
  if (!parse_wish(arguments, count, names, false, wish)) return nullptr;
  return make_guard(as_box(self), false, wish.timeout_s);
}

PyObject* borrow_mut(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  Wish wish;
  if (!parse_wish(arguments, count, names, true, wish)) return nullptr;
  PyObject* guard = make_guard(as_box(self), true, wish.timeout_s);
  if (guard != nullptr) as_guard(guard)->keeps_undo = wish.keeps_undo;
  return guard;
}

// What a lost task left is accepted as it is.
PyObject* recover(PyObject* self, PyObject*) {
  BoxObject* box = as_box(self);
  const protocol::Step step = protocol::apply(box->state, {protocol::EventKind::ClearPoison});
  if (step.ok()) {
    box->state = step.state;
    set_poison(box, nullptr);
  }
  return make_guard(box, true, -1);
}

PyObject* clone(PyObject* self, PyObject*) { return clone_box(as_box(self)); }

PyObject* take(PyObject* self, PyObject*) { return into_inner(as_box(self)); }

PyObject* replace(PyObject* self, PyObject* value) {
  return replace_value(as_box(self), value) ? new_none() : nullptr;
}

PyObject* split(PyObject* self, PyObject* arguments, PyObject* keywords) {
  static const char* const kNames[] = {"n", "axis", nullptr};
  Py_ssize_t parts = 0;
  int axis = 0;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "n|i:split_mut", const_cast<char**>(kNames), &parts,
                                  &axis) == 0) {
    return nullptr;
  }
  return split_mut(as_box(self), parts, axis);
}

// Frames are Python's: drust.frames knows what a column is.
PyObject* column_mut(PyObject* self, PyObject* arguments, PyObject* keywords) {
  const Owned frames(PyImport_ImportModule("drust.frames"));
  const Owned function(frames ? PyObject_GetAttrString(frames.get(), "column_mut") : nullptr);
  const Owned first(function ? PyTuple_Pack(1, self) : nullptr);
  const Owned all(first ? PySequence_Concat(first.get(), arguments) : nullptr);
  return all ? PyObject_Call(function.get(), all.get(), keywords) : nullptr;
}

PyObject* refuse_pickle(PyObject* self, PyObject*) {
  return set_box_conflict(
      as_box(self), "pickled",
      "a Box cannot be pickled, it would have two owners; pass it to a task to move it, lend it with "
      "borrow(), or clone() it");
}

PyObject* refuse_copy(PyObject* self, PyObject*) {
  return set_box_conflict(as_box(self), "copied",
                          "a Box is not copied by the way; clone() makes a second one");
}

PyObject* make(PyTypeObject*, PyObject* arguments, PyObject* keywords) {
  static const char* const kNames[] = {"value", "replicas", nullptr};
  PyObject* value = nullptr;
  PyObject* replicas = Py_None;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "O|$O:Box", const_cast<char**>(kNames), &value, &replicas) == 0)
    return nullptr;
  if (replicas == Py_None) return make_box(value);
  if (hooks().choose_replicas == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "replicas= needs a session");
    return nullptr;
  }
  const Owned answer(PyObject_CallOneArg(hooks().choose_replicas, replicas));  // first: nothing is made for an error
  const int is_excepted = answer ? PyObject_IsTrue(answer.get()) : -1;
  if (is_excepted < 0) return nullptr;
  PyObject* box = make_box(value);
  if (box != nullptr) as_box(box)->is_excepted = is_excepted != 0;
  return box;
}

PyMethodDef public_methods[] = {
    {"borrow", as_method(borrow), METH_FASTCALL | METH_KEYWORDS,
     "borrow(timeout=None) -> Ref\n\nA shared borrow, from the start of its `with` block to its end."},
    {"borrow_mut", as_method(borrow_mut), METH_FASTCALL | METH_KEYWORDS,
     "borrow_mut(timeout=None, *, undo=False) -> RefMut\n\nAn exclusive borrow, from the start of its `with` "
     "block to its end, or lent to a task. With `undo`, a task that is lost leaves the value as it was whatever its "
     "size (without, up to 1 MiB), for one copy of it."},
    {"recover", recover, METH_NOARGS,
     "recover() -> RefMut\n\nAccepts what a lost task left of a poisoned value: the poison is cleared, and the "
     "mutable borrow that is returned shows what is there."},
    {"clone", clone, METH_NOARGS, "A second Box with a copy of the value."},
    {"into_inner", take, METH_NOARGS, "The value itself; the Box is used up."},
    {"replace", replace, METH_O, "replace(value): give it another value; the old one is dropped."},
    {"column_mut", as_method(column_mut), METH_VARARGS | METH_KEYWORDS,
     "column_mut(name, row_group=None, timeout=None) -> ColumnMut\n\nOne column of a frame, to be written in "
     "place: `with box.column_mut(name) as (values, mask)`. See drust.frames."},
    {"split_mut", as_method(split), METH_VARARGS | METH_KEYWORDS,
     "split_mut(n, axis=0) -> list[RefMut]\n\nDisjoint mutable borrows of an array, cut along an axis."},
    {"__reduce_ex__", refuse_pickle, METH_O, "Refused: a Box has one owner."},
    {"__copy__", refuse_copy, METH_NOARGS, "Refused: see clone()."},
    {"__deepcopy__", refuse_copy, METH_O, "Refused: see clone()."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "Box[T], for type hints."},
};

}  // namespace

bool register_box(PyObject* module) {
  static std::vector<PyMethodDef> methods(std::begin(public_methods), std::end(public_methods));
  for (const PyMethodDef* method = box_private_methods; method->ml_name != nullptr; ++method)
    methods.push_back(*method);
  methods.push_back(kNoMoreMethods);
  prepare_box_type(box_type);
  box_type.tp_name = "drust.Box";
  box_type.tp_doc =
      "Box(value, *, replicas=None)\n\nOwns one value: lent, moved, and freed with its owner. `replicas`: 1 keeps what "
      "other servers could have seen of it on one more server, 0 does not; None does what the session does.";
  box_type.tp_new = make;
  box_type.tp_repr = box_repr;
  box_type.tp_methods = methods.data();
  box_type.tp_getset = box_getters;
  return add_type(module, box_type, "Box");
}

}  // namespace drust::bind
