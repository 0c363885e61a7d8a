// The copy table: copies of remote blocks in this partition, found by (address, colour), shared by every
// process of the host. One fetch a host: the first reader of a version leads, the others wait for the same
// fetch. An entry is found only once its bytes have arrived. Nothing is ever invalidated: a version nobody
// asks for any more is never looked up, and goes when the partition needs room.
//
//     empty -> fetching(leader) -> ready <-> evicting -> empty
//
// A pin is a bit per process slot (the count behind it is private to the process), so a dead process's pins
// can be dropped by clearing its bit everywhere. Evicting: ready -> evicting by compare-and-swap, then the
// pins are read; a reader sets its bit first and then reads the state; one of the two sees the other (both
// sequentially consistent). A leader that died is replaced: waiters check that fetching(leader) is alive.
// Source of the idea: Ma et al., OSDI'24, section 4.1.1 (per-server cache keyed by coloured address, lazy
// eviction).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"

namespace drust::cache {

struct Acquired {
  bool is_leader = false;     // the caller must fetch, then publish() or abandon()
  std::uint32_t entry = 0;
  GlobalPointer local;        // the copy, pinned by this process; null while is_leader
};

class Copies {
 public:
  explicit Copies(heap::Heap& heap);
  ~Copies();
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;

  // Finds the copy of `remote` and pins it, or makes the caller the leader of its fetch. Waits (futex) at
  // most `timeout_ms` for another leader: timed_out. `full` if no entry can be had: fetch without sharing
  // then.
  Result<Acquired> acquire(const GlobalPointer& remote, std::uint32_t timeout_ms);
  // The leader's bytes have arrived as the published block `local` (its owner becomes the copy table); pins
  // it for the leader and wakes the waiters.
  void publish(std::uint32_t entry, const GlobalPointer& local);
  void abandon(std::uint32_t entry) noexcept;
  // One pin less by this process.
  void release(std::uint32_t entry) noexcept;

  // Frees unpinned copies, least recently acquired first, until `bytes` are free or none is left. Returns
  // bytes freed.
  std::uint64_t evict(std::uint64_t bytes);
  // Forgets one version (ownership of it came to or left this host), if nobody pins it.
  void forget(const GlobalPointer& remote) noexcept;
  // Drops the pins and the unfinished fetches of a process that has ended.
  void reap(heap::ProcessId dead);

  [[nodiscard]] std::uint64_t entries() const noexcept;  // ready ones
  [[nodiscard]] std::uint64_t pinned() const noexcept;   // ready and pinned by anybody

 private:
  class Table;
  std::unique_ptr<Table> table_;
};

}  // namespace drust::cache
