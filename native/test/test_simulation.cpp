// The servers and their clients in a simulated network: a hundred thousand schedules, each from one seed, each
// compared with a plain model when it is over (sim/simulation.hpp; docs/simulation.md).
//
//     DRUST_SIM_SEED=N       the first test runs schedule N alone, and prints all that happens in it
//     DRUST_SIM_SCHEDULES=N  as many, in place of the number below
//
// The sanitizers run fewer; the thread sanitizer, which has nothing to find in one thread, hardly any.
#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdlib>

#include "test/harness.hpp"
#include "test/sim/simulation.hpp"

namespace drust::test {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kSchedules = 100;
#elif defined(__SANITIZE_ADDRESS__)
constexpr std::uint64_t kSchedules = 1'500;
#else
constexpr std::uint64_t kSchedules = 100'000;
#endif

std::uint64_t number_in(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

struct Row {
  const char* name;
  std::uint64_t Seen::*count;
  bool is_rare;  // not sure to occur in as few schedules as a sanitizer runs
};
constexpr std::array kRows = {
    Row{"calls to other servers", &Seen::calls, false},
    Row{"connections reset", &Seen::resets, false},
    Row{"connections lost in the middle of a request's body", &Seen::lost_in_body, false},
    Row{"calls and connections ended by silence", &Seen::silences, false},
    Row{"segments that a cut delayed", &Seen::late_segments, false},
    Row{"reads with a stale trailer", &Seen::stale_trailers, true},
    Row{"reads of a version that had moved on", &Seen::stale_refusals, false},
    Row{"reads served by the copy table", &Seen::copy_hits, false},
    Row{"values moved to their writer", &Seen::moves, false},
    Row{"repeated completions refused", &Seen::repeated_completions, false},
    Row{"tasks given up", &Seen::lost_tasks, false},
    Row{"completions of tasks that had been given up", &Seen::late_outcomes, false},
    Row{"late frees at an address that was used again", &Seen::frees_at_reused_address, false},
    Row{"frees lost with the server that was to send them", &Seen::lost_frees, true},
    Row{"blocks put whose answer was lost", &Seen::lost_blocks, true},
    Row{"servers crashed and restarted", &Seen::crashes, false},
    Row{"parts whose writer was lost", &Seen::parts_failed, false},
};
static_assert(sizeof(Seen) == (kRows.size() + 1) * sizeof(std::uint64_t), "every count of Seen has a row");

void add(Seen& sum, const Seen& one) {
  sum.schedules += one.schedules;
  for (const Row& row : kRows) sum.*row.count += one.*row.count;
}

#if !defined(__SANITIZE_THREAD__)
// A mistake is found within so many; most within a few dozen.
constexpr std::uint64_t kSchedulesPerMistake = 3'000;

// With one rule broken, the simulation finds it, by the check in whose words it is to be found.
void check_found(SimBug bug, const char* words) {
  Simulation simulation;
  SimReport report;
  std::uint64_t seed = 0;
  // Another check may see it earlier; this one must see it too.
  while (report.violation.empty() && seed < kSchedulesPerMistake)
    report = simulation.run({.seed = ++seed, .bug = bug, .only = words});
  if (!CHECK(!report.violation.empty())) return;
  std::printf("      seed %" PRIu64 ": %s\n", seed, report.violation.c_str());
  // The same seed shows it again, and nothing where the rule is kept.
  CHECK_EQ(simulation.run({.seed = seed, .bug = bug, .only = words}).violation, report.violation);
  CHECK_EQ(simulation.run({.seed = seed}).violation, std::string());
}
#endif

}  // namespace

TEST("in no schedule is anything lost, torn, applied twice, freed by a stranger or left behind") {
  Simulation simulation;
  if (const std::uint64_t seed = number_in("DRUST_SIM_SEED", 0); seed != 0) {
    CHECK_EQ(simulation.run({.seed = seed, .is_traced = true}).violation, std::string());
    return;
  }
  const std::uint64_t schedules = number_in("DRUST_SIM_SCHEDULES", kSchedules);
  Seen seen;
  for (std::uint64_t seed = 1; seed <= schedules; ++seed) {
    const SimReport report = simulation.run({.seed = seed});
    add(seen, report.seen);
    if (report.violation.empty()) continue;
    std::fprintf(stderr, "%s\n  again, step by step: DRUST_SIM_SEED=%" PRIu64 " test_simulation schedule\n",
                 report.violation.c_str(), seed);
    CHECK_EQ(seed, 0U);
    return;
  }
  std::printf("      %" PRIu64 " schedules\n", seen.schedules);
  for (const Row& row : kRows) {
    std::printf("      %10" PRIu64 " %s\n", seen.*row.count, row.name);
    if (schedules < (row.is_rare ? 50'000U : 1'000U)) continue;
    if (!CHECK(seen.*row.count > 0)) std::fprintf(stderr, "  it never happened: %s\n", row.name);
  }
}

TEST("a seed is one schedule, whatever ran before it") {
  std::vector<std::uint64_t> digests;
  {
    Simulation simulation;
    for (std::uint64_t seed = 1; seed <= 50; ++seed) digests.push_back(simulation.run({.seed = seed}).digest);
  }
  Simulation simulation;
  for (std::uint64_t seed = 50; seed > 0; --seed)
    CHECK_EQ(simulation.run({.seed = seed}).digest, digests[seed - 1]);
  std::sort(digests.begin(), digests.end());
  CHECK(std::adjacent_find(digests.begin(), digests.end()) == digests.end());  // and no two are the same
}

// --- broken on purpose: each must be found ---
#if !defined(__SANITIZE_THREAD__)

TEST("a server that puts a region in place before its whole body has arrived is found") {
  check_found(SimBug::early_write, "half written");
}

TEST("a free that ignores the colour is found") { check_found(SimBug::free_by_address, "freed by somebody else"); }

TEST("a completion that is applied twice is found") { check_found(SimBug::completion_twice, "two outcomes"); }

TEST("a submission sent again after it may have arrived is found") {
  check_found(SimBug::submit_twice, "run twice");
}

TEST("a read that is believed though its block moved on is found") {
  check_found(SimBug::trailer_ignored, "another version");
}

TEST("a mutable borrow that ends without a new colour is found") {
  check_found(SimBug::colour_kept, "another value than the last write's");
}

TEST("a borrower that frees the block it was lent is found") {
  check_found(SimBug::pre_image_freed, "freed by somebody else");
}

TEST("a writer that does not wait for its readers is found") {
  check_found(SimBug::write_unheld, "another value than the last write's");
}
#endif

}  // namespace drust::test
