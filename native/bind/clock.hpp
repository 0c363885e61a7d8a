// The coarse clock: a few nanoseconds a look, a few milliseconds of resolution. For the age of a borrow.
#pragma once

#include <ctime>

#include <cstdint>

namespace drust::bind {

[[nodiscard]] inline std::int64_t coarse_now_ms() noexcept {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

}  // namespace drust::bind
