// The one word that says who has a lock, as pure functions: no clock, no memory, no other process.
//
//     0..36 who | 37..42 place | 43 line | 44 poisoned | 45..63 turn
//
//     event            from                        to
//     take             nobody                      who
//     take_place       nobody                      who, place, turn + 1
//     queue_up         somebody                    the same, line, turn + 1
//     leave            any                         the same, turn + 1
//     hand_over        who, line                   the next of the line, its place, turn + 1
//     enter            who, place                  who                       the next one has noticed that it is his turn
//     give_back        who, nobody in the line     nobody, turn + 1
//
// A lock is never free between two holders while somebody waits: handing over is one compare-and-swap, so there is no
// instant at which a death loses it. `place` tells a waiter that it was chosen, and the reaper that the dead one had
// not begun: then nothing is poisoned. `turn` changes with whoever joins or leaves the line, so that somebody who
// looked through it and was stopped cannot hand the lock to one who has left. Source: the hand-over is that of MCS
// locks (Mellor-Crummey and Scott, 1991) with the queue in an array, so that the dead can be taken out of it.
#pragma once

#include <cstdint>
#include <optional>

#include "sync/who.hpp"

namespace drust::sync {

class LockWord {
 public:
  // The place of a writer that has come past the line, and has not looked yet whether readers are inside.
  static constexpr std::uint32_t kArriving = 62;
  constexpr LockWord() noexcept = default;
  constexpr explicit LockWord(std::uint64_t raw) noexcept : raw_(raw) {}
  [[nodiscard]] constexpr std::uint64_t raw() const noexcept { return raw_; }
  [[nodiscard]] constexpr Who who() const noexcept { return Who(raw_); }
  // The holder's place in the line, while it has not entered yet.
  [[nodiscard]] constexpr std::optional<std::uint32_t> place() const noexcept {
    const auto place = static_cast<std::uint32_t>((raw_ >> kPlaceShift) & kPlaceMask);
    return place == 0 ? std::nullopt : std::optional<std::uint32_t>(place - 1);
  }
  [[nodiscard]] constexpr bool has_line() const noexcept { return (raw_ & kLine) != 0; }
  [[nodiscard]] constexpr bool is_poisoned() const noexcept { return (raw_ & kPoisoned) != 0; }
  [[nodiscard]] constexpr bool was_given(Who who, std::uint32_t place) const noexcept {
    return this->who() == who && this->place() == place;
  }

  [[nodiscard]] constexpr std::optional<LockWord> take(Who who) const noexcept {
    if (!this->who().is_nobody()) return std::nullopt;
    return LockWord(raw_ | who.raw());
  }
  [[nodiscard]] constexpr std::optional<LockWord> take_place(Who who, std::uint32_t place) const noexcept {
    if (!this->who().is_nobody()) return std::nullopt;
    return hand_over(who, place, false);
  }
  [[nodiscard]] constexpr LockWord queue_up() const noexcept { return LockWord(raw_ | kLine).turned(); }
  [[nodiscard]] constexpr LockWord leave() const noexcept { return turned(); }
  [[nodiscard]] constexpr LockWord hand_over(Who next, std::uint32_t place, bool poisons) const noexcept {
    const std::uint64_t rest = raw_ & ~(Who::kMask | (kPlaceMask << kPlaceShift));
    return LockWord(rest | next.raw() | (std::uint64_t{place + 1} << kPlaceShift) | (poisons ? kPoisoned : 0)).turned();
  }
  [[nodiscard]] constexpr LockWord enter() const noexcept { return LockWord(raw_ & ~(kPlaceMask << kPlaceShift)); }
  [[nodiscard]] constexpr LockWord give_back(bool poisons) const noexcept {
    const std::uint64_t rest = raw_ & ~(Who::kMask | (kPlaceMask << kPlaceShift) | kLine);
    return LockWord(rest | (poisons ? kPoisoned : 0)).turned();
  }
  [[nodiscard]] constexpr LockWord cleared() const noexcept { return LockWord(raw_ & ~kPoisoned); }
  friend constexpr bool operator==(LockWord, LockWord) noexcept = default;

 private:
  static constexpr std::uint32_t kPlaceShift = Who::kBits;
  static constexpr std::uint64_t kPlaceMask = 0x3f;
  static constexpr std::uint64_t kLine = 1ULL << 43;
  static constexpr std::uint64_t kPoisoned = 1ULL << 44;
  static constexpr std::uint32_t kTurnShift = 45;
  [[nodiscard]] constexpr LockWord turned() const noexcept { return LockWord(raw_ + (1ULL << kTurnShift)); }

  std::uint64_t raw_ = 0;
};
static_assert(kWaitersMax <= LockWord::kArriving);

}  // namespace drust::sync
