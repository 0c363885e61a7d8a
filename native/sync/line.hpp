// Who waits for something, in the order in which they came: an array of places inside the object, so that the dead
// can be taken out by whoever finds them.
//
//     place: free -> claimed (its ticket is being drawn) -> waiting -> free
//                                                      \-> leaving -> free
//
// A place belongs to one process (and, there, to one thread, named by its token) from claimed on. Only waiting ones
// are chosen. More waiters than places wait for a place to come free, without an order among them.
// Rejected: a linked queue (a kill in the middle of it has to be repaired; taking one out of it is a search anyway).
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/futex.hpp"
#include "base/limits.hpp"
#include "sync/object.hpp"

namespace drust::sync {

class Line {
 public:
  enum class Phase : std::uint8_t { free, claimed, waiting, leaving };
  struct alignas(32) Place {
    Word who;     // phase above Who; compare-and-swap, by its process or the reaper
    Word ticket;  // by its process, while claimed
    Word token;   // likewise
    std::atomic<std::uint32_t> signal;  // a futex: by whoever chooses it
    std::atomic<std::uint32_t> note;    // where a text lies that says where it waits, in units of 64 bytes; or 0
  };

  // Of this process (or of the one that the server acts for): a waiting place, or none if all are taken.
  [[nodiscard]] std::optional<std::uint32_t> join(Who who, std::uint64_t token) noexcept;
  // False: the reaper, or the lapse of a remote waiter, has taken the place already.
  [[nodiscard]] bool begin_leaving(std::uint32_t place, Who who) noexcept;
  void leave(std::uint32_t place) noexcept;
  [[nodiscard]] bool is_waiting(std::uint32_t place, Who who) const noexcept;
  // The place that a remote waiter has already.
  [[nodiscard]] std::optional<std::uint32_t> find(Who who, std::uint64_t token) const noexcept;

  struct Next {
    std::uint32_t place;
    Who who;
  };
  [[nodiscard]] std::optional<Next> oldest() const noexcept;
  [[nodiscard]] std::uint32_t length() const noexcept;
  void signal(std::uint32_t place) noexcept;
  // Until signalled or `deadline`; the caller looks for itself what has happened.
  Wake wait(std::uint32_t place, Deadline deadline) noexcept;
  // All places were taken: until one comes free, or `deadline`.
  Wake wait_for_place(Deadline deadline) noexcept;
  [[nodiscard]] std::uint64_t token(std::uint32_t place) const noexcept { return places_[place].token.load(); }
  [[nodiscard]] std::uint64_t note(std::uint32_t place) const noexcept {
    return places_[place].note.load() * kBlockAlignment;
  }
  // By the one who waits there. What lies too far away for 32 bits stays untold.
  void set_note(std::uint32_t place, std::uint64_t offset_bytes) noexcept {
    const std::uint64_t units = offset_bytes / kBlockAlignment;
    places_[place].note.store(units >> 32 == 0 ? static_cast<std::uint32_t>(units) : 0);
  }
  // Takes the places of the dead. True if there were some.
  bool bury(const IsDead& is_dead) noexcept;

 private:
  std::array<Place, kWaitersMax> places_;
  alignas(64) Word next_ticket_;
  std::atomic<std::uint32_t> freed_;  // a futex: places that came free
};

}  // namespace drust::sync
