// cluster_world.hpp: how the model's cluster carries out what the protocol decides: blocks, frees, copies,
// fetches.
//
// Everything here is what the runtime does with the actions of ownership.hpp; nothing here decides who may
// borrow. `Bug` breaks one rule at a time: the tests show that the explorer finds each.
#pragma once

#include "test/model/cluster_state.hpp"

namespace drust::test {

using protocol::apply;
using protocol::Ceiling;
using protocol::Event;
using protocol::EventKind;
using protocol::Mode;
using protocol::Outcome;
using protocol::OwnerState;
using protocol::Phase;
using protocol::Step;
using protocol::TaskEvent;
using protocol::TaskPhase;
using protocol::TaskRecord;
using protocol::TaskStep;
using protocol::Verdict;
using protocol::Writer;

enum class Bug {
  None,
  ColourNotBumped,         // the end of a mutable borrow keeps the colour
  ColourRestarts,          // a block's colour restarts when its address is allocated again
  ColourWraps,             // colours have one bit
  FreeIgnoresColour,       // a free trusts the address alone
  CopyBeforeBytes,         // a copy can be found before its bytes have arrived
  OwnerUpdateLate,         // the new pointer travels in a message of its own, after the lend has ended
  PreImageFreedEarly,      // a borrower that moved the object frees the old block at once
  WriteWithoutPreImage,    // a borrower writes in place and is rolled back all the same
  CompletionAppliedTwice,  // a resent completion is applied again
  LossReportedEarly,       // a task is reported lost while a re-lend of it runs
  WriterIgnoresReaders,    // a mutable borrow is granted while readers are out
  LostBlocksKept,          // what a lost borrower had made is not reaped
  FreesNotQueued,          // a child's old block is freed before the outcome of the lend is known
  ReadersInvalidated,      // the end of a write tells every server with a copy
  TransferKeepsOwner,      // the old owner may go on after a transfer
  NothingResent,           // a completion that died with its worker is not sent again
  PoisonKeepsColour,       // a value that was half written in place keeps the colour of the version before
  OldColourFreed,          // the lender frees the block it lent under the colour that it had then
  EntryClearedEarly,       // a worker that returned clears its entry before the lender has acknowledged
  OrphansFreedEarly,       // a dead owner's object is freed while a lend of it is out
  DeadOwnersReportDropped,  // a completion for a dead owner is acknowledged and forgotten
  NotMarkedInTransit,      // a block that moves to another owner still names the old one
  LendEndedBeforeFence,    // a lend into a lost server ends while something lent from there runs
  OrphanReturnsReaped,     // what a task had returned is freed when its lender's server is lost
  WaitNotEnded,            // a borrow that waits for a lost server goes on waiting
  LostColourNotAsked,      // a lend into a lost server is rolled back without asking for the block's colour
  TreeOfLostKept,          // what a lost server's task had lent on is not freed elsewhere
  OwnersServerNotSwept,    // what a lost server's processes owned elsewhere stays
  IncarnationKept,         // a server comes back with the incarnation it had
};

struct Config {
  bool family = false;  // a parent with an owned child and a tied one; else one object
  bool large = false;   // tasks write in place: no pre-image, a crash poisons
  bool transfer = false;
  Byte operations = 0;  // of the owner: borrows and lends
  Byte tasks = 1;       // at a time
  Byte ids = 0;         // tasks in all
  Byte relends = 0;     // a task may lend on
  Byte writes = 1;      // of a task
  Byte crashes = 0;
  Byte duplicates = 0;
  Byte task_servers = 6;  // mask: where tasks run
  bool shared = true;     // shared borrows and lends take place
  bool give_back = false;    // who was given the object gives it back instead of dropping it
  Byte owner_deaths = 0;     // of the owner's process; its server lives
  Byte losses = 0;           // of a whole server, at most one
  Byte loss_servers = 0;     // mask: which may be lost
  Byte restarts = 0;         // a lost server comes back, empty
  Bug bug = Bug::None;
  const char* only = nullptr;  // with a bug: the one property to check
};

class World {
 public:
  World(State& state, const Config& config) : s_(state), config_(config) {}

