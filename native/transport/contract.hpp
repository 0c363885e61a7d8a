// What a transport offers: streams of bytes between two servers, and nothing above that. It knows no frames,
// no tokens, no blocks.
//
// Lifecycle of a stream: connected (connect() or Listener::try_accept()) -> used by one thread at a time ->
// destroyed. There is no half-closed state for users: after any failure the stream is only good for
// destruction.
//
// Two ways to move bytes, because the two sides differ. The asking thread waits (send_all, receive_some,
// receive_all: one system call each when the peer is prompt, which is what makes a round trip cheap); a
// serving thread never waits (try_send, try_receive) and learns from `descriptor()` in an epoll set, edge
// triggered, when to go on. All of them take the pieces of a message as they lie (iovec) and copy nothing.
//
// Waiting is bounded by silence, not by duration: `bound_silence(ms)` says how long no byte may move before a
// call ends with Code::timed_out. A peer that is gone (end of stream, reset, unreachable) is
// Code::server_lost at once.
//
// Where TLS would sit: a TlsStream implements Stream over another Stream (its try_ calls over the inner try_
// calls), between the TCP stream and the handshake (handshake.hpp), which then binds the TLS exporter value
// into its proofs. Rejected: templates instead of virtual calls (2 ns of 10 us), and a callback style (a
// hand-over between threads costs more than the message).
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/status.hpp"

namespace drust::transport {

enum class Flow : std::uint8_t {
  moved,        // `bytes` of them, at least one
  would_block,  // nothing can move now: wait for the descriptor
  ended,        // the peer has closed its side
  failed,       // reset, unreachable, or a local error: `error` is an errno
};

struct Transfer {
  Flow flow = Flow::failed;
  int error = 0;
  std::size_t bytes = 0;
};

class Stream {
 public:
  virtual ~Stream() = default;

  // Waits until every byte is in the transport's hands. `parts` is used up (its elements are advanced). At
  // most IOV_MAX.
  virtual Status send_all(std::span<iovec> parts) = 0;
  // Waits for at least one byte; fills `parts` in order and returns how many bytes came.
  virtual Result<std::size_t> receive_some(std::span<const iovec> parts) = 0;
  // Waits until `parts` is full. `parts` is used up.
  virtual Status receive_all(std::span<iovec> parts) = 0;
  // Of the three calls above; without it they wait for ever.
  virtual void bound_silence(std::uint32_t silence_ms) noexcept = 0;

  // `more`: another try_send follows at once, so a short packet may wait for it.
  virtual Transfer try_send(std::span<const iovec> parts, bool more) noexcept = 0;
  virtual Transfer try_receive(std::span<const iovec> parts) noexcept = 0;
  // True while an idle stream can still be used: no end of stream, no error, no unexpected byte has arrived.
  [[nodiscard]] virtual bool is_idle_and_open() noexcept = 0;

  // Whom the other end belongs to, for a person: "127.0.0.1:41234".
  [[nodiscard]] virtual std::string peer() const = 0;
  // For epoll; -1 if the stream has none (streams in memory).
  [[nodiscard]] virtual int descriptor() const noexcept = 0;
  // The clock that this stream's bounds are measured by: virtual where time is.
  [[nodiscard]] virtual std::int64_t now_ms() const noexcept {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  }
  // Says to the peer that nothing more will be sent; what it still sends can be received.
  virtual void end_sending() noexcept = 0;

 protected:
  Stream() = default;
  Stream(const Stream&) = default;
  Stream& operator=(const Stream&) = default;
};

class Listener {
 public:
  virtual ~Listener() = default;
  // A waiting connection, or null if there is none. Never waits.
  virtual Result<std::unique_ptr<Stream>> try_accept() = 0;
  [[nodiscard]] virtual int descriptor() const noexcept = 0;
  [[nodiscard]] virtual std::uint16_t port() const noexcept = 0;

 protected:
  Listener() = default;
  Listener(const Listener&) = default;
  Listener& operator=(const Listener&) = default;
};

// Drops the first `bytes` bytes of `parts`: finished pieces are skipped, the piece in progress is shortened.
// Returns what is left.
inline std::span<iovec> drop_front(std::span<iovec> parts, std::size_t bytes) noexcept {
  while (!parts.empty() && bytes >= parts.front().iov_len) {
    bytes -= parts.front().iov_len;
    parts = parts.subspan(1);
  }
  if (bytes > 0) {  // never past the end: the caller moved at most the sum
    parts.front().iov_base = static_cast<std::byte*>(parts.front().iov_base) + bytes;
    parts.front().iov_len -= bytes;
  }
  return parts;
}

[[nodiscard]] inline std::size_t total_bytes(std::span<const iovec> parts) noexcept {
  std::size_t sum = 0;
  for (const iovec& part : parts) sum += part.iov_len;
  return sum;
}

}  // namespace drust::transport
