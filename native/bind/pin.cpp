#include "bind/pin.hpp"

#include <structmember.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "bind/anchor.hpp"
#include "bind/arrow_column.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"

namespace drust::bind {

PyTypeObject pin_type;

namespace {

PinObject* new_pin(const GlobalPointer& pointer, OnRelease on_release) {
  PinObject* pin = PyObject_New(PinObject, &pin_type);
  if (pin == nullptr) return nullptr;
  pin->weak_references = nullptr;
  pin->pointer = pointer;
  pin->local = {};
  pin->readable = nullptr;
  pin->writable_bytes = nullptr;
  pin->is_made = on_release == OnRelease::free_made;
  pin->runtime = nullptr;
  pin->owner = nullptr;
  pin->holder = nullptr;
  pin->holder_index = 0;
  pin->parts = nullptr;
  pin->origin = nullptr;
  new (&pin->private_block) PrivateBlock();
  pin->copy_entry = 0;
  pin->on_release = on_release;
  pin->is_writable = false;
  return pin;
}

// Colours and places of private blocks: drawn here, never those of a partition. Protected by the interpreter
// lock.
GlobalPointer next_private(std::uint64_t extent_bytes) {
  static std::uint64_t drawn = 0;
  ++drawn;
  return {Address::make(kServersMax - 1, drawn * kGranuleBytes), (0xffffULL << 48) | drawn, extent_bytes};
}

PinObject* new_private(std::size_t extent_bytes, OnRelease on_release) {
  Result<PrivateBlock> mapped = PrivateBlock::map(std::max<std::size_t>(extent_bytes, 1));
  if (!mapped.ok()) {
    set_error(mapped.status());
    return nullptr;
  }
  PinObject* pin = new_pin(next_private(extent_bytes), on_release);
  if (pin == nullptr) {
    mapped.value().unmap();
    return nullptr;
  }
  pin->private_block = mapped.value();
  pin->local = pin->pointer;
  pin->readable = pin->private_block.readable;
  pin->writable_bytes = pin->private_block.writable;
  return pin;
}

// A tied child that somebody else holds (a view of a frame's column) outlives its parent: it is its Pin's.
void leave_viewed_children(PinObject* pin) {
  const bool frees_children = pin->on_release == OnRelease::free_tree || pin->on_release == OnRelease::free_tied;
  if (!frees_children || pin->parts == nullptr || !is_mapped(pin) || pin->runtime == nullptr) return;
  const heap::Block block(pin->writable_bytes);
  const Py_ssize_t count = std::min<Py_ssize_t>(PyTuple_GET_SIZE(pin->parts), block.header().child_count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* part = PyTuple_GET_ITEM(pin->parts, i);
    heap::ChildPointer& child = block.children()[static_cast<std::size_t>(i)];
    if (!is_pin(part) || Py_REFCNT(part) == 1 || (child.flags & heap::ChildPointer::kBorrowed) != 0) continue;
    pin->runtime->heap->set_owner(child.pointer(),
                                  heap::owner_word(heap::OwnerKind::process, pin->runtime->process));
    child.flags |= heap::ChildPointer::kShared;
    as_pin(part)->on_release = OnRelease::free_tree;
  }
}

void dealloc(PyObject* self) {
  PinObject* pin = as_pin(self);
  if (pin->weak_references != nullptr) PyObject_ClearWeakRefs(self);
  Py_CLEAR(pin->origin);
  if (pin->owner == nullptr && current_runtime() != nullptr) leave_viewed_children(pin);
  if (pin->on_release != OnRelease::nothing && pin->owner == nullptr &&
      pin->private_block.mapped_bytes == 0 && current_runtime() != nullptr &&
      (pin->runtime == nullptr || pin->runtime == current_runtime())) {
    release_block(pin->pointer, pin->on_release, pin->copy_entry);
  }
  pin->private_block.unmap();
  Py_XDECREF(pin->parts);
  Py_XDECREF(pin->owner);
  Py_XDECREF(pin->holder);
  PyObject_Free(self);
}

PyObject* no_bytes() {
  PyErr_SetString(PyExc_ValueError, "the bytes of this block are not mapped in this process");
  return nullptr;
}

PyObject* pointer_tuple(const GlobalPointer& p) {
  return Py_BuildValue("(KKK)", static_cast<unsigned long long>(p.address.raw()),
                       static_cast<unsigned long long>(p.colour),
                       static_cast<unsigned long long>(p.extent_bytes));
}

PyObject* get_pointer(PyObject* self, void*) { return pointer_tuple(as_pin(self)->pointer); }

PyObject* get_local(PyObject* self, void*) {
  if (as_pin(self)->readable == nullptr) return new_none();
  return pointer_tuple(as_pin(self)->local);
}

// A field of the block's header, or the error that there is none to look at.
template <class Read>
PyObject* from_block(PyObject* self, Read read) {
  if (!is_mapped(as_pin(self))) return no_bytes();
  return read(block_of(as_pin(self)));
}

PyObject* get_codec(PyObject* self, void*) {
  return from_block(self, [](heap::Block block) { return PyLong_FromUnsignedLong(block.header().codec); });
}

PyObject* get_meta(PyObject* self, void*) {
  return from_block(self, [](heap::Block block) {
    const auto meta = block.meta();
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(meta.data()),
                                     static_cast<Py_ssize_t>(meta.size()));
  });
}

PyObject* tuple_of(const heap::ChildPointer& child) {
  return Py_BuildValue("(KKKK)", static_cast<unsigned long long>(child.address),
                       static_cast<unsigned long long>(child.colour),
                       static_cast<unsigned long long>(child.extent_bytes),
                       static_cast<unsigned long long>(child.flags));
}

// child(index) -> (address, colour, extent_bytes, flags): one of `children`, which makes them all
PyObject* child_at(PyObject* self, PyObject* argument) {
  const std::size_t index = PyLong_AsSize_t(argument);
  if (index == static_cast<std::size_t>(-1) && PyErr_Occurred() != nullptr) return nullptr;
  return from_block(self, [index](heap::Block block) -> PyObject* {
    const auto children = block.children();
    if (index < children.size()) return tuple_of(children[index]);
    return PyErr_Format(PyExc_IndexError, "child %zu of a block that has %zu", index, children.size());
  });
}

PyObject* get_children(PyObject* self, void*) {
  return from_block(self, [](heap::Block block) -> PyObject* {
    const auto children = block.children();
    Owned result(PyTuple_New(static_cast<Py_ssize_t>(children.size())));
    if (!result) return nullptr;
    for (std::size_t i = 0; i < children.size(); ++i) {
      PyObject* item = tuple_of(children[i]);
      if (item == nullptr) return nullptr;
      PyTuple_SET_ITEM(result.get(), static_cast<Py_ssize_t>(i), item);
    }
    return result.release();
  });
}

PyObject* get_buffer_count(PyObject* self, void*) {
  return from_block(self,
                    [](heap::Block block) { return PyLong_FromUnsignedLong(block.header().buffer_count); });
}

PyObject* get_child_count(PyObject* self, void*) {
  return from_block(self,
                    [](heap::Block block) { return PyLong_FromUnsignedLong(block.header().child_count); });
}

PyObject* get_nbytes(PyObject* self, void*) {
  return from_block(
      self, [](heap::Block block) { return PyLong_FromUnsignedLongLong(block.header().value_bytes); });
}

PyObject* get_writable(PyObject* self, void*) { return PyBool_FromLong(as_pin(self)->is_writable ? 1 : 0); }

PyObject* get_on_release(PyObject* self, void*) {
  return PyLong_FromLong(static_cast<long>(as_pin(self)->on_release));
}

PyObject* get_is_made(PyObject* self, void*) { return PyBool_FromLong(as_pin(self)->is_made ? 1 : 0); }

// The caller's variable and the reference this call runs on are not counted.
PyObject* get_references(PyObject* self, void*) { return PyLong_FromSsize_t(Py_REFCNT(self) - 2); }

PyObject* buffer(PyObject* self, PyObject* argument) {
  const PinObject* pin = as_pin(self);
  const unsigned long index = PyLong_AsUnsignedLong(argument);
  if (index == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) return nullptr;
  if (!is_mapped(pin)) return no_bytes();
  if (index >= block_of(pin).header().buffer_count) {
    PyErr_SetString(PyExc_IndexError, "this block has no such buffer");
    return nullptr;
  }
  const auto bytes = heap::Block(bytes_of(pin)).buffer(static_cast<std::uint32_t>(index));
  return make_pin_buffer(self, bytes.data(), bytes.size(), !pin->is_writable);
}

PyObject* disown(PyObject* self, PyObject*) {
  as_pin(self)->on_release = OnRelease::nothing;
  leave_holder(as_pin(self));
  return new_none();
}

PyObject* anchor_method(PyObject* self, PyObject*) {
  if (const Status status = anchor(as_pin(self)); !status.ok()) {
    set_error(status);
    return nullptr;
  }
  return new_none();
}

PyObject* let_go(PyObject* self, PyObject*) {
  disclaim_in_holder(as_pin(self), true);
  return new_none();
}

bool to_release(PyObject* argument, OnRelease& action) {
  const long value = PyLong_AsLong(argument);
  if (value == -1 && PyErr_Occurred() != nullptr) return false;
  if (value < 0 || value > static_cast<long>(OnRelease::free_made)) {
    PyErr_SetString(PyExc_ValueError, "on_release is one of the RELEASE_ constants");
    return false;
  }
  action = static_cast<OnRelease>(value);
  return true;
}

PyObject* set_release(PyObject* self, PyObject* argument) {
  OnRelease action{};
  if (!to_release(argument, action)) return nullptr;
  as_pin(self)->on_release = action;
  if (action == OnRelease::nothing) leave_holder(as_pin(self));
  return new_none();
}

PyObject* viewed_parts(PyObject* self, PyObject*) {
  Owned result(PyList_New(0));
  const PyObject* parts = as_pin(self)->parts;
  for (Py_ssize_t i = 0; result && parts != nullptr && i < PyTuple_GET_SIZE(parts); ++i) {
    if (Py_REFCNT(PyTuple_GET_ITEM(parts, i)) == 1) continue;
    const Owned index(PyLong_FromSsize_t(i));
    if (!index || PyList_Append(result.get(), index.get()) != 0) return nullptr;
  }
  return result.release();
}

PyObject* as_writable(PyObject* self, PyObject*) { return make_writable_sibling(as_pin(self)); }

PyObject* hold(PyObject*, PyObject* arguments) {
  unsigned long long address = 0;
  unsigned long long colour = 0;
  unsigned long long extent_bytes = 0;
  PyObject* action_object = nullptr;
  PyObject* holder = Py_None;
  unsigned int index = 0;
  if (PyArg_ParseTuple(arguments, "(KKK)O|OI:hold", &address, &colour, &extent_bytes, &action_object, &holder,
                       &index) == 0) {
    return nullptr;
  }
  OnRelease action{};
  if (!to_release(action_object, action)) return nullptr;
  PyObject* pin = make_hold({Address(address), colour, extent_bytes}, action);
  if (pin == nullptr || holder == Py_None) return pin;
  if (!is_pin(holder) || !is_mapped(as_pin(holder)) || index >= block_of(as_pin(holder)).header().child_count) {
    Py_DECREF(pin);
    PyErr_SetString(PyExc_ValueError, "the holder is no mapped block with such a child");
    return nullptr;
  }
  as_pin(pin)->holder = Py_NewRef(holder);
  as_pin(pin)->holder_index = index;
  // A lend's new version was nobody's on its way: now this table owns it. What a borrower takes stays marked as a
  // version, which goes without the children that it shares with its pre-image.
  if (action != OnRelease::free_made) heap::Block(as_pin(holder)->writable_bytes).children()[index].flags &= ~heap::ChildPointer::kBorrowed;
  return pin;
}

PyObject* private_pin(PyObject*, PyObject* arguments) {
  unsigned int codec = 0;
  PyObject* meta = nullptr;
  PyObject* sizes = nullptr;
  if (PyArg_ParseTuple(arguments, "ISO!:private", &codec, &meta, &PyList_Type, &sizes) == 0) return nullptr;
  const auto meta_bytes = static_cast<std::size_t>(PyBytes_GET_SIZE(meta));
  std::vector<std::uint64_t> buffer_bytes;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(sizes); ++i) {
    buffer_bytes.push_back(PyLong_AsUnsignedLongLong(PyList_GET_ITEM(sizes, i)));
    if (PyErr_Occurred() != nullptr) return nullptr;
  }
  const heap::BlockShape shape{
      .codec = codec, .meta_bytes = static_cast<std::uint32_t>(meta_bytes), .buffer_bytes = buffer_bytes};
  PinObject* pin = new_private(shape.extent_bytes(), OnRelease::nothing);
  if (pin == nullptr) return nullptr;
  const heap::Block block(pin->writable_bytes);
  block.lay_out(shape);
  if (meta_bytes != 0) std::memcpy(block.meta().data(), PyBytes_AS_STRING(meta), meta_bytes);
  return as_object(pin);
}

