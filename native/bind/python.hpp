// The few helpers that C-API code of this folder shares: an owning reference and the casts the C API asks
// for.
#pragma once

#include <Python.h>

#include <cstddef>
#include <utility>

namespace drust::bind {

// Owns one reference. Every member needs the interpreter lock.
class Owned {
 public:
  Owned() noexcept = default;
  explicit Owned(PyObject* object) noexcept : object_(object) {}  // takes the reference over
  static Owned share(PyObject* object) noexcept {
    Py_XINCREF(object);
    return Owned(object);
  }
  Owned(Owned&& other) noexcept : object_(other.release()) {}
  Owned& operator=(Owned&& other) noexcept {
    PyObject* old = std::exchange(object_, other.release());
    Py_XDECREF(old);
    return *this;
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { Py_XDECREF(object_); }
  [[nodiscard]] PyObject* get() const noexcept { return object_; }
  [[nodiscard]] PyObject* release() noexcept { return std::exchange(object_, nullptr); }
  explicit operator bool() const noexcept { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

// Keeps the error that is being raised away from code that has to run meanwhile (destructors).
class ErrorKept {
 public:
  ErrorKept() noexcept { PyErr_Fetch(&type_, &value_, &traceback_); }
  ~ErrorKept() { PyErr_Restore(type_, value_, traceback_); }
  ErrorKept(const ErrorKept&) = delete;
  ErrorKept& operator=(const ErrorKept&) = delete;

 private:
  PyObject* type_ = nullptr;
  PyObject* value_ = nullptr;
  PyObject* traceback_ = nullptr;
};

// The interpreter lock given back for a scope, when `worth_it`.
class Unlocked {
 public:
  explicit Unlocked(bool worth_it = true) noexcept : state_(worth_it ? PyEval_SaveThread() : nullptr) {}
  ~Unlocked() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

inline constexpr std::size_t kWorthUnlockingBytes = 64 * 1024;

// A method of any calling convention as the one type that PyMethodDef has.
template <class Function>
PyCFunction as_method(Function* function) noexcept {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

template <class T>
PyObject* as_object(T* object) noexcept {
  return reinterpret_cast<PyObject*>(object);
}

inline PyObject* new_none() noexcept { return Py_NewRef(Py_None); }

inline constexpr PyMethodDef kNoMoreMethods = {nullptr, nullptr, 0, nullptr};
inline constexpr PyGetSetDef kNoMoreGetSets = {nullptr, nullptr, nullptr, nullptr, nullptr};

// Readies a static type and adds it to `module` under its last name.
[[nodiscard]] inline bool add_type(PyObject* module, PyTypeObject& type, const char* name) noexcept {
  if (PyType_Ready(&type) != 0) return false;
  return PyModule_AddObjectRef(module, name, as_object(&type)) == 0;
}

}  // namespace drust::bind
