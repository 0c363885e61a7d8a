// The free lists of one process: private memory, a cache of what block headers say.
//
// A span's list is a bitmap of blocks known to be free, so entering a block twice is nothing, and rebuilding
// it is a scan of headers. Everything happens under one mutex, uncontended nearly always: two atomic
// operations and a bit scan a block. Rejected: intrusive lists in the blocks (a crash breaks them), a mutex a
// class (spans come and go between classes, and what a free finds must not have become another class's
// meanwhile).
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/block.hpp"
#include "heap/segments.hpp"

namespace drust::heap {

class Arena {
 public:
  // `base` is the writable mapping.
  Arena(Segments& segments, std::byte* base, ProcessId process);

  // A block of the class, its header `filling` and owned by this process. Returns its offset.
  Result<std::uint64_t> take(std::uint32_t size_class);
  // A block that lies in a span of this process, with state 0: enters it if nobody has. Others are ignored.
  void enter(const Place& place) noexcept;
  // A claimed span whose head names this process already (adoption): reads its headers.
  void add_span(std::uint64_t head, SegmentEntry entry);
  // Looks at every header of every span and gives back the empty ones. Returns bytes given back.
  std::uint64_t reclaim();

 private:
  struct Span {
    std::uint64_t head = 0;
    std::uint64_t offset_bytes = 0;
    std::uint32_t size_class = 0;
    std::uint32_t blocks = 0;
    std::uint32_t free = 0;          // bits set
    std::uint32_t word = 0;          // where the next search in `bits` begins
    std::size_t place = 0;           // in spans_
    std::size_t listed = kUnlisted;  // in its class's `partial`
    std::array<std::uint64_t, kSpanBlocksMax / 64> bits{};
  };
  struct Class {
    Span* current = nullptr;
    std::vector<Span*> partial;  // with a free block, except `current`
    std::uint32_t empty = 0;     // spans all of whose blocks are free
  };
  static constexpr std::size_t kUnlisted = ~std::size_t{0};
  struct FreeMemory {
    void operator()(Span** table) const noexcept { std::free(table); }
  };

  [[nodiscard]] std::atomic<std::uint64_t>& state_of(const Span& span, std::uint32_t index) const noexcept;
  Result<Span*> span_with_room(std::uint32_t size_class);
  Result<Span*> claim_span(std::uint32_t size_class);
  Span* make_span(std::uint64_t head, std::uint32_t size_class);
  void set_free(Span& span, std::uint32_t index);
  void list(Span& span);
  void unlist(Span& span) noexcept;
  void collect_hinted();
  void read_headers(Span& span);
  void drop(Span& span);

  Segments& segments_;
  std::byte* const base_;
  const ProcessId process_;
  std::mutex mutex_;  // protects everything below
  std::array<Class, kSizeClasses> classes_;
  std::vector<std::unique_ptr<Span>> spans_;
  std::unique_ptr<Span*[], FreeMemory>
      by_head_;  // by segment; pages of it that no span needs are never touched
};

}  // namespace drust::heap
