// The slow paths that Python provides (drust.handles), and errors as Python exceptions.
//
// Set once by `_core.set_hooks(**functions)`; every member is protected by the interpreter lock. Each hook
// may be absent: then a Box holds live values only, and errors are RuntimeErrors with the same message.
//
//     adopt(value) -> (value_or_parent, pin | None, is_array)
//         for Box(value) and replace(value)
//     materialise(box, writable)
//         must call box._install(...)
//     publish(box) -> Pin
//         encode the live value
//     clone(box) -> value
//         a deep copy, to be adopted
//     absorb(box)
//         look whether lends have ended, and call box._end_lend for those that have
//     wait(box, writable, timeout_s)
//         block until something may have changed, at most so long
//     conflict(box | None, kind, message, **fields) -> exception
//     survivors(box, mode, locations) -> None | exception
//         views outlived a borrow: one copy is about to be made
//     forbid_rollback(box)
//         the lend above it can no longer be rolled back
//     queue_free(box, pin, tree, pre_image)
//         with the lend above, once it has committed, free the block (with all it owns: `tree`) if it belongs to the
//         pre-image; else only what it shares with that
//     settle(box, is_named) -> Pin | None
//         the block is about to get another owner or writer: a parent that names copies of the tied children
//         that this process still has views of; `is_named`: of the whole value, under a name
//     choose_replicas(replicas) -> bool
//         for Box(value, replicas=...): whether that is another choice than the session's
#pragma once

#include <Python.h>

#include "base/status.hpp"

namespace drust::bind {

struct Hooks {
  PyObject* adopt = nullptr;
  PyObject* materialise = nullptr;
  PyObject* publish = nullptr;
  PyObject* clone = nullptr;
  PyObject* absorb = nullptr;
  PyObject* wait = nullptr;
  PyObject* conflict = nullptr;
  PyObject* survivors = nullptr;
  PyObject* forbid_rollback = nullptr;
  PyObject* queue_free = nullptr;
  PyObject* settle = nullptr;
  PyObject* choose_replicas = nullptr;
};

[[nodiscard]] const Hooks& hooks() noexcept;

// Sets the Python error that drust.errors has for this code. (pointer.hpp's raise() throws it; this does
// not.)
void set_error(const Status& status) noexcept;

// Sets the error that hooks().conflict makes; `fields` is a dict or null (borrowed). Always returns null.
PyObject* set_conflict(PyObject* box, const char* kind, PyObject* message, PyObject* fields) noexcept;

[[nodiscard]] bool register_hooks(PyObject* module);

}  // namespace drust::bind
