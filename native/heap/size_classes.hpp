// Which block sizes small blocks come in: four a doubling, multiples of 64 bytes, up to kSmallBlockBytesMax.
//
// A request wastes at most a fifth (half below 128 bytes, where 64 is the step). A span is as many segments
// as leave little of its tail unused, at least eight blocks. Everything here is computed at compile time.
#pragma once

#include <array>
#include <cstdint>

#include "base/limits.hpp"

namespace drust::heap {

struct SizeClass {
  std::uint32_t block_bytes = 0;
  std::uint32_t blocks = 0;    // in a span
  std::uint32_t segments = 0;  // of a span
  std::uint32_t inverse = 0;   // ceil(2^26 / (block_bytes / 64)): see index_of()

  // Which block of the span begins at `offset_bytes`, or `blocks` if none does: a multiplication in place of
  // a division.
  [[nodiscard]] constexpr std::uint32_t index_of(std::uint64_t offset_bytes) const noexcept {
    const std::uint64_t units = offset_bytes / 64;
    const std::uint64_t index = (units * inverse) >> 26;
    return index < blocks && index * block_bytes == offset_bytes ? static_cast<std::uint32_t>(index) : blocks;
  }
};

inline constexpr std::uint32_t kSizeClasses = 36;
inline constexpr std::uint32_t kSpanSegmentsMax = static_cast<std::uint32_t>(kSpanBytesMax / kSegmentBytes);
inline constexpr std::uint32_t kSpanBlocksMax = static_cast<std::uint32_t>(kSegmentBytes / 64);

inline constexpr std::array<SizeClass, kSizeClasses> kClasses = [] {
  std::array<SizeClass, kSizeClasses> classes{};
  std::uint32_t units = 0;
  std::uint32_t step = 1;
  for (SizeClass& entry : classes) {
    if (units == 8 * step) step *= 2;
    units += step;
    entry.block_bytes = units * 64;
    entry.inverse = ((1U << 26) + units - 1) / units;
    for (std::uint32_t segments = 1; segments <= kSpanSegmentsMax; ++segments) {
      const std::uint64_t span_bytes = segments * kSegmentBytes;
      entry.segments = segments;
      entry.blocks = static_cast<std::uint32_t>(span_bytes / entry.block_bytes);
      const std::uint64_t unused = span_bytes - std::uint64_t{entry.blocks} * entry.block_bytes;
      if (entry.blocks >= 8 && unused * 32 <= span_bytes) break;
    }
  }
  return classes;
}();

// By size in units of 64 bytes, rounded up.
inline constexpr std::array<std::uint8_t, kSmallBlockBytesMax / 64 + 1> kClassOfUnits = [] {
  std::array<std::uint8_t, kSmallBlockBytesMax / 64 + 1> table{};
  std::uint8_t current = 0;
  for (std::uint32_t units = 0; units < table.size(); ++units) {
    while (kClasses[current].block_bytes < units * 64) ++current;
    table[units] = current;
  }
  return table;
}();

[[nodiscard]] constexpr std::uint32_t class_of(std::uint64_t extent_bytes) noexcept {
  return kClassOfUnits[(extent_bytes + 63) / 64];
}

static_assert(kClasses[0].block_bytes == 64 && kClasses[kSizeClasses - 1].block_bytes == kSmallBlockBytesMax);
static_assert(kClasses[kSizeClasses - 1].blocks == 8);
// index_of() agrees with a division for every block of every class, and says no a little beside it.
static_assert([] {
  for (const SizeClass& entry : kClasses) {
    if (entry.blocks < 8 || entry.blocks > kSpanBlocksMax) return false;
    for (std::uint64_t index = 0; index < entry.blocks; index += 1 + index / 3) {
      if (entry.index_of(index * entry.block_bytes) != index) return false;
      if (entry.index_of(index * entry.block_bytes + 16) != entry.blocks) return false;
      const std::uint64_t beside = index * entry.block_bytes + 64;
      if (entry.block_bytes > 64 && entry.index_of(beside) != entry.blocks) return false;
    }
  }
  return true;
}());

}  // namespace drust::heap
