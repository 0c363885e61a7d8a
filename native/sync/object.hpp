// What every shared object begins with, and how one is made and found. Each kind has a file of its own.
//
// Words are used in place by the processes of the home host: atomics, and futexes where somebody waits. Processes of
// other servers send one request a step to the home server, which does the same on their behalf
// (server/shared_calls.cpp).
#pragma once

#include <cstdint>
#include <functional>
#include <new>

#include "heap/shared.hpp"
#include "sync/who.hpp"

namespace drust::sync {

using Word = std::atomic<std::uint64_t>;

enum class Kind : std::uint32_t { none, integer, boolean, mutex, channel, shard, rwlock, count_ };
static_assert(static_cast<std::uint32_t>(Kind::count_) <= 16, "a child pointer has four bits for it");

using IsDead = std::function<bool(Who)>;

// The words of an object, as their type; null if it is none of that kind.
template <class Words>
[[nodiscard]] Words* find(const heap::Partition& partition, const GlobalPointer& object) noexcept {
  heap::SharedLife* life = heap::find_shared(partition, object);
  if (life == nullptr || !Words::is_of(static_cast<Kind>(life->kind))) return nullptr;
  return reinterpret_cast<Words*>(life);
}

// A new object with zeroed words, and its first hold, which is returned.
template <class Words>
[[nodiscard]] Result<GlobalPointer> make(heap::Heap& heap, Kind kind, GlobalPointer& object,
                                         std::uint32_t children = 0) {
  const std::uint64_t bytes = sizeof(Words);
  const Result<Address> address =
      heap.allocate({.codec = heap::kSharedCodec, .child_count = children, .buffer_bytes = {&bytes, 1}});
  if (!address.ok()) return address.status();
  const heap::Block block(heap.partition().writable(address.value().offset_bytes()));
  for (heap::ChildPointer& child : block.children()) child = {};
  auto* words = new (block.buffer(0).data()) Words{};
  words->life.kind = static_cast<std::uint32_t>(kind);
  words->life.frees_itself = Words::kFreesItself ? 1 : 0;
  object = heap.publish(address.value());
  Result<GlobalPointer> hold = heap::make_first_hold(heap, object, 0);
  if (!hold.ok()) static_cast<void>(heap.free_shallow(object));
  return hold;
}

}  // namespace drust::sync
