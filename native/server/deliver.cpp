#include "server/deliver.hpp"

#include "base/kill_point.hpp"

namespace drust::server {
namespace {

using heap::ChildPointer;

// Nobody joins: the block goes with the result in it, and the new versions with it.
void free_unwanted(heap::Heap& heap, const GlobalPointer& completion, std::vector<GlobalPointer>& remote,
                   std::vector<GlobalPointer>& made) noexcept {
  heap::Partition& partition = heap.partition();
  if (const Result<heap::Block> block = partition.find(completion.address, completion.colour); block.ok()) {
    for (const ChildPointer& child : block.value().children()) {
      if ((child.flags & ChildPointer::kBorrowed) != ChildPointer::kMutable || child.address == 0) continue;
      if (partition.is_local(child.pointer().address)) {
        static_cast<void>(heap.free_made(child.pointer(), remote));
      } else {
        made.push_back(child.pointer());
      }
    }
  }
  static_cast<void>(heap.free(completion, remote));
}

// To a record of this partition, by whoever has the very block: not a copy that came over the wire. A worker may die
// right after it, before it could say so, and then its reaper comes with the same block once more.
void hand_over(heap::Heap& heap, const GlobalPointer& record, tasks::RecordState state,
               const GlobalPointer& completion, std::vector<GlobalPointer>& remote,
               std::vector<GlobalPointer>& made) noexcept {
  const std::uint64_t nobody = heap::owner_word(heap::OwnerKind::none, {});
  const std::uint64_t self = heap::owner_word(heap::OwnerKind::process, heap.process());
  static_cast<void>(heap.change_owner(completion, self, nobody));
  kill_point("deliver.completion.disowned");
  const tasks::Delivery delivery = tasks::Queue::complete(heap, record, state, completion);
  if (completion.is_null() || delivery == tasks::Delivery::applied) return;
  // Repeated: while the record is there, the block is what it holds. A joiner opens it, which makes it his, before he
  // frees the record; so if that is gone and the block is nobody's, whoever was to free it has died on the way.
  if (delivery == tasks::Delivery::repeated &&
      (tasks::Queue::find_record(heap.partition(), record) != nullptr || !heap.change_owner(completion, nobody, self)))
    return;
  free_unwanted(heap, completion, remote, made);
}

void free_all_later(Peers& peers, std::span<const GlobalPointer> remote, std::span<const GlobalPointer> made) {
  for (const GlobalPointer& pointer : remote) peers.free_later(pointer, false);
  for (const GlobalPointer& pointer : made) peers.free_made_later(pointer);
}

// What becomes of a completion after the answer of its record's server, which had `epoch` before it was asked.
Status close_sent(heap::Heap& heap, Peers& peers, std::uint64_t epoch, tasks::RecordState state, const Homecoming& sent,
                  Status status) {
  bool is_taken = status.ok();
  if (status.code() == Code::out_of_memory && !sent.completion.is_null()) {
    is_taken = false;
    auto instead = state;  // of a loss the joiner finds out by himself what was written
    if (state == tasks::RecordState::done)
      instead = sent.is_forbidden ? tasks::RecordState::refused_poisoned : tasks::RecordState::refused;
    status = peers.complete(sent.record, static_cast<std::uint32_t>(instead), {});
  }
  const heap::Endpoint now = heap.partition().endpoint(sent.record.address.server());
  if (status.code() == Code::server_lost && now.epoch == epoch && now.port != 0 && !heap.partition().is_closed()) {
    return Status(Code::timed_out, status.detail());
  }
  kill_point("deliver.completion.sent");
  if (sent.completion.is_null()) return status;
  if (is_taken) {
    static_cast<void>(heap.free_shallow(sent.completion));
    return status;
  }
  // Whoever waited is lost with the server, or has been told that it had no room.
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  free_unwanted(heap, sent.completion, remote, made);
  free_all_later(peers, remote, made);
  return status;
}

}  // namespace

void release_versions(heap::Heap& heap, const GlobalPointer& completion, heap::ProcessId worker) noexcept {
  heap::Partition& partition = heap.partition();
  const Result<heap::Block> block = partition.find(completion.address, completion.colour);
  if (!block.ok()) return;
  const std::uint64_t nobody = heap::owner_word(heap::OwnerKind::none, {});
  const auto release = [&](const GlobalPointer& pointer) {
    for (const heap::OwnerKind kind : {heap::OwnerKind::borrower, heap::OwnerKind::process})
      static_cast<void>(heap.change_owner(pointer, heap::owner_word(kind, worker), nobody));
  };
  release(completion);
  for (const ChildPointer& child : block.value().children()) {
    if ((child.flags & ChildPointer::kBorrowed) != ChildPointer::kMutable) continue;
    if (partition.is_local(child.pointer().address)) release(child.pointer());
  }
  kill_point("deliver.versions.released");
}

tasks::Delivery deliver_here(heap::Heap& heap, const GlobalPointer& record, tasks::RecordState state,
                  const GlobalPointer& completion, std::vector<GlobalPointer>& remote,
                  std::vector<GlobalPointer>& made) noexcept {
  // Before anybody can take it: from the next step on it is the joiner's.
  if (!completion.is_null()) heap.set_owner(completion, heap::owner_word(heap::OwnerKind::none, {}));
  const tasks::Delivery delivery = tasks::Queue::complete(heap, record, state, completion);
  if (completion.is_null() || delivery == tasks::Delivery::applied) return delivery;
  if (delivery == tasks::Delivery::unwanted) {
    free_unwanted(heap, completion, remote, made);
  } else {
    static_cast<void>(heap.free_shallow(completion));  // the first one carried the same children
  }
  return delivery;
}

// Whoever takes a version says so in the table, once the version has its new owner.
void free_untaken(heap::Heap& heap, const GlobalPointer& completion, std::vector<GlobalPointer>& remote,
                  std::vector<GlobalPointer>& made) noexcept {
  heap::Partition& partition = heap.partition();
  const Result<heap::Block> block = partition.find(completion.address, completion.colour);
  if (!block.ok()) return;
  const std::uint64_t nobody = heap::owner_word(heap::OwnerKind::none, {});
  const std::uint64_t self = heap::owner_word(heap::OwnerKind::process, heap.process());
  for (const ChildPointer& child : block.value().children()) {
    if ((child.flags & ChildPointer::kBorrowed) != ChildPointer::kMutable || child.address == 0) continue;
    if (!partition.is_local(child.pointer().address)) {
      made.push_back(child.pointer());
    } else if (heap.change_owner(child.pointer(), nobody, self)) {
      static_cast<void>(heap.free_made(child.pointer(), remote));
    }
  }
}

bool drop_joiner(heap::Heap& heap, const GlobalPointer& record, std::vector<GlobalPointer>& remote,
                 std::vector<GlobalPointer>& made) {
  heap::Partition& partition = heap.partition();
  if (tasks::Queue::refuse(partition, record)) return true;
  if (const auto done = tasks::Queue::wait(partition, record, 0); done.ok()) {
    const GlobalPointer completion = done.value()->completion();
    free_untaken(heap, completion, remote, made);
    const std::uint64_t nobody = heap::owner_word(heap::OwnerKind::none, {});
    const std::uint64_t self = heap::owner_word(heap::OwnerKind::process, heap.process());
    // One that was opened is its joiner's, and goes with him.
    if (heap.change_owner(completion, nobody, self)) static_cast<void>(heap.free(completion, remote));
  }
  static_cast<void>(heap.free_shallow(record));
  return false;
}

Status deliver(heap::Heap& heap, Peers& peers, const GlobalPointer& record, tasks::RecordState state,
               const GlobalPointer& completion, bool is_forbidden) {
  const ServerId server = record.address.server();
  if (!heap.partition().is_local(record.address)) {
    const std::uint64_t epoch = heap.partition().endpoint(server).epoch;
    Status sent = peers.complete(record, static_cast<std::uint32_t>(state), completion);
    return close_sent(heap, peers, epoch, state, {record, completion, is_forbidden}, std::move(sent));
  }
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  hand_over(heap, record, state, completion, remote, made);
  free_all_later(peers, remote, made);
  return {};
}

std::vector<Status> deliver_all(heap::Heap& heap, Peers& peers, ServerId server, std::span<const Homecoming> all) {
  const std::uint64_t epoch = heap.partition().endpoint(server).epoch;
  std::vector<Peers::Completion> completions;
  for (const Homecoming& each : all)
    completions.push_back({each.record, static_cast<std::uint32_t>(tasks::RecordState::done), each.completion});
  std::vector<Status> answers = peers.complete_all(server, completions);
  for (std::size_t index = 0; index < all.size(); ++index) {
    answers[index] =
        close_sent(heap, peers, epoch, tasks::RecordState::done, all[index], std::move(answers[index]));
  }
  return answers;
}

}  // namespace drust::server
