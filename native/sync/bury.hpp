// What the dead had in the shared objects of this partition is taken back: one look at all of them, by the reaper.
#pragma once

#include <vector>

#include "sync/object.hpp"

namespace drust::sync {

// `dead`: which process of this partition that is, if it is one; its blocks in shared objects are theirs.
inline constexpr heap::ProcessId kOfAnotherServer{kProcessesMax, 0};
void bury_everywhere(heap::Heap& heap, const IsDead& is_dead, heap::ProcessId dead = kOfAnotherServer);

// Messages that the dead, of other servers, had received and not freed: nobody has opened them, if what the dead owed has
// been freed before. Of a lost server that is not known: then `lost`, and the Boxes in them are left alone.
// Blocks of other servers that go too are appended.
void free_unopened(heap::Heap& heap, const IsDead& is_dead, bool lost, std::vector<GlobalPointer>& remote);

}  // namespace drust::sync
