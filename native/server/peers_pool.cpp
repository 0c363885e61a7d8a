#include "server/peers_pool.hpp"

#include <chrono>
#include <string>
#include <system_error>
#include <vector>

#include "server/quiet_thread.hpp"

namespace drust::server {
namespace {

constexpr auto kFreeDelay = std::chrono::milliseconds(3);

heap::Counter counter_of(std::uint8_t operation) noexcept {
  switch (static_cast<wire::Operation>(operation)) {
    case wire::Operation::read_block:
    case wire::Operation::read_blocks:
    case wire::Operation::read_region: return heap::Counter::read_requests;
    case wire::Operation::write_region:
    case wire::Operation::put_block: return heap::Counter::write_requests;
    case wire::Operation::submit: return heap::Counter::submit_messages;
    case wire::Operation::complete: return heap::Counter::complete_messages;
    case wire::Operation::free_blocks: return heap::Counter::free_messages;
    case wire::Operation::inquire:
    case wire::Operation::ping:
    case wire::Operation::control:
    case wire::Operation::count_: break;
  }
  return heap::Counter::control_messages;
}

bool may_be_repeated(std::uint8_t operation) noexcept {
  return operation != static_cast<std::uint8_t>(wire::Operation::put_block) &&
         operation != static_cast<std::uint8_t>(wire::Operation::submit);
}

// Silence and loss are the same to a caller: the server is lost.
Status lost(ServerId server, Status status) {
  const bool is_loss = status.code() == Code::server_lost || status.code() == Code::timed_out;
  return Status(is_loss ? Code::server_lost : status.code(),
                "server " + std::to_string(server) + ": " + status.detail());
}

}  // namespace

Status Peers::Pool::ask(ServerId server, Call& call) {
  if (is_forked()) return Status(Code::closed, "this process was forked from the one that was connected");
  const std::vector<wire::FreeItem> frees = frees_.take(server);
  const bool is_repeatable = may_be_repeated(call.request.operation);
  auto choice = is_repeatable ? ConnectionPool::Choice::any : ConnectionPool::Choice::tested;
  for (;;) {
    Result<ConnectionPool::Lease> lease = connections_.take(server, choice);
    if (!lease.ok()) return give_up(server, lease.status());
    const bool is_pooled = lease.value().is_pooled;
    const std::int64_t asked_ms = lease.value().stream->now_ms();
    Outcome outcome = exchange(*lease.value().stream, call, frees);
    have_left(frees);
    // Its peer had gone while it was idle, and answered the first packet with that. Not after silence, whether we
    // ended it or the kernel did: a second wait would break the bound.
    const bool was_prompt = lease.value().stream->now_ms() - asked_ms < kHeartbeatMs;
    const bool was_dead = outcome.status.code() == Code::server_lost && is_pooled && was_prompt;
    if (was_dead && is_repeatable && !outcome.is_connection_good) {
      choice = ConnectionPool::Choice::fresh;
      continue;
    }
    count_message(call, frees.size());
    if (outcome.is_connection_good) {
      connections_.give_back(server, std::move(lease.value()));
      return std::move(outcome.status);
    }
    return give_up(server, std::move(outcome.status));
  }
}

void Peers::Pool::free_later(const GlobalPointer& remote, std::uint64_t flags) {
  if (remote.is_null()) return;
  queue_frees(remote.address.server(), {{remote.address.raw(), remote.colour, flags}});
}

void Peers::Pool::free_tied_later(const GlobalPointer& remote, const GlobalPointer& successor) {
  if (remote.is_null()) return;
  const ServerId server = remote.address.server();
  if (successor.is_null() || successor.address.server() != server) {
    queue_frees(server, {{remote.address.raw(), remote.colour, wire::FreeItem::kTied}});
    return;
  }
  queue_frees(server, {{remote.address.raw(), remote.colour, wire::FreeItem::kPassedOn},
                       {successor.address.raw(), successor.colour, wire::FreeItem::kSuccessor}});
}

void Peers::Pool::queue_frees(ServerId server, std::initializer_list<wire::FreeItem> items) {
  if (is_forked()) return;
  for (const wire::FreeItem& item : items) {
    // Told by its reaper, a block that is passed on goes alone: what its successor has is not to be lost.
    const bool is_alone = item.flags == wire::FreeItem::kPassedOn;
    if (item.flags != wire::FreeItem::kSuccessor)
      heap.note_owed({Address(item.address), item.colour, 0}, is_alone ? wire::FreeItem::kShallow : item.flags);
  }
  const std::size_t count = frees_.add(server, items);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_closed_ || !has_sweeper_) return;
  if (!sweeper_.joinable()) {
    try {
      sweeper_ = start_quiet_thread("drust-frees", [this] { sweep(); });
    } catch (const std::system_error&) {
      return;  // no thread to be had: the next request to that server takes them along
    }
  }
  const bool fills_batch = count / kFreesPerBatchMax != (count - items.size()) / kFreesPerBatchMax;
  if (count == items.size() || fills_batch) {
    has_full_batch_ = has_full_batch_ || count >= kFreesPerBatchMax;
    changed_.notify_one();
  }
}

