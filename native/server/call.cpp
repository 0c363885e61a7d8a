#include "server/call.hpp"

#include <algorithm>
#include <array>
#include <string>

#include "base/ensure.hpp"
#include "base/kill_point.hpp"

namespace drust::server {
namespace {

constexpr std::size_t kPartsMax = 3 + Call::kBodyPartsMax;

wire::RequestHeader free_header(std::span<const wire::FreeItem> frees) noexcept {
  wire::RequestHeader header;
  header.operation = static_cast<std::uint8_t>(wire::Operation::free_blocks);
  header.body_bytes = frees.size_bytes();
  return header;
}

iovec piece(const void* start, std::size_t bytes) noexcept { return {const_cast<void*>(start), bytes}; }

// The first `bytes` bytes that lie in `parts`.
std::string text_in(std::span<const iovec> parts, std::size_t bytes) {
  std::string text;
  for (const iovec& part : parts) {
    const std::size_t taken = std::min(part.iov_len, bytes - text.size());
    text.append(static_cast<const char*>(part.iov_base), taken);
  }
  return text;
}

Status send_request(transport::Stream& stream, Call& call, std::span<const wire::FreeItem> frees) {
  const wire::RequestHeader before = free_header(frees);
  std::array<iovec, kPartsMax> parts;
  std::size_t count = 0;
  if (!frees.empty()) {
    parts[count++] = piece(&before, sizeof before);
    parts[count++] = piece(frees.data(), frees.size_bytes());
  }
  parts[count++] = piece(&call.request, sizeof call.request);
  ensure(call.body.size() <= Call::kBodyPartsMax, "a body has few pieces");
  for (const iovec& part : call.body) parts[count++] = part;
  call.sent_bytes = transport::total_bytes({parts.data(), count}) + transport::total_bytes(call.before);
  if (!call.before.empty()) {
    std::vector<iovec> before_parts(call.before.begin(), call.before.end());  // sending eats them
    if (Status status = stream.send_all(before_parts); !status.ok()) return status;
  }
  kill_point("call.request.before");
  return stream.send_all({parts.data(), count});
}

// The sentence of a refusal, of which `got` bytes already lie in `parts`.
Status receive_refusal(transport::Stream& stream, const Call& call, std::span<const iovec> parts,
                       std::size_t got, Outcome& outcome) {
  const std::size_t sentence_bytes = call.reply.body_bytes;  // checked: at most kSentenceBytesMax
  if (got > sentence_bytes) return Status(Code::bad_request, "more came than was announced");
  std::string sentence = text_in(parts, got);
  sentence.resize(sentence_bytes);
  iovec rest{sentence.data() + got, sentence_bytes - got};
  if (Status status = stream.receive_all({&rest, 1}); !status.ok()) return status;
  outcome.status = Status(static_cast<Code>(call.reply.code), std::move(sentence));
  outcome.is_connection_good = true;
  return {};
}

Status receive_reply(transport::Stream& stream, Call& call, Outcome& outcome) {
  std::array<iovec, 1 + Call::kBodyPartsMax> few;
  std::vector<iovec> many;
  std::span<iovec> parts(few);
  std::size_t count = 0;
  ensure(call.reply_body.size() <= Call::kReplyPartsMax, "a reply has a bounded number of pieces");
  if (call.reply_body.size() > Call::kBodyPartsMax) {
    many.resize(1 + call.reply_body.size());
    parts = many;
  }
  parts[count++] = piece(&call.reply, sizeof call.reply);
  for (const iovec& part : call.reply_body) parts[count++] = part;
  const std::size_t expected_bytes = transport::total_bytes(call.reply_body);
  // Not receive_all: a refusal is shorter than what is hoped for.
  std::span<iovec> left = parts.first(count);
  std::size_t received = 0;
  while (received < sizeof call.reply) {
    const Result<std::size_t> got = stream.receive_some(left);
    if (!got.ok()) return got.status();
    received += got.value();
    call.received_bytes = received;
    left = transport::drop_front(left, got.value());
  }
  const std::size_t body_got = received - sizeof call.reply;
  const auto operation = static_cast<wire::Operation>(call.request.operation);
  if (Status status = wire::check(call.reply, operation); !status.ok()) return status;
  call.received_bytes = sizeof call.reply + call.reply.body_bytes;
  if (call.reply.code != 0) return receive_refusal(stream, call, call.reply_body, body_got, outcome);
  if (call.reply_buffer != nullptr) {
    call.reply_buffer->resize(call.reply.body_bytes);
    iovec buffer{call.reply_buffer->data(), call.reply_buffer->size()};
    if (Status status = stream.receive_all({&buffer, 1}); !status.ok()) return status;
  } else {
    if (call.reply.body_bytes != expected_bytes) {
      return Status(Code::bad_request, "the reply is not as long as what was asked for");
    }
    if (Status status = stream.receive_all(left); !status.ok()) return status;
  }
  outcome.is_connection_good = true;
  return {};
}

}  // namespace

Outcome exchange(transport::Stream& stream, Call& call, std::span<const wire::FreeItem> frees) {
  Outcome outcome;
  Status status = send_request(stream, call, frees);
  kill_point("call.request.sent");
  if (status.ok()) status = receive_reply(stream, call, outcome);
  kill_point("call.reply.read");
  if (!status.ok()) outcome.status = std::move(status);
  return outcome;
}

std::vector<Outcome> exchange_all(transport::Stream& stream, std::span<Call> calls) {
  std::vector<iovec> parts;
  for (Call& call : calls) {
    ensure(call.body.size() <= Call::kBodyPartsMax && call.before.empty(), "a body has few pieces, and comes alone");
    parts.push_back(piece(&call.request, sizeof call.request));
    parts.insert(parts.end(), call.body.begin(), call.body.end());
    call.sent_bytes = sizeof call.request + transport::total_bytes(call.body);
  }
  std::vector<Outcome> outcomes(calls.size());
  kill_point("call.request.before");
  Status status = stream.send_all(parts);
  kill_point("call.request.sent");
  for (std::size_t index = 0; index < calls.size(); ++index) {
    if (status.ok()) status = receive_reply(stream, calls[index], outcomes[index]);
    if (!status.ok()) outcomes[index].status = status;
  }
  kill_point("call.reply.read");
  return outcomes;
}

Status send_frees(transport::Stream& stream, std::span<const wire::FreeItem> frees) {
  const wire::RequestHeader header = free_header(frees);
  std::array<iovec, 2> parts{piece(&header, sizeof header), piece(frees.data(), frees.size_bytes())};
  return stream.send_all(parts);
}

}  // namespace drust::server
