// Box: what it holds, how a value enters it, how it dies. Borrows are in access.cpp, methods in box_type.cpp.
#include "bind/box.hpp"

#include <utility>

#include "bind/hooks.hpp"
#include "bind/numpy_api.hpp"
#include "bind/python.hpp"

namespace drust::bind {

namespace {

// A new array's hidden parent; `value` is any array over a buffer of `pin`.
bool install_array(BoxObject* box, PyObject* value, PyObject* pin, bool writable) {
  if (pin == Py_None || find_exporter(value) == nullptr) {
    PyErr_SetString(PyExc_TypeError, "an array in a Box is an exact ndarray over a buffer of its Pin");
    return false;
  }
  if (!writable && as_pin(pin)->is_writable) {
    PyErr_SetString(PyExc_TypeError,
                    "what a shared borrow hands out lies on the read-only mapping: open the Pin so");
    return false;
  }
  Owned mapping = Owned::share(pin);
  if (writable && !as_pin(pin)->is_writable) mapping = Owned(make_writable_sibling(as_pin(pin)));
  if (!mapping) return false;
  PyObject* parent = make_parent(value, as_pin(mapping.get()));
  if (parent == nullptr) return false;
  forget_value(box);
  (writable ? box->write : box->read).parent = parent;
  box->kind = Kind::array;
  box->is_immutable = false;
  return true;
}

}  // namespace

BoxObject* new_box() noexcept {
  auto* box = reinterpret_cast<BoxObject*>(PyType_GenericAlloc(&box_type, 0));  // all zero
  if (box == nullptr) return nullptr;
  box->state = protocol::owned_state();
  box->kind = Kind::empty;
  box->epoch = process_epoch();
  return box;
}

bool is_immutable_value(PyObject* value) noexcept {
  return value == Py_None || PyLong_CheckExact(value) || PyUnicode_CheckExact(value) ||
         PyFloat_CheckExact(value) || PyTuple_CheckExact(value) || PyBool_Check(value) ||
         PyBytes_CheckExact(value) || PyFrozenSet_CheckExact(value) || PyComplex_CheckExact(value);
}

void forget_value(BoxObject* box) noexcept {
  if (box->kind == Kind::live || box->kind == Kind::array) box->kind = Kind::empty;
  box->read.clear();
  box->write.clear();
  Py_CLEAR(box->source);
  Py_CLEAR(box->value);
}

void set_pin(BoxObject* box, PyObject* pin) noexcept {
  PyObject* old = std::exchange(box->pin, pin);
  Py_XDECREF(old);
}

bool install(BoxObject* box, PyObject* value, PyObject* pin, bool is_array, bool writable) {
  if (pin != Py_None && !is_pin(pin)) {
    PyErr_Format(PyExc_TypeError, "expected a Pin or None, not %R", pin);
    return false;
  }
  const Owned kept_value = Owned::share(value);
  const Owned kept_pin = Owned::share(pin);
  if (pin != Py_None && writable && as_pin(pin)->owner != nullptr) pin = as_pin(pin)->owner;
  const bool moved = pin != Py_None && writable && is_elsewhere(box);
  if (is_array) {
    if (!install_array(box, value, pin, writable)) return false;
  } else {
    forget_value(box);
    box->value = Py_NewRef(value);
    box->kind = Kind::live;
    box->is_writable = writable || pin == Py_None;
    box->is_immutable = is_immutable_value(value);
  }
  Py_XSETREF(box->label, Py_NewRef(as_object(Py_TYPE(value))));
  if (pin == Py_None) return true;
  Py_XSETREF(box->source, Py_NewRef(pin));
  if (moved) {  // the bytes came here for a mutable borrow: the new block is the object now
    const protocol::Step step = protocol::apply(box->state, {protocol::EventKind::Relocated});
    box->state = step.state;
    leave_block(box, std::exchange(box->pin, Py_NewRef(pin)), step.actions);
  } else if (box->pin == nullptr) {
    box->pin = Py_NewRef(pin);
  }
  return true;
}

bool adopt_into(BoxObject* box, PyObject* value) {
  if (hooks().adopt == nullptr) {
    if (!install(box, value, Py_None, false, true)) return false;
  } else {
    const Owned adopted(PyObject_CallOneArg(hooks().adopt, value));
    if (!adopted) return false;
    PyObject* content = nullptr;
    PyObject* pin = nullptr;
    int is_array = 0;
    if (PyArg_ParseTuple(adopted.get(), "OOp;adopt returns (value, pin, is_array)", &content, &pin,
                         &is_array) == 0) {
      return false;
    }
    if (is_pin(pin) && as_pin(pin)->readable == nullptr) {  // there was no room for it here
      box->state = protocol::received_state();
      set_pin(box, Py_NewRef(pin));
      Py_XSETREF(box->label, Py_NewRef(as_object(Py_TYPE(content))));
      return true;
    }
    if (!install(box, content, pin, is_array != 0, is_array == 0)) return false;
  }
  box->is_outdated = box->kind == Kind::live && box->pin == nullptr;
  return box->kind != Kind::live || adopt_children(box);
}

PyObject* make_box(PyObject* value) {
  BoxObject* box = new_box();
  if (box == nullptr) return nullptr;
  record_user_site(box->created);
  if (!adopt_into(box, value)) Py_CLEAR(box);
  return as_object(box);
}

bool is_excepted_with_all(const BoxObject* box) noexcept {
  while (box->parent != nullptr) box = box->parent;
  return box->is_excepted;
}

namespace {

int traverse(PyObject* self, visitproc visit, void* arg) {
  BoxObject* box = as_box(self);
  Py_VISIT(box->value);
  Py_VISIT(box->lends);
  Py_VISIT(box->lease);
  Py_VISIT(box->label);
  Py_VISIT(box->read.parent);
  Py_VISIT(box->write.parent);
  return 0;
}

// Only what can be part of a cycle. A Box with lends out holds itself and is never found unreachable.
int clear(PyObject* self) {
  BoxObject* box = as_box(self);
  Py_CLEAR(box->lends);
  Py_CLEAR(box->lease);
  if (box->kind == Kind::live) {
    box->kind = Kind::gone;
    box->state.phase = protocol::Phase::Dropped;
    Py_CLEAR(box->value);
  }
  return 0;
}

// The Pins say what becomes of the block; they ask for a live runtime of this process, so at exit, after
// close() and in a forked child nothing happens.
void dealloc(PyObject* self) {
  BoxObject* box = as_box(self);
  PyObject_GC_UnTrack(self);
  if (box->weak_references != nullptr) PyObject_ClearWeakRefs(self);
  orphan_children(box);
  leave_parent(box);
  forget_value(box);
  Py_CLEAR(box->lends);
  Py_CLEAR(box->lease);
  Py_CLEAR(box->poison);
  Py_CLEAR(box->label);
  Py_CLEAR(box->moved_to);
  box->created.clear();
  forget_escapes(box);
  Py_CLEAR(box->pin);
  Py_TYPE(self)->tp_free(self);
}

}  // namespace

void prepare_box_type(PyTypeObject& type) noexcept {
  type.tp_basicsize = sizeof(BoxObject);
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = traverse;
  type.tp_clear = clear;
  type.tp_dealloc = dealloc;
  type.tp_free = PyObject_GC_Del;
  type.tp_weaklistoffset = offsetof(BoxObject, weak_references);
}

}  // namespace drust::bind
