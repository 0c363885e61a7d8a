// A process of the cluster in 37 bits of a word: server, slot and generation there, and a bit that says somebody.
//
// 16 bits of the generation are enough: what a process has in shared objects is taken back before its slot is given
// to another, so two holders of one slot can never be met in one word.
#pragma once

#include <cstdint>

#include "base/address.hpp"
#include "base/limits.hpp"
#include "heap/block.hpp"

namespace drust::sync {

class Who {
 public:
  static constexpr std::uint32_t kBits = 37;
  static constexpr std::uint64_t kMask = (1ULL << kBits) - 1;
  constexpr Who() noexcept = default;
  constexpr explicit Who(std::uint64_t raw) noexcept : raw_(raw & kMask) {}
  static constexpr Who make(ServerId server, heap::ProcessId process) noexcept {
    return Who((1ULL << 36) | (std::uint64_t{server} << 24) | (std::uint64_t{process.slot & 0xffU} << 16) |
               (process.generation & 0xffffU));
  }
  [[nodiscard]] constexpr std::uint64_t raw() const noexcept { return raw_; }
  [[nodiscard]] constexpr bool is_nobody() const noexcept { return raw_ == 0; }
  [[nodiscard]] constexpr ServerId server() const noexcept {
    return static_cast<ServerId>((raw_ >> 24) & ((1U << kServerBits) - 1));
  }
  friend constexpr bool operator==(Who, Who) noexcept = default;

 private:
  std::uint64_t raw_ = 0;
};
static_assert(kServerBits == 12 && kProcessesMax <= 256);

// The owner word of a message that this process is to free.
[[nodiscard]] constexpr std::uint64_t receiver_word(Who who) noexcept {
  return (static_cast<std::uint64_t>(heap::OwnerKind::receiver) << 56) | who.raw();
}

}  // namespace drust::sync
