// Where a value is: Address (server and place), Colour (version), GlobalPointer (both, and how many bytes).
//
// The paper packs a 16-bit colour beside a 48-bit address, must move an object when its colour overflows, and leaves
// open what happens when a freed address is used again with a colour some stale copy still carries. A 64-bit colour
// that is never reused closes both, for eight bytes a pointer.  Source: Ma et al., OSDI'24, section 4.1.1.
#pragma once

#include <compare>
#include <cstdint>

#include "base/limits.hpp"

namespace drust {

using ServerId = std::uint32_t;
inline constexpr ServerId kNoServer = kServersMax;  // no address names it

// 12 bits of server above 36 bits of 16-byte granules; the all-zero address is "nowhere" (granule 0 holds the
// partition header, so no block ever starts there).
class Address {
 public:
  constexpr Address() noexcept = default;
  constexpr explicit Address(std::uint64_t raw) noexcept : raw_(raw) {}
  static constexpr Address make(ServerId server, std::uint64_t offset_bytes) noexcept {
    return Address((static_cast<std::uint64_t>(server) << kGranuleBits) | (offset_bytes / kGranuleBytes));
  }
  [[nodiscard]] constexpr std::uint64_t raw() const noexcept { return raw_; }
  [[nodiscard]] constexpr ServerId server() const noexcept { return static_cast<ServerId>(raw_ >> kGranuleBits); }
  [[nodiscard]] constexpr std::uint64_t offset_bytes() const noexcept {
    return (raw_ & ((1ULL << kGranuleBits) - 1)) * kGranuleBytes;
  }
  [[nodiscard]] constexpr bool is_null() const noexcept { return raw_ == 0; }
  friend constexpr auto operator<=>(Address, Address) noexcept = default;

 private:
  std::uint64_t raw_ = 0;
};

// A version: incarnation of the server that drew it (16 bits) over a counter. 0 means "no version": a free block.
using Colour = std::uint64_t;
inline constexpr Colour kNoColour = 0;

constexpr std::uint16_t incarnation_of(Colour colour) noexcept {
  return static_cast<std::uint16_t>(colour >> (64 - kIncarnationBits));
}

struct GlobalPointer {
  Address address;
  Colour colour = kNoColour;
  std::uint64_t extent_bytes = 0;  // header to the end of the last buffer: a remote read needs one round trip
  [[nodiscard]] constexpr bool is_null() const noexcept { return address.is_null(); }
  friend constexpr bool operator==(const GlobalPointer&, const GlobalPointer&) noexcept = default;
};
static_assert(sizeof(GlobalPointer) == 24);

}  // namespace drust
