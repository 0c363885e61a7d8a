// A block on memory of this process alone, laid out and mapped twice like one in a partition.
//
// For handles without a server: the tests of the borrow rules, and tools that look at values off line. It has
// the same page protection on its read-only mapping, so nothing that a test shows with it is special to it.
#pragma once

#include <cstddef>

#include "base/status.hpp"

namespace drust::bind {

// Plain data: the Pin that owns it calls unmap() once. Protected by the interpreter lock.
struct PrivateBlock {
  std::byte* readable = nullptr;
  std::byte* writable = nullptr;
  std::size_t mapped_bytes = 0;

  [[nodiscard]] static Result<PrivateBlock> map(std::size_t bytes);
  void unmap() noexcept;
};

}  // namespace drust::bind
