// The memory of a simulated server: a partition with its heap, queue and copy table, as small as they come.
//
// Making one costs milliseconds, so it is kept from one schedule to the next; each leaves it empty, and says so
// if it does not. A server that crashes goes on with the memory of its next incarnation.
#pragma once

#include <unistd.h>

#include <array>
#include <memory>
#include <vector>

#include "base/ensure.hpp"
#include "cache/copies.hpp"
#include "heap/heap.hpp"
#include "heap/partition.hpp"
#include "tasks/queue.hpp"

namespace drust::test {

struct Machine {
  std::unique_ptr<heap::Partition> partition;
  std::unique_ptr<heap::Heap> heap;
  std::unique_ptr<tasks::Queue> queue;
  std::unique_ptr<cache::Copies> copies;
  std::vector<GlobalPointer> copied;  // versions that were asked for here

  Machine(ServerId server, std::uint16_t incarnation) {
    auto made = heap::Partition::create({.server = server, .incarnation = incarnation, .heap_bytes = 8ULL << 20});
    ensure(made.ok(), "a simulation needs partitions");
    partition = std::move(made.value());
    const auto process =
        partition->claim_process(heap::ProcessKind::server, static_cast<std::uint32_t>(::getpid()));
    ensure(process.ok(), "a simulation needs process slots");
    heap = std::make_unique<heap::Heap>(*partition, process.value());
    queue = std::make_unique<tasks::Queue>(*heap);
    copies = std::make_unique<cache::Copies>(*heap);
  }

  [[nodiscard]] ServerId server() const noexcept { return partition->server(); }
  [[nodiscard]] std::uint16_t incarnation() const noexcept { return partition->incarnation(); }
  [[nodiscard]] heap::Block block(Address address) const {
    return heap::Block(partition->writable(address.offset_bytes()));
  }
  [[nodiscard]] bool is_live(const GlobalPointer& pointer) const {
    return partition->find(pointer.address, pointer.colour).ok();
  }

  // A live block with one buffer of these bytes, which owns `child` if there is one.
  GlobalPointer make(std::span<const std::byte> bytes, std::uint32_t codec, const GlobalPointer& child = {}) {
    const std::uint64_t sizes[1] = {bytes.size()};
    const auto address = heap->allocate(
        {.codec = codec, .child_count = child.is_null() ? 0U : 1U, .buffer_bytes = sizes});
    ensure(address.ok(), "a simulated heap has room");
    if (!child.is_null())
      block(address.value()).children()[0] = {child.address.raw(), child.colour, child.extent_bytes, 0};
    std::memcpy(block(address.value()).buffer(0).data(), bytes.data(), bytes.size());
    return heap->publish(address.value());
  }
  template <class Body>
  GlobalPointer make_body(const Body& body, std::uint32_t codec) {
    return make(std::as_bytes(std::span(&body, 1)), codec);
  }
  template <class Body>
  [[nodiscard]] Body read_body(const GlobalPointer& pointer) const {
    Body body{};
    const auto found = partition->find(pointer.address, pointer.colour);
    if (found.ok() && found.value().buffer(0).size() == sizeof body)
      std::memcpy(&body, found.value().buffer(0).data(), sizeof body);
    return body;
  }
};

class Machines {
 public:
  static constexpr std::uint32_t kServers = 3;
  static constexpr std::uint16_t kIncarnations = 2;
  Machine& at(ServerId server, std::uint16_t incarnation) {
    auto& place = machines_[server][incarnation - 1U];
    if (place == nullptr) place = std::make_unique<Machine>(server, incarnation);
    return *place;
  }
  template <class Visit>
  void each(Visit visit) {
    for (auto& incarnations : machines_) {
      for (auto& machine : incarnations) {
        if (machine != nullptr) visit(*machine);
      }
    }
  }

 private:
  std::array<std::array<std::unique_ptr<Machine>, kIncarnations>, kServers> machines_;
};

}  // namespace drust::test
