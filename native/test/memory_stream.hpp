// A stream in memory for tests: what the peer sent lies in `input`, what was sent lies in `output`. Every
// call moves at most `step_bytes`, and sending stops at `room_bytes`, so that all partial transfers can be
// provoked without a socket.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "transport/contract.hpp"

namespace drust::test {

// Bytes in, bytes out, in order. In bulk: fuzzing is mostly this.
class ByteQueue {
 public:
  void push(const void* bytes, std::size_t count) {
    const auto* start = static_cast<const std::byte*>(bytes);
    bytes_.insert(bytes_.end(), start, start + count);
  }
  // At most as many as there are; returns how many.
  std::size_t pop(void* place, std::size_t count) noexcept {
    count = std::min(count, size());
    if (count > 0) std::memcpy(place, bytes_.data() + begin_, count);
    begin_ += count;
    if (begin_ == bytes_.size()) {
      bytes_.clear();
      begin_ = 0;
    }
    return count;
  }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size() - begin_; }

 private:
  std::vector<std::byte> bytes_;
  std::size_t begin_ = 0;
};

// Shared between the test and the stream, which the connection owns. One thread.
struct MemoryPipe {
  ByteQueue input;
  std::vector<std::byte> output;
  bool has_ended = false;  // behind `input`
  std::size_t step_bytes = std::numeric_limits<std::size_t>::max();
  std::size_t room_bytes = std::numeric_limits<std::size_t>::max();

  void say(const void* bytes, std::size_t count) { input.push(bytes, count); }
  template <class T>
  void say(const T& message) {
    say(&message, sizeof message);
  }
  // The next bytes of `output`, which must be there.
  std::vector<std::byte> hear(std::size_t count) {
    std::vector<std::byte> heard(
        output.begin(), output.begin() + static_cast<std::ptrdiff_t>(std::min(count, output.size())));
    output.erase(output.begin(), output.begin() + static_cast<std::ptrdiff_t>(heard.size()));
    return heard;
  }
  template <class T>
  T hear() {
    T message;
    const std::vector<std::byte> heard = hear(sizeof message);
    if (heard.size() == sizeof message)
      std::memcpy(static_cast<void*>(&message), heard.data(), sizeof message);
    return message;
  }
};

class MemoryStream final : public transport::Stream {
 public:
  explicit MemoryStream(MemoryPipe& pipe) noexcept : pipe_(pipe) {}

  Status send_all(std::span<iovec>) override {
    return Status(Code::system, "a stream in memory never waits");
  }
  Result<std::size_t> receive_some(std::span<const iovec>) override {
    return Status(Code::system, "a stream in memory never waits");
  }
  Status receive_all(std::span<iovec>) override {
    return Status(Code::system, "a stream in memory never waits");
  }
  void bound_silence(std::uint32_t) noexcept override {}
  bool is_idle_and_open() noexcept override { return !pipe_.has_ended; }

  transport::Transfer try_send(std::span<const iovec> parts, bool) noexcept override {
    std::size_t sent = 0;
    for (const iovec& part : parts) {
      const std::size_t room = std::min(pipe_.step_bytes - sent,
                                        pipe_.room_bytes - std::min(pipe_.room_bytes, pipe_.output.size()));
      const std::size_t bytes = std::min(part.iov_len, room);
      const auto* start = static_cast<const std::byte*>(part.iov_base);
      pipe_.output.insert(pipe_.output.end(), start, start + bytes);
      sent += bytes;
      if (bytes < part.iov_len) break;
    }
    return sent > 0 ? transport::Transfer{transport::Flow::moved, 0, sent}
                    : transport::Transfer{transport::Flow::would_block, 0, 0};
  }

  transport::Transfer try_receive(std::span<const iovec> parts) noexcept override {
    std::size_t received = 0;
    for (const iovec& part : parts) {
      const std::size_t bytes =
          pipe_.input.pop(part.iov_base, std::min(part.iov_len, pipe_.step_bytes - received));
      received += bytes;
      if (bytes < part.iov_len) break;
    }
    if (received > 0) return {transport::Flow::moved, 0, received};
    return pipe_.has_ended ? transport::Transfer{transport::Flow::ended, 0, 0}
                           : transport::Transfer{transport::Flow::would_block, 0, 0};
  }

  std::string peer() const override { return "memory"; }
  int descriptor() const noexcept override { return -1; }
  void end_sending() noexcept override {}

 private:
  MemoryPipe& pipe_;
};

}  // namespace drust::test
