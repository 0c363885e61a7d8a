#include "server/peers.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/ensure.hpp"
#include "server/call.hpp"
#include "server/peers_pool.hpp"
#include "server/snapshot.hpp"
#include "tasks/queue.hpp"

namespace drust::server {
namespace {

bool is_block(const GlobalPointer& pointer) noexcept {
  return pointer.extent_bytes >= wire::kBlockBytesMin && pointer.extent_bytes <= kPartitionBytesMax;
}

wire::RequestHeader request_for(wire::Operation operation, const GlobalPointer& pointer,
                                std::uint64_t body_bytes) {
  wire::RequestHeader request;
  request.operation = static_cast<std::uint8_t>(operation);
  request.body_bytes = body_bytes;
  request.address = pointer.address.raw();
  request.colour = pointer.colour;
  request.extent_bytes = pointer.extent_bytes;
  return request;
}

// A local block as the body of a request: a snapshot of its header, and its bytes where they lie.
class BlockBody {
 public:
  Status open(const heap::Partition& partition, const GlobalPointer& local) {
    const Result<heap::Block> found = partition.find(local.address, local.colour);
    if (!found.ok()) return found.status();
    const heap::BlockHeader& live = found.value().header();
    if (live.extent_bytes != local.extent_bytes)
      return Status(Code::bad_request, "the block has another extent");
    take_snapshot(live, header_);
    block_ = found.value();
    parts_ = {iovec{static_cast<void*>(&header_), sizeof header_},
              iovec{found.value().start() + sizeof header_, local.extent_bytes - sizeof header_}};
    return {};
  }
  [[nodiscard]] std::span<const iovec> parts() const noexcept { return parts_; }
  [[nodiscard]] const heap::Block& block() const noexcept { return block_; }

