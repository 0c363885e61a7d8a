// Sits between a server's connection and its stream: sees where in a frame a connection is lost, and, where a
// test wants a broken server, is what is broken about it.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "protocol/wire.hpp"
#include "test/sim/bug.hpp"
#include "test/sim/machine.hpp"
#include "transport/contract.hpp"
#include "transport/handshake.hpp"

namespace drust::test {

class Inspector final : public transport::Stream {
 public:
  struct Notes {  // outlives the stream
    std::uint64_t lost_in_body = 0;
    std::uint64_t repeated_completions = 0;
    std::function<void(const GlobalPointer& record)> reopen;  // SimBug::completion_twice
  };

  Inspector(std::unique_ptr<transport::Stream> inner, Machine& machine, SimBug bug, Notes& notes, bool& has_news)
      : inner_(std::move(inner)), machine_(machine), bug_(bug), notes_(notes), has_news_(has_news) {}
  ~Inspector() override {
    if (body_done_ > 0 && body_done_ < header_.body_bytes) ++notes_.lost_in_body;
  }

  Status send_all(std::span<iovec> parts) override { return inner_->send_all(parts); }
  Result<std::size_t> receive_some(std::span<const iovec> parts) override { return inner_->receive_some(parts); }
  Status receive_all(std::span<iovec> parts) override { return inner_->receive_all(parts); }
  void bound_silence(std::uint32_t silence_ms) noexcept override { inner_->bound_silence(silence_ms); }
  bool is_idle_and_open() noexcept override { return inner_->is_idle_and_open(); }
  std::string peer() const override { return inner_->peer(); }
  int descriptor() const noexcept override { return inner_->descriptor(); }
  std::int64_t now_ms() const noexcept override { return inner_->now_ms(); }
  void end_sending() noexcept override { inner_->end_sending(); }

  transport::Transfer try_send(std::span<const iovec> parts, bool more) noexcept override {
    if (bug_ != SimBug::trailer_ignored) return inner_->try_send(parts, more);
    std::vector<std::byte> bytes;
    for (const iovec& part : parts) {
      const auto* start = static_cast<const std::byte*>(part.iov_base);
      bytes.insert(bytes.end(), start, start + part.iov_len);
    }
    const wire::Trailer stale{static_cast<std::uint64_t>(Code::stale)};
    if (bytes.size() >= sizeof stale &&
        std::memcmp(bytes.data() + bytes.size() - sizeof stale, &stale, sizeof stale) == 0) {
      std::memset(bytes.data() + bytes.size() - sizeof stale, 0, sizeof stale);
    }
    const iovec whole{bytes.data(), bytes.size()};
    return inner_->try_send({&whole, 1}, more);
  }

  transport::Transfer try_receive(std::span<const iovec> parts) noexcept override {
    const transport::Transfer received = inner_->try_receive(parts);
    std::size_t left = received.bytes;
    for (const iovec& part : parts) {
      const std::size_t bytes = std::min(left, part.iov_len);
      look_at({static_cast<std::byte*>(part.iov_base), bytes});
      left -= bytes;
    }
    return received;
  }

 private:
  void look_at(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
      std::size_t taken = 0;
      if (greeting_left_ > 0) {
        taken = std::min(bytes.size(), greeting_left_);
        greeting_left_ -= taken;
      } else if (header_done_ < sizeof header_) {
        taken = std::min(bytes.size(), sizeof header_ - header_done_);
        std::memcpy(reinterpret_cast<std::byte*>(&header_) + header_done_, bytes.data(), taken);
        header_done_ += taken;
        if (header_done_ == sizeof header_) begin_frame();
      } else {
        taken = std::min<std::size_t>(bytes.size(), header_.body_bytes - body_done_);
        look_at_body(bytes.first(taken));
        body_done_ += taken;
      }
      bytes = bytes.subspan(taken);
      if (header_done_ == sizeof header_ && body_done_ == header_.body_bytes) {
        has_news_ = has_news_ || header_.operation == static_cast<std::uint8_t>(wire::Operation::submit) ||
                    header_.operation == static_cast<std::uint8_t>(wire::Operation::complete);
        header_done_ = body_done_ = 0;
      }
    }
  }

  void begin_frame() {
    body_done_ = 0;
    if (header_.operation != static_cast<std::uint8_t>(wire::Operation::complete)) return;
    const GlobalPointer record{Address(header_.address), header_.colour, header_.extent_bytes};
    const auto state = tasks::Queue::look(*machine_.partition, record);
    if (!state.has_value() || *state == tasks::RecordState::pending) return;
    ++notes_.repeated_completions;
    if (bug_ == SimBug::completion_twice && notes_.reopen) notes_.reopen(record);
  }

  void look_at_body(std::span<std::byte> bytes) {
    if (bug_ == SimBug::early_write &&
        header_.operation == static_cast<std::uint8_t>(wire::Operation::write_region)) {
      const auto found = machine_.partition->find(Address(header_.address), header_.colour);
      if (!found.ok()) return;
      const auto buffer = found.value().buffer(0);  // the simulation writes regions of one chunk
      std::memcpy(buffer.data() + header_.region.offset_bytes + body_done_, bytes.data(), bytes.size());
    }
    if (bug_ == SimBug::free_by_address &&
        header_.operation == static_cast<std::uint8_t>(wire::Operation::free_blocks)) {
      wire::FreeItem item;
      const std::size_t skipped = (sizeof item - body_done_ % sizeof item) % sizeof item;
      for (std::size_t at = skipped; at + sizeof item <= bytes.size(); at += sizeof item) {
        std::memcpy(&item, bytes.data() + at, sizeof item);
        const auto found = machine_.partition->find(Address(item.address), kNoColour);
        if (found.ok()) item.colour = found.value().header().state.load();
        std::memcpy(bytes.data() + at, &item, sizeof item);
      }
    }
  }

  std::unique_ptr<transport::Stream> inner_;
  Machine& machine_;
  const SimBug bug_;
  Notes& notes_;
  bool& has_news_;  // set when a task or a completion is complete
  std::size_t greeting_left_ = sizeof(transport::Hello) + sizeof(transport::Proof);
  wire::RequestHeader header_;
  std::size_t header_done_ = 0;
  std::uint64_t body_done_ = 0;
};

}  // namespace drust::test
