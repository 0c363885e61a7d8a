// What the tests of heap/, cache/ and tasks/ share: a partition with one process in it, and blocks to put
// there.
#pragma once

#include <memory>
#include <sys/time.h>
#include <unistd.h>
#include <vector>

#include "base/ensure.hpp"
#include "heap/heap.hpp"
#include "heap/partition.hpp"

#if defined(__SANITIZE_THREAD__)
#define DRUST_TEST_FORKS 0  // the thread sanitizer does not follow a fork
#else
#define DRUST_TEST_FORKS 1
#endif

namespace drust::test {

struct Host {
  std::unique_ptr<heap::Partition> partition;
  heap::ProcessId process;
  std::unique_ptr<heap::Heap> heap;

  explicit Host(std::uint64_t heap_bytes = 64ULL << 20, std::uint64_t warm_bytes = 4ULL << 20,
                ServerId server = 3) {
    auto made = heap::Partition::create(
        {.server = server, .incarnation = 7, .heap_bytes = heap_bytes, .warm_bytes = warm_bytes});
    ensure(made.ok(), "no partition to test with");
    partition = std::move(made.value());
    process = join();
    heap = std::make_unique<heap::Heap>(*partition, process);
  }
  heap::ProcessId join() const {
    auto claimed =
        partition->claim_process(heap::ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
    ensure(claimed.ok(), "no process slot to test with");
    return claimed.value();
  }
};

// The calling process ends that much later, wherever it is by then: SIGALRM's default is as sudden as SIGKILL.
inline void die_in(std::uint32_t microseconds) {
  const itimerval when = {.it_interval = {}, .it_value = {0, static_cast<suseconds_t>(microseconds + 1)}};
  ensure(::setitimer(ITIMER_REAL, &when, nullptr) == 0, "no timer");
}

inline heap::Block block_at(const heap::Partition& partition, Address address) {
  return heap::Block(partition.writable(address.offset_bytes()));
}

// A published block of one buffer and the children given; a null pointer if there is no room.
inline GlobalPointer make_block(heap::Heap& heap, std::uint64_t buffer_bytes,
                                const std::vector<GlobalPointer>& children = {}, std::uint64_t flags = 0) {
  const std::vector<std::uint64_t> sizes = {buffer_bytes};
  const auto address = heap.allocate(
      {.codec = 9, .child_count = static_cast<std::uint32_t>(children.size()), .buffer_bytes = sizes});
  if (!address.ok()) return {};
  const auto table = block_at(heap.partition(), address.value()).children();
  for (std::size_t index = 0; index < children.size(); ++index) {
    table[index] = {children[index].address.raw(), children[index].colour, children[index].extent_bytes,
                    flags};
  }
  return heap.publish(address.value());
}

}  // namespace drust::test
