// explorations.hpp: what the tests of the cluster model share: a cluster that keeps every rule, with its counts, and one
// whose broken rule is found.
#pragma once

#include <cstdint>
#include <string>

#include "test/harness.hpp"
#include "test/model/cluster_model.hpp"

namespace drust::test {

// The sanitizers slow the explorer down and have nothing to find in its one thread: smaller clusters, pinned beside.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kSlow = true;
#else
inline constexpr bool kSlow = false;
#endif

struct Pinned {
  std::uint64_t states;
  std::uint64_t transitions;
  std::uint64_t at_rest;
};

inline void check_holds(const char* title, const Config& config, const Pinned& pinned) {
  const Report report = explore(ClusterModel(config));
  report.print(title);
  CHECK(report.complete);
  CHECK_EQ(report.violated, std::string());
  CHECK_EQ(report.missed.size(), 0U);
  CHECK_EQ(report.states, pinned.states);
  CHECK_EQ(report.transitions, pinned.transitions);
  CHECK_EQ(report.at_rest, pinned.at_rest);
}

// The same cluster with one rule broken: found, by the property that states the rule, with a trace.
inline void check_found(const char* title, const Config& config, const char* claim) {
  Config alone = config;
  alone.only = claim;  // another rule may break earlier; this one must break too
  const Report report = explore(ClusterModel(alone));
  report.print(title);
  CHECK_EQ(report.violated, std::string(claim));
  CHECK(!report.trace.empty());
}

inline constexpr const char* kDataValue = "a borrow sees what the mutable borrow before it wrote";
inline constexpr const char* kDangling = "no usable handle names a freed block";
inline constexpr const char* kWriters = "one writer or many readers";
inline constexpr const char* kLeak = "when all is quiet every block is reachable from the owner";
inline constexpr const char* kLateFree = "a late free never hits a block that reused the address";
inline constexpr const char* kOneOwner = "one owner";
inline constexpr const char* kBlockThere = "a block that somebody may read is there";
inline constexpr const char* kEndsOnce = "a lend ends once";
inline constexpr const char* kStuck = "nothing is stuck: at rest the value is gone and every block free";
inline constexpr const char* kWaits = "no borrow waits for a server that its own knows to be lost";
inline constexpr const char* kQuietAccess = "local access and writes send no message to readers";

}  // namespace drust::test
