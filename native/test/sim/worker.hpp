// What runs on every server for the owners: a worker that takes tasks, and the housekeeper that sends frees.
#pragma once

#include "protocol/ownership.hpp"
#include "protocol/ownership_lend.hpp"
#include "test/sim/access.hpp"

namespace drust::test {

class Worker {
 public:
  Worker(Cluster& cluster, Site& site) : c_(cluster), site_(site) {}

  void run() {
    while (site_.is_up()) {
      const auto entry = site_.machine.queue->take(0);
      if (entry.ok()) {
        run_task(entry.value());
      } else if (c_.clients == 0) {
        return;
      } else {
        site_.doze(500'000);
      }
    }
  }

 private:
  using EventKind = protocol::EventKind;
  using Step = protocol::Step;

  struct Outcome {
    Code code = Code::ok;
    Numbers numbers{};
    GlobalPointer value;
  };

  void run_task(const tasks::Entry& entry) {
    const auto body = site_.machine.read_body<TaskBody>(entry.task);
    c_.say("server %u starts task %u, kind %u, on object %u", site_.id(), body.id, body.kind, body.object);
    if (++c_.facts(body.id).starts > 1) c_.wrong("task %u was run twice", body.id);
    protocol::TaskRecord task = protocol::apply({}, protocol::TaskEvent::Start).record;
    Outcome outcome = body.kind == TaskBody::kRead    ? read(body)
                      : body.kind == TaskBody::kWrite ? write(body)
                                                      : write_part(body);
    task = protocol::apply(task, protocol::TaskEvent::Return).record;
    const CompletionBody said{body.id, static_cast<std::uint32_t>(outcome.code), outcome.numbers, outcome.value};
    const GlobalPointer completion = site_.machine.make_body(said, tasks::kCompletionCodec);
    if (site_.is_here(entry.record)) {
      const auto met = tasks::Queue::complete(*site_.machine.heap, entry.record, tasks::RecordState::done, completion);
      if (met != tasks::Delivery::applied) free_block(c_, site_, completion);
      site_.wake();
    } else {
      complete(entry.record, completion, task, body.id);
      free_block(c_, site_, completion);
    }
    site_.machine.queue->finish(entry);
    free_block(c_, site_, entry.task);
  }

  // Until the record's server has said that it heard; sometimes once more.
  void complete(const GlobalPointer& record, const GlobalPointer& completion, protocol::TaskRecord task,
                std::uint32_t id) {
    std::uint64_t repeats = c_.dice.once_in(4) ? 1 : 0;
    for (std::uint64_t pause_us = 5'000; site_.is_up(); pause_us = std::min<std::uint64_t>(2 * pause_us, 500'000)) {
      const Status sent = c_.call("complete", [&] { return site_.peers->complete(record, 1, completion); });
      if (sent.ok()) {
        if (c_.facts(id).is_given_up) ++c_.seen.late_outcomes;
        if (repeats-- == 0) break;
        ensure(protocol::apply(task, protocol::TaskEvent::Resend).ok, "what has returned may be said again");
        continue;
      }
      repeats = 0;
      if (sent.code() != Code::server_lost && sent.code() != Code::closed) return;  // call() has said so
      c_.fibers.sleep(pause_us);
    }
    (void)protocol::apply(task, protocol::TaskEvent::Acknowledge);
  }

  Outcome read(const TaskBody& body) {
    protocol::OwnerState state = protocol::reference_state(protocol::Ceiling::Shared);
    state = protocol::apply(state, {EventKind::Borrow}).state;
    const Status status = Reader{c_, site_, body.id}.read_shared(body.value, body.object, body.numbers);
    state = protocol::apply(state, {EventKind::BorrowEnd}).state;
    if (!protocol::apply(state, {EventKind::Return}).ok()) c_.wrong("a reader cannot return");
    return {status.code(), body.numbers, body.value};
  }

