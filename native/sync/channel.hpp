// A queue of messages between processes: many senders, many receivers, bounded or not.
//
//     object: words, and a directory of segments, each a block of cells, made when they are first needed
//     cell:   empty -> reserved(sender) -> ready -> taken(receiver) -> empty, one lap further
//
// A message is a block of this partition; while it is in a cell, the channel owns it (its owner word names the
// object), and what its child table points to travels as pointers. A death is told by the cell and the owner word
// together: a reserved cell of a dead sender whose message is the channel's already was sent, another one was not; a
// taken cell of a dead receiver whose message is the channel's still goes to the next one. So each message is
// received once, or dies with a process that had sent or received it.
//
// Ticket t has cell t modulo the capacity; an unbounded channel has room for kChannelMessagesMax. Tickets are read
// from two words that anybody advances: what they say is a hint, the cells decide. Source: the cells are those of
// Vyukov's bounded queue (2010), with owners.
// Rejected: a linked list of messages (its tail is two words); a lock around a plain ring (a death inside it).
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/futex.hpp"
#include "base/limits.hpp"
#include "sync/object.hpp"

namespace drust::sync {

inline constexpr std::uint32_t kSegmentCodec = 0xfffffffaU;
inline constexpr std::uint64_t kCellsPerSegment = 1024;
inline constexpr std::uint64_t kSegmentsPerChannel = kChannelMessagesMax / kCellsPerSegment;

struct ChannelWords {
  static constexpr bool kFreesItself = false;
  static constexpr bool is_of(Kind kind) noexcept { return kind == Kind::channel; }
  enum End : std::uint32_t { kSenders = 0, kReceivers = 1 };  // the roles of its holds
  heap::SharedLife life;
  Word capacity;                              // constant
  std::atomic<std::uint32_t> ended;           // a bit a role that nobody has any more; by the attendant
  alignas(64) Word sent;                      // the next ticket to send; anybody advances
  std::atomic<std::uint32_t> arrivals;        // a futex: messages, and the end of the senders
  std::atomic<std::uint32_t> receivers_wait;  // hints: whoever sleeps on it
  alignas(64) Word received;                  // likewise, to receive
  std::atomic<std::uint32_t> rooms;           // a futex: messages taken, and the end of the receivers
  std::atomic<std::uint32_t> senders_wait;
  std::atomic<std::uint32_t> remote_wait;     // requests of other servers that wait for either
  alignas(64) std::array<Word, kSegmentsPerChannel> segments;  // addresses; 0: none yet
};

class Channel {
 public:
  Channel(heap::Heap& heap, const GlobalPointer& object, ChannelWords& words) noexcept
      : heap_(heap), object_(object), words_(words) {}

  // The message, a block of this process, is the channel's from here on. full: not now, be it that another message
  // is just being sent or received; closed: nobody receives.
  [[nodiscard]] Status try_send(Who who, const GlobalPointer& message);
  // The oldest message, owned by this process. timed_out: there is none; closed: and none will come.
  [[nodiscard]] Result<GlobalPointer> try_receive(Who who);
  // Sleep until there may be a message, or room for one; `seen` was read before the last try.
  [[nodiscard]] std::uint32_t arrivals() const noexcept { return words_.arrivals.load(); }
  [[nodiscard]] std::uint32_t rooms() const noexcept { return words_.rooms.load(); }
  Wake wait_arrival(std::uint32_t seen, Deadline deadline) noexcept;
  Wake wait_room(std::uint32_t seen, Deadline deadline) noexcept;
  [[nodiscard]] std::uint64_t length() const noexcept;

  // Nobody has that end any more.
  void end(ChannelWords::End role) noexcept;
  void bury(const IsDead& is_dead, heap::ProcessId dead) noexcept;
  // Before the object is freed: messages and segments.
  void clear(std::vector<GlobalPointer>& remote) noexcept;

 private:
  struct Cell {
    Word state;    // lap | phase | who; compare-and-swap
    Word message;  // its address; by whoever has reserved or taken the cell
  };
  enum class Phase : std::uint8_t { empty, reserved, ready, taken };
  static constexpr std::uint32_t kLapShift = 40;
  static constexpr std::uint64_t state_of(std::uint64_t lap, Phase phase, Who who) noexcept {
    return (lap << kLapShift) | (static_cast<std::uint64_t>(phase) << 38) | who.raw();
  }
  static constexpr Phase phase_of(std::uint64_t state) noexcept { return static_cast<Phase>((state >> 38) & 3U); }
  static constexpr std::uint64_t lap_of(std::uint64_t state) noexcept { return state >> kLapShift; }
  [[nodiscard]] std::uint64_t lap(std::uint64_t ticket) const noexcept {
    return (ticket / words_.capacity.load()) & ((1ULL << (64 - kLapShift)) - 1);
  }
  // Whether the cell is further than that ticket: it was skipped, as its sender died.
  [[nodiscard]] bool is_past(std::uint64_t state, std::uint64_t ticket) const noexcept;
  [[nodiscard]] Cell* find_cell(std::uint64_t ticket) const noexcept;
  [[nodiscard]] Result<Cell*> make_cell(std::uint64_t ticket);
  [[nodiscard]] Result<GlobalPointer> look_for_message(Who who);
  [[nodiscard]] bool owns(std::uint64_t message) const noexcept;
  void set_ready(Cell& cell, std::uint64_t lap) noexcept;
  void set_empty(Cell& cell, std::uint64_t lap) noexcept;
  void advance_received() noexcept;

  heap::Heap& heap_;
  const GlobalPointer object_;
  ChannelWords& words_;
};

static_assert(sizeof(ChannelWords) < 16 * 1024);

}  // namespace drust::sync
