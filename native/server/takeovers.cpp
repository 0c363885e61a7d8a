#include "server/takeovers.hpp"

#include "base/limits.hpp"

namespace drust::server {

using tasks::Queue;
using tasks::RecordState;

Takeovers::Takeovers(heap::Heap& heap, Queue& queue, Peers& peers) : heap_(heap), queue_(queue), peers_(peers) {}

// Its result, or its loss, has been told; or the record is gone, which comes later.
bool Takeovers::has_completed(const GlobalPointer& record) const {
  const auto state = Queue::look(heap_.partition(), record);
  return !state || *state == RecordState::done || *state == RecordState::lost;
}

void Takeovers::name(const GlobalPointer& record, ServerId server) {
  if (tasks::Record* found = Queue::find_record(heap_.partition(), record); found != nullptr) found->server.store(server);
}

// It waits here again, at its old place.
void Takeovers::keep(const tasks::Held& held) {
  name(held.entry.record, heap_.partition().server());
  queue_.run_again(held);
}

// The entry is empty, and the block that was sent is gone; what it carried is the receiver's, or goes with it.
void Takeovers::finish(const tasks::Held& held, bool with_children) {
  std::vector<GlobalPointer> remote;
  if (with_children) {
    static_cast<void>(heap_.free(held.entry.task, remote));
  } else {
    static_cast<void>(heap_.free_shallow(held.entry.task));
  }
  for (const GlobalPointer& pointer : remote) peers_.free_later(pointer, false);
  queue_.finish(held.entry);
}

std::size_t Takeovers::give(ServerId thief, std::uint32_t most) {
  heap::Partition& partition = heap_.partition();
  const heap::Endpoint endpoint = partition.endpoint(thief);
  if (thief == partition.server() || endpoint.port == 0 || endpoint.by != kNoServer) return 0;
  std::size_t given = 0;
  bool is_answering = true;
  for (const tasks::Held& held : queue_.take_unbound(most)) {
    // A dropped record's task stays: the reaper of whoever dropped it looks for it here.
    if (!is_answering || Queue::look(partition, held.entry.record) != RecordState::pending) {
      queue_.run_again(held);
      continue;
    }
    name(held.entry.record, thief);
    const Status sent = peers_.submit(thief, held.entry.task, held.entry.record, held.retries);
    if (sent.ok()) {
      finish(held, false);
      partition.note_sent(thief, 1);
      ++given;
    } else if (sent.code() == Code::server_lost || sent.code() == Code::timed_out) {
      is_answering = false;
      open_.push_back({held, thief, endpoint.epoch, Clock::now()});
    } else {
      keep(held);
    }
  }
  return given;
}

// True when it is known what became of it.
bool Takeovers::go_on(const Open& open) {
  const GlobalPointer& record = open.held.entry.record;
  const heap::Endpoint now = heap_.partition().endpoint(open.thief);
  if (now.port == 0 || now.epoch != open.epoch) {
    // Settled already, unless the thief was lost before the record named it.
    static_cast<void>(Queue::complete(heap_, record, RecordState::lost, {}));
    finish(open.held, true);
    return true;
  }
  if (has_completed(record)) {  // it has run there
    finish(open.held, false);
    return true;
  }
  const Status found = peers_.inquire(open.thief, record);
  if (found.ok()) {
    finish(open.held, false);
    return true;
  }
  const bool is_late = Clock::now() - open.sent > std::chrono::milliseconds(kLostCallMs);
  if (found.code() != Code::not_found || !is_late) return false;
  if (has_completed(record)) {  // between the two looks
    finish(open.held, false);
  } else {
    keep(open.held);
  }
  return true;
}

std::size_t Takeovers::tend() {
  std::erase_if(open_, [this](const Open& open) { return go_on(open); });
  return open_.size();
}

}  // namespace drust::server
