// Tied children (Ma et al., OSDI'24, section 4.1.3): fetched, moved and freed together with their parent.
//
// A new version of a parent may name children that the old one names too: a frame of which one column was
// written keeps the blocks of the others. Each child has one owner all the same, so a new parent's pointers
// to what it shares are flagged as borrowed until the new version takes the place of the old one, which is
// here: before it, the end of the new parent (its task died) leaves the shared children alone; after it, the
// end of the old one does. The old parent is disowned first: killed in between, a child has no owner, and
// never two. Tied children lie on their parent's server, so all of this is local.
// Rejected: a count of parents in each child's header (a crash would leave it wrong).
#include <unordered_map>

#include "heap/heap.hpp"

namespace drust::heap {

bool Heap::pass_on(const GlobalPointer& old, const GlobalPointer& fresh) {
  const Result<Block> left = partition_.find(old.address, old.colour);
  if (!left.ok()) return false;
  const std::span<ChildPointer> before = left.value().children();
  bool has_tied = false;
  for (const ChildPointer& child : before) has_tied = has_tied || (child.flags & ChildPointer::kTied) != 0;
  if (!has_tied) return false;
  std::unordered_map<std::uint64_t, ChildPointer*> kept;
  if (!fresh.is_null() && partition_.is_local(fresh.address)) {
    const Result<Block> taken = partition_.find(fresh.address, fresh.colour);
    if (taken.ok()) {
      for (ChildPointer& child : taken.value().children()) kept.emplace(child.address, &child);
    }
  }
  for (ChildPointer& child : before) {
    const bool was_owned = (child.flags & ChildPointer::kBorrowed) == 0;
    const auto found = kept.find(child.address);
    const bool is_left = (child.flags & ChildPointer::kTied) != 0 && found == kept.end();
    if (is_left) continue;
    child.flags |= ChildPointer::kShared;
    if (was_owned && found != kept.end()) found->second->flags &= ~ChildPointer::kShared;
  }
  return true;
}

Status Heap::free_tied(const GlobalPointer& old, const GlobalPointer& fresh,
                       std::vector<GlobalPointer>& remote) {
  return pass_on(old, fresh) ? free(old, remote) : free_shallow(old);
}

void Heap::disclaim_tied(const GlobalPointer& pointer) noexcept {
  const Result<Block> found = partition_.find(pointer.address, pointer.colour);
  if (!found.ok()) return;
  for (ChildPointer& child : found.value().children()) {
    if ((child.flags & ChildPointer::kTied) != 0) child.flags |= ChildPointer::kShared;
  }
}

}  // namespace drust::heap