PyObject* get_parts(PyObject* self, void*) {
  return Py_NewRef(as_pin(self)->parts == nullptr ? Py_None : as_pin(self)->parts);
}

int set_parts(PyObject* self, PyObject* value, void*) {
  if (value != Py_None && (value == nullptr || !PyTuple_CheckExact(value))) {
    PyErr_SetString(PyExc_TypeError, "parts is a tuple of Pins, or None");
    return -1;
  }
  Py_XSETREF(as_pin(self)->parts, value == Py_None ? nullptr : Py_NewRef(value));
  return 0;
}

PyObject* get_origin(PyObject* self, void*) {
  return Py_NewRef(as_pin(self)->origin == nullptr ? Py_None : as_pin(self)->origin);
}

int set_origin(PyObject* self, PyObject* value, void*) {
  Py_XSETREF(as_pin(self)->origin, value == nullptr || value == Py_None ? nullptr : Py_NewRef(value));
  return 0;
}

PyObject* repr(PyObject* self) {
  const PinObject* pin = as_pin(self);
  char text[160];  // Python 3.11 formats no 64-bit number in hexadecimal itself
  std::snprintf(text, sizeof text, "<Pin server %u, offset %llu, colour %llx, %llu bytes%s>",
                static_cast<unsigned>(pin->pointer.address.server()),
                static_cast<unsigned long long>(pin->pointer.address.offset_bytes()),
                static_cast<unsigned long long>(pin->pointer.colour),
                static_cast<unsigned long long>(pin->pointer.extent_bytes), pin->is_writable ? ", writable" : "");
  return PyUnicode_FromString(text);
}

