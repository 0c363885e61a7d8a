// What a visitor hears, checked while it is taken apart. Used by the tests of connections and operations.
#pragma once

#include <vector>

#include "test/harness.hpp"
#include "test/visitor.hpp"

namespace drust::test {

// A host whose operations are called without any thread.
struct Bench {
  Host host{3};
  std::vector<GlobalPointer> sent_elsewhere;
  server::Operations operations{*host.heap, *host.queue,
                                {[this](const GlobalPointer& block, std::uint64_t) { sent_elsewhere.push_back(block); }}};
};

// The body of a read that was answered ok, without block header and trailer; `code` is the trailer's.
inline std::vector<std::byte> heard_read(Visitor& visitor, std::uint64_t body_bytes, bool has_block_header,
                                         Code& code) {
  const auto reply = visitor.pipe.hear<wire::ReplyHeader>();
  CHECK_EQ(reply.code, static_cast<std::uint8_t>(Code::ok));
  const std::uint64_t head_bytes = has_block_header ? sizeof(heap::BlockHeader) : 0;
  CHECK_EQ(reply.body_bytes, head_bytes + body_bytes + sizeof(wire::Trailer));
  (void)visitor.pipe.hear(head_bytes);
  std::vector<std::byte> body = visitor.pipe.hear(body_bytes);
  code = static_cast<Code>(visitor.pipe.hear<wire::Trailer>().code);
  return body;
}

inline Code heard_code(Visitor& visitor) {
  const auto reply = visitor.pipe.hear<wire::ReplyHeader>();
  if (reply.code != 0) (void)visitor.pipe.hear(reply.body_bytes);
  return static_cast<Code>(reply.code);
}

// A block as a body: what another server's memory would hold.
inline std::vector<std::byte> block_bytes(Host& host, const GlobalPointer& pointer) {
  const std::byte* start = host.partition->writable(pointer.address.offset_bytes());
  return {start, start + pointer.extent_bytes};
}

}  // namespace drust::test
