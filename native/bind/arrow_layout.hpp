// Arrow's C data interface as structs, and how a column's block is laid out for it.
//
// Idea: the tree of a column (length, nulls, places of buffers, children) stands in its metadata, the tree of its type
// in the frame's schema; read together they say where every Arrow buffer lies. Whatever is read is checked against the
// sizes of the buffers, as much as Arrow's own Validate() looks at: a block may have come from a peer.
// Rejected: the layout decided in Python, a buffer object each (the import of a wide frame was mostly that).
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "bind/pin.hpp"

// https://arrow.apache.org/docs/format/CDataInterface.html. Both structs are its ABI.
extern "C" {
struct ArrowSchema {
  const char* format;
  const char* name;
  const char* metadata;
  std::int64_t flags;
  std::int64_t n_children;
  ArrowSchema** children;
  ArrowSchema* dictionary;
  void (*release)(ArrowSchema*);
  void* private_data;
};

struct ArrowArray {
  std::int64_t length;
  std::int64_t null_count;
  std::int64_t offset;
  std::int64_t n_buffers;
  std::int64_t n_children;
  const void** buffers;
  ArrowArray** children;
  ArrowArray* dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};
}
static_assert(sizeof(ArrowSchema) == 72 && sizeof(ArrowArray) == 80);

namespace drust::bind {

// How one array lies in the block: a tree, as its type is one.
struct Layout {
  std::int64_t length = 0;
  std::int64_t null_count = 0;
  std::vector<const void*> buffers;
  std::vector<std::int64_t> view_bytes;  // of string views: the sizes of the buffers of data
  std::vector<Layout> children;
};

// Reads a node of a column's metadata, as drust/codecs/columns.py describes it, over the block that `pin` holds. False
// with a ValueError set where the two do not fit, or the type is laid out otherwise (dictionaries, unions, runs).
[[nodiscard]] bool read_layout(const PinObject* pin, const ArrowSchema& schema, PyObject* node, Layout& layout);

}  // namespace drust::bind
