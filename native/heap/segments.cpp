#include "heap/segments.hpp"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <fcntl.h>

#include "base/ensure.hpp"
#include "base/kill_point.hpp"
#include "heap/memory_room.hpp"

namespace drust::heap {
namespace {

constexpr std::uint64_t kNone = ~0ULL;

// Counters may dip below zero for a moment (a claim and its release, seen in the other order).
std::uint64_t level(const SharedWord& counter) noexcept {
  const auto value = static_cast<std::int64_t>(counter.load(std::memory_order_acquire));
  return value < 0 ? 0 : static_cast<std::uint64_t>(value);
}

void raise_to(SharedWord& word, std::uint64_t value) noexcept {
  std::uint64_t seen = word.load(std::memory_order_relaxed);
  while (seen < value && !word.compare_exchange_weak(seen, value, std::memory_order_acq_rel)) {
  }
}

std::uint64_t now_ms() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000 + static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
}

}  // namespace

int change_backing(int memfd, int mode, std::uint64_t offset, std::uint64_t bytes) noexcept {
  while (bytes > 0) {
    const std::uint64_t step = std::min(bytes, kBackingStepBytes);
    if (::fallocate(memfd, mode, static_cast<off_t>(offset), static_cast<off_t>(step)) != 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    offset += step;
    bytes -= step;
  }
  return 0;
}

// Announces in the process's slot that table and counters are about to disagree.
class Segments::Operation {
 public:
  explicit Operation(ProcessSlot& slot) noexcept : slot_(slot) { slot_.ops_started.fetch_add(1); }
  ~Operation() { slot_.ops_finished.fetch_add(1); }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

 private:
  ProcessSlot& slot_;
};

Segments::Segments(std::byte* base, int memfd) noexcept
    : shared_(reinterpret_cast<SharedHeader*>(base)),
      slots_(reinterpret_cast<ProcessSlot*>(base + kProcessesOffset)),
      table_(reinterpret_cast<SharedWord*>(base + kTableOffset)),
      hints_(reinterpret_cast<std::atomic<std::uint32_t>*>(base + kTableOffset +
                                                           pages(shared_->segment_count * 8))),
      memfd_(memfd) {}

ProcessSlot& Segments::slot(std::uint32_t index) const noexcept { return slots_[std::min(index, kNobody)]; }

std::uint64_t Segments::end() const noexcept { return shared_->high_water.load(std::memory_order_acquire); }

std::uint64_t Segments::length(std::uint64_t head) const noexcept {
  std::uint64_t next = head + 1;
  while (next < count() && entry(next).is_rest()) ++next;
  return next - head;
}

// -- claiming
// --------------------------------------------------------------------------------------------------------

bool Segments::reserve(std::uint64_t length) noexcept {
  std::uint64_t seen = shared_->claimed_segments.load(std::memory_order_relaxed);
  do {
    const auto held = static_cast<std::int64_t>(seen);
    if (length > shared_->quota_segments) return false;
    if (held > 0 && seen + length > shared_->quota_segments) return false;
  } while (!shared_->claimed_segments.compare_exchange_weak(seen, seen + length, std::memory_order_acq_rel));
  return true;
}

Segments::Found Segments::find_run(std::uint64_t from, std::uint64_t length) const noexcept {
  std::uint64_t first_free = kNone;
  std::uint64_t free_before = 0;
  for (std::uint64_t index = from; index < count(); ++index) {
    if (!SegmentEntry(table_[index].load(std::memory_order_relaxed)).is_free()) {
      free_before = 0;
      continue;
    }
    if (first_free == kNone) first_free = index;
    if (++free_before == length) return {index + 1 - length, first_free};
  }
  return {kNone, first_free};
}

bool Segments::mark(std::uint64_t start, std::uint64_t length, SegmentEntry head) noexcept {
  for (std::uint64_t step = 0; step < length; ++step) {
    SharedWord& word = table_[start + step];
    const SegmentEntry wanted =
        step == 0 ? head : SegmentEntry::rest(head.kind() == SegmentKind::span ? step : 0);
    std::uint64_t seen = word.load(std::memory_order_relaxed);
    while (SegmentEntry(seen).is_free()) {
      const bool backed = SegmentEntry(seen).status() == SegmentStatus::warm;
      if (word.compare_exchange_weak(seen, wanted.with_backed(backed).word(), std::memory_order_acq_rel))
        break;
    }
    if (!SegmentEntry(seen).is_free()) {  // somebody was faster
      unmark(start, step);
      return false;
    }
  }
  return true;
}

void Segments::unmark(std::uint64_t start, std::uint64_t length) noexcept {
  while (length > 0) {
    --length;
    const bool backed = entry(start + length).was_backed();
    table_[start + length].store((backed ? SegmentEntry::warm() : SegmentEntry::cold()).word(),
                                 std::memory_order_release);
  }
}

Result<std::uint64_t> Segments::mark_run(std::uint64_t length, SegmentEntry head) {
  std::uint64_t hint = shared_->low_free.load(std::memory_order_relaxed);
  std::uint64_t from = hint;
  while (true) {
    const Found found = find_run(from, length);
    if (found.start == kNone) {
      if (from == 0) {
        return Status(Code::out_of_memory, "no " + std::to_string(length * kSegmentBytes) +
                                               " free bytes in a row: the free ones lie scattered");
      }
      from = 0;
      continue;
    }
    // Before the entries: whoever adopts this process must look that far.
    raise_to(shared_->high_water, found.start + length);
    if (!mark(found.start, length, head)) {
      from = found.start;
      continue;
    }
    const std::uint64_t next = found.first_free == found.start ? found.start + length : found.first_free;
    if (from == hint) {
      shared_->low_free.compare_exchange_strong(hint, next, std::memory_order_relaxed);
    } else if (from == 0) {
      lower_hint(next);
    }
    return found.start;
  }
}

bool Segments::has_room(std::uint64_t bytes) noexcept {
  const std::uint64_t now = now_ms();
  const std::uint64_t spent = shared_->room_spent_bytes.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  const std::uint64_t room = shared_->room_bytes.load(std::memory_order_relaxed);
  const std::uint64_t checked = shared_->room_checked_ms.load(std::memory_order_relaxed);
  if (checked != 0 && now - checked <= kMemoryCheckMs && spent <= kMemoryCheckBytes && spent <= room)
    return true;
  const std::uint64_t fresh = memory_room_bytes();
  shared_->room_bytes.store(fresh, std::memory_order_relaxed);
  shared_->room_spent_bytes.store(std::min(bytes, fresh), std::memory_order_relaxed);
  shared_->room_checked_ms.store(now, std::memory_order_relaxed);
  return bytes <= fresh;
}

Status Segments::back(std::uint64_t start, std::uint64_t length, ProcessId self,
                      std::uint64_t& warm) noexcept {
  warm = 0;
  std::uint64_t index = start;
  while (index < start + length) {
    if (entry(index).was_backed()) {
      ++warm;
      ++index;
      continue;
    }
    std::uint64_t stop = index;
    while (stop < start + length && !entry(stop).was_backed()) ++stop;
    const std::uint64_t bytes = (stop - index) * kSegmentBytes;
    if (!has_room(bytes)) {
      // Segments that are free but backed are memory the machine would have: look again without them.
      trim(0, self);
      shared_->room_checked_ms.store(0, std::memory_order_relaxed);
      if (!has_room(bytes)) {
        return Status(Code::out_of_memory, "the machine or the container has no room for " +
                                               std::to_string(bytes) + " more bytes above its reserve");
      }
    }
    const int error = change_backing(memfd_, 0, offset_of(index), bytes);
    if (error != 0) {
      punch(index, stop - index);
      errno = error;
      return error == ENOSPC || error == ENOMEM
                 ? Status(Code::out_of_memory,
                          "the system backs no more memory: " + system_error("fallocate").detail())
                 : system_error("fallocate");
    }
    index = stop;
  }
  return Status();
}

Result<std::uint64_t> Segments::claim(ProcessId owner, SegmentKind kind, std::uint32_t size_class,
                                      std::uint64_t length) {
  const Operation operation(slot(owner.slot));
  if (!reserve(length)) return Status(Code::out_of_memory, "the quota is used up");
  kill_point("heap.claim.counted");
  const Result<std::uint64_t> marked =
      mark_run(length, SegmentEntry::head(SegmentStatus::moving, kind, size_class, owner));
  if (!marked.ok()) {
    shared_->claimed_segments.fetch_sub(length, std::memory_order_acq_rel);
    return marked;
  }
  kill_point("heap.claim.marked");
  const std::uint64_t start = marked.value();
  std::uint64_t warm = 0;
  if (Status status = back(start, length, owner, warm); !status.ok()) {
    for (std::uint64_t index = start; index < start + length; ++index) {
      if (!entry(index).was_backed()) punch(index, 1);
    }
    unmark(start, length);
    shared_->claimed_segments.fetch_sub(length, std::memory_order_acq_rel);
    lower_hint(start);
    return status;
  }
  kill_point("heap.claim.backed");
  if (warm > 0) shared_->warm_segments.fetch_sub(warm, std::memory_order_acq_rel);
  hints_[start].store(0, std::memory_order_relaxed);
  const std::uint64_t claimed = level(shared_->claimed_segments);
  if (claimed + level(shared_->warm_segments) > shared_->quota_segments) {
    trim((shared_->quota_segments - std::min(claimed, shared_->quota_segments)) * kSegmentBytes, owner);
  }
  return start;
}

void Segments::settle(std::uint64_t head) noexcept {
  kill_point("heap.settle.before");
  table_[head].store(entry(head).with_status(SegmentStatus::claimed).word(), std::memory_order_release);
}

// -- giving back
// -----------------------------------------------------------------------------------------------------

void Segments::take(std::uint64_t head, ProcessId self) noexcept {
  std::uint64_t seen = table_[head].load(std::memory_order_acquire);
  while (true) {
    const SegmentEntry entry(seen);
    ensure(entry.status() == SegmentStatus::claimed && entry.is_head(),
           "segments taken that nobody has claimed");
    const SegmentEntry wanted = entry.with_owner(self).with_status(SegmentStatus::moving);
    if (table_[head].compare_exchange_weak(seen, wanted.word(), std::memory_order_acq_rel)) break;
  }
  kill_point("heap.take.segments");
}

bool Segments::inherit(std::uint64_t head, SegmentEntry seen, ProcessId self) noexcept {
  std::uint64_t expected = seen.word();
  return table_[head].compare_exchange_strong(expected, seen.with_owner(self).word(),
                                              std::memory_order_acq_rel);
}

void Segments::punch(std::uint64_t start, std::uint64_t length) noexcept {
  if (length == 0) return;
  const int error = change_backing(memfd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset_of(start),
                                   length * kSegmentBytes);
  ensure(error == 0, "a hole could not be punched into the memfd");
}

void Segments::free_entries(std::uint64_t start, std::uint64_t length, SegmentEntry as) noexcept {
  for (std::uint64_t index = start + length; index > start; --index) {
    table_[index - 1].store(as.word(), std::memory_order_release);
  }
}

void Segments::lower_hint(std::uint64_t index) noexcept {
  std::uint64_t seen = shared_->low_free.load(std::memory_order_relaxed);
  while (index < seen && !shared_->low_free.compare_exchange_weak(seen, index, std::memory_order_relaxed)) {
  }
}

void Segments::give_back(std::uint64_t head, ProcessId self, bool keep_warm) noexcept {
  const Operation operation(slot(self.slot));
  const std::uint64_t all = length(head);
  const std::uint64_t warm_now = level(shared_->warm_segments);
  const std::uint64_t room = shared_->warm_segments_kept - std::min(shared_->warm_segments_kept, warm_now);
  const std::uint64_t kept = keep_warm ? std::min(all, room) : 0;
  punch(head + kept, all - kept);
  kill_point("heap.give_back.punched");
  free_entries(head + kept, all - kept, SegmentEntry::cold());
  free_entries(head, kept, SegmentEntry::warm());
  kill_point("heap.give_back.freed");
  if (kept > 0) shared_->warm_segments.fetch_add(kept, std::memory_order_acq_rel);
  shared_->claimed_segments.fetch_sub(all, std::memory_order_acq_rel);
  lower_hint(head);
}

std::uint64_t Segments::trim(std::uint64_t keep_bytes, ProcessId self) noexcept {
  if (shared_->recount_due.load(std::memory_order_relaxed) != 0) recount();
  const std::uint64_t keep = keep_bytes / kSegmentBytes;
  std::uint64_t given = 0;
  const Operation operation(slot(self.slot));
  // From the top: claims are served from the bottom. Neighbours are punched together: a hole costs a system
  // call.
  constexpr std::uint64_t kTogether = kBackingStepBytes / kSegmentBytes;
  std::uint64_t index = end();
  while (index > 0 && level(shared_->warm_segments) > keep) {
    const std::uint64_t stop = index;
    const std::uint64_t most = std::min(kTogether, level(shared_->warm_segments) - keep);
    const SegmentEntry moving = SegmentEntry::head(SegmentStatus::moving, SegmentKind::run, 0, self);
    while (index > 0 && stop - index < most) {
      std::uint64_t seen = SegmentEntry::warm().word();
      if (table_[index - 1].load(std::memory_order_relaxed) != seen) break;
      if (!table_[index - 1].compare_exchange_strong(seen, moving.word(), std::memory_order_acq_rel)) break;
      --index;
    }
    if (const std::uint64_t length = stop - index; length > 0) {
      punch(index, length);
      free_entries(index, length, SegmentEntry::cold());
      shared_->warm_segments.fetch_sub(length, std::memory_order_acq_rel);
      lower_hint(index);
      given += length;
    } else {
      --index;
    }
  }
  return given * kSegmentBytes;
}

// -- accounting
// ------------------------------------------------------------------------------------------------------

void Segments::recount() noexcept {
  // A slot's `finished` is read before its `started`: equal means that no operation ran in between; `started`
  // unchanged after the count means that none began. So table and counters stood still, and their difference
  // is what a killed process left behind.
  shared_->recount_due.store(1, std::memory_order_relaxed);
  for (int attempt = 0; attempt < 8; ++attempt) {
    std::uint64_t started[kProcessesMax + 1];
    bool still = true;
    for (std::uint32_t index = 0; index <= kNobody; ++index) {
      const std::uint64_t finished = slots_[index].ops_finished.load();
      started[index] = slots_[index].ops_started.load();
      const bool lives = index == kNobody || slot_phase(slots_[index].word.load()) == Phase::live;
      if (lives && finished != started[index]) still = false;
    }
    if (!still) continue;
    std::uint64_t claimed = 0;
    std::uint64_t warm = 0;
    const std::uint64_t stop = end();
    for (std::uint64_t index = 0; index < stop; ++index) {
      const SegmentEntry seen = entry(index);
      claimed += seen.is_free() ? 0U : 1U;
      warm += seen.status() == SegmentStatus::warm ? 1U : 0U;
    }
    std::uint64_t claimed_said = shared_->claimed_segments.load();
    std::uint64_t warm_said = shared_->warm_segments.load();
    for (std::uint32_t index = 0; index <= kNobody; ++index) {
      if (slots_[index].ops_started.load() != started[index]) still = false;
    }
    if (!still) continue;
    // By compare-and-swap: an operation that began just now, or another recount, makes it fail.
    if (!shared_->claimed_segments.compare_exchange_strong(claimed_said, claimed)) continue;
    if (!shared_->warm_segments.compare_exchange_strong(warm_said, warm)) continue;
    shared_->recount_due.store(0, std::memory_order_relaxed);
    return;
  }
}

void Segments::hint_free(std::uint64_t head, ProcessId owner) noexcept {
  hints_[head].fetch_add(1, std::memory_order_release);
  slot(owner.slot).remote_frees.fetch_add(1, std::memory_order_release);
}

std::uint32_t Segments::take_hints(std::uint64_t head) noexcept {
  if (hints_[head].load(std::memory_order_relaxed) == 0) return 0;
  return hints_[head].exchange(0, std::memory_order_acquire);
}

}  // namespace drust::heap
