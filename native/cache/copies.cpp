// Acquiring, publishing, evicting and reaping, in terms of the steps of copy_table.hpp.
#include "cache/copies.hpp"

#include <algorithm>
#include <sched.h>
#include <unistd.h>

#include "base/ensure.hpp"
#include "base/futex.hpp"
#include "base/kill_point.hpp"
#include "cache/copy_table.hpp"

namespace drust::cache {

Copies::Copies(heap::Heap& heap) : table_(std::make_unique<Table>(heap)) {}

Copies::~Copies() {
  Table& table = *table_;
  if (table.pid_ != ::getpid()) return;  // a forked child has no partition
  for (std::uint32_t index = 0; index < kCopiesMax; ++index) {
    const std::lock_guard lock(table.pin_mutexes_[index % Table::kPinMutexes]);
    if (table.pin_counts_[index] == 0) continue;
    table.row(index).pins[table.self_.slot / 64].fetch_and(~(1ULL << (table.self_.slot % 64)));
  }
}

Result<Acquired> Copies::acquire(const GlobalPointer& remote, std::uint32_t timeout_ms) {
  Table& table = *table_;
  const std::uint32_t home = home_of(remote);
  Deadline deadline{};  // read from the clock only by those who must wait
  while (true) {
    std::uint64_t seen = 0;
    std::uint32_t index = table.find(remote, home, seen);
    if (index != kCopiesMax && phase_of(seen) == EntryPhase::ready) {
      if (!table.pin(index, seen)) continue;
      table.row(index).acquired_at.store(now_ns(), std::memory_order_relaxed);
      table.partition_.count(table.self_, heap::Counter::copy_hits);
      return Acquired{false, index, table.local_of(table.row(index))};
    }
    if (deadline == Deadline{}) deadline = deadline_in(timeout_ms);
    if (table.partition_.is_closed()) return Status(Code::closed, "the runtime has been shut down");

    if (index == kCopiesMax) {
      if (!table.lock_stripe(home, deadline)) return Status(Code::timed_out, "the copy table stayed locked");
      if (table.find(remote, home, seen) == kCopiesMax)
        index = table.add(remote, home);
      else
        index = kCopiesMax + 1;  // somebody was faster: look again
      table.unlock_stripe(home);
      if (index < kCopiesMax) {
        table.partition_.count(table.self_, heap::Counter::copy_misses);
        return Acquired{true, index, {}};
      }
      if (index == kCopiesMax && !table.make_room(home))
        return Status(Code::full, "no entry of the copy table is free");
      continue;
    }

    // Somebody is fetching or evicting it.
    if (!table.partition_.is_alive(process_of(seen))) {
      static_cast<void>(table.end_fetch_of(index, seen));
      continue;
    }
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline) return Status(Code::timed_out, "another process of this host is still fetching it");
    if (phase_of(seen) == EntryPhase::evicting) {
      ::sched_yield();
      continue;
    }
    const std::uint32_t signal = table.row(index).signal.load();
    if (table.row(index).state.load() != seen) continue;
    const Deadline slice = std::min(deadline, now + std::chrono::milliseconds(kWaitSliceMs));
    if (futex_wait(table.row(index).signal, signal, slice) == Wake::interrupted) {
      return Status(Code::interrupted, "a signal arrived");
    }
  }
}

void Copies::publish(std::uint32_t entry, const GlobalPointer& local) {
  Table& table = *table_;
  Row& row = table.row(entry);
  const std::uint64_t seen = row.state.load();
  ensure(phase_of(seen) == EntryPhase::fetching && process_of(seen) == table.self_,
         "published a copy it did not fetch");
  row.local[1].store(local.colour);
  row.local[2].store(local.extent_bytes);
  row.local[0].store(local.address.raw());
  kill_point("copies.publish.named");
  // After the entry names the block: killed in between, whoever ends this fetch finds and frees it.
  const bool there = table.heap_.set_owner(local, heap::owner_word(heap::OwnerKind::copy, table.self_));
  ensure(there, "the copy published is no live block");
  kill_point("copies.publish.owned");
  row.acquired_at.store(now_ns(), std::memory_order_relaxed);
  const bool pinned = table.pin(entry, seen);
  ensure(pinned, "a fetch was ended though its leader lives");
  row.state.store(word_of(EntryPhase::ready, use_of(seen), {}));
  kill_point("copies.publish.ready");
  table.wake(entry);
}

