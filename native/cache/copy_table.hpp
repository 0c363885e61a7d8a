// The copy table in shared memory, and the steps that copies.cpp is made of. Private to native/cache.
//
//     | page: futex of close(), stripe locks | keys, 16 B each | reach, 1 B each | rows, 80 B each |
//
// An entry's home is a hash of its key; it lies at most kCopyProbesMax places further on. `reach` of a home
// is the farthest any of its entries ever lay, so a look-up reads one or two lines of keys. Entries come and
// go with compare-and-swap alone; only whoever is about to add a key holds a stripe lock, a word that names
// its holder and is taken from him when he is dead, so that one version has one entry.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <sched.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include "base/ensure.hpp"
#include "base/futex.hpp"
#include "base/kill_point.hpp"
#include "cache/copies.hpp"

namespace drust::cache {

using SharedWord = std::atomic<std::uint64_t>;

// phase (3 bits) | use of the entry (21) | process slot (16) | generation (24). The use counts up each time
// an entry becomes empty, so a word seen twice means that nothing happened in between.
enum class EntryPhase : std::uint8_t { empty, reserved, fetching, ready, evicting };
constexpr std::uint64_t word_of(EntryPhase phase, std::uint64_t use, heap::ProcessId process) noexcept {
  return static_cast<std::uint64_t>(phase) | ((use & 0x1fffffU) << 3) |
         (std::uint64_t{process.slot & 0xffffU} << 24) |
         (std::uint64_t{process.generation & 0xffffffU} << 40);
}
constexpr EntryPhase phase_of(std::uint64_t word) noexcept { return static_cast<EntryPhase>(word & 7U); }
constexpr std::uint64_t use_of(std::uint64_t word) noexcept { return (word >> 3) & 0x1fffffU; }
constexpr heap::ProcessId process_of(std::uint64_t word) noexcept {
  return {static_cast<std::uint32_t>(word >> 24) & 0xffffU, static_cast<std::uint32_t>(word >> 40)};
}

struct Key {
  SharedWord address;  // the process that reserved the entry, before it is `fetching`
  SharedWord colour;
};

inline constexpr std::uint32_t kPinWords = kProcessesMax / 64;

struct Row {
  SharedWord state;                   // compare-and-swap
  SharedWord local[3];                // the copy: address, colour, extent; its leader, while fetching
  SharedWord acquired_at;             // hint for eviction
  SharedWord pins[kPinWords];         // a bit a process slot; that process, its reaper
  std::atomic<std::uint32_t> signal;  // futex: changes when a fetch ends
  std::uint32_t unused;
};
static_assert(sizeof(Key) == 16 && sizeof(Row) == 80);

inline constexpr std::uint32_t kStripes = 256;
inline constexpr std::uint64_t kStripesOffset = 2048;
inline constexpr std::uint64_t kKeysOffset = 4096;
inline constexpr std::uint64_t kReachOffset = kKeysOffset + kCopiesMax * sizeof(Key);
inline constexpr std::uint64_t kRowsOffset = kReachOffset + kCopiesMax;
static_assert(kStripesOffset + kStripes * sizeof(SharedWord) <= kKeysOffset);
static_assert(kRowsOffset + kCopiesMax * sizeof(Row) <= heap::Partition::kCopyAreaBytes);
static_assert(kCopyProbesMax <= 255);

inline std::uint32_t home_of(const GlobalPointer& remote) noexcept {
  std::uint64_t mixed = remote.address.raw() * 0x9e37'79b9'7f4a'7c15ULL ^ remote.colour;
  mixed = (mixed ^ (mixed >> 32)) * 0xd6e8'feb8'6659'fd93ULL;
  return static_cast<std::uint32_t>((mixed ^ (mixed >> 32)) % kCopiesMax);
}

inline std::uint64_t now_ns() noexcept {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

class Copies::Table {
 public:
  explicit Table(heap::Heap& heap)
      : heap_(heap),
        partition_(heap.partition()),
        self_(heap.process()),
        area_(partition_.copy_table_area()),
        pid_(::getpid()),
        pin_counts_(kCopiesMax, 0) {}

  [[nodiscard]] Key& key(std::uint32_t index) const noexcept {
    return reinterpret_cast<Key*>(area_ + kKeysOffset)[index];
  }
  [[nodiscard]] Row& row(std::uint32_t index) const noexcept {
    return reinterpret_cast<Row*>(area_ + kRowsOffset)[index];
  }
  [[nodiscard]] std::atomic<std::uint8_t>& reach(std::uint32_t home) const noexcept {
    return reinterpret_cast<std::atomic<std::uint8_t>*>(area_ + kReachOffset)[home];
  }
  [[nodiscard]] SharedWord& stripe(std::uint32_t home) const noexcept {
    return reinterpret_cast<SharedWord*>(area_ + kStripesOffset)[home % kStripes];
  }
  [[nodiscard]] GlobalPointer local_of(const Row& row) const noexcept {
    return {Address(row.local[0].load()), row.local[1].load(), row.local[2].load()};
  }

  // The entry of this key, whose state was `state`; kCopiesMax if there is none.
  std::uint32_t find(const GlobalPointer& remote, std::uint32_t home, std::uint64_t& state) const noexcept {
    const std::uint32_t last = reach(home).load(std::memory_order_acquire);
    for (std::uint32_t step = 0; step <= last; ++step) {
      const std::uint32_t index = (home + step) % kCopiesMax;
      if (key(index).address.load(std::memory_order_relaxed) != remote.address.raw()) continue;
      state = row(index).state.load();
      const EntryPhase phase = phase_of(state);
      if (phase == EntryPhase::empty || phase == EntryPhase::reserved) continue;
      // Read again after the state: a key only changes while its entry is reserved.
      if (key(index).address.load() == remote.address.raw() && key(index).colour.load() == remote.colour)
        return index;
    }
    return kCopiesMax;
  }

  // Sets this process's pin, then looks whether the entry is still as `seen`; an evicter does the reverse.
  bool pin(std::uint32_t index, std::uint64_t seen) noexcept {
    const std::lock_guard lock(pin_mutexes_[index % kPinMutexes]);
    if (pin_counts_[index]++ == 0) row(index).pins[self_.slot / 64].fetch_or(1ULL << (self_.slot % 64));
    kill_point("copies.pin.set");
    if (row(index).state.load() == seen) return true;
    unpin_locked(index);
    return false;
  }
  void unpin(std::uint32_t index) noexcept {
    const std::lock_guard lock(pin_mutexes_[index % kPinMutexes]);
    unpin_locked(index);
  }
  [[nodiscard]] bool is_pinned(std::uint32_t index) const noexcept {
    return std::any_of(std::begin(row(index).pins), std::end(row(index).pins),
                       [](const SharedWord& word) { return word.load() != 0; });
  }

  // ready -> evicting -> empty. 0 if it is pinned or no longer `seen`; else the bytes freed.
  std::uint64_t evict(std::uint32_t index, std::uint64_t seen) noexcept {
    const std::uint64_t evicting = word_of(EntryPhase::evicting, use_of(seen), self_);
    if (!row(index).state.compare_exchange_strong(seen, evicting)) return 0;
    if (is_pinned(index)) {
      row(index).state.store(seen);
      return 0;
    }
    kill_point("copies.evict.evicting");
    return finish_evicting(index, evicting);
  }
  std::uint64_t finish_evicting(std::uint32_t index, std::uint64_t evicting) noexcept {
    const std::uint64_t bytes = free_local(index);
    row(index).state.store(word_of(EntryPhase::empty, use_of(evicting) + 1, {}));
    partition_.count(self_, heap::Counter::copies_evicted);
    return bytes;
  }
  // The copy's children belong to the original: shallow. Freed already is fine, the colour says so.
  std::uint64_t free_local(std::uint32_t index) noexcept {
    const GlobalPointer local = local_of(row(index));
    if (local.is_null()) return 0;
    // In this order: killed in between, whoever ends this fetch or eviction frees it again, which does nothing.
    const bool was_live = heap_.free_shallow(local).ok();
    kill_point("copies.evict.freed");
    row(index).local[0].store(0);
    return was_live ? local.extent_bytes : 0;
  }

  // A dead process's unfinished fetch or eviction, taken over by compare-and-swap and brought to an end.
  bool end_fetch_of(std::uint32_t index, std::uint64_t seen) noexcept {
    const std::uint64_t mine = word_of(EntryPhase::evicting, use_of(seen), self_);
    if (!row(index).state.compare_exchange_strong(seen, mine)) return false;
    finish_evicting_quietly(index, mine);
    return true;
  }
  void finish_evicting_quietly(std::uint32_t index, std::uint64_t evicting) noexcept {
    free_local(index);
    row(index).state.store(word_of(EntryPhase::empty, use_of(evicting) + 1, {}));
    wake(index);
  }
  void wake(std::uint32_t index) noexcept {
    row(index).signal.fetch_add(1);
    futex_wake(row(index).signal, kEverybody);
  }

  bool lock_stripe(std::uint32_t home, Deadline deadline) noexcept {
    const std::uint64_t mine = word_of(EntryPhase::reserved, 0, self_);
    for (std::uint32_t tries = 1;; ++tries) {
      std::uint64_t holder = 0;
      if (stripe(home).compare_exchange_weak(holder, mine)) {
        kill_point("copies.stripe.locked");
        return true;
      }
      if (holder != 0 && !partition_.is_alive(process_of(holder)) &&
          stripe(home).compare_exchange_strong(holder, mine)) {
        return true;
      }
      ::sched_yield();  // held for a microsecond; longer only if its holder is stopped
      if (tries % 64 == 0 && std::chrono::steady_clock::now() >= deadline) return false;
    }
  }
  void unlock_stripe(std::uint32_t home) noexcept { stripe(home).store(0); }

  // Under the stripe lock, with no entry of this key: an empty one becomes ours, `fetching`. kCopiesMax:
  // none.
  std::uint32_t add(const GlobalPointer& remote, std::uint32_t home) noexcept {
    for (std::uint32_t step = 0; step < kCopyProbesMax; ++step) {
      const std::uint32_t index = (home + step) % kCopiesMax;
      std::uint64_t seen = row(index).state.load();
      if (phase_of(seen) != EntryPhase::empty) continue;
      if (!row(index).state.compare_exchange_strong(seen, word_of(EntryPhase::reserved, use_of(seen), self_)))
        continue;
      kill_point("copies.add.reserved");
      row(index).local[0].store(0);
      key(index).address.store(remote.address.raw());
      key(index).colour.store(remote.colour);
      std::uint8_t farthest = reach(home).load();
      while (farthest < step &&
             !reach(home).compare_exchange_weak(farthest, static_cast<std::uint8_t>(step))) {
      }
      row(index).state.store(word_of(EntryPhase::fetching, use_of(seen), self_));
      kill_point("copies.add.fetching");
      return index;
    }
    return kCopiesMax;
  }

  // The least recently acquired unpinned entry that `home` could use goes.
  bool make_room(std::uint32_t home) noexcept {
    std::array<std::pair<std::uint64_t, std::uint32_t>, kCopyProbesMax> ages;
    for (std::uint32_t step = 0; step < kCopyProbesMax; ++step) {
      const std::uint32_t index = (home + step) % kCopiesMax;
      ages[step] = {row(index).acquired_at.load(std::memory_order_relaxed), index};
    }
    std::sort(ages.begin(), ages.end());
    for (const auto& [age, index] : ages) {
      const std::uint64_t seen = row(index).state.load();
      if (phase_of(seen) == EntryPhase::empty) return true;
      if (phase_of(seen) != EntryPhase::ready || is_pinned(index)) continue;
      if (evict(index, seen) > 0) return true;
    }
    return false;
  }

  heap::Heap& heap_;
  heap::Partition& partition_;
  const heap::ProcessId self_;
  std::byte* const area_;
  const pid_t pid_;

  static constexpr std::uint32_t kPinMutexes = 64;
  std::array<std::mutex, kPinMutexes>
      pin_mutexes_;  // [i % 64] protects pin_counts_[i] and this process's bit of it
  std::vector<std::uint32_t> pin_counts_;

 private:
  void unpin_locked(std::uint32_t index) noexcept {
    ensure(pin_counts_[index] > 0, "a copy released more often than acquired");
    if (--pin_counts_[index] == 0) row(index).pins[self_.slot / 64].fetch_and(~(1ULL << (self_.slot % 64)));
  }
};

}  // namespace drust::cache
