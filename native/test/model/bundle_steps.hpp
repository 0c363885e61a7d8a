// bundle_steps.hpp: BundleModel: what may happen next, and what it does.
#pragma once

#include "test/model/bundle_model.hpp"

namespace drust::test::bundle {

class Stepper {
 public:
  Stepper(State& state, const Config& config) : s_(state), config_(config) {}

  void take(const Doing& doing) {
    Task& task = s_.tasks[doing.task];
    switch (doing.what) {
      case Do::Lend:
        s_.lent = 1;
        for (int object = 0; object < kObjects; ++object)
          tell_owner(object, {EventKind::LendMut});
        submit(task);
        return;
      case Do::Start:
        start(task);
        return;
      case Do::WriteBegin:
        begin_write(task, doing.object);
        return;
      case Do::WriteEnd:
        task.writing = 0;
        target(task, doing.object) = static_cast<Byte>(kAfter + doing.task);
        if (config_.child && doing.object == 1) s_.queued_free = 1;
        return;
      case Do::LendOn:
        ensure(tell(task, TaskEvent::LendBelow), "only a running task lends on");
        s_.lent_on = 1;
        submit(s_.tasks[1]);
        return;
      case Do::Return:
        for (int object = 0; object < kObjects; ++object)
          task.result[object] = seen(s_, doing.task, object);
        ensure(tell(task, TaskEvent::Return), "a task returns once, with nothing below it");
        return;
      case Do::Crash:
        crash(task);
        return;
      case Do::Undo:
        undo(task);
        if (config_.bug == Bug::RetryBeforeUndo) return;
        ensure(tell(task, TaskEvent::Retry), "what was undone is retried");
        return;
      case Do::Resend:
        tell(task, TaskEvent::Resend);
        return;
      case Do::Twice:
        --s_.duplicates_left;
        ++task.reports;
        return;
      case Do::Deliver:
        --task.reports;
        report(task, doing.task);
        return;
      case Do::Drop:
        for (int object = 0; object < kObjects; ++object) {
          tell_owner(object, {EventKind::Drop});
          s_.block[object] = kNone;
        }
        s_.child_left = 0;
        s_.dropped = 1;
        return;
    }
  }

  // What the task's pointer leads to.
  static Byte seen(const State& s, int index, int object) {
    const Task& task = s.tasks[index];
    if (task.committed[object] != kNone) return task.committed[object];
    if (task.fresh[object] != kNone) return task.fresh[object];
    return index == 0 ? s.block[object] : seen(s, 0, object);
  }

 private:
  [[nodiscard]] bool in_place(int object) const { return (config_.in_place >> object & 1) != 0; }

  // Where a write goes: the block that was lent, or a new one.
  Byte& target(Task& task, int object) { return in_place(object) ? s_.block[object] : task.fresh[object]; }

  void tell_owner(int object, const Event& event) {
    const protocol::Step step = apply(s_.owner[object].get(), event);
    ensure(step.ok(), "only what is allowed is offered");
    s_.owner[object].put(step.state);
  }

  void submit(Task& task) {
    task = {};
    task.retries = config_.retries;
    const int index = &task == s_.tasks ? 0 : 1;
    for (int object = 0; object < kObjects; ++object)
      task.found[object] = seen(s_, index, object);
  }

  void start(Task& task) {
    const int index = &task == s_.tasks ? 0 : 1;
    ensure(tell(task, TaskEvent::Start), "a queued task starts");
    task.alive = 1;
    ++task.attempts;
    for (int object = 0; object < kObjects - index; ++object) {
      if (seen(s_, index, object) != task.found[object]) s_.breaches |= kDirtyStart;
    }
    if (index != 0) return;
    const Task& below = s_.tasks[1];
    const bool runs = below.alive != 0 && static_cast<TaskPhase>(below.phase) == TaskPhase::Running;
    if (runs) s_.breaches |= kTwoWriters;
    s_.lent_on = 0;
  }

