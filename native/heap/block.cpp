#include "heap/block.hpp"

#include <limits>

#include "base/limits.hpp"

namespace drust::heap {
namespace {

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

constexpr std::uint64_t kTooLarge = std::numeric_limits<std::uint64_t>::max();

// Where the metadata begins: 32-bit counts cannot overflow 64 bits here.
constexpr std::uint64_t meta_offset(std::uint64_t children, std::uint64_t buffers) noexcept {
  return sizeof(BlockHeader) + children * sizeof(ChildPointer) + buffers * sizeof(BufferSpan);
}

constexpr std::uint64_t aligned(std::uint64_t offset) noexcept {
  return (offset + kBlockAlignment - 1) & ~(kBlockAlignment - 1);
}

}  // namespace

std::uint64_t BlockShape::extent_bytes() const noexcept {
  std::uint64_t end = meta_offset(child_count, buffer_bytes.size()) + meta_bytes;
  for (const std::uint64_t bytes : buffer_bytes) {
    end = aligned(end);
    if (bytes > kPartitionBytesMax || end > kPartitionBytesMax)
      return kTooLarge;  // no partition could hold it
    end += bytes;
  }
  return end;
}

std::span<ChildPointer> Block::children() const noexcept {
  return {reinterpret_cast<ChildPointer*>(start_ + sizeof(BlockHeader)), header().child_count};
}

std::span<BufferSpan> Block::buffers() const noexcept {
  const std::uint64_t offset = sizeof(BlockHeader) + header().child_count * sizeof(ChildPointer);
  return {reinterpret_cast<BufferSpan*>(start_ + offset), header().buffer_count};
}

std::span<std::byte> Block::meta() const noexcept {
  return {start_ + meta_offset(header().child_count, header().buffer_count), header().meta_bytes};
}

std::span<std::byte> Block::buffer(std::uint32_t index) const noexcept {
  const BufferSpan span = buffers()[index];
  return {start_ + span.offset_bytes, span.bytes};
}

void Block::lay_out(const BlockShape& shape) const noexcept {
  BlockHeader& mine = header();
  mine.extent_bytes = shape.extent_bytes();
  mine.codec = shape.codec;
  mine.child_count = shape.child_count;
  mine.buffer_count = static_cast<std::uint32_t>(shape.buffer_bytes.size());
  mine.meta_bytes = shape.meta_bytes;
  mine.value_bytes = 0;
  mine.before.store(0, std::memory_order_relaxed);
  mine.flags.store(0, std::memory_order_relaxed);
  std::uint64_t end = meta_offset(mine.child_count, mine.buffer_count) + mine.meta_bytes;
  const std::span<BufferSpan> table = buffers();
  for (std::size_t index = 0; index < table.size(); ++index) {
    table[index] = {aligned(end), shape.buffer_bytes[index]};
    end = table[index].offset_bytes + table[index].bytes;
    mine.value_bytes += table[index].bytes;
  }
}

bool Block::is_well_formed(const std::byte* start, std::uint64_t extent_bytes) noexcept {
  if (extent_bytes < sizeof(BlockHeader)) return false;
  const auto& header = *reinterpret_cast<const BlockHeader*>(start);
  if (header.extent_bytes != extent_bytes) return false;
  std::uint64_t end = meta_offset(header.child_count, header.buffer_count) + header.meta_bytes;
  if (end > extent_bytes) return false;
  const auto* children = reinterpret_cast<const ChildPointer*>(start + sizeof(BlockHeader));
  for (std::uint32_t index = 0; index < header.child_count; ++index) {
    // Holds are made where their object is.
    constexpr std::uint64_t kOfHolds = ChildPointer::kHeld | ChildPointer::kOtherEnd;
    if ((children[index].flags & (~ChildPointer::kFlags | kOfHolds)) != 0) return false;
  }
  const auto* buffers = reinterpret_cast<const BufferSpan*>(children + header.child_count);
  std::uint64_t total_bytes = 0;
  for (std::uint32_t index = 0; index < header.buffer_count; ++index) {
    // In order and apart, as lay_out() makes them; written so that no sum can overflow.
    const BufferSpan span = buffers[index];
    if (span.offset_bytes % kBlockAlignment != 0 || span.offset_bytes < end) return false;
    if (span.offset_bytes > extent_bytes || span.bytes > extent_bytes - span.offset_bytes) return false;
    end = span.offset_bytes + span.bytes;
    total_bytes += span.bytes;
  }
  return end == extent_bytes && total_bytes == header.value_bytes;
}

}  // namespace drust::heap
