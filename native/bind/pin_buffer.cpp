// PinBuffer: exports the bytes of a block. The array built on it has it as its base, and so the Pin lives as
// long.
#include "bind/pin.hpp"
#include "bind/python.hpp"

namespace drust::bind {

PyTypeObject pin_buffer_type;

namespace {

PinBufferObject* as_buffer(PyObject* self) { return reinterpret_cast<PinBufferObject*>(self); }

void dealloc(PyObject* self) {
  Py_XDECREF(as_buffer(self)->keep);
  PyObject_Free(self);
}

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  PinBufferObject* buffer = as_buffer(self);
  return PyBuffer_FillInfo(view, self, buffer->data, buffer->bytes, buffer->is_readonly ? 1 : 0, flags);
}

Py_ssize_t length(PyObject* self) { return as_buffer(self)->bytes; }

PyObject* get_pin(PyObject* self, void*) { return Py_NewRef(as_buffer(self)->keep); }
PyObject* get_readonly(PyObject* self, void*) {
  return PyBool_FromLong(as_buffer(self)->is_readonly ? 1 : 0);
}

PyObject* repr(PyObject* self) {
  return PyUnicode_FromFormat("<PinBuffer of %zd bytes%s>", as_buffer(self)->bytes,
                              as_buffer(self)->is_readonly ? ", read-only" : "");
}

PyGetSetDef getters[] = {
    {"pin", get_pin, nullptr, "The Pin it keeps alive.", nullptr},
    {"readonly", get_readonly, nullptr, "Whether its bytes are page-protected.", nullptr},
    kNoMoreGetSets,
};

PyBufferProcs as_exporter = {get_buffer, nullptr};
PySequenceMethods as_sequence;

}  // namespace

PyObject* make_pin_buffer(PyObject* keep, std::byte* data, std::size_t bytes, bool readonly) {
  PinBufferObject* buffer = PyObject_New(PinBufferObject, &pin_buffer_type);
  if (buffer == nullptr) return nullptr;
  buffer->keep = Py_NewRef(keep);
  buffer->data = data;
  buffer->bytes = static_cast<Py_ssize_t>(bytes);
  buffer->revoked = 0;
  buffer->is_readonly = readonly;
  return as_object(buffer);
}

bool register_pin_buffer(PyObject* module) {
  as_sequence.sq_length = length;
  pin_buffer_type.tp_name = "drust._core.PinBuffer";
  pin_buffer_type.tp_doc = "The bytes of one buffer of a block.";
  pin_buffer_type.tp_basicsize = sizeof(PinBufferObject);
  pin_buffer_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  pin_buffer_type.tp_dealloc = dealloc;
  pin_buffer_type.tp_repr = repr;
  pin_buffer_type.tp_getset = getters;
  pin_buffer_type.tp_as_sequence = &as_sequence;
  pin_buffer_type.tp_as_buffer = &as_exporter;
  return add_type(module, pin_buffer_type, "PinBuffer");
}

}  // namespace drust::bind
