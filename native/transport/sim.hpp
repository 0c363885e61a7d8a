// Streams in a simulated network: virtual time, one thread, every delay and every fault drawn from one seed.
//
// Purpose. The code above a transport is to be run through orders of events that a real network produces once
// a month, a hundred thousand of them a minute, and the one that fails is to be run again. So this is a peer
// of TCP behind contract.hpp, and knows as little as TCP does of what the bytes mean.
//
// Idea. A stream's bytes are cut into segments at drawn places; each arrives after a drawn delay, in order
// within one direction of one stream, in any order between streams. Everything that happens is an event in a
// queue ordered by virtual time; step() makes the next one happen. Faults show exactly as TCP shows them:
//
//     a reset connection        what had arrived can be read, then ECONNRESET on both sides
//     a link cut for a while    segments are late (sent again); for longer: ETIMEDOUT on both sides after
//                               kPeerTimeoutMs and up to a second more, as keepalive and user timeout say
//     a link deaf one way       the same, but what goes the other way arrives meanwhile
//     a place that crashes      its streams are reset; or silently: nothing, until the time above is over or
//                               the place is back and its kernel, which knows no such connection, resets it
//
// A call that waits lets time pass in pass_time(): by itself, or, where a test runs several callers, by
// giving the others their turn (SimTurns). Rejected: threads with a lock handed around (slow, and no more
// real), and callbacks in place of waiting calls (then it would not be the same code that is tested).
// Source: Zhou et al., "FoundationDB", SIGMOD'21, section 4 (deterministic simulation of the whole system).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "transport/contract.hpp"

namespace drust::transport {

using SimTime = std::uint64_t;  // microseconds since the network was made
inline constexpr SimTime kSimNever = ~SimTime{0};

// Drawn anew for each connection, from when it is made.
struct SimWeather {
  std::uint32_t delay_us_max = 300;         // of a segment
  std::uint32_t segment_bytes_max = 2000;   // a connection's largest is drawn up to this, unless much is sent
  std::uint32_t room_bytes = 64 * 1024;     // on the way and unread, before a sender must wait
  std::uint32_t resets_once_in = 0;         // connections are reset after a drawn byte; 0: none is
  std::uint32_t reset_bytes_max = 2000;     // at the latest after so many bytes of one direction
};

// Who is told when a stream or listener may have changed: what an epoll set is to a socket.
class SimWatcher {
 public:
  virtual void changed(bool is_readable, bool is_writable, bool is_ending) = 0;

 protected:
  ~SimWatcher() = default;
};

// Who runs while a call waits.
class SimTurns {
 public:
  // Returns after wake(), at the deadline, or for no reason. May make time pass.
  virtual void wait(SimTime deadline_us) = 0;
  // The caller of this moment, to be named in wake().
  [[nodiscard]] virtual void* caller() = 0;
  virtual void wake(void* caller) = 0;
  // Bytes have moved for the caller of this moment.
  virtual void moved() = 0;
  // A time asked for with SimNetwork::alarm() has come.
  virtual void ring(void* caller) = 0;

 protected:
  ~SimTurns() = default;
};

class SimNetwork {
 public:
  // Places are numbered from 0.
  SimNetwork(std::uint64_t seed, std::uint32_t places);
  ~SimNetwork();
  SimNetwork(const SimNetwork&) = delete;
  SimNetwork& operator=(const SimNetwork&) = delete;

  // Streams and listeners must be gone before the network.
  Result<std::unique_ptr<Listener>> listen(std::uint32_t place, std::uint16_t port);
  // As connect_tcp(): waits; refused at once, or after a round trip; server_lost after `timeout_ms`.
  Result<std::unique_ptr<Stream>> connect(std::uint32_t from, std::uint32_t to, std::uint16_t port,
                                          std::uint32_t timeout_ms);
  // Of a stream or listener made here; null to stop. It is told of every change from now on.
  static void watch(Stream& stream, SimWatcher* watcher);
  static void watch(Listener& listener, SimWatcher* watcher);

  void set_weather(const SimWeather& weather) noexcept { weather_ = weather; }
  void set_turns(SimTurns* turns) noexcept { turns_ = turns; }

