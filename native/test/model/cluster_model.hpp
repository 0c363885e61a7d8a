// cluster_model.hpp: the distributed protocol as a model for explorer.hpp: what may happen next, and what it
// does.
//
// Every decision is one of ownership.hpp, ownership_access.hpp and ownership_lend.hpp; cluster_world.hpp
// carries the actions out. Messages are delivered in any order (stronger than TCP, which keeps it within a
// connection). A worker may die before any step; the server process of its host lives. Reads by a process are
// not steps of their own: whatever a process may see at this moment is checked in every state
// (cluster_properties.hpp).
#pragma once

#include <string>
#include <vector>

#include "test/explorer.hpp"
#include "test/model/cluster_world.hpp"

namespace drust::test {

std::vector<Property<State>> cluster_properties(const Config& config);

enum class Do : Byte {
  Borrow,
  BorrowMut,
  Look,  // a reader that waited for another's fetch, or for room, looks again
  WriteBegin,
  WriteEnd,
  End,
  LendShared,
  LendMut,
  Transfer,
  Start,
  Return,
  Drop,
  ClearPoison,
  Crash,
  CrashAndLose,  // its completion, still on its way, is lost with it
  Resend,
  Deliver,
  Duplicate,
  GiveBack,     // the object it was given, in its completion
  OwnerDies,    // its process; the server lives
  Stop,         // a task that nobody waits for any more
  EndLost,      // a lend into a lost server, by the lender
  FreeOrphans,  // of the dead owner, by its server
  LoseServer,   // with all that is on it
  Notice,       // by another server
  Restart,
  Sweep,  // what was lent from the owner's lost server, by those who have it
};

struct Doing {
  Do what = Do::Borrow;
  Byte agent = 0;  // or the message's index
  Byte object = 0;  // Notice: the lost server
  Byte server = 0;  // of a lend, or whom a step of a whole server is about
};

class ClusterModel {
 public:
  using Config = test::Config;
  using State = test::State;
  using Action = Doing;

  explicit ClusterModel(const Config& config) : config_(config) {}

  void initial_states(std::vector<State>& out) const {
    State s;
    World world(s, config_);
    s.operations_left = config_.operations;
    s.crashes_left = config_.crashes;
    s.duplicates_left = config_.duplicates;
    s.owner_deaths_left = config_.owner_deaths;
    s.losses_left = config_.losses;
    s.restarts_left = config_.restarts;
    ensure(config_.ids <= kIds && config_.losses <= 1, "the model knows few tasks and one lost server");
    ensure(config_.losses == 0 || !config_.family, "a lost server is explored with one object");
    s.values = 1;
    Agent& owner = s.agents[0];
    owner.role = Role::Owner;
    owner.alive = 1;
    owner.phase = static_cast<Byte>(TaskPhase::Running);
    owner.handle[0].put(protocol::owned_state());
    Content content{.value = 1};
    for (int child = 1; child < kObjects && config_.family; ++child) {
      content.child[child - 1] = world.allocate(0, 0, {.value = 1});
      owner.handle[child].put(protocol::child_state());
    }
    owner.root = world.allocate(0, 0, content);
    for (int object = 0; object < (config_.family ? kObjects : 1); ++object)
      owner.expected[object] = 1;
    out.push_back(s);
  }

  void actions(const State& s, std::vector<Action>& out) const {
    for (Byte i = 0; i < kAgents; ++i) {
      const Agent& agent = s.agents[i];
      if (agent.role == Role::Free) continue;
      if (agent.lost != 0) {
        if (i != 0 && may_end_lost(s, i)) out.push_back({Do::EndLost, i, 0, 0});
        continue;
      }
      const auto phase = static_cast<TaskPhase>(agent.phase);
      if (phase == TaskPhase::Queued) {
        out.push_back({Do::Start, i, 0, 0});
        continue;
      }
      const bool decided = phase == TaskPhase::Returned || phase == TaskPhase::Lost;
      if (decided && !in_flight(s, i) && config_.bug != Bug::NothingResent)
        out.push_back({Do::Resend, i, 0, 0});
      if (agent.alive == 0) continue;
      if (agent.orphaned != 0) out.push_back({Do::Stop, i, 0, 0});
      if (i != 0 && s.crashes_left != 0) {
        out.push_back({Do::Crash, i, 0, 0});
        if (decided && in_flight(s, i)) out.push_back({Do::CrashAndLose, i, 0, 0});
      }
      if (phase == TaskPhase::Running) process_actions(s, i, out);
    }
    for (Byte m = 0; m < s.message_count(); ++m) {
      out.push_back({Do::Deliver, m, 0, 0});
      const Kind kind = s.messages[m].kind;
      if (s.duplicates_left != 0 && (kind == Kind::Free || kind == Kind::Completion)) {
        out.push_back({Do::Duplicate, m, 0, 0});
      }
    }
    loss_actions(s, out);
  }

