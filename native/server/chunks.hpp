// Walking the chunks of a region in memory: as pieces for the kernel, by copying out, and by copying in.
// Pure.
//
// Chunks of a few hundred bytes are copied together rather than named one by one: a piece costs the kernel
// about as much as copying that many bytes.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "protocol/wire.hpp"

namespace drust::server {

class Chunks {
 public:
  Chunks() = default;
  // `region` has been checked against the memory at `base`, from where its offset counts.
  Chunks(std::byte* base, const wire::Region& region) noexcept
      : region_(region), left_bytes_(region.chunk_bytes * region.count) {
    base_ = left_bytes_ > 0 ? base + region.offset_bytes : base;  // an empty region may name any offset
  }

  [[nodiscard]] std::uint64_t left_bytes() const noexcept { return left_bytes_; }
  [[nodiscard]] std::uint64_t chunk_bytes() const noexcept { return region_.chunk_bytes; }

  // The next bytes as pieces, at most `bytes_max` of them, without moving on. Returns how many pieces.
  std::size_t pieces(std::span<iovec> parts, std::uint64_t bytes_max) const noexcept {
    std::size_t count = 0;
    std::uint64_t left = std::min(left_bytes_, bytes_max);
    for (std::uint64_t index = index_, done = done_; left > 0 && count < parts.size(); ++index, done = 0) {
      const std::uint64_t bytes = std::min(region_.chunk_bytes - done, left);
      parts[count++] = {base_ + index * region_.stride_bytes + done, bytes};
      left -= bytes;
    }
    return count;
  }

  // `bytes` have been dealt with.
  void move_on(std::uint64_t bytes) noexcept {
    if (bytes == 0) return;
    left_bytes_ -= bytes;
    done_ += bytes;
    index_ += done_ / region_.chunk_bytes;
    done_ %= region_.chunk_bytes;
  }

  // memory -> `destination`, which is at most left_bytes() long.
  void gather(std::span<std::byte> destination) noexcept {
    walk(destination.size(), [&](std::byte* place, std::uint64_t at, std::uint64_t bytes) {
      std::memcpy(destination.data() + at, place, bytes);
    });
  }

  // `source` -> memory.
  void scatter(std::span<const std::byte> source) noexcept {
    walk(source.size(), [&](std::byte* place, std::uint64_t at, std::uint64_t bytes) {
      std::memcpy(place, source.data() + at, bytes);
    });
  }

 private:
  template <class Copy>
  void walk(std::uint64_t bytes, Copy copy) noexcept {
    for (std::uint64_t at = 0; at < bytes;) {
      const std::uint64_t step = std::min(region_.chunk_bytes - done_, bytes - at);
      copy(base_ + index_ * region_.stride_bytes + done_, at, step);
      at += step;
      move_on(step);
    }
  }

  std::byte* base_ = nullptr;
  wire::Region region_;
  std::uint64_t left_bytes_ = 0;
  std::uint64_t index_ = 0;  // chunk in progress
  std::uint64_t done_ = 0;   // bytes of it
};

}  // namespace drust::server
