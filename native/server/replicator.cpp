// The sending side of replication: what a hand-over makes visible to another server is on the backup first.
//
// The call or completion block that is about to leave names, in its child table, everything it hands over, and
// says of each whether it is to have a replica (protocol::is_replicated). From those that are, the tree of what
// they own is walked, as far as it lies in this partition and that version is not on the backup yet; all of it
// goes in one commit: what is inside a value is part of it, whatever its own handle said. A version is immutable
// once it was handed out, so one flag in its header (BlockFlag::kReplicated) is all that has to be remembered:
// the second hand-over of the same version costs a look at that flag.
//
// A block is marked (kHasReplica) before its version is sent: a process that dies in between leaves a block whose
// free is told.
//
// What lies elsewhere is the business of the server it lies on: its pointer came here by a hand-over.
//
// Rejected: the choice as a bit of the block's header (it would have to be copied by everything that makes a new
// version, and the value that takes a block's place has none to copy it from); replicating at the end of every mutable borrow (what no other server was told of dies with its
// owner anyway, and most borrows end where they began); shipping after the hand-over (between the two, another
// server has seen a value that a crash loses).
#include <sys/uio.h>

#include <cstdint>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/kill_point.hpp"
#include "heap/block.hpp"
#include "protocol/replication.hpp"
#include "server/peers_pool.hpp"
#include "heap/shared.hpp"
#include "server/snapshot.hpp"

