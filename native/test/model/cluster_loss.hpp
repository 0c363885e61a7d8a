// cluster_loss.hpp: the steps that follow a death: of the owner's process, whose server lives, and of a whole
// server.
//
// A process. Its server keeps the lend records: it takes the reports as the owner would, and frees what the
// process owned when none of its lends is out: by the header word in its own partition, by the owner's record
// elsewhere.
//
// A server. Its blocks, copies, processes, queue and records are gone at once; what it has sent may still
// arrive. The others notice one by one. From then on they refuse what that incarnation sends, end the waits
// for it, and tell the tasks that were lent from there. When all have noticed and none of those tasks runs
// (the fence), lends into the lost server end: rolled back, unless the block that was lent has another colour
// where it lies. Its lender then has all freed that is tagged with that task as the outermost. Where the
// lender is itself a task, the outermost one above it has freed, when it ends, what was made below it and not
// committed into it. What was lent from the lost server's own processes is freed by whoever has it.
#pragma once

#include "test/model/cluster_model.hpp"

namespace drust::test {

inline void Stepper::free_orphans() {
  Agent& owner = s_.agents[0];
  s_.orphans_freed = 1;
  const Step step = world_.decide(owner.handle[0].get(), {EventKind::OwnerLost});
  ensure(step.ok(), "orphans wait for the lends of their process");
  world_.perform(owner, 0, step);
  world_.free_owned_by_owner(owner.server);
}

inline void Stepper::lose_server(Byte lost) {
  --s_.losses_left;
  s_.lost_servers = s_.ever_lost = static_cast<Byte>(1U << lost);
  for (int slot = 0; slot < kSlots; ++slot)
    s_.blocks[lost * kSlots + slot] = {};
  for (Copy& copy : s_.copies[lost])
    copy = {};
  for (Byte i = 0; i < kAgents; ++i) {
    Agent& agent = s_.agents[i];
    if (agent.role == Role::Free || agent.server != lost) continue;
    end_process(agent, i);
    agent.lost = 1;
    if (agent.role == Role::Owner) {
      s_.operations_left = 0;
      OwnerState gone = protocol::owned_state();
      gone.phase = Phase::Dropped;
      agent.handle[0].put(gone);
      agent.root = {};
      continue;
    }
    const bool says_more = static_cast<TaskPhase>(agent.phase) == TaskPhase::Returned;
    if (!says_more) {
      agent.tree = agent.forbidden = agent.queued_count = agent.below = agent.orphaned = 0;
      for (Ref& ref : agent.queued)
        ref = {};
      agent.root = {};
    }
    agent.phase = static_cast<Byte>(TaskPhase::Settled);  // nobody has its record
  }
}

inline void Stepper::notice(Byte server, Byte lost) {
  s_.noticed[lost] = static_cast<Byte>(s_.noticed[lost] | 1U << server);
  for (Agent& agent : s_.agents) {
    if (agent.role == Role::Free || agent.server != server || agent.lost != 0) continue;
    const bool waits = agent.alive != 0 && agent.stage[0] == Stage::Wait;
    if (waits && s_.went_with_server(agent.root) && config_.bug != Bug::WaitNotEnded) abort_wait(agent);
    if (agent.role == Role::Owner) continue;
    const Agent& lender = s_.agents[agent.lender];
    if (lender.lost != 0 && lender.server == lost) world_.tell_task(agent, TaskEvent::LenderLost);
  }
}

// The borrow ends with an error; readers that wait for the same fetch look again.
inline void Stepper::abort_wait(Agent& agent) {
  const bool mutable_borrow = agent.mode[0] == static_cast<Byte>(Mode::Mutable);
  Copy* copy = s_.find_copy(agent.server, agent.root);
  if (copy != nullptr && copy->leader == &agent - s_.agents + 1) *copy = {};
  const EventKind end = mutable_borrow ? EventKind::BorrowMutAborted : EventKind::BorrowEnd;
  const Step step = apply(agent.handle[agent.base].get(), {end});
  ensure(step.ok(), "an end has a beginning");
  world_.perform(agent, agent.base, step);
  agent.stage[0] = Stage::None;
  agent.mode[0] = 0;
  if (agent.role == Role::Owner) agent.writes_left = 0;
}

inline void Stepper::end_lost_lend(Byte index) {
  Agent& task = s_.agents[index];
  const Agent& lender = s_.agents[task.lender];
  if (lender.lost != 0) {  // between two processes of the lost server: nobody's
    task = {};
    return;
  }
  const Byte id = task.id;
  const Byte server = lender.server;
  const bool receiver = task.role == Role::Receiver;
  const bool outermost = lender.role == Role::Owner;
  const bool ended = task.lend_ended != 0;
  if (!ended) {
    const Ref lent = task.lent_as;
    const int colour = s_.went_with_server(lent) ? lent.colour : s_.block(lent).colour;
    auto block = protocol::LentBlock::AsLent;
    if (s_.went_with_server(lent)) block = protocol::LentBlock::ItsServerLost;
    const bool asks = task.role == Role::Writer && config_.bug != Bug::LostColourNotAsked;
    if (asks && colour != lent.colour) block = protocol::LentBlock::WrittenOver;
    task.lent = make_ref(lent.address, asks ? colour : lent.colour);
    const Outcome outcome = protocol::outcome_of_lost_server(Outcome::RolledBack, block);
    const Message found{.kind = Kind::Loss, .agent = index, .id = id, .ref = task.lent};
    task.loss_below = 1;
    task.handle[task.base] = {};  // whatever it held is not what it returns
    task.queued_count = 0;
    end_lend(task, found, protocol::end_of_lend(outcome, task.role == Role::Reader));
    if (receiver) world_.free_from(lender.server, lent, true);  // it owned it
  }
  task = {};
  if (!ended && outermost) world_.reap_below(server, id, 0, receiver);
}

inline void Stepper::sweep() {
  s_.swept = 1;
  if (config_.bug == Bug::OwnersServerNotSwept) return;
  for (int server = 0; server < kServers; ++server) {
    if (!s_.down(server)) world_.reap(server, 0xff, false);
  }
}

inline void Stepper::restart(Byte server) {
  --s_.restarts_left;
  s_.lost_servers = 0;
  if (config_.bug != Bug::IncarnationKept) s_.noticed[server] |= static_cast<Byte>(1U << server);
  if (config_.bug != Bug::IncarnationKept) ++s_.incarnations[server];
  s_.colours[server] = static_cast<Byte>(s_.incarnations[server] * kIncarnation);
}

}  // namespace drust::test