PyMethodDef methods[] = {
    {"buffer", buffer, METH_O, "buffer(index) -> PinBuffer: the bytes of one buffer; keeps this Pin alive."},
    {"child", child_at, METH_O, "child(index) -> (address, colour, extent_bytes, flags): one of `children`."},
    {"disown", disown, METH_NOARGS, "The block went elsewhere: do nothing when this Pin dies."},
    {"anchor", anchor_method, METH_NOARGS,
     "What it owns on another server is named by a small block here, which frees it if this process dies; nothing if "
     "a block names it already."},
    {"let_go", let_go, METH_NOARGS,
     "Another block owns it from now on, not the one that it came in, which names it still: disown() follows, or the "
     "Box has it back."},
    {"set_release", set_release, METH_O,
     "set_release(action): what the death of this Pin does, a RELEASE_ constant."},
    {"viewed_parts", viewed_parts, METH_NOARGS,
     "viewed_parts() -> list: which of `parts` somebody holds beside this Pin: views of this process, if the "
     "caller holds none."},
    {"as_writable", as_writable, METH_NOARGS,
     "A Pin of the same block through the writable mapping; keeps this one."},
    {"arrow_column", as_method(arrow_column), METH_FASTCALL,
     "arrow_column(schema, node) -> ArrowColumn: its bytes for any Arrow library; keeps this Pin alive. `node` says "
     "how they lie: length, nulls (-2: the number stands in buffer 0), places of the buffers, children likewise."},
    {"hold", hold, METH_VARARGS | METH_STATIC,
     "hold(pointer, on_release, holder=None, index=0) -> Pin: ownership of a block whose bytes are not mapped "
     "here; it stands in the child table of `holder`, which frees it if this process dies."},
    {"private", private_pin, METH_VARARGS | METH_STATIC,
     "private(codec, meta, buffer_bytes) -> Pin: a block outside any partition, for use without a server."},
    kNoMoreMethods,
};