  // --- protocol, with the seeded mistakes that concern it ---
  Step decide(const OwnerState& handle, const Event& event) const {
    const bool write = event.kind == EventKind::BorrowMut || event.kind == EventKind::LendMut;
    if (config_.bug == Bug::WriterIgnoresReaders && write && handle.phase == Phase::Shared) {
      OwnerState forgetful = handle;
      forgetful.phase = Phase::Owned;
      forgetful.local_readers = forgetful.shared_lends = 0;
      return apply(forgetful, event);
    }
    if (config_.bug == Bug::WriterIgnoresReaders && event.kind == EventKind::LendSharedEnd &&
        handle.shared_lends == 0) {
      return {handle};
    }
    if (config_.bug == Bug::OrphansFreedEarly && event.kind == EventKind::OwnerLost) {
      OwnerState forgetful = handle;
      forgetful.shared_lends = 0;
      if (forgetful.writer == Writer::Lend) forgetful.writer = Writer::Local;
      if (forgetful.writer == Writer::None && handle.phase < Phase::Moved) forgetful.phase = Phase::Owned;
      return apply(forgetful, event);
    }
    if (config_.bug == Bug::WriteWithoutPreImage && write) {
      Step step = apply(handle, {event.kind, static_cast<Byte>(event.facts | protocol::kInPlace)});
      step.actions &= ~protocol::Actions{protocol::kForbidRollback};
      return step;
    }
    Step step = apply(handle, event);
    if (config_.bug == Bug::TransferKeepsOwner && event.kind == EventKind::Transfer)
      step.state.phase = Phase::Owned;
    return step;
  }

  // --- blocks ---
  int draw(int server, int colour_before) {
    Byte& counter = s_.colours[server];
    if (config_.bug == Bug::ColourRestarts) return colour_before + 1;
    counter =
        config_.bug == Bug::ColourWraps ? static_cast<Byte>(counter % 2 + 1) : static_cast<Byte>(counter + 1);
    ensure(counter % kIncarnation != 0, "the model has 63 colours an incarnation");
    return counter;
  }

  Ref allocate(int server, Byte tag, const Content& content) {
    for (int slot = 0; slot < kSlots; ++slot) {
      const int address = server * kSlots + slot + 1;
      Block& block = s_.blocks[address - 1];
      if (block.colour != 0) continue;
      block = {static_cast<Byte>(draw(server, 0)), tag, content};
      return make_ref(address, block.colour);
    }
    ensure(false, "the model's partition is full: raise kSlots");
    return {};
  }

  void free_at_home(Ref ref, bool tree) {
    Block& block = s_.block(ref);
    if (block.colour != ref.colour) {  // the compare-and-swap fails: late, resent, or freed with its lend
      if (config_.bug != Bug::FreeIgnoresColour || block.colour == 0) return;
      s_.breaches |= kFreedByStranger;
    }
    const Content content = block.content;
    block = {};
    if (!tree) return;
    for (const Ref child : content.child)
      free_from(server_of(ref), child, true);
  }

  void free_from(int server, Ref ref, bool tree) {
    if (!ref) return;
    if (server_of(ref) == server) {
      free_at_home(ref, tree);
    } else {
      s_.send({.kind = Kind::Free, .to = static_cast<Byte>(server_of(ref)), .ref = ref, .mode = tree});
    }
  }

  // What a process of `server` owns there by the word in the header.
  void free_owned_by_owner(int server) {
    for (int slot = 0; slot < kSlots; ++slot) {
      const int address = server * kSlots + slot + 1;
      const Block& block = s_.blocks[address - 1];
      if (block.colour != 0 && block.tag == 0) free_at_home(make_ref(address, block.colour), true);
    }
  }

  // On every server that lives, from `server`.
  void reap_everywhere(int from, Byte tasks, bool trees) {
    for (int server = 0; server < kServers; ++server) {
      bool tagged = false;
      for (int slot = 0; slot < kSlots; ++slot) {
        const Block& block = s_.blocks[server * kSlots + slot];
        tagged |= block.colour != 0 && block.tag != 0 && (tasks >> block.tag & 1) != 0;
      }
      if (!tagged) continue;
      if (server == from) {
        reap(server, tasks, trees);
      } else {
        s_.send({.kind = Kind::Reap, .to = static_cast<Byte>(server), .object = tasks, .mode = trees});
      }
    }
  }

