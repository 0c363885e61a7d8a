#include "sync/readers.hpp"

#include "base/kill_point.hpp"

namespace drust::sync {
namespace {

enum class Phase : std::uint8_t { free, claimed, reading, viewing };
constexpr std::uint32_t kPhaseShift = 60;
constexpr std::uint64_t word_of(Phase phase, Who who) noexcept {
  return (static_cast<std::uint64_t>(phase) << kPhaseShift) | who.raw();
}
constexpr Phase phase_of(std::uint64_t word) noexcept { return static_cast<Phase>(word >> kPhaseShift); }
// A claimed slot counts: its reader looks at the lock word next.
constexpr bool is_reading(std::uint64_t word) noexcept {
  return phase_of(word) == Phase::claimed || phase_of(word) == Phase::reading;
}

// Where a thread begins to look for a free slot: threads that read at once rarely meet.
std::uint32_t start_of(Who who, std::uint64_t token) noexcept {
  return static_cast<std::uint32_t>(((who.raw() ^ (token >> 4)) * 0x9e3779b97f4a7c15ULL) >> 32) % kReadersMax;
}

}  // namespace

std::optional<std::uint32_t> Readers::claim(Who who, std::uint64_t token) noexcept {
  const std::uint32_t start = start_of(who, token);
  for (std::uint32_t step = 0; step < kReadersMax; ++step) {
    const std::uint32_t slot = (start + step) % kReadersMax;
    std::uint64_t seen = slots_[slot].who.load();
    if (phase_of(seen) != Phase::free) continue;
    if (!slots_[slot].who.compare_exchange_strong(seen, word_of(Phase::claimed, who))) continue;
    slots_[slot].what.store(token);
    slots_[slot].who.store(word_of(Phase::reading, who));
    kill_point("shared.read.claimed");
    return slot;
  }
  return std::nullopt;
}

std::optional<std::uint32_t> Readers::find(Who who, std::uint64_t token) const noexcept {
  for (std::uint32_t slot = 0; slot < kReadersMax; ++slot) {
    if (slots_[slot].who.load() == word_of(Phase::reading, who) && slots_[slot].what.load() == token) return slot;
  }
  return std::nullopt;
}

bool Readers::has_reading() const noexcept {
  for (const Slot& slot : slots_) {
    if (is_reading(slot.who.load())) return true;
  }
  return false;
}

void Readers::begin_viewing(std::uint32_t slot, Who who, Address value) noexcept {
  slots_[slot].what.store(value.raw());
  slots_[slot].who.store(word_of(Phase::viewing, who));
  kill_point("shared.read.viewing");
}

bool Readers::is_viewed(Address value) const noexcept {
  for (const Slot& slot : slots_) {
    if (phase_of(slot.who.load()) == Phase::viewing && slot.what.load() == value.raw()) return true;
  }
  return false;
}

std::uint32_t Readers::viewing() const noexcept {
  std::uint32_t count = 0;
  for (const Slot& slot : slots_) count += phase_of(slot.who.load()) == Phase::viewing ? 1U : 0U;
  return count;
}

std::optional<Readers::Reading> Readers::next(std::uint32_t& slot) const noexcept {
  while (slot < kReadersMax) {
    const Slot& seen = slots_[slot++];
    const std::uint64_t who = seen.who.load();
    if (phase_of(who) == Phase::reading) return Reading{Who(who), seen.what.load()};
  }
  return std::nullopt;
}

bool Readers::bury(const IsDead& is_dead, const std::function<void(Address)>& left) noexcept {
  bool found = false;
  for (Slot& slot : slots_) {
    std::uint64_t seen = slot.who.load();
    if (seen == 0 || !is_dead(Who(seen))) continue;
    if (phase_of(seen) == Phase::viewing) left(Address(slot.what.load()));
    found = slot.who.compare_exchange_strong(seen, 0) || found;
  }
  return found;
}

}  // namespace drust::sync
