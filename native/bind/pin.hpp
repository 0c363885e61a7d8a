// Pin: this process's hold on one version of one block. PinBuffer: its bytes for Python's buffer protocol.
//
//     ndarray -> PinBuffer -> Pin (writable mapping) -> Pin (owns the block) -> what to do at the end
//
// As long as an array, a memoryview or an Arrow buffer made from it lives, the version's bytes stay; the last
// one to die frees the block, or gives the copy back, or does nothing, as `on_release` says. A parent that is
// freed leaves those of its tied children to their Pins that somebody still looks at. A Pin outlives
// close() and fork() harmlessly: release_block() is asked only while the runtime that made it is the current
// one. Rejected: one Pin per mapping of a block, each an owner (who frees?); a writable Pin keeps its owner
// instead.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>

#include "base/address.hpp"
#include "bind/private_block.hpp"
#include "bind/runtime.hpp"
#include "heap/block.hpp"

namespace drust::bind {

// All members are protected by the interpreter lock.
struct PinObject {
  PyObject_HEAD PyObject* weak_references;
  GlobalPointer pointer;      // the version it names
  GlobalPointer local;        // where its bytes are in this partition; null when they are not here
  std::byte* readable;        // through the page-protected mapping; null when the bytes are not here
  std::byte* writable_bytes;  // through the writable mapping; null when they may not be written
  Runtime* runtime;           // whose mappings those are; null for a private block
  PyObject* owner;            // the Pin a writable sibling keeps alive
  PyObject* holder;           // the Pin of the block here in whose child table this remote block stands, or null:
  std::uint32_t holder_index;  // if this process dies, the holder's end frees it
  PyObject* parts;            // tuple of the Pins of its tied children, as far as this process has them; or null
  PyObject* origin;           // what drust.frames remembers of where they came from, or null
  PrivateBlock private_block;
  std::uint32_t copy_entry;
  OnRelease on_release;
  bool is_made;      // a version that a task below this one made, on another server: what its pre-image owns too stays
  bool is_writable;  // buffers of this Pin are writable
};

// The hold of an exporter's bytes. `revoked` counts the arrays over it that a finished borrow has revoked:
// what is left of the hidden parent's references are the views that escaped.
struct PinBufferObject {
  PyObject_HEAD PyObject* keep;  // the Pin
  std::byte* data;
  Py_ssize_t bytes;
  Py_ssize_t revoked;
  bool is_readonly;
};

extern PyTypeObject pin_type;
extern PyTypeObject pin_buffer_type;

[[nodiscard]] inline bool is_pin(PyObject* object) noexcept { return Py_TYPE(object) == &pin_type; }
[[nodiscard]] inline PinObject* as_pin(PyObject* object) noexcept {
  return reinterpret_cast<PinObject*>(object);
}
[[nodiscard]] inline bool is_pin_buffer(PyObject* object) noexcept {
  return Py_TYPE(object) == &pin_buffer_type;
}

// A Pin of `pointer` whose bytes lie at `local` in the current runtime's partition. New reference, or null
// with an error.
[[nodiscard]] PyObject* make_pin(const GlobalPointer& pointer, const GlobalPointer& local, bool writable,
                                 OnRelease on_release, std::uint32_t copy_entry);
// Ownership of a block whose bytes are not mapped here (it is on another server).
[[nodiscard]] PyObject* make_hold(const GlobalPointer& pointer, OnRelease on_release);
// What the end of a Pin does that owns its block and what that owns.
[[nodiscard]] inline OnRelease own_release(const PinObject* pin) noexcept {
  return pin->is_made ? OnRelease::free_made : OnRelease::free_tree;
}
// This process gives the block up: the holder's child table does not own it any more.
void leave_holder(PinObject* pin) noexcept;
// Whether its holder names it only, and another block owns it meanwhile.
void disclaim_in_holder(PinObject* pin, bool disclaims) noexcept;
// The same block through the writable mapping; keeps `pin` alive and frees nothing itself.
[[nodiscard]] PyObject* make_writable_sibling(PinObject* pin);
// A byte-for-byte copy in a new block, in the same partition (or private, like the original), that frees what
// `pin` would. `lent`: the original is the pre-image of what a task was lent.
[[nodiscard]] PyObject* duplicate_pin(PinObject* pin, bool lent);
// A fresh colour for a block that was written in place.
[[nodiscard]] bool recolour_pin(PinObject* pin);

// False when the mapping behind it must not be touched: after close(), in a forked child, or when it is
// elsewhere.
[[nodiscard]] inline bool is_mapped(const PinObject* pin) noexcept {
  return pin->readable != nullptr && (pin->runtime == nullptr || pin->runtime == current_runtime());
}
[[nodiscard]] inline std::byte* bytes_of(const PinObject* pin) noexcept {
  return pin->is_writable ? pin->writable_bytes : pin->readable;
}
[[nodiscard]] inline heap::Block block_of(const PinObject* pin) noexcept {
  return heap::Block(pin->readable);
}

// The exporter of `bytes` at `data`, which `keep` keeps alive.
[[nodiscard]] PyObject* make_pin_buffer(PyObject* keep, std::byte* data, std::size_t bytes, bool readonly);

[[nodiscard]] bool register_pin(PyObject* module);
[[nodiscard]] bool register_pin_buffer(PyObject* module);

}  // namespace drust::bind
