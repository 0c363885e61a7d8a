#include "server/peers_pool.hpp"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/kill_point.hpp"
#include "server/quiet_thread.hpp"

namespace drust::server {
namespace {

constexpr auto kFreeDelay = std::chrono::milliseconds(3);
constexpr auto kUnsureLook = std::chrono::milliseconds(100);

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
    case wire::Operation::replicate: return heap::Counter::replica_messages;
    case wire::Operation::shared: return heap::Counter::shared_messages;
    case wire::Operation::inquire:
    case wire::Operation::read_table:
    case wire::Operation::withdraw:
    case wire::Operation::ping:
    case wire::Operation::control:
    case wire::Operation::count_: break;
  }
  return heap::Counter::control_messages;
}

// Meant for that very server, not for whoever has its blocks and runs its tasks.
bool is_personal(std::uint8_t operation) noexcept {
  return operation == static_cast<std::uint8_t>(wire::Operation::control);
}

bool may_be_repeated(std::uint8_t operation) noexcept {
  return operation != static_cast<std::uint8_t>(wire::Operation::put_block) &&
         operation != static_cast<std::uint8_t>(wire::Operation::submit) &&
         operation != static_cast<std::uint8_t>(wire::Operation::withdraw) &&
         operation != static_cast<std::uint8_t>(wire::Operation::shared);
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
  const auto deadline = Clock::now() + std::chrono::milliseconds(kPromotionWaitMs);
  const bool is_repeatable = may_be_repeated(call.request.operation) && !is_personal(call.request.operation);
  for (;;) {
    const heap::Endpoint at = partition.endpoint(server);
    if (at.by != kNoServer && is_personal(call.request.operation)) {
      return lost(server, Status(Code::server_lost,
                                 "it has ended; server " + std::to_string(at.by) + " has its replicas"));
    }
    Status status = ask_once(server, call, at.epoch);
    if (status.code() != Code::server_lost || !is_repeatable) return status;
    if (!await_successor(server, at.epoch, deadline)) return status;
  }
}

bool Peers::Pool::await_successor(ServerId server, std::uint64_t epoch, Clock::time_point deadline) const {
  for (;;) {
    const heap::Endpoint now = partition.endpoint(server);
    // One that was started again has none of the blocks: nothing to be had from it.
    if (now.epoch != epoch && now.port != 0) return now.by != kNoServer && Clock::now() < deadline;
    // The engine takes the backup out of the row when there is nothing to wait for.
    if (now.backup == kNoServer || !partition.await_endpoint(server, now, deadline)) return false;
  }
}

Status Peers::Pool::ask_once(ServerId server, Call& call, std::uint64_t epoch_before) {
  std::vector<wire::FreeItem> frees = frees_.take(server);
  const bool is_repeatable = may_be_repeated(call.request.operation);
  auto choice = is_repeatable ? ConnectionPool::Choice::any : ConnectionPool::Choice::tested;
  const Clock::time_point began = frees.empty() ? Clock::time_point{} : Clock::now();
  bool has_counted = false;
  for (;;) {
    Result<ConnectionPool::Lease> lease = connections_.take(server, choice);
    if (!lease.ok()) {
      keep(server, epoch_before, std::move(frees), Clock::now() - began);
      return lost(server, lease.status());
    }
    if (call.epoch != 0 && lease.value().epoch != call.epoch) {
      connections_.give_back(server, std::move(lease.value()));
      keep(server, epoch_before, std::move(frees), {});
      return lost(server, Status(Code::server_lost, "it has ended"));
    }
    const bool is_pooled = lease.value().is_pooled;
    const std::int64_t asked_ms = lease.value().stream->now_ms();
    const std::uint64_t epoch = lease.value().epoch;
    if (!std::exchange(has_counted, true)) count_message(call, frees.size());
    Outcome outcome = exchange(*lease.value().stream, call, frees);
    // Its peer had gone while it was idle, and answered the first packet with that. Not after silence, whether we
    // ended it or the kernel did: a second wait would break the bound.
    const bool was_prompt = lease.value().stream->now_ms() - asked_ms < kHeartbeatMs;
    const bool was_dead = outcome.status.code() == Code::server_lost && is_pooled && was_prompt;
    if (was_dead && is_repeatable && !outcome.is_connection_good) {
      choice = ConnectionPool::Choice::fresh;
      continue;
    }
    count_bytes(call, frees.size());
    if (outcome.is_connection_good) {
      have_arrived(frees);
      connections_.give_back(server, std::move(lease.value()));
      remember(server, epoch, std::move(frees));
      return std::move(outcome.status);
    }
    keep(server, epoch_before, std::move(frees), Clock::now() - began);
    return lost(server, std::move(outcome.status));
  }
}

