// A column's block as Arrow's C data interface sees it: what any Arrow library imports without a copy.
//
//     polars array -> ArrowArray (this file's) -> Pin -> the version's bytes
//
// Idea: a frame of a thousand columns is opened a column at a time, and each column must hold its own Pin, so that a
// series that outlives its frame keeps its own block and no other. So there is one ArrowArray a column, which holds the
// Pin until its release callback; that may be called by any thread, and takes the interpreter lock.
// Rejected: one struct array for the whole frame (importers keep it alive as a whole: one series that is kept would
// hold every column); buffers handed to pyarrow one by one (five Python objects a column, several microseconds).
#pragma once

#include <Python.h>

namespace drust::bind {

// Pin.arrow_column(schema, node): see the method's text in pin.cpp. METH_FASTCALL.
[[nodiscard]] PyObject* arrow_column(PyObject* self, PyObject* const* arguments, Py_ssize_t count);

[[nodiscard]] bool register_arrow_column(PyObject* module);

}  // namespace drust::bind
