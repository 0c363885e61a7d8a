// One request and its reply over a connection that this thread holds: one sendmsg, one recvmsg when the reply
// is small. The reply's bytes land where they are wanted: header, block header, body and trailer are received
// in one call.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "protocol/wire.hpp"
#include "transport/contract.hpp"

namespace drust::server {

struct Call {
  wire::RequestHeader request;
  std::span<const iovec> body;  // at most kBodyPartsMax pieces, request.body_bytes in all
  std::span<const iovec> reply_body;  // exactly these bytes are expected if the answer is ok; at most
                                      // kReplyPartsMax pieces, and no allocation for kBodyPartsMax
  std::vector<std::byte>* reply_buffer = nullptr;  // instead: whatever comes
  std::span<const iovec> before;  // whole messages without a reply that go ahead of this one
  std::uint64_t epoch = 0;        // only while the server's endpoint has this epoch; 0: whatever it has
  static constexpr std::size_t kBodyPartsMax = 4;
  static constexpr std::size_t kReplyPartsMax = std::size_t{3} * kBlocksPerReadMax;

  // Filled by exchange().
  wire::ReplyHeader reply;
  std::uint64_t sent_bytes = 0;
  std::uint64_t received_bytes = 0;
};

struct Outcome {
  Status status;                    // the server's answer, or why there is none
  bool is_connection_good = false;  // it stands at the start of a frame
};

// `frees` leave ahead of the request, in the same call.
Outcome exchange(transport::Stream& stream, Call& call, std::span<const wire::FreeItem> frees);

// Several at once: all requests leave in one system call where the socket takes them, before the first reply is waited
// for. Small replies and no `before`: who sends all of his is not to be stuck behind what he does not read. From the
// first connection that is not good on, nothing more was received.
std::vector<Outcome> exchange_all(transport::Stream& stream, std::span<Call> calls);

// Frees alone; nothing is received.
Status send_frees(transport::Stream& stream, std::span<const wire::FreeItem> frees);

}  // namespace drust::server
