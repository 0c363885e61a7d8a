// How long a shared object lives: as long as a *hold* names it.
//
//     process (a Pin) ---owns---> hold --names--> shared object
//     call, completion, value ---owns---> hold ----^
//
// A shared object is a block that many processes use at once (native/sync); its address and colour never change. A
// hold is a small block beside it, in the same partition, whose one child is the object. A hold has one owner, as
// every block has: a process, or the block in whose child table it stands, here or on another server. So handing a
// handle over is handing a hold over, and all that is promised of moved Boxes under kill -9 is promised of handles:
// what a dead process held is freed by its reaper, once.
//
// Nothing is counted. When a hold is freed, its object is marked and the server's attendant is rung for; it looks
// through the partition's headers for holds that still name marked objects. `made` tells whether one was made
// meanwhile, behind the look: a new hold needs a living one, which lives until the new one is published, so a look
// without holds, between two equal readings of `made`, saw that there are none.
//
// Rejected: a counter in the object (a kill between its change and the block's leaks or frees too early); a bitmap of
// processes and one of servers (the references that stand in blocks are neither, and a reference that travels is in
// two servers' hands for a moment: exactness needs a distributed count); a detectable counter with an intent word a
// process (exact, and four steps where this has one).
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"

namespace drust::heap {

inline constexpr std::uint32_t kSharedCodec = 0xfffffff8U;
inline constexpr std::uint32_t kHoldCodec = 0xfffffff9U;
inline constexpr std::uint32_t kRoles = 2;  // a channel is held by senders and by receivers; others by the first

// The first words of a shared object's buffer 0.
struct SharedLife {
  std::atomic<std::uint64_t> made[kRoles];  // holds, before each is published; by whoever makes one
  std::atomic<std::uint32_t> is_marked;     // a hold was freed since the last look; anybody sets, the attendant clears
  std::uint32_t kind;                       // constant: sync::Kind
  std::uint32_t frees_itself;               // constant: what it owns is all in its child table
  std::uint32_t unused;
};
static_assert(sizeof(SharedLife) == 32);

// The object at `pointer`; null if there is none, or it is no shared object.
[[nodiscard]] SharedLife* find_shared(const Partition& partition, const GlobalPointer& pointer) noexcept;
// What a hold names; null if it is no live hold of this partition. `role`: by which role, if not null.
[[nodiscard]] GlobalPointer find_held(const Partition& partition, const GlobalPointer& hold,
                                      std::uint32_t* role = nullptr) noexcept;

// A hold of an object of this partition, owned by this process.
[[nodiscard]] Result<GlobalPointer> make_hold(Heap& heap, const GlobalPointer& object, std::uint32_t role);

// A published object, which this process owns, with its first hold: from here on its holds decide.
[[nodiscard]] Result<GlobalPointer> make_first_hold(Heap& heap, const GlobalPointer& object, std::uint32_t role);

// A hold of it is being freed. True: it was the only one ever made, so the object goes with it, at once.
[[nodiscard]] bool leave_shared(Partition& partition, const GlobalPointer& object) noexcept;

struct Looked {
  GlobalPointer object;
  bool has_holds[kRoles] = {false, false};
};
// The marked objects, and whether anybody holds them. By the server's attendant alone; scans all headers twice.
[[nodiscard]] std::vector<Looked> look_at_marked(const Partition& partition);

}  // namespace drust::heap
