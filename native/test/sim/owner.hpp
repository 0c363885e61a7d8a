// A program that owns values and lends them: a random one of a few steps, in which every decision about
// ownership is protocol::apply()'s, as in the runtime.
#pragma once

#include <optional>
#include <vector>

#include "protocol/ownership.hpp"
#include "test/sim/access.hpp"

namespace drust::test {

class Owner {
 public:
  Owner(Cluster& cluster, Site& home, std::uint64_t seed) : c_(cluster), home_(home), dice_(seed) {}

  void run() {
    for (std::uint64_t left = 4 + dice_.below(8); left > 0 && c_.violation.empty(); --left) {
      if (values_.size() < 2 || (values_.size() < 4 && dice_.once_in(4))) create();
      take_step(any());
      if (out_.size() > 2 || (!out_.empty() && dice_.once_in(3))) join(out_.front());
      if (dice_.once_in(3)) c_.fibers.sleep(dice_.below(2000));
    }
    while (!out_.empty()) join(out_.front());
    while (!values_.empty()) drop(values_.back());
  }

 private:
  using Event = protocol::Event;
  using EventKind = protocol::EventKind;
  using Step = protocol::Step;

  struct Value {
    std::uint32_t object = 0;
    protocol::OwnerState state;
    GlobalPointer pointer;
    Numbers numbers{};
  };
  struct Lend {
    std::uint32_t task = 0;
    std::uint32_t kind = 0;
    std::uint32_t object = 0;
    std::uint32_t part = 0;
    std::uint32_t new_number = 0;
    GlobalPointer record;
    ServerId target = 0;
    std::uint64_t target_epoch = 0;
  };

  Reader reader() { return {c_, home_}; }
  Value& any() { return values_[dice_.below(values_.size())]; }
  Value& value_of(std::uint32_t object) {
    for (Value& value : values_) {
      if (value.object == object) return value;
    }
    ensure(false, "what is lent is kept");
    return values_.front();
  }
  ServerId any_server() { return static_cast<ServerId>(dice_.below(Cluster::kServers)); }
  [[nodiscard]] std::uint8_t where(const Value& value) const {
    return home_.is_here(value.pointer) ? 0 : protocol::kElsewhere;
  }

