#include "bind/frames.hpp"

#include <algorithm>
#include <cstring>

#if PY_VERSION_HEX < 0x030E0000 && !defined(PYPY_VERSION)
#define DRUST_INTERNAL_FRAMES 1
// The internal headers are C and not written for our warnings.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wconversion"
#define Py_BUILD_CORE 1
extern "C" {
#include <internal/pycore_frame.h>
}
#undef Py_BUILD_CORE
#pragma GCC diagnostic pop
#endif

#include "bind/python.hpp"

namespace drust::bind {
namespace {

#ifdef DRUST_INTERNAL_FRAMES

using Frame = _PyInterpreterFrame;

PyCodeObject* code_of(Frame* frame) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
  return PyCode_Check(frame->f_executable) ? reinterpret_cast<PyCodeObject*>(frame->f_executable) : nullptr;
#else
  return frame->f_code;
#endif
}

// False for the shims that C callers push and for frames that are still building their cells.
bool is_real(Frame* frame) noexcept {
#if PY_VERSION_HEX >= 0x030C0000
  if (frame->owner == FRAME_OWNED_BY_CSTACK || code_of(frame) == nullptr) return false;
#endif
  return !_PyFrame_IsIncomplete(frame);
}

Frame* next_real(Frame* frame) noexcept {
  while (frame != nullptr && !is_real(frame)) frame = frame->previous;
  return frame;
}

Frame* running() noexcept {
  PyThreadState* thread = PyThreadState_Get();
#if PY_VERSION_HEX >= 0x030D0000
  return next_real(thread->current_frame);
#else
  return next_real(thread->cframe->current_frame);
#endif
}

Frame* caller_of(Frame* frame) noexcept { return next_real(frame->previous); }

Frame* frame_of(PyFrameObject* object) noexcept { return object->f_frame; }

int instruction_of(Frame* frame) noexcept {
  return _PyInterpreterFrame_LASTI(frame) * static_cast<int>(sizeof(_Py_CODEUNIT));
}

#else

// A stand-in with the same functions; each call makes frame objects, so it is slower.
using Frame = PyFrameObject;

PyCodeObject* code_of(Frame* frame) noexcept {
  PyCodeObject* code = PyFrame_GetCode(frame);
  Py_DECREF(code);  // the frame keeps it
  return code;
}
Frame* running() noexcept { return PyEval_GetFrame(); }
Frame* caller_of(Frame* frame) noexcept {
  Frame* back = PyFrame_GetBack(frame);
  Py_XDECREF(back);  // kept by the frame below it
  return back;
}
Frame* frame_of(PyFrameObject* object) noexcept { return object; }
int instruction_of(Frame* frame) noexcept { return PyFrame_GetLasti(frame); }

#endif

// The folder of the drust package with its separator, or "" while it is not imported (then no frame is
// skipped).
PyObject* package_folder() noexcept {
  static PyObject* folder = nullptr;  // never freed; protected by the interpreter lock
  if (folder != nullptr) return folder;
  ErrorKept kept;
  PyObject* modules = PyImport_GetModuleDict();
  PyObject* package = PyDict_GetItemString(modules, "drust");
  Owned file(package == nullptr ? nullptr : PyObject_GetAttrString(package, "__file__"));
  if (file && PyUnicode_Check(file.get())) {
    const Py_ssize_t length = PyUnicode_GetLength(file.get());
    const Py_ssize_t slash = PyUnicode_FindChar(file.get(), '/', 0, length, -1);
    if (slash > 0) folder = PyUnicode_Substring(file.get(), 0, slash + 1);
  }
  PyErr_Clear();
  return folder;
}

bool is_ours(PyCodeObject* code) noexcept {
  PyObject* folder = package_folder();
  return folder != nullptr && PyUnicode_Tailmatch(code->co_filename, folder, 0, PY_SSIZE_T_MAX, -1) == 1;
}

void keep(Site& site, Frame* frame) noexcept {
  if (frame == nullptr) return;
  site.code = Py_NewRef(reinterpret_cast<PyObject*>(code_of(frame)));
  site.instruction = instruction_of(frame);
}

}  // namespace

void record_site(Site& site) noexcept { keep(site, running()); }

void record_user_site(Site& site) noexcept {
  Frame* frame = running();
  Frame* found = frame;
  while (found != nullptr && is_ours(code_of(found))) found = caller_of(found);
  keep(site, found == nullptr ? frame : found);
}

int line_of(const Site& site) noexcept {
  if (site.code == nullptr) return 0;
  const int line = PyCode_Addr2Line(reinterpret_cast<PyCodeObject*>(site.code), site.instruction);
  return line < 0 ? reinterpret_cast<PyCodeObject*>(site.code)->co_firstlineno : line;
}

PyObject* text_of(const Site& site) noexcept {
  if (site.code == nullptr) return PyUnicode_FromString("an unknown place");
  return PyUnicode_FromFormat("%U:%d", reinterpret_cast<PyCodeObject*>(site.code)->co_filename,
                              line_of(site));
}

bool FrameVisitor::is_new(const void* place) {
  if (std::find(seen_.begin(), seen_.end(), place) != seen_.end()) return false;
  seen_.push_back(place);
  return true;
}

void FrameVisitor::look_at(PyObject* object) {
  if (object == nullptr) return;
  if (!PyCell_Check(object)) {
    found(object);
    return;
  }
  PyObject* content = PyCell_GET(object);
  if (content != nullptr && is_new(object)) found(content);
}

void FrameVisitor::look_into(PyObject* dictionary) {
  if (dictionary == nullptr || !PyDict_Check(dictionary) || !is_new(dictionary)) return;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t at = 0;
  while (PyDict_Next(dictionary, &at, &key, &value) != 0) look_at(value);
}

void FrameVisitor::look_at_frame(void* place) {
  Frame* frame = static_cast<Frame*>(place);
  if (frame == nullptr || !is_new(frame)) return;
#ifdef DRUST_INTERNAL_FRAMES
  const int places = code_of(frame)->co_nlocalsplus;
  for (int i = 0; i < places; ++i) look_at(frame->localsplus[i]);
  look_into(frame->f_locals);  // a module's, a class body's, or what locals() left behind
#else
  Owned names(PyFrame_GetLocals(frame));
  if (!names) {
    PyErr_Clear();
  } else if (PyDict_Check(names.get())) {
    look_into(names.get());
  } else {
    Owned values(PyMapping_Values(names.get()));
    if (!values) PyErr_Clear();
    for (Py_ssize_t i = 0; values && i < PyList_GET_SIZE(values.get()); ++i)
      look_at(PyList_GET_ITEM(values.get(), i));
  }
#endif
}

void FrameVisitor::scan(int depth, PyObject* error) {
  seen_.clear();
  Frame* frame = running();
  for (int i = 0; i < depth && frame != nullptr; ++i, frame = caller_of(frame)) look_at_frame(frame);
  Owned next = Owned::share(error);
  while (next && PyExceptionInstance_Check(next.get()) && is_new(next.get())) {
    const Owned traceback(PyException_GetTraceback(next.get()));
    for (auto* entry = reinterpret_cast<PyTracebackObject*>(traceback.get()); entry != nullptr;
         entry = entry->tb_next) {
      if (entry->tb_frame != nullptr) look_at_frame(frame_of(entry->tb_frame));
    }
    next = Owned(PyException_GetContext(next.get()));
  }
}

}  // namespace drust::bind