 private:
  heap::Block block_{nullptr};
  heap::BlockHeader header_{};
  std::array<iovec, 2> parts_{};
};

}  // namespace

Peers::Peers(heap::Heap& heap, PeersOptions options)
    : pool_(std::make_unique<Pool>(heap, std::move(options))) {}

Peers::~Peers() {
  close();
  // A forked child has inherited sockets that are not its own, a thread that does not exist, and locks in any
  // state.
  if (pool_->is_forked()) (void)pool_.release();
}

void Peers::close() noexcept {
  if (!pool_->is_forked()) pool_->close();
}

Result<GlobalPointer> Peers::read_block(const GlobalPointer& remote, bool lent) {
  if (!is_block(remote)) return Status(Code::bad_request, "read_block: the extent is out of range");
  const Result<Address> block = pool_->heap.allocate_extent(remote.extent_bytes);
  if (!block.ok()) return block.status();
  heap::BlockHeader header{};
  wire::Trailer trailer;
  std::byte* start = pool_->partition.writable(block.value().offset_bytes());
  const std::array<iovec, 3> places{iovec{static_cast<void*>(&header), sizeof header},
                                    iovec{start + sizeof header, remote.extent_bytes - sizeof header},
                                    iovec{&trailer, sizeof trailer}};
  Call call;
  call.request = request_for(wire::Operation::read_block, remote, 0);
  call.reply_body = places;
  Status status = pool_->ask(remote.address.server(), call);
  if (status.ok() && trailer.code != 0) status = Status(Code::stale, "the block moved on while it was read");
  if (!status.ok()) {
    pool_->heap.abandon(block.value());
    return status;
  }
  return pool_->heap.publish_received(block.value(), header, lent);
}

Status Peers::read_region(const GlobalPointer& remote, const wire::Region& region,
                          std::span<std::byte> destination) {
  const Result<std::uint64_t> bytes = wire::total_bytes(region, remote.extent_bytes);
  if (!bytes.ok()) return bytes.status();
  if (bytes.value() != destination.size())
    return Status(Code::bad_request, "read_region: the destination has another size");
  wire::Trailer trailer;
  const std::array<iovec, 2> places{iovec{destination.data(), destination.size()},
                                    iovec{&trailer, sizeof trailer}};
  Call call;
  call.request = request_for(wire::Operation::read_region, remote, 0);
  call.request.region = region;
  call.reply_body = places;
  Status status = pool_->ask(remote.address.server(), call);
  if (status.ok() && trailer.code != 0) return Status(Code::stale, "the block moved on while it was read");
  return status;
}

Status Peers::write_region(const GlobalPointer& remote, const wire::Region& region,
                           std::span<const std::byte> source) {
  const Result<std::uint64_t> bytes = wire::total_bytes(region, remote.extent_bytes);
  if (!bytes.ok()) return bytes.status();
  if (bytes.value() != source.size())
    return Status(Code::bad_request, "write_region: the source has another size");
  const iovec body{const_cast<std::byte*>(source.data()), source.size()};
  Call call;
  call.request = request_for(wire::Operation::write_region, remote, source.size());
  call.request.region = region;
  call.body = {&body, 1};
  return pool_->ask(remote.address.server(), call);
}

Result<GlobalPointer> Peers::put_block(ServerId server, const GlobalPointer& local) {
  BlockBody body;
  if (Status status = body.open(pool_->partition, local); !status.ok()) return status;
  Call call;
  call.request =
      request_for(wire::Operation::put_block, {Address(), kNoColour, local.extent_bytes}, local.extent_bytes);
  call.body = body.parts();
  if (Status status = pool_->ask(server, call); !status.ok()) return status;
  return GlobalPointer{Address(call.reply.address), call.reply.colour, call.reply.extent_bytes};
}

Result<GlobalPointer> Peers::put_bytes(ServerId server, std::span<const std::byte> head, std::span<const std::byte> data) {
  const std::uint64_t extent_bytes = head.size() + data.size();
  if (!is_block({Address(), kNoColour, extent_bytes})) return Status(Code::bad_request, "put_bytes: this is no block");
  const std::array<iovec, 2> parts{iovec{const_cast<std::byte*>(head.data()), head.size()},
                                   iovec{const_cast<std::byte*>(data.data()), data.size()}};
  Call call;
  call.request = request_for(wire::Operation::put_block, {Address(), kNoColour, extent_bytes}, extent_bytes);
  call.body = parts;
  if (Status status = pool_->ask(server, call); !status.ok()) return status;
  return GlobalPointer{Address(call.reply.address), call.reply.colour, call.reply.extent_bytes};
}

Status Peers::submit(ServerId server, const GlobalPointer& task, const GlobalPointer& record, std::uint32_t retries) {
  const Submission one{task, record, retries};
  const Result<std::size_t> queued = submit_all(server, {&one, 1});
  return queued.ok() ? Status() : queued.status();
}

Result<std::size_t> Peers::submit_all(ServerId server, std::span<const Submission> tasks) {
  ensure(!tasks.empty() && tasks.size() <= kSubmitsPerBatchMax, "a batch has some submissions, and not too many");
  std::vector<BlockBody> bodies(tasks.size());
  std::vector<HandOver> hand_overs(tasks.size());
  std::vector<wire::RequestHeader> headers(tasks.size());
  std::vector<iovec> before;
  for (std::size_t index = 0; index < tasks.size(); ++index) {
    const Submission& each = tasks[index];
    if (Status status = bodies[index].open(pool_->partition, each.task); !status.ok()) return status;
    if (Status status = pool_->replicate(bodies[index].block(), hand_overs[index]); !status.ok()) return status;
    const bool is_last = index + 1 == tasks.size();
    headers[index] = request_for(wire::Operation::submit, each.record, each.task.extent_bytes);
    headers[index].argument =
        static_cast<std::uint16_t>(each.retries | (is_last ? 0U : std::uint32_t{wire::Submit::kMore}));
    if (is_last) continue;
    before.push_back({&headers[index], sizeof headers[index]});
    for (const iovec& part : bodies[index].parts()) before.push_back(part);
  }
  Call call;
  call.request = headers.back();
  call.body = bodies.back().parts();
  call.before = before;
  // When a server is lost, its row gets another epoch first and then its records are settled as lost. So a
  // record that is still pending under this epoch will not be settled while its task runs on the successor.
  call.epoch = pool_->partition.endpoint(server).epoch;
  for (const Submission& each : tasks) {
    if (pool_->partition.is_local(each.record.address) &&
        tasks::Queue::look(pool_->partition, each.record) != tasks::RecordState::pending) {
      return Status(Code::server_lost, "server " + std::to_string(server) + " has just been lost");
    }
  }
  if (Status status = pool_->ask(server, call); !status.ok()) return status;
  const std::size_t queued = std::min<std::size_t>(call.reply.extent_bytes, tasks.size());
  for (std::size_t index = 0; index < queued; ++index) pool_->settle(hand_overs[index]);
  return queued;
}

Status Peers::complete(const GlobalPointer& record, std::uint32_t state, const GlobalPointer& completion) {
  const Completion one{record, state, completion};
  return complete_all(record.address.server(), {&one, 1}).front();
}

std::vector<Status> Peers::complete_all(ServerId server, std::span<const Completion> completions) {
  std::vector<Status> answers(completions.size());
  std::vector<BlockBody> bodies(completions.size());
  std::vector<HandOver> hand_overs(completions.size());
  std::vector<Call> calls;
  std::vector<std::size_t> sent;  // which of them: those whose block is there
  for (std::size_t index = 0; index < completions.size(); ++index) {
    const Completion& each = completions[index];
    Call call;
    call.request = request_for(wire::Operation::complete, each.record, 0);
    call.request.argument = static_cast<std::uint16_t>(each.state);
    if (!each.block.is_null()) {
      if (answers[index] = bodies[index].open(pool_->partition, each.block); !answers[index].ok()) continue;
      call.request.body_bytes = each.block.extent_bytes;
      call.body = bodies[index].parts();
      // A result that cannot be replicated is better than none: its caller waits for it.
      if (!pool_->replicate(bodies[index].block(), hand_overs[index]).ok())
        pool_->partition.count(pool_->heap.process(), heap::Counter::results_unreplicated);
    }
    calls.push_back(call);
    sent.push_back(index);
  }
  std::vector<Status> told = pool_->ask_all(server, calls);
  for (std::size_t number = 0; number < sent.size(); ++number) {
    Status& answer = answers[sent[number]];
    answer = std::move(told[number]);
    // Where the record was settled before, as its task's server is known to be lost, its owner has what was lent.
    if (answer.ok() && calls[number].reply.colour == wire::kCompletionCounted) pool_->settle(hand_overs[sent[number]]);
  }
  return answers;
}

Result<std::uint64_t> Peers::replicate_all(ServerId backup, std::span<const Replica> replicas) {
  std::uint64_t total_bytes = 0;
  for (std::size_t first = 0; first < replicas.size();) {
    std::size_t count = 0;
    std::uint64_t bytes = 0;
    while (first + count < replicas.size() && count < kReplicaBatchBlocks &&
           (count == 0 || bytes + replicas[first + count].local.extent_bytes <= kReplicaBatchBytes)) {
      bytes += replicas[first + count++].local.extent_bytes;
    }
    const std::uint64_t stamp = pool_->partition.draw_replica_stamp();
    std::vector<Replica> batch;
    for (const Replica& each : replicas.subspan(first, count)) {
      if (pool_->partition.find(each.local.address, each.local.colour).ok()) batch.push_back(each);
    }
    if (!batch.empty()) {
      if (Status status = pool_->send_replicas(backup, batch, stamp); !status.ok()) return status;
    }
    // One that was freed meanwhile has said so too early.
    for (const Replica& each : batch) {
      if (!pool_->partition.find(each.local.address, each.local.colour).ok())
        drop_replica_later(each.primary.address);
    }
    total_bytes += bytes;
    first += count;
  }
  return total_bytes;
}

Status Peers::inquire(ServerId server, const GlobalPointer& record) {
  Call call;
  call.request = request_for(wire::Operation::inquire, record, 0);
  return pool_->ask(server, call);
}

Result<Peers::Table> Peers::read_table(const GlobalPointer& pointer) {
  if (pool_->partition.is_local(pointer.address)) {
    const Result<heap::Block> found = pool_->partition.find(pointer.address, kNoColour);
    if (!found.ok()) return found.status();
    const heap::BlockHeader& header = found.value().header();
    const auto children = found.value().children();
    const bool is_being_written = (header.flags.load() & heap::kWriting) != 0;
    return Table{{pointer.address, header.state.load(), header.extent_bytes}, header.before.load(),
                 is_being_written, {children.begin(), children.end()}};
  }
  std::vector<std::byte> body;
  Call call;
  call.request = request_for(wire::Operation::read_table, pointer, 0);
  call.reply_buffer = &body;
  if (Status status = pool_->ask(pointer.address.server(), call); !status.ok()) return status;
  heap::BlockHeader header{};
  wire::Trailer trailer;
  Table table{{pointer.address, call.reply.colour, call.reply.extent_bytes}, 0, false, {}};
  const std::size_t around_bytes = sizeof header + sizeof trailer;
  if (body.size() < around_bytes) return Status(Code::bad_request, "read_table: the reply is cut short");
  const std::size_t table_bytes = body.size() - around_bytes;
  std::memcpy(static_cast<void*>(&header), body.data(), sizeof header);
  std::memcpy(&trailer, body.data() + body.size() - sizeof trailer, sizeof trailer);
  if (table_bytes != header.child_count * sizeof(heap::ChildPointer))
    return Status(Code::bad_request, "read_table: the table has another length");
  if (trailer.code != 0) return Status(Code::not_found, "the block went while it was read");
  table.before = header.before.load();
  table.is_being_written = (header.flags.load() & heap::kWriting) != 0;
  table.children.resize(header.child_count);
  if (table_bytes != 0) std::memcpy(static_cast<void*>(table.children.data()), body.data() + sizeof header, table_bytes);
  return table;
}

Status Peers::withdraw(ServerId server, const GlobalPointer& record) {
  Call call;
  call.request = request_for(wire::Operation::withdraw, record, 0);
  return pool_->ask(server, call);
}

Status Peers::ping(ServerId server) {
  Call call;
  call.request = request_for(wire::Operation::ping, {}, 0);
  return pool_->ask(server, call);
}

Result<std::array<std::uint64_t, 3>> Peers::shared(ServerId server, const GlobalPointer& hold, wire::SharedVerb verb,
                                                   const std::array<std::uint64_t, 4>& operands,
                                                   const GlobalPointer& body, std::vector<std::byte>& bytes) {
  BlockBody block;
  Call call;
  call.request = request_for(wire::Operation::shared, hold, 0);
  call.request.argument = static_cast<std::uint16_t>(verb);
  call.request.region = {operands[0], operands[1], operands[2], operands[3]};
  if (!body.is_null()) {
    if (Status status = block.open(pool_->partition, body); !status.ok()) return status;
    call.request.body_bytes = body.extent_bytes;
    call.body = block.parts();
  }
  call.reply_buffer = &bytes;
  if (Status status = pool_->ask(server, call); !status.ok()) return status;
  return std::array<std::uint64_t, 3>{call.reply.address, call.reply.colour, call.reply.extent_bytes};
}

Result<std::vector<std::byte>> Peers::control(ServerId server, std::span<const std::byte> request) {
  if (request.size() > kControlBodyBytesMax)
    return Status(Code::bad_request, "control: the body is too long");
  const iovec body{const_cast<std::byte*>(request.data()), request.size()};
  std::vector<std::byte> reply;
  Call call;
  call.request = request_for(wire::Operation::control, {}, request.size());
  call.body = {&body, 1};
  call.reply_buffer = &reply;
  if (Status status = pool_->ask(server, call); !status.ok()) return status;
  return reply;
}

void Peers::free_later(const GlobalPointer& remote, bool shallow) {
  pool_->free_later(remote, shallow ? wire::FreeItem::kShallow : 0);
}

void Peers::free_made_later(const GlobalPointer& remote) { pool_->free_later(remote, wire::FreeItem::kMade); }

void Peers::free_tied_later(const GlobalPointer& remote, const GlobalPointer& successor) {
  pool_->free_tied_later(remote, successor);
}

void Peers::confirm_later(const GlobalPointer& value) { pool_->confirm_later(value); }

void Peers::drop_replica_later(Address address) {
  pool_->drop_replica_later(address, pool_->partition.draw_replica_stamp());
}

void Peers::drop_replica_later(Address address, std::uint64_t stamp) {
  pool_->drop_replica_later(address, stamp);
}

bool Peers::flush_frees() { return pool_->flush(); }

}  // namespace drust::server