void Peers::Pool::flush() {
  if (is_forked()) return;
  for (const ServerId server : frees_.servers()) {
    while (send_batch(server)) {
    }
  }
}

void Peers::Pool::close() noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(is_closed_, true)) return;
  }
  changed_.notify_all();
  if (sweeper_.joinable()) sweeper_.join();  // is_closed_ keeps anybody from starting another
  flush();
  connections_.close();
}

// Or can never arrive: a server that is lost took its blocks with it.
void Peers::Pool::have_left(std::span<const wire::FreeItem> frees) noexcept {
  for (const wire::FreeItem& item : frees) heap.clear_owed(Address(item.address), item.colour);
}

void Peers::Pool::count_message(const Call& call, std::size_t frees) const {
  const heap::ProcessId process = heap.process();
  partition.count(process, counter_of(call.request.operation));
  if (frees > 0) {
    partition.count(process, heap::Counter::free_messages);
    partition.count(process, heap::Counter::frees_sent, frees);
  }
  partition.count(process, heap::Counter::bytes_sent, call.sent_bytes);
  partition.count(process, heap::Counter::bytes_received, call.received_bytes);
}

Status Peers::Pool::give_up(ServerId server, Status status) {
  Status error = lost(server, std::move(status));
  if (error.code() == Code::server_lost) have_left(frees_.drop(server));
  return error;
}

bool Peers::Pool::send_batch(ServerId server) {
  const std::vector<wire::FreeItem> batch = frees_.take(server);
  if (batch.empty()) return false;
  // Tested, as nothing will come back that could tell that the peer has gone.
  Result<ConnectionPool::Lease> lease = connections_.take(server, ConnectionPool::Choice::tested);
  Status status = lease.ok() ? send_frees(*lease.value().stream, batch) : lease.status();
  have_left(batch);
  if (!status.ok()) {
    (void)give_up(server, std::move(status));
    return false;
  }
  const std::uint64_t bytes = sizeof(wire::RequestHeader) + batch.size() * sizeof(wire::FreeItem);
  partition.count(heap.process(), heap::Counter::free_messages);
  partition.count(heap.process(), heap::Counter::frees_sent, batch.size());
  partition.count(heap.process(), heap::Counter::bytes_sent, bytes);
  connections_.give_back(server, std::move(lease.value()));
  return true;
}

void Peers::Pool::sweep() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_closed_) {
    changed_.wait(lock, [this] { return is_closed_ || !frees_.is_empty(); });
    // A little patience: more frees may come, or a request that takes them along.
    changed_.wait_for(lock, kFreeDelay, [this] { return is_closed_ || has_full_batch_; });
    has_full_batch_ = false;
    if (is_closed_) return;
    lock.unlock();
    flush();
    lock.lock();
  }
}

}  // namespace drust::server
