// cluster_describe.hpp: a step of the model in words, for the traces of counterexamples.
#pragma once

#include <string>

#include "test/model/cluster_model.hpp"

namespace drust::test {

inline std::string ClusterModel::describe(const State& s, const Action& action) const {
  static constexpr const char* kDo[] = {
      "borrows",         "borrows mutably", "looks again",   "begins to write", "has written",
      "ends its borrow", "lends shared",    "lends mutably", "transfers",       "starts",
      "returns",         "drops",           "clears poison", "crashes",         "crashes with its completion",
      "resends",         "is delivered",    "is duplicated", "gives back",      "dies",
      "is stopped",      "sees the server lost"};
  static constexpr const char* kKind[] = {"nothing", "read",        "read reply", "free",   "completion",
                                          "loss",    "acknowledge", "reap",       "update", "invalidation"};
  const std::string server = "server " + std::to_string(action.server);
  if (action.what == Do::FreeOrphans) return "server 0 frees what its dead owner left";
  if (action.what == Do::LoseServer) return server + " is lost";
  if (action.what == Do::Restart) return server + " comes back empty";
  if (action.what == Do::Sweep) return "the others free what was lent from the lost server 0";
  if (action.what == Do::Notice) {
    return server + " notices the loss of server " + std::to_string(action.object);
  }
  const std::string verb = kDo[static_cast<int>(action.what)];
  if (action.what == Do::Deliver || action.what == Do::Duplicate) {
    const Message& m = s.messages[action.agent];
    return std::string(kKind[static_cast<int>(m.kind)]) + " of address " + std::to_string(m.ref.address) +
           " colour " + std::to_string(m.ref.colour) + " for task " + std::to_string(m.id) + " " + verb;
  }
  const Agent& agent = s.agents[action.agent];
  if (action.what == Do::EndLost) {
    return "the lender of task " + std::to_string(agent.id) + " ends its lend into the lost server";
  }
  std::string who = agent.role == Role::Owner ? "the owner" : "task " + std::to_string(agent.id);
  who +=
      " on server " + std::to_string(agent.server) + " " + verb + " object " + std::to_string(action.object);
  const bool lends =
      action.what == Do::LendShared || action.what == Do::LendMut || action.what == Do::Transfer;
  if (lends) who += " to a task on server " + std::to_string(action.server);
  return who;
}

}  // namespace drust::test
