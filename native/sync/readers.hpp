// Who reads the value of a RwLock, and who still looks at a block of it: an array of slots inside the object, an entry
// a reader, so that the dead can be taken out of it by whoever finds them. A count would be wrong after a kill.
//
//     slot: free -> reading(who, token) -> free
//                                      \-> viewing(who, address) -> free
//
// A viewing slot keeps nobody waiting. It says that views of the array are left in a process after its block, so that
// the next writer leaves that block as it is, and goes on in a copy (lock.hpp: leave_viewed).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "base/limits.hpp"
#include "sync/object.hpp"

namespace drust::sync {

class Readers {
 public:
  // A slot of this process (or of the one that the server acts for), or none if all are taken.
  [[nodiscard]] std::optional<std::uint32_t> claim(Who who, std::uint64_t token) noexcept;
  void release(std::uint32_t slot) noexcept { slots_[slot].who.store(0); }
  [[nodiscard]] std::optional<std::uint32_t> find(Who who, std::uint64_t token) const noexcept;
  [[nodiscard]] bool has_reading() const noexcept;

  // By the reader, before it is released: from here on it looks at the block at `value`.
  void begin_viewing(std::uint32_t slot, Who who, Address value) noexcept;
  [[nodiscard]] bool is_viewed(Address value) const noexcept;
  [[nodiscard]] std::uint32_t viewing() const noexcept;

  struct Reading {
    Who who;
    std::uint64_t token;
  };
  // The first reader from `slot` on, which is moved behind it; none if there is none left.
  [[nodiscard]] std::optional<Reading> next(std::uint32_t& slot) const noexcept;
  // Takes the slots of the dead; `left` is told which blocks they looked at, before each slot is taken.
  bool bury(const IsDead& is_dead, const std::function<void(Address)>& left) noexcept;

 private:
  struct Slot {
    Word who;   // phase above Who; compare-and-swap, by its process or the reaper
    Word what;  // by its process: the token of its thread while it reads, the block's address while it views
  };
  std::array<Slot, kReadersMax> slots_;
};

}  // namespace drust::sync