  // Nothing from `from` to `to` arrives before `until_us`. What is under way is late, or lost with its
  // connection.
  void deafen(std::uint32_t from, std::uint32_t to, SimTime until_us);
  // Every stream and listener of the place is dead to it at once; its peers hear of it, or not.
  void crash(std::uint32_t place, bool is_silent);
  void restart(std::uint32_t place);
  // Resets the connection as soon as its other end has `bytes` more bytes of this stream.
  static void reset_after(Stream& stream, std::uint64_t bytes);

  [[nodiscard]] SimTime now_us() const noexcept { return now_us_; }
  // The next event happens. False if there is none.
  bool step();
  // Until something may have changed for the caller, at most until `deadline_us`.
  void pass_time(SimTime deadline_us);
  // SimTurns::ring(caller) at that time.
  void alarm(SimTime at_us, void* caller);

  // Of everything that has happened: equal for equal seeds and equal callers.
  [[nodiscard]] std::uint64_t digest() const noexcept { return digest_; }
  void digest(std::uint64_t word) noexcept;  // something that the caller saw
  void set_trace(bool is_on) noexcept { is_traced_ = is_on; }
  [[nodiscard]] bool is_traced() const noexcept { return is_traced_; }
  // Ends of connections that somebody holds.
  [[nodiscard]] std::uint64_t open_ends() const noexcept { return open_ends_; }

  struct Tally {  // how often the hard cases occurred
    std::uint64_t connections = 0;
    std::uint64_t resets = 0;
    std::uint64_t silences = 0;  // ends that timed out
    std::uint64_t late = 0;      // segments that a cut delayed
  };
  [[nodiscard]] const Tally& tally() const noexcept { return tally_; }

 private:
  friend class SimStream;
  friend class SimListener;
  struct Channel;
  struct Gate;  // a listener, as the network sees it
  enum class Happening : std::uint8_t { arrive, room, end, reset, expire, dial, alarm };
  struct Event {
    SimTime at_us = 0;
    std::uint64_t number = 0;    // order among equal times
    Channel* channel = nullptr;  // where it happens
    void* caller = nullptr;      // of an alarm
    std::uint32_t value = 0;     // bytes, or a port
    Happening what = Happening::alarm;
    std::uint8_t side = 0;       // whose end hears of it
  };
  struct Later {
    bool operator()(const Event& left, const Event& right) const noexcept {
      return left.at_us != right.at_us ? left.at_us > right.at_us : left.number > right.number;
    }
  };
  struct Place {
    bool is_up = true;
  };

  std::uint64_t draw(std::uint64_t bound) noexcept;
  SimTime delay() noexcept { return 1 + draw(weather_.delay_us_max); }
  void post(Event event);
  void happen(const Event& event);
  // Whether nothing gets through now, and until when.
  [[nodiscard]] SimTime deaf_until(std::uint32_t from, std::uint32_t to) const noexcept;
  void transmit(Channel& channel, std::uint8_t side, std::size_t bytes);
  void schedule_arrival(Channel& channel, std::uint8_t to, Happening what, std::uint32_t value);
  void tell(Channel& channel, std::uint8_t side);
  void fail(Channel& channel, std::uint8_t side, int error);
  void close_end(Channel& channel, std::uint8_t side);
  void expect_silence(Channel& channel);
  void probe(Channel& channel, std::uint8_t side);
  void arrive(const Event& event);
  void dial(const Event& event);
  void trace(const Event& event) const;

  std::uint64_t dice_;
  SimTime now_us_ = 0;
  std::uint64_t events_ = 0;
  std::uint64_t digest_ = 0;
  SimWeather weather_;
  SimTurns* turns_ = nullptr;
  bool is_traced_ = false;
  std::uint64_t open_ends_ = 0;
  Tally tally_;
  std::vector<Place> places_;
  std::vector<SimTime> deaf_until_;  // [from * places + to]
  std::deque<Channel> channels_;     // kept to the end: events name them
  std::vector<Gate*> gates_;
  std::priority_queue<Event, std::vector<Event>, Later> queue_;
};

}  // namespace drust::transport
