#include "server/deliver.hpp"

namespace drust::server {
namespace {

using heap::ChildPointer;

// Nobody joins: the block goes with the result in it, and the new versions with it.
void free_unwanted(heap::Heap& heap, const GlobalPointer& completion, std::vector<GlobalPointer>& remote,
                   std::vector<GlobalPointer>& made) noexcept {
  heap::Partition& partition = heap.partition();
  if (const Result<heap::Block> block = partition.find(completion.address, completion.colour); block.ok()) {
    for (const ChildPointer& child : block.value().children()) {
      if ((child.flags & ChildPointer::kBorrowed) != ChildPointer::kMutable || child.address == 0) continue;
      if (partition.is_local(child.pointer().address)) {
        static_cast<void>(heap.free_made(child.pointer(), remote));
      } else {
        made.push_back(child.pointer());
      }
    }
  }
  static_cast<void>(heap.free(completion, remote));
}

}  // namespace

void release_versions(heap::Heap& heap, const GlobalPointer& completion, heap::ProcessId worker) noexcept {
  heap::Partition& partition = heap.partition();
  const Result<heap::Block> block = partition.find(completion.address, completion.colour);
  if (!block.ok()) return;
  const std::uint64_t nobody = heap::owner_word(heap::OwnerKind::none, {});
  for (const ChildPointer& child : block.value().children()) {
    if ((child.flags & ChildPointer::kBorrowed) != ChildPointer::kMutable) continue;
    if (!partition.is_local(child.pointer().address)) continue;
    for (const heap::OwnerKind kind : {heap::OwnerKind::borrower, heap::OwnerKind::process}) {
      static_cast<void>(heap.change_owner(child.pointer(), heap::owner_word(kind, worker), nobody));
    }
  }
}

void deliver_here(heap::Heap& heap, const GlobalPointer& record, tasks::RecordState state,
                  const GlobalPointer& completion, std::vector<GlobalPointer>& remote,
                  std::vector<GlobalPointer>& made) noexcept {
  // Before anybody can take it: from the next step on it is the joiner's.
  if (!completion.is_null()) heap.set_owner(completion, heap::owner_word(heap::OwnerKind::none, {}));
  const tasks::Delivery delivery = tasks::Queue::complete(heap, record, state, completion);
  if (completion.is_null() || delivery == tasks::Delivery::applied) return;
  if (delivery == tasks::Delivery::unwanted) {
    free_unwanted(heap, completion, remote, made);
  } else {
    static_cast<void>(heap.free_shallow(completion));  // the first one carried the same children
  }
}

Status deliver(heap::Heap& heap, Peers& peers, const GlobalPointer& record, tasks::RecordState state,
               const GlobalPointer& completion) {
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  Status status;
  if (heap.partition().is_local(record.address)) {
    deliver_here(heap, record, state, completion, remote, made);
  } else {
    status = peers.complete(record, static_cast<std::uint32_t>(state), completion);
    if (!completion.is_null() && status.ok()) {
      static_cast<void>(heap.free_shallow(completion));
    } else if (!completion.is_null()) {
      free_unwanted(heap, completion, remote, made);  // whoever waited is lost with the server
    }
  }
  for (const GlobalPointer& pointer : remote) peers.free_later(pointer, false);
  for (const GlobalPointer& pointer : made) peers.free_made_later(pointer);
  return status;
}

}  // namespace drust::server
