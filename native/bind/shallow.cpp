// Values that share their memory with their copies, and never write it: polars frames and series.
//
// The object itself can be changed (a column replaced), its memory cannot. So a frame that a borrow handed out
// and somebody kept need not be copied to be kept as it was: the next writer gets a shallow copy to change.
// Their types are told to us: nothing here knows polars.
#include <array>

#include "bind/box.hpp"
#include "bind/python.hpp"

namespace drust::bind {
namespace {

std::array<PyTypeObject*, 8> types;  // never given back; protected by the interpreter lock
std::size_t type_count = 0;

PyObject* add_shallow_type(PyObject*, PyObject* type) {
  if (!PyType_Check(type)) return PyErr_Format(PyExc_TypeError, "expected a class, not %R", type);
  auto* added = reinterpret_cast<PyTypeObject*>(type);
  for (std::size_t i = 0; i < type_count; ++i) {
    if (types[i] == added) return new_none();
  }
  if (type_count == types.size()) return new_none();  // then a kept one is the Box's own object, as of any class
  types[type_count++] = reinterpret_cast<PyTypeObject*>(Py_NewRef(type));
  return new_none();
}

PyMethodDef functions[] = {
    {"add_shallow_type", add_shallow_type, METH_O,
     "add_shallow_type(class): its values never write their memory, and .clone() copies none of it."},
    kNoMoreMethods,
};

}  // namespace

bool is_shallow_value(PyObject* value) noexcept {
  for (std::size_t i = 0; i < type_count; ++i) {
    if (Py_TYPE(value) == types[i]) return true;
  }
  return false;
}

bool separate_value(BoxObject* box) {
  if (box->kind != Kind::live || !is_shallow_value(box->value) || Py_REFCNT(box->value) == 1) return true;
  PyObject* copy = PyObject_CallMethod(box->value, "clone", nullptr);
  if (copy == nullptr) return false;
  Py_SETREF(box->value, copy);
  return true;
}

bool register_shallow(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace drust::bind