  State next(const State& before, const Action& action) const;
  std::string describe(const State& s, const Action& action) const;
  std::vector<Property<State>> properties() const { return cluster_properties(config_); }

 private:
  // Deaths of the owner and of servers, and what the survivors do about them.
  void loss_actions(const State& s, std::vector<Action>& out) const {
    const Agent& owner = s.agents[0];
    if (s.owner_deaths_left != 0 && owner.alive != 0) out.push_back({Do::OwnerDies, 0, 0, 0});
    const bool dead = owner.alive == 0 && owner.lost == 0 && s.orphans_freed == 0;
    const bool drained = !s.lends_out() || config_.bug == Bug::OrphansFreedEarly;
    if (dead && drained) out.push_back({Do::FreeOrphans, 0, 0, 0});
    if (owner.lost != 0 && s.swept == 0 && s.fenced(0)) out.push_back({Do::Sweep, 0, 0, 0});
    for (Byte lost = 0; lost < kServers; ++lost) {
      const bool may_go = s.losses_left != 0 && (config_.loss_servers >> lost & 1) != 0;
      if (may_go) out.push_back({Do::LoseServer, 0, 0, lost});
      if ((s.ever_lost >> lost & 1) == 0) continue;
      if (s.down(lost) && s.restarts_left != 0) out.push_back({Do::Restart, 0, 0, lost});
      for (Byte server = 0; server < kServers; ++server) {
        const bool knows = (s.noticed[lost] >> server & 1) != 0;
        if (server != lost && !knows) out.push_back({Do::Notice, 0, lost, server});
      }
    }
  }

  bool may_end_lost(const State& s, Byte task) const {
    if (config_.bug != Bug::LendEndedBeforeFence) return s.fenced(task);
    return (s.noticed[s.agents[task].server] >> s.agents[s.agents[task].lender].server & 1) != 0;
  }

  static bool in_flight(const State& s, Byte agent) {
    for (const Message& m : s.messages) {
      const bool about = m.kind == Kind::Completion || m.kind == Kind::Loss || m.kind == Kind::Acknowledge;
      if (about && m.agent == agent && m.id == s.agents[agent].id) return true;
    }
    return false;
  }

  // What a running process may do: borrow its object, then a child of it, write, end, lend, return.
  void process_actions(const State& s, Byte i, std::vector<Action>& out) const {
    const Agent& agent = s.agents[i];
    const bool owner = agent.role == Role::Owner;
    const bool holds = agent.stage[0] == Stage::Held;
    if (agent.stage[0] == Stage::None) {
      const bool budget =
          owner ? s.operations_left != 0 : agent.writes_left != 0 || agent.role == Role::Reader;
      if (budget) offer_borrows(s, i, agent.base, out);
      offer_lends(s, i, agent.base, out);
      const OwnerState handle = agent.handle[agent.base].get();
      if (handle.has(protocol::kPoisoned) && owner) out.push_back({Do::ClearPoison, i, agent.base, 0});
      if (owner && apply(handle, {EventKind::Drop}).ok()) out.push_back({Do::Drop, i, agent.base, 0});
      if (!owner && may_return(agent)) {
        const bool gives = config_.give_back && agent.role == Role::Receiver;
        out.push_back({gives ? Do::GiveBack : Do::Return, i, agent.base, 0});
      }
      return;
    }
    const int level = agent.child != 0 ? 1 : 0;
    const Byte object = level == 1 ? agent.child : agent.base;
    const bool mutable_borrow = agent.mode[level] == static_cast<Byte>(Mode::Mutable);
    if (agent.stage[level] == Stage::Wait && !mutable_borrow && may_look(s, agent, object)) {
      out.push_back({Do::Look, i, object, 0});
    }
    if (agent.stage[level] == Stage::Torn) out.push_back({Do::WriteEnd, i, object, 0});
    if (agent.stage[level] != Stage::Held) return;
    if (mutable_borrow && agent.writes_left != 0) {
      if (agent.handle[object].get().writer == Writer::Local) out.push_back({Do::WriteBegin, i, object, 0});
    }
    if (holds && level == 0 && config_.family && agent.base == 0) {
      for (Byte child = 1; child < kObjects; ++child)
        offer_borrows(s, i, child, out);
      offer_lends(s, i, 1, out);
    }
    if (level == 1 || children_idle(agent)) out.push_back({Do::End, i, object, 0});
  }

