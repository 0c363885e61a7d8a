// cluster_steps.hpp: ClusterModel::next, one function a kind of step; how a lend ends is in
// cluster_outcome.hpp, deaths are in cluster_loss.hpp.
#pragma once

#include "test/model/cluster_model.hpp"

namespace drust::test {

class Stepper {
 public:
  Stepper(State& state, const Config& config) : s_(state), config_(config), world_(state, config) {}

  void take(const Doing& doing) {
    Agent& agent = s_.agents[doing.agent < kAgents ? doing.agent : 0];
    switch (doing.what) {
      case Do::Borrow:
      case Do::BorrowMut:
      case Do::Look:
      case Do::WriteBegin:
      case Do::WriteEnd:
      case Do::End:
        access(agent, doing);
        return;
      case Do::LendShared:
      case Do::LendMut:
      case Do::Transfer:
        lend(doing);
        return;
      case Do::Start:
        agent.alive = 1;
        world_.tell_task(agent, TaskEvent::Start);
        return;
      case Do::Stop:
        crash(agent, false);
        return;
      case Do::GiveBack:
        world_.perform(agent, agent.base, apply(agent.handle[agent.base].get(), {EventKind::Transfer}));
        ensure(world_.tell_task(agent, TaskEvent::Return), "a task returns once, with nothing below it");
        return;
      case Do::OwnerDies:
        --s_.owner_deaths_left;
        end_process(agent, 0);
        agent.writes_left = s_.operations_left = 0;
        return;
      case Do::FreeOrphans:
        free_orphans();
        return;
      case Do::LoseServer:
        lose_server(doing.server);
        return;
      case Do::Notice:
        notice(doing.server, doing.object);
        return;
      case Do::EndLost:
        end_lost_lend(doing.agent);
        return;
      case Do::Sweep:
        sweep();
        return;
      case Do::Restart:
        restart(doing.server);
        return;
      case Do::Return: {
        const EventKind last = agent.role == Role::Receiver ? EventKind::Drop : EventKind::Return;
        world_.perform(agent, agent.base, apply(agent.handle[agent.base].get(), {last}));
        ensure(world_.tell_task(agent, TaskEvent::Return), "a task returns once, with nothing below it");
        return;
      }
      case Do::Drop:
        world_.perform(agent, 0, apply(agent.handle[0].get(), {EventKind::Drop}));
        return;
      case Do::ClearPoison:
        agent.handle[doing.object].put(
            apply(agent.handle[doing.object].get(), {EventKind::ClearPoison}).state);
        return;
      case Do::Crash:
      case Do::CrashAndLose:
        --s_.crashes_left;
        crash(agent, doing.what == Do::CrashAndLose);
        return;
      case Do::Resend:
        world_.tell_task(agent, TaskEvent::Resend);
        return;
      case Do::Duplicate:
        --s_.duplicates_left;
        s_.send(s_.messages[doing.agent]);
        return;
      case Do::Deliver: {
        const Message message = s_.messages[doing.agent];
        s_.take(doing.agent);
        deliver(message);
        return;
      }
    }
  }

 private:
  static int level_of(const Agent& agent, int object) { return object == agent.base ? 0 : 1; }

  // Steps of access; afterwards the messages they sent are held against what ownership promises.
  void access(Agent& agent, const Doing& doing) {
    const int before = s_.message_count();
    const Ref ref = s_.pointer(agent, doing.object);
    const int home = server_of(ref);
    const int level = level_of(agent, doing.object);
    if (doing.what == Do::Borrow || doing.what == Do::BorrowMut) {
      begin(agent, doing.object, doing.what == Do::BorrowMut ? Mode::Mutable : Mode::Shared);
    } else if (doing.what == Do::Look) {
      look(agent, doing.object);
    } else if (doing.what == Do::WriteBegin) {
      s_.block(ref).content.value = kTorn;
      agent.stage[level] = Stage::Torn;
      if (agent.writes_left != 0) --agent.writes_left;
    } else if (doing.what == Do::WriteEnd) {
      s_.block(ref).content.value = agent.expected[doing.object] = ++s_.values;
      ensure(s_.values < kGarbage, "values are few");
      agent.stage[level] = Stage::Held;
    } else {
      end(agent, doing.object);
    }
    for (int m = before; m < s_.message_count(); ++m) {
      const Message& message = s_.messages[m];
      const bool allowed = message.kind == Kind::Read || message.kind == Kind::Free;
      if (home == agent.server || !allowed || message.to != home) s_.breaches |= kNeedlessMessage;
    }
  }