  // What the tasks below `outermost`, and itself, have made: all but what was committed up to it.
  void reap_below(int from, Byte outermost, Byte committed, bool trees = false) {
    unsigned tasks = 0;
    for (unsigned id = 1; id <= kIds; ++id)
      tasks |= s_.outermost[id] == outermost ? 1U << id : 0U;
    if (config_.bug != Bug::TreeOfLostKept) reap_everywhere(from, static_cast<Byte>(tasks & ~committed), trees);
  }

  void reap(int server, Byte tasks, bool trees) {
    for (int slot = 0; slot < kSlots; ++slot) {
      const int address = server * kSlots + slot + 1;
      const Block& block = s_.blocks[address - 1];
      if (block.colour != 0 && block.tag != 0 && (tasks >> block.tag & 1) != 0) {
        free_at_home(make_ref(address, block.colour), trees);
      }
    }
  }

  void set_pointer(Agent& agent, int object, Ref ref) {
    if (object == agent.base) {
      agent.root = ref;
    } else {
      ensure(server_of(agent.root) == agent.server && s_.live(agent.root),
             "a parent is patched where it lies");
      s_.block(agent.root).content.child[object - 1] = ref;
    }
  }

  // --- actions, in the order of their bits; `left` is the block the object was in ---
  void perform(Agent& agent, int object, const Step& step) {
    agent.handle[object].put(step.state);
    Ref left = s_.pointer(agent, object);
    if ((step.actions & protocol::kMoveToNewBlock) != 0) {
      left = relocate(agent, object, s_.block(left).content);
    }
    if ((step.actions & protocol::kBumpColour) != 0 && config_.bug != Bug::ColourNotBumped) {
      Block& block = s_.block(left);
      if (config_.bug == Bug::ReadersInvalidated) tell_readers(left);
      block.colour = static_cast<Byte>(draw(agent.server, block.colour));
      set_pointer(agent, object, make_ref(left.address, block.colour));
      if (object == agent.base) note_colour(agent, agent.root);
    }
    if ((step.actions & protocol::kPublish) != 0 && config_.family && object == 0) {
      for (int child = 1; child < kObjects; ++child) {
        OwnerState state = agent.handle[child].get();
        state.set(protocol::kPublished);
        agent.handle[child].put(state);
      }
    }
    if ((step.actions & protocol::kForbidRollback) != 0) tell_task(agent, TaskEvent::ForbidRollback);
    if ((step.actions & protocol::kDropLocalCopy) != 0) {
      Copy* copy = s_.find_copy(agent.server, left);
      if (copy != nullptr && copy->leader == 0) *copy = {};
    }
    release(agent, step.actions, left);
  }

  void release(Agent& agent, protocol::Actions actions, Ref left) {
    const bool tree = (actions & protocol::kFreeTree) != 0;
    if (!tree && (actions & protocol::kFreeOldBlock) == 0) return;
    if ((actions & protocol::kQueueFree) != 0 && config_.bug != Bug::FreesNotQueued) {
      queue_free(agent, left);
    } else {
      free_from(agent.server, left, tree);
    }
  }

  // The record of a task follows the colour of the block it was lent, where that is written in place.
  static void note_colour(Agent& agent, Ref now) {
    if (agent.lent.address == now.address) agent.lent = now;
  }

  static void queue_free(Agent& agent, Ref ref) {
    ensure(agent.queued_count < 6, "the model queues six frees a lend");
    agent.queued[agent.queued_count++] = ref;
  }

  // The object's bytes to a new block here, with the tied child of a parent. Returns the block left.
  Ref relocate(Agent& agent, int object, Content content, Byte tied = kGarbage) {
    const Ref left = s_.pointer(agent, object);
    const Ref tied_left = content.child[1];
    const bool moves_tied = config_.family && object == 0;
    if (moves_tied) {
      if (tied == kGarbage) tied = s_.block(tied_left).content.value;
      content.child[1] = allocate(agent.server, agent.id, {.value = tied});
    }
    set_pointer(agent, object, allocate(agent.server, agent.id, content));
    if (moves_tied) {
      const Step step = apply(agent.handle[2].get(), {EventKind::MovedWithParent});
      ensure(step.ok(), "a tied child is idle when its parent moves");
      agent.handle[2].put(step.state);
      release(agent, step.actions, tied_left);
    }
    return left;
  }

