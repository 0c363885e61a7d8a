// Peers::read_blocks: the children tied to a parent, each straight into a block of its own, in one round trip.
#include <algorithm>
#include <utility>

#include "server/call.hpp"
#include "server/peers_pool.hpp"

namespace drust::server {
namespace {

// One block on its way: where its bytes go until all have come.
struct Arrival {
  Address block;
  heap::BlockHeader header{};
  wire::Trailer trailer;
};

}  // namespace

Result<std::vector<GlobalPointer>> Peers::read_blocks(std::span<const GlobalPointer> remote) {
  std::vector<Arrival> arrivals(remote.size());
  std::vector<GlobalPointer> published;
  Status status;
  std::size_t begun = 0;  // arrivals before this one have a block
  const auto allocate = [&](std::size_t index) -> Status {
    const GlobalPointer& wanted = remote[index];
    const bool is_block =
        wanted.extent_bytes >= wire::kBlockBytesMin && wanted.extent_bytes <= kPartitionBytesMax;
    if (!is_block || wanted.address.server() != remote.front().address.server()) {
      return Status(Code::bad_request, "read_blocks: these are no blocks of one server");
    }
    const Result<Address> block = pool_->heap.allocate_extent(wanted.extent_bytes);
    if (!block.ok()) return block.status();
    arrivals[index].block = block.value();
    ++begun;
    return {};
  };
  for (std::size_t first = 0; status.ok() && first < remote.size(); first += kBlocksPerReadMax) {
    const std::size_t count = std::min<std::size_t>(remote.size() - first, kBlocksPerReadMax);
    std::vector<wire::BlockItem> items;
    std::vector<iovec> places;
    for (std::size_t index = first; status.ok() && index < first + count; ++index) {
      status = allocate(index);
      if (!status.ok()) break;
      Arrival& arrival = arrivals[index];
      const std::uint64_t extent_bytes = remote[index].extent_bytes;
      items.push_back({remote[index].address.raw(), remote[index].colour, extent_bytes});
      std::byte* start = pool_->partition.writable(arrival.block.offset_bytes());
      places.push_back({static_cast<void*>(&arrival.header), sizeof arrival.header});
      places.push_back({start + sizeof arrival.header, extent_bytes - sizeof arrival.header});
      places.push_back({&arrival.trailer, sizeof arrival.trailer});
    }
    if (!status.ok()) break;
    const iovec body{items.data(), items.size() * sizeof(wire::BlockItem)};
    Call call;
    call.request.operation = static_cast<std::uint8_t>(wire::Operation::read_blocks);
    call.request.body_bytes = body.iov_len;
    call.body = {&body, 1};
    call.reply_body = places;
    status = pool_->ask(remote.front().address.server(), call);
    for (std::size_t index = first; status.ok() && index < first + count; ++index) {
      if (arrivals[index].trailer.code != 0) {
        status = Status(Code::stale, "a block moved on while its group was read");
      }
    }
  }
  std::size_t done = 0;
  for (; status.ok() && done < begun; ++done) {
    Result<GlobalPointer> block = pool_->heap.publish_received(arrivals[done].block, arrivals[done].header);
    if (block.ok()) {
      published.push_back(block.value());
    } else {
      status = block.status();
    }
  }
  if (status.ok()) return published;
  for (std::size_t index = done; index < begun; ++index) pool_->heap.abandon(arrivals[index].block);
  for (const GlobalPointer& block : published) static_cast<void>(pool_->heap.free_shallow(block));
  return status;
}

}  // namespace drust::server