  void begin(Agent& agent, Byte object, Mode mode) {
    const int level = level_of(agent, object);
    const Ref ref = s_.pointer(agent, object);
    const bool here = server_of(ref) == agent.server;
    if (agent.role == Role::Owner && level == 0) {
      --s_.operations_left;
      agent.writes_left = mode == Mode::Mutable;
    }
    if (level == 1) agent.child = object;
    agent.mode[level] = static_cast<Byte>(mode);
    agent.stage[level] = Stage::Wait;
    Event event{mode == Mode::Mutable ? EventKind::BorrowMut : EventKind::Borrow};
    if (!here) event.facts |= protocol::kElsewhere;
    if (config_.large) event.facts |= protocol::kInPlace;
    const Step step = world_.decide(agent.handle[object].get(), event);
    ensure(step.ok(), "only what is allowed is offered");
    world_.perform(agent, object, step);
    if (mode == Mode::Shared) {
      look(agent, object);
      return;
    }
    const Copy* copy = s_.ready_copy(agent.server, ref);
    switch (protocol::access(mode, here, copy != nullptr)) {
      case protocol::Access::Direct:
        hold(agent, object);
        return;
      case protocol::Access::MoveFromCopy:
        if (!config_.family || object != 0) {
          arrive(agent, object, copy->content, kGarbage);
          return;
        }
        [[fallthrough]];  // the tied child's copy may have been evicted: fetch both
      default:
        s_.send(read_request(agent, object, ref, mode));
        return;
    }
  }

  Message read_request(const Agent& agent, Byte object, Ref ref, Mode mode) const {
    return {.kind = Kind::Read,
            .to = static_cast<Byte>(server_of(ref)),
            .agent = static_cast<Byte>(&agent - s_.agents),
            .id = agent.id,
            .ref = ref,
            .object = object,
            .mode = static_cast<Byte>(mode)};
  }

  void look(Agent& agent, Byte object) {
    const Ref ref = s_.pointer(agent, object);
    const bool here = server_of(ref) == agent.server;
    const protocol::Access how =
        protocol::access(Mode::Shared, here, s_.ready_copy(agent.server, ref) != nullptr);
    if (how == protocol::Access::Direct || how == protocol::Access::UseCopy) {
      hold(agent, object);
      return;
    }
    if (s_.find_copy(agent.server, ref) != nullptr) return;  // another reader fetches it: wait
    Copy* entry = world_.entry(agent.server);
    if (entry == nullptr) return;  // every copy is in use: wait
    *entry = {
        .ref = ref, .leader = static_cast<Byte>(&agent - s_.agents + 1), .content = {.value = kGarbage}};
    if (config_.bug == Bug::CopyBeforeBytes) entry->leader = 0;
    s_.send(read_request(agent, object, ref, Mode::Shared));
  }

  // The bytes can be seen from here on; a borrowed parent lets its children be borrowed.
  void hold(Agent& agent, int object) {
    const int level = level_of(agent, object);
    agent.stage[level] = Stage::Held;
    if (level == 1 || agent.base != 0 || !config_.family) return;
    const bool mutable_borrow = agent.mode[0] == static_cast<Byte>(Mode::Mutable);
    tell_children(agent, mutable_borrow ? EventKind::ParentBorrowedMut : EventKind::ParentBorrowed);
  }

  void tell_children(Agent& agent, EventKind event) {
    for (int child = 1; child < kObjects; ++child) {
      const Step step = apply(agent.handle[child].get(), {event});
      ensure(step.ok(), "children are idle when their parent's borrow begins and ends");
      agent.handle[child].put(step.state);
    }
  }

  // The bytes of a mutable borrow have arrived: the object moves.
  void arrive(Agent& agent, Byte object, const Content& content, Byte tied) {
    const bool pre_image = agent.handle[object].get().has(protocol::kPreImage);
    const Ref left = world_.relocate(agent, object, content, tied);
    const Step step = apply(agent.handle[object].get(), {EventKind::Relocated});
    ensure(step.ok(), "only a writer waits for bytes to move");
    agent.handle[object].put(step.state);
    world_.release(agent, step.actions, left);
    if (config_.bug == Bug::PreImageFreedEarly && pre_image) world_.free_from(agent.server, left, false);
    hold(agent, object);
  }

