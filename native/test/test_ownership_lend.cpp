// How a task ends: one outcome, in order, and what the lender makes of it (protocol/ownership_lend.hpp).
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "protocol/ownership_lend.hpp"
#include "test/harness.hpp"

namespace drust::test {
namespace {

using namespace protocol;
using K = EventKind;

TaskStep run_task(std::initializer_list<TaskEvent> events) {
  TaskStep step;
  for (const TaskEvent event : events) {
    step = apply(step.record, event);
    if (!step.ok) return step;
  }
  return step;
}

using T = TaskEvent;

TEST("a task has one outcome, whatever comes after it") {
  const TaskStep lost = run_task({T::Start, T::WorkerLost});
  CHECK_EQ(lost.record.phase, TaskPhase::Lost);
  CHECK((lost.actions & kReportRolledBack) != 0);
  CHECK(!apply(lost.record, T::Return).ok);
  const TaskStep returned = run_task({T::Start, T::Return});
  CHECK_EQ(apply(returned.record, T::WorkerLost).record.phase, TaskPhase::Returned);
  CHECK_EQ(apply(returned.record, T::WorkerLost).actions, 0U);
}

TEST("a lost worker's task is reported only after all lends below it have ended") {
  const TaskStep dying = run_task({T::Start, T::LendBelow, T::LendBelow, T::WorkerLost});
  CHECK_EQ(dying.record.phase, TaskPhase::Dying);
  CHECK_EQ(dying.actions, 0U);
  const TaskStep one = apply(dying.record, T::LendBelowEnded);
  CHECK_EQ(one.actions, 0U);
  CHECK((apply(one.record, T::LendBelowEnded).actions & (kReportRolledBack | kReapTree)) != 0);
}

TEST("a task with a lend below it cannot return") {
  CHECK(!run_task({T::Start, T::LendBelow, T::Return}).ok);
  CHECK(run_task({T::Start, T::LendBelow, T::LendBelowEnded, T::Return}).ok);
}

TEST("a side effect that escaped turns the rollback into poison") {
  CHECK((run_task({T::Start, T::ForbidRollback, T::WorkerLost}).actions & kReportPoisoned) != 0);
}

TEST("a queued task outlives the worker that was about to take it, and starts once") {
  CHECK_EQ(run_task({T::WorkerLost}).record.phase, TaskPhase::Queued);
  CHECK(!run_task({T::Start, T::Start}).ok);
}

// Every record with small counters.
std::vector<TaskRecord> small_records() {
  std::vector<TaskRecord> out;
  for (int phase = 0; phase <= static_cast<int>(TaskPhase::Settled); ++phase) {
    for (unsigned bits = 0; bits < 4; ++bits) {
      for (std::uint8_t retries = 0; retries < 3; ++retries) {
        for (std::uint32_t below = 0; below < 3; ++below) {
          out.push_back({static_cast<TaskPhase>(phase), (bits & 1U) != 0, retries, (bits & 2U) != 0, below});
        }
      }
    }
  }
  return out;
}

TEST("a refused event of a task changes nothing and asks for nothing") {
  int refused = 0;
  for (const TaskRecord& task : small_records()) {
    for (int event = 0; event < kTaskEventCount; ++event) {
      const TaskStep step = apply(task, static_cast<T>(event));
      if (step.ok) continue;
      ++refused;
      CHECK(step.record == task && step.actions == 0);
    }
  }
  CHECK(refused > 500);
}

TEST("in every small case a task is queued again only undone, unpoisoned and with nothing below it") {
  int queued_again = 0;
  for (const TaskRecord& task : small_records()) {
    for (int event = 0; event < kTaskEventCount; ++event) {
      const TaskStep step = apply(task, static_cast<T>(event));
      if (!step.ok || task.phase == TaskPhase::Queued || step.record.phase != TaskPhase::Queued) continue;
      ++queued_again;
      CHECK_EQ(task.phase, TaskPhase::Dying);
      CHECK(static_cast<T>(event) == T::Retry && task.below == 0 && !task.forbidden && !task.orphaned);
      CHECK_EQ(step.record.retries, task.retries - 1);
    }
  }
  CHECK(queued_again > 0);
}

TEST("a task that may be tried again is undone first and reported lost when no attempt is left") {
  const TaskRecord once{.phase = TaskPhase::Running, .retries = 1};
  const TaskStep undone = apply(once, T::WorkerLost);
  CHECK_EQ(undone.record.phase, TaskPhase::Dying);
  CHECK_EQ(undone.actions, kReapTree | kDropQueuedFrees | kUndoForRetry);
  const TaskStep again = apply(apply(undone.record, T::Retry).record, T::Start);
  CHECK_EQ(again.record.phase, TaskPhase::Running);
  CHECK((apply(again.record, T::WorkerLost).actions & kReportRolledBack) != 0);
}

TEST("a task that cannot be rolled back is never tried again") {
  TaskRecord task{.phase = TaskPhase::Running, .retries = 3};
  task = apply(task, T::ForbidRollback).record;
  const TaskStep lost = apply(task, T::WorkerLost);
  CHECK_EQ(lost.record.phase, TaskPhase::Lost);
  CHECK((lost.actions & kReportPoisoned) != 0);
  CHECK(!apply(lost.record, T::Retry).ok);
}

TEST("a retry waits for the lends below the lost attempt") {
  const TaskRecord lends{.phase = TaskPhase::Running, .retries = 1, .below = 1};
  const TaskStep dying = apply(lends, T::WorkerLost);
  CHECK_EQ(dying.actions, 0U);
  CHECK(!apply(dying.record, T::Retry).ok);
  const TaskStep undone = apply(dying.record, T::LendBelowEnded);
  CHECK((undone.actions & kUndoForRetry) != 0);
  CHECK(apply(undone.record, T::Retry).ok);
}

TEST("a task whose lender's server is lost ends without a report, however it ends") {
  const TaskStep orphan = run_task({T::Start, T::LenderLost});
  CHECK_EQ(orphan.actions, std::uint32_t{kStopTask});
  CHECK_EQ(apply(orphan.record, T::LenderLost).actions, 0U);
  const std::uint32_t silent = kReapTree | kDropQueuedFrees | kForgetTask;
  CHECK_EQ(apply(orphan.record, T::Return).actions, silent);
  CHECK_EQ(apply(orphan.record, T::WorkerLost).actions, silent);
  CHECK_EQ(run_task({T::LenderLost}).actions, kReapTree | kForgetTask);
  const TaskStep below = run_task({T::Start, T::LendBelow, T::LenderLost, T::WorkerLost});
  CHECK_EQ(below.record.phase, TaskPhase::Dying);
  CHECK_EQ(apply(below.record, T::LendBelowEnded).actions, silent);
}

TEST("what a task had returned is not reaped when its lender's server is lost") {
  CHECK_EQ(run_task({T::Start, T::Return, T::LenderLost}).actions, std::uint32_t{kForgetTask});
  CHECK_EQ(run_task({T::Start, T::WorkerLost, T::LenderLost}).actions, std::uint32_t{kForgetTask});
}

TEST("all mutable lends of a task end as the task did") {
  CHECK_EQ(end_of_lend(Outcome::Committed, false), K::LendMutCommitted);
  CHECK_EQ(end_of_lend(Outcome::RolledBack, false), K::LendMutRolledBack);
  CHECK_EQ(end_of_lend(Outcome::Poisoned, false), K::LendMutPoisoned);
  for (const Outcome outcome : {Outcome::Committed, Outcome::RolledBack, Outcome::Poisoned}) {
    CHECK_EQ(end_of_lend(outcome, true), K::LendSharedEnd);
  }
}

TEST("a lost server rolls a task back unless a block it was lent was written over elsewhere") {
  CHECK_EQ(outcome_of_lost_server(Outcome::RolledBack, LentBlock::AsLent), Outcome::RolledBack);
  CHECK_EQ(outcome_of_lost_server(Outcome::RolledBack, LentBlock::ItsServerLost), Outcome::RolledBack);
  const Outcome poisoned = outcome_of_lost_server(Outcome::RolledBack, LentBlock::WrittenOver);
  CHECK_EQ(poisoned, Outcome::Poisoned);
  CHECK_EQ(outcome_of_lost_server(poisoned, LentBlock::AsLent), Outcome::Poisoned);
}

TEST("an outcome is resent until it is acknowledged, then forgotten once") {
  const TaskStep returned = run_task({T::Start, T::Return});
  CHECK_EQ(apply(returned.record, T::Resend).actions, std::uint32_t{kSendTaskCompletion});
  const TaskStep settled = apply(returned.record, T::Acknowledge);
  CHECK_EQ(settled.actions, std::uint32_t{kForgetTask});
  CHECK_EQ(apply(settled.record, T::Acknowledge).actions, 0U);
  CHECK_EQ(apply(settled.record, T::Resend).actions, 0U);
  CHECK(!run_task({T::Start, T::Acknowledge}).ok);
}

TEST("a lender applies the first report of a task and only acknowledges the next") {
  CHECK(end_lend(LendPhase::Out, K::LendMutCommitted, false).apply_to_owner);
  CHECK(!end_lend(LendPhase::Ended, K::LendMutCommitted, false).apply_to_owner);
}

TEST("queued frees run when the outermost lend commits, never when it is rolled back") {
  CHECK(end_lend(LendPhase::Out, K::LendMutCommitted, false).run_queued_frees);
  CHECK(end_lend(LendPhase::Out, K::LendMutCommitted, true).hand_frees_up);
  const LendStep lost = end_lend(LendPhase::Out, K::LendMutRolledBack, false);
  CHECK(!lost.run_queued_frees && !lost.hand_frees_up);
}

}  // namespace
}  // namespace drust::test
