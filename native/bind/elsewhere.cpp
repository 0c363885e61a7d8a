// Runtime.put_value: a value of one buffer, from this process's own memory straight into another server's heap, where
// this one has no room for it (Ma et al., OSDI'24, section 4.1.1: allocation falls over to the most vacant server).
//
// The bytes are sent from where they lie; only the head of the block, its tables and metadata, is made for it.
// A small block here names it (anchor.hpp), so that it is freed if this process dies.
#include <nanobind/nanobind.h>

#include <cstring>
#include <vector>

#include "bind/anchor.hpp"
#include "bind/pointer.hpp"
#include "bind/runtime.hpp"

namespace drust::bind {
namespace {

// Whole cache lines, as a block begins with one.
struct alignas(kBlockAlignment) Line {
  std::byte bytes[kBlockAlignment];
};

nb::object put_value(Runtime& runtime, ServerId server, std::uint32_t codec, nb::bytes meta, nb::object value) {
  Py_buffer view;
  if (PyObject_GetBuffer(value.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  const std::vector<std::uint64_t> sizes = {static_cast<std::uint64_t>(view.len)};
  const heap::BlockShape shape{.codec = codec,
                               .child_count = 0,
                               .meta_bytes = static_cast<std::uint32_t>(meta.size()),
                               .buffer_bytes = sizes};
  const std::uint64_t head_bytes = shape.extent_bytes() - sizes[0];
  std::vector<Line> head((head_bytes + kBlockAlignment - 1) / kBlockAlignment);
  const heap::Block block(head.front().bytes);
  block.lay_out(shape);
  if (meta.size() != 0) std::memcpy(block.meta().data(), meta.c_str(), meta.size());
  GlobalPointer there;
  Result<GlobalPointer> holder = [&]() -> Result<GlobalPointer> {
    nb::gil_scoped_release unlocked;
    const auto* data = static_cast<const std::byte*>(view.buf);
    const Result<GlobalPointer> put = runtime.peers->put_bytes(server, {block.start(), head_bytes}, {data, sizes[0]});
    if (!put.ok()) return put.status();
    there = put.value();
    Result<GlobalPointer> around = make_holder(*runtime.heap, there);
    if (!around.ok()) runtime.peers->free_later(there, false);
    return around;
  }();
  PyBuffer_Release(&view);
  PyObject* pin = make_held(there, unwrap(std::move(holder)));
  if (pin == nullptr) throw nb::python_error();
  return nb::steal(pin);
}

}  // namespace

void register_elsewhere(nb::module_& module) {
  nb::handle runtime = module.attr("Runtime");
  runtime.attr("put_value") =
      nb::cpp_function(&put_value, nb::is_method(), nb::scope(runtime), nb::name("put_value"), nb::arg("server"),
                       nb::arg("codec"), nb::arg("meta"), nb::arg("value"));
  module.attr("HOLDER_CODEC") = kHolderCodec;
}

}  // namespace drust::bind
