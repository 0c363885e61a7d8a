// AtomicInt and AtomicBool: one word, and the operations on it by number, so that a process of another server can
// ask for one in a request.
//
// Who waits for another value is woken by whoever changed it and says so (Step::notify): as std::atomic's wait() and
// notify_all(), between processes. A process that dies between the two leaves the others to look for themselves, which
// they do after each slice of their wait.
#pragma once

#include <bit>
#include <cstdint>

#include "base/futex.hpp"
#include "sync/object.hpp"

namespace drust::sync {

struct AtomicWords {
  static constexpr bool kFreesItself = true;
  static constexpr bool is_of(Kind kind) noexcept { return kind == Kind::integer || kind == Kind::boolean; }
  heap::SharedLife life;
  alignas(64) Word value;
  std::atomic<std::uint32_t> local_wait;   // hints: whoever sleeps until the value is another,
  std::atomic<std::uint32_t> remote_wait;  // and requests of other servers that do
};
static_assert(sizeof(AtomicWords) == 128);

enum class Step : std::uint16_t { load, store, exchange, add, sub, bit_and, bit_or, bit_xor, max, min, compare_exchange, wait, notify, count_ };

// The value before the step. Sequentially consistent; numbers wrap at 64 bits, compared as signed.
inline std::uint64_t apply(Word& word, Step step, std::uint64_t first, std::uint64_t second) noexcept {
  const auto until = [&](auto&& next) {
    std::uint64_t seen = word.load();
    while (!word.compare_exchange_weak(seen, next(static_cast<std::int64_t>(seen)))) {
    }
    return seen;
  };
  const auto wanted = static_cast<std::int64_t>(first);
  switch (step) {
    case Step::load: return word.load();
    case Step::store:
    case Step::exchange: return word.exchange(first);
    case Step::add: return word.fetch_add(first);
    case Step::sub: return word.fetch_sub(first);
    case Step::bit_and: return word.fetch_and(first);
    case Step::bit_or: return word.fetch_or(first);
    case Step::bit_xor: return word.fetch_xor(first);
    case Step::max: return until([&](std::int64_t seen) { return static_cast<std::uint64_t>(seen > wanted ? seen : wanted); });
    case Step::min: return until([&](std::int64_t seen) { return static_cast<std::uint64_t>(seen < wanted ? seen : wanted); });
    case Step::compare_exchange: {
      std::uint64_t expected = first;
      static_cast<void>(word.compare_exchange_strong(expected, second));
      return expected;
    }
    case Step::wait:
    case Step::notify:
    case Step::count_: break;
  }
  return word.load();
}

// The half of the word that a futex compares. A change of the other half alone is seen after a slice.
[[nodiscard]] inline const std::atomic<std::uint32_t>& futex_of(const AtomicWords& words) noexcept {
  static_assert(std::endian::native == std::endian::little);
  const void* low_half = &words.value;
  return *static_cast<const std::atomic<std::uint32_t>*>(low_half);
}

// Until the value may be another than `seen`, or `deadline`.
inline Wake wait(AtomicWords& words, std::uint64_t seen, Deadline deadline) noexcept {
  words.local_wait.fetch_add(1);
  const Wake wake =
      words.value.load() != seen ? Wake::changed : futex_wait(futex_of(words), static_cast<std::uint32_t>(seen), deadline);
  words.local_wait.fetch_sub(1);
  return wake;
}

inline void notify(heap::Partition& rings, AtomicWords& words) noexcept {
  if (words.local_wait.load() != 0) futex_wake(futex_of(words), kEverybody);
  if (words.remote_wait.load() != 0) rings.ring_bell();
}

}  // namespace drust::sync