  void offer_borrows(const State& s, Byte i, Byte object, std::vector<Action>& out) const {
    const Agent& agent = s.agents[i];
    const OwnerState handle = agent.handle[object].get();
    const Ref ref = s.pointer(agent, object);
    if (s.known_lost(agent.server, ref) && s.ready_copy(agent.server, ref) == nullptr) return;
    World world(const_cast<State&>(s), config_);
    if (config_.shared && world.decide(handle, {EventKind::Borrow}).ok())
      out.push_back({Do::Borrow, i, object, 0});
    if (world.decide(handle, {EventKind::BorrowMut}).ok()) out.push_back({Do::BorrowMut, i, object, 0});
  }

  void offer_lends(const State& s, Byte i, Byte object, std::vector<Action>& out) const {
    const Agent& agent = s.agents[i];
    const bool owner = agent.role == Role::Owner;
    if ((owner ? s.operations_left : agent.lends_left) == 0 || s.ids >= config_.ids) return;
    int running = 0;
    for (const Agent& other : s.agents)
      running += other.role != Role::Free && other.role != Role::Owner;
    if (running >= config_.tasks) return;
    World world(const_cast<State&>(s), config_);
    const OwnerState handle = agent.handle[object].get();
    for (Byte server = 0; server < kServers; ++server) {
      if ((config_.task_servers >> server & 1) == 0 || s.down(server)) continue;
      const bool known = (s.noticed[server] >> agent.server & 1) != 0;
      if ((s.ever_lost >> server & 1) != 0 && !known) continue;  // it still sends to the old one
      // Servers 1 and 2 are alike until the first task: one of the two stands for both.
      if (s.ids == 0 && config_.task_servers == 6 && server == 2) continue;
      if (config_.shared && world.decide(handle, {EventKind::LendShared}).ok()) {
        out.push_back({Do::LendShared, i, object, server});
      }
      if (world.decide(handle, {EventKind::LendMut}).ok()) out.push_back({Do::LendMut, i, object, server});
      if (owner && config_.transfer && object == agent.base &&
          world.decide(handle, {EventKind::Transfer}).ok()) {
        out.push_back({Do::Transfer, i, object, server});
      }
    }
  }

  bool may_look(const State& s, const Agent& agent, Byte object) const {
    const Copy* copy = s.find_copy(agent.server, s.pointer(agent, object));
    if (copy != nullptr) return copy->leader == 0;
    return World(const_cast<State&>(s), config_).entry(agent.server) != nullptr;
  }

  bool children_idle(const Agent& agent) const {
    if (!config_.family || agent.base != 0) return true;
    for (int child = 1; child < kObjects; ++child) {
      if (!apply(agent.handle[child].get(), {EventKind::ParentReleased}).ok()) return false;
    }
    return true;
  }

  static bool may_return(const Agent& agent) {
    if (agent.below != 0) return false;
    const EventKind last = agent.role == Role::Receiver ? EventKind::Drop : EventKind::Return;
    return apply(agent.handle[agent.base].get(), {last}).ok();
  }

  Config config_;
};

}  // namespace drust::test

#include "test/model/cluster_describe.hpp"
#include "test/model/cluster_properties.hpp"
#include "test/model/cluster_steps.hpp"
// After it: members of its Stepper.
#include "test/model/cluster_loss.hpp"
#include "test/model/cluster_outcome.hpp"
