// One peer's connection, as the server sees it: bytes in, operations, bytes out. It never waits and owns no
// thread, so the same object serves a socket in an epoll loop and a stream in memory under a fuzzer.
//
//     handshake -> header <-> body -> (control) -> answering -> header ...
//         |           \________/
//      refused: the last word is sent, then whatever comes is dropped until the peer closes
//
// One request is in progress at a time: while an answer is going out, nothing more is read (the peer's own
// window is the back-pressure). Anything that cannot be the start of a frame closes the connection; reason()
// says why. A served read goes out from the heap itself, and before each piece the version is confirmed: once
// it is gone, the rest of the promised bytes are zeros and the trailer says stale. Small reads are copied,
// confirmed, and leave with header and trailer in one call.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "protocol/wire.hpp"
#include "server/operations.hpp"
#include "transport/contract.hpp"
#include "transport/handshake.hpp"

namespace drust::server {

class Connection {
 public:
  enum class Wants : std::uint8_t {
    event,    // the stream must become readable or writable first
    turn,     // there is more to do: others first
    control,  // take_control(), and later answer_control()
    waits,    // take_wait(), and later answer_wait()
    close,    // nothing more to do; reason() says why
  };

  // `token` and `operations` must outlive the connection.
  Connection(std::unique_ptr<transport::Stream> stream, Operations& operations,
             std::span<const std::byte> token);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Edges seen by epoll; a connection begins as readable and writable. `is_ending`: the end of the stream is
  // behind what can be read, and will not be an event of its own.
  void set_ready(bool readable, bool writable, bool is_ending) noexcept;
  // Does what can be done without waiting, up to a fair share.
  Wants advance();

  // The body of a control request, after Wants::control.
  [[nodiscard]] std::vector<std::byte> take_control() noexcept;
  // Queues the answer; advance() sends it.
  void answer_control(std::span<const std::byte> body);
  // The request that has to wait, after Wants::waits; and its answer.
  [[nodiscard]] const SharedWait& wait() const noexcept { return answer_.wait; }
  void answer_wait(Answer answer);

  [[nodiscard]] bool is_authenticated() const noexcept { return handshake_ == nullptr; }
  // Why it wants to be closed. ok: the peer ended the connection, or was lost.
  [[nodiscard]] const Status& reason() const noexcept { return reason_; }
  [[nodiscard]] const transport::Stream& stream() const noexcept { return *stream_; }

 private:
  enum class Phase : std::uint8_t { handshake, refused, header, body, control, waits, closed };
  enum class Fill : std::uint8_t { moved, blocked, gone };

  bool step(Wants& wants);
  bool step_handshake();
  bool step_header();
  bool step_body();
  void answer(Answer answer);
  void start_reply(Code code, const GlobalPointer& pointer, std::uint64_t body_bytes);
  void append(const void* bytes, std::size_t count);
  [[nodiscard]] bool is_answering() const noexcept;
  Fill send_answer();
  void copy_chunks();
  void append_trailer();
  void open_blocks();
  std::size_t body_parts(std::span<iovec, 2> parts) noexcept;
  Fill receive();
  std::size_t take(std::span<std::byte> destination) noexcept;
  [[nodiscard]] std::size_t buffered_bytes() const noexcept { return input_end_ - input_begin_; }
  void reject(Status reason);

  // Everything below belongs to the one thread that drives the connection.
  std::unique_ptr<transport::Stream> stream_;
  Operations& operations_;
  std::unique_ptr<transport::Handshake> handshake_;  // null once the peer is authenticated
  Phase phase_ = Phase::handshake;
  Status reason_;
  bool is_readable_ = true;
  bool is_writable_ = true;
  bool is_ending_ = false;
  std::uint64_t turn_bytes_ = 0;  // moved in this turn

  // Input: bytes that came with others, not yet looked at.
  std::array<std::byte, 8192> input_;
  std::size_t input_begin_ = 0;
  std::size_t input_end_ = 0;

  // The request in progress.
  wire::RequestHeader request_;
  Intake intake_;
  std::uint64_t body_left_bytes_ = 0;

  // The answer in progress: `output_` from `output_begin_`, then `answer_.chunks`, then the trailer (through
  // `output_`).
  std::vector<std::byte> output_;
  std::size_t output_begin_ = 0;
  Answer answer_;
  std::size_t next_block_ = 0;  // of answer_.blocks
  bool owes_trailer_ = false;
  bool is_stale_ = false;
};

}  // namespace drust::server