  void begin_write(Task& task, int object) {
    if (in_place(object) && config_.bug != Bug::ForbidNotRecorded) tell(task, TaskEvent::ForbidRollback);
    task.writing = static_cast<Byte>(object + 1);
    task.committed[object] = kNone;  // its own block again: that of the task below is left and freed
    target(task, object) = kTorn;
  }

  void crash(Task& task) {
    --s_.crashes_left;
    task.alive = task.writing = 0;
    const bool returned = static_cast<TaskPhase>(task.phase) == TaskPhase::Returned;
    if (returned) task.reports = 0;
    tell(task, TaskEvent::WorkerLost);
    if (returned && config_.bug == Bug::EntryClearedEarly) task.phase = static_cast<Byte>(TaskPhase::Settled);
  }

  // Frees what is tagged with the task, and with those that committed into it; their queued frees are
  // forgotten.
  void undo(Task& task) {
    task.undo_owed = 0;
    const bool under = task.alive != 0 && (task.fresh[0] != kNone || task.fresh[1] != kNone);
    if (under) s_.breaches |= kFreedUnder;
    for (int object = 0; object < kObjects; ++object)
      task.fresh[object] = task.committed[object] = kNone;
    if (&task != s_.tasks) return;
    if (config_.bug == Bug::FreesRunOnLoss && s_.queued_free != 0) s_.child_left = 0;
    s_.queued_free = 0;
  }

  bool tell(Task& task, TaskEvent event) {
    TaskRecord record{.phase = static_cast<TaskPhase>(task.phase),
                      .forbidden = task.forbidden != 0,
                      .retries = task.retries,
                      .below = task.below};
    const bool lost = event == TaskEvent::WorkerLost;
    if (lost && config_.bug == Bug::RetryAfterPoison) record.forbidden = false;
    if (lost && config_.bug == Bug::RetryWhileBelowRuns) record.below = 0;
    const TaskStep step = apply(record, event);
    if (!step.ok) return false;
    task.phase = static_cast<Byte>(step.record.phase);
    task.forbidden = step.record.forbidden;
    task.retries = step.record.retries;
    task.below = static_cast<Byte>(step.record.below);
    const bool again = (step.actions & protocol::kUndoForRetry) != 0;
    if (again) task.undo_owed = 1;  // the server's next step; a worker may look at the queue before it
    if (again && config_.bug == Bug::RetryBeforeUndo) tell(task, TaskEvent::Retry);
    if (!again && (step.actions & protocol::kReapTree) != 0) undo(task);
    constexpr std::uint32_t kReports =
        protocol::kSendTaskCompletion | protocol::kReportRolledBack | protocol::kReportPoisoned;
    if ((step.actions & kReports) != 0 || (again && config_.bug == Bug::RetryReported)) ++task.reports;
    return true;
  }

  // A report reaches the lender, and its acknowledgement the task's server.
  void report(Task& task, int index) {
    const auto phase = static_cast<TaskPhase>(task.phase);
    Outcome outcome = task.forbidden != 0 ? Outcome::Poisoned : Outcome::RolledBack;
    if (phase == TaskPhase::Returned) outcome = Outcome::Committed;
    const auto before = task.lend_ended != 0 ? protocol::LendPhase::Ended : protocol::LendPhase::Out;
    const EventKind kind = protocol::end_of_lend(outcome, false);
    const protocol::LendStep step = protocol::end_lend(before, kind, index != 0);
    if (step.apply_to_owner) {
      task.lend_ended = 1;
      if (index == 0) {
        end_of_both(task, outcome, step);
      } else {
        end_below(task, outcome);
      }
    }
    tell(task, TaskEvent::Acknowledge);
  }

