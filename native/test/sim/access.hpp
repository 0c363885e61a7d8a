// How a granted borrow reaches its bytes in the simulation: the runtime's part (native/bind/access.cpp) without
// Python, over the same copy table, heap and peers. Each function holds what it read against the ledger.
#pragma once

#include "protocol/ownership_access.hpp"
#include "test/sim/cluster.hpp"

namespace drust::test {

// Who reads: the owner (task 0), or a task, which may have been given up meanwhile.
struct Reader {
  Cluster& cluster;
  Site& site;
  std::uint32_t task = 0;

  // Nobody relies on what it does any more.
  [[nodiscard]] bool is_nobody() const {
    return !site.is_up() || (task != 0 && cluster.facts(task).is_given_up);
  }

  // `value`, which was read for `pointer` by somebody with the right to read it.
  void judge(std::span<const std::byte> value, const GlobalPointer& pointer, std::uint32_t object,
             const Numbers& numbers) {
    if (holds(value, object, numbers)) return;
    const Version* version = cluster.ledger.find(pointer);
    if (is_nobody() && (version == nullptr || version->is_dirty)) return;
    cluster.wrong("object %u: a borrow at server %u saw another value than the last write's (%u, %u)", object,
                  site.id(), numbers[0], numbers[1]);
  }

  // A read that had the right to succeed.
  Status judged(Status status, const GlobalPointer& pointer) {
    const bool is_gone = status.code() == Code::stale || status.code() == Code::not_found;
    if (is_gone && !is_nobody() && !cluster.is_lost(pointer)) {
      cluster.wrong("a block that is borrowed is gone: %s", status.detail().c_str());
    }
    return status;
  }

  [[nodiscard]] std::span<const std::byte> local_bytes(const GlobalPointer& local) const {
    const auto found = site.machine.partition->find(local.address, local.colour);
    if (!found.ok()) return {};
    return found.value().buffer(0);
  }

  Status read_shared(const GlobalPointer& pointer, std::uint32_t object, const Numbers& numbers) {
    if (site.is_here(pointer)) {
      const auto bytes = local_bytes(pointer);
      if (bytes.empty()) return judged(Status(Code::stale, "not here"), pointer);
      judge(bytes, pointer, object, numbers);
      return {};
    }
    cache::Copies& copies = *site.machine.copies;
    for (;;) {
      const auto acquired = copies.acquire(pointer, 0);
      if (acquired.ok() && !acquired.value().is_leader) {
        ++cluster.seen.copy_hits;
        judge(local_bytes(acquired.value().local), pointer, object, numbers);
        copies.release(acquired.value().entry);
        return {};
      }
      if (!acquired.ok() && acquired.status().code() == Code::timed_out) {
        cluster.fibers.sleep(200);  // another fiber of this server fetches it
        continue;
      }
      if (!acquired.ok()) return acquired.status();
      const auto local = cluster.call("read_block", [&] { return site.peers->read_block(pointer); });
      if (!local.ok()) {
        copies.abandon(acquired.value().entry);
        return judged(local.status(), pointer);
      }
      copies.publish(acquired.value().entry, local.value());
      site.machine.copied.push_back(pointer);
      judge(local_bytes(local.value()), pointer, object, numbers);
      copies.release(acquired.value().entry);
      return {};
    }
  }

  // The bytes of a block elsewhere in a new block here: the object moves.
  Result<GlobalPointer> fetch(const GlobalPointer& pointer, std::uint32_t object, const Numbers& numbers) {
    ++cluster.seen.moves;
    auto local = cluster.call("read_block to move", [&] { return site.peers->read_block(pointer); });
    if (!local.ok()) return judged(local.status(), pointer);
    judge(local_bytes(local.value()), pointer, object, numbers);
    return local;
  }

  // Under a mutable borrow of a block here; others get their turn in the middle of it.
  void write(const GlobalPointer& pointer, std::uint32_t object, std::uint32_t number) {
    if (Version* version = cluster.ledger.find(pointer); version != nullptr) version->is_dirty = true;
    const auto found = site.machine.partition->find(pointer.address, pointer.colour);
    if (!found.ok()) return cluster.wrong("object %u: the block that is written is gone", object);
    const auto buffer = found.value().buffer(0);
    for (const std::uint32_t half : {0U, 1U}) {
      const Half place = half_of(buffer.size(), half);
      write_words(buffer.subspan(place.offset_bytes, place.bytes), object, number);
      if (half == 0 && cluster.dice.once_in(3)) cluster.fibers.sleep(1 + cluster.dice.below(400));
    }
  }
};

// The block alone, wherever it is. It was ours to free, so it is there.
inline void free_block(Cluster& cluster, Site& site, const GlobalPointer& pointer) {
  if (!site.is_here(pointer)) {
    cluster.freed.push_back({pointer, true, &site});
    site.free_later(pointer);
    return;
  }
  if (!site.machine.heap->free_shallow(pointer).ok() && site.is_up())
    cluster.wrong("a block was freed by somebody else before its owner freed it");
}

}  // namespace drust::test
