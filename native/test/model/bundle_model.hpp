// bundle_model.hpp: one task that was lent two objects at once: how its lends end together, and when it is
// tried again.
//
// Purpose. cluster_model.hpp gives a task one object and looks at every message; here a task has two (each
// with a pre-image or written in place), may lend one of them on, and may be retried. So only what the outcome
// depends on is here: which bytes each block holds, who has them, the task's record, the owner's handles, the
// reports.
//
// Idea. The owner lends A and B to a task, which writes each, lends one on to a task of its own (if it likes),
// and returns. Workers die before any step, also after they returned; reports are lost with them and sent
// twice. A value is a number: 1 before the task, 2 after it, kTorn half written. The ghost `found` holds what
// the task was lent: each of its attempts must find just that.
//
// Every decision is one of ownership.hpp and ownership_lend.hpp. Rejected: two objects in cluster_model.hpp
// (its states would be the product of both and of the copies, which have no part in this).
#pragma once

#include <string>
#include <vector>

#include "base/ensure.hpp"
#include "protocol/ownership.hpp"
#include "protocol/ownership_lend.hpp"
#include "test/explorer.hpp"

namespace drust::test::bundle {

using Byte = std::uint8_t;
using protocol::Event;
using protocol::EventKind;
using protocol::Outcome;
using protocol::OwnerState;
using protocol::TaskEvent;
using protocol::TaskPhase;
using protocol::TaskRecord;
using protocol::TaskStep;

inline constexpr int kObjects = 2;
inline constexpr Byte kBefore = 1;
inline constexpr Byte kAfter = 2;
inline constexpr Byte kTorn = 255;
inline constexpr Byte kNone = 0;

enum class Bug {
  None,
  OutcomePerLend,         // each lend ends as its own block allows
  RetryBeforeUndo,        // queued again before the blocks of the lost attempt are freed
  RetryAfterPoison,       // queued again although a block was written in place
  RetryWhileBelowRuns,    // queued again while what it lent on runs
  RetryReported,          // reported lost as well as queued again
  ForbidNotRecorded,      // a write in place leaves no trace in the record
  EntryClearedEarly,      // the record goes when the worker returns
  FreesRunOnLoss,         // the frees queued on a lend run though it was rolled back
};

struct Config {
  Byte in_place = 0;  // mask: objects without a pre-image
  Byte retries = 0;
  Byte crashes = 1;
  Byte duplicates = 0;
  bool relend = false;  // object 0 may be lent on
  bool child = false;   // object 1 owns a child; the task moves it, and the free of its old block waits
  Bug bug = Bug::None;
  const char* only = nullptr;
};

struct Task {
  Byte phase = 0;  // TaskRecord
  Byte forbidden = 0;
  Byte retries = 0;
  Byte below = 0;
  Byte lend_ended = 0;  // the lender applied the outcome
  Byte reports = 0;     // on their way
  Byte undo_owed = 0;   // what the lost attempt made is still to be freed
  Byte attempts = 0;
  Byte alive = 0;                 // its worker
  Byte writing = 0;               // object + 1 while its bytes are half written
  Byte fresh[kObjects] = {};      // the value in the block that it made, kNone: none
  Byte committed[kObjects] = {};  // in a block that a task below it made
  Byte found[kObjects] = {};      // ghost: what it was lent
  Byte result[kObjects] = {};     // ghost: what it returned
};

struct Handle {
  Byte phase = 0;
  Byte writer = 0;
  Byte flags = 0;
  [[nodiscard]] OwnerState get() const {
    return {.phase = static_cast<protocol::Phase>(phase),
            .writer = static_cast<protocol::Writer>(writer),
            .flags = flags};
  }
  void put(const OwnerState& s) {
    *this = {static_cast<Byte>(s.phase), static_cast<Byte>(s.writer), s.flags};
  }
};

enum Breach : Byte {
  kDirtyStart = 1U << 0,  // an attempt began with what another had left
  kTwoWriters = 1U << 1,  // or while something below the one before ran
  kFreedUnder = 1U << 2,  // its blocks were freed with those of the one before
};

// [0] is the task that was lent both objects, [1] the one to which it lent object 0 on.
struct State {
  Task tasks[2] = {};
  Byte block[kObjects] = {};  // the owner's: what each holds, kNone: freed
  Handle owner[kObjects] = {};
  Byte outcome[kObjects] = {};  // Outcome + 1, of the lend of each
  Byte child_left = 0;          // the old block of object 1's child is there
  Byte queued_free = 0;         // its free waits for the outcome
  Byte lent = 0;
  Byte lent_on = 0;  // by this attempt
  Byte crashes_left = 0;
  Byte duplicates_left = 0;
  Byte dropped = 0;
  Byte breaches = 0;
};
static_assert(std::has_unique_object_representations_v<State>);

enum class Do : Byte {
  Lend,
  Start,
  WriteBegin,
  WriteEnd,
  LendOn,
  Return,
  Crash,
  Undo,
  Resend,
  Deliver,
  Twice,
  Drop,
};

struct Doing {
  Do what = Do::Lend;
  Byte task = 0;
  Byte object = 0;
};

class BundleModel {
 public:
  using Config = bundle::Config;
  using State = bundle::State;
  using Action = Doing;

  explicit BundleModel(const Config& config) : config_(config) {}

  void initial_states(std::vector<State>& out) const {
    State s;
    for (int object = 0; object < kObjects; ++object)
      s.block[object] = kBefore;
    s.child_left = config_.child;
    s.crashes_left = config_.crashes;
    s.duplicates_left = config_.duplicates;
    out.push_back(s);
  }

  void actions(const State& s, std::vector<Action>& out) const;
  State next(const State& before, const Action& action) const;
  std::string describe(const State& s, const Action& action) const;
  std::vector<Property<State>> properties() const;

 private:
  static TaskPhase phase(const Task& task) { return static_cast<TaskPhase>(task.phase); }
  void task_actions(const State& s, Byte index, std::vector<Action>& out) const;

  Config config_;
};

}  // namespace drust::test::bundle

#include "test/model/bundle_properties.hpp"
#include "test/model/bundle_steps.hpp"
