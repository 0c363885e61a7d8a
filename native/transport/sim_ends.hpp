// The ends of simulated connections: what a stream and a listener hold, and how they look to their callers.
// Private to native/transport; when what happens to them is sim.cpp's.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "transport/sim.hpp"

namespace drust::transport {

inline constexpr SimTime kUsPerMs = 1000;
inline constexpr std::size_t kReadBytesKept = 4096;  // bytes that were read are dropped together

inline std::uint8_t other(std::uint8_t side) noexcept { return side ^ 1U; }

// One connection: end 0 has connected, end 1 was accepted.
struct SimNetwork::Channel {
  struct End {
    std::uint32_t place = 0;
    bool is_held = false;  // by a stream
    bool is_open = false;  // as far as it knows
    bool is_dialing = false;
    int error = 0;
    SimWatcher* watcher = nullptr;
    void* caller = nullptr;  // waits for a change
    // What the other end has sent: [begin, arrived) can be read, the rest is on the way.
    std::vector<std::byte> bytes;
    std::size_t begin = 0;
    std::size_t arrived = 0;
    SimTime last_arrival_us = 0;
    std::uint64_t sent_bytes = 0;  // in all, to this end
    std::uint64_t reset_at_byte = ~std::uint64_t{0};
    bool is_swallowed = false;     // what is sent to it leads nowhere: it is about to be reset
    bool has_ended = false;        // the end of the stream has arrived
    bool end_is_sent = false;
    bool room_is_wanted = false;   // the sender waits for room here
  };
  std::array<End, 2> ends;
  std::uint32_t index = 0;
  std::uint32_t segment_bytes = 1;
  std::uint32_t room_bytes = 1;

  [[nodiscard]] std::size_t room_at(std::uint8_t side) const noexcept {
    const std::size_t used = ends[side].bytes.size() - ends[side].begin;
    return room_bytes - std::min<std::size_t>(room_bytes, used);
  }
};

struct SimNetwork::Gate {
  SimNetwork* network = nullptr;
  std::uint32_t place = 0;
  std::uint16_t port = 0;
  SimWatcher* watcher = nullptr;
  std::deque<Channel*> waiting;
};

class SimStream final : public Stream {
 public:
  SimStream(SimNetwork& network, SimNetwork::Channel& channel, std::uint8_t side) noexcept
      : network_(network), channel_(channel), side_(side) {
    mine().is_held = true;
    ++network_.open_ends_;
  }
  ~SimStream() override { network_.close_end(channel_, side_); }
  SimStream(const SimStream&) = delete;
  SimStream& operator=(const SimStream&) = delete;

  Status send_all(std::span<iovec> parts) override {
    SimTime deadline_us = deadline();
    for (parts = drop_front(parts, 0); !parts.empty();) {
      const Transfer sent = try_send(parts, false);
      if (sent.flow == Flow::moved) {
        parts = drop_front(parts, sent.bytes);
        deadline_us = deadline();
        note_progress();
      } else if (Status status = go_on_after(sent, deadline_us); !status.ok()) {
        return status;
      }
    }
    return {};
  }

  Result<std::size_t> receive_some(std::span<const iovec> parts) override {
    const SimTime deadline_us = deadline();
    for (;;) {
      const Transfer received = try_receive(parts);
      if (received.flow == Flow::moved) {
        note_progress();
        return received.bytes;
      }
      if (Status status = go_on_after(received, deadline_us); !status.ok()) return status;
    }
  }

  Status receive_all(std::span<iovec> parts) override {
    for (parts = drop_front(parts, 0); !parts.empty();) {
      const Result<std::size_t> received = receive_some(parts);
      if (!received.ok()) return received.status();
      parts = drop_front(parts, received.value());
    }
    return {};
  }

  void bound_silence(std::uint32_t silence_ms) noexcept override { silence_ms_ = silence_ms; }

  Transfer try_send(std::span<const iovec> parts, bool) noexcept override {
    if (mine().error != 0) return {Flow::failed, mine().error, 0};
    if (theirs().end_is_sent) return {Flow::failed, EPIPE, 0};
    std::size_t left = std::min(total_bytes(parts), channel_.room_at(other(side_)));
    if (left == 0) {
      theirs().room_is_wanted = true;
      return {Flow::would_block, 0, 0};
    }
    const std::size_t sent = left;
    for (const iovec& part : parts) {
      const std::size_t bytes = std::min(part.iov_len, left);
      const auto* start = static_cast<const std::byte*>(part.iov_base);
      theirs().bytes.insert(theirs().bytes.end(), start, start + bytes);
      left -= bytes;
    }
    network_.transmit(channel_, other(side_), sent);
    return {Flow::moved, 0, sent};
  }

