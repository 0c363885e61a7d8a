// cluster_claims.hpp: the claims of the cluster model by name, and how its tests ask for them.
#pragma once

#include "test/explorations.hpp"
#include "test/model/cluster_model.hpp"

namespace drust::test {

using Cluster = Explored<ClusterModel>;

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
