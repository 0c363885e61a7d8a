// ownership_lend.hpp: one outcome per task, and no loss reported while anything runs below it.
//
// Purpose. A lend to a task ends in exactly one of three ways: committed, rolled back, poisoned. The decision
// is one compare-and-swap on the task's word in the partition where it runs: the worker's `Returned` or the
// server's loss of that worker, whichever comes first. Everything after it repeats the outcome and never
// decides again, so a completion may be sent twice and a worker may die right after it returned.
//
// Idea. Re-lends hang below the task that made them (`below`). A worker that dies with re-lends out leaves
// its task `Dying`: nothing is reported to the lender until the last of them completed or was fenced, else
// the lender could write while a grandchild still reads. `kReapTree` then frees the blocks tagged with this
// task or with a task of its tree (those that committed into it): they are what the lost borrower had made of
// the value.
//
// A task that may be tried again goes from `Dying` back to `Queued` once that is done: after its rollback,
// with nothing below it, never where a rollback is forbidden; its lender hears nothing. A task whose lender's
// server is lost is `orphaned`: nobody waits for it, and it ends without a report. (The death of the lender's
// process alone changes nothing here: its server keeps the lend records and takes the reports.)
//
// Rejected: retrying under the old tags while the blocks of the attempt before are still being freed (they
// cannot be told apart); reaping what an orphan had *returned* (its lender may have committed it to somebody
// who lives; the outermost lender knows); letting the lender decide by whichever message arrives first (a
// completion and a loss report travel on different connections; the losing side would have to be undone). No
// clock, socket, thread or allocator here; the word is protected by the compare-and-swap that stores what this
// function returned.
#pragma once

#include <cstdint>
#include <type_traits>

#include "protocol/ownership.hpp"

