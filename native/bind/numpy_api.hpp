// numpy's C API for this folder: one import (in handles.cpp, which defines DRUST_IMPORTS_NUMPY), used by
// every file.
#pragma once

#include <Python.h>

#define PY_ARRAY_UNIQUE_SYMBOL drust_array_api
#ifndef DRUST_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#endif
#include <numpy/arrayobject.h>

namespace drust::bind {

inline PyArrayObject* as_array(PyObject* object) noexcept { return reinterpret_cast<PyArrayObject*>(object); }
inline PyArrayObject_fields* fields_of(PyObject* array) noexcept {
  return reinterpret_cast<PyArrayObject_fields*>(array);
}

}  // namespace drust::bind