  void create() {
    Value value;
    value.object = ++c_.objects;
    const std::uint32_t number = c_.next_number();
    value.numbers = {number, number};
    static constexpr std::uint64_t kSizes[] = {16, 200, 1000, 1000, 3000, 3000, 3000, 20'000};
    std::vector<std::byte> bytes(kSizes[dice_.below(std::size(kSizes))]);
    for (const std::uint32_t half : {0U, 1U}) {
      const Half place = half_of(bytes.size(), half);
      write_words(std::span(bytes).subspan(place.offset_bytes, place.bytes), value.object, number);
    }
    value.pointer = home_.machine.make(bytes, 1);
    c_.ledger.enter(value.pointer, value.object, value.numbers);
    values_.push_back(value);
  }

  void take_step(Value& value) {
    switch (dice_.below(11)) {
      case 0:
      case 1: read(value); break;
      case 2:
      case 3: write(value); break;
      case 4:
      case 5: lend(value, TaskBody::kRead); break;
      case 6:
      case 7: lend(value, TaskBody::kWrite); break;
      case 8: dice_.once_in(2) ? split(value) : put(value); break;
      case 9: send_family(); break;
      default:
        if (value.state.idle()) drop(value);
        break;
    }
  }

  // What the protocol wants done, in the order of its bits; moving and lending are the callers'.
  void perform(Value& value, const Step& step, const GlobalPointer& left) {
    value.state = step.state;
    if ((step.actions & protocol::kBumpColour) != 0 && c_.config.bug != SimBug::colour_kept) {
      const auto fresh = home_.machine.heap->recolour(value.pointer);
      if (!fresh.ok()) return c_.wrong("the owner's block has another colour than the owner's");
      value.pointer = fresh.value();
    }
    if ((step.actions & protocol::kPublish) != 0) c_.ledger.tell(value.pointer);
    if ((step.actions & protocol::kFreeOldBlock) != 0) free_block(c_, home_, left);
    if ((step.actions & protocol::kFreeTree) != 0) free_block(c_, home_, value.pointer);
    c_.ledger.enter(value.pointer, value.object, value.numbers);
  }
  void perform(Value& value, const Step& step) { perform(value, step, value.pointer); }

  void read(Value& value) {
    const Step begun = protocol::apply(value.state, {EventKind::Borrow});
    if (!begun.ok()) return;
    value.state = begun.state;
    (void)reader().read_shared(value.pointer, value.object, value.numbers);
    value.state = protocol::apply(value.state, {EventKind::BorrowEnd}).state;
  }

  // The start of a mutable borrow or a split; false if the bytes could not be brought here.
  bool begin_write(Value& value, const Event& event) {
    Step begun = protocol::apply(value.state, event);
    if (c_.config.bug == SimBug::write_unheld && value.state.shared_lends > 0) {
      protocol::OwnerState forgetful = value.state;
      forgetful.phase = protocol::Phase::Owned;
      forgetful.shared_lends = 0;
      begun = protocol::apply(forgetful, event);
    }
    if (!begun.ok()) return false;
    value.state = begun.state;
    if ((begun.actions & protocol::kMoveHere) == 0) return true;
    const auto moved = reader().fetch(value.pointer, value.object, value.numbers);
    if (!moved.ok()) {
      value.state = protocol::apply(value.state, {EventKind::BorrowMutAborted}).state;
      return false;
    }
    const GlobalPointer left = std::exchange(value.pointer, moved.value());
    perform(value, protocol::apply(value.state, {EventKind::Relocated}), left);
    return true;
  }

  void write(Value& value) {
    if (!begin_write(value, {EventKind::BorrowMut, where(value)})) return;
    const std::uint32_t number = c_.next_number();
    reader().write(value.pointer, value.object, number);
    value.numbers = {number, number};
    perform(value, protocol::apply(value.state, {EventKind::BorrowMutEnd}));
  }

  // Moves the value to another server by a copy there.
  void put(Value& value) {
    const ServerId target = any_server();
    if (target == home_.id() || !home_.is_here(value.pointer)) return;
    if (!begin_write(value, {EventKind::BorrowMut})) return;
    const auto there = c_.call("put_block", [&] { return home_.peers->put_block(target, value.pointer); });
    if (!there.ok()) {
      c_.unanswered.push_back({target, value.object, value.numbers});
      value.state = protocol::apply(value.state, {EventKind::BorrowMutAborted}).state;
      return;
    }
    const GlobalPointer left = std::exchange(value.pointer, there.value());
    perform(value, protocol::apply(value.state, {EventKind::Relocated}), left);
    perform(value, protocol::apply(value.state, {EventKind::BorrowMutEnd}));
  }

  // A parent that is sent away and freed there: its server sends the free of the child, which stayed, back here.
  void send_family() {
    const ServerId target = any_server();
    if (target == home_.id()) return;
    const std::uint32_t object = ++c_.objects;
    const std::uint32_t number = c_.next_number();
    std::vector<std::byte> bytes(208);
    for (const std::uint32_t half : {0U, 1U}) {
      const Half place = half_of(bytes.size(), half);
      write_words(std::span(bytes).subspan(place.offset_bytes, place.bytes), object, number);
    }
    const GlobalPointer child = home_.machine.make(bytes, 1);
    const GlobalPointer parent = home_.machine.make(bytes, 1, child);
    const auto there = c_.call("put_block", [&] { return home_.peers->put_block(target, parent); });
    if (there.ok()) {
      free_block(c_, home_, parent);
      c_.freed.push_back({there.value(), false, &home_});
      c_.freed.push_back({child, false, &c_.site_that_made(there.value())});
      home_.free_later(there.value(), false);
      return;
    }
    c_.unanswered.push_back({target, object, {number, number}});
    std::vector<GlobalPointer> remote;
    if (!home_.machine.heap->free(parent, remote).ok() || home_.machine.is_live(child))
      c_.wrong("a parent and its child cannot be freed here");
  }

  void drop(Value& value) {
    const Step step = protocol::apply(value.state, {EventKind::Drop});
    if (!step.ok()) {
      if (c_.config.bug == SimBug::none) c_.wrong("an idle value cannot be dropped");
      return erase(value);
    }
    perform(value, step);
    erase(value);
  }
  void erase(Value& value) {
    value = values_.back();
    values_.pop_back();
  }

  // --- tasks ---

  void lend(Value& value, std::uint32_t kind) {
    const bool is_write = kind == TaskBody::kWrite;
    const Step step =
        protocol::apply(value.state, {is_write ? EventKind::LendMut : EventKind::LendShared, where(value)});
    if (!step.ok()) return;
    perform(value, step);
    send(value, kind, 0);
  }

  void split(Value& value) {
    if (!begin_write(value, {EventKind::SplitMut, where(value), 2})) return;
    for (const std::uint32_t part : {0U, 1U}) {
      perform(value, protocol::apply(value.state, {EventKind::PartLend}));
      send(value, TaskBody::kPart, part);
    }
  }

  void send(const Value& value, std::uint32_t kind, std::uint32_t part) {
    Lend lend{++last_task(), kind, value.object, part, c_.next_number(), {}, any_server(), 0};
    lend.target_epoch = c_.site(lend.target).epoch;
    const auto record = tasks::Queue::make_record(*home_.machine.heap, lend.target);
    ensure(record.ok(), "a simulated heap has room");
    lend.record = record.value();
    const auto block = home_.machine.partition->find(lend.record.address, lend.record.colour);
    const auto* words = reinterpret_cast<const tasks::Record*>(block.value().buffer(0).data());
    c_.records[lend.record.colour * 64 + home_.id()] = words->state.word.load();
    (void)c_.facts(lend.task);
    const TaskBody body{lend.task, kind, value.object, part, value.numbers, lend.new_number, 0, value.pointer};
    const GlobalPointer task = home_.machine.make_body(body, tasks::kTaskCodec);
    out_.push_back(lend);
    if (lend.target == home_.id()) {
      ensure(home_.machine.queue->push(task, lend.record).ok(), "a simulated queue has room");
      home_.wake();
      return;
    }
    const auto submit = [&] {
      return c_.call("submit", [&] { return home_.peers->submit(lend.target, task, lend.record); });
    };
    Status status = submit();
    if (!status.ok() && c_.config.bug == SimBug::submit_twice) status = submit();
    free_block(c_, home_, task);
    if (!status.ok()) give_up(lend);
  }
  std::uint32_t& last_task() { return c_.last_task; }

  // The record's one outcome is that the task is lost, unless it has another already.
  void give_up(const Lend& lend) {
    const auto met = tasks::Queue::complete(*home_.machine.heap, lend.record, tasks::RecordState::lost, {});
    if (met != tasks::Delivery::applied) return;
    c_.facts(lend.task).is_given_up = true;
    ++c_.seen.lost_tasks;
  }

  void join(Lend lend) {
    std::erase_if(out_, [&](const Lend& other) { return other.task == lend.task; });
    tasks::Record* record = nullptr;
    for (std::uint64_t rounds = 0; record == nullptr; ++rounds) {
      const auto waited = tasks::Queue::wait(*home_.machine.partition, lend.record, 0);
      if (waited.ok()) {
        record = waited.value();
      } else if (waited.status().code() != Code::timed_out) {
        return c_.wrong("the record of a task is gone: %s", waited.status().detail().c_str());
      } else if (rounds % 8 < 7) {
        home_.doze(100'000);
      } else if (c_.site(lend.target).epoch != lend.target_epoch ||
                 (lend.target != home_.id() &&
                  !c_.call("ping", [&] { return home_.peers->ping(lend.target); }).ok())) {
        give_up(lend);
      }
      if (rounds > 4000) return c_.wrong("task %u never ended", lend.task);
    }
    const auto state = record->state.load();
    const GlobalPointer completion = record->completion();
    const std::uint64_t word = record->state.word.load();
    if (dice_.once_in(2)) c_.fibers.sleep(dice_.below(3000));  // a repeated completion changes nothing
    const bool has_completion = state == tasks::RecordState::done;
    if (record->state.word.load() != word || (has_completion && !home_.machine.is_live(completion)))
      c_.wrong("task %u had two outcomes", lend.task);
    const auto body = home_.machine.read_body<CompletionBody>(completion);
    if (has_completion) {
      if (body.id != lend.task) c_.wrong("task %u was completed with the outcome of task %u", lend.task, body.id);
      free_block(c_, home_, completion);
    }
    free_block(c_, home_, lend.record);
    settle(lend, has_completion ? std::optional(body) : std::nullopt);
  }

  void settle(const Lend& lend, const std::optional<CompletionBody>& outcome) {
    Value& value = value_of(lend.object);
    if (lend.kind == TaskBody::kRead) {
      perform(value, protocol::apply(value.state, {EventKind::LendSharedEnd}));
    } else if (lend.kind == TaskBody::kWrite && !outcome.has_value()) {
      perform(value, protocol::apply(value.state, {EventKind::LendMutRolledBack}));
    } else if (lend.kind == TaskBody::kWrite) {
      const GlobalPointer left = std::exchange(value.pointer, outcome->value);
      value.numbers = outcome->numbers;
      std::erase(c_.facts(lend.task).made, outcome->value);  // ours now
      const bool has_moved = left.address != value.pointer.address;
      const std::uint8_t facts = has_moved ? std::uint8_t{protocol::kNewAddress} : std::uint8_t{0};
      perform(value, protocol::apply(value.state, {EventKind::LendMutCommitted, facts}), left);
    } else {
      end_part(value, lend, outcome.has_value() && outcome->code == 0);
    }
  }

  void end_part(Value& value, const Lend& lend, bool is_whole) {
    if (is_whole) {
      value.numbers[lend.part] = lend.new_number;
    } else {
      ++c_.seen.parts_failed;
      failed_.push_back(lend);
    }
    value.state = protocol::apply(value.state, {is_whole ? EventKind::PartEnd : EventKind::PartFailed}).state;
    if (value.state.parts_out > 0) return;
    // A part whose writer was lost is as before or as wanted, never in between.
    const auto bytes = reader().local_bytes(value.pointer);
    for (const Lend& failed : failed_) {
      if (failed.object != value.object || bytes.empty()) continue;
      const Half place = half_of(bytes.size(), failed.part);
      const auto part = bytes.subspan(place.offset_bytes, place.bytes);
      if (holds_words(part, value.object, failed.new_number)) {
        value.numbers[failed.part] = failed.new_number;
      } else if (!holds_words(part, value.object, value.numbers[failed.part])) {
        c_.wrong("object %u: a part was left half written", value.object);
      }
    }
    std::erase_if(failed_, [&](const Lend& failed) { return failed.object == value.object; });
    if (!holds(bytes, value.object, value.numbers))
      c_.wrong("object %u: a part that was written is gone", value.object);
    perform(value, protocol::apply(value.state, {EventKind::Join}));
    if (value.state.has(protocol::kPoisoned))
      value.state = protocol::apply(value.state, {EventKind::ClearPoison}).state;
  }

  Cluster& c_;
  Site& home_;
  Dice dice_;
  std::vector<Value> values_;
  std::vector<Lend> out_;
  std::vector<Lend> failed_;
};

}  // namespace drust::test
