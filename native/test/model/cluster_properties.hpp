// cluster_properties.hpp: what must hold in every state of the model, at rest, and what must have been seen.
//
// A process sees an object whenever its stage is Held: there is no step "read", every state is checked for
// every process that might read in it. That makes the data-value invariant as strong as it can be stated
// here.
#pragma once

#include "test/model/cluster_model.hpp"

namespace drust::test {
namespace properties {

inline bool counts(const Agent& agent) { return agent.role != Role::Free && agent.alive != 0; }

inline bool one_owner(const State& s) {
  int owners = 0;
  for (const Agent& agent : s.agents) {
    const bool owns = agent.role == Role::Owner || agent.role == Role::Receiver;
    const bool lost =
        agent.role == Role::Receiver && static_cast<TaskPhase>(agent.phase) > TaskPhase::Running;
    if (owns && !lost && agent.handle[agent.base].get().phase < Phase::Moved) ++owners;
  }
  return owners <= 1;
}

inline bool one_writer_or_many_readers(const State& s) {
  int readers[kObjects] = {};
  int writers[kObjects] = {};
  for (const Agent& agent : s.agents) {
    if (!counts(agent)) continue;
    for (int level = 0; level < 2; ++level) {
      if (agent.stage[level] == Stage::None) continue;
      const int object = level == 0 ? agent.base : agent.child;
      (agent.mode[level] == static_cast<Byte>(Mode::Mutable) ? writers : readers)[object] += 1;
    }
  }
  for (int object = 0; object < kObjects; ++object) {
    if (writers[object] > 1 || (writers[object] == 1 && readers[object] != 0)) return false;
  }
  return true;
}

inline bool data_value(const State& s) {
  for (const Agent& agent : s.agents) {
    if (!counts(agent)) continue;
    for (int level = 0; level < 2; ++level) {
      if (agent.stage[level] != Stage::Held) continue;
      const int object = level == 0 ? agent.base : agent.child;
      const Content* content = s.seen(agent, s.pointer(agent, object));
      if (content == nullptr || content->value != agent.expected[object]) return false;
    }
  }
  return true;
}

// A handle that may be used names a live block; one that is lent out mutably names its pre-image.
inline bool no_dangling_pointer(const State& s) {
  for (const Agent& agent : s.agents) {
    if (!counts(agent) || static_cast<TaskPhase>(agent.phase) != TaskPhase::Running) continue;
    const OwnerState handle = agent.handle[agent.base].get();
    if (s.went_with_server(agent.root)) continue;
    if (handle.phase < Phase::Moved && !s.live(agent.root)) return false;
  }
  return true;
}

// The same where borrowers write large objects in place: their colour moves on before the owner hears of it.
inline bool no_dangling_pointer_large(const State& s) {
  for (const Agent& agent : s.agents) {
    if (!counts(agent) || static_cast<TaskPhase>(agent.phase) != TaskPhase::Running) continue;
    const OwnerState handle = agent.handle[agent.base].get();
    if (s.went_with_server(agent.root)) continue;
    if (handle.phase < Phase::Modified && !s.live(agent.root)) return false;
  }
  return true;
}

inline bool quiet(const State& s) {
  const bool dead_owner = s.agents[0].alive == 0;
  if (dead_owner && s.orphans_freed == 0 && s.swept == 0) return false;
  for (int i = 1; i < kAgents; ++i) {
    if (s.agents[i].role != Role::Free) return false;
  }
  return s.message_count() == 0 && s.agents[0].stage[0] == Stage::None;
}

inline bool nothing_leaks(const State& s) {
  if (!quiet(s)) return true;
  int live = 0;
  for (const Block& block : s.blocks)
    live += block.colour != 0;
  const Agent& owner = s.agents[0];
  if (owner.handle[0].get().phase >= Phase::Moved) return live == 0;
  if (s.went_with_server(owner.root)) return live == 0;
  if (!s.live(owner.root)) return false;
  int reachable = 1;
  for (const Ref child : s.block(owner.root).content.child) {
    if (child && !s.live(child)) return false;
    reachable += child ? 1 : 0;
  }
  return live == reachable;
}

inline bool at_rest_all_is_over(const State& s) {
  return quiet(s) && s.agents[0].handle[0].get().phase >= Phase::Moved;
}

// Nobody waits for a server that everybody knows to be lost.
inline bool no_wait_for_the_lost(const State& s) {
  for (const Agent& agent : s.agents) {
    if (!counts(agent) || agent.stage[0] != Stage::Wait) continue;
    if (s.known_lost(agent.server, agent.root)) return false;
  }
  return true;
}

template <Breach breach>
bool never(const State& s) {
  return (s.breaches & breach) == 0;
}

// --- sometimes ---
inline bool a_stale_copy_lies_about(const State& s) {
  for (int server = 0; server < kServers; ++server) {
    for (const Copy& copy : s.copies[server]) {
      if (!copy.ref || copy.leader != 0 || s.live(copy.ref)) continue;
      const Block& block = s.block(copy.ref);
      if (block.colour != 0 && block.content.value != copy.content.value)
        return true;  // same address, newer bytes
    }
  }
  return false;
}

inline bool a_late_free_meets_a_reused_address(const State& s) {
  for (const Message& m : s.messages) {
    if (m.kind == Kind::Free && !s.live(m.ref) && s.block(m.ref).colour != 0) return true;
  }
  return false;
}

inline bool a_rollback_after_a_write(const State& s) {
  for (const Message& m : s.messages) {
    if (m.kind != Kind::Loss || m.mode != 0) continue;
    const Agent& task = s.agents[m.agent];
    const Agent& lender = s.agents[task.lender];
    if (task.role == Role::Writer && task.expected[task.base] != lender.expected[task.base]) return true;
  }
  return false;
}

inline bool a_poisoned_value(const State& s) { return s.agents[0].handle[0].get().has(protocol::kPoisoned); }

inline bool readers_on_two_servers(const State& s) {
  int servers = 0;
  for (const Agent& agent : s.agents) {
    if (counts(agent) && agent.role == Role::Reader && agent.stage[0] == Stage::Held)
      servers |= 1 << agent.server;
  }
  return (servers & (servers - 1)) != 0;
}

inline bool two_readers_share_one_copy(const State& s) {
  for (int i = 1; i < kAgents; ++i) {
    for (int j = i + 1; j < kAgents; ++j) {
      const Agent& a = s.agents[i];
      const Agent& b = s.agents[j];
      const bool held = counts(a) && counts(b) && a.stage[0] == Stage::Held && b.stage[0] == Stage::Held;
      if (held && a.server == b.server && a.root == b.root && server_of(a.root) != a.server) return true;
    }
  }
  return false;
}

inline bool moved_twice(const State& s) {  // to two servers, neither of them the first
  const Agent& owner = s.agents[0];
  const bool owns = owner.handle[0].get().phase < Phase::Moved && s.live(owner.root);
  return owns && s.block(owner.root).tag > 1 && server_of(owner.root) != 0;
}

inline bool a_task_dies_with_a_lend_below(const State& s) {
  for (const Agent& agent : s.agents) {
    if (agent.role != Role::Free && static_cast<TaskPhase>(agent.phase) == TaskPhase::Dying) return true;
  }
  return false;
}

inline bool a_completion_arrives_again(const State& s) {
  for (const Message& m : s.messages) {
    const Agent& task = s.agents[m.agent];
    if (m.kind == Kind::Completion && (task.role == Role::Free || task.id != m.id)) return true;
  }
  return false;
}

inline bool a_child_lent_below_its_borrowed_parent(const State& s) {
  for (const Agent& agent : s.agents) {
    if (agent.base == 1 && counts(agent) && agent.stage[0] == Stage::Held) return true;
  }
  return false;
}

inline bool a_child_far_from_its_parent(const State& s) {
  const Agent& owner = s.agents[0];
  if (!s.live(owner.root)) return false;
  const Content& content = s.block(owner.root).content;
  return content.child[0] && server_of(content.child[0]) != server_of(owner.root) &&
         server_of(content.child[1]) == server_of(owner.root);
}

inline bool an_orphaned_block_waits_for_its_lends(const State& s) {
  const bool dead = s.agents[0].alive == 0 && s.agents[0].lost == 0;
  return dead && s.lends_out() && s.live(s.agents[0].root);
}

inline bool a_completion_for_a_dead_owner(const State& s) {
  const Agent& owner = s.agents[0];
  for (const Message& m : s.messages) {
    const Agent& task = s.agents[m.agent];
    const bool home = m.kind == Kind::Completion && task.id == m.id && task.lender == 0;
    if (home && owner.alive == 0 && owner.lost == 0) return true;
  }
  return false;
}

inline bool a_task_of_a_lost_lender_runs(const State& s) {
  for (const Agent& agent : s.agents) {
    if (agent.orphaned != 0 && agent.alive != 0 && agent.stage[0] == Stage::Held) return true;
  }
  return false;
}

inline bool a_lend_waits_for_the_fence(const State& s) {
  for (int i = 1; i < kAgents; ++i) {
    const Agent& task = s.agents[i];
    if (task.lost == 0 || s.agents[task.lender].lost != 0 || s.fenced(i)) continue;
    if ((s.noticed[task.server] >> s.agents[task.lender].server & 1) != 0) return true;
  }
  return false;
}

inline bool a_value_outlives_its_borrowers_server(const State& s) {
  for (const Agent& task : s.agents) {
    const bool moved = task.lost != 0 && task.role == Role::Writer && task.lend_ended == 0;
    if (moved && task.writes_left == 0 && s.live(task.lent_as) && s.agents[task.lender].lost == 0) return true;
  }
  return false;
}

inline bool a_lost_incarnation_speaks_late(const State& s) {
  for (const Message& m : s.messages) {
    const Agent& task = s.agents[m.agent];
    const bool late = m.kind == Kind::Completion && task.id == m.id && task.lost != 0;
    if (late && (s.noticed[task.server] >> s.agents[task.lender].server & 1) != 0) return true;
  }
  return false;
}

inline bool a_worker_dies_between_return_and_acknowledgement(const State& s) {
  for (const Agent& agent : s.agents) {
    const auto phase = static_cast<TaskPhase>(agent.phase);
    if (agent.role != Role::Free && phase == TaskPhase::Returned && agent.alive == 0 && agent.lend_ended == 0) return true;
  }
  return false;
}

inline bool a_lost_address_is_used_again(const State& s) {
  for (const Message& m : s.messages) {
    if (m.kind == Kind::Free && s.went_with_server(m.ref) && s.block(m.ref).colour != 0) return true;
  }
  return false;
}

inline bool a_receiver_borrows(const State& s) {
  for (const Agent& agent : s.agents) {
    if (agent.role == Role::Receiver && counts(agent) && agent.stage[0] == Stage::Torn) return true;
  }
  return false;
}

}  // namespace properties

inline std::vector<Property<State>> cluster_properties(const Config& config) {
  using namespace properties;
  std::vector<Property<State>> all = {
      {When::Always, "one owner", one_owner},
      {When::Always, "one writer or many readers", one_writer_or_many_readers},
      {When::Always, "a borrow sees what the mutable borrow before it wrote", data_value},
      {When::Always, "no usable handle names a freed block",
       config.large ? no_dangling_pointer_large : no_dangling_pointer},
      {When::Always, "a block that somebody may read is there", never<kLiveBlockLost>},
      {When::Always, "local access and writes send no message to readers", never<kNeedlessMessage>},
      {When::Always, "a late free never hits a block that reused the address", never<kFreedByStranger>},
      {When::Always, "a lend ends once", never<kTwoOutcomes>},
      {When::Always, "no borrow waits for a server that its own knows to be lost", no_wait_for_the_lost},
      {When::Always, "when all is quiet every block is reachable from the owner", nothing_leaks},
      {When::AtRest, "nothing is stuck: at rest the value is gone and every block free", at_rest_all_is_over},
  };
  if (config.only != nullptr) {
    std::erase_if(all, [&](const Property<State>& p) { return std::string(p.claim) != config.only; });
  }
  if (config.bug != Bug::None) return all;
  if (config.writes != 0) all.push_back({When::Sometimes, "an object moves twice", moved_twice});
  if (!config.family && config.shared) {
    all.push_back({When::Sometimes, "a stale copy lies about while its address holds newer bytes",
                   a_stale_copy_lies_about});
  }
  if (config.tasks > 1 && !config.family && config.shared) {
    all.push_back({When::Sometimes, "two readers read on two servers", readers_on_two_servers});
    all.push_back({When::Sometimes, "two readers share one copy", two_readers_share_one_copy});
  }
  if (config.duplicates != 0) {
    all.push_back(
        {When::Sometimes, "a late free meets a reused address", a_late_free_meets_a_reused_address});
    all.push_back({When::Sometimes, "a completion arrives again", a_completion_arrives_again});
  }
  if (config.crashes != 0 && config.large)
    all.push_back({When::Sometimes, "a value is poisoned", a_poisoned_value});
  if (config.crashes != 0 && !config.large) {
    all.push_back({When::Sometimes, "a borrower that wrote is rolled back", a_rollback_after_a_write});
  }
  if (config.crashes != 0) {
    all.push_back({When::Sometimes, "a worker dies after its return, before that is acknowledged",
                   a_worker_dies_between_return_and_acknowledgement});
  }
  if (config.crashes != 0 && config.relends != 0) {
    all.push_back({When::Sometimes, "a task dies with a lend below it", a_task_dies_with_a_lend_below});
  }
  if (config.family) {
    all.push_back({When::Sometimes, "a child is lent below its borrowed parent",
                   a_child_lent_below_its_borrowed_parent});
    all.push_back({When::Sometimes, "a child is far from its parent, the tied one is not",
                   a_child_far_from_its_parent});
  }
  if (config.owner_deaths != 0) {
    all.push_back({When::Sometimes, "an orphaned block waits for its lends",
                   an_orphaned_block_waits_for_its_lends});
    all.push_back({When::Sometimes, "a completion comes home to a dead owner", a_completion_for_a_dead_owner});
  }
  if (config.losses != 0 && config.relends != 0) {
    all.push_back({When::Sometimes, "a task of a lost lender runs on", a_task_of_a_lost_lender_runs});
  }
  if ((config.loss_servers & 6) != 0) {
    all.push_back(
        {When::Sometimes, "a value outlives its borrower's server", a_value_outlives_its_borrowers_server});
    all.push_back({When::Sometimes, "a lost incarnation speaks late", a_lost_incarnation_speaks_late});
    if (config.relends != 0) {
      all.push_back(
          {When::Sometimes, "a lend into a lost server waits for the fence", a_lend_waits_for_the_fence});
    }
  }
  if (config.restarts != 0 && config.operations > 1) {
    all.push_back({When::Sometimes, "a free for a lost block meets a new one at its address",
                   a_lost_address_is_used_again});
  }
  if (config.transfer) all.push_back({When::Sometimes, "a new owner writes", a_receiver_borrows});
  return all;
}

}  // namespace drust::test
