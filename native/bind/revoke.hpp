// Revoking an array when its borrow ends: the object stays where names point to it, but is no array any more.
// Only an array that names alone hold is revoked (see views.hpp): numpy's own code that holds one, such as a
// `.flat` or a bound method, trusts its type.
//
// Its type is swapped to RevokedArray: a static type of equal size that is no subclass of ndarray and raises
// RevokedError from everything. Data pointer and base stay untouched until it dies, because C code
// may be at work on a reference it borrowed from a name; deallocation restores the type first, so numpy
// frees what numpy made. Rejected: an ndarray subclass that raises (np.asarray, memoryview and fill walk past
// it); clearing the data pointer (crashes such a thread); replacing `base` (the same).
//
// While an array is revoked its `mem_handler` field, which numpy uses for arrays that own their data only,
// holds the note of where the borrow ended.
#pragma once

#include <Python.h>

#include "bind/frames.hpp"

namespace drust::bind {

extern PyTypeObject revoked_type;

// Where a borrow ended, shared by all arrays revoked then. Counted by hand; protected by the interpreter
// lock.
struct EndNote {
  Py_ssize_t references;
  Site site;
  bool was_mutable;
};
[[nodiscard]] EndNote* make_note(const Site& site, bool was_mutable);
void drop_note(EndNote* note) noexcept;

[[nodiscard]] inline bool is_revoked(PyObject* object) noexcept { return Py_TYPE(object) == &revoked_type; }

// `array` is an exact ndarray whose base is a hidden parent: an ndarray over a PinBuffer, which counts it.
void revoke(PyObject* array, EndNote* note) noexcept;
// Back to an ndarray, for handing it out again. The caller holds the only reference.
void restore(PyObject* array) noexcept;

[[nodiscard]] bool register_revoked(PyObject* module);

}  // namespace drust::bind
