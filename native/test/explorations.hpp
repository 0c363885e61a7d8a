// explorations.hpp: what tests of models share: a model that keeps every rule, with its counts, and one whose
// broken rule is found.
//
// Counts are pinned: a change of the protocol or of a model shows even when every property still holds. Look
// at the change, then copy the new numbers.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>

#include "test/explorer.hpp"
#include "test/harness.hpp"

namespace drust::test {

// Sanitizers slow the explorer down and have little to find in its one thread: they run smaller clusters,
// pinned beside.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSlow = true;
#else
inline constexpr bool kSlow = false;
#endif

struct Pinned {
  std::uint64_t states;
  std::uint64_t transitions;
  std::uint64_t at_rest;
};

// One model's two kinds of tests. `using Cluster = Explored<ClusterModel>;` then
//     Cluster::check_holds({.tasks = 2}, {states, transitions, at rest});
//     Cluster::check_found({.tasks = 2, .bug = Bug::ColourWraps}, kDataValue);
template <Model M>
struct Explored {
  using Config = typename M::Config;

  static void check_holds(const Config& config, const Pinned& pinned) {
    const Report report = explore(M(config));
    report.print();
    CHECK(report.complete);
    CHECK_EQ(report.violated, std::string());
    CHECK_EQ(report.missed.size(), 0U);
    CHECK_EQ(report.states, pinned.states);
    CHECK_EQ(report.transitions, pinned.transitions);
    CHECK_EQ(report.at_rest, pinned.at_rest);
  }

  // One rule is broken. Each claim is asked alone, as another may break earlier: found, with a trace.
  static void check_found(Config config, std::same_as<const char*> auto... claims) {
    static_assert(sizeof...(claims) > 0, "what breaks, if the mistake is made?");
    for (const char* claim : {claims...}) {
      config.only = claim;
      const Report report = explore(M(config));
      report.print();
      CHECK_EQ(report.violated, std::string(claim));
      CHECK(!report.trace.empty());
    }
  }
};

}  // namespace drust::test
