#include "tasks/arrivals.hpp"

#include <algorithm>

#include "base/futex.hpp"
#include "base/kill_point.hpp"
#include "base/limits.hpp"

namespace drust::tasks {
namespace {

// One a process slot. All words: any process, atomically.
struct alignas(64) Row {
  std::atomic<std::uint32_t> told;      // futex: changes after an entry was written
  std::atomic<std::uint32_t> sleepers;  // at least as many as sleep on it
  alignas(8) std::atomic<std::uint64_t> tail;  // tickets given out
  alignas(64) std::atomic<std::uint64_t> entries[kArrivalsKept];
};
static_assert(sizeof(Row) * kProcessesMax == heap::Partition::kArrivalsAreaBytes);

Row& row_of(const heap::Partition& partition, std::uint32_t slot) noexcept {
  return reinterpret_cast<Row*>(partition.arrivals_area())[slot];
}

// Granules of the record's place in its partition, below the lap: never 0, as the first lap is 1.
constexpr std::uint64_t lap_of(std::uint64_t ticket) noexcept {
  return (ticket / kArrivalsKept + 1) & ((1ULL << (64 - kGranuleBits)) - 1);
}
constexpr std::uint64_t entry_word(std::uint64_t ticket, Address record) noexcept {
  return (lap_of(ticket) << kGranuleBits) | (record.raw() & ((1ULL << kGranuleBits) - 1));
}

}  // namespace

Arrivals::Arrivals(const heap::Partition& partition, heap::ProcessId process) noexcept
    : partition_(partition), slot_(process.slot), next_(row_of(partition, process.slot).tail.load()) {}

void Arrivals::tell(const heap::Partition& partition, heap::ProcessId process, Address record) noexcept {
  if (process.slot >= kProcessesMax) return;
  Row& row = row_of(partition, process.slot);
  const std::uint64_t ticket = row.tail.fetch_add(1);
  kill_point("arrivals.tell.claimed");
  row.entries[ticket % kArrivalsKept].store(entry_word(ticket, record));
  row.told.fetch_add(1);
  if (row.sleepers.load() > 0) futex_wake(row.told, kEverybody);
}

void Arrivals::stop() noexcept {
  Row& row = row_of(partition_, slot_);
  is_stopped_.store(true);
  row.told.fetch_add(1);
  futex_wake(row.told, kEverybody);
}

Result<Arrivals::News> Arrivals::wait(std::uint32_t timeout_ms) {
  Row& row = row_of(partition_, slot_);
  const Deadline deadline = deadline_in(timeout_ms);
  News news;
  while (true) {
    const std::uint32_t told = row.told.load();
    const std::uint64_t tail = row.tail.load();
    if (tail - next_ > kArrivalsKept) {
      news.has_missed = true;
      next_ = tail - kArrivalsKept;
    }
    while (next_ < tail) {
      const std::uint64_t word = row.entries[next_ % kArrivalsKept].load();
      if ((word >> kGranuleBits) != lap_of(next_)) {
        // Overtaken; or not written yet, and given up at the second look, as its writer may be dead.
        const bool is_late = (word >> kGranuleBits) < lap_of(next_);
        if (is_late && !is_stuck_) break;
        news.has_missed = true;
      } else {
        news.records.push_back(Address(std::uint64_t{partition_.server()} << kGranuleBits |
                                       (word & ((1ULL << kGranuleBits) - 1))));
      }
      is_stuck_ = false;
      ++next_;
    }
    if (!news.records.empty() || news.has_missed) return news;
    if (partition_.is_closed() || is_stopped_.load()) return Status(Code::closed, "the runtime has been shut down");
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline) return news;
    if (patience_.wait([&] { return row.told.load() != told; })) continue;
    row.sleepers.fetch_add(1);
    const Wake wake = futex_wait(row.told, told, std::min(deadline, now + std::chrono::milliseconds(kWaitSliceMs)));
    row.sleepers.fetch_sub(1);
    if (wake == Wake::interrupted) return Status(Code::interrupted, "a signal arrived");
    is_stuck_ = wake == Wake::timed_out && next_ < row.tail.load();
  }
}

}  // namespace drust::tasks
