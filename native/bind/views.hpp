// The arrays that borrows hand out, and how it is known that none of them is left.
//
//     name `a` in the block --> a (view) --> P (hidden parent) --> PinBuffer --> Pin
//
// numpy collapses bases: every slice, transpose or reshape of `a` has P as its base, so P's references tell
// whether one is alive; a memoryview, a `.flat` or a view of a subclass holds `a` itself, whose references
// tell. Only when the counts show some, the frames of the callers are searched for names of them.
//
// An array is revoked only if names account for every reference to it. Anything else that holds it (a `.flat`,
// a bound method, a list, a kernel that another thread runs) may be C code that reads its type and calls
// numpy with it, which crashes on a RevokedArray. Such an array stays an ndarray, for its names too, and makes
// the borrow end with survivors (see ownership.hpp): its base keeps the Pin, so it reads the version it saw,
// and the object moves to a new block before that one is written. When the last hidden holder is gone before
// the next write, the names that are left are revoked then. Rejected: telling harmless holders (lists) from
// harmful ones by their type, because what they hold can be taken out by C code at any time.
//
// A ViewSet is one mapping's P, kept by the Box, with the last views handed out: a view whose name was bound
// again since is used again, so a borrow in a loop allocates nothing. Borrows of one Box that overlap get a P
// each, so that the views of one are never taken for the views of another. All of it is protected by the
// interpreter lock.
#pragma once

#include <Python.h>

#include "bind/frames.hpp"
#include "bind/pin.hpp"

namespace drust::bind {

inline constexpr int kSpares = 2;  // the one the name still holds, and the one before

struct ViewSet {
  PyObject* parent = nullptr;  // P; an exact ndarray over a PinBuffer of its own
  PyObject* spares[kSpares] = {
      nullptr, nullptr};  // views of P not handed out: revoked while names hold them, else plain
  bool is_busy = false;   // an active borrow uses P

  void clear() noexcept;
};

// The PinBuffer that an exact ndarray lies on, itself or through other views; null if it lies on no Pin's
// buffer.
[[nodiscard]] PinBufferObject* find_exporter(PyObject* array) noexcept;

// A hidden parent of the geometry of `like` (an array that has an exporter), over the bytes of `pin`: another
// mapping of the block, or another block.
[[nodiscard]] PyObject* make_parent(PyObject* like, PinObject* pin);
// A hidden parent of `like`'s items start..stop along `axis`.
[[nodiscard]] PyObject* make_part_parent(PyObject* like, int axis, Py_ssize_t start, Py_ssize_t stop);

// An array to hand out: a spare of `views` (may be null) or a new view of `parent`.
[[nodiscard]] PyObject* hand_out(ViewSet* views, PyObject* parent);

// What is left of a borrow. `own` counts the references to the parent that are accounted for: the caller's,
// the ViewSet's and its plain spares', not the handed array's.
struct Remains {
  bool has_survivors = false;
};
// Looks for survivors, and revokes the handed array and those derived views of which every reference is a
// name in the frames of the callers or in those that `error` (the exception that leaves the block, or null)
// and the exceptions before it hold.
[[nodiscard]] Remains examine(PyObject* handed, PyObject* parent, Py_ssize_t own, PyObject* error,
                              const Site& ended, bool was_mutable);

// Whether views of a shared borrow that ended there are alive still; names that are all that is left of an
// array are revoked. The caller holds one reference to each of the two.
[[nodiscard]] bool is_held(PyObject* handed, PyObject* parent, const Site& ended);

// References to the ViewSet's parent that the ViewSet itself holds.
[[nodiscard]] Py_ssize_t own_references(const ViewSet& views) noexcept;
// Keeps `handed` (the reference is taken) for reuse.
void keep_spare(ViewSet& views, PyObject* handed) noexcept;

// Views that escaped a shared borrow: alive until is_held() says otherwise.
struct Escape {
  PyObject* handed;
  PyObject* parent;
  Site ended;
};

}  // namespace drust::bind
