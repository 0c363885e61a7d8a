#include "sync/line.hpp"

#include "base/kill_point.hpp"

namespace drust::sync {
namespace {

using Phase = Line::Phase;

constexpr std::uint32_t kPhaseShift = 60;
constexpr std::uint64_t word_of(Phase phase, Who who) noexcept {
  return (static_cast<std::uint64_t>(phase) << kPhaseShift) | who.raw();
}
constexpr Phase phase_of(std::uint64_t word) noexcept { return static_cast<Phase>(word >> kPhaseShift); }

}  // namespace

std::optional<std::uint32_t> Line::join(Who who, std::uint64_t token) noexcept {
  for (std::uint32_t place = 0; place < kWaitersMax; ++place) {
    Place& mine = places_[place];
    std::uint64_t seen = mine.who.load();
    if (phase_of(seen) != Phase::free) continue;
    if (!mine.who.compare_exchange_strong(seen, word_of(Phase::claimed, who))) continue;
    kill_point("shared.line.claimed");
    mine.signal.store(0);
    mine.note.store(0);
    mine.token.store(token);
    mine.ticket.store(next_ticket_.fetch_add(1));
    mine.who.store(word_of(Phase::waiting, who));
    kill_point("shared.line.waiting");
    return place;
  }
  return std::nullopt;
}

bool Line::begin_leaving(std::uint32_t place, Who who) noexcept {
  std::uint64_t expected = word_of(Phase::waiting, who);
  return places_[place].who.compare_exchange_strong(expected, word_of(Phase::leaving, who));
}

void Line::leave(std::uint32_t place) noexcept {
  places_[place].who.store(0);
  freed_.fetch_add(1);
  futex_wake(freed_, 1);
}

bool Line::is_waiting(std::uint32_t place, Who who) const noexcept {
  return places_[place].who.load() == word_of(Phase::waiting, who);
}

std::optional<std::uint32_t> Line::find(Who who, std::uint64_t token) const noexcept {
  for (std::uint32_t place = 0; place < kWaitersMax; ++place) {
    if (is_waiting(place, who) && places_[place].token.load() == token) return place;
  }
  return std::nullopt;
}

std::optional<Line::Next> Line::oldest() const noexcept {
  std::optional<Next> found;
  std::uint64_t lowest = ~0ULL;
  for (std::uint32_t place = 0; place < kWaitersMax; ++place) {
    const std::uint64_t seen = places_[place].who.load();
    const std::uint64_t ticket = places_[place].ticket.load();
    if (phase_of(seen) != Phase::waiting || ticket >= lowest) continue;
    lowest = ticket;
    found = Next{place, Who(seen)};
  }
  return found;
}

std::uint32_t Line::length() const noexcept {
  std::uint32_t count = 0;
  for (const Place& place : places_) count += phase_of(place.who.load()) == Phase::waiting ? 1U : 0U;
  return count;
}

void Line::signal(std::uint32_t place) noexcept {
  places_[place].signal.store(1);
  futex_wake(places_[place].signal, kEverybody);
}

Wake Line::wait(std::uint32_t place, Deadline deadline) noexcept {
  if (places_[place].signal.exchange(0) != 0) return Wake::changed;
  return futex_wait(places_[place].signal, 0, deadline);
}

Wake Line::wait_for_place(Deadline deadline) noexcept {
  const std::uint32_t seen = freed_.load();
  if (length() < kWaitersMax) return Wake::changed;
  return futex_wait(freed_, seen, deadline);
}

bool Line::bury(const IsDead& is_dead) noexcept {
  bool found = false;
  for (std::uint32_t place = 0; place < kWaitersMax; ++place) {
    std::uint64_t seen = places_[place].who.load();
    if (seen == 0 || !is_dead(Who(seen))) continue;
    if (!places_[place].who.compare_exchange_strong(seen, 0)) continue;
    found = true;
    freed_.fetch_add(1);
    futex_wake(freed_, 1);
  }
  return found;
}

}  // namespace drust::sync
