// Every state of small clusters, and the mistakes that the explorer must find (model/cluster_model.hpp,
// explorer.hpp).
//
// The counts are pinned (test/explorations.hpp); deaths of owners are in
// test_explorer_owners.cpp, of servers in test_explorer_servers.cpp.
#include <string>

#include "test/model/cluster_claims.hpp"

namespace drust::test {
namespace {

// --- the protocol ---

TEST("an owner and two tasks on three servers keep every rule") {
  Cluster::check_holds({.operations = 3, .tasks = 2, .ids = kSlow ? 2 : 3},
                       kSlow ? Pinned{28'231, 64'131, 432} : Pinned{88'020, 216'829, 704});
}

TEST("a worker may die at every step while completions and frees are sent twice") {
  Cluster::check_holds({.operations = 3, .tasks = kSlow ? 1 : 2, .ids = 2, .crashes = 1, .duplicates = 1},
                       kSlow ? Pinned{257'437, 771'375, 2'332} : Pinned{812'978, 2'881'523, 2'332});
}

TEST("a lend ends only when all below it has ended, though both workers die") {
  Cluster::check_holds({.operations = 2, .tasks = 2, .ids = 2, .relends = 1, .crashes = kSlow ? 1 : 2},
                       kSlow ? Pinned{237'069, 701'462, 2'021} : Pinned{476'023, 1'575'375, 3'291});
}

TEST("a mutable lend passed on twice comes home through both") {
  Cluster::check_holds({.operations = 1, .tasks = 3, .ids = 3, .relends = 1, .crashes = kSlow ? 0 : 1,
                        .shared = false},
                       kSlow ? Pinned{31'037, 84'651, 143} : Pinned{283'368, 960'570, 519});
}

TEST("a large object written in place is poisoned by a crash and never half believed") {
  Cluster::check_holds({.large = true, .operations = 2, .tasks = 2, .ids = 2, .relends = 1, .crashes = 1,
                        .task_servers = 3},
                       {246'628, 716'878, 1'847});
}

TEST("a value that was moved to a task has one owner and dies with it") {
  Cluster::check_holds({.transfer = true, .operations = kSlow ? 1 : 2, .tasks = 2, .ids = 2, .relends = 1,
                        .crashes = 1},
                       kSlow ? Pinned{96'653, 293'059, 683} : Pinned{440'600, 1'353'508, 2'833});
}

TEST("children follow their parent's borrow, the tied one its moves") {
  Cluster::check_holds({.family = true, .operations = 2, .tasks = 1, .ids = 2, .crashes = kSlow ? 0 : 1},
                       kSlow ? Pinned{81'962, 209'007, 1'646} : Pinned{339'966, 894'651, 4'638});
}

TEST("a parent and its child lent on by a borrower roll back whole") {
  Cluster::check_holds({.family = true, .operations = 1, .tasks = 2, .ids = 2, .relends = 1,
                        .crashes = kSlow ? 0 : 1, .shared = false},
                       kSlow ? Pinned{101'417, 311'374, 579} : Pinned{439'767, 1'492'085, 1'494});
}

// --- broken on purpose: each must be found ---

TEST("keeping the colour at the end of a mutable borrow is found") {
  Cluster::check_found({.operations = 4, .tasks = 1, .ids = 2, .bug = Bug::ColourNotBumped}, kDataValue);
}

TEST("a colour that restarts when an address is reused is found") {
  Cluster::check_found({.operations = 4, .tasks = 1, .ids = 3, .bug = Bug::ColourRestarts}, kDataValue);
}

TEST("a colour that wraps is found") {
  Cluster::check_found({.operations = 5, .tasks = 1, .ids = 3, .bug = Bug::ColourWraps}, kDataValue);
}

TEST("a free that ignores the colour is found when it is sent twice") {
  Cluster::check_found({.operations = 4, .tasks = 1, .ids = 3, .duplicates = 1, .bug = Bug::FreeIgnoresColour},
                       kLateFree);
}

TEST("a copy found before its bytes have arrived is found") {
  Cluster::check_found({.operations = 2, .tasks = 2, .ids = 2, .bug = Bug::CopyBeforeBytes}, kDataValue);
}

TEST("an owner update that nobody waits for is found") {
  Cluster::check_found({.operations = 3, .tasks = 1, .ids = 2, .bug = Bug::OwnerUpdateLate},
                       kDangling, kBlockThere);
}

TEST("a pre-image freed before the completion is found") {
  Cluster::check_found({.operations = 1, .tasks = 1, .ids = 1, .crashes = 1, .bug = Bug::PreImageFreedEarly},
                       kDangling);
}

TEST("a rollback without a pre-image is found") {
  Cluster::check_found({.operations = 2, .tasks = 1, .ids = 1, .crashes = 1, .task_servers = 1,
                        .bug = Bug::WriteWithoutPreImage},
                       kDangling);
}

TEST("a completion applied twice is found") {
  Cluster::check_found({.operations = 2, .tasks = 1, .ids = 2, .duplicates = 1,
                        .bug = Bug::CompletionAppliedTwice},
                       kEndsOnce, kDangling);
}

TEST("a completion that is lost with its worker and not resent leaves the owner stuck") {
  Cluster::check_found({.operations = 1, .tasks = 1, .ids = 1, .crashes = 1, .bug = Bug::NothingResent},
                       kStuck);
}

TEST("a loss reported while a re-lend runs is found as two writers") {
  Cluster::check_found({.operations = 2, .tasks = 2, .ids = 2, .relends = 1, .crashes = 1,
                        .bug = Bug::LossReportedEarly},
                       kWriters, kDangling);
}

TEST("a transfer that leaves the old owner its value is found") {
  Cluster::check_found({.transfer = true, .operations = 1, .tasks = 1, .ids = 1,
                        .bug = Bug::TransferKeepsOwner},
                       kOneOwner);
}

TEST("a writer admitted beside readers is found") {
  Cluster::check_found({.operations = 2, .tasks = 2, .ids = 2, .bug = Bug::WriterIgnoresReaders}, kWriters);
}

TEST("blocks of a lost borrower that nobody reaps are found as a leak") {
  Cluster::check_found({.operations = 1, .tasks = 1, .ids = 1, .crashes = 1, .bug = Bug::LostBlocksKept},
                       kLeak);
}

TEST("a child's old block freed before the outcome of the lend is found") {
  Cluster::check_found({.family = true, .operations = 1, .tasks = 1, .ids = 1, .crashes = 1,
                        .bug = Bug::FreesNotQueued},
                       kLeak);
}

TEST("a poisoned value under its old colour is found when the poison is cleared") {
  Cluster::check_found({.large = true, .operations = 3, .tasks = 1, .ids = 3, .crashes = 1, .task_servers = 3,
                        .bug = Bug::PoisonKeepsColour},
                       kDataValue);
}

TEST("freeing the lent block under the colour it had when it was lent is found as a leak") {
  Cluster::check_found({.large = true, .operations = 1, .tasks = 2, .ids = 2, .relends = 1, .task_servers = 3,
                        .bug = Bug::OldColourFreed},
                       kLeak);
}

TEST("telling readers about a write is found") {
  Cluster::check_found({.operations = 2, .tasks = 1, .ids = 1, .bug = Bug::ReadersInvalidated}, kQuietAccess);
}

// --- the explorer itself, on a machine small enough to count by hand ---

struct Counter {
  struct State {
    std::uint32_t value;
  };
  using Action = std::uint32_t;
  std::uint32_t limit = 5;
  bool (*rule)(const State&) = [](const State&) { return true; };
  When when = When::Always;

  void initial_states(std::vector<State>& out) const { out.push_back({0}); }
  void actions(const State& s, std::vector<Action>& out) const {
    for (const Action step : {1U, 2U}) {
      if (s.value + step <= limit) out.push_back(step);
    }
  }
  State next(const State& s, Action step) const { return {s.value + step}; }
  std::string describe(const State& s, Action step) const {
    return std::to_string(s.value) + " + " + std::to_string(step);
  }
  std::vector<Property<State>> properties() const { return {{when, "the rule", rule}}; }
};

TEST("the explorer counts states, transitions and depth as a person does") {
  const Report report = explore(Counter{});
  CHECK(report.holds());
  CHECK_EQ(report.states, 6U);
  CHECK_EQ(report.transitions, 9U);
  CHECK_EQ(report.at_rest, 1U);
  CHECK_EQ(report.depth, 3U);
}

TEST("the explorer's counterexample is a shortest one") {
  const Report report = explore(Counter{.rule = [](const Counter::State& s) { return s.value != 4; }});
  CHECK(!report.holds());
  CHECK_EQ(report.trace.size(), 2U);
  CHECK_EQ(report.trace.at(1), std::string("2 + 2"));
}

TEST("a situation that never occurs is reported, one that does is not") {
  const auto six = [](const Counter::State& s) { return s.value == 6; };
  const auto five = [](const Counter::State& s) { return s.value == 5; };
  CHECK_EQ(explore(Counter{.rule = six, .when = When::Sometimes}).missed.size(), 1U);
  CHECK_EQ(explore(Counter{.rule = five, .when = When::Sometimes}).missed.size(), 0U);
}

TEST("a property at rest is asked only where nothing more can happen") {
  const auto five = [](const Counter::State& s) { return s.value == 5; };
  const auto four = [](const Counter::State& s) { return s.value == 4; };
  CHECK(explore(Counter{.rule = five, .when = When::AtRest}).holds());
  CHECK(!explore(Counter{.rule = four, .when = When::AtRest}).holds());
}

TEST("an exploration cut short does not claim to hold") {
  CHECK(!explore(Counter{.limit = 1000}, 10).holds());
}

}  // namespace
}  // namespace drust::test
