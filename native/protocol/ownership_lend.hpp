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
// Rejected: letting the lender decide by whichever message arrives first (a completion and a loss report
// travel on different connections; the losing side would have to be undone). No clock, socket, thread or
// allocator here; the word is protected by the compare-and-swap that stores what this function returned.
#pragma once

#include <cstdint>
#include <type_traits>

#include "protocol/ownership.hpp"

namespace drust::protocol {

enum class TaskPhase : std::uint8_t {
  Queued,    // no worker has it: it may go to another server
  Running,   // on one worker
  Dying,     // its worker is lost, lends below it are still out
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
  Resend,
  Acknowledge,
};

enum TaskAction : std::uint32_t {
  kSendTaskCompletion = 1U << 0,
  kReportRolledBack = 1U << 1,
  kReportPoisoned = 1U << 2,  // draw a new colour for a block written in place first, and report it
  kReapTree = 1U << 3,        // free the blocks tagged with the tasks of this tree, on every server they ran
  kDropQueuedFrees = 1U << 4,
  kForgetTask = 1U << 5,
};

struct TaskRecord {
  TaskPhase phase = TaskPhase::Queued;
  bool forbidden = false;  // cannot be rolled back
  std::uint16_t reserved = 0;
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
  task.phase = TaskPhase::Lost;
  return {task, true, report_loss(task) | kReapTree | kDropQueuedFrees};
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
      task.phase = TaskPhase::Returned;
      return {task, true, kSendTaskCompletion};
    case TaskEvent::WorkerLost:
      if (task.phase == TaskPhase::Running) return detail::lose(task);
      return {task};  // queued: another worker takes it; decided: it stays decided
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