  void end_of_both(Task& task, Outcome outcome, const protocol::LendStep& step) {
    for (int object = 0; object < kObjects; ++object) {
      Outcome own = outcome;
      const bool alone = config_.bug == Bug::OutcomePerLend && !in_place(object);
      if (alone && own == Outcome::Poisoned) own = Outcome::RolledBack;
      Event event{protocol::end_of_lend(own, false)};
      const Byte value = seen(s_, 0, object);
      const bool moved = task.fresh[object] != kNone || task.committed[object] != kNone;
      if (own == Outcome::Committed && moved) event.facts |= protocol::kNewAddress;
      tell_owner(object, event);
      if (own == Outcome::Committed) s_.block[object] = value;  // adopted; the old block is freed
      task.fresh[object] = task.committed[object] = kNone;
      s_.outcome[object] = static_cast<Byte>(static_cast<int>(own) + 1);
    }
    if (step.run_queued_frees && s_.queued_free != 0) s_.child_left = 0;
    s_.queued_free = 0;
  }

  void end_below(Task& below, Outcome outcome) {
    Task& task = s_.tasks[0];
    if (outcome == Outcome::Committed) {
      if (below.fresh[0] != kNone) {
        task.committed[0] = below.fresh[0];
        task.fresh[0] = below.fresh[0] = kNone;  // the block that was lent on is freed
      }
    }
    // Written in place: the pre-image of the task above is gone as well, committed or not.
    if (below.forbidden != 0) tell(task, TaskEvent::ForbidRollback);
    tell(task, TaskEvent::LendBelowEnded);
  }

  State& s_;
  const Config& config_;
};

inline void BundleModel::task_actions(const State& s, Byte index, std::vector<Action>& out) const {
  const Task& task = s.tasks[index];
  const bool decided = phase(task) == TaskPhase::Returned || phase(task) == TaskPhase::Lost;
  if (phase(task) == TaskPhase::Queued) out.push_back({Do::Start, index, 0});
  if (task.undo_owed != 0) out.push_back({Do::Undo, index, 0});
  if (decided && task.reports == 0) out.push_back({Do::Resend, index, 0});
  if (task.reports != 0) out.push_back({Do::Deliver, index, 0});
  if (task.reports == 1 && s.duplicates_left != 0) out.push_back({Do::Twice, index, 0});
  if (task.alive == 0) return;
  if (s.crashes_left != 0) out.push_back({Do::Crash, index, 0});
  if (phase(task) != TaskPhase::Running) return;
  if (task.writing != 0) {
    out.push_back({Do::WriteEnd, index, static_cast<Byte>(task.writing - 1)});
    return;
  }
  for (Byte object = 0; object < kObjects - index; ++object) {
    const bool lent_on = index == 0 && object == 0 && task.below != 0;
    const bool wrote = Stepper::seen(s, index, object) == kAfter + index;
    if (!lent_on && !wrote) out.push_back({Do::WriteBegin, index, object});
  }
  if (index == 0 && config_.relend && s.lent_on == 0) out.push_back({Do::LendOn, index, 0});
  if (task.below == 0) out.push_back({Do::Return, index, 0});
}

inline void BundleModel::actions(const State& s, std::vector<Action>& out) const {
  if (s.lent == 0) {
    out.push_back({Do::Lend, 0, 0});
    return;
  }
  task_actions(s, 0, out);
  const Task& below = s.tasks[1];
  if (below.found[0] != kNone) task_actions(s, 1, out);
  if (s.tasks[0].lend_ended != 0 && s.dropped == 0) out.push_back({Do::Drop, 0, 0});
}

inline State BundleModel::next(const State& before, const Action& action) const {
  State after = before;
  Stepper(after, config_).take(action);
  return after;
}

inline std::string BundleModel::describe(const State&, const Action& action) const {
  static constexpr const char* kDo[] = {
      "is lent both objects", "starts",           "begins to write object", "has written object",
      "lends object 0 on",    "returns",          "loses its worker",       "is undone by its server",
      "reports again",        "is reported",      "reports twice",          "is over, and the owner drops both"};
  std::string text = action.task == 0 ? "the task " : "the task below ";
  text += kDo[static_cast<int>(action.what)];
  const bool writes = action.what == Do::WriteBegin || action.what == Do::WriteEnd;
  return writes ? text + " " + std::to_string(action.object) : text;
}

}  // namespace drust::test::bundle