namespace drust::server {
namespace {

// Tied children go with their parent whichever version of it owns them at the moment.
bool is_part(const heap::ChildPointer& child) noexcept {
  return (child.flags & heap::ChildPointer::kBorrowed) == 0 || (child.flags & heap::ChildPointer::kTied) != 0;
}

// The versions of this partition that `parent` hands over, with what they own, and that the backup is to have and
// does not: children before their parents or after them, a commit has no order.
std::vector<Replica> missing_below(const heap::Partition& partition, const heap::Block& parent) {
  std::vector<Replica> found;
  std::unordered_set<std::uint64_t> seen;
  std::vector<GlobalPointer> open;
  for (const heap::ChildPointer& child : parent.children()) {
    const bool is_excepted = (child.flags & heap::ChildPointer::kExcepted) != 0;
    if (protocol::is_replicated(partition.replicates_all(), is_excepted)) open.push_back(child.pointer());
  }
  while (!open.empty()) {
    const GlobalPointer pointer = open.back();
    open.pop_back();
    if (pointer.is_null() || !partition.is_local(pointer.address)) continue;
    if (!seen.insert(pointer.address.raw()).second) continue;
    const Result<heap::Block> block = partition.find(pointer.address, pointer.colour);
    if (!block.ok()) continue;
    const heap::BlockHeader& header = block.value().header();
    if ((header.flags.load(std::memory_order_acquire) & heap::kReplicated) != 0) continue;
    if (header.codec == heap::kHoldCodec) continue;  // a shared object is lost with its home
    const GlobalPointer whole{pointer.address, pointer.colour, header.extent_bytes};
    found.push_back({whole, whole, false});
    for (const heap::ChildPointer& child : block.value().children()) {
      if (is_part(child)) open.push_back(child.pointer());
    }
  }
  return found;
}

// Before they are sent: from here on whoever frees one of them tells the backup. Those that had a version there are
// appended to `superseded`.
void mark_sent(const heap::Partition& partition, std::vector<Replica>& versions, std::vector<Address>& superseded) {
  std::erase_if(versions, [&](const Replica& each) {
    const Result<heap::Block> block = partition.find(each.local.address, each.local.colour);
    if (!block.ok()) return true;  // its owner broke the rule that what is handed over is held
    const std::uint32_t before = block.value().header().flags.fetch_or(heap::kHasReplica);
    if ((before & heap::kHasReplica) != 0) superseded.push_back(each.primary.address);
    return false;
  });
  kill_point("replicate.marked");
}

void mark_stored(const heap::Partition& partition, const std::vector<Replica>& versions) {
  kill_point("replicate.stored");
  for (const Replica& each : versions) {
    const Result<heap::Block> block = partition.find(each.local.address, each.local.colour);
    if (block.ok()) block.value().header().flags.fetch_or(heap::kReplicated);
  }
}

}  // namespace

Status Peers::Pool::replicate(const heap::Block& parent, HandOver& hand_over) {
  ServerId backup = partition.endpoint(partition.server()).backup;
  if (backup == kNoServer || parent.header().child_count == 0) return {};
  std::vector<Replica> missing = missing_below(partition, parent);
  if (missing.empty()) return {};
  const auto deadline = Clock::now() + std::chrono::milliseconds(kPromotionWaitMs);
  hand_over.stamp = partition.draw_replica_stamp();
  mark_sent(partition, missing, hand_over.superseded);
  while (!missing.empty()) {
    Status status = send_replicas(backup, missing, hand_over.stamp);
    ServerId next = backup;
    if (status.ok()) {
      mark_stored(partition, missing);
      // One that was lost meanwhile: whoever copied what was marked to the next may have looked before this mark.
      next = partition.endpoint(partition.server()).backup;
      if (next == backup || next == kNoServer) return {};
      backup = next;
      continue;
    }
    if (status.code() != Code::server_lost) return status;
    heap::Endpoint mine = partition.endpoint(partition.server());
    while (mine.backup == backup && partition.await_endpoint(partition.server(), mine, deadline))
      mine = partition.endpoint(partition.server());
    next = mine.backup;
    if (next == kNoServer) return {};  // the engine has said so, and logged it
    if (next == backup) return status;
    backup = next;
  }
  return {};
}

void Peers::Pool::settle(const HandOver& hand_over) {
  for (const Address address : hand_over.superseded) drop_replica_later(address, hand_over.stamp);
}

Status Peers::Pool::send_replicas(ServerId backup, std::span<const Replica> replicas, std::uint64_t stamp) {
  std::vector<wire::RequestHeader> requests(replicas.size());
  std::vector<heap::BlockHeader> headers(replicas.size());
  std::vector<iovec> parts;
  parts.reserve(replicas.size() * 3);
  std::uint64_t bytes = 0;
  for (std::size_t index = 0; index < replicas.size(); ++index) {
    const Replica& each = replicas[index];
    wire::RequestHeader& request = requests[index];
    request.operation = static_cast<std::uint8_t>(wire::Operation::replicate);
    request.argument = static_cast<std::uint16_t>((index + 1 < replicas.size() ? wire::Replicate::kMore : 0) |
                                                  (each.is_confirmed ? wire::Replicate::kConfirmed : 0));
    request.body_bytes = request.extent_bytes = each.local.extent_bytes;
    request.address = each.primary.address.raw();
    request.colour = each.primary.colour;
    request.region.offset_bytes = stamp;
    std::byte* start = partition.writable(each.local.address.offset_bytes());
    take_snapshot(heap::Block(start).header(), headers[index]);
    parts.push_back({&request, sizeof request});
    parts.push_back({static_cast<void*>(&headers[index]), sizeof headers[index]});
    parts.push_back({start + sizeof(heap::BlockHeader), each.local.extent_bytes - sizeof(heap::BlockHeader)});
    bytes += each.local.extent_bytes;
  }
  Call call;
  call.request = requests.back();
  call.before = std::span<const iovec>(parts).first(parts.size() - 3);
  call.body = std::span<const iovec>(parts).last(2);
  Status status = ask_once(backup, call, partition.endpoint(backup).epoch);
  if (status.ok()) {
    partition.count(heap.process(), heap::Counter::blocks_replicated, replicas.size());
    partition.count(heap.process(), heap::Counter::bytes_replicated, bytes);
  }
  return status;
}

void Peers::Pool::drop_replica_later(Address block, std::uint64_t stamp) {
  if (is_forked()) return;
  const ServerId backup = partition.endpoint(partition.server()).backup;
  if (backup != kNoServer) queue_frees(backup, {{block.raw(), stamp, wire::FreeItem::kReplica}});
}

void Peers::Pool::confirm_later(const GlobalPointer& value) {
  const heap::Endpoint home = partition.endpoint(value.address.server());
  // Once it is lost, whoever answers in its place is asked; whether it has a backup of its own is its business.
  const ServerId keeper = home.by == kNoServer ? home.backup : home.by;
  if (keeper != kNoServer) queue_frees(keeper, {{value.address.raw(), value.colour, wire::FreeItem::kConfirm}});
}

}  // namespace drust::server
