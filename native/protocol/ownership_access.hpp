// ownership_access.hpp: how a borrow that was granted reaches the bytes, and what that costs in messages.
//
// Purpose. Once ownership.hpp has said yes, nobody has to be asked: where the block lies and whether this
// host has a copy of exactly this (address, colour) decide alone (Ma et al., OSDI'24, section 4.1.1). Pure,
// like the rest.
//
// Unlike the paper, a move whose bytes are already here as a copy takes them from the copy: the copy is of
// the current colour, so it is the current version, and reading before writing is the common order.
#pragma once

#include <cstdint>

namespace drust::protocol {

enum class Mode : std::uint8_t { Shared, Mutable };

enum class Access : std::uint8_t {
  Direct,        // the block is in this partition: dereference
  UseCopy,       // this host's copy of (address, colour): pin it, dereference
  FetchCopy,     // one read into a new copy, entered when its bytes have arrived
  MoveHere,      // one read into a new block, which becomes the object
  MoveFromCopy,  // the same from this host's copy
};

struct Messages {
  std::uint8_t reads = 0;        // request and reply, waited for
  std::uint8_t async_frees = 0;  // one way, nobody waits
  friend constexpr bool operator==(const Messages&, const Messages&) noexcept = default;
};

// `here`: the address is in this server's partition. `copied`: the copy table has exactly (address, colour),
// whole.
[[nodiscard]] constexpr Access access(Mode mode, bool here, bool copied) noexcept {
  if (here) return Access::Direct;
  if (mode == Mode::Shared) return copied ? Access::UseCopy : Access::FetchCopy;
  return copied ? Access::MoveFromCopy : Access::MoveHere;
}

// The free of a moved object's old block is sent by its owner, once the new pointer is home.
[[nodiscard]] constexpr Messages messages(Access access) noexcept {
  switch (access) {
    case Access::Direct:
    case Access::UseCopy:
      return {};
    case Access::FetchCopy:
      return {.reads = 1};
    case Access::MoveFromCopy:
      return {.async_frees = 1};
    case Access::MoveHere:
      return {.reads = 1, .async_frees = 1};
  }
  return {};
}

}  // namespace drust::protocol
