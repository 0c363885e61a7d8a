// drust._core: what Python sees of the native half. Everything hot is a C-API type (handles), the rest nanobind.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <pthread.h>

#include "bind/handles.hpp"
#include "bind/pointer.hpp"
#include "bind/runtime.hpp"

namespace drust::bind {

void register_runtime(nb::module_& module);
void register_draft(nb::module_& module);
void register_groups(nb::module_& module);
void register_elsewhere(nb::module_& module);
void register_loads(nb::module_& module);
void register_plane(nb::module_& module);
void register_watch(nb::module_& module);
void register_kill_points(nb::module_& module);

namespace {

nb::object* error_hook = nullptr;  // set once at import of drust.runtime; protected by the GIL; never freed
std::atomic<Runtime*> current{nullptr};

}  // namespace

Runtime* current_runtime() noexcept { return current.load(std::memory_order_acquire); }
void set_current_runtime(Runtime* runtime) noexcept { current.store(runtime, std::memory_order_release); }

void set_error_hook(nb::object hook) {
  delete error_hook;
  error_hook = new nb::object(std::move(hook));
}

void raise(const Status& status) {
  if (error_hook == nullptr) throw std::runtime_error(status.detail());
  nb::object error = (*error_hook)(static_cast<int>(status.code()), status.detail());
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw nb::python_error();
}

void release_block(const GlobalPointer& pointer, OnRelease action, std::uint32_t copy_entry) noexcept {
  Runtime* runtime = current_runtime();
  if (runtime == nullptr || action == OnRelease::nothing) return;
  if (action == OnRelease::release_copy) {
    runtime->copies->release(copy_entry);
    return;
  }
  if (action == OnRelease::free_made && !runtime->partition->is_local(pointer.address)) {
    runtime->peers->free_made_later(pointer);
    return;
  }
  const bool shallow = action == OnRelease::free_shallow;
  if (action == OnRelease::free_tied && !runtime->partition->is_local(pointer.address)) {
    runtime->peers->free_tied_later(pointer, {});
    return;
  }
  if (!runtime->partition->is_local(pointer.address)) {
    runtime->peers->free_later(pointer, shallow);
    return;
  }
  if (shallow) {
    static_cast<void>(runtime->heap->free_shallow(pointer));
    return;
  }
  std::vector<GlobalPointer> remote;
  if (action == OnRelease::free_tied) {
    static_cast<void>(runtime->heap->free_tied(pointer, {}, remote));
  } else if (action == OnRelease::free_made) {
    static_cast<void>(runtime->heap->free_made(pointer, remote));
  } else {
    static_cast<void>(runtime->heap->free(pointer, remote));
  }
  for (const GlobalPointer& child : remote) runtime->peers->free_later(child, false);
}

}  // namespace drust::bind

NB_MODULE(_core, module) {
  namespace bind = drust::bind;
  module.doc() = "The native half of drust: heap, handles, transport. Use it through the drust package.";
  nanobind::set_leak_warnings(false);  // the runtime outlives module teardown on purpose: late handles ask for it
  pthread_atfork(nullptr, nullptr, [] { bind::set_current_runtime(nullptr); });
  module.def("set_error_hook", &bind::set_error_hook, nanobind::arg("hook"));
  bind::register_runtime(module);
  bind::register_draft(module);
  bind::register_groups(module);
  bind::register_elsewhere(module);
  bind::register_loads(module);
  bind::register_plane(module);
  bind::register_watch(module);
  bind::register_kill_points(module);
  if (!bind::register_handles(module.ptr())) throw nanobind::python_error();
}
