// Reading several blocks with one request: the children tied to a parent, which travel together.
//
// A list with a block that is not there is refused. Once the answer has begun it has the length that was
// asked for, whatever happens: a block that is gone by its turn is zeros and a trailer that says so, and the
// reader enters none of it. Each is opened when its turn comes, so that a long
// answer holds on to no version. Rejected: one request a block, pipelined (a peer that sends without reading
// fills both sockets, and the server would stand still).
#include <cstring>
#include <utility>

#include "server/operations.hpp"
#include "server/snapshot.hpp"

namespace drust::server {

Answer Operations::read_blocks(std::span<const std::byte> items) {
  Answer answer;
  std::vector<wire::BlockItem> wanted(items.size() / sizeof(wire::BlockItem));
  std::memcpy(static_cast<void*>(wanted.data()), items.data(), wanted.size() * sizeof(wire::BlockItem));
  std::vector<GlobalPointer> blocks;
  std::uint64_t total_bytes = 0;
  for (const wire::BlockItem& item : wanted) {
    answer.status = wire::check(item);
    const ServerId home = Address(item.address).server();
    if (answer.status.ok() && home != server() && !replicas_.is_promoted(home))
      answer.status = Status(Code::bad_request, "read_blocks: the block lives elsewhere");
    total_bytes += item.extent_bytes + sizeof(wire::Trailer);
    if (answer.status.ok() && total_bytes > kFrameBodyBytesMax) {
      answer.status = Status(Code::bad_request, "read_blocks: the answer would be too long");
    }
    if (!answer.status.ok()) {
      answer.kind = Answer::Kind::malformed;
      return answer;
    }
    const Result<GlobalPointer> here = resolve({Address(item.address), item.colour, item.extent_bytes});
    if (!here.ok()) {
      answer.status = here.status();
      return answer;
    }
    blocks.push_back({here.value().address, here.value().colour, item.extent_bytes});
  }
  for (const GlobalPointer& block : blocks) {  // else a peer could ask for any number of zeros
    const Result<heap::Block> found = heap_.partition().find(block.address, block.colour);
    answer.status = found.ok() ? Status() : found.status();
    if (found.ok() && found.value().header().extent_bytes != block.extent_bytes)
      answer.status = Status(Code::bad_request, "a block has another extent");
    if (!answer.status.ok()) return answer;  // with its sentence, and nothing to serve
  }
  answer.kind = Answer::Kind::group;
  answer.blocks = std::move(blocks);
  return answer;
}

bool Operations::open_block(const GlobalPointer& block, Answer& answer) {
  answer.block = block;
  answer.head_bytes = sizeof(heap::BlockHeader);
  answer.head.fill(std::byte{0});
  const std::uint64_t rest_bytes = block.extent_bytes - sizeof(heap::BlockHeader);
  const wire::Region rest{sizeof(heap::BlockHeader), rest_bytes, rest_bytes > 0 ? 1U : 0U, 0};
  const Result<heap::Block> found = heap_.partition().find(block.address, block.colour);
  if (!found.ok() || found.value().header().extent_bytes != block.extent_bytes) {
    answer.chunks = Chunks(heap_.partition().writable(0), rest);  // never looked at: zeros are sent for it
    return false;
  }
  heap::BlockHeader snapshot{};
  snapshot.state.store(block.colour, std::memory_order_relaxed);
  take_snapshot(found.value().header(), snapshot);
  std::memcpy(answer.head.data(), static_cast<const void*>(&snapshot), sizeof snapshot);
  answer.chunks = Chunks(found.value().start(), rest);
  return true;
}

}  // namespace drust::server
