// What this process owns on another server stands in the child table of a block here, its *holder*, so that its reaper
// finds it: the call or the completion that brought it, the value that it lies in, or, where there is none of these
// (it was taken out of a value, or made there), a small block for it alone.
#pragma once

#include <cstdint>

#include "base/status.hpp"
#include "bind/pin.hpp"

namespace drust::bind {

// A block without a value: its one child is a block on another server, which goes with this process.
inline constexpr std::uint32_t kHolderCodec = 0xffffffefU;

// A block of this process that names `owned`, of another server. Needs no interpreter lock: what an answer brings is to be
// named before a thread that has the lock, and computes, can keep this one waiting.
Result<GlobalPointer> make_holder(heap::Heap& heap, const GlobalPointer& owned, std::uint32_t codec = kHolderCodec,
                                  std::uint64_t flags = 0) noexcept;
// A Pin that owns `owned`, with that holder. New reference, or null with an error: then both are freed.
[[nodiscard]] PyObject* make_held(const GlobalPointer& owned, const GlobalPointer& holder);
// Gives a Pin that owns what it names on another server, and has no holder, one of its own. Others: nothing happens.
Status anchor(PinObject* pin) noexcept;
// The same for one that was a child until now, wherever it lies: here, its owner word says so. Without room for a holder
// nothing unnamed is freed any more (heap::Watch::blind()).
void anchor_former_child(PinObject* pin) noexcept;

}  // namespace drust::bind
