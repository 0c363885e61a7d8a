#include "server/reaper.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/limits.hpp"
#include "server/deliver.hpp"
#include "server/lent.hpp"
#include "sync/bury.hpp"

namespace drust::server {
namespace {

static_assert(heap::Owed::kMade == wire::FreeItem::kMade);

using heap::ChildPointer;
using heap::OwnerKind;
using protocol::TaskEvent;
using protocol::TaskPhase;
using protocol::TaskStep;
using tasks::Queue;

// The mutable lends of a call, in their order, under the colours that their blocks have now: one that was written in
// place has had another since, and gets a fresh one here, so that whoever clears the poison meets no copy of the
// version before.
std::vector<ChildPointer> lends_now(heap::Heap& heap, const GlobalPointer& call, bool is_poisoned) {
  std::vector<ChildPointer> lends;
  heap::Partition& partition = heap.partition();
  const Result<heap::Block> block = partition.find(call.address, call.colour);
  if (!block.ok()) return lends;
  for (ChildPointer child : block.value().children()) {
    if ((child.flags & ChildPointer::kMutable) == 0) continue;
    const bool is_part = (child.flags & ChildPointer::kPart) != 0;
    child.flags = ChildPointer::kShared | (child.flags & ChildPointer::kExcepted);
    const Address address(child.address);
    if (is_poisoned && !is_part && partition.is_local(address)) {
      if (const Result<heap::Block> lent = partition.find(address, kNoColour); lent.ok()) {
        const Colour seen = lent.value().header().state.load();
        if (const auto fresh = heap.recolour({address, seen, child.extent_bytes}); fresh.ok()) {
          lent.value().header().before.store(static_cast<std::uint32_t>(child.colour));  // whatever it had since
          child.colour = fresh.value().colour;
        }
      }
    }
    lends.push_back(child);
  }
  return lends;
}

Result<GlobalPointer> write_loss(heap::Heap& heap, const std::vector<ChildPointer>& lends, const tasks::Loss& loss,
                                 const std::string& reason) {
  const auto meta_bytes = static_cast<std::uint32_t>(sizeof loss + reason.size());
  const Result<Address> address = heap.allocate({.codec = tasks::kLossCodec,
                                                 .child_count = static_cast<std::uint32_t>(lends.size()),
                                                 .meta_bytes = meta_bytes,
                                                 .buffer_bytes = {}});
  if (!address.ok()) return address.status();
  const heap::Block block(heap.partition().writable(address.value().offset_bytes()));
  std::copy(lends.begin(), lends.end(), block.children().begin());
  std::memcpy(block.meta().data(), &loss, sizeof loss);
  std::memcpy(block.meta().data() + sizeof loss, reason.data(), reason.size());
  return heap.publish(address.value());
}

}  // namespace

Reaper::Reaper(heap::Heap& heap, tasks::Queue& queue, cache::Copies& copies, Peers& peers)
    : heap_(heap), queue_(queue), copies_(copies), peers_(peers) {}

void Reaper::send_frees(const std::vector<GlobalPointer>& remote) {
  for (const GlobalPointer& pointer : remote) peers_.free_later(pointer, false);
}

std::size_t Reaper::reap(heap::ProcessId dead, std::uint32_t pid, const std::string& reason) {
  heap::Partition& partition = heap_.partition();
  partition.declare_dead(dead);
  Estate estate;
  estate.dead = dead;
  estate.pid = pid;
  estate.reason = reason;
  bury(estate);  // first: others wait for it
  const std::vector<tasks::Held> held = queue_.reap(dead);
  drop_records(estate);
  settle_tasks(estate, held);
  copies_.reap(dead);
  std::vector<GlobalPointer> remote;
  heap_.adopt(dead, &remote);
  send_frees(remote);
  for (const heap::Owed& owed : heap_.take_owed(dead)) {
    switch (owed.flags) {
      case wire::FreeItem::kMade: peers_.free_made_later(owed.block); break;
      case wire::FreeItem::kTied: peers_.free_tied_later(owed.block, {}); break;
      default: peers_.free_later(owed.block, owed.flags == wire::FreeItem::kShallow);
    }
  }
  partition.release_process(dead);  // the generation keeps telling its blocks from a newcomer's
  if (go_on(estate)) estates_.push_back(std::move(estate));
  return held.size();
}

std::size_t Reaper::tend() {
  std::erase_if(estates_, [this](Estate& estate) { return !go_on(estate); });
  return estates_.size();
}

// Nobody will join: completions that come are freed by who brings them. Those that have come go now.
void Reaper::drop_records(Estate& estate) {
  heap::Partition& partition = heap_.partition();
  std::vector<GlobalPointer> records;
  partition.each_live_block([&](const heap::BlockInfo& block) {
    if (block.codec == tasks::kRecordCodec && block.owner == heap::owner_word(OwnerKind::process, estate.dead))
      records.push_back(block.pointer);
  });
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  for (const GlobalPointer& pointer : records) {
    const tasks::Record* record = Queue::find_record(partition, pointer);
    const Result<heap::Block> block = partition.find(pointer.address, pointer.colour);
    if (record == nullptr || !block.ok()) continue;
    Waiting waiting{.record = pointer,
                    .target = record->server,
                    .under = record->under,
                    .has_lends = block.value().header().child_count > 0,
                    .is_unsure = false,
                    .call = {},
                    .since = Clock::now()};
    const bool is_mutable = std::ranges::any_of(block.value().children(), [](const ChildPointer& child) {
      return (child.flags & ChildPointer::kMutable) != 0;
    });
    if (is_mutable) estate.lenders.push_back(record->under);
    const std::uint64_t address = record->call.load();
    bool was_sent = address != 0;
    waiting.is_unsure = address == tasks::Record::kCallUnsure;
    if (was_sent && !waiting.is_unsure && address != tasks::Record::kCallArrived) {
      const Result<heap::Block> call = partition.find(Address(address), kNoColour);
      if (call.ok() && call.value().header().codec == tasks::kTaskCodec) {
        const heap::BlockHeader& header = call.value().header();
        const std::uint64_t owner = header.owner.load();
        was_sent = owner != heap::owner_word(OwnerKind::process, estate.dead) &&
                   owner != heap::owner_word(OwnerKind::borrower, estate.dead);  // a version lies in it
        waiting.is_unsure = owner == heap::owner_word(OwnerKind::in_transit, estate.dead) ||
                            heap::owner_kind(owner) == OwnerKind::queue;
        waiting.call = {Address(address), header.state.load(), header.extent_bytes};
      }
    }
    heap_.set_owner(pointer, heap::owner_word(OwnerKind::none, {}));
    if (!drop_joiner(heap_, pointer, remote, made)) {  // completed, so it had arrived
      forget_sent(estate, waiting);
    } else if (was_sent) {
      estate.waiting.push_back(waiting);
    } else {  // nobody will complete it
      static_cast<void>(heap_.free_shallow(pointer));
    }
  }
  send_frees(remote);
  for (const GlobalPointer& pointer : made) peers_.free_made_later(pointer);
}

void Reaper::settle_tasks(Estate& estate, const std::vector<tasks::Held>& held) {
  for (const tasks::Held& task : held) {
    if (task.fate.phase == TaskPhase::Queued) {  // it had not begun
      queue_.run_again(task);
      continue;
    }
    const bool has_returned = task.fate.phase == TaskPhase::Returned || task.fate.phase == TaskPhase::Settled;
    if (has_returned) {  // it died before its completion was acknowledged
      release_versions(heap_, task.completion, estate.dead);
      estate.reports.push_back({task, tasks::RecordState::done, task.completion});
      continue;
    }
    const auto is_below = [&](const Waiting& each) { return each.has_lends && each.under == task.entry.id(); };
    estate.dying.push_back({task, static_cast<std::uint32_t>(std::ranges::count_if(estate.waiting, is_below))});
    Dying& dying = estate.dying.back();
    dying.held.fate.below = dying.below;
    if (is_orphan(task.entry.record)) dying.held.fate = protocol::apply(dying.held.fate, TaskEvent::LenderLost).record;
    if (dying.below == 0) look_below(estate, dying);
    const TaskStep step = protocol::apply(dying.held.fate, TaskEvent::WorkerLost);
    queue_.decide(task, step.record);
    dying.held.fate = step.record;
  }
}

// A task below may have written in place, and the dead worker not have taken that in. Where it is known already that
// something was written, what is half written gets a new colour, and tables that lie here name what there is.
void Reaper::look_below(const Estate& estate, Dying& dying) {
  tasks::Held& held = dying.held;
  if (!held.fate.forbidden && std::ranges::find(estate.lenders, held.entry.id()) == estate.lenders.end()) return;
  const Result<heap::Block> call = heap_.partition().find(held.entry.task.address, held.entry.task.colour);
  if (!call.ok()) return;
  for (const ChildPointer& child : call.value().children()) {
    const bool is_whole = (child.flags & (ChildPointer::kMutable | ChildPointer::kPart)) == ChildPointer::kMutable;
    if (!is_whole || !look_at_lent(heap_, peers_, child.pointer(), kNoServer).is_written) continue;
    held.fate = protocol::apply(held.fate, TaskEvent::ForbidRollback).record;
  }
}

void Reaper::report(Estate& estate, const tasks::Held& held, bool is_poisoned) {
  if (held.fate.orphaned) {
    // Nobody hears of it. Whoever had lent what it wrote finds another version than he lent.
    if (is_poisoned) static_cast<void>(lends_now(heap_, held.entry.task, true));
    forget_task(held);
    return;
  }
  if (!is_poisoned && held.retries > 0) {
    queue_.run_again(held);
    return;
  }
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const tasks::Loss loss{is_poisoned ? 1U : 0U, estate.pid,
                         static_cast<std::uint64_t>(
                             std::chrono::duration_cast<std::chrono::nanoseconds>(now).count())};
  // Without room for the report the loss is told without it: the joiner then poisons what may have been written.
  const auto block = write_loss(heap_, lends_now(heap_, held.entry.task, is_poisoned), loss, estate.reason);
  estate.reports.push_back({held, tasks::RecordState::lost, block.ok() ? block.value() : GlobalPointer{}});
}

bool Reaper::send(const Report& report) {
  const Status sent = deliver(heap_, peers_, report.held.entry.record, report.state, report.block,
                              report.held.fate.forbidden);
  if (sent.code() == Code::timed_out) return false;
  forget_task(report.held);
  return true;
}

// The call block goes, with the boxes in it that the task had not taken out.
void Reaper::forget_task(const tasks::Held& held) {
  std::vector<GlobalPointer> remote;
  static_cast<void>(heap_.free(held.entry.task, remote));
  send_frees(remote);
  queue_.finish(held.entry);
}

// The call of a record never arrived anywhere: what it carried dies with its sender.
void Reaper::lose_undelivered(const Waiting& waiting) {
  std::vector<GlobalPointer> remote;
  static_cast<void>(heap_.free(waiting.call, remote));
  static_cast<void>(heap_.free_shallow(waiting.record));
  send_frees(remote);
}

// A call that arrived elsewhere did so as a copy: the block that was sent is left. (A local one is its entry's.)
void Reaper::forget_sent(const Estate& estate, const Waiting& waiting) {
  const std::uint64_t in_transit = heap::owner_word(OwnerKind::in_transit, estate.dead);
  if (heap_.change_owner(waiting.call, in_transit, heap::owner_word(OwnerKind::none, {})))
    static_cast<void>(heap_.free_shallow(waiting.call));
}

// What the dead process owned. Of the completions that it had opened, also what it had not taken.
void Reaper::free_estate(const Estate& estate) {
  std::vector<GlobalPointer> completions;
  heap_.partition().each_live_block([&](const heap::BlockInfo& block) {
    if (block.codec == tasks::kCompletionCodec && block.owner == heap::owner_word(OwnerKind::process, estate.dead))
      completions.push_back(block.pointer);
  });
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  for (const GlobalPointer& completion : completions) free_untaken(heap_, completion, remote, made);
  heap_.free_owned_by(estate.dead, remote);
  send_frees(remote);
  for (const GlobalPointer& pointer : made) peers_.free_made_later(pointer);
}

// Whether the task of a dropped record has ended: whoever completed it has freed the record.
bool Reaper::has_ended(const Estate& estate, Waiting& waiting) {
  heap::Partition& partition = heap_.partition();
  const tasks::Record* record = Queue::find_record(partition, waiting.record);
  if (record != nullptr) waiting.target = static_cast<ServerId>(record->server.load());  // takeovers.hpp
  const bool is_here = waiting.target == partition.server();
  const Clock::time_point now = Clock::now();
  if (waiting.is_unsure) {
    const bool is_known =
        queue_.knows(waiting.record) || (!is_here && peers_.inquire(waiting.target, waiting.record).ok());
    const bool is_gone = Queue::find_record(partition, waiting.record) == nullptr;
    const bool is_late = is_here || now - waiting.since > std::chrono::milliseconds(kLostCallMs);
    if (!is_known && !is_gone && !is_late) return false;
    waiting.is_unsure = false;
    if (!is_known && !is_gone) {
      lose_undelivered(waiting);
      return true;
    }
    forget_sent(estate, waiting);
  }
  // If its server is lost, the record goes once nothing below it can run any more: Server::settle_records().
  return Queue::find_record(partition, waiting.record) == nullptr;
}

bool Reaper::is_orphan(const GlobalPointer& record) const noexcept {
  return std::ranges::any_of(losses_, [&](const Loss& loss) {
    return record.address.server() == loss.server && incarnation_of(record.colour) <= loss.incarnation;
  });
}

void Reaper::lose(ServerId lost, std::uint16_t incarnation) {
  std::erase_if(losses_, [&](const Loss& loss) { return loss.server == lost; });
  losses_.push_back({lost, incarnation});
  for (Estate& estate : estates_) {
    for (Dying& dying : estate.dying) {
      if (!is_orphan(dying.held.entry.record)) continue;
      dying.held.fate = protocol::apply(dying.held.fate, TaskEvent::LenderLost).record;
      queue_.decide(dying.held, dying.held.fate);
    }
  }
}

Reaper::Fence Reaper::fence() {
  std::vector<GlobalPointer> queued;
  std::vector<tasks::Entry> running;
  for (const Loss& loss : losses_) queue_.orphan(loss.server, loss.incarnation, queued, running);
  std::vector<GlobalPointer> remote;
  for (const GlobalPointer& task : queued) static_cast<void>(heap_.free(task, remote));
  send_frees(remote);
  Fence fence{.is_closed = running.empty(), .pids = {}};
  const std::vector<heap::ProcessInfo> processes = heap_.partition().processes();
  for (const tasks::Entry& entry : running) {
    const auto worker = std::ranges::find(processes, entry.worker, &heap::ProcessInfo::id);
    if (worker != processes.end()) fence.pids.push_back(worker->pid);  // else it is dead, and what it lent on runs
  }
  return fence;
}

// What it had in shared objects; those of other servers are told when all else is done.
void Reaper::bury(Estate& estate) {
  heap::Partition& partition = heap_.partition();
  const sync::Who dead = sync::Who::make(partition.server(), estate.dead);
  sync::bury_everywhere(heap_, [dead](sync::Who who) { return who == dead; }, estate.dead);
  for (const ServerId server : partition.servers()) {
    if (server != partition.server()) estate.untold.push_back(server);
  }
}

// False: it could not be reached.
bool Reaper::tell(const Estate& estate, ServerId server) {
  std::vector<std::byte> none;
  const sync::Who dead = sync::Who::make(heap_.partition().server(), estate.dead);
  const auto told = peers_.shared(server, {}, wire::SharedVerb::bury, {dead.raw(), 0, 0, 0}, {}, none);
  return told.ok() || told.status().code() != Code::server_lost;
}

// True while something is still out.
bool Reaper::go_on(Estate& estate) {
  std::erase_if(estate.waiting, [&](Waiting& waiting) {
    if (!has_ended(estate, waiting)) return false;
    for (Dying& dying : estate.dying) {
      if (!waiting.has_lends || waiting.under != dying.held.entry.id()) continue;
      if (dying.held.fate.below == 1) look_below(estate, dying);
      dying.held.fate = protocol::apply(dying.held.fate, TaskEvent::LendBelowEnded).record;
      queue_.decide(dying.held, dying.held.fate);
    }
    return true;
  });
  std::erase_if(estate.dying, [&](const Dying& dying) {
    const TaskPhase phase = dying.held.fate.phase;
    const bool is_over = phase == TaskPhase::Lost || phase == TaskPhase::Settled;
    if (!is_over) return false;
    report(estate, dying.held, dying.held.fate.forbidden);
    return true;
  });
  std::erase_if(estate.reports, [this](const Report& report) { return send(report); });
  const bool has_lends = std::ranges::any_of(estate.waiting, [](const Waiting& each) { return each.has_lends; });
  if (!estate.is_freed && !has_lends && estate.dying.empty()) {
    free_estate(estate);
    estate.is_freed = true;
  }
  std::erase_if(estate.untold, [this](ServerId server) { return heap_.partition().endpoint(server).port == 0; });
  if (!estate.untold.empty() && Clock::now() >= estate.next_telling) {
    // What it had received and opened is freed before they hear that it has died: the rest goes with what is in it.
    static_cast<void>(peers_.flush_frees());
    std::erase_if(estate.untold, [&](ServerId server) { return tell(estate, server); });
    estate.next_telling = Clock::now() + std::chrono::milliseconds(kTellAgainMs);
  }
  return !estate.waiting.empty() || !estate.reports.empty() || !estate.untold.empty() || !estate.is_freed;
}

}  // namespace drust::server
