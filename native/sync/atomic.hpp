// AtomicInt and AtomicBool: one word, and the operations on it by number, so that a process of another server can
// ask for one in a request.
#pragma once

#include <cstdint>

#include "sync/object.hpp"

namespace drust::sync {

struct AtomicWords {
  static constexpr bool kFreesItself = true;
  static constexpr bool is_of(Kind kind) noexcept { return kind == Kind::integer || kind == Kind::boolean; }
  heap::SharedLife life;
  alignas(64) Word value;
};
static_assert(sizeof(AtomicWords) == 128);

enum class Step : std::uint16_t { load, store, exchange, add, sub, bit_and, bit_or, bit_xor, max, min, compare_exchange, count_ };

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
    case Step::count_: break;
  }
  return word.load();
}

}  // namespace drust::sync
