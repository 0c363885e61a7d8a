// The one runtime of a process: its mapping of the partition and everything native that hangs on it.
//
// A process has one or none. After close(), and in a forked child (the mappings are MADV_DONTFORK), there is none:
// handles ask current_runtime() each time and are inert when it is null, so a late destructor cannot touch the heap.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/address.hpp"
#include "base/status.hpp"
#include "cache/copies.hpp"
#include "heap/heap.hpp"
#include "heap/partition.hpp"
#include "server/homeward.hpp"
#include "server/peers.hpp"
#include "tasks/queue.hpp"

namespace drust::bind {

// Declared in the order of construction; destroyed in reverse, so nothing outlives what it uses.
struct Runtime {
  std::unique_ptr<heap::Partition> partition;
  heap::ProcessId process;
  std::unique_ptr<heap::Heap> heap;
  std::unique_ptr<cache::Copies> copies;
  std::unique_ptr<tasks::Queue> queue;
  std::unique_ptr<server::Peers> peers;
  std::unique_ptr<server::Homeward> homeward;

  void count(heap::Counter counter, std::uint64_t amount = 1) const noexcept {
    partition->count(process, counter, amount);
  }
};

// What a worker's Python has of a task that it runs.
struct TaskEntry {
  tasks::Entry entry;
};

// Null before attach, after close and in a forked child. Protected by the interpreter lock.
[[nodiscard]] Runtime* current_runtime() noexcept;
void set_current_runtime(Runtime* runtime) noexcept;

// What the end of a Pin does to the block it held.
enum class OnRelease : std::uint8_t { nothing, free_tree, free_shallow, release_copy, free_tied, free_made };

// Frees a block here or, asynchronously, on its server; or gives one pin of the copy table back. Never fails loudly: a
// block that is gone already is what was wanted. 0 messages here, a share of one batched message elsewhere.
void release_block(const GlobalPointer& pointer, OnRelease action, std::uint32_t copy_entry) noexcept;

}  // namespace drust::bind
