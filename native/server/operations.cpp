#include "server/operations.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <utility>

#include "protocol/replication.hpp"
#include "server/deliver.hpp"
#include "server/snapshot.hpp"

namespace drust::server {
namespace {

static_assert(wire::kBlockBytesMin == sizeof(heap::BlockHeader));
static_assert(static_cast<int>(tasks::RecordState::done) == 1 &&
                  static_cast<int>(tasks::RecordState::lost) == 2 &&
                  static_cast<int>(tasks::RecordState::refused) == 6 &&
                  static_cast<int>(tasks::RecordState::refused_poisoned) == 10,
              "wire::check admits these");

GlobalPointer pointer_of(const wire::RequestHeader& header) noexcept {
  return {Address(header.address), header.colour, header.extent_bytes};
}

Answer refused(Status status) {
  Answer answer;
  answer.status = std::move(status);
  return answer;
}

Status elsewhere() { return Status(Code::bad_request, "the block lives on another server"); }

Status other_extent() { return Status(Code::bad_request, "the block has another extent"); }

}  // namespace

Operations::Operations(heap::Heap& heap, tasks::Queue& queue, Elsewhere elsewhere)
    : heap_(heap), queue_(queue), elsewhere_(std::move(elsewhere)), replicas_(heap) {}

ServerId Operations::server() const noexcept { return heap_.partition().server(); }

void Operations::count(heap::Counter counter) const noexcept {
  heap_.partition().count(heap_.process(), counter);
}

bool Operations::is_live(const GlobalPointer& block) const noexcept {
  // The bytes were read with plain loads (or by the kernel): they must not move below the load of the state.
#ifndef __SANITIZE_THREAD__  // which does not know fences
  std::atomic_thread_fence(std::memory_order_acquire);
#endif
  return heap_.partition().find(block.address, block.colour).ok();
}

void Operations::admit(const wire::RequestHeader& header, Intake& intake) {
  switch (static_cast<wire::Operation>(header.operation)) {
    case wire::Operation::free_blocks:
    case wire::Operation::read_blocks:
    case wire::Operation::control:
      intake.buffer.resize(header.body_bytes);
      intake.rest = intake.buffer;
      break;
    case wire::Operation::complete:
      if (const ServerId home = Address(header.address).server();
          home != server() && !replicas_.is_promoted(home)) {
        intake.refusal = elsewhere();
      } else if (header.body_bytes > 0) {
        admit_block(header.body_bytes, intake);
      }
      break;
    case wire::Operation::put_block:
    case wire::Operation::replicate:
    case wire::Operation::submit: admit_block(header.body_bytes, intake); break;
    case wire::Operation::write_region:
      if (const Result<Chunks> chunks = locate(header); !chunks.ok()) {
        intake.refusal = chunks.status();
      } else {
        admit_staging(header.body_bytes, intake);
      }
      break;
    case wire::Operation::shared:
      if (header.body_bytes > 0) admit_block(header.body_bytes, intake);
      break;
    case wire::Operation::read_block:
    case wire::Operation::read_region:
    case wire::Operation::inquire:
    case wire::Operation::read_table:
    case wire::Operation::withdraw:
    case wire::Operation::ping:
    case wire::Operation::count_: break;
  }
}

void Operations::admit_block(std::uint64_t body_bytes, Intake& intake) {
  const Result<Address> block = heap_.allocate_extent(body_bytes);
  if (!block.ok()) {
    intake.refusal = block.status();
    return;
  }
  intake.block = block.value();
  // The new block has a header of its own: its state and owner are not the sender's to say.
  intake.has_header = true;
  std::byte* start = heap_.partition().writable(intake.block.offset_bytes());
  intake.rest = {start + wire::kBlockBytesMin, body_bytes - wire::kBlockBytesMin};
}

// Bytes that will be put in place wait in a block that is never published: so they count against the quota,
// and running out is an answer.
void Operations::admit_staging(std::uint64_t body_bytes, Intake& intake) {
  if (body_bytes == 0) return;
  const Result<Address> block = heap_.allocate_extent(wire::kBlockBytesMin + body_bytes);
  if (!block.ok()) {
    intake.refusal = block.status();
    return;
  }
  intake.block = block.value();
  intake.rest = {heap_.partition().writable(intake.block.offset_bytes()) + wire::kBlockBytesMin, body_bytes};
}

void Operations::discard(Intake& intake) noexcept {
  if (!intake.block.is_null()) heap_.abandon(std::exchange(intake.block, Address()));
  intake.rest = {};
  intake.buffer.clear();
  intake.has_header = false;
  intake.refusal = Status();
}

void Operations::close(Intake& intake) noexcept {
  discard(intake);
  replicas_.abandon(intake.batch);
}

Answer Operations::execute(const wire::RequestHeader& header, Intake& intake) {
  if (header.operation == static_cast<std::uint8_t>(wire::Operation::replicate)) return replicate(header, intake);
  if (header.operation == static_cast<std::uint8_t>(wire::Operation::submit)) return submit(header, intake);
  if (!intake.refusal.ok()) return refused(intake.refusal);
  switch (static_cast<wire::Operation>(header.operation)) {
    case wire::Operation::read_block: return read_block(header);
    case wire::Operation::read_region: return read_region(header);
    case wire::Operation::write_region: return write_region(header, intake);
    case wire::Operation::free_blocks: return free_blocks(intake.rest);
    case wire::Operation::read_blocks: return read_blocks(intake.rest);
    case wire::Operation::put_block: return put_block(intake);
    case wire::Operation::submit: return submit(header, intake);
    case wire::Operation::complete: return complete(header, intake);
    case wire::Operation::inquire:
      return queue_.knows(pointer_of(header)) ? Answer{} : refused(Status(Code::not_found, "no such task is here"));
    case wire::Operation::read_table: return read_table(header);
    case wire::Operation::withdraw: return withdraw(pointer_of(header));
    case wire::Operation::ping: return {};
    case wire::Operation::replicate: return replicate(header, intake);
    case wire::Operation::shared: return shared(header, intake);
    case wire::Operation::control: {
      Answer answer;
      answer.kind = Answer::Kind::control;
      return answer;
    }
    case wire::Operation::count_: break;
  }
  return refused(Status(Code::bad_request, "there is no such operation"));
}

Result<GlobalPointer> Operations::resolve(const GlobalPointer& pointer) const {
  if (heap_.partition().is_local(pointer.address)) return pointer;
  return replicas_.find(pointer);
}

Answer Operations::read_block(const wire::RequestHeader& header) {
  Answer answer;
  const Result<GlobalPointer> here = resolve(pointer_of(header));
  if (!here.ok()) return refused(here.status());
  answer.block = here.value();
  const Result<heap::Block> found = heap_.partition().find(answer.block.address, answer.block.colour);
  if (!found.ok()) return refused(found.status());
  const heap::BlockHeader& block = found.value().header();
  if (block.extent_bytes != header.extent_bytes) return refused(other_extent());
  answer.kind = Answer::Kind::served;
  answer.head_bytes = sizeof(heap::BlockHeader);
  heap::BlockHeader snapshot{};
  snapshot.state.store(header.colour, std::memory_order_relaxed);
  take_snapshot(block, snapshot);
  std::memcpy(answer.head.data(), static_cast<const void*>(&snapshot), sizeof snapshot);
  const std::uint64_t rest_bytes = header.extent_bytes - sizeof(heap::BlockHeader);
  answer.chunks =
      Chunks(found.value().start(), {sizeof(heap::BlockHeader), rest_bytes, rest_bytes > 0 ? 1U : 0U, 0});
  return answer;
}

// Of a promoted address nothing is said: nobody writes a replica in place.
Answer Operations::read_table(const wire::RequestHeader& header) const {
  const Result<heap::Block> found = heap_.partition().find(Address(header.address), kNoColour);
  if (!found.ok()) return refused(found.status());
  const heap::BlockHeader& block = found.value().header();
  Answer answer;
  answer.kind = Answer::Kind::served;
  answer.block = {Address(header.address), block.state.load(std::memory_order_acquire), block.extent_bytes};
  answer.head_bytes = sizeof(heap::BlockHeader);
  heap::BlockHeader snapshot{};
  snapshot.state.store(answer.block.colour, std::memory_order_relaxed);
  take_snapshot(block, snapshot);
  snapshot.before.store(block.before.load(std::memory_order_relaxed), std::memory_order_relaxed);
  snapshot.flags.store(block.flags.load() & heap::kWriting, std::memory_order_relaxed);
  const std::uint64_t table_bytes = snapshot.child_count * sizeof(heap::ChildPointer);
  // If it was freed since, what was read is no header of it.
  const bool is_whole = answer.block.extent_bytes >= sizeof(heap::BlockHeader) + table_bytes;
  if (!is_whole || !is_live(answer.block)) return refused(Status(Code::not_found, "no block there"));
  std::memcpy(answer.head.data(), static_cast<const void*>(&snapshot), sizeof snapshot);
  answer.chunks = Chunks(found.value().start(), {sizeof(heap::BlockHeader), table_bytes, table_bytes > 0 ? 1U : 0U, 0});
  return answer;
}

// The region of buffer 0 of the live version that the header names.
Result<Chunks> Operations::locate(const wire::RequestHeader& header) const {
  const Result<GlobalPointer> here = resolve(pointer_of(header));
  if (!here.ok()) return here.status();
  const GlobalPointer& pointer = here.value();
  const Result<heap::Block> found = heap_.partition().find(pointer.address, pointer.colour);
  if (!found.ok()) return found.status();
  const heap::BlockHeader& block = found.value().header();
  if (block.extent_bytes != header.extent_bytes) return other_extent();
  const std::uint64_t table_bytes =
      sizeof(heap::BlockHeader) + block.child_count * sizeof(heap::ChildPointer);
  if (block.buffer_count == 0 || table_bytes + sizeof(heap::BufferSpan) > header.extent_bytes) {
    return Status(Code::bad_request, "the block has no buffer");
  }
  heap::BufferSpan buffer;
  std::memcpy(&buffer, found.value().start() + table_bytes, sizeof buffer);
  // If it has moved on, what was read may be another's.
  if (!is_live(pointer)) return Status(Code::stale, "the block has moved on");
  if (buffer.offset_bytes > header.extent_bytes || buffer.bytes > header.extent_bytes - buffer.offset_bytes) {
    return Status(Code::bad_request, "the block has no such buffer");
  }
  const Result<std::uint64_t> bytes = wire::total_bytes(header.region, buffer.bytes);
  if (!bytes.ok()) return bytes.status();
  return Chunks(found.value().start() + buffer.offset_bytes, header.region);
}

Answer Operations::read_region(const wire::RequestHeader& header) {
  const Result<Chunks> chunks = locate(header);
  if (!chunks.ok()) return refused(chunks.status());
  Answer answer;
  answer.kind = Answer::Kind::served;
  answer.block = resolve(pointer_of(header)).value();  // locate() has found it
  answer.chunks = chunks.value();
  return answer;
}

Answer Operations::write_region(const wire::RequestHeader& header, const Intake& intake) {
  // A part goes back into the array of whoever split it, a process of the block's own server: it is gone.
  if (Address(header.address).server() != server()) return refused(elsewhere());
  Answer answer;
  answer.pointer = pointer_of(header);
  const std::shared_lock<std::shared_mutex> no_free(writing_);
  Result<Chunks> chunks = locate(header);  // again: the body may have taken long
  if (!chunks.ok()) return refused(chunks.status());
  chunks.value().scatter(intake.rest);
  if (!is_live(answer.pointer))
    return refused(Status(Code::stale, "the block moved on while it was written"));
  return answer;
}

Answer Operations::free_blocks(std::span<const std::byte> items) {
  Answer answer;
  answer.kind = Answer::Kind::none;
  std::vector<wire::FreeItem> batch(items.size() / sizeof(wire::FreeItem));
  std::memcpy(static_cast<void*>(batch.data()), items.data(), batch.size() * sizeof(wire::FreeItem));
  answer.status = wire::check(batch);
  bool has_frees = false;
  for (const wire::FreeItem& item : batch) {
    const ServerId home = Address(item.address).server();
    const bool is_notice = (item.flags & wire::FreeItem::kNotice) != 0;
    has_frees = has_frees || !is_notice;
    if (answer.status.ok() && is_notice == (home == server()) && (is_notice || !replicas_.is_promoted(home)))
      answer.status = elsewhere();
  }
  if (!answer.status.ok()) {
    answer.kind = Answer::Kind::malformed;  // before anything is freed
    return answer;
  }
  std::vector<GlobalPointer> remote;
  if (has_frees) {
    const std::unique_lock<std::shared_mutex> no_write(writing_);
    for (std::size_t index = 0; index < batch.size(); ++index) {
      if (Address(batch[index].address).server() != server()) continue;
      // stale and not_found are the expected fate of a free that was sent twice.
      const wire::FreeItem& item = batch[index];
      const GlobalPointer pointer{Address(item.address), item.colour, 0};
      switch (item.flags) {
        case wire::FreeItem::kShallow: (void)heap_.free_shallow(pointer); break;
        case wire::FreeItem::kMade: (void)heap_.free_made(pointer, remote); break;
        case wire::FreeItem::kTied: (void)heap_.free_tied(pointer, {}, remote); break;
        case wire::FreeItem::kPassedOn: {
          const wire::FreeItem& next = batch[++index];
          (void)heap_.free_tied(pointer, {Address(next.address), next.colour, 0}, remote);
          break;
        }
        default: (void)heap_.free(pointer, remote);
      }
    }
  }
  for (const GlobalPointer& pointer : remote) elsewhere_.free(pointer, 0);
  for (const wire::FreeItem& item : batch) {
    if (Address(item.address).server() == server() || item.flags == wire::FreeItem::kSuccessor) continue;
    if ((item.flags & wire::FreeItem::kNotice) != 0) {
      take_notice(item);
    } else {
      // What a successor or a pre-image may have too stays: a leak after a server's loss, rather than a loss.
      constexpr std::uint64_t kAlone = wire::FreeItem::kShallow | wire::FreeItem::kPassedOn | wire::FreeItem::kMade;
      free_promoted({Address(item.address), item.colour, 0}, (item.flags & kAlone) != 0);
    }
  }
  return answer;
}

void Operations::take_notice(const wire::FreeItem& item) {
  const Address address(item.address);
  if (item.flags == wire::FreeItem::kReplica) {
    replicas_.drop_older(address, item.colour);
  } else {
    replicas_.confirm(address, item.colour);
  }
}

void Operations::free_promoted(const GlobalPointer& primary, bool shallow) {
  std::vector<GlobalPointer> remote;
  std::vector<Address> dropped;
  replicas_.free(primary, shallow, remote, dropped);
  for (const GlobalPointer& pointer : remote) elsewhere_.free(pointer, 0);
  for (const Address address : dropped) elsewhere_.drop_replica(address);
}

void Operations::free_tree(const GlobalPointer& local) {
  std::vector<GlobalPointer> remote;
  static_cast<void>(heap_.free(local, remote));
  for (const GlobalPointer& pointer : remote) {
    if (replicas_.is_promoted(pointer.address.server())) {
      free_promoted(pointer, false);
    } else {
      elsewhere_.free(pointer, 0);
    }
  }
}

// What a task or a completion brings that lies on other servers and has replicas: owned here from now on, so the
// backups of those servers are told.
std::vector<GlobalPointer> Operations::owned_elsewhere(const GlobalPointer& local) const {
  std::vector<GlobalPointer> found;
  const heap::Block block(heap_.partition().writable(local.address.offset_bytes()));
  for (const heap::ChildPointer& child : block.children()) {
    const bool is_owned = child.address != 0 && (child.flags & heap::ChildPointer::kBorrowed) == 0;
    const bool is_excepted = (child.flags & heap::ChildPointer::kExcepted) != 0;
    const bool is_replicated = protocol::is_replicated(heap_.partition().replicates_all(), is_excepted);
    if (is_owned && is_replicated && !heap_.partition().is_local(Address(child.address)))
      found.push_back(child.pointer());
  }
  return found;
}

// The received bytes become a live block of this server, if they are one.
Result<GlobalPointer> Operations::publish(Intake& intake) {
  heap::BlockHeader sent{};
  std::memcpy(static_cast<void*>(&sent), intake.header.data(), sizeof sent);
  Result<GlobalPointer> published = heap_.publish_received(std::exchange(intake.block, Address()), sent);
  if (!published.ok()) count(heap::Counter::frames_rejected);
  return published;
}

Answer Operations::put_block(Intake& intake) {
  const Result<GlobalPointer> published = publish(intake);
  if (!published.ok()) return refused(published.status());
  Answer answer;
  answer.pointer = published.value();
  return answer;
}

void Operations::refuse_tasks(ServerId lost, std::uint16_t incarnation) {
  const std::unique_lock<std::shared_mutex> no_submit(losing_);
  std::uint16_t& refused = refused_[lost % kServersPerClusterMax];
  refused = std::max(refused, incarnation);
}

Answer Operations::submit(const wire::RequestHeader& header, Intake& intake) {
  Status status = std::exchange(intake.refusal, Status());
  if (!intake.submit_refusal.ok()) {
    discard(intake);  // what follows a refused one is not queued either: those that are come first
  } else {
    if (status.ok()) status = queue_task(header, intake);
    if (status.ok()) ++intake.submitted;
    intake.submit_refusal = std::move(status);
  }
  Answer answer;
  answer.kind = Answer::Kind::none;
  if ((header.argument & wire::Submit::kMore) != 0) return answer;
  status = std::exchange(intake.submit_refusal, Status());
  answer.pointer.extent_bytes = std::exchange(intake.submitted, 0);
  if (!status.ok() && answer.pointer.extent_bytes == 0) return refused(std::move(status));
  answer.kind = Answer::Kind::reply;
  return answer;
}

Status Operations::queue_task(const wire::RequestHeader& header, Intake& intake) {
  const Result<GlobalPointer> task = publish(intake);
  if (!task.ok()) return task.status();
  heap_.set_owner(task.value(), heap::owner_word(heap::OwnerKind::queue, {}));
  std::vector<GlobalPointer> moved = owned_elsewhere(task.value());  // a worker may be done with it at once
  const std::shared_lock<std::shared_mutex> no_loss(losing_);
  if (incarnation_of(header.colour) <= refused_[Address(header.address).server() % kServersPerClusterMax]) {
    free_tree(task.value());  // what it moves has no other owner any more
    return Status(Code::server_lost, "the sender's server is lost");
  }
  const auto retries = static_cast<std::uint32_t>(header.argument & ~wire::Submit::kMore);
  const Result<std::uint64_t> pushed = queue_.push(task.value(), pointer_of(header), {.retries = retries});
  if (!pushed.ok()) {
    (void)heap_.free_shallow(task.value());  // what it would have moved still belongs to the sender
    return pushed.status();
  }
  for (const GlobalPointer& value : moved) elsewhere_.confirm(value);
  return {};
}

Answer Operations::replicate(const wire::RequestHeader& header, Intake& intake) {
  Status status = std::exchange(intake.refusal, Status());
  if (status.ok()) {
    const Result<GlobalPointer> local = publish(intake);
    if (local.ok()) {
      heap_.set_owner(local.value(), heap::owner_word(heap::OwnerKind::replica, {}));
      // Of a replica its tied children are its own: which version of the parent owned them is not known here.
      const heap::Block block(heap_.partition().writable(local.value().address.offset_bytes()));
      for (heap::ChildPointer& child : block.children()) {
        if ((child.flags & heap::ChildPointer::kTied) != 0) child.flags &= ~heap::ChildPointer::kBorrowed;
      }
      intake.batch.push_back({pointer_of(header), header.region.offset_bytes,
                              (header.argument & wire::Replicate::kConfirmed) != 0, local.value()});
    } else {
      status = local.status();
    }
  }
  if (intake.batch_refusal.ok()) intake.batch_refusal = std::move(status);
  if ((header.argument & wire::Replicate::kMore) != 0) {
    Answer answer;
    answer.kind = Answer::Kind::none;
    return answer;
  }
  status = std::exchange(intake.batch_refusal, Status());
  if (status.ok()) status = replicas_.commit(intake.batch);
  replicas_.abandon(intake.batch);
  if (!status.ok()) return refused(std::move(status));
  return {};
}

// What it would have moved goes with it: as a task that has run, it owned that.
Answer Operations::withdraw(const GlobalPointer& record) {
  const std::optional<tasks::Entry> entry = queue_.withdraw(record);
  if (!entry) return refused(Status(Code::not_found, "no such task waits here"));
  free_tree(entry->task);
  queue_.finish(*entry);
  return {};
}

Answer Operations::complete(const wire::RequestHeader& header, Intake& intake) {
  GlobalPointer completion;
  std::vector<GlobalPointer> moved;
  if (!intake.block.is_null()) {
    const Result<GlobalPointer> published = publish(intake);
    if (!published.ok()) return refused(published.status());
    completion = published.value();
    moved = owned_elsewhere(completion);
  }
  if (Address(header.address).server() != server()) {
    // Whoever waited for it was lost with its server, and what it brings has no owner any more.
    if (!completion.is_null()) free_tree(completion);
    return {};
  }
  const auto state = static_cast<tasks::RecordState>(header.argument);
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  const auto met = deliver_here(heap_, pointer_of(header), state, completion, remote, made);
  for (const GlobalPointer& pointer : remote) elsewhere_.free(pointer, 0);
  for (const GlobalPointer& pointer : made) elsewhere_.free(pointer, wire::FreeItem::kMade);
  Answer answer;
  if (met == tasks::Delivery::applied) {
    for (const GlobalPointer& value : moved) elsewhere_.confirm(value);
    answer.pointer.colour = wire::kCompletionCounted;
  }
  return answer;
}

}  // namespace drust::server
