// The pure protocol: every small case, each rule accepting and rejecting, and the document that prints the
// table.
//
// Set DRUST_UPDATE_DOCS to rewrite the generated blocks of docs/protocol.md instead of comparing them.
#include <cstdint>
#include <initializer_list>
#include <set>
#include <tuple>
#include <vector>

#include "protocol/ownership.hpp"
#include "protocol/ownership_access.hpp"
#include "test/harness.hpp"

namespace drust::test {
namespace {

using namespace protocol;
using K = EventKind;

// Every well-formed state with counters up to two, and every event with every set of facts.
std::vector<OwnerState> small_states() {
  std::vector<OwnerState> out;
  for (int phase = 0; phase <= 4; ++phase) {
    for (int writer = 0; writer <= 3; ++writer) {
      for (int ceiling = 0; ceiling <= 3; ++ceiling) {
        for (unsigned flags = 0; flags < 128; ++flags) {
          for (std::uint32_t counts = 0; counts < 27; ++counts) {
            const OwnerState s{static_cast<Phase>(phase),
                               static_cast<Writer>(writer),
                               static_cast<Ceiling>(ceiling),
                               static_cast<std::uint8_t>(flags),
                               counts % 3,
                               counts / 3 % 3,
                               counts / 9};
            if (well_formed(s)) out.push_back(s);
          }
        }
      }
    }
  }
  return out;
}

std::vector<Event> events() {
  std::vector<Event> out;
  for (int kind = 0; kind < kEventKindCount; ++kind) {
    for (unsigned facts = 0; facts < 16; ++facts) {
      out.push_back({static_cast<K>(kind), static_cast<std::uint8_t>(facts), 2});
    }
  }
  return out;
}

Step run(std::initializer_list<Event> events, OwnerState s = owned_state()) {
  Step step{s};
  for (const Event& event : events) {
    step = apply(step.state, event);
    if (!step.ok()) return step;
  }
  return step;
}

bool has(const Step& step, Actions wanted) { return (step.actions & wanted) == wanted; }
bool has_any(const Step& step, Actions unwanted) { return (step.actions & unwanted) != 0; }

// --- every small case ---

TEST("no event leads out of the well-formed states") {
  for (const OwnerState& s : small_states()) {
    for (const Event& event : events()) {
      const Step step = apply(s, event);
      if (!CHECK(well_formed(step.state))) return;
    }
  }
}

TEST("a refused event changes nothing and asks for nothing") {
  std::uint64_t refused = 0;
  for (const OwnerState& s : small_states()) {
    for (const Event& event : events()) {
      const Step step = apply(s, event);
      if (step.ok()) continue;
      ++refused;
      if (!CHECK(step.state == s && step.actions == 0)) return;
    }
  }
  CHECK(refused > 10'000);
}

TEST("readers and a writer never hold an object together") {
  for (const OwnerState& s : small_states()) {
    for (const Event& event : events()) {
      const OwnerState after = apply(s, event).state;
      const bool readers = after.local_readers != 0 || after.shared_lends != 0;
      if (!CHECK(!readers || after.writer == Writer::None)) return;
    }
  }
}

TEST("the inlined fast paths equal the general function in every small case") {
  struct Path {
    bool (*fast)(OwnerState&);
    Event event;
    Actions actions;
  };
  const Path paths[] = {
      {[](OwnerState& s) { return try_borrow(s); }, {K::Borrow}, 0},
      {[](OwnerState& s) { return try_borrow_end(s); }, {K::BorrowEnd}, 0},
      {[](OwnerState& s) { return try_borrow_mut(s); }, {K::BorrowMut}, kDropSharedDecode},
      {[](OwnerState& s) { return try_borrow_mut_end(s); }, {K::BorrowMutEnd}, 0},
  };
  std::vector<OwnerState> states = small_states();
  states.push_back(
      {.phase = Phase::Shared, .local_readers = kCountMax});  // the fast path must not wrap either
  for (const Path& path : paths) {
    std::uint64_t taken = 0;
    for (const OwnerState& s : states) {
      OwnerState fast = s;
      if (!path.fast(fast)) {
        if (!CHECK(fast == s)) return;
        continue;
      }
      ++taken;
      const Step step = apply(s, path.event);
      if (!CHECK(step.ok() && step.state == fast && step.actions == path.actions)) return;
    }
    CHECK(taken > 5);
  }
}

TEST("the fast path takes the plain borrow of an owned object") {
  OwnerState s = owned_state();
  CHECK(try_borrow(s));
  CHECK(try_borrow_end(s));
  CHECK(try_borrow_mut(s));
  CHECK(try_borrow_mut_end(s));
  CHECK(s == owned_state());
}

TEST("the states a handle can reach with two readers, lends and parts are these many") {
  // Reached from a Box, a RefMut, a Ref and a child with each of their facts; pinned like the explorer's
  // counts.
  const auto key = [](const OwnerState& s) {
    return std::tuple(s.phase, s.writer, s.ceiling, s.flags, s.local_readers, s.shared_lends, s.parts_out);
  };
  const auto count = [&](const OwnerState& first) {
    std::set<decltype(key(first))> seen = {key(first)};
    std::vector<OwnerState> open = {first};
    while (!open.empty()) {
      const OwnerState s = open.back();
      open.pop_back();
      for (const Event& event : events()) {
        const Step step = apply(s, event);
        if (step.state.local_readers > 2 || step.state.shared_lends > 2) continue;
        if (seen.insert(key(step.state)).second) open.push_back(step.state);
      }
    }
    return seen.size();
  };
  CHECK_EQ(count(owned_state()), 103U);
  CHECK_EQ(count(reference_state(Ceiling::Mutable)), 112U);
  CHECK_EQ(count(reference_state(Ceiling::Shared)), 19U);
  CHECK_EQ(count(child_state(kPublished | kPreImage)), 185U);
}

// --- one writer or many readers ---

TEST("many readers are admitted, a writer beside them is refused") {
  CHECK(run({{K::Borrow}, {K::Borrow}, {K::LendShared}}).ok());
  CHECK_EQ(run({{K::Borrow}, {K::BorrowMut}}).verdict, Verdict::BorrowMutConflict);
  CHECK_EQ(run({{K::LendShared}, {K::LendMut}}).verdict, Verdict::BorrowMutConflict);
}

TEST("a reader beside any kind of writer is refused") {
  for (const K writer : {K::BorrowMut, K::LendMut, K::SplitMut}) {
    CHECK_EQ(run({{writer, 0, 2}, {K::Borrow}}).verdict, Verdict::BorrowConflict);
    CHECK_EQ(run({{writer, 0, 2}, {K::LendShared}}).verdict, Verdict::BorrowConflict);
    CHECK_EQ(run({{writer, 0, 2}, {K::BorrowMut}}).verdict, Verdict::BorrowMutConflict);
  }
}

TEST("an end without a beginning is refused, not counted below zero") {
  for (const K end :
       {K::BorrowEnd, K::BorrowMutEnd, K::LendSharedEnd, K::LendMutCommitted, K::PartEnd, K::Join}) {
    CHECK_EQ(apply(owned_state(), {end}).verdict, Verdict::NotBorrowed);
  }
}

TEST("a counter that would wrap refuses the borrow") {
  const OwnerState s{.phase = Phase::Shared, .local_readers = kCountMax, .shared_lends = kCountMax};
  CHECK_EQ(apply(s, {K::Borrow}).verdict, Verdict::TooMany);
  CHECK_EQ(apply(s, {K::LendShared}).verdict, Verdict::TooMany);
}

// --- publishing and colours ---

TEST("an object that was never handed out keeps its colour through any number of writes") {
  const Step step = run({{K::BorrowMut}, {K::BorrowMutEnd}, {K::BorrowMut}, {K::BorrowMutEnd}});
  CHECK(!has_any(step, kBumpColour));
}

TEST("the first lend publishes, the next one of the same version does not") {
  CHECK(has(run({{K::LendShared}}), kPublish | kRecordLend));
  CHECK(!has_any(run({{K::LendShared}, {K::LendShared}}), kPublish));
}

TEST("the first write after a lend draws a colour, and the next lend publishes again") {
  CHECK(has(run({{K::LendShared}, {K::LendSharedEnd}, {K::BorrowMut}, {K::BorrowMutEnd}}), kBumpColour));
  CHECK(has(run({{K::LendShared}, {K::LendSharedEnd}, {K::BorrowMut}, {K::BorrowMutEnd}, {K::LendMut}}),
            kPublish));
}

TEST("a borrow that could not bring the bytes leaves the object as it was") {
  const OwnerState s = run({{K::LendShared}, {K::LendSharedEnd}}).state;
  CHECK(run({{K::BorrowMut, kElsewhere}, {K::BorrowMutAborted}}, s).state == s);
}

// --- views that outlive a borrow ---

TEST("a view that outlives a shared borrow makes the next write move the object, once") {
  const Event end{K::BorrowEnd, kSurvivors};
  CHECK(has(run({{K::Borrow}, end, {K::BorrowMut}}), kMoveToNewBlock | kKeepForViews | kFreeOldBlock));
  CHECK(
      !has_any(run({{K::Borrow}, end, {K::BorrowMut}, {K::BorrowMutEnd}, {K::BorrowMut}}), kMoveToNewBlock));
}

TEST("views that died in time cost nothing") {
  CHECK(!has_any(run({{K::Borrow}, {K::BorrowEnd, kSurvivors}, {K::PinsGone}, {K::BorrowMut}}),
                 kMoveToNewBlock));
}

TEST("a writable view that outlives a mutable borrow never reaches the live version") {
  const Step step = run({{K::BorrowMut}, {K::BorrowMutEnd, kSurvivors}});
  CHECK(has(step, kMoveToNewBlock | kKeepForViews));
  CHECK(!has_any(step, kBumpColour));  // the new block has a colour of its own
}

TEST("views of an object elsewhere are views of a copy and move nothing twice") {
  const Step step = run({{K::Borrow}, {K::BorrowEnd, kSurvivors}, {K::BorrowMut, kElsewhere}});
  CHECK(has(step, kMoveHere));
  CHECK(!has_any(step, kMoveToNewBlock));
}

TEST("an object whose views are alive is moved before it changes hands") {
  CHECK(has(run({{K::Borrow}, {K::BorrowEnd, kSurvivors}, {K::Transfer}}), kMoveToNewBlock | kPublish));
  CHECK(has(run({{K::Borrow}, {K::BorrowEnd, kSurvivors}, {K::Drop}}), kKeepForViews | kFreeTree));
}

// --- lends, pre-images ---

TEST("a committed lend brings the new pointer and frees the old block only if the object moved") {
  CHECK(
      has(run({{K::LendMut}, {K::LendMutCommitted, kNewAddress}}), kAdoptPointer | kFreeOldBlock | kEndLend));
  CHECK(!has_any(run({{K::LendMut}, {K::LendMutCommitted}}), kFreeOldBlock));
}

TEST("a lend that is rolled back changes neither pointer nor version") {
  const OwnerState s = run({{K::LendShared}, {K::LendSharedEnd}}).state;
  const Step step = run({{K::LendMut}, {K::LendMutRolledBack}}, s);
  CHECK(step.state == s);
  CHECK_EQ(step.actions, Actions{kEndLend});
}

TEST("a poisoned object refuses to be read until it is cleared or replaced") {
  const OwnerState s = run({{K::LendMut}, {K::LendMutPoisoned}}).state;
  CHECK_EQ(apply(s, {K::Borrow}).verdict, Verdict::Poisoned);
  CHECK_EQ(apply(s, {K::IntoInner}).verdict, Verdict::Poisoned);
  CHECK(run({{K::ClearPoison}, {K::Borrow}}, s).ok());
  CHECK(run({{K::Replace}, {K::Borrow}}, s).ok());
  CHECK(apply(s, {K::Drop}).ok());
}

TEST("a borrower writes into a new block and leaves the lender's as the pre-image") {
  const Step step = run({{K::BorrowMut}}, reference_state(Ceiling::Mutable));
  CHECK(has(step, kMoveToNewBlock));
  CHECK(!has_any(step, kFreeOldBlock | kQueueFree));  // the lender frees it, once it has our pointer
  CHECK(!has_any(run({{K::BorrowMutEnd}, {K::BorrowMut}}, step.state), kMoveToNewBlock));  // one copy a lend
}

TEST("a large object is written in place, and then the lend cannot be rolled back") {
  const Step step = run({{K::BorrowMut, kInPlace}}, reference_state(Ceiling::Mutable));
  CHECK(has(step, kForbidRollback));
  CHECK(!has_any(step, kMoveToNewBlock));
  CHECK(!has_any(run({{K::BorrowMut, kInPlace}}), kForbidRollback));  // an owner answers to nobody
}

TEST("a child's block below a lend is freed with the lend, a later one at once") {
  const OwnerState child = run({{K::ParentBorrowedMut}}, child_state(kPublished | kPreImage)).state;
  const Step first = run({{K::BorrowMut, kElsewhere}, {K::Relocated}}, child);
  CHECK(has(first, kFreeOldBlock | kQueueFree));
  const Step second = run({{K::BorrowMutEnd}, {K::BorrowMut, kElsewhere}, {K::Relocated}}, first.state);
  CHECK(has(second, kFreeOldBlock));
  CHECK(!has_any(second, kQueueFree));
}

TEST("moving a child out of a lent parent forbids the rollback, out of an owned one does not") {
  const auto take = [](unsigned facts) {
    return run({{K::ParentBorrowedMut}, {K::Transfer}}, child_state(facts));
  };
  CHECK(has(take(kPreImage), kForbidRollback | kDetachFromParent));
  CHECK(!has_any(take(0), kForbidRollback));
}

TEST("a task returns its reference only when nobody below it borrows") {
  const OwnerState s = reference_state(Ceiling::Mutable);
  CHECK(has(run({{K::Return}}, s), kSendCompletion));
  CHECK_EQ(run({{K::LendShared}, {K::Return}}, s).verdict, Verdict::BorrowMutConflict);
  CHECK_EQ(run({{K::LendMut}, {K::Return}}, s).verdict, Verdict::BorrowConflict);
  CHECK_EQ(run({{K::Return}, {K::Borrow}}, s).verdict, Verdict::Moved);
}

TEST("what a borrower wrote is published before its pointer leaves") {
  const Step step = run({{K::BorrowMut}, {K::BorrowMutEnd}, {K::Return}}, reference_state(Ceiling::Mutable));
  CHECK(has(step, kPublish | kSendCompletion));
}

// --- references and children ---

TEST("a shared reference can be read and lent shared, never written, moved or dropped") {
  const OwnerState s = reference_state(Ceiling::Shared);
  CHECK(run({{K::Borrow}, {K::LendShared}}, s).ok());
  for (const K event : {K::BorrowMut, K::LendMut, K::SplitMut, K::Replace}) {
    CHECK_EQ(apply(s, {event, 0, 2}).verdict, Verdict::ReadOnlyReference);
  }
  for (const K event : {K::Transfer, K::Drop, K::IntoInner})
    CHECK_EQ(apply(s, {event}).verdict, Verdict::NotOwner);
}

TEST("a child is reached only through a borrow of its parent, and at most as strongly") {
  const OwnerState s = child_state();
  CHECK_EQ(apply(s, {K::Borrow}).verdict, Verdict::ParentNotBorrowed);
  CHECK(run({{K::ParentBorrowed}, {K::Borrow}}, s).ok());
  CHECK_EQ(run({{K::ParentBorrowed}, {K::BorrowMut}}, s).verdict, Verdict::ParentNotBorrowed);
  CHECK(run({{K::ParentBorrowedMut}, {K::BorrowMut}}, s).ok());
  CHECK_EQ(run({{K::ParentBorrowed}, {K::ParentReleased}, {K::Borrow}}, s).verdict,
           Verdict::ParentNotBorrowed);
}

TEST("a parent's borrow cannot end or grow while its child is borrowed") {
  const OwnerState s = run({{K::ParentBorrowed}, {K::Borrow}}, child_state()).state;
  CHECK_EQ(apply(s, {K::ParentReleased}).verdict, Verdict::ChildBorrowed);
  CHECK_EQ(apply(s, {K::ParentBorrowedMut}).verdict, Verdict::ChildBorrowed);
  CHECK(apply(s, {K::ParentBorrowed}).ok());  // told again
  CHECK(run({{K::BorrowEnd}, {K::ParentReleased}}, s).ok());
}

// --- owning ---

TEST("a moved object is gone for every event but its own undoing") {
  const OwnerState s = run({{K::Transfer}}).state;
  for (const K event :
       {K::Borrow, K::BorrowMut, K::LendShared, K::LendMut, K::Transfer, K::Drop, K::IntoInner}) {
    CHECK_EQ(apply(s, {event}).verdict, Verdict::Moved);
  }
  CHECK(run({{K::TransferUndone}, {K::Borrow}}, s).ok());
}

TEST("an object is moved, dropped and taken only when nobody borrows it") {
  for (const K event : {K::Transfer, K::Drop, K::IntoInner, K::Replace}) {
    CHECK(run({{event}}).ok());
    CHECK_EQ(run({{K::Borrow}, {event}}).verdict, Verdict::BorrowMutConflict);
    CHECK_EQ(run({{K::LendMut}, {event}}).verdict, Verdict::BorrowMutConflict);
  }
}

TEST("a dead owner's object is freed once none of its lends is out, whatever the owner itself was doing") {
  CHECK_EQ(run({{K::LendShared}, {K::OwnerLost}}).verdict, Verdict::BorrowMutConflict);
  CHECK_EQ(run({{K::LendMut}, {K::OwnerLost}}).verdict, Verdict::BorrowMutConflict);
  CHECK_EQ(run({{K::SplitMut, 0, 2}, {K::OwnerLost}}).verdict, Verdict::BorrowMutConflict);
  CHECK(has(run({{K::LendMut}, {K::LendMutCommitted, kNewAddress}, {K::OwnerLost}}), kFreeTree));
  CHECK(has(run({{K::Borrow}, {K::OwnerLost}}), kFreeTree));
  const Step torn = run({{K::BorrowMut}, {K::OwnerLost}});
  CHECK(has(torn, kFreeTree));
  CHECK_EQ(torn.state.phase, Phase::Dropped);
  CHECK(!has_any(run({{K::Borrow}, {K::BorrowEnd, kSurvivors}, {K::OwnerLost}}), kKeepForViews));
}

TEST("what a dead process did not own stays") {
  CHECK_EQ(run({{K::Transfer}, {K::OwnerLost}}).actions, 0U);
  CHECK_EQ(run({{K::OwnerLost}}, reference_state(Ceiling::Mutable)).actions, 0U);
  CHECK_EQ(run({{K::OwnerLost}}, child_state()).actions, 0U);
}

TEST("an abandoned handle is dropped when its last lend ends, at once when there is none") {
  CHECK(has(run({{K::Abandon}}), kFreeTree));
  const Step waiting = run({{K::LendShared}, {K::LendShared}, {K::Abandon}, {K::LendSharedEnd}});
  CHECK(!has_any(waiting, kFreeTree));
  CHECK(has(apply(waiting.state, {K::LendSharedEnd}), kFreeTree | kEndLend));
  CHECK(
      has(run({{K::LendMut}, {K::Abandon}, {K::LendMutCommitted, kNewAddress}}), kFreeTree | kFreeOldBlock));
}

// --- splits ---

TEST("a split ends when every part is back") {
  const Step out = run({{K::SplitMut, 0, 2}, {K::PartEnd}});
  CHECK_EQ(apply(out.state, {K::Join}).verdict, Verdict::BorrowMutConflict);
  CHECK(run({{K::PartEnd}, {K::Join}, {K::Borrow}}, out.state).ok());
  CHECK_EQ(run({{K::PartEnd}, {K::PartEnd}}, out.state).verdict, Verdict::NotBorrowed);
}

TEST("a part that stays in this process publishes nothing, a lent one does") {
  CHECK(!has_any(run({{K::SplitMut, 0, 2}}), kPublish));
  const Step lent = run({{K::SplitMut, 0, 2}, {K::PartLend}});
  CHECK(has(lent, kPublish | kRecordLend));
  CHECK(has(run({{K::PartEnd}, {K::PartEnd}, {K::Join}}, lent.state), kBumpColour));
}

TEST("a part left half written poisons the whole when it is joined") {
  const Step step = run({{K::SplitMut, 0, 2}, {K::PartFailed}, {K::PartEnd}, {K::Join}});
  CHECK(step.ok());
  CHECK_EQ(apply(step.state, {K::Borrow}).verdict, Verdict::Poisoned);
}

// --- access ---

TEST(
    "access costs no message here, none for a copy, one read for the first look, a read and a free for a "
    "move") {
  CHECK(messages(access(Mode::Shared, true, false)) == Messages{});
  CHECK(messages(access(Mode::Mutable, true, false)) == Messages{});
  CHECK(messages(access(Mode::Shared, false, true)) == Messages{});
  CHECK(messages(access(Mode::Shared, false, false)) == (Messages{1, 0}));
  CHECK(messages(access(Mode::Mutable, false, false)) == (Messages{1, 1}));
  CHECK(messages(access(Mode::Mutable, false, true)) == (Messages{0, 1}));
}

}  // namespace
}  // namespace drust::test