  Transfer try_receive(std::span<const iovec> parts) noexcept override {
    SimNetwork::Channel::End& end = mine();
    std::size_t received = 0;
    for (const iovec& part : parts) {
      const std::size_t bytes = std::min(part.iov_len, end.arrived - end.begin);
      if (bytes > 0) std::memcpy(part.iov_base, end.bytes.data() + end.begin, bytes);
      end.begin += bytes;
      received += bytes;
      if (bytes < part.iov_len) break;
    }
    if (received == 0) {
      if (end.error != 0) return {Flow::failed, end.error, 0};
      return {end.has_ended ? Flow::ended : Flow::would_block, 0, 0};
    }
    if (end.begin == end.bytes.size() || end.begin > kReadBytesKept) {
      end.bytes.erase(end.bytes.begin(), end.bytes.begin() + static_cast<std::ptrdiff_t>(end.begin));
      end.arrived -= std::exchange(end.begin, 0);
    }
    if (end.room_is_wanted) {
      end.room_is_wanted = false;
      network_.schedule_arrival(channel_, other(side_), SimNetwork::Happening::room, 0);
    }
    return {Flow::moved, 0, received};
  }

  bool is_idle_and_open() noexcept override {
    const SimNetwork::Channel::End& end = mine();
    return end.error == 0 && !end.has_ended && end.arrived == end.begin;
  }
  std::string peer() const override { return "place " + std::to_string(channel_.ends[other(side_)].place); }
  int descriptor() const noexcept override { return -1; }
  std::int64_t now_ms() const noexcept override {
    return static_cast<std::int64_t>(network_.now_us() / kUsPerMs);
  }

  void end_sending() noexcept override {
    if (mine().error != 0 || theirs().end_is_sent) return;
    theirs().end_is_sent = true;
    network_.schedule_arrival(channel_, other(side_), SimNetwork::Happening::end, 0);
  }

 private:
  friend class SimNetwork;
  [[nodiscard]] SimNetwork::Channel::End& mine() const noexcept { return channel_.ends[side_]; }
  [[nodiscard]] SimNetwork::Channel::End& theirs() const noexcept { return channel_.ends[other(side_)]; }
  [[nodiscard]] SimTime deadline() const noexcept {
    return silence_ms_ == 0 ? kSimNever : network_.now_us() + silence_ms_ * kUsPerMs;
  }

  void note_progress() {
    if (network_.turns_ != nullptr) network_.turns_->moved();
  }

  // ok: something may have changed. The sentences are those of TCP.
  Status go_on_after(const Transfer& transfer, SimTime deadline_us) {
    if (transfer.flow == Flow::ended) return Status(Code::server_lost, "the peer closed the connection");
    if (transfer.flow == Flow::failed) {
      return Status(Code::server_lost,
                    "connection lost: " + std::generic_category().message(transfer.error));
    }
    if (network_.now_us() >= deadline_us) {
      return Status(Code::timed_out,
                    "the peer has been silent for " + std::to_string(silence_ms_) + " ms");
    }
    mine().caller = network_.turns_ == nullptr ? nullptr : network_.turns_->caller();
    network_.pass_time(deadline_us);
    mine().caller = nullptr;
    return {};
  }

  SimNetwork& network_;
  SimNetwork::Channel& channel_;
  const std::uint8_t side_;
  std::uint32_t silence_ms_ = 0;
};

class SimListener final : public Listener {
 public:
  SimListener(SimNetwork& network, std::uint32_t place, std::uint16_t port)
      : gate_{&network, place, port, nullptr, {}} {
    network.gates_.push_back(&gate_);
  }
  ~SimListener() override {
    std::erase(gate_.network->gates_, &gate_);
    for (SimNetwork::Channel* channel : gate_.waiting) gate_.network->close_end(*channel, 1);
  }
  SimListener(const SimListener&) = delete;
  SimListener& operator=(const SimListener&) = delete;

  Result<std::unique_ptr<Stream>> try_accept() override {
    if (gate_.waiting.empty()) return std::unique_ptr<Stream>();
    SimNetwork::Channel* channel = gate_.waiting.front();
    gate_.waiting.pop_front();
    return std::unique_ptr<Stream>(std::make_unique<SimStream>(*gate_.network, *channel, 1));
  }
  int descriptor() const noexcept override { return -1; }
  std::uint16_t port() const noexcept override { return gate_.port; }

 private:
  friend class SimNetwork;
  SimNetwork::Gate gate_;
};

}  // namespace drust::transport
