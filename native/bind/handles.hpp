// The handle types of drust._core: Pin, PinBuffer, Box, Ref, RefMut, RevokedArray, and the functions beside
// them.
//
// They are C-API types, not nanobind ones: a `with box.borrow()` measured 154 ns through the C API and 300 ns
// through nanobind, and it is the operation a program does most.
#pragma once

#include <Python.h>

namespace drust::bind {

// Adds every handle type and function to `module`. False with a Python error set when that fails.
[[nodiscard]] bool register_handles(PyObject* module);

}  // namespace drust::bind
