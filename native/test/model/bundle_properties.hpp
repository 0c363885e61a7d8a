// bundle_properties.hpp: what must hold for the two lends of one task in every state, at rest, and sometimes.
#pragma once

#include "test/model/bundle_model.hpp"

namespace drust::test::bundle {
namespace properties {

inline bool is(Byte outcome, Outcome wanted) { return outcome == static_cast<int>(wanted) + 1; }

inline bool lends_end_alike(const State& s) { return s.outcome[0] == s.outcome[1]; }

// What the owner may read after the end is all the task's, or all its own from before.
inline bool all_or_nothing(const State& s) {
  if (s.tasks[0].lend_ended == 0 || s.dropped != 0) return true;
  for (int object = 0; object < kObjects; ++object) {
    const Byte value = s.block[object];
    if (is(s.outcome[object], Outcome::Committed) && value != s.tasks[0].result[object]) return false;
    if (is(s.outcome[object], Outcome::RolledBack) && value != kBefore) return false;
  }
  return true;
}

inline bool what_is_rolled_back_is_whole(const State& s, bool has_child) {
  const bool rolled_back = s.dropped == 0 && is(s.outcome[1], Outcome::RolledBack);
  return !rolled_back || !has_child || s.child_left != 0;
}

inline bool a_task_that_may_run_has_its_lends(const State& s) {
  const auto phase = static_cast<TaskPhase>(s.tasks[0].phase);
  const bool may_run = s.lent != 0 && phase <= TaskPhase::Dying;
  return !may_run || s.tasks[0].lend_ended == 0;
}

template <Breach breach>
bool never(const State& s) {
  return (s.breaches & breach) == 0;
}

inline bool at_rest_all_is_over(const State& s) {
  if (s.dropped == 0) return false;
  for (const Task& task : s.tasks) {
    for (int object = 0; object < kObjects; ++object) {
      if (task.fresh[object] != kNone || task.committed[object] != kNone) return false;
    }
  }
  return s.block[0] == kNone && s.block[1] == kNone && s.child_left == 0 && s.queued_free == 0;
}

// --- sometimes ---
inline bool one_poisons_both(const State& s) {
  return is(s.outcome[0], Outcome::Poisoned) && is(s.outcome[1], Outcome::Poisoned) && s.block[0] == kBefore;
}
inline bool both_written_then_rolled_back(const State& s) {
  const Task& task = s.tasks[0];
  return task.undo_owed != 0 && task.fresh[0] == kAfter && task.fresh[1] == kAfter;
}
inline bool a_second_attempt_commits(const State& s) {
  return s.tasks[0].attempts > 1 && is(s.outcome[0], Outcome::Committed);
}
inline bool a_retry_waits_for_what_is_below(const State& s) {
  const Task& task = s.tasks[0];
  return static_cast<TaskPhase>(task.phase) == TaskPhase::Dying && task.below != 0 && task.retries != 0;
}
inline bool no_retry_is_left(const State& s) {
  return s.tasks[0].attempts > 1 && is(s.outcome[0], Outcome::RolledBack);
}
inline bool a_returned_task_loses_its_worker(const State& s) {
  const Task& task = s.tasks[0];
  return static_cast<TaskPhase>(task.phase) == TaskPhase::Returned && task.alive == 0 && task.reports == 0;
}
inline bool a_late_report_of_a_settled_task(const State& s) {
  return static_cast<TaskPhase>(s.tasks[0].phase) == TaskPhase::Settled && s.tasks[0].reports != 0;
}

}  // namespace properties

inline std::vector<Property<State>> BundleModel::properties() const {
  using namespace properties;
  std::vector<Property<State>> all = {
      {When::Always, "all lends of a task end alike", lends_end_alike},
      {When::Always, "a task's writes are all seen or none", all_or_nothing},
      {When::Always, "a task that may run still has its lends", a_task_that_may_run_has_its_lends},
      {When::Always, "every attempt finds what the task was lent", never<kDirtyStart>},
      {When::Always, "no attempt starts while anything below the one before runs", never<kTwoWriters>},
      {When::Always, "an attempt's blocks are not freed under it", never<kFreedUnder>},
      {When::AtRest, "nothing is stuck: at rest both objects are gone and every block free",
       at_rest_all_is_over},
  };
  if (config_.child) {
    all.push_back({When::Always, "a value that was rolled back has its children",
                   [](const State& s) { return what_is_rolled_back_is_whole(s, true); }});
  }
  if (config_.only != nullptr) {
    std::erase_if(all, [&](const Property<State>& p) { return std::string(p.claim) != config_.only; });
  }
  if (config_.bug != Bug::None || config_.crashes == 0) return all;
  all.push_back(
      {When::Sometimes, "a returned task loses its worker and its report", a_returned_task_loses_its_worker});
  const bool kept = config_.in_place == 0;
  if (config_.in_place == 2) all.push_back({When::Sometimes, "one lend poisons the other", one_poisons_both});
  if (config_.duplicates != 0) {
    all.push_back(
        {When::Sometimes, "a report comes after the task was settled", a_late_report_of_a_settled_task});
  }
  if (config_.retries == 0) return all;
  if (kept) {
    all.push_back(
        {When::Sometimes, "both objects were written and are undone", both_written_then_rolled_back});
  }
  all.push_back({When::Sometimes, "a second attempt commits", a_second_attempt_commits});
  if (config_.crashes > config_.retries) {
    all.push_back({When::Sometimes, "the last attempt is rolled back", no_retry_is_left});
  }
  if (config_.relend) {
    all.push_back({When::Sometimes, "a retry waits for what is below", a_retry_waits_for_what_is_below});
  }
  return all;
}

}  // namespace drust::test::bundle
