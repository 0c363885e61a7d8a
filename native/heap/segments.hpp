// The segment table: which 64 KiB pieces of the partition are whose. One atomic word each (layout.hpp,
// SegmentEntry).
//
// Claiming is first-fit and by compare-and-swap, undone when somebody was faster; then what is cold is really
// backed (fallocate), so that memory running out is an answer. Giving back keeps some segments warm and
// punches the rest out of the memfd. Every call that changes the table names a process, in whose name
// `moving` entries stand meanwhile: if it is killed there, whoever adopts it finds them. Rejected: a lock
// over the table (its holder can be stopped or killed), and an exact shared count of segments (no single word
// can change together with the table; see recount()).
#pragma once

#include <cstdint>

#include "base/status.hpp"
#include "heap/layout.hpp"
#include "heap/size_classes.hpp"

namespace drust::heap {

// fallocate() of any length with `mode`; 0 or errno. A signal ends one step (the kernel undoes it), so steps
// are small and only they are repeated: a timer that ticks faster than a gigabyte is backed would otherwise
// end it for ever.
[[nodiscard]] int change_backing(int memfd, int mode, std::uint64_t offset, std::uint64_t bytes) noexcept;

// Where a block lies: the segment that answers for it, that segment's entry as it was read, and the room it
// has (0 for a run: its header says).
struct Place {
  std::uint64_t head = 0;
  SegmentEntry entry = SegmentEntry::cold();
  std::uint64_t offset_bytes = 0;
  std::uint64_t capacity_bytes = 0;
};

class Segments {
 public:
  Segments() = default;
  // `base` is the start of the writable mapping; `memfd` stays the caller's.
  Segments(std::byte* base, int memfd) noexcept;

  [[nodiscard]] std::uint64_t count() const noexcept { return shared_->segment_count; }
  // No segment from here on was ever claimed: the end of every scan.
  [[nodiscard]] std::uint64_t end() const noexcept;
  [[nodiscard]] SegmentEntry entry(std::uint64_t index) const noexcept {
    return SegmentEntry(table_[index].load(std::memory_order_acquire));
  }
  [[nodiscard]] std::uint64_t offset_of(std::uint64_t index) const noexcept {
    return shared_->segments_offset + index * kSegmentBytes;
  }
  // Segments from `head` to the next head or free one.
  [[nodiscard]] std::uint64_t length(std::uint64_t head) const noexcept;
  // True if a block of a claimed span or run begins at `offset_bytes`, whatever its state. Any number may be
  // asked.
  [[nodiscard]] bool locate(std::uint64_t offset_bytes, Place& place) const noexcept;
  // How many blocks a claimed head carries, and where the n-th begins.
  [[nodiscard]] static std::uint32_t blocks_of(SegmentEntry head) noexcept {
    return head.kind() == SegmentKind::span ? kClasses[head.size_class()].blocks : 1;
  }
  [[nodiscard]] std::uint64_t block_offset(std::uint64_t head, SegmentEntry entry,
                                           std::uint32_t index) const noexcept {
    return offset_of(head) + (entry.kind() == SegmentKind::span
                                  ? std::uint64_t{index} * kClasses[entry.size_class()].block_bytes
                                  : 0);
  }

  // `length` segments in a row, backed and `moving` in the name of `owner`: the caller writes headers, then
  // settle()s. out_of_memory leaves nothing changed.
  Result<std::uint64_t> claim(ProcessId owner, SegmentKind kind, std::uint32_t size_class,
                              std::uint64_t length);
  void settle(std::uint64_t head) noexcept;
  // claimed -> moving, by whoever owns it now, in the name of `self`. Only for one whose blocks are all the
  // caller's.
  void take(std::uint64_t head, ProcessId self) noexcept;
  // The head of a dead process, in the state it was read in, becomes `self`'s. False if it changed meanwhile.
  bool inherit(std::uint64_t head, SegmentEntry seen, ProcessId self) noexcept;
  // What is `moving` in the name of `self` becomes free. `keep_warm` false punches all of it.
  void give_back(std::uint64_t head, ProcessId self, bool keep_warm = true) noexcept;
  // Warm segments become cold until at most `keep_bytes` are warm. Returns bytes given to the system.
  std::uint64_t trim(std::uint64_t keep_bytes, ProcessId self) noexcept;
  // Makes the counters agree with the table again, if nobody is in the middle of an operation; else it stays
  // due and the next trim() tries again.
  void recount() noexcept;

  // Blocks of a span freed by others: hints, exact or not.
  void hint_free(std::uint64_t head, ProcessId owner) noexcept;
  [[nodiscard]] std::uint32_t take_hints(std::uint64_t head) noexcept;
  [[nodiscard]] std::uint64_t pending_hints(ProcessId owner) const noexcept {
    return slot(owner.slot).remote_frees.load(std::memory_order_relaxed);
  }
  void clear_pending_hints(ProcessId owner) noexcept {
    slot(owner.slot).remote_frees.store(0, std::memory_order_relaxed);
  }

 private:
  class Operation;
  [[nodiscard]] ProcessSlot& slot(std::uint32_t index) const noexcept;
  struct Found {
    std::uint64_t start;
    std::uint64_t first_free;
  };
  [[nodiscard]] Found find_run(std::uint64_t from, std::uint64_t length) const noexcept;
  Result<std::uint64_t> mark_run(std::uint64_t length, SegmentEntry head);
  bool reserve(std::uint64_t length) noexcept;
  [[nodiscard]] bool mark(std::uint64_t start, std::uint64_t length, SegmentEntry head) noexcept;
  void unmark(std::uint64_t start, std::uint64_t length) noexcept;
  Status back(std::uint64_t start, std::uint64_t length, ProcessId self, std::uint64_t& warm) noexcept;
  bool has_room(std::uint64_t bytes) noexcept;
  void punch(std::uint64_t start, std::uint64_t length) noexcept;
  void free_entries(std::uint64_t start, std::uint64_t length, SegmentEntry as) noexcept;
  void lower_hint(std::uint64_t index) noexcept;

  SharedHeader* shared_ = nullptr;
  ProcessSlot* slots_ = nullptr;
  SharedWord* table_ = nullptr;
  std::atomic<std::uint32_t>* hints_ = nullptr;
  int memfd_ = -1;
};

inline bool Segments::locate(std::uint64_t offset_bytes, Place& place) const noexcept {
  if (offset_bytes < shared_->segments_offset) return false;
  std::uint64_t head = (offset_bytes - shared_->segments_offset) / kSegmentBytes;
  if (head >= count()) return false;
  SegmentEntry seen = entry(head);
  if (seen.is_rest()) {
    if (seen.back() == 0 || seen.back() > head) return false;
    head -= seen.back();
    seen = entry(head);
    if (seen.kind() != SegmentKind::span) return false;
  }
  if (seen.status() != SegmentStatus::claimed) return false;
  const std::uint64_t within = offset_bytes - offset_of(head);
  place = {head, seen, offset_bytes, 0};
  if (seen.kind() == SegmentKind::run) return within == 0;
  if (seen.kind() != SegmentKind::span || seen.size_class() >= kSizeClasses) return false;
  const SizeClass& size_class = kClasses[seen.size_class()];
  place.capacity_bytes = size_class.block_bytes;
  return size_class.index_of(within) < size_class.blocks;
}

}  // namespace drust::heap
