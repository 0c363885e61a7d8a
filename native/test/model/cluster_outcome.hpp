// cluster_outcome.hpp: how a lend ends: a completion or a loss report reaches the lender, or its server.
#pragma once

#include "test/model/cluster_model.hpp"

namespace drust::test {

// A completion or a loss report reaches the lender: applied once, acknowledged always.
inline void Stepper::outcome(Agent& task, const Message& m) {
  if (task.role == Role::Free || task.id != m.id) {
    if (config_.bug == Bug::CompletionAppliedTwice && s_.agents[0].handle[0].get().phase < Phase::Moved) {
      s_.agents[0].root = m.ref;
    }
    return;
  }
  Agent& lender = s_.agents[task.lender];
  if (lender.lost != 0) return;
  // A known loss was or will be dealt with: what its incarnation still says hits nothing.
  if (task.lost != 0 && (s_.noticed[task.server] >> lender.server & 1) != 0) return;
  if (task.lost == 0) s_.send({.kind = Kind::Acknowledge, .to = task.server, .agent = m.agent, .id = m.id});
  const bool poisoned = m.kind == Kind::Loss && m.mode != 0;
  const Outcome outcome = m.kind == Kind::Completion ? Outcome::Committed
                          : poisoned                 ? Outcome::Poisoned
                                                     : Outcome::RolledBack;
  end_lend(task, m, protocol::end_of_lend(outcome, task.role == Role::Reader));
}

inline void Stepper::end_lend(Agent& task, const Message& m, EventKind kind) {
  Agent& lender = s_.agents[task.lender];
  if (task.handle[task.base].get().has(protocol::kPoisoned)) kind = EventKind::LendMutPoisoned;
  const bool forgotten = config_.bug == Bug::CompletionAppliedTwice;
  const auto ended =
      task.lend_ended != 0 && !forgotten ? protocol::LendPhase::Ended : protocol::LendPhase::Out;
  const protocol::LendStep step = protocol::end_lend(ended, kind, lender.role == Role::Writer);
  if (!step.apply_to_owner) return;
  task.lend_ended = 1;
  if (lender.role != Role::Owner && m.kind == Kind::Completion) lender.tree |= task.tree;
  if (lender.role != Role::Owner) lender.loss_below |= task.loss_below;
  // A dead owner's server keeps its records; a dead task's lends go with the task.
  const bool dead_owner = lender.role == Role::Owner && lender.alive == 0;
  if (dead_owner && config_.bug == Bug::DeadOwnersReportDropped) kind = EventKind::LendMutRolledBack;
  if (lender.alive != 0 || dead_owner) {
    tell_lender(lender, task, m, kind);
    for (int i = 0; i < task.queued_count; ++i) {
      if (step.run_queued_frees) world_.free_from(lender.server, task.queued[i], false);
      if (step.hand_frees_up) World::queue_free(lender, task.queued[i]);
    }
  }
  if (task.role == Role::Writer && lender.role != Role::Owner && task.base == lender.base &&
      task.lent.address == lender.lent.address && !(task.lent == lender.lent)) {
    lender.lent = task.lent;  // its pre-image was written over; a dead lender's server notes it as well
    world_.tell_task(lender, TaskEvent::ForbidRollback);
  }
  if (lender.role != Role::Owner) world_.tell_task(lender, TaskEvent::LendBelowEnded);
}

inline void Stepper::tell_lender(Agent& lender, const Agent& task, const Message& m, EventKind kind) {
  if (task.role == Role::Receiver) {
    if (kind == EventKind::LendMutCommitted && config_.give_back) take_back(lender, task, m.ref);
    return;
  }
  const int object = task.base;
  Event event{task.role == Role::Reader ? EventKind::LendSharedEnd : kind};
  const Ref before = s_.pointer(lender, object);
  // The block we lent, under the colour it has now.
  const Ref left = config_.bug == Bug::OldColourFreed ? before : task.lent;
  if (m.ref.address != before.address) event.facts |= protocol::kNewAddress;
  if (!(left == before)) event.facts |= protocol::kInPlace;
  const Step step = world_.decide(lender.handle[object].get(), event);
  if (!step.ok()) {
    s_.breaches |= kTwoOutcomes;
    return;
  }
  lender.handle[object].put(step.state);
  if ((step.actions & protocol::kForbidRollback) != 0) world_.tell_task(lender, TaskEvent::ForbidRollback);
  if ((step.actions & protocol::kAdoptPointer) != 0) {
    if (config_.bug == Bug::OwnerUpdateLate) {
      s_.send({.kind = Kind::Update, .to = lender.server, .agent = task.lender, .ref = m.ref});
    } else {
      world_.set_pointer(lender, object, m.ref);
    }
    for (int known = 0; known < kObjects; ++known) {
      if (known == object || object == 0) lender.expected[known] = task.expected[known];
    }
    // A poisoned value is what its block holds: whoever clears the poison has accepted it.
    if (kind == EventKind::LendMutPoisoned) lender.expected[object] = s_.block(m.ref).content.value;
    if (object == 0) open_children(lender);
  }
  world_.release(lender, step.actions, left);
}

// A completion that carries the object itself.
inline void Stepper::take_back(Agent& owner, const Agent& task, Ref ref) {
  if (owner.alive == 0) {  // nobody will take it
    world_.free_from(owner.server, ref, true);
    return;
  }
  owner.handle[0].put(protocol::received_state());
  owner.root = ref;
  owner.expected[0] = task.expected[0];
  if (server_of(ref) == owner.server) s_.block(ref).tag = 0;
}

}  // namespace drust::test