namespace drust::protocol {

enum class TaskPhase : std::uint8_t {
  Queued,    // no worker has it: it may go to another server
  Running,   // on one worker
  Dying,     // its worker is lost, lends below it are still out, or what it did is undone for another attempt
  Returned,  // decided: the completion is (being) sent, and resent until acknowledged
  Lost,      // decided: the loss report is (being) sent, and resent until acknowledged
  Settled,   // the lender has acknowledged
};

enum class TaskEvent : std::uint8_t {
  Start,
  LendBelow,       // the task lent on what it was lent
  LendBelowEnded,  // outcome known
  ForbidRollback,  // a side effect escaped, or a large object is written in place
  Return,          // by the worker
  WorkerLost,      // by the server, after the worker is fenced
  Retry,           // by the server, when what the lost attempt had made is freed
  LenderLost,      // the server that lent to it is lost, and with it whoever would hear
  Resend,
  Acknowledge,
};
inline constexpr int kTaskEventCount = static_cast<int>(TaskEvent::Acknowledge) + 1;

enum TaskAction : std::uint32_t {
  kSendTaskCompletion = 1U << 0,
  kReportRolledBack = 1U << 1,
  kReportPoisoned = 1U << 2,  // draw a new colour for a block written in place first, and report it
  kReapTree = 1U << 3,        // free the blocks tagged with the tasks of this tree, on every server they ran
  kDropQueuedFrees = 1U << 4,
  kForgetTask = 1U << 5,
  kUndoForRetry = 1U << 6,  // after the reaping: report Retry
  kStopTask = 1U << 7,      // nobody waits for it: its worker may be fenced, and it may also return
};

struct TaskRecord {
  TaskPhase phase = TaskPhase::Queued;
  bool forbidden = false;  // cannot be rolled back
  std::uint8_t retries = 0;  // how often it may be tried again; its spawner declares it
  bool orphaned = false;     // its lender's server is lost
  std::uint32_t below = 0;  // re-lends out
  friend constexpr bool operator==(const TaskRecord&, const TaskRecord&) noexcept = default;
};
static_assert(sizeof(TaskRecord) == 8);  // one compare-and-swap
static_assert(std::is_trivially_copyable_v<TaskRecord>);

struct TaskStep {
  TaskRecord record;
  bool ok = true;  // false: the event is not allowed now, nothing changed
  std::uint32_t actions = 0;
  friend constexpr bool operator==(const TaskStep&, const TaskStep&) noexcept = default;
};

namespace detail {

[[nodiscard]] constexpr std::uint32_t report_loss(const TaskRecord& task) noexcept {
  return task.forbidden ? kReportPoisoned : kReportRolledBack;
}

[[nodiscard]] constexpr TaskStep lose(TaskRecord task) noexcept {
  if (task.below != 0) {
    task.phase = TaskPhase::Dying;
    return {task};
  }
  const std::uint32_t undo = kReapTree | kDropQueuedFrees;
  if (task.orphaned) {
    task.phase = TaskPhase::Settled;
    return {task, true, undo | kForgetTask};
  }
  if (task.retries != 0 && !task.forbidden) {
    task.phase = TaskPhase::Dying;
    return {task, true, undo | kUndoForRetry};
  }
  task.phase = TaskPhase::Lost;
  return {task, true, undo | report_loss(task)};
}

[[nodiscard]] constexpr TaskStep orphan(TaskRecord task) noexcept {
  if (task.phase == TaskPhase::Settled) return {task};
  const bool works = task.phase == TaskPhase::Running || (task.phase == TaskPhase::Dying && task.below != 0);
  if (works) {
    const bool first = !task.orphaned && task.phase == TaskPhase::Running;
    task.orphaned = true;
    return {task, true, first ? std::uint32_t{kStopTask} : 0U};
  }
  // Never ran, or undone already: the boxes it carries are its own and go with it. Returned: they are not.
  const bool carries = task.phase == TaskPhase::Queued;
  task.phase = TaskPhase::Settled;
  return {task, true, carries ? kReapTree | kForgetTask : std::uint32_t{kForgetTask}};
}

}  // namespace detail

[[nodiscard]] constexpr TaskStep apply(const TaskRecord& before, TaskEvent event) noexcept {
  TaskRecord task = before;
  const TaskStep refused{before, false, 0};
  const bool alive = task.phase == TaskPhase::Running || task.phase == TaskPhase::Dying;
  switch (event) {
    case TaskEvent::Start:
      if (task.phase != TaskPhase::Queued) return refused;  // a second worker, or a resent submission
      task.phase = TaskPhase::Running;
      return {task};
    case TaskEvent::LendBelow:
      if (task.phase != TaskPhase::Running || task.below == kCountMax) return refused;
      ++task.below;
      return {task};
    case TaskEvent::LendBelowEnded:
      if (!alive || task.below == 0) return refused;
      --task.below;
      return task.phase == TaskPhase::Dying ? detail::lose(task) : TaskStep{task};
    case TaskEvent::ForbidRollback:
      if (!alive) return refused;
      task.forbidden = true;
      return {task};
    case TaskEvent::Return:
      if (task.phase != TaskPhase::Running || task.below != 0) return refused;
      if (task.orphaned) {
        task.phase = TaskPhase::Settled;  // nobody has seen what it returns
        return {task, true, kReapTree | kDropQueuedFrees | kForgetTask};
      }
      task.phase = TaskPhase::Returned;
      return {task, true, kSendTaskCompletion};
    case TaskEvent::WorkerLost:
      if (task.phase == TaskPhase::Running) return detail::lose(task);
      return {task};  // queued: another worker takes it; decided: it stays decided
    case TaskEvent::Retry:
      if (task.phase != TaskPhase::Dying || task.below != 0) return refused;
      if (task.retries == 0 || task.forbidden || task.orphaned) return refused;
      task.phase = TaskPhase::Queued;
      --task.retries;
      return {task};
    case TaskEvent::LenderLost:
      return detail::orphan(task);
    case TaskEvent::Resend:
      if (task.phase == TaskPhase::Returned) return {task, true, kSendTaskCompletion};
      if (task.phase == TaskPhase::Lost) return {task, true, detail::report_loss(task)};
      return {task};
    case TaskEvent::Acknowledge:
      if (task.phase == TaskPhase::Settled) return {task};
      if (task.phase != TaskPhase::Returned && task.phase != TaskPhase::Lost) return refused;
      task.phase = TaskPhase::Settled;
      return {task, true, kForgetTask};
  }
  return refused;
}

// How a task ended, for every lend it had: one of them that cannot be rolled back poisons them all.
enum class Outcome : std::uint8_t { Committed, RolledBack, Poisoned };

[[nodiscard]] constexpr EventKind end_of_lend(Outcome outcome, bool shared) noexcept {
  if (shared) return EventKind::LendSharedEnd;
  switch (outcome) {
    case Outcome::Committed:
      return EventKind::LendMutCommitted;
    case Outcome::RolledBack:
      return EventKind::LendMutRolledBack;
    case Outcome::Poisoned:
      return EventKind::LendMutPoisoned;
  }
  return EventKind::LendMutPoisoned;
}

// The borrower's server is lost, and the record of the task with it. Once every surviving server has refused
// that incarnation and nothing lent from there runs any more, the lender asks where each lent block lies which
// colour it has. As lent: its bytes were never touched. Another: a task further down, on that server, wrote it
// in place. A block whose own server is the lost one needs no outcome of its own: it is gone, or promoted as
// it was last known.
enum class LentBlock : std::uint8_t { AsLent, WrittenOver, ItsServerLost };

[[nodiscard]] constexpr Outcome outcome_of_lost_server(Outcome so_far, LentBlock block) noexcept {
  return block == LentBlock::WrittenOver ? Outcome::Poisoned : so_far;
}

// The lender's side: the first report of a task is applied, every later one is only acknowledged again.
enum class LendPhase : std::uint8_t { Out, Ended };

struct LendStep {
  LendPhase phase = LendPhase::Ended;
  bool apply_to_owner = false;  // feed the matching Lend...End event to the owner's state
  bool run_queued_frees = false;
  bool hand_frees_up = false;  // we are ourselves under a mutable lend: they wait for its outcome
  friend constexpr bool operator==(const LendStep&, const LendStep&) noexcept = default;
};

[[nodiscard]] constexpr LendStep end_lend(LendPhase before, EventKind outcome, bool under_a_lend) noexcept {
  if (before == LendPhase::Ended) return {};
  const bool committed = outcome == EventKind::LendMutCommitted;
  return {.apply_to_owner = true,
          .run_queued_frees = committed && !under_a_lend,
          .hand_frees_up = committed && under_a_lend};
}

}  // namespace drust::protocol
