#include "bind/revoke.hpp"

#include <new>

#include "bind/hooks.hpp"
#include "bind/numpy_api.hpp"
#include "bind/pin.hpp"
#include "bind/python.hpp"

namespace drust::bind {

PyTypeObject revoked_type;

namespace {

PinBufferObject* exporter_of(PyObject* array) noexcept {
  PyObject* parent = fields_of(array)->base;
  return reinterpret_cast<PinBufferObject*>(fields_of(parent)->base);
}

EndNote* note_of(PyObject* array) noexcept {
  return reinterpret_cast<EndNote*>(fields_of(array)->mem_handler);
}

void dealloc(PyObject* self) {
  restore(self);
  PyArray_Type.tp_dealloc(self);
}

PyObject* refuse(PyObject* self) {
  const EndNote* note = note_of(self);
  Owned place(text_of(note->site));
  if (!place) return nullptr;
  Owned message(PyUnicode_FromFormat(
      "this array belongs to a %s borrow that ended at %U; inside the block, .copy() makes one that lasts",
      note->was_mutable ? "mutable" : "shared", place.get()));
  Owned fields(Py_BuildValue(
      "{s:O,s:i}", "file",
      note->site.code == nullptr ? Py_None : reinterpret_cast<PyCodeObject*>(note->site.code)->co_filename,
      "line", line_of(note->site)));
  return fields ? set_conflict(nullptr, "revoked", message.get(), fields.get()) : nullptr;
}

PyObject* repr(PyObject* self) {
  Owned place(text_of(note_of(self)->site));
  return place ? PyUnicode_FromFormat("<revoked array: its borrow ended at %U>", place.get()) : nullptr;
}

// One refusing function for each signature that a slot can have.
int refuse_int(PyObject* self) {
  refuse(self);
  return -1;
}
Py_ssize_t refuse_size(PyObject* self) {
  refuse(self);
  return -1;
}
Py_hash_t refuse_hash(PyObject* self) {
  refuse(self);
  return -1;
}
PyObject* refuse_item(PyObject* self, Py_ssize_t) { return refuse(self); }
PyObject* refuse_method(PyObject* self, PyObject*, PyObject*) { return refuse(self); }
int refuse_contains(PyObject* self, PyObject*) {
  refuse(self);
  return -1;
}
int refuse_set(PyObject* self, PyObject*, PyObject*) {
  refuse(self);
  return -1;
}
int refuse_buffer(PyObject* self, Py_buffer* view, int) {
  view->obj = nullptr;
  refuse(self);
  return -1;
}
PyObject* refuse_get(PyObject* self, PyObject*) { return refuse(self); }
PyObject* refuse_compare(PyObject* self, PyObject*, int) { return refuse(self); }
// Either operand may be the revoked one.
PyObject* refuse_binary(PyObject* left, PyObject* right) { return refuse(is_revoked(left) ? left : right); }
PyObject* refuse_power(PyObject* base, PyObject* exponent, PyObject* modulus) {
  return refuse(is_revoked(base) ? base : is_revoked(exponent) ? exponent : modulus);
}

// isinstance() and reprs of containers ask for the class; everything else is refused.
PyObject* get_attribute(PyObject* self, PyObject* name) {
  if (PyUnicode_CompareWithASCIIString(name, "__class__") == 0) return PyObject_GenericGetAttr(self, name);
  return refuse(self);
}

// Found on the type, where numpy, copy and pickle look.
PyMethodDef methods[] = {
    {"__array__", as_method(refuse_method), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"__array_ufunc__", as_method(refuse_method), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"__array_function__", as_method(refuse_method), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"__copy__", as_method(refuse_method), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"__deepcopy__", as_method(refuse_method), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"__reduce__", as_method(refuse_method), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"__reduce_ex__", as_method(refuse_method), METH_VARARGS | METH_KEYWORDS, nullptr},
    kNoMoreMethods,
};

PyNumberMethods as_number;
PySequenceMethods as_sequence;
PyMappingMethods as_mapping;
PyBufferProcs as_exporter;

void fill_protocols() {
  for (binaryfunc* slot : {&as_number.nb_add,
                           &as_number.nb_subtract,
                           &as_number.nb_multiply,
                           &as_number.nb_remainder,
                           &as_number.nb_divmod,
                           &as_number.nb_lshift,
                           &as_number.nb_rshift,
                           &as_number.nb_and,
                           &as_number.nb_xor,
                           &as_number.nb_or,
                           &as_number.nb_floor_divide,
                           &as_number.nb_true_divide,
                           &as_number.nb_matrix_multiply,
                           &as_number.nb_inplace_add,
                           &as_number.nb_inplace_subtract,
                           &as_number.nb_inplace_multiply,
                           &as_number.nb_inplace_remainder,
                           &as_number.nb_inplace_lshift,
                           &as_number.nb_inplace_rshift,
                           &as_number.nb_inplace_and,
                           &as_number.nb_inplace_xor,
                           &as_number.nb_inplace_or,
                           &as_number.nb_inplace_floor_divide,
                           &as_number.nb_inplace_true_divide,
                           &as_number.nb_inplace_matrix_multiply}) {
    *slot = refuse_binary;
  }
  for (unaryfunc* slot :
       {&as_number.nb_negative, &as_number.nb_positive, &as_number.nb_absolute, &as_number.nb_invert,
        &as_number.nb_int, &as_number.nb_float, &as_number.nb_index}) {
    *slot = refuse;
  }
  as_number.nb_power = refuse_power;
  as_number.nb_inplace_power = refuse_power;
  as_number.nb_bool = refuse_int;
  as_sequence.sq_length = refuse_size;
  as_sequence.sq_item = refuse_item;
  as_sequence.sq_contains = refuse_contains;
  as_mapping.mp_length = refuse_size;
  as_mapping.mp_subscript = refuse_get;
  as_mapping.mp_ass_subscript = refuse_set;
  as_exporter.bf_getbuffer = refuse_buffer;
}

}  // namespace

EndNote* make_note(const Site& site, bool was_mutable) {
  return new (std::nothrow) EndNote{1, site.share(), was_mutable};
}

void drop_note(EndNote* note) noexcept {
  if (note == nullptr || --note->references != 0) return;
  note->site.clear();
  delete note;
}

void revoke(PyObject* array, EndNote* note) noexcept {
  ++note->references;
  fields_of(array)->mem_handler = reinterpret_cast<PyObject*>(note);
  ++exporter_of(array)->revoked;
  Py_SET_TYPE(array, &revoked_type);
}

void restore(PyObject* array) noexcept {
  Py_SET_TYPE(array, &PyArray_Type);
  --exporter_of(array)->revoked;
  EndNote* note = note_of(array);
  fields_of(array)->mem_handler = nullptr;
  drop_note(note);
}

bool register_revoked(PyObject* module) {
  if (PyArray_Type.tp_basicsize < static_cast<Py_ssize_t>(sizeof(PyArrayObject_fields))) {
    PyErr_SetString(PyExc_ImportError, "this numpy's arrays are smaller than those drust was built for");
    return false;
  }
  fill_protocols();
  revoked_type.tp_name = "drust._core.RevokedArray";
  revoked_type.tp_doc = "An array whose borrow has ended.";
  revoked_type.tp_basicsize = PyArray_Type.tp_basicsize;
  revoked_type.tp_weaklistoffset = PyArray_Type.tp_weaklistoffset;  // weak references made before live on
  revoked_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  revoked_type.tp_dealloc = dealloc;
  revoked_type.tp_repr = repr;
  revoked_type.tp_str = repr;
  revoked_type.tp_hash = refuse_hash;
  revoked_type.tp_getattro = get_attribute;
  revoked_type.tp_setattro = refuse_set;
  revoked_type.tp_richcompare = refuse_compare;
  revoked_type.tp_iter = refuse;
  revoked_type.tp_as_number = &as_number;
  revoked_type.tp_as_sequence = &as_sequence;
  revoked_type.tp_as_mapping = &as_mapping;
  revoked_type.tp_as_buffer = &as_exporter;
  revoked_type.tp_methods = methods;
  return add_type(module, revoked_type, "RevokedArray");
}

}  // namespace drust::bind
