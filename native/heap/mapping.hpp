// This process's two mappings of a partition, and typed pointers to the areas in them. Private to
// native/heap.
#pragma once

#include <sys/types.h>

#include "heap/layout.hpp"
#include "heap/partition.hpp"
#include "heap/segments.hpp"

namespace drust::heap {

struct Partition::Mapping {
  int memfd = -1;
  pid_t mapped_by =
      0;  // a forked child has neither mapping: it must not unmap what it may have there instead
  std::uint64_t file_bytes = 0;
  std::byte* writable = nullptr;
  std::byte* readable = nullptr;
  ServerId server = 0;
  Segments segments;

  Mapping() = default;
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  Status map(std::uint64_t bytes);

  [[nodiscard]] SharedHeader& shared() const noexcept { return *reinterpret_cast<SharedHeader*>(writable); }
  [[nodiscard]] ProcessSlot& slot(std::uint32_t index) const noexcept {
    return reinterpret_cast<ProcessSlot*>(writable + kProcessesOffset)[index];
  }
  [[nodiscard]] CounterRow& counters(std::uint32_t index) const noexcept {
    return reinterpret_cast<CounterRow*>(writable + kCountersOffset)[index];
  }
  [[nodiscard]] EndpointRow& endpoint_row(std::uint32_t index) const noexcept {
    return reinterpret_cast<EndpointRow*>(writable + kEndpointsOffset)[index];
  }
  [[nodiscard]] LoadRow& load_row(std::uint32_t index) const noexcept {
    return reinterpret_cast<LoadRow*>(writable + kLoadsOffset)[index];
  }
  [[nodiscard]] OutboxRow* outbox(std::uint32_t slot) const noexcept {
    return reinterpret_cast<OutboxRow*>(writable + kOutboxOffset) + std::uint64_t{slot} * kOutboxRows;
  }
  [[nodiscard]] BlockHeader& header_at(std::uint64_t offset_bytes) const noexcept {
    return *reinterpret_cast<BlockHeader*>(writable + offset_bytes);
  }
  [[nodiscard]] bool is_declared_dead_or_gone(ProcessId process) const noexcept;

  // visit(head, entry, offset_bytes, header) for every block of every claimed span and run, whatever its
  // state.
  template <class Visit>
  void each_block(const Visit& visit) const {
    const std::uint64_t stop = segments.end();
    for (std::uint64_t head = 0; head < stop; ++head) {
      const SegmentEntry entry = segments.entry(head);
      if (!entry.is_head() || entry.status() != SegmentStatus::claimed) continue;
      const std::uint32_t blocks = Segments::blocks_of(entry);
      for (std::uint32_t index = 0; index < blocks; ++index) {
        const std::uint64_t offset = segments.block_offset(head, entry, index);
        visit(head, entry, offset, header_at(offset));
      }
    }
  }
};

}  // namespace drust::heap
