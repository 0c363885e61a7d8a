#include "transport/sim.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "base/ensure.hpp"
#include "base/limits.hpp"
#include "transport/sim_ends.hpp"

namespace drust::transport {
namespace {

constexpr SimTime kTimeoutUs = kPeerTimeoutMs * kUsPerMs;  // what set_liveness() asks of TCP
constexpr SimTime kProbeUs = 1'000'000;                    // a keepalive probe each second
constexpr std::size_t kSegmentsPerSend = 4;               // about: much is sent in larger ones

}  // namespace

// --- the network ---

SimNetwork::SimNetwork(std::uint64_t seed, std::uint32_t places)
    : dice_(seed), digest_(seed), places_(places), deaf_until_(std::size_t{places} * places, 0) {}

SimNetwork::~SimNetwork() {
  ensure(open_ends_ == 0 && gates_.empty(), "streams and listeners go before their network");
}

std::uint64_t SimNetwork::draw(std::uint64_t bound) noexcept {  // splitmix64
  std::uint64_t mixed = (dice_ += 0x9e3779b97f4a7c15ULL);
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ULL;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebULL;
  return bound == 0 ? 0 : (mixed ^ (mixed >> 31)) % bound;
}

void SimNetwork::digest(std::uint64_t word) noexcept {
  digest_ = (digest_ ^ word) * 0x9e3779b97f4a7c15ULL;
  digest_ ^= digest_ >> 29;
}

void SimNetwork::post(Event event) {
  event.number = ++events_;
  queue_.push(event);
}

bool SimNetwork::step() {
  if (queue_.empty()) return false;
  const Event event = queue_.top();
  queue_.pop();
  now_us_ = std::max(now_us_, event.at_us);
  happen(event);
  return true;
}

void SimNetwork::pass_time(SimTime deadline_us) {
  if (turns_ != nullptr) {
    turns_->wait(deadline_us);
  } else if (!queue_.empty() && queue_.top().at_us <= deadline_us) {
    (void)step();
  } else {
    ensure(deadline_us != kSimNever, "a call waits for what cannot happen any more");
    now_us_ = std::max(now_us_, deadline_us);
  }
}

void SimNetwork::alarm(SimTime at_us, void* caller) {
  post({.at_us = std::max(at_us, now_us_), .caller = caller});
}

SimTime SimNetwork::deaf_until(std::uint32_t from, std::uint32_t to) const noexcept {
  if (!places_[from].is_up || !places_[to].is_up) return kSimNever;
  const SimTime until = deaf_until_[from * places_.size() + to];
  return until > now_us_ ? until : 0;
}

// Towards the end `to`, behind all that is on its way there.
void SimNetwork::schedule_arrival(Channel& channel, std::uint8_t to, Happening what, std::uint32_t value) {
  Channel::End& end = channel.ends[to];
  end.last_arrival_us = std::max(end.last_arrival_us, now_us_ + delay());
  post({.at_us = end.last_arrival_us, .channel = &channel, .value = value, .what = what, .side = to});
}

// `bytes` were appended to what is on the way to the end `to`.
void SimNetwork::transmit(Channel& channel, std::uint8_t to, std::size_t bytes) {
  Channel::End& end = channel.ends[to];
  const std::size_t segment_bytes = std::max<std::size_t>(channel.segment_bytes, bytes / kSegmentsPerSend);
  while (bytes > 0 && !end.is_swallowed) {
    std::size_t segment = std::min<std::size_t>(bytes, 1 + draw(segment_bytes));
    segment = std::min<std::size_t>(segment, end.reset_at_byte - end.sent_bytes);
    if (segment > 0) schedule_arrival(channel, to, Happening::arrive, static_cast<std::uint32_t>(segment));
    end.sent_bytes += segment;
    bytes -= segment;
    if (end.sent_bytes == end.reset_at_byte) {
      end.is_swallowed = true;
      schedule_arrival(channel, to, Happening::reset, 0);
    }
  }
  if (end.is_swallowed) end.bytes.resize(end.bytes.size() - bytes);
}

void SimNetwork::happen(const Event& event) {
  digest(event.at_us);
  digest(static_cast<std::uint64_t>(event.what) | (std::uint64_t{event.side} << 8) |
         (std::uint64_t{event.value} << 16));
  if (event.what == Happening::alarm) {
    if (turns_ != nullptr) turns_->ring(event.caller);
    return;
  }
  digest(event.channel->index);
  if (is_traced_) trace(event);
  if (event.what == Happening::expire) {
    const Channel& channel = *event.channel;
    const std::uint32_t here = channel.ends[0].place;
    const std::uint32_t there = channel.ends[1].place;
    if (!channel.ends[event.side].is_open) return;
    if (deaf_until(here, there) == 0 && deaf_until(there, here) == 0) return;  // it was heard again
    ++tally_.silences;
    fail(*event.channel, event.side, ETIMEDOUT);
    probe(*event.channel, other(event.side));
    return;
  }
  arrive(event);
}

// What came over a link, if it comes through it.
void SimNetwork::arrive(const Event& event) {
  Channel& channel = *event.channel;
  Channel::End& end = channel.ends[event.side];
  const std::uint32_t from = channel.ends[other(event.side)].place;
  if (const SimTime until = deaf_until(from, end.place); until != 0) {
    if (until == kSimNever) return;
    ++tally_.late;
    Event again = event;
    end.last_arrival_us = again.at_us = std::max(end.last_arrival_us, until + delay());
    post(again);
    return;
  }
  if (event.what == Happening::dial) return dial(event);
  if (event.what == Happening::reset) {
    if (std::exchange(end.is_dialing, false)) {
      end.error = ECONNREFUSED;
      tell(channel, event.side);
    }
    if (!end.is_open) return;
    ++tally_.resets;
    fail(channel, event.side, ECONNRESET);
    schedule_arrival(channel, other(event.side), Happening::reset, 0);
    return;
  }
  if (!end.is_open) {  // nobody knows that connection here
    schedule_arrival(channel, other(event.side), Happening::reset, 0);
    return;
  }
  if (event.what == Happening::arrive) end.arrived += event.value;
  if (event.what == Happening::end) end.has_ended = true;
  tell(channel, event.side);
}

void SimNetwork::tell(Channel& channel, std::uint8_t side) {
  Channel::End& end = channel.ends[side];
  if (end.caller != nullptr) turns_->wake(end.caller);
  if (end.watcher == nullptr) return;
  const bool is_ending = end.has_ended || end.error != 0;
  end.watcher->changed(is_ending || end.arrived > end.begin, end.error != 0 || channel.room_at(other(side)) > 0,
                       is_ending);
}

void SimNetwork::fail(Channel& channel, std::uint8_t side, int error) {
  Channel::End& end = channel.ends[side];
  if (!end.is_open) return;
  end.is_open = false;
  end.error = error;
  tell(channel, side);
}

// Its holder is gone.
void SimNetwork::close_end(Channel& channel, std::uint8_t side) {
  Channel::End& end = channel.ends[side];
  if (end.is_held) --open_ends_;
  end.is_held = false;
  end.watcher = nullptr;
  if (!end.is_open) return;
  end.is_open = false;
  end.error = ECONNRESET;
  // Unread bytes make a kernel say so with a reset, which also overtakes what is still to be sent.
  const bool is_rude = end.bytes.size() > end.begin;
  schedule_arrival(channel, other(side), is_rude ? Happening::reset : Happening::end, 0);
  channel.ends[other(side)].end_is_sent = true;
}

// --- connecting ---

Result<std::unique_ptr<Listener>> SimNetwork::listen(std::uint32_t place, std::uint16_t port) {
  return std::unique_ptr<Listener>(std::make_unique<SimListener>(*this, place, port));
}

Result<std::unique_ptr<Stream>> SimNetwork::connect(std::uint32_t from, std::uint32_t to, std::uint16_t port,
                                                    std::uint32_t timeout_ms) {
  const std::string where = "place " + std::to_string(to);
  if (!places_[from].is_up) return Status(Code::server_lost, "cannot connect to " + where + ": we are gone");
  Channel& channel = channels_.emplace_back();
  channel.index = static_cast<std::uint32_t>(channels_.size());
  channel.segment_bytes = 1 + static_cast<std::uint32_t>(draw(weather_.segment_bytes_max));
  channel.room_bytes = weather_.room_bytes;
  channel.ends[0].place = from;
  channel.ends[0].is_dialing = true;
  channel.ends[1].place = to;
  if (weather_.resets_once_in > 0 && draw(weather_.resets_once_in) == 0) {
    channel.ends[draw(2)].reset_at_byte = draw(weather_.reset_bytes_max + std::uint64_t{1});
  }
  ++tally_.connections;
  Channel::End& mine = channel.ends[0];
  const SimTime deadline_us = now_us_ + timeout_ms * kUsPerMs;
  schedule_arrival(channel, 1, Happening::dial, port);
  while (mine.is_dialing && now_us_ < deadline_us) {
    mine.caller = turns_ == nullptr ? nullptr : turns_->caller();
    pass_time(deadline_us);
    mine.caller = nullptr;
  }
  if (std::exchange(mine.is_dialing, false)) {
    return Status(Code::server_lost,
                  "no answer from " + where + " within " + std::to_string(timeout_ms) + " ms");
  }
  if (!mine.is_open) {
    return Status(Code::server_lost,
                  "cannot connect to " + where + ": " + std::generic_category().message(mine.error));
  }
  auto stream = std::make_unique<SimStream>(*this, channel, std::uint8_t{0});
  stream->bound_silence(timeout_ms);
  return std::unique_ptr<Stream>(std::move(stream));
}

// An attempt has reached the place it wants (side 1), or its answer the one who asks.
void SimNetwork::dial(const Event& event) {
  Channel& channel = *event.channel;
  Channel::End& end = channel.ends[event.side];
  if (event.side == 0) {
    if (!std::exchange(end.is_dialing, false)) {  // it has given up
      schedule_arrival(channel, 1, Happening::reset, 0);
      return;
    }
    end.is_open = true;
    tell(channel, 0);
    return;
  }
  const auto gate = std::find_if(gates_.begin(), gates_.end(), [&](const Gate* open) {
    return open->port == event.value && open->place == end.place;
  });
  if (gate == gates_.end()) {
    schedule_arrival(channel, 0, Happening::reset, 0);
    return;
  }
  end.is_open = true;
  schedule_arrival(channel, 0, Happening::dial, 0);
  (*gate)->waiting.push_back(&channel);
  if ((*gate)->watcher != nullptr) (*gate)->watcher->changed(true, false, false);
}

void SimNetwork::watch(Stream& stream, SimWatcher* watcher) {
  static_cast<SimStream&>(stream).mine().watcher = watcher;
}

void SimNetwork::watch(Listener& listener, SimWatcher* watcher) {
  static_cast<SimListener&>(listener).gate_.watcher = watcher;
}

// --- faults ---

void SimNetwork::expect_silence(Channel& channel) {
  for (const std::uint8_t side : {std::uint8_t{0}, std::uint8_t{1}}) {
    post({.at_us = now_us_ + kTimeoutUs + draw(kProbeUs),
          .channel = &channel,
          .what = Happening::expire,
          .side = side});
  }
}

// The next keepalive probe of the end `side` finds a kernel that knows nothing of its connection.
void SimNetwork::probe(Channel& channel, std::uint8_t side) {
  post({.at_us = now_us_ + draw(kProbeUs), .channel = &channel, .what = Happening::reset, .side = side});
}

void SimNetwork::deafen(std::uint32_t from, std::uint32_t to, SimTime until_us) {
  ensure(until_us != kSimNever, "a link is deaf for a time: what is sent again must arrive");
  deaf_until_[from * places_.size() + to] = until_us;
  if (until_us <= now_us_ + kTimeoutUs) return;
  for (Channel& channel : channels_) {
    const std::uint32_t here = channel.ends[0].place;
    const std::uint32_t there = channel.ends[1].place;
    if ((here == from && there == to) || (here == to && there == from)) expect_silence(channel);
  }
}

void SimNetwork::crash(std::uint32_t place, bool is_silent) {
  places_[place].is_up = !is_silent;
  for (Channel& channel : channels_) {
    for (const std::uint8_t side : {std::uint8_t{0}, std::uint8_t{1}}) {
      if (channel.ends[side].place != place) continue;
      fail(channel, side, ECONNRESET);
      if (!is_silent) schedule_arrival(channel, other(side), Happening::reset, 0);
    }
    if (is_silent) expect_silence(channel);
  }
}

void SimNetwork::restart(std::uint32_t place) {
  places_[place].is_up = true;
  for (Channel& channel : channels_) {
    for (const std::uint8_t side : {std::uint8_t{0}, std::uint8_t{1}}) {
      if (channel.ends[side].place != place || channel.ends[side].is_open) continue;
      if (!channel.ends[other(side)].is_open) continue;
      probe(channel, other(side));
    }
  }
}

void SimNetwork::reset_after(Stream& stream, std::uint64_t bytes) {
  SimNetwork::Channel::End& end = static_cast<SimStream&>(stream).theirs();
  end.reset_at_byte = end.sent_bytes + bytes;
}

void SimNetwork::trace(const Event& event) const {
  static constexpr std::array<const char*, 7> kNames = {"bytes", "room", "end",  "reset",
                                                        "silent", "dial", "alarm"};
  const Channel& channel = *event.channel;
  std::fprintf(stderr, "%10llu us  connection %u (%u -> %u), end %u: %s %u\n",
               static_cast<unsigned long long>(now_us_), channel.index, channel.ends[0].place,
               channel.ends[1].place, event.side, kNames[static_cast<std::size_t>(event.what)],
               event.value);
}

}  // namespace drust::transport
