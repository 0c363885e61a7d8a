// GlobalPointer and ChildPointer as Python tuples, and Status as a Python exception.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <string>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/block.hpp"

namespace drust::bind {

namespace nb = nanobind;

// (address, colour, extent_bytes)
[[nodiscard]] inline nb::tuple to_tuple(const GlobalPointer& pointer) {
  return nb::make_tuple(pointer.address.raw(), pointer.colour, pointer.extent_bytes);
}

[[nodiscard]] inline GlobalPointer to_pointer(nb::handle tuple) {
  return {Address(nb::cast<std::uint64_t>(tuple[0])), nb::cast<std::uint64_t>(tuple[1]),
          nb::cast<std::uint64_t>(tuple[2])};
}

// (address, colour, extent_bytes, flags)
[[nodiscard]] inline nb::tuple to_tuple(const heap::ChildPointer& child) {
  return nb::make_tuple(child.address, child.colour, child.extent_bytes, child.flags);
}

[[nodiscard]] inline heap::ChildPointer to_child(nb::handle tuple) {
  return {nb::cast<std::uint64_t>(tuple[0]), nb::cast<std::uint64_t>(tuple[1]), nb::cast<std::uint64_t>(tuple[2]),
          nb::cast<std::uint64_t>(tuple[3])};
}

// Raises what drust.errors has for this code (through the function given to set_error_hook). Needs the GIL.
[[noreturn]] void raise(const Status& status);
void set_error_hook(nb::object hook);

template <class T>
T unwrap(Result<T> result) {
  if (!result.ok()) raise(result.status());
  return std::move(result.value());
}

inline void unwrap(const Status& status) {
  if (!status.ok()) raise(status);
}

}  // namespace drust::bind
