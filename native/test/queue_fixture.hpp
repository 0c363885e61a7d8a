// What the tests of the task queue share: pointers to tell tasks apart by, and a second process.
#pragma once

#include "tasks/queue.hpp"
#include "test/heap_fixture.hpp"

namespace drust::test {

inline GlobalPointer task(std::uint64_t number) {
  return {Address::make(3, 64 * (number + 1)), (7ULL << 48) | (number + 1), number};
}
inline GlobalPointer record(std::uint64_t number) {
  return {Address::make(4, 64 * (number + 1)), (7ULL << 48) | number, 104};
}

struct Second {
  heap::ProcessId process;
  heap::Heap heap;
  tasks::Queue queue;
  explicit Second(Host& host) : process(host.join()), heap(*host.partition, process), queue(heap) {}
};

}  // namespace drust::test
