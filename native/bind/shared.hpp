// Handles of shared objects in this process: the C type that all of them derive from, and what their files share.
//
// A handle has one hold (heap/shared.hpp), through a Pin that frees it. A process has one handle of each object of
// its own host, whatever way it came: what it knows of the object (who of its threads has the lock, the decoded
// value) is there once. Of an object of another server it may have several, one for each hold that came.
//
// The classes that people see are Python's (drust.sync), derived from these: everything that may wait, encode or
// raise is there; a step at an object of this host is here, one C call and a few atomics.
#pragma once

#include <Python.h>

#include <array>
#include <cstdint>
#include <vector>

#include "base/address.hpp"
#include "bind/pin.hpp"
#include "bind/runtime.hpp"
#include "sync/object.hpp"

namespace drust::bind {

// All members are protected by the interpreter lock.
struct SharedObject {
  PyObject_HEAD PyObject* weak_references;
  PyObject* pin;          // of the hold
  GlobalPointer object;   // null if it is on another server
  heap::SharedLife* life;  // likewise: the object's words, through the writable mapping
  Runtime* runtime;       // that made it; another one is current after a shutdown, none in a forked child
  sync::Kind kind;
  std::uint32_t role;
  std::uint32_t epoch;    // of the process that made it (box.hpp)
};

extern PyTypeObject shared_type;

[[nodiscard]] inline SharedObject* as_shared(PyObject* object) noexcept {
  return reinterpret_cast<SharedObject*>(object);
}
[[nodiscard]] inline bool is_usable(const SharedObject* shared) noexcept {
  return shared->runtime == current_runtime() && shared->pin != nullptr;
}
// The error why it is not. Null.
PyObject* refuse_unusable(const SharedObject* shared);

template <class Words>
[[nodiscard]] Words* words_of(const SharedObject* shared) noexcept {
  return reinterpret_cast<Words*>(shared->life);
}
[[nodiscard]] inline GlobalPointer hold_of(const SharedObject* shared) noexcept { return as_pin(shared->pin)->pointer; }
[[nodiscard]] inline sync::Who self_of(const SharedObject* shared) noexcept {
  return sync::Who::make(shared->runtime->partition->server(), shared->runtime->process);
}

// A new handle of class `type` (derived from shared_type) for a local object with its first hold.
[[nodiscard]] PyObject* make_handle(PyTypeObject* type, sync::Kind kind, const GlobalPointer& object,
                                    const GlobalPointer& hold, std::uint32_t role);
// One step at an object of another server, without the interpreter lock. False with an error set.
[[nodiscard]] bool call_home(const SharedObject* shared, wire::SharedVerb verb,
                             const std::array<std::uint64_t, 4>& operands, const GlobalPointer& body,
                             std::array<std::uint64_t, 3>& reply, std::vector<std::byte>& bytes);
// Frees what the base type holds: at the end of every dealloc.
void drop_handle(SharedObject* shared) noexcept;

// Seconds, or -1 for None: at most that long. False with an error set.
[[nodiscard]] bool to_timeout(PyObject* argument, double& timeout_s);

[[nodiscard]] bool register_shared(PyObject* module);
[[nodiscard]] bool register_atomic(PyObject* module);
[[nodiscard]] bool register_lock(PyObject* module);
[[nodiscard]] bool register_channel(PyObject* module);
[[nodiscard]] bool register_dict(PyObject* module);
[[nodiscard]] bool register_lock_guard(PyObject* module);
[[nodiscard]] bool register_lock_view(PyObject* module);

}  // namespace drust::bind
