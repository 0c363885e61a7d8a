// Who waits for whom: a walk from a lock to its holder, to the lock that this one waits for, and so on.
//
// Everything is in the objects: the word and the token say which thread of which process holds a lock, the line which
// ones wait for it. So a cycle among the locks of one home is seen by whoever waits there, whatever processes are in
// it; it is looked for by waiters of the home's host after half a second. What is seen is not of one instant, so a
// cycle is walked twice, and believed if it is the same: threads in a cycle do not move.
// A cycle through several homes is walked step by step, each home being asked what it knows of one thread: find_wait()
// here, the walk in src/drust/sync/cycles.py.
// Rejected: a table of who waits for what (a second copy of the facts), and a look at each wait (a scan of all headers).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sync/lock.hpp"

namespace drust::sync {

struct Link {
  GlobalPointer lock;      // that is waited for
  Who holder;              // by
  std::uint64_t token = 0;
  std::string note;        // where its holder waits, as it said itself: see set_note()
};

struct Wait {
  GlobalPointer lock;                   // that a thread waits for
  std::string note;                     // where, as it said itself
  std::vector<Readers::Reading> by;     // who keep it waiting: the holder, or all who read
};

// What that thread waits for, among the locks of this partition.
[[nodiscard]] std::optional<Wait> find_wait(const heap::Partition& partition, Who who, std::uint64_t token);

// The cycle that this waiter is in: its first link is the lock it waits for, the last one is held by itself. Empty if
// there is none among the locks of this partition.
[[nodiscard]] std::vector<Link> find_cycle(const heap::Partition& partition, const GlobalPointer& lock, Who who,
                                           std::uint64_t token);

// A text for others to read while this place waits: a block of this process, which frees it when the wait is over.
inline constexpr std::uint32_t kNoteCodec = 0xfffffffbU;
void set_note(LockWords& mutex, std::uint32_t place, const GlobalPointer& note) noexcept;

}  // namespace drust::sync
