// Freeing blocks and trees of blocks, and taking over what a dead process has left.
//
// A leaf in a span goes colour -> 0 in one step. A tree's root goes colour -> freeing(process) and only
// becomes 0 when each of its children on this server is at least `freeing` too: killed at any instruction,
// what remains of the tree is found by looking for that word. A run whose children are not to be freed goes
// through filling(process), which an adopter frees alone. Every step is one compare-and-swap of a colour that
// is never used again, so a tree that names a block twice, or itself, or is freed twice at once, is freed
// once.
#include <algorithm>
#include <utility>

#include "base/ensure.hpp"
#include "base/kill_point.hpp"
#include "heap/arena.hpp"
#include "heap/heap.hpp"
#include "heap/mapping.hpp"
#include "heap/shared.hpp"

namespace drust::heap {
namespace {

bool is_adopting(const BlockHeader& header, ProcessId process) noexcept {
  return header.state.load(std::memory_order_acquire) == filling(process) &&
         (header.flags.load(std::memory_order_acquire) & kAdopting) != 0;
}

}  // namespace

// colour -> the first step above. False if it is another version; then nothing changed.
bool Heap::begin_free(const Place& place, Colour colour, bool with_children, std::vector<Place>& open) {
  Partition::Mapping& mapping = *partition_.mapping_;
  BlockHeader& header = mapping.header_at(place.offset_bytes);
  std::uint64_t expected = header.state.load(std::memory_order_acquire);
  if (colour == kNoColour || expected != colour) return false;
  // Drawn while the block still lives: replicas of whatever comes to this address next have later ones.
  const bool has_replica = (header.flags.load(std::memory_order_relaxed) & kHasReplica) != 0;
  const std::uint64_t stamp = has_replica ? partition_.draw_replica_stamp() : 0;
  const Address address = Address::make(partition_.server(), place.offset_bytes);
  const bool is_tree = with_children && header.child_count > 0;
  if (!is_tree && place.entry.kind() == SegmentKind::span) {
    if (!header.state.compare_exchange_strong(expected, kFree, std::memory_order_acq_rel)) return false;
    kill_point("heap.free.leaf");
    partition_.count(process_, Counter::frees);
    if (place.entry.owner() == process_) {
      arena_->enter(place);
    } else {
      mapping.segments.hint_free(place.head, place.entry.owner());
    }
    if (has_replica && replica_hook_) replica_hook_(address, stamp);
    return true;
  }
  SharedWord& frees_open = mapping.slot(process_.slot).frees_open;
  frees_open.fetch_add(1);  // first: an adopter that reads 0 looks at the dead process's own spans only
  const std::uint64_t word = is_tree ? freeing(process_) : filling(process_);
  if (!is_tree) header.flags.store(0, std::memory_order_relaxed);  // its children have other owners already
  if (!header.state.compare_exchange_strong(expected, word, std::memory_order_acq_rel)) {
    frees_open.fetch_sub(1);
    return false;
  }
  partition_.count(process_, Counter::frees);
  open.push_back(place);
  if (has_replica && replica_hook_) replica_hook_(address, stamp);
  kill_point("heap.free.begun");
  return true;
}

void Heap::free_open(std::vector<Place>& open, std::vector<GlobalPointer>& remote) {
  Partition::Mapping& mapping = *partition_.mapping_;
  while (!open.empty()) {
    const Place place = open.back();
    open.pop_back();
    const Block block(mapping.writable + place.offset_bytes);
    if (block.header().state.load(std::memory_order_relaxed) == freeing(process_)) {
      const bool is_version = owner_kind(block.header().owner.load()) == OwnerKind::borrower;
      const std::uint64_t not_its_own = ChildPointer::kBorrowed | (is_version ? ChildPointer::kKept : 0);
      const Address here = Address::make(partition_.server(), place.offset_bytes);
      for (const ChildPointer& child : block.children()) {
        if ((child.flags & not_its_own) != 0 || child.address == 0) continue;
        const GlobalPointer pointer = child.pointer();
        Place below;
        if ((child.flags & ChildPointer::kHeld) != 0) {
          if (leave_shared(partition_, pointer) && mapping.segments.locate(pointer.address.offset_bytes(), below))
            static_cast<void>(begin_free(below, pointer.colour, true, open));
        } else if (!partition_.is_local(pointer.address)) {
          const bool is_made = is_version && (child.flags & ChildPointer::kMade) != 0 && made_hook_ != nullptr;
          note_owed(pointer, is_made ? Owed::kMade : 0);  // before this block, which knows of it, is gone
          if (is_made) {
            made_hook_(pointer);
          } else {
            remote.push_back(pointer);
          }
        } else if (mapping.segments.locate(pointer.address.offset_bytes(), below)) {
          // What a version contains is a version too: it shares children with its own pre-image.
          if (is_version)
            static_cast<void>(change_owner(pointer, parent_word(here), owner_word(OwnerKind::borrower, process_)));
          static_cast<void>(begin_free(below, pointer.colour, true, open));  // gone already: nothing to do
          kill_point("heap.free.child");
        }
      }
    }
    give_back(place);
    kill_point("heap.free.given_back");
    mapping.slot(process_.slot).frees_open.fetch_sub(1);
  }
}

// A block that is this process's alone (filling or freeing) becomes free memory, in whosever span it lies.
void Heap::give_back(const Place& place) noexcept {
  Partition::Mapping& mapping = *partition_.mapping_;
  if (place.entry.kind() == SegmentKind::run) {
    mapping.segments.take(place.head, process_);
    mapping.segments.give_back(place.head, process_);
    return;
  }
  mapping.header_at(place.offset_bytes).state.store(kFree, std::memory_order_release);
  if (place.entry.owner() == process_) {
    arena_->enter(place);
  } else {
    mapping.segments.hint_free(place.head, place.entry.owner());
  }
}

Status Heap::free(const GlobalPointer& pointer, std::vector<GlobalPointer>& remote) {
  if (!partition_.is_local(pointer.address)) {
    remote.push_back(pointer);
    return Status();
  }
  Place place;
  std::vector<Place> open;
  if (!partition_.mapping_->segments.locate(pointer.address.offset_bytes(), place)) {
    return Status(Code::not_found, "no block there");
  }
  if (!begin_free(place, pointer.colour, true, open)) return Status(Code::stale, "another colour");
  free_open(open, remote);
  return Status();
}

Status Heap::free_shallow(const GlobalPointer& pointer) {
  Place place;
  std::vector<Place> open;
  std::vector<GlobalPointer> remote;
  if (!partition_.is_local(pointer.address) ||
      !partition_.mapping_->segments.locate(pointer.address.offset_bytes(), place)) {
    return Status(Code::not_found, "no block there");
  }
  if (!begin_free(place, pointer.colour, false, open)) return Status(Code::stale, "another colour");
  free_open(open, remote);
  return Status();
}

Status Heap::free_made(const GlobalPointer& pointer, std::vector<GlobalPointer>& remote) {
  // The word outlives this process if it is killed here: whoever goes on frees the same.
  if (partition_.is_local(pointer.address)) set_owner(pointer, owner_word(OwnerKind::borrower, process_));
  return free(pointer, remote);
}

void Heap::note_owed(const GlobalPointer& remote, std::uint64_t flags) noexcept {
  Outbox(partition_.mapping_->outbox(process_.slot)).note(remote, flags);
}

void Heap::clear_owed(Address address, Colour colour) noexcept {
  Outbox(partition_.mapping_->outbox(process_.slot)).clear(address, colour);
}

std::vector<Owed> Heap::take_owed(ProcessId dead) noexcept {
  if (!partition_.is_reapable(dead)) return {};
  return Outbox(partition_.mapping_->outbox(dead.slot)).take();
}

// -- adopting
// --------------------------------------------------------------------------------------------------------

void Heap::adopt_block(const Place& place, ProcessId dead, std::vector<Place>& open) {
  Partition::Mapping& mapping = *partition_.mapping_;
  BlockHeader& header = mapping.header_at(place.offset_bytes);
  for (const auto& [theirs, mine] :
       {std::pair{filling(dead), filling(process_)}, std::pair{freeing(dead), freeing(process_)}}) {
    std::uint64_t expected = theirs;
    if (header.state.load(std::memory_order_acquire) != theirs) continue;
    mapping.slot(process_.slot).frees_open.fetch_add(1);
    if (header.state.compare_exchange_strong(expected, mine, std::memory_order_acq_rel)) {
      open.push_back(place);
      kill_point("heap.adopt.opened");
    } else {
      mapping.slot(process_.slot).frees_open.fetch_sub(1);
    }
    return;
  }
}

// Children change hands before their new parent is published. If it never was, they are the dead process's. Their
// words alone do not say so: an older parent's may stand in them, whose memory a block that received or copied the
// same children is being filled in.
void Heap::take_back_stranded(ProcessId dead) {
  Partition::Mapping& mapping = *partition_.mapping_;
  partition_.each_live_block([&](const BlockInfo& block) {
    if (owner_kind(block.owner) != OwnerKind::parent || !partition_.is_local(owner_parent(block.owner))) return;
    Place parent;
    const std::uint64_t offset = owner_parent(block.owner).offset_bytes();
    if (!mapping.segments.locate(offset, parent)) return;
    if (!is_adopting(mapping.header_at(offset), dead)) return;
    const auto table = Block(mapping.writable + offset).children();
    const bool is_named = std::ranges::any_of(table, [&](const ChildPointer& child) {
      const std::uint64_t not_its_own = ChildPointer::kBorrowed | ChildPointer::kKept;
      return (child.flags & not_its_own) == 0 && child.address == block.pointer.address.raw();
    });
    if (!is_named) return;
    static_cast<void>(change_owner(block.pointer, block.owner, owner_word(OwnerKind::process, dead)));
  });
}

void Heap::adopt(ProcessId dead, std::vector<GlobalPointer>* remote) {
  ensure(!partition_.is_alive(dead), "adopting a process that lives");
  Partition::Mapping& mapping = *partition_.mapping_;
  Segments& segments = mapping.segments;
  const bool in_others = mapping.slot(dead.slot).frees_open.load() != 0;
  take_back_stranded(dead);
  std::vector<Place> open;
  std::vector<GlobalPointer> unsent;
  const std::uint64_t stop = segments.end();
  for (std::uint64_t head = 0; head < stop; ++head) {
    const SegmentEntry seen = segments.entry(head);
    if (!seen.is_head()) continue;
    const bool theirs = seen.owner() == dead;
    if (theirs && !segments.inherit(head, seen, process_)) continue;  // a run that somebody frees just now
    kill_point("heap.adopt.inherited");
    if (seen.status() == SegmentStatus::moving) {
      if (theirs) segments.give_back(head, process_, false);
      continue;
    }
    if (!theirs && !in_others) continue;
    const SegmentEntry entry = theirs ? seen.with_owner(process_) : seen;
    const bool is_span = entry.kind() == SegmentKind::span;
    for (std::uint32_t index = 0; index < Segments::blocks_of(entry); ++index) {
      const std::uint64_t offset = segments.block_offset(head, entry, index);
      adopt_block({head, entry, offset, is_span ? kClasses[entry.size_class()].block_bytes : 0}, dead, open);
    }
    free_open(open, unsent);
    if (theirs && is_span) arena_->add_span(head, entry);
  }
  if (partition_.is_reapable(dead)) mapping.slot(dead.slot).frees_open.store(0);
  segments.recount();
  if (remote != nullptr) remote->insert(remote->end(), unsent.begin(), unsent.end());
}

std::uint64_t Heap::free_owned_by(ProcessId dead, std::vector<GlobalPointer>& remote) {
  std::vector<GlobalPointer> owned;
  const std::uint64_t as_process = owner_word(OwnerKind::process, dead);
  const std::uint64_t as_borrower = owner_word(OwnerKind::borrower, dead);
  partition_.each_live_block([&](const BlockInfo& block) {
    if (block.owner == as_process || block.owner == as_borrower) owned.push_back(block.pointer);
  });
  std::uint64_t freed = 0;
  for (const GlobalPointer& pointer : owned) freed += free(pointer, remote).ok() ? 1U : 0U;
  return freed;
}

}  // namespace drust::heap