PyGetSetDef getters[] = {
    {"pointer", get_pointer, nullptr, "(address, colour, extent_bytes) of the version it names.", nullptr},
    {"local", get_local, nullptr, "Where its bytes are in this partition, or None.", nullptr},
    {"codec", get_codec, nullptr, "The number of the codec that wrote it.", nullptr},
    {"meta", get_meta, nullptr, "The codec's metadata.", nullptr},
    {"children", get_children, nullptr, "The child pointers: (address, colour, extent_bytes, flags) each.",
     nullptr},
    {"child_count", get_child_count, nullptr, "How many children it has.", nullptr},
    {"buffer_count", get_buffer_count, nullptr, "How many buffers it has.", nullptr},
    {"nbytes", get_nbytes, nullptr, "Bytes of all buffers.", nullptr},
    {"writable", get_writable, nullptr, "Whether its buffers may be written.", nullptr},
    {"on_release", get_on_release, nullptr, "What the death of this Pin does, a RELEASE_ constant.", nullptr},
    {"is_made", get_is_made, nullptr, "Whether it is a version of a task below, on another server.", nullptr},
    {"parts", get_parts, set_parts,
     "The Pins of its tied children that this process has, in their order; or None.", nullptr},
    {"origin", get_origin, set_origin, "What its codec remembers beside it, until the Pin dies; or None.",
     nullptr},
    {"references", get_references, nullptr, "Strong references beyond the caller's one variable.", nullptr},
    kNoMoreGetSets,
};

}  // namespace