std::vector<Status> Peers::Pool::ask_all(ServerId server, std::span<Call> calls) {
  std::vector<Status> answers(calls.size());
  std::vector<Outcome> outcomes;
  if (!is_forked() && calls.size() > 1) {
    if (Result<ConnectionPool::Lease> lease = connections_.take(server, ConnectionPool::Choice::any); lease.ok()) {
      partition.count(heap.process(), counter_of(calls.front().request.operation));
      outcomes = exchange_all(*lease.value().stream, calls);
      if (outcomes.back().is_connection_good) connections_.give_back(server, std::move(lease.value()));
    }
  }
  for (std::size_t index = 0; index < calls.size(); ++index) {
    if (index < outcomes.size() && outcomes[index].is_connection_good) {
      partition.count(heap.process(), heap::Counter::bytes_sent, calls[index].sent_bytes);
      partition.count(heap.process(), heap::Counter::bytes_received, calls[index].received_bytes);
      answers[index] = std::move(outcomes[index].status);
    } else {
      answers[index] = ask(server, calls[index]);
    }
  }
  return answers;
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

void Peers::Pool::queue_frees(ServerId destination, std::initializer_list<wire::FreeItem> items) {
  if (is_forked()) return;
  for (const wire::FreeItem& item : items) {
    // Told by its reaper, a block that is passed on goes alone: what its successor has is not to be lost.
    const bool is_alone = item.flags == wire::FreeItem::kPassedOn;
    if ((item.flags & (wire::FreeItem::kSuccessor | wire::FreeItem::kNotice)) == 0)
      heap.note_owed({Address(item.address), item.colour, 0}, is_alone ? wire::FreeItem::kShallow : item.flags);
  }
  const std::size_t count = frees_.add(destination, items);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_closed_ || !has_sweeper_) return;
  start_sweeper();
  const bool fills_batch = count / kFreesPerBatchMax != (count - items.size()) / kFreesPerBatchMax;
  if (count == items.size() || fills_batch) {
    has_full_batch_ = has_full_batch_ || count >= kFreesPerBatchMax;
    changed_.notify_one();
  }
}

void Peers::Pool::start_sweeper() {
  if (sweeper_.joinable()) return;
  try {
    sweeper_ = start_quiet_thread("drust-frees", [this] { sweep(); });
  } catch (const std::system_error&) {
    // no thread to be had: the next request to that server takes them along
  }
}

// Whether another may answer, or answers already, for the server that did under `epoch`.
bool Peers::Pool::has_successor(ServerId server, std::uint64_t epoch) const {
  const heap::Endpoint now = partition.endpoint(server);
  return now.backup != kNoServer || (now.epoch != epoch && now.port != 0);
}

// A server that has a backup passes on what its frees mean for replicas a few milliseconds later. If it is lost
// before, they are repeated to whoever takes its place: a free may come twice.
void Peers::Pool::remember(ServerId server, std::uint64_t epoch, std::vector<wire::FreeItem> frees) {
  if (frees.empty() || !has_successor(server, epoch)) return;
  std::erase_if(frees, [](const wire::FreeItem& item) { return (item.flags & wire::FreeItem::kNotice) != 0; });
  if (frees.empty()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_closed_) return;
  unsure_.push_back({Clock::now(), server, epoch, std::move(frees)});
  start_sweeper();
  if (unsure_.size() == 1) changed_.notify_one();
}

void Peers::Pool::repeat_unsure() {
  const auto oldest = Clock::now() - std::chrono::milliseconds(kFreesKeptMs);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::erase_if(unsure_, [&](const Unsure& each) {
    const heap::Endpoint now = partition.endpoint(each.server);
    if (now.epoch == each.epoch || now.port == 0) return each.sent < oldest && now.epoch == each.epoch;
    add_again(each.server, each.frees);
    return true;
  });
}

// Frees that no answer came behind. The engine takes a server that has ended out of the table: from then on nothing
// of it is left to be freed, or another answers in its place.
void Peers::Pool::keep(ServerId server, std::uint64_t epoch, std::vector<wire::FreeItem> frees,
                       Clock::duration tried) {
  const heap::Endpoint now = partition.endpoint(server);
  const bool is_there = now.epoch == epoch && now.port != 0;
  if (!is_there && !has_successor(server, epoch)) {
    have_arrived(frees);
    have_arrived(frees_.drop(server));
    return;
  }
  if (frees.empty()) return;
  // A server that is silent is not to take all of the housekeeping thread's time from the others.
  const auto wait = std::max<Clock::duration>(std::chrono::milliseconds(kFreesAgainMs), 2 * tried);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_closed_) return;  // the outbox still names them
  unanswered_.push_back({Clock::now() + wait, server, epoch, std::move(frees)});
  if (!has_sweeper_) return;
  start_sweeper();
  if (unanswered_.size() == 1) changed_.notify_one();
}

void Peers::Pool::repeat_unanswered(Clock::time_point due) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::erase_if(unanswered_, [&](Unanswered& each) {
    if (each.due > due) return false;
    // A notice is for that very server: whoever takes its place needs none.
    if (partition.endpoint(each.server).epoch != each.epoch)
      std::erase_if(each.frees, [](const wire::FreeItem& item) { return (item.flags & wire::FreeItem::kNotice) != 0; });
    add_again(each.server, each.frees);
    return true;
  });
}