void Copies::abandon(std::uint32_t entry) noexcept {
  Table& table = *table_;
  const std::uint64_t seen = table.row(entry).state.load();
  ensure(phase_of(seen) == EntryPhase::fetching && process_of(seen) == table.self_,
         "abandoned a copy it did not fetch");
  table.row(entry).state.store(word_of(EntryPhase::empty, use_of(seen) + 1, {}));
  table.wake(entry);
}

void Copies::release(std::uint32_t entry) noexcept { table_->unpin(entry); }

std::uint64_t Copies::evict(std::uint64_t bytes) {
  Table& table = *table_;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> candidates;  // when last acquired, which
  for (std::uint32_t index = 0; index < kCopiesMax; ++index) {
    if (phase_of(table.row(index).state.load(std::memory_order_relaxed)) != EntryPhase::ready ||
        table.is_pinned(index))
      continue;
    candidates.emplace_back(table.row(index).acquired_at.load(std::memory_order_relaxed), index);
  }
  std::sort(candidates.begin(), candidates.end());
  std::uint64_t freed = 0;
  for (const auto& [age, index] : candidates) {
    if (freed >= bytes) break;
    const std::uint64_t seen = table.row(index).state.load();
    if (phase_of(seen) == EntryPhase::ready) freed += table.evict(index, seen);
  }
  // What another process is evicting is about to be free, which takes it milliseconds where it is large.
  const Deadline deadline = deadline_in(kWaitSliceMs);
  for (std::uint32_t index = 0; index < kCopiesMax && freed < bytes; ++index) {
    const std::uint64_t seen = table.row(index).state.load(std::memory_order_relaxed);
    if (phase_of(seen) != EntryPhase::evicting || process_of(seen) == table.self_) continue;
    const std::uint64_t extent_bytes = table.local_of(table.row(index)).extent_bytes;
    while (table.row(index).state.load() == seen && table.partition_.is_alive(process_of(seen)) &&
           std::chrono::steady_clock::now() < deadline) {
      ::sched_yield();
    }
    if (table.row(index).state.load() != seen) freed += extent_bytes;
  }
  return freed;
}

void Copies::forget(const GlobalPointer& remote) noexcept {
  std::uint64_t seen = 0;
  const std::uint32_t index = table_->find(remote, home_of(remote), seen);
  if (index != kCopiesMax && phase_of(seen) == EntryPhase::ready)
    static_cast<void>(table_->evict(index, seen));
}

void Copies::reap(heap::ProcessId dead) {
  Table& table = *table_;
  ensure(!table.partition_.is_alive(dead), "reaping a process that lives");
  // A slot released too early may be another's by now, and so are the pins: better one kept for ever than one
  // lost.
  const std::uint64_t bit = table.partition_.is_reapable(dead) ? 1ULL << (dead.slot % 64) : 0;
  for (std::uint32_t index = 0; index < kCopiesMax; ++index) {
    SharedWord& pins = table.row(index).pins[dead.slot / 64];
    if ((pins.load(std::memory_order_relaxed) & bit) != 0) pins.fetch_and(~bit);
    const std::uint64_t seen = table.row(index).state.load();
    const EntryPhase phase = phase_of(seen);
    if (phase == EntryPhase::empty || phase == EntryPhase::ready || process_of(seen) != dead) continue;
    static_cast<void>(table.end_fetch_of(index, seen));
  }
  const std::uint64_t held = word_of(EntryPhase::reserved, 0, dead);
  for (std::uint32_t index = 0; index < kStripes; ++index) {
    std::uint64_t expected = held;
    table.stripe(index).compare_exchange_strong(expected, 0);
  }
}

std::uint64_t Copies::entries() const noexcept {
  std::uint64_t count = 0;
  for (std::uint32_t index = 0; index < kCopiesMax; ++index) {
    count +=
        phase_of(table_->row(index).state.load(std::memory_order_relaxed)) == EntryPhase::ready ? 1U : 0U;
  }
  return count;
}

std::uint64_t Copies::pinned() const noexcept {
  std::uint64_t count = 0;
  for (std::uint32_t index = 0; index < kCopiesMax; ++index) {
    const bool ready =
        phase_of(table_->row(index).state.load(std::memory_order_relaxed)) == EntryPhase::ready;
    count += ready && table_->is_pinned(index) ? 1U : 0U;
  }
  return count;
}

}  // namespace drust::cache