PyObject* make_pin(const GlobalPointer& pointer, const GlobalPointer& local, bool writable,
                   OnRelease on_release, std::uint32_t copy_entry) {
  Runtime* runtime = current_runtime();
  if (runtime == nullptr) {
    set_error(Status(Code::closed, "this process is not attached to a drust server"));
    return nullptr;
  }
  PinObject* pin = new_pin(pointer, on_release);
  if (pin == nullptr) return nullptr;
  pin->local = local;
  pin->runtime = runtime;
  pin->readable = runtime->partition->readable(local.address.offset_bytes());
  // A copy is shared by the host under a colour that others trust: nobody may write it.
  if (on_release != OnRelease::release_copy) {
    pin->writable_bytes = runtime->partition->writable(local.address.offset_bytes());
  }
  pin->copy_entry = copy_entry;
  pin->is_writable = writable && pin->writable_bytes != nullptr;
  return as_object(pin);
}

PyObject* make_hold(const GlobalPointer& pointer, OnRelease on_release) {
  PinObject* pin = new_pin(pointer, on_release);
  if (pin != nullptr) pin->runtime = current_runtime();
  return as_object(pin);
}

void disclaim_in_holder(PinObject* pin, bool disclaims) noexcept {
  const PinObject* holder = as_pin(pin->holder);
  if (holder == nullptr || !is_mapped(holder) || holder->writable_bytes == nullptr) return;
  std::uint64_t& flags = heap::Block(holder->writable_bytes).children()[pin->holder_index].flags;
  flags = disclaims ? flags | heap::ChildPointer::kShared : flags & ~heap::ChildPointer::kShared;
}