// With its successor, never apart.
void Peers::Pool::add_again(ServerId server, std::span<const wire::FreeItem> frees) {
  for (std::size_t index = 0; index < frees.size(); ++index) {
    const wire::FreeItem& item = frees[index];
    if (item.flags == wire::FreeItem::kPassedOn && index + 1 < frees.size()) {
      frees_.add(server, {item, frees[++index]});
    } else {
      frees_.add(server, {item});
    }
  }
}

bool Peers::Pool::flush() {
  if (is_forked()) return true;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !is_sweeping_; });
  }
  repeat_unanswered(Clock::time_point::max());
  send_all(Patience::answer);
  const std::lock_guard<std::mutex> lock(mutex_);
  return unanswered_.empty();
}

void Peers::Pool::send_all(Patience patience) {
  for (const ServerId server : frees_.servers()) {
    while (send_batch(server, patience)) {
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
  repeat_unanswered(Clock::time_point::max());
  send_all(Patience::none);
  connections_.close();
}

// Or can never arrive: a server that is lost took its blocks with it.
void Peers::Pool::have_arrived(std::span<const wire::FreeItem> frees) noexcept {
  for (const wire::FreeItem& item : frees) heap.clear_owed(Address(item.address), item.colour);
}

bool Peers::Pool::is_counted(const Call& call) const {
  return counts_questions_ || call.request.operation != static_cast<std::uint8_t>(wire::Operation::control);
}

// Before it is sent: whoever sees what a message did finds it counted.
void Peers::Pool::count_message(const Call& call, std::size_t frees) const {
  if (is_counted(call)) partition.count(heap.process(), counter_of(call.request.operation));
  count_frees(frees);
}

void Peers::Pool::count_frees(std::size_t frees) const {
  if (frees == 0) return;
  partition.count(heap.process(), heap::Counter::free_messages);
  partition.count(heap.process(), heap::Counter::frees_sent, frees);
}

void Peers::Pool::count_bytes(const Call& call, std::size_t frees) const {
  if (!is_counted(call) && frees == 0) return;
  partition.count(heap.process(), heap::Counter::bytes_sent, call.sent_bytes);
  partition.count(heap.process(), heap::Counter::bytes_received, call.received_bytes);
}

bool Peers::Pool::send_batch(ServerId server, Patience patience) {
  const std::uint64_t epoch_before = partition.endpoint(server).epoch;
  std::vector<wire::FreeItem> batch = frees_.take(server);
  if (batch.empty()) return false;
  const Clock::time_point began = Clock::now();
  Result<ConnectionPool::Lease> lease = connections_.take(server, ConnectionPool::Choice::tested);
  Call ping;  // in the same packet: its answer says that they were carried out
  ping.request.operation = static_cast<std::uint8_t>(wire::Operation::ping);
  bool is_good = false;
  if (lease.ok()) {
    count_frees(batch.size());
    is_good = patience == Patience::answer ? exchange(*lease.value().stream, ping, batch).is_connection_good
                                           : send_frees(*lease.value().stream, batch).ok();
  }
  kill_point("call.frees.sent");
  if (!is_good) {
    keep(server, epoch_before, std::move(batch), Clock::now() - began);
    return false;
  }
  const std::uint64_t bytes = sizeof(wire::RequestHeader) + batch.size() * sizeof(wire::FreeItem);
  partition.count(heap.process(), heap::Counter::bytes_sent, std::max(ping.sent_bytes, bytes));
  partition.count(heap.process(), heap::Counter::bytes_received, ping.received_bytes);
  const std::uint64_t epoch = lease.value().epoch;
  connections_.give_back(server, std::move(lease.value()));
  have_arrived(batch);  // or, without patience, nobody will ask any more
  remember(server, epoch, std::move(batch));
  return true;
}

void Peers::Pool::sweep() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_closed_) {
    const auto has_work = [this] { return is_closed_ || !frees_.is_empty(); };
    const auto is_quiet = [this] { return unsure_.empty() && unanswered_.empty(); };
    if (is_quiet()) {
      changed_.wait(lock, [&] { return has_work() || !is_quiet(); });
    } else {
      changed_.wait_for(lock, kUnsureLook, has_work);
    }
    // A little patience: more frees may come, or a request that takes them along.
    if (!frees_.is_empty()) changed_.wait_for(lock, kFreeDelay, [this] { return is_closed_ || has_full_batch_; });
    has_full_batch_ = false;
    if (is_closed_) return;
    const bool is_unsure = !unsure_.empty();
    const bool is_unanswered = !unanswered_.empty();
    is_sweeping_ = true;
    lock.unlock();
    if (is_unsure) repeat_unsure();
    if (is_unanswered) repeat_unanswered(Clock::now());
    send_all(Patience::answer);
    lock.lock();
    is_sweeping_ = false;
    changed_.notify_all();
  }
}

}  // namespace drust::server
