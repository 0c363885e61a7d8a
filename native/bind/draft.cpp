// _core.Draft: a block being written, before anybody else can see it. Published once, or given up.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "bind/pin.hpp"
#include "bind/pointer.hpp"
#include "bind/runtime.hpp"

namespace drust::bind {
namespace {

constexpr std::size_t kCopyWithoutGilBytes = 64 * 1024;

class Draft {
 public:
  Draft(Runtime& runtime, Address address) : runtime_(&runtime), address_(address) {}
  Draft(Draft&& other) noexcept : runtime_(other.runtime_), address_(other.address_) { other.address_ = Address(); }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;
  Draft& operator=(Draft&&) = delete;
  ~Draft() {
    if (!address_.is_null() && current_runtime() == runtime_) runtime_->heap->abandon(address_);
  }

  [[nodiscard]] heap::Block block() const {
    if (address_.is_null()) raise(Status(Code::bad_request, "this draft was published already"));
    return heap::Block(runtime_->partition->writable(address_.offset_bytes()));
  }

  [[nodiscard]] std::span<std::byte> buffer(std::uint32_t index) const {
    const heap::Block target = block();
    if (index >= target.header().buffer_count) throw nb::index_error("this block has no such buffer");
    return target.buffer(index);
  }

  void copy_in(std::uint32_t index, nb::object source) const {
    const std::span<std::byte> target = buffer(index);
    Py_buffer view;
    if (PyObject_GetBuffer(source.ptr(), &view, PyBUF_ANY_CONTIGUOUS) != 0) throw nb::python_error();
    const auto bytes = static_cast<std::size_t>(view.len);
    if (bytes != target.size()) {
      PyBuffer_Release(&view);
      throw nb::value_error("the source has another size than the buffer");
    }
    if (bytes >= kCopyWithoutGilBytes) {
      nb::gil_scoped_release unlocked;
      std::memcpy(target.data(), view.buf, bytes);
    } else if (bytes != 0) {
      std::memcpy(target.data(), view.buf, bytes);
    }
    PyBuffer_Release(&view);
  }

  void set_child(std::uint32_t index, nb::tuple child) const {
    const heap::Block target = block();
    if (index >= target.header().child_count) throw nb::index_error("this block has no such child");
    target.children()[index] = to_child(child);
  }

  nb::object publish() {
    static_cast<void>(block());
    runtime_->heap->adopt_children(address_);
    const GlobalPointer pointer = runtime_->heap->publish(address_);
    address_ = Address();
    return nb::steal(make_pin(pointer, pointer, false, OnRelease::free_tree, 0));
  }

 private:
  Runtime* runtime_;
  Address address_;
};

Draft allocate(Runtime& runtime, std::uint32_t codec, nb::bytes meta, const std::vector<std::uint64_t>& buffer_bytes,
               nb::list children) {
  const heap::BlockShape shape{.codec = codec,
                               .child_count = static_cast<std::uint32_t>(nb::len(children)),
                               .meta_bytes = static_cast<std::uint32_t>(meta.size()),
                               .buffer_bytes = buffer_bytes};
  Result<Address> address = [&]() -> Result<Address> {
    if (shape.extent_bytes() < kCopyWithoutGilBytes) return runtime.heap->allocate(shape);
    nb::gil_scoped_release unlocked;  // claiming segments is real work
    return runtime.heap->allocate(shape);
  }();
  Draft draft(runtime, unwrap(std::move(address)));
  const heap::Block block = draft.block();
  if (meta.size() != 0) std::memcpy(block.meta().data(), meta.c_str(), meta.size());
  std::size_t i = 0;
  for (nb::handle child : children) block.children()[i++] = to_child(child);
  return draft;
}

}  // namespace

void register_draft(nb::module_& module) {
  nb::class_<Draft>(module, "Draft", "A block being written, before anybody else can see it.")
      .def("buffer",
           [](const Draft& draft, std::uint32_t index) {
             const auto bytes = draft.buffer(index);
             return nb::steal(PyMemoryView_FromMemory(reinterpret_cast<char*>(bytes.data()),
                                                      static_cast<Py_ssize_t>(bytes.size()), PyBUF_WRITE));
           },
           nb::keep_alive<0, 1>(), nb::arg("index"), "Writable bytes; not to be used after publish().")
      .def("set_child", &Draft::set_child, nb::arg("index"), nb::arg("child"))
      .def("copy_in", &Draft::copy_in, nb::arg("index"), nb::arg("source"))
      .def("publish", &Draft::publish, "The block as a Pin, under a fresh colour.");
  nb::handle runtime = module.attr("Runtime");
  runtime.attr("allocate") =
      nb::cpp_function(&allocate, nb::is_method(), nb::scope(runtime), nb::name("allocate"), nb::arg("codec"),
                       nb::arg("meta"), nb::arg("buffer_bytes"), nb::arg("children"));
}

}  // namespace drust::bind
