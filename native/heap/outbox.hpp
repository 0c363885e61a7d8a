// Frees for other servers that a process still owes, in the partition, so that they outlive it: what it did not know
// to have arrived when it was killed, its reaper sends. Noted before the block that knew of them is gone, cleared once
// an answer behind them has come; sending one twice is harmless, as frees name a colour.
//
// A small open-addressed table a process, keyed by colour. When it is crowded a free is not noted: it then leaves
// by its process alone. Rejected: sending at once (one message a free instead of one a batch), and noting in the
// block table of the home server (a message to say that there will be one).
#pragma once

#include <cstdint>
#include <vector>

#include "base/address.hpp"
#include "base/limits.hpp"
#include "heap/layout.hpp"

namespace drust::heap {

struct Owed {
  static constexpr std::uint64_t kMade = 16;  // wire::FreeItem::kMade
  GlobalPointer block;
  std::uint64_t flags = 0;  // as the free was asked for; kept for the sender, 8 bits
};

class Outbox {
 public:
  // `rows`: kOutboxRows of them, of one process slot.
  explicit Outbox(OutboxRow* rows) noexcept : rows_(rows) {}

  // Threads of the process, several at once.
  void note(const GlobalPointer& block, std::uint64_t flags) noexcept {
    const std::uint64_t place = place_of(block.address, flags);
    for (std::uint32_t probe = 0; probe < kOutboxProbesMax; ++probe) {
      const OutboxRow& row = at(block.colour, probe);
      if (row.colour.load(std::memory_order_relaxed) == block.colour && is_at(row, block.address)) return;
    }
    for (std::uint32_t probe = 0; probe < kOutboxProbesMax; ++probe) {
      OutboxRow& row = at(block.colour, probe);
      std::uint64_t expected = kNoColour;
      if (row.colour.load(std::memory_order_relaxed) != kNoColour) continue;
      if (!row.colour.compare_exchange_strong(expected, block.colour)) continue;
      row.place.store(place);
      return;
    }
  }

  void clear(Address address, Colour colour) noexcept {
    for (std::uint32_t probe = 0; probe < kOutboxProbesMax; ++probe) {
      OutboxRow& row = at(colour, probe);
      if (row.colour.load(std::memory_order_relaxed) != colour || !is_at(row, address)) continue;
      row.place.store(0);
      row.colour.store(kNoColour);
    }
  }

  // By the reaper of a dead process: all that it owed, and the table is empty.
  [[nodiscard]] std::vector<Owed> take() noexcept {
    std::vector<Owed> owed;
    for (std::uint32_t index = 0; index < kOutboxRows; ++index) {
      OutboxRow& row = rows_[index];
      const Colour colour = row.colour.load();
      if (colour == kNoColour) continue;
      // Without a place its process died in note(): the block that knew of it is still there and tells again.
      if (const std::uint64_t place = row.place.load(); place != 0)
        owed.push_back({{Address(place & kPlaceMask), colour, 0}, place >> kFlagsShift});
      row.place.store(0);
      row.colour.store(kNoColour);
    }
    return owed;
  }

 private:
  static constexpr std::uint32_t kFlagsShift = 56;
  static constexpr std::uint64_t kPlaceMask = (1ULL << (kServerBits + kGranuleBits)) - 1;
  static constexpr std::uint64_t place_of(Address address, std::uint64_t flags) noexcept {
    return (flags << kFlagsShift) | address.raw();
  }
  static bool is_at(const OutboxRow& row, Address address) noexcept {
    return (row.place.load(std::memory_order_relaxed) & kPlaceMask) == address.raw();
  }
  OutboxRow& at(Colour colour, std::uint32_t probe) const noexcept {
    const std::uint64_t mixed = colour * 0x9e37'79b9'7f4a'7c15ULL;
    return rows_[((mixed >> 32) + probe) % kOutboxRows];
  }

  OutboxRow* rows_;
};

}  // namespace drust::heap
