// How a task ends: one outcome, in order, and what the lender makes of it (protocol/ownership_lend.hpp).
#include <cstdint>
#include <initializer_list>

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
