// Locks to test with, and what a server's attendant and a waiting thread do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "heap/shared.hpp"
#include "sync/lock.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

namespace drust::test {

using namespace sync;

struct Shared {
  GlobalPointer object;
  GlobalPointer hold;
  LockWords* words = nullptr;
  explicit Shared(Host& host) {
    const auto made = make<LockWords>(*host.heap, Kind::mutex, object, LockWords::kChildren);
    ensure(made.ok(), "no shared object to test with");
    hold = made.value();
    words = find<LockWords>(*host.partition, object);
    ensure(words != nullptr, "the object is not found");
  }
};

// As the server's attendant does.
inline std::size_t sweep(Host& host) {
  std::size_t freed = 0;
  std::vector<GlobalPointer> remote;
  for (const heap::Looked& looked : heap::look_at_marked(*host.partition)) {
    if (!looked.has_holds[0] && !looked.has_holds[1]) freed += host.heap->free(looked.object, remote).ok() ? 1U : 0U;
  }
  return freed;
}

inline bool lock_within(heap::Partition& partition, LockWords& words, Who who, std::uint64_t token, std::uint32_t wait_ms) {
  const Deadline deadline = deadline_in(wait_ms);
  if (try_enter(partition, words, who)) return true;
  const Queued queued = queue_up(words, who, token);
  if (queued.met != Met::waiting) return queued.met == Met::locked;
  while (!has_entered(words, who, queued.place)) {
    if (std::chrono::steady_clock::now() >= deadline) return give_up(partition, words, who, queued.place);
    static_cast<void>(words.line.wait(queued.place, deadline));
  }
  return true;
}


struct SharedBoth {
  GlobalPointer object;
  GlobalPointer hold;
  RwLockWords* words = nullptr;
  explicit SharedBoth(Host& host) {
    const auto made = make<RwLockWords>(*host.heap, Kind::rwlock, object, LockWords::kChildren);
    ensure(made.ok(), "no shared object to test with");
    hold = made.value();
    words = find<RwLockWords>(*host.partition, object);
    ensure(words != nullptr && find<LockWords>(*host.partition, object) == words, "the object is not found");
  }
};

inline std::optional<std::uint32_t> read_within(heap::Partition& partition, RwLockWords& words, Who who, std::uint64_t token,
                                         std::uint32_t wait_ms) {
  const Deadline deadline = deadline_in(wait_ms);
  if (const auto slot = try_read(partition, words, who, token)) return slot;
  const QueuedToRead queued = queue_to_read(partition, words, who, token);
  if (queued.met == Met::locked) return queued.slot;
  if (queued.met == Met::crowded) return std::nullopt;
  for (;;) {
    if (const auto slot = has_entered_to_read(partition, words, who, queued.place, token)) return slot;
    if (std::chrono::steady_clock::now() >= deadline) break;
    static_cast<void>(words.line.wait(queued.place, deadline));
  }
  give_up_reading(partition, words, who, queued.place);
  return std::nullopt;
}

inline bool write_within(heap::Partition& partition, RwLockWords& words, Who who, std::uint64_t token, std::uint32_t wait_ms) {
  return try_write(partition, words, who) || lock_within(partition, words, who, token, wait_ms);
}

}  // namespace drust::test
