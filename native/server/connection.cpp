#include "server/connection.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/kill_point.hpp"

namespace drust::server {
namespace {

constexpr std::uint64_t kTurnBytes = 4ULL << 20;      // moved by one connection before others get their turn
constexpr std::size_t kPiecesMax = 128;               // named in one call
constexpr std::uint64_t kPieceBytesMax = 1ULL << 20;  // sent between two looks at the version
constexpr std::uint64_t kCopiedBytesMax = 16ULL * 1024;  // reads up to this leave in one call, copied
constexpr std::uint64_t kCopiedChunkBytesMax = 512;      // chunks up to this are copied together
constexpr std::size_t kCopyStepBytes = 64ULL * 1024;
constexpr std::size_t kKeptOutputBytes = 128ULL * 1024;  // a larger output buffer (control) is given back

constexpr std::array<std::byte, 4096> kZeros{};

}  // namespace

Connection::Connection(std::unique_ptr<transport::Stream> stream, Operations& operations,
                       std::span<const std::byte> token)
    : stream_(std::move(stream)),
      operations_(operations),
      handshake_(std::make_unique<transport::Handshake>(transport::Role::server, token, operations.server(),
                                                        transport::draw_nonce())) {}

Connection::~Connection() { operations_.close(intake_); }

void Connection::set_ready(bool readable, bool writable, bool is_ending) noexcept {
  is_ending_ = is_ending_ || is_ending;
  is_readable_ = is_readable_ || readable;
  is_writable_ = is_writable_ || writable;
}

Connection::Wants Connection::advance() {
  Wants wants = Wants::event;
  turn_bytes_ = 0;
  while (step(wants)) {
    if (turn_bytes_ >= kTurnBytes) return Wants::turn;
  }
  return wants;
}

// One step; false when it cannot go on, and then `wants` says for what.
bool Connection::step(Wants& wants) {
  if (is_answering()) {
    const Fill sent = send_answer();
    if (sent == Fill::gone) phase_ = Phase::closed;
    if (sent == Fill::blocked) return false;
    if (sent == Fill::moved) return true;
  }
  switch (phase_) {
    case Phase::handshake:
      if (step_handshake()) return true;
      break;
    case Phase::header:
      if (step_header()) return true;
      break;
    case Phase::body:
      if (step_body()) return true;
      break;
    case Phase::refused:
      input_begin_ = input_end_ = 0;
      stream_->end_sending();
      break;
    case Phase::control: wants = Wants::control; return false;
    case Phase::waits: wants = Wants::waits; return false;
    case Phase::closed: wants = Wants::close; return false;
  }
  if (phase_ == Phase::closed) return true;
  const Fill received = receive();
  if (received == Fill::gone) phase_ = Phase::closed;
  return received != Fill::blocked;
}

// The steps below return true if they got on, false if they need more bytes.

bool Connection::step_handshake() {
  const std::size_t wanted = handshake_->wanted_bytes();
  if (buffered_bytes() < wanted) return false;
  std::array<std::byte, sizeof(transport::Hello)> bytes;
  take({bytes.data(), wanted});
  Status status = handshake_->receive({bytes.data(), wanted});
  const std::span<const std::byte> outgoing = handshake_->take_outgoing();
  append(outgoing.data(), outgoing.size());
  if (!status.ok()) {
    // Closing at once would make the kernel reset the connection and lose our last word; so it is closed when
    // the peer has read it and closes, or when its time for the handshake is up.
    const bool has_last_word = !outgoing.empty();
    reject(std::move(status));
    if (has_last_word) phase_ = Phase::refused;
  } else if (handshake_->is_done()) {
    handshake_.reset();
    phase_ = Phase::header;
  }
  return true;
}

bool Connection::step_header() {
  if (buffered_bytes() < sizeof request_) return false;
  take(std::as_writable_bytes(std::span(&request_, 1)));
  if (Status status = wire::check(request_); !status.ok()) {
    reject(std::move(status));
    return true;
  }
  body_left_bytes_ = request_.body_bytes;
  operations_.admit(request_, intake_);
  phase_ = Phase::body;
  return true;
}

bool Connection::step_body() {
  if (body_left_bytes_ > 0 && buffered_bytes() > 0) {
    // What has come already: into place, or dropped.
    std::array<iovec, 2> parts;
    std::uint64_t moved = 0;
    if (intake_.refusal.ok()) {
      const std::size_t count = body_parts(parts);
      for (std::size_t index = 0; index < count; ++index) {
        moved += take({static_cast<std::byte*>(parts[index].iov_base), parts[index].iov_len});
      }
    } else {
      moved = std::min<std::uint64_t>(body_left_bytes_, buffered_bytes());
      input_begin_ += moved;
    }
    body_left_bytes_ -= moved;
  }
  if (body_left_bytes_ > 0) return false;
  kill_point("server.body.arrived");
  answer(operations_.execute(request_, intake_));
  return true;
}

// The places that the rest of the body goes to.
std::size_t Connection::body_parts(std::span<iovec, 2> parts) noexcept {
  const std::uint64_t done = request_.body_bytes - body_left_bytes_;
  const std::uint64_t header_bytes = intake_.has_header ? intake_.header.size() : 0;
  std::size_t count = 0;
  if (done < header_bytes) parts[count++] = {intake_.header.data() + done, header_bytes - done};
  const std::uint64_t rest_done = done - std::min(done, header_bytes);
  if (rest_done < intake_.rest.size()) {
    parts[count++] = {intake_.rest.data() + rest_done, intake_.rest.size() - rest_done};
  }
  return count;
}

void Connection::answer(Answer answer) {
  kill_point("server.execute.after");
  answer_ = std::move(answer);
  phase_ = Phase::header;
  switch (answer_.kind) {
    case Answer::Kind::malformed: reject(std::move(answer_.status)); return;
    case Answer::Kind::control:
      phase_ = Phase::control;
      return;  // the body stays in the intake until it is taken
    case Answer::Kind::waits:
      phase_ = Phase::waits;
      operations_.discard(intake_);
      return;
    case Answer::Kind::none: break;
    case Answer::Kind::reply: {
      const std::string& sentence = answer_.status.detail();
      const std::size_t bytes = std::min<std::size_t>(sentence.size(), wire::kSentenceBytesMax);
      start_reply(answer_.status.code(), answer_.pointer, bytes + answer_.body.size());
      append(sentence.data(), bytes);
      append(answer_.body.data(), answer_.body.size());
      break;
    }
    case Answer::Kind::served: {
      const std::uint64_t body_bytes =
          answer_.head_bytes + answer_.chunks.left_bytes() + sizeof(wire::Trailer);
      start_reply(Code::ok, answer_.pointer.is_null() ? answer_.block : answer_.pointer, body_bytes);
      append(answer_.head.data(), answer_.head_bytes);
      owes_trailer_ = true;
      is_stale_ = false;
      if (answer_.chunks.left_bytes() <= kCopiedBytesMax) copy_chunks();
      break;
    }
    case Answer::Kind::group: {
      std::uint64_t body_bytes = 0;
      for (const GlobalPointer& block : answer_.blocks) body_bytes += block.extent_bytes + sizeof(wire::Trailer);
      start_reply(Code::ok, {}, body_bytes);
      next_block_ = 0;
      open_blocks();
      break;
    }
  }
  operations_.discard(intake_);
  operations_.count(heap::Counter::messages_served);
}

void Connection::start_reply(Code code, const GlobalPointer& pointer, std::uint64_t body_bytes) {
  wire::ReplyHeader reply;
  reply.operation = request_.operation;
  reply.code = static_cast<std::uint8_t>(code);
  reply.body_bytes = body_bytes;
  reply.address = pointer.address.raw();
  reply.colour = pointer.colour;
  reply.extent_bytes = pointer.extent_bytes;
  append(&reply, sizeof reply);
}

void Connection::append(const void* bytes, std::size_t count) {
  const auto* start = static_cast<const std::byte*>(bytes);
  output_.insert(output_.end(), start, start + count);
}

std::vector<std::byte> Connection::take_control() noexcept {
  std::vector<std::byte> body = std::move(intake_.buffer);
  operations_.discard(intake_);
  return body;
}

void Connection::answer_control(std::span<const std::byte> body) {
  if (phase_ != Phase::control) return;
  const bool fits = body.size() <= kControlBodyBytesMax;
  start_reply(fits ? Code::ok : Code::bad_request, {}, fits ? body.size() : 0);
  if (fits) append(body.data(), body.size());
  phase_ = Phase::header;
  operations_.count(heap::Counter::messages_served);
}

void Connection::answer_wait(Answer given) {
  if (phase_ == Phase::waits) answer(std::move(given));
}

void Connection::reject(Status reason) {
  reason_ = std::move(reason);
  phase_ = Phase::closed;
  operations_.count(heap::Counter::frames_rejected);
}

// --- output ---

bool Connection::is_answering() const noexcept {
  return output_begin_ < output_.size() || owes_trailer_ || next_block_ < answer_.blocks.size();
}

// The next blocks of a group, small ones together: as many as fill one step.
void Connection::open_blocks() {
  while (!owes_trailer_ && next_block_ < answer_.blocks.size() &&
         output_.size() - output_begin_ < kCopyStepBytes) {
    is_stale_ = !operations_.open_block(answer_.blocks[next_block_++], answer_);
    append(answer_.head.data(), answer_.head_bytes);
    owes_trailer_ = true;
    if (answer_.chunks.left_bytes() <= kCopiedBytesMax) copy_chunks();
  }
}

// Copies the next chunks behind what is in `output_`; with the last of them goes the trailer.
void Connection::copy_chunks() {
  const std::size_t bytes = std::min<std::size_t>(answer_.chunks.left_bytes(), kCopyStepBytes);
  const std::size_t start = output_.size();
  output_.resize(start + bytes);
  if (!is_stale_ && !operations_.is_live(answer_.block)) is_stale_ = true;
  if (is_stale_) {
    answer_.chunks.move_on(bytes);  // resize() has left zeros
  } else {
    answer_.chunks.gather({output_.data() + start, bytes});
  }
  if (answer_.chunks.left_bytes() == 0) append_trailer();
}

void Connection::append_trailer() {
  if (!is_stale_ && !operations_.is_live(answer_.block)) is_stale_ = true;
  const wire::Trailer trailer{static_cast<std::uint64_t>(is_stale_ ? Code::stale : Code::ok)};
  append(&trailer, sizeof trailer);
  owes_trailer_ = false;
}

// moved: it got on or is complete.
Connection::Fill Connection::send_answer() {
  if (!is_writable_) return Fill::blocked;
  open_blocks();
  Chunks& chunks = answer_.chunks;
  const bool owes_chunks = owes_trailer_ && chunks.left_bytes() > 0;
  if (output_begin_ == output_.size()) {
    output_.clear();
    output_begin_ = 0;
    if (owes_chunks && chunks.chunk_bytes() <= kCopiedChunkBytesMax) {
      copy_chunks();
    } else if (!owes_chunks && owes_trailer_) {
      append_trailer();
    }
  }
  std::array<iovec, kPiecesMax> parts;
  std::size_t count = 0;
  const std::size_t output_bytes = output_.size() - output_begin_;
  if (output_bytes > 0) parts[count++] = {output_.data() + output_begin_, output_bytes};
  const bool sends_chunks =
      owes_trailer_ && chunks.left_bytes() > 0 && chunks.chunk_bytes() > kCopiedChunkBytesMax;
  if (sends_chunks) {
    if (!is_stale_ && !operations_.is_live(answer_.block)) is_stale_ = true;
    if (is_stale_) {
      for (std::uint64_t left = chunks.left_bytes(); left > 0 && count < parts.size();) {
        const std::size_t bytes = std::min<std::uint64_t>(left, kZeros.size());
        parts[count++] = {const_cast<std::byte*>(kZeros.data()), bytes};
        left -= bytes;
      }
    } else {
      count += chunks.pieces(std::span(parts).subspan(count), kPieceBytesMax);
    }
  }
  const transport::Transfer sent = stream_->try_send({parts.data(), count}, owes_trailer_ || next_block_ < answer_.blocks.size());
  if (sent.flow == transport::Flow::would_block) {
    is_writable_ = false;
    return Fill::blocked;
  }
  if (sent.flow != transport::Flow::moved) return Fill::gone;
  turn_bytes_ += sent.bytes;
  const std::size_t from_output = std::min(sent.bytes, output_bytes);
  output_begin_ += from_output;
  if (sent.bytes > from_output) chunks.move_on(sent.bytes - from_output);
  if (!is_answering()) {
    kill_point("server.reply.sent");
    output_.clear();
    output_begin_ = 0;
    if (output_.capacity() > kKeptOutputBytes) output_.shrink_to_fit();
  }
  return Fill::moved;
}

// --- input ---

// Receives what is there: the rest of a body into place, and what follows it into the buffer.
Connection::Fill Connection::receive() {
  if (!is_readable_) return Fill::blocked;
  if (input_begin_ > 0) {  // a few bytes at most: the start of a header
    std::memmove(input_.data(), input_.data() + input_begin_, buffered_bytes());
    input_end_ -= std::exchange(input_begin_, 0);
  }
  std::array<iovec, 3> parts;
  std::size_t count = 0;
  if (phase_ == Phase::body && intake_.refusal.ok()) count = body_parts(std::span(parts).first<2>());
  const std::size_t direct_bytes = transport::total_bytes({parts.data(), count});
  parts[count++] = {input_.data() + input_end_, input_.size() - input_end_};
  const transport::Transfer received = stream_->try_receive({parts.data(), count});
  if (received.flow == transport::Flow::would_block) {
    is_readable_ = false;
    return Fill::blocked;
  }
  if (received.flow != transport::Flow::moved) return Fill::gone;
  turn_bytes_ += received.bytes;
  const std::size_t direct = std::min(received.bytes, direct_bytes);
  if (direct > 0) body_left_bytes_ -= direct;
  input_end_ += received.bytes - direct;
  // Less than asked for: the stream is empty, and the next byte will be an event of its own.
  if (received.bytes < direct_bytes + parts[count - 1].iov_len && !is_ending_) is_readable_ = false;
  return Fill::moved;
}

std::size_t Connection::take(std::span<std::byte> destination) noexcept {
  const std::size_t bytes = std::min(destination.size(), buffered_bytes());
  std::memcpy(destination.data(), input_.data() + input_begin_, bytes);
  input_begin_ += bytes;
  return bytes;
}

}  // namespace drust::server