  // The value moves here, or to a new block if it is here: what was lent stays as it is, the pre-image.
  Outcome write(const TaskBody& body) {
    Reader reader{c_, site_, body.id};
    protocol::OwnerState state = protocol::reference_state(protocol::Ceiling::Mutable);
    const std::uint8_t where = site_.is_here(body.value) ? 0 : protocol::kElsewhere;
    const Step begun = protocol::apply(state, {EventKind::BorrowMut, where});
    const bool is_elsewhere = (begun.actions & protocol::kMoveHere) != 0;
    if (!is_elsewhere && (begun.actions & protocol::kMoveToNewBlock) == 0)
      c_.wrong("a borrower was told to write into the block it was lent");
    const auto moved = is_elsewhere ? reader.fetch(body.value, body.object, body.numbers)
                                    : site_.machine.heap->duplicate(body.value);
    if (!moved.ok()) {
      if (!is_elsewhere) (void)reader.judged(moved.status(), body.value);
      state = protocol::apply(begun.state, {EventKind::BorrowMutAborted}).state;
      return {moved.status().code(), body.numbers, body.value};
    }
    const GlobalPointer mine = moved.value();
    if (c_.config.bug == SimBug::pre_image_freed) free_block(c_, site_, body.value);
    c_.facts(body.id).made.push_back(mine);
    state = is_elsewhere ? protocol::apply(begun.state, {EventKind::Relocated}).state : begun.state;
    reader.write(mine, body.object, body.new_number);
    const Step ended = protocol::apply(state, {EventKind::BorrowMutEnd});
    if ((ended.actions & protocol::kBumpColour) != 0) c_.wrong("a new block's colour was told to nobody");
    const Step returned = protocol::apply(ended.state, {EventKind::Return, where});
    if ((returned.actions & protocol::kSendCompletion) == 0) c_.wrong("a writer cannot return");
    const Numbers numbers{body.new_number, body.new_number};
    c_.ledger.enter(mine, body.object, numbers);
    c_.ledger.tell(mine);
    return {Code::ok, numbers, mine};
  }

  // Half of a value that stays where it is: read, and written back into its place.
  Outcome write_part(const TaskBody& body) {
    const std::uint64_t value_bytes = value_bytes_of(body.value);
    const Half place = half_of(value_bytes, body.part);
    std::vector<std::byte> bytes(place.bytes);
    const wire::Region region{place.offset_bytes, place.bytes, 1, 0};
    if (site_.is_here(body.value)) {
      if (Version* version = c_.ledger.find(body.value); version != nullptr) version->is_dirty = true;
      const auto found = site_.machine.partition->find(body.value.address, body.value.colour);
      if (!found.ok()) return {found.status().code(), {}, body.value};
      write_words(found.value().buffer(0).subspan(place.offset_bytes, place.bytes), body.object, body.new_number);
      return {Code::ok, {}, body.value};
    }
    Reader reader{c_, site_, body.id};
    Status status = reader.judged(
        c_.call("read_region", [&] { return site_.peers->read_region(body.value, region, bytes); }), body.value);
    if (!status.ok()) return {status.code(), {}, body.value};
    if (!reader.is_nobody() && !holds_words(bytes, body.object, body.numbers[body.part]))
      c_.wrong("object %u: a part is not what it was when it was lent", body.object);
    write_words(bytes, body.object, body.new_number);
    if (Version* version = c_.ledger.find(body.value); version != nullptr) version->is_dirty = true;
    status = reader.judged(
        c_.call("write_region", [&] { return site_.peers->write_region(body.value, region, bytes); }), body.value);
    return {status.code(), {}, body.value};
  }

  // From the extent alone, as the block may be elsewhere: a header and one entry of the buffer table lie before.
  static std::uint64_t value_bytes_of(const GlobalPointer& pointer) noexcept {
    return pointer.extent_bytes - 2 * kBlockAlignment;
  }

  Cluster& c_;
  Site& site_;
};

// Sends the frees that no request took along, and some of them again; closes who does not prove himself.
inline void keep_house(Cluster& cluster, Site& site) {
  while (site.is_up()) {
    const bool is_last = cluster.clients == 0;
    if (std::exchange(site.has_frees, false)) {
      cluster.fibers.sleep(cluster.dice.below(6000));
      if (!site.peers->flush_frees() && !is_last) site.has_frees = true;
      if (!is_last && cluster.dice.once_in(4) && !cluster.freed.empty()) {
        const auto [again, is_shallow, by] = cluster.freed[cluster.dice.below(cluster.freed.size())];
        static_cast<void>(by);
        const auto now = cluster.site_of(again).machine.partition->find(again.address, kNoColour);
        if (now.ok()) ++cluster.seen.frees_at_reused_address;
        if (!site.is_here(again)) site.free_later(again, is_shallow);
      }
    } else if (is_last) {
      return;
    } else {
      site.doze(300'000);
      site.close_strangers();
    }
  }
}

}  // namespace drust::test
