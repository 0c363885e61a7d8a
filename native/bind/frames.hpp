// Where a borrow began, recorded for a few nanoseconds, and who among the callers still holds an object.
//
// A Site is a code object and an instruction in it; the line is computed when an error is written, not
// before. Frames are read through CPython's own header on 3.11 to 3.13 (frames.cpp is the only file that
// includes it) and through PyEval_GetFrame elsewhere. Everything here needs the interpreter lock. Rejected:
// traceback.extract_stack (microseconds); sys._getframe().f_lineno (creates a frame object: 60 ns).
#pragma once

#include <Python.h>

#include <vector>

namespace drust::bind {

// Owns a reference to `code`; copyable by share(), cleared by clear().
struct Site {
  PyObject* code = nullptr;
  int instruction = 0;

  void clear() noexcept { Py_CLEAR(code); }
  [[nodiscard]] Site share() const noexcept {
    Py_XINCREF(code);
    return {code, instruction};
  }
};

// The running frame: the caller of the C function that asks. `site` must be empty.
void record_site(Site& site) noexcept;
// The nearest frame outside the drust package: for code that Python parts of drust call.
void record_user_site(Site& site) noexcept;

[[nodiscard]] int line_of(const Site& site) noexcept;
// "file:line", or "an unknown place". New reference.
[[nodiscard]] PyObject* text_of(const Site& site) noexcept;

// What a scan of frames calls for each reference it finds, once for each holding place.
class FrameVisitor {
 public:
  FrameVisitor() = default;
  FrameVisitor(const FrameVisitor&) = delete;
  FrameVisitor& operator=(const FrameVisitor&) = delete;
  virtual ~FrameVisitor() = default;
  virtual void found(PyObject* object) = 0;

  // The fast locals, closure cells and namespace of the running frame and of `depth` - 1 callers above it,
  // then of the frames that `error` (an exception or null) and those it came from hold. Each place is looked
  // at once.
  void scan(int depth, PyObject* error);

 private:
  bool is_new(const void* place);
  void look_at(PyObject* object);
  void look_into(PyObject* dictionary);
  void look_at_frame(void* frame);
  std::vector<const void*> seen_;
};

}  // namespace drust::bind
