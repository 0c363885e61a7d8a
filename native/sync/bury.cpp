#include "sync/bury.hpp"

#include "sync/channel.hpp"
#include "sync/mutex.hpp"

namespace drust::sync {

void bury_everywhere(heap::Heap& heap, const IsDead& is_dead, heap::ProcessId dead) {
  heap::Partition& partition = heap.partition();
  partition.each_live_block([&](const heap::BlockInfo& block) {
    if (block.codec != heap::kSharedCodec) return;
    if (MutexWords* mutex = find<MutexWords>(partition, block.pointer); mutex != nullptr)
      bury(partition, *mutex, is_dead);
    if (ChannelWords* channel = find<ChannelWords>(partition, block.pointer); channel != nullptr)
      Channel(heap, block.pointer, *channel).bury(is_dead, dead);
  });
}

}  // namespace drust::sync