  void end(Agent& agent, Byte object) {
    const int level = level_of(agent, object);
    if (level == 0 && config_.family && agent.base == 0) tell_children(agent, EventKind::ParentReleased);
    const bool mutable_borrow = agent.mode[level] == static_cast<Byte>(Mode::Mutable);
    const Step step =
        apply(agent.handle[object].get(), {mutable_borrow ? EventKind::BorrowMutEnd : EventKind::BorrowEnd});
    if (config_.bug != Bug::WriterIgnoresReaders) ensure(step.ok(), "an end has a beginning");
    world_.perform(agent, object, step);
    agent.stage[level] = Stage::None;
    agent.mode[level] = 0;
    if (level == 1) agent.child = 0;
    if (agent.role == Role::Owner && level == 0) agent.writes_left = 0;
  }

  void lend(const Doing& doing) {
    Agent& lender = s_.agents[doing.agent];
    const Byte object = doing.object;
    Event event{EventKind::LendShared};
    if (doing.what == Do::LendMut) event.kind = EventKind::LendMut;
    if (doing.what == Do::Transfer) event.kind = EventKind::Transfer;
    if (server_of(s_.pointer(lender, object)) != lender.server) event.facts |= protocol::kElsewhere;
    if (lender.role == Role::Owner) {
      --s_.operations_left;
    } else {
      --lender.lends_left;
      ensure(world_.tell_task(lender, TaskEvent::LendBelow), "only a running task lends");
    }
    const Step step = world_.decide(lender.handle[object].get(), event);
    world_.perform(lender, object, step);

    Agent* task = nullptr;
    for (Agent& free : s_.agents) {
      if (task == nullptr && free.role == Role::Free) task = &free;
    }
    ensure(task != nullptr, "tasks are limited by the configuration");
    const bool writer = doing.what == Do::LendMut;
    task->role = writer ? Role::Writer : doing.what == Do::Transfer ? Role::Receiver : Role::Reader;
    task->server = doing.server;
    task->lender = doing.agent;
    task->id = ++s_.ids;
    task->base = object;
    task->root = s_.pointer(lender, object);
    task->lent = task->lent_as = task->root;
    task->phase = static_cast<Byte>(TaskPhase::Queued);
    task->tree = static_cast<Byte>(1U << task->id);
    task->lends_left = config_.relends;
    task->writes_left = task->role == Role::Reader ? Byte{0} : config_.writes;
    task->handle[object].put(task->role == Role::Receiver
                                 ? protocol::received_state()
                                 : protocol::reference_state(writer ? Ceiling::Mutable : Ceiling::Shared));
    for (int known = 0; known < kObjects; ++known) {
      if (known == object || (config_.family && object == 0)) task->expected[known] = lender.expected[known];
    }
    open_children(*task);
    if (config_.losses != 0) {
      s_.outermost[task->id] = lender.role == Role::Owner ? task->id : s_.outermost[lender.id];
    }
    // Elsewhere no header is written: the lender's own record of what it owns there goes instead.
    const bool marks = (step.actions & protocol::kMarkInTransit) != 0 && config_.bug != Bug::NotMarkedInTransit;
    if (marks && server_of(task->root) == lender.server) s_.block(task->root).tag = task->id;
  }

  // Child handles of a value that came from elsewhere; under a lend their blocks may be its pre-image.
  void open_children(Agent& agent) {
    if (!config_.family || agent.base != 0) return;
    unsigned facts = protocol::kPublished;
    if (agent.role == Role::Writer) facts |= protocol::kPreImage;
    for (int child = 1; child < kObjects; ++child)
      agent.handle[child].put(protocol::child_state(facts));
  }

  void crash(Agent& agent, bool lose_completion) {
    const auto index = static_cast<Byte>(&agent - s_.agents);
    end_process(agent, index);
    for (int m = 0; lose_completion && m < s_.message_count(); ++m) {
      if (s_.messages[m].kind == Kind::Completion && s_.messages[m].agent == index) s_.take(m--);
    }
    world_.tell_task(agent, TaskEvent::WorkerLost);
    const bool returned = static_cast<TaskPhase>(agent.phase) == TaskPhase::Returned;
    if (returned && config_.bug == Bug::EntryClearedEarly) agent.phase = static_cast<Byte>(TaskPhase::Settled);
  }

