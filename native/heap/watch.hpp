// Which blocks the child tables of a partition name from some moment on: so that a search through all partitions for
// names that may move meanwhile misses none (server/unnamed.hpp).
//
// Whoever publishes a block with children notes them, if the watch is open: after the block can be seen, and before
// anything that named them before may go. A name that was there when the watch was opened, and is not noted, has not
// moved. While it is closed, a publisher reads one word.
//
// Rejected: holding publishers up while a search lasts (a server's threads publish what they receive).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/address.hpp"
#include "heap/block.hpp"

namespace drust::heap {

class Watch {
 public:
  static constexpr std::uint64_t kRows = 1ULL << 17;
  static constexpr std::uint64_t kAreaBytes = 4096 + kRows * 8;

  explicit Watch(std::byte* area) noexcept : area_(area) {}

  // By whoever has published it, or is about to tell others of it.
  void note(const Block& block) const noexcept {
    // In one order with the block's state: either a search that begins behind open() meets the block, or this meets open().
    if (block.header().child_count != 0 && head().is_open.load(std::memory_order_seq_cst) != 0) note_all(block);
  }
  // A ticket for close(); whoever had it open before learns that he has lost it.
  std::uint64_t open() const noexcept;
  // Something that lives here could not be named: from now on close() knows nothing.
  void blind() const noexcept { head().is_blind.store(1); }
  // What was noted since that ticket was given; nothing if there was no room for all of it, or another has opened it.
  [[nodiscard]] std::optional<std::vector<Address>> close(std::uint64_t ticket) const;

 private:
  struct Head {
    std::atomic<std::uint64_t> is_open;  // the ticket, 0: closed; the server's control plane, as `tickets`
    std::atomic<std::uint64_t> tickets;
    std::atomic<std::uint64_t> is_blind;  // any process; until the partition ends
    alignas(64) std::atomic<std::uint64_t> next;  // any process
  };
  [[nodiscard]] Head& head() const noexcept { return *reinterpret_cast<Head*>(area_); }
  [[nodiscard]] std::atomic<std::uint64_t>& row(std::uint64_t index) const noexcept {
    return reinterpret_cast<std::atomic<std::uint64_t>*>(area_ + 4096)[index];
  }
  void note_all(const Block& block) const noexcept;

  std::byte* area_;
};

}  // namespace drust::heap
