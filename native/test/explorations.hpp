// explorations.hpp: what tests of models share: a model that keeps every rule, with its counts, and one whose
// broken rule is found.
//
// Counts are pinned: a change of the protocol or of a model shows even when every property still holds. Look
// at the change, then copy the new numbers.
#pragma once

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

template <Model M>
void check_every_state(const char* title, const M& model, const Pinned& pinned) {
  const Report report = explore(model);
  report.print(title);
  CHECK(report.complete);
  CHECK_EQ(report.violated, std::string());
  CHECK_EQ(report.missed.size(), 0U);
  CHECK_EQ(report.states, pinned.states);
  CHECK_EQ(report.transitions, pinned.transitions);
  CHECK_EQ(report.at_rest, pinned.at_rest);
}

// A model with one rule broken, asked for one claim alone (another may break earlier): found, with a trace.
template <Model M>
void check_broken_rule(const char* title, const M& model, const char* claim) {
  const Report report = explore(model);
  report.print(title);
  CHECK_EQ(report.violated, std::string(claim));
  CHECK(!report.trace.empty());
}

}  // namespace drust::test
