#include "sync/bury.hpp"

#include "sync/channel.hpp"
#include "sync/dict.hpp"
#include "sync/lock.hpp"

namespace drust::sync {

void bury_everywhere(heap::Heap& heap, const IsDead& is_dead, heap::ProcessId dead) {
  heap::Partition& partition = heap.partition();
  partition.each_live_block([&](const heap::BlockInfo& block) {
    if (block.codec != heap::kSharedCodec) return;
    if (LockWords* lock = find<LockWords>(partition, block.pointer); lock != nullptr)
      bury(heap, block.pointer, *lock, is_dead);
    if (ChannelWords* channel = find<ChannelWords>(partition, block.pointer); channel != nullptr)
      Channel(heap, block.pointer, *channel).bury(is_dead, dead);
    if (ShardWords* shard = find<ShardWords>(partition, block.pointer); shard != nullptr)
      Shard(heap, block.pointer, *shard).bury(is_dead);
  });
}

void free_unopened(heap::Heap& heap, const IsDead& is_dead, bool lost, std::vector<GlobalPointer>& remote) {
  std::vector<GlobalPointer> unopened;
  heap.partition().each_live_block([&](const heap::BlockInfo& block) {
    if (heap::owner_kind(block.owner) == heap::OwnerKind::receiver && is_dead(Who(block.owner)))
      unopened.push_back(block.pointer);
  });
  for (const GlobalPointer& message : unopened)
    static_cast<void>(lost ? heap.free_shallow(message) : heap.free(message, remote));
}

}  // namespace drust::sync