  // Whatever it was: its borrows, its place-holders and what it waits for are gone.
  void end_process(Agent& agent, Byte index) {
    agent.alive = 0;
    for (Copy& copy : s_.copies[agent.server]) {
      if (copy.leader == index + 1) copy = {};
    }
    for (int level = 0; level < 2; ++level) {
      agent.stage[level] = Stage::None;
      agent.mode[level] = 0;
    }
    agent.child = 0;
    agent.writes_left = agent.lends_left = 0;
  }

  // cluster_loss.hpp
  void free_orphans();
  void lose_server(Byte server);
  void notice(Byte server, Byte lost);
  void abort_wait(Agent& agent);
  void end_lost_lend(Byte index);
  void sweep();
  void restart(Byte server);

  void deliver(const Message& m) {
    if (s_.down(m.to)) return;
    Agent& agent = s_.agents[m.agent];
    switch (m.kind) {
      case Kind::Read: {
        Message reply = m;
        reply.kind = Kind::ReadReply;
        reply.to = agent.server;
        if (s_.live(m.ref)) {
          reply.content = s_.block(m.ref).content;
          const Ref tied = reply.content.child[1];
          if (config_.family && m.object == 0 && s_.live(tied)) reply.tied = s_.block(tied).content.value;
        } else {
          reply.ref = {};
        }
        s_.send(reply);
        return;
      }
      case Kind::ReadReply:
        read_reply(agent, m);
        return;
      case Kind::Free:
        world_.free_at_home(m.ref, m.mode != 0);
        return;
      case Kind::Completion:
      case Kind::Loss:
        outcome(agent, m);
        return;
      case Kind::Acknowledge:
        if (agent.role == Role::Free || agent.id != m.id || agent.lost != 0) return;
        world_.tell_task(agent, TaskEvent::Acknowledge);
        return;
      case Kind::Reap:
        world_.reap(m.to, m.object, m.mode != 0);
        return;
      case Kind::Update:
        if (agent.role != Role::Free) agent.root = m.ref;
        return;
      case Kind::Invalidate:
      case Kind::None:
        return;
    }
  }

  void read_reply(Agent& agent, const Message& m) {
    if (agent.role == Role::Free || agent.alive == 0 || agent.id != m.id) return;  // it died: nobody waits
    const int level = level_of(agent, m.object);
    // It was told of a lost server meanwhile, and asks for something else now.
    if (agent.stage[level] != Stage::Wait || agent.mode[level] != m.mode) return;
    if (!m.ref && s_.went_with_server(s_.pointer(agent, m.object))) {
      abort_wait(agent);
      return;
    }
    if (!m.ref) {
      s_.breaches |= kLiveBlockLost;
      return;
    }
    if (m.mode == static_cast<Byte>(Mode::Mutable)) {
      arrive(agent, m.object, m.content, m.tied);
      return;
    }
    Copy* copy = s_.find_copy(agent.server, m.ref);
    if (copy == nullptr) return;
    copy->leader = 0;
    copy->content = m.content;
    const Ref tied = m.content.child[1];
    if (config_.family && m.object == 0 && s_.find_copy(agent.server, tied) == nullptr) {
      agent.stage[level] = Stage::Held;  // pins the parent's copy
      if (Copy* entry = world_.entry(agent.server)) *entry = {.ref = tied, .content = {.value = m.tied}};
    }
    if (agent.stage[level] != Stage::None) hold(agent, m.object);
  }

  // cluster_outcome.hpp
  void outcome(Agent& task, const Message& m);
  void end_lend(Agent& task, const Message& m, EventKind kind);
  void tell_lender(Agent& lender, const Agent& task, const Message& m, EventKind kind);
  void take_back(Agent& owner, const Agent& task, Ref ref);

  State& s_;
  const Config& config_;
  World world_;
};

inline State ClusterModel::next(const State& before, const Action& action) const {
  State after = before;
  Stepper(after, config_).take(action);
  after.sort_messages();
  return after;
}

}  // namespace drust::test
