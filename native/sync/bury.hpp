// What the dead had in the shared objects of this partition is taken back: one look at all of them, by the reaper.
#pragma once

#include "sync/object.hpp"

namespace drust::sync {

// `dead`: which process of this partition that is, if it is one; its blocks in shared objects are theirs.
inline constexpr heap::ProcessId kOfAnotherServer{kProcessesMax, 0};
void bury_everywhere(heap::Heap& heap, const IsDead& is_dead, heap::ProcessId dead = kOfAnotherServer);

}  // namespace drust::sync
