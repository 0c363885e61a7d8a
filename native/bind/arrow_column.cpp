#include "bind/arrow_column.hpp"

#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "bind/arrow_layout.hpp"
#include "bind/pin.hpp"
#include "bind/python.hpp"

namespace drust::bind {
namespace {

constexpr const char* kSchemaName = "arrow_schema";
constexpr const char* kArrayName = "arrow_array";

PyTypeObject arrow_column_type;

// Nothing changes after it was made: any thread may read what exported arrays point to, which is in here.
struct ColumnObject {
  PyObject_HEAD PyObject* pin;
  PyObject* schema;  // the capsule whose strings the exported schemas share
  Layout layout;
};

ColumnObject* as_column(PyObject* self) { return reinterpret_cast<ColumnObject*>(self); }

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

// What an exported struct owns: a reference, and its children, which an importer may move away one by one.
template <class Struct>
struct Family {
  PyObject* owner;
  std::vector<Struct> children;
  std::vector<Struct*> pointers;

  explicit Family(PyObject* owner_) : owner(Py_NewRef(owner_)) {}
};

template <class Struct>
void release(Struct* exported) {
  auto* family = static_cast<Family<Struct>*>(exported->private_data);
  exported->release = nullptr;
  for (Struct& child : family->children) {
    if (child.release != nullptr) child.release(&child);
  }
  drop(family->owner);
  delete family;
}

ArrowSchema export_schema(const ArrowSchema& source, PyObject* owner) {
  auto* family = new Family<ArrowSchema>(owner);
  for (std::int64_t i = 0; i < source.n_children; ++i) {
    family->children.push_back(export_schema(*source.children[i], owner));
  }
  for (ArrowSchema& child : family->children) family->pointers.push_back(&child);
  return {.format = source.format,
          .name = source.name,
          .metadata = source.metadata,
          .flags = source.flags,
          .n_children = source.n_children,
          .children = family->pointers.data(),
          .dictionary = nullptr,
          .release = release<ArrowSchema>,
          .private_data = family};
}

ArrowArray export_array(Layout& layout, PyObject* owner) {
  auto* family = new Family<ArrowArray>(owner);
  for (Layout& child : layout.children) family->children.push_back(export_array(child, owner));
  for (ArrowArray& child : family->children) family->pointers.push_back(&child);
  return {.length = layout.length,
          .null_count = layout.null_count,
          .offset = 0,
          .n_buffers = static_cast<std::int64_t>(layout.buffers.size()),
          .n_children = static_cast<std::int64_t>(family->children.size()),
          .buffers = layout.buffers.data(),
          .children = family->pointers.data(),
          .dictionary = nullptr,
          .release = release<ArrowArray>,
          .private_data = family};
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
  const Owned schema = in_capsule(export_schema(*source, column->schema), kSchemaName);
  if (!schema) return nullptr;
  const Owned array = in_capsule(export_array(column->layout, self), kArrayName);
  return array ? PyTuple_Pack(2, schema.get(), array.get()) : nullptr;
}

void dealloc(PyObject* self) {
  ColumnObject* column = as_column(self);
  Py_XDECREF(column->pin);
  Py_XDECREF(column->schema);
  column->layout.~Layout();
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
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "arrow_column(schema, node)");
    return nullptr;
  }
  const auto* schema = static_cast<const ArrowSchema*>(PyCapsule_GetPointer(arguments[0], kSchemaName));
  if (schema == nullptr) return nullptr;
  if (schema->release == nullptr || !is_mapped(as_pin(self))) {
    PyErr_SetString(PyExc_ValueError, "the schema was released, or the block is not mapped in this process");
    return nullptr;
  }
  Layout layout;
  if (!read_layout(as_pin(self), *schema, arguments[1], layout)) return nullptr;
  ColumnObject* column = PyObject_New(ColumnObject, &arrow_column_type);
  if (column == nullptr) return nullptr;
  column->pin = Py_NewRef(self);
  column->schema = Py_NewRef(arguments[0]);
  new (&column->layout) Layout(std::move(layout));
  return as_object(column);
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
