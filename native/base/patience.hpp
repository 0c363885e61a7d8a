// Looking again for a moment before sleeping: what is about to come costs no sleep, no wake, no system call.
//
// A sleep and a wake cost 5 to 60 us, most of it until the sleeper's processor is awake again; the answer often
// comes sooner. Who has looked in vain some times running looks no more, but tries again: soon, then ever more seldom,
// so that a pause in the traffic does not put everybody to sleep for long after it. Between two looks whoever else is
// to run here does. On one processor nobody looks.
//
// Two that wait for each other in turns have to look both, or each waits for the other to be awake, longer than a look
// lasts: so a look lasts as long as such a wake, and a try after all have gone to sleep as long as a round of them.
// Rejected: 200 us for every look. A lock on another server took twice as long after a pause on two processors: those
// who look in vain are in the way of those who have something to do.
// Rejected: looking always. Where answers take a millisecond each wait would burn it in vain.
// Rejected: a look half as long after each one in vain. After a pause all are slow, looks of half the time are in vain
// too, and the first dozen tasks on another server took twice as long.
#pragma once

#include <bit>
#include <chrono>
#include <cstdint>
#include <sched.h>

#include "base/limits.hpp"

namespace drust {

// One of these for each kind of wait of a thread; not shared.
class Patience {
 public:
  // Looks until `is_over` says so (true), or patience has ended.
  template <typename Look>
  [[nodiscard]] bool wait(Look&& is_over) noexcept(noexcept(is_over())) {
    if (!looks()) {
      ++in_vain_;
      return false;
    }
    const std::uint32_t bound_us = in_vain_ < kInVainRunning ? kPatienceUs : kPatienceUsMax;
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(bound_us);
    do {
      for (int look = 0; look < kLooks; ++look) {
        if (is_over()) {
          in_vain_ = 0;
          return true;
        }
        pause();
      }
      ::sched_yield();
    } while (std::chrono::steady_clock::now() < end);
    ++in_vain_;
    return false;
  }

  // One processor: looking would keep away from it whom it waits for.
  static bool is_alone() noexcept {
    static const bool answer = [] {
      cpu_set_t allowed;
      return ::sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) < 2;
    }();
    return answer;
  }

 private:
  static constexpr int kLooks = 8;
  static constexpr std::uint32_t kInVainRunning = 4;
  static constexpr std::uint32_t kTriedAgainAfter = 32;

  [[nodiscard]] bool looks() const noexcept {
    if (is_alone()) return false;
    if (in_vain_ <= kInVainRunning) return in_vain_ < kInVainRunning;
    return std::has_single_bit(in_vain_) || in_vain_ % kTriedAgainAfter == 0;
  }

  static void pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::uint32_t in_vain_ = 0;  // waits, since the last look that paid
};

}  // namespace drust
