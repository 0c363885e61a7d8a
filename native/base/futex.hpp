// Waiting on a 32-bit word of shared memory, by any process that maps it: futexes without the private flag.
//
// Rejected: std::atomic::wait, which in libstdc++ is private to a process (and so never wakes across two).
// Deadlines are absolute, so a loop around a spurious wake does not wait longer; a signal is reported, so
// that Python can look at it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace drust {

using Deadline = std::chrono::steady_clock::time_point;

[[nodiscard]] inline Deadline deadline_in(std::uint32_t timeout_ms) noexcept {
  return std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
}

enum class Wake : std::uint8_t {
  changed,  // woken, or the word was not `expected`, or for no reason: look again
  timed_out,
  interrupted,  // a signal handler ran
};

// Sleeps while `word` holds `expected`, until `deadline`. One system call.
[[nodiscard]] Wake futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected,
                              Deadline deadline) noexcept;

// Wakes at most `most` sleepers of `word`. One system call; the word's memory is not touched.
void futex_wake(const std::atomic<std::uint32_t>& word, std::uint32_t most) noexcept;
inline constexpr std::uint32_t kEverybody = 0x7fffffffU;

}  // namespace drust
