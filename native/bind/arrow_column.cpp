#include "bind/arrow_column.hpp"

#include <cstdint>
#include <cstring>
#include <new>
#include <string_view>
#include <vector>

#include "bind/pin.hpp"
#include "bind/python.hpp"

// Arrow's C data interface: https://arrow.apache.org/docs/format/CDataInterface.html. Both structs are its ABI.
extern "C" {
struct ArrowSchema {
  const char* format;
  const char* name;
  const char* metadata;
  std::int64_t flags;
  std::int64_t n_children;
  ArrowSchema** children;
  ArrowSchema* dictionary;
  void (*release)(ArrowSchema*);
  void* private_data;
};

struct ArrowArray {
  std::int64_t length;
  std::int64_t null_count;
  std::int64_t offset;
  std::int64_t n_buffers;
  std::int64_t n_children;
  const void** buffers;
  ArrowArray** children;
  ArrowArray* dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};
}
static_assert(sizeof(ArrowSchema) == 72 && sizeof(ArrowArray) == 80);

namespace drust::bind {
namespace {

constexpr const char* kSchemaName = "arrow_schema";
constexpr const char* kArrayName = "arrow_array";
constexpr std::int64_t kNullsInBuffer = -2;  // as IN_BUFFER of drust/codecs/columns.py: buffer 0 has their number
constexpr std::int64_t kNoBuffer = -1;       // as NO_BUFFER there

PyTypeObject arrow_column_type;

// Nothing changes after it was made: any thread may read what exported arrays point to, which is in here.
struct ColumnObject {
  PyObject_HEAD PyObject* pin;
  PyObject* schema;  // the capsule whose strings the exported schemas share
  std::int64_t length;
  std::int64_t null_count;
  std::vector<const void*> buffers;
  std::vector<std::int64_t> view_bytes;  // of string views: the sizes of the buffers of data
};

ColumnObject* as_column(PyObject* self) { return reinterpret_cast<ColumnObject*>(self); }

// -- layouts -------------------------------------------------------------------------------------------------

bool is_view(std::string_view format) noexcept { return format == "vu" || format == "vz"; }

// Bits of a value in the one buffer of values; 0 for a type that is laid out otherwise.
std::uint64_t value_bits(std::string_view format) noexcept {
  if (format.size() == 1) {
    switch (format[0]) {
      case 'b': return 1;
      case 'c': case 'C': return 8;
      case 's': case 'S': case 'e': return 16;
      case 'i': case 'I': case 'f': return 32;
      case 'l': case 'L': case 'g': return 64;
      default: return 0;
    }
  }
  if (format == "tdD" || format == "tts" || format == "ttm") return 32;
  if (format == "tdm" || format == "ttu" || format == "ttn") return 64;
  return format.starts_with("ts") || format.starts_with("tD") ? 64 : 0;
}

bool refuse(const char* what) {
  PyErr_SetString(PyExc_ValueError, what);
  return false;
}

bool read_places(PyObject* tuple, std::vector<std::int64_t>& places, std::uint32_t buffer_count) {
  if (!PyTuple_CheckExact(tuple) && !PyList_CheckExact(tuple)) return refuse("places is a tuple or a list");
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(tuple);
  for (Py_ssize_t i = 0; i < count; ++i) {
    const std::int64_t place = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(tuple, i));
    if (place == -1 && PyErr_Occurred() != nullptr) return false;
    const bool may_lack = i == 0;
    if (place == kNoBuffer ? !may_lack : place < 0 || place >= buffer_count) {
      return refuse("this block has no such buffer");
    }
    places.push_back(place);
  }
  return true;
}

// Fills in what the exported arrays point to; what a block says of itself is checked against its buffers' sizes.
bool lay_out(ColumnObject* column, std::string_view format, const std::vector<std::int64_t>& places) {
  const heap::Block block = block_of(as_pin(column->pin));
  const bool has_views = is_view(format);
  if (has_views ? places.size() < 2 : places.size() != 2) return refuse("this type has other buffers");
  const auto bytes_at = [&](std::int64_t place) { return block.buffer(static_cast<std::uint32_t>(place)); };
  const auto length = static_cast<std::uint64_t>(column->length);
  if (column->null_count == kNullsInBuffer) {
    if (block.header().buffer_count == 0 || bytes_at(0).size() < sizeof column->null_count) {
      return refuse("this block has no number of nulls");
    }
    std::memcpy(&column->null_count, bytes_at(0).data(), sizeof column->null_count);
  }
  if (column->null_count < 0 || column->null_count > column->length) return refuse("there are more nulls than rows");
  if (column->null_count == 0) {
    column->buffers.push_back(nullptr);
  } else {
    if (places[0] == kNoBuffer || bytes_at(places[0]).size() < (length + 7) / 8) {
      return refuse("validity bits are missing");
    }
    column->buffers.push_back(bytes_at(places[0]).data());
  }
  const std::uint64_t needed = has_views ? 16 * length : (length * value_bits(format) + 7) / 8;
  if (bytes_at(places[1]).size() < needed) return refuse("values are missing");
  for (std::size_t i = 1; i < places.size(); ++i) column->buffers.push_back(bytes_at(places[i]).data());
  if (!has_views) return true;
  for (std::size_t i = 2; i < places.size(); ++i) {
    column->view_bytes.push_back(static_cast<std::int64_t>(bytes_at(places[i]).size()));
  }
  column->buffers.push_back(column->view_bytes.data());
  return true;
}

// -- exporting -----------------------------------------------------------------------------------------------

bool is_finalizing() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Gives up a reference from any thread. When the interpreter ends it is left: nobody could be given the lock.
void drop(PyObject* object) noexcept {
  if (Py_IsInitialized() == 0 || is_finalizing()) return;
  const PyGILState_STATE state = PyGILState_Ensure();
  Py_DECREF(object);
  PyGILState_Release(state);
}

void release_array(ArrowArray* array) {
  array->release = nullptr;
  drop(static_cast<PyObject*>(array->private_data));
}

void release_schema(ArrowSchema* schema) {
  schema->release = nullptr;
  drop(static_cast<PyObject*>(schema->private_data));
}

template <class Struct>
void destroy(PyObject* capsule) {
  auto* held = static_cast<Struct*>(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)));
  if (held->release != nullptr) held->release(held);
  delete held;
}