void leave_holder(PinObject* pin) noexcept {
  disclaim_in_holder(pin, true);
  Py_CLEAR(pin->holder);
}

PyObject* make_writable_sibling(PinObject* pin) {
  if (!is_mapped(pin)) return no_bytes();
  if (pin->writable_bytes == nullptr) {
    PyErr_SetString(PyExc_ValueError, "this is a copy of a block elsewhere: it cannot be written");
    return nullptr;
  }
  PinObject* sibling = new_pin(pin->pointer, OnRelease::nothing);
  if (sibling == nullptr) return nullptr;
  sibling->local = pin->local;
  sibling->readable = pin->readable;
  sibling->writable_bytes = pin->writable_bytes;
  sibling->runtime = pin->runtime;
  sibling->is_writable = true;
  sibling->owner = Py_NewRef(as_object(pin));
  return as_object(sibling);
}

PyObject* duplicate_pin(PinObject* pin, bool lent) {
  if (!is_mapped(pin)) return no_bytes();
  const OnRelease action =
      pin->on_release == OnRelease::free_shallow ? OnRelease::free_shallow : OnRelease::free_tree;
  const auto bytes = static_cast<std::size_t>(pin->local.extent_bytes);
  if (pin->runtime == nullptr) {
    PinObject* copy = new_private(bytes, OnRelease::nothing);
    if (copy != nullptr) std::memcpy(copy->writable_bytes, pin->readable, bytes);
    return as_object(copy);
  }
  Result<GlobalPointer> copied = [&] {
    Unlocked unlocked(bytes >= kWorthUnlockingBytes);
    return pin->runtime->heap->duplicate(pin->local, lent);
  }();
  if (!copied.ok()) {
    set_error(copied.status());
    return nullptr;
  }
  // What is lent here keeps its tied children, whatever becomes of the copy.
  if (pin->on_release == OnRelease::nothing) pin->runtime->heap->disclaim_tied(copied.value());
  return make_pin(copied.value(), copied.value(), false, action, 0);
}

bool recolour_pin(PinObject* pin) {
  if (pin->runtime == nullptr) {
    pin->pointer.colour = next_private(0).colour;
    pin->local = pin->pointer;
    return true;
  }
  if (!is_mapped(pin)) {
    no_bytes();
    return false;
  }
  Result<GlobalPointer> fresh = pin->runtime->heap->recolour(pin->local);
  if (!fresh.ok()) {
    set_error(fresh.status());
    return false;
  }
  pin->pointer = fresh.value();
  pin->local = fresh.value();
  return true;
}

bool register_pin(PyObject* module) {
  pin_type.tp_name = "drust._core.Pin";
  pin_type.tp_doc = "This process's hold on one version of one block.";
  pin_type.tp_basicsize = sizeof(PinObject);
  pin_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  pin_type.tp_dealloc = dealloc;
  pin_type.tp_repr = repr;
  pin_type.tp_methods = methods;
  pin_type.tp_getset = getters;
  pin_type.tp_weaklistoffset = offsetof(PinObject, weak_references);
  if (!add_type(module, pin_type, "Pin")) return false;
  return PyModule_AddIntConstant(module, "RELEASE_NOTHING", static_cast<long>(OnRelease::nothing)) == 0 &&
         PyModule_AddIntConstant(module, "RELEASE_FREE_TREE", static_cast<long>(OnRelease::free_tree)) == 0 &&
         PyModule_AddIntConstant(module, "RELEASE_FREE_SHALLOW",
                                 static_cast<long>(OnRelease::free_shallow)) == 0 &&
         PyModule_AddIntConstant(module, "RELEASE_COPY", static_cast<long>(OnRelease::release_copy)) == 0 &&
         PyModule_AddIntConstant(module, "RELEASE_FREE_TIED", static_cast<long>(OnRelease::free_tied)) == 0 &&
         PyModule_AddIntConstant(module, "RELEASE_FREE_MADE", static_cast<long>(OnRelease::free_made)) == 0;
}

}  // namespace drust::bind
