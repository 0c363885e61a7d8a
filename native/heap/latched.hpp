// Several words that one writer changes and anybody reads whole, without waiting for each other.
//
// Idea: two copies; the sequence's lowest bit says which is valid. The writer fills the other one, then steps the
// sequence. A reader that finds the sequence unchanged after its reads had a copy that nobody was writing; it tries
// again only when a newer value has been written meanwhile. (The kernel calls this a latch: seqcount_latch_t.)
// The words are atomic and in one order with the sequence: a reader that saw any word of a later value also sees that the
// sequence moved. No fences, which the thread sanitizer does not follow.
// Rejected: one copy and an odd sequence while it is written. A writer that loses its processor in the middle makes
// readers spin for a time slice, and one that is killed there for ever: a bound on the attempts then answered
// "unknown" for a server that everybody knows.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace drust::heap {

template <std::size_t kWords>
class Latched {
 public:
  using Words = std::array<std::uint64_t, kWords>;

  // One writer at a time.
  void write(const Words& words) noexcept {
    const std::uint64_t next = sequence_.load() + 1;
    for (std::size_t index = 0; index < kWords; ++index) copies_[next % 2][index].store(words[index]);
    sequence_.store(next);
  }

  // All zero before the first write().
  [[nodiscard]] Words read() const noexcept {
    Words words;
    for (;;) {
      const std::uint64_t sequence = sequence_.load();
      for (std::size_t index = 0; index < kWords; ++index) words[index] = copies_[sequence % 2][index].load();
      if (sequence_.load() == sequence) return words;
    }
  }

  // Steps with each write(): its low half is a futex for who waits for the next.
  [[nodiscard]] const std::atomic<std::uint64_t>& sequence() const noexcept { return sequence_; }

 private:
  std::atomic<std::uint64_t> sequence_;
  std::atomic<std::uint64_t> copies_[2][kWords];
};

}  // namespace drust::heap