// A capsule of `made`, which is released if there can be none.
template <class Struct>
Owned in_capsule(Struct made, const char* name) {
  auto* held = new Struct(made);
  Owned capsule(PyCapsule_New(held, name, destroy<Struct>));
  if (!capsule) {
    held->release(held);
    delete held;
  }
  return capsule;
}

PyObject* export_column(PyObject* self, PyObject* const*, Py_ssize_t, PyObject*) {
  ColumnObject* column = as_column(self);
  const auto* source = static_cast<const ArrowSchema*>(PyCapsule_GetPointer(column->schema, kSchemaName));
  if (source == nullptr) return nullptr;
  Owned schema = in_capsule(ArrowSchema{.format = source->format,
                                        .name = source->name,
                                        .metadata = source->metadata,
                                        .flags = source->flags,
                                        .n_children = 0,
                                        .children = nullptr,
                                        .dictionary = nullptr,
                                        .release = release_schema,
                                        .private_data = Py_NewRef(column->schema)},
                            kSchemaName);
  if (!schema) return nullptr;
  const Owned array = in_capsule(ArrowArray{.length = column->length,
                                            .null_count = column->null_count,
                                            .offset = 0,
                                            .n_buffers = static_cast<std::int64_t>(column->buffers.size()),
                                            .n_children = 0,
                                            .buffers = column->buffers.data(),
                                            .children = nullptr,
                                            .dictionary = nullptr,
                                            .release = release_array,
                                            .private_data = Py_NewRef(self)},
                                 kArrayName);
  return array ? PyTuple_Pack(2, schema.get(), array.get()) : nullptr;
}

void dealloc(PyObject* self) {
  ColumnObject* column = as_column(self);
  Py_XDECREF(column->pin);
  Py_XDECREF(column->schema);
  column->buffers.~vector();
  column->view_bytes.~vector();
  PyObject_Free(self);
}

PyMethodDef methods[] = {
    {"__arrow_c_array__", as_method(export_column), METH_FASTCALL | METH_KEYWORDS,
     "__arrow_c_array__(requested_schema=None) -> (schema, array): capsules; the schema is its own, whatever is "
     "requested."},
    kNoMoreMethods,
};

}  // namespace

PyObject* arrow_column(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "arrow_column(schema, length, null_count, places)");
    return nullptr;
  }
  const auto* schema = static_cast<const ArrowSchema*>(PyCapsule_GetPointer(arguments[0], kSchemaName));
  if (schema == nullptr) return nullptr;
  if (schema->release == nullptr) {
    refuse("this schema was released");
    return nullptr;
  }
  const std::string_view format = schema->format;
  const bool has_layout = is_view(format) || value_bits(format) != 0;
  if (!has_layout || schema->dictionary != nullptr) return new_none();
  const std::int64_t length = PyLong_AsLongLong(arguments[1]);
  const std::int64_t null_count = PyLong_AsLongLong(arguments[2]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (!is_mapped(as_pin(self)) || length < 0) {
    refuse("the bytes of this block are not mapped in this process");
    return nullptr;
  }
  std::vector<std::int64_t> places;
  if (!read_places(arguments[3], places, block_of(as_pin(self)).header().buffer_count)) return nullptr;
  ColumnObject* column = PyObject_New(ColumnObject, &arrow_column_type);
  if (column == nullptr) return nullptr;
  column->pin = Py_NewRef(self);
  column->schema = Py_NewRef(arguments[0]);
  column->length = length;
  column->null_count = null_count;
  new (&column->buffers) std::vector<const void*>();
  new (&column->view_bytes) std::vector<std::int64_t>();
  Owned result(as_object(column));
  return lay_out(column, format, places) ? result.release() : nullptr;
}

bool register_arrow_column(PyObject* module) {
  arrow_column_type.tp_name = "drust._core.ArrowColumn";
  arrow_column_type.tp_doc = "A column's block for Arrow's C data interface.";
  arrow_column_type.tp_basicsize = sizeof(ColumnObject);
  arrow_column_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  arrow_column_type.tp_dealloc = dealloc;
  arrow_column_type.tp_methods = methods;
  return add_type(module, arrow_column_type, "ArrowColumn");
}

}  // namespace drust::bind