  // --- copies ---
  [[nodiscard]] bool pinned(int server, Ref ref) const {
    for (const Agent& agent : s_.agents) {
      if (agent.role == Role::Free || agent.alive == 0 || agent.server != server) continue;
      if (agent.stage[0] == Stage::Held && agent.root == ref) return true;
      if (agent.stage[1] == Stage::Held && s_.pointer(agent, agent.child) == ref) return true;
    }
    return false;
  }

  // An entry to fill: an empty one, else the first that nobody pins (lazy eviction).
  Copy* entry(int server) {
    for (Copy& copy : s_.copies[server]) {
      if (!copy.ref) return &copy;
    }
    for (Copy& copy : s_.copies[server]) {
      if (copy.leader == 0 && !pinned(server, copy.ref)) return &copy;
    }
    return nullptr;
  }

  void tell_readers(Ref ref) {
    for (int server = 0; server < kServers; ++server) {
      if (s_.find_copy(server, ref) != nullptr) {
        s_.send({.kind = Kind::Invalidate, .to = static_cast<Byte>(server), .ref = ref});
      }
    }
  }

  // --- tasks ---
  bool tell_task(Agent& agent, TaskEvent event) {
    if (agent.role == Role::Owner) return true;
    TaskRecord record{.phase = static_cast<TaskPhase>(agent.phase),
                      .forbidden = agent.forbidden != 0,
                      .orphaned = agent.orphaned != 0,
                      .below = agent.below};
    if (config_.bug == Bug::LossReportedEarly && event == TaskEvent::WorkerLost) record.below = 0;
    TaskStep step = apply(record, event);
    if (!step.ok) return false;
    const bool returned = record.phase == TaskPhase::Returned && event == TaskEvent::LenderLost;
    if (returned && config_.bug == Bug::OrphanReturnsReaped) step.actions |= protocol::kReapTree;
    agent.phase = static_cast<Byte>(step.record.phase);
    agent.forbidden = step.record.forbidden;
    agent.orphaned = step.record.orphaned;
    agent.below = static_cast<Byte>(step.record.below);
    const auto index = static_cast<Byte>(&agent - s_.agents);
    const bool ended = record.phase < TaskPhase::Returned && step.record.phase >= TaskPhase::Returned;
    if (ended && agent.loss_below != 0 && s_.outermost[agent.id] == agent.id) {
      const bool returned = step.record.phase == TaskPhase::Returned;
      reap_below(agent.server, agent.id, returned ? agent.tree : Byte{0});
    }
    if ((step.actions & protocol::kReapTree) != 0) reap_tree(agent);
    if ((step.actions & protocol::kSendTaskCompletion) != 0) {
      s_.send({.kind = Kind::Completion,
               .to = s_.agents[agent.lender].server,
               .agent = index,
               .id = agent.id,
               .ref = agent.root});
    }
    const bool poisoned = (step.actions & protocol::kReportPoisoned) != 0;
    if (poisoned || (step.actions & protocol::kReportRolledBack) != 0) {
      s_.send({.kind = Kind::Loss,
               .to = s_.agents[agent.lender].server,
               .agent = index,
               .id = agent.id,
               .ref = agent.lent,
               .mode = poisoned});
    }
    if ((step.actions & protocol::kForgetTask) != 0) agent = {};
    return true;
  }

 private:
  void reap_tree(Agent& agent) {
    if (config_.bug == Bug::LostBlocksKept) return;
    const bool receiver = agent.role == Role::Receiver;  // the value was its own: it goes whole
    if (receiver && s_.live(agent.root)) free_from(agent.server, agent.root, true);
    reap_everywhere(agent.server, agent.tree, receiver);
    agent.queued_count = 0;
    for (Ref& ref : agent.queued)
      ref = {};
    // Written in place: whoever clears the poison must not meet copies of the version before under its
    // colour.
    if (config_.bug == Bug::PoisonKeepsColour) return;
    if (agent.forbidden != 0 && server_of(agent.lent) == agent.server && s_.live(agent.lent)) {
      Block& block = s_.block(agent.lent);
      block.colour = static_cast<Byte>(draw(agent.server, block.colour));
      agent.lent.colour = block.colour;
    }
  }

  State& s_;
  const Config& config_;
};

}  // namespace drust::test
