// ownership.hpp: what one handle knows about its object, as a pure function (state, event) -> (state,
// actions).
//
// Purpose. The owner's handle sees every borrow of its object, so whether a borrow may start is decided here,
// in the owner's process, without a message (Ma et al., OSDI'24, section 4.1.1). The handle types, the
// explorer and the simulator call this one function; `docs/protocol.md` prints its table and a test compares
// the two.
//
// Idea. A reference is a handle too: what differs is its `ceiling`, the strongest thing it may ever do. A Box
// has `Own`, the RefMut a task received `Mutable`, a Ref `Shared`, and a child inside a parent as much as the
// current borrow of the parent allows. So nested borrows, re-lends and moves out of a parent need no second
// machine.
//
// A colour is drawn at the end of a mutable borrow only when the current one was handed out ("published"):
// nobody can hold a copy of a version that nobody was told about. `docs/protocol.md` gives the argument.
//
// Rejected: one class per state (an object changes state at every borrow, 10^7 times a second); callbacks for
// actions (they would need an allocator and hide the order); an exception for a refused event.
//
// No clock, socket, thread, lock or allocator. Nothing here is shared: the state is protected by whatever
// protects the handle that holds it (the interpreter lock, or the handle's own mutex on a free-threaded
// build).
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

namespace drust::protocol {

// The phases of Ma et al., section 3: every transition between Shared and Modified passes through Owned.
enum class Phase : std::uint8_t {
  Owned,     // nobody borrows
  Shared,    // local readers and shared lends, at least one
  Modified,  // exactly one writer, see Writer
  Moved,     // given away; the handle is used up
  Dropped,   // freed, or taken out with into_inner
};

enum class Writer : std::uint8_t {
  None,
  Local,  // a `with box.borrow_mut()` in this process
  Lend,   // one task, anywhere, holds it mutably
  Split,  // disjoint parts are out; `parts_out` counts them
};

// The strongest access this handle may give. A child starts at None and is raised while its parent is
// borrowed.
enum class Ceiling : std::uint8_t { None, Shared, Mutable, Own };

enum Flag : std::uint8_t {
  kChild = 1U << 0,       // lives in a parent's pointer table
  kPublished = 1U << 1,   // a block holds the current bytes, and its (address, colour) was handed out
  kPinned = 1U << 2,      // a derived view of an ended shared borrow is still alive
  kPreImage = 1U << 3,    // the block belongs to the state that a lend above us would roll back to
  kPoisoned = 1U << 4,    // a writer died and no pre-image existed
  kPartFailed = 1U << 5,  // a part of the current split was left half written
  kAbandoned = 1U << 6,   // the handle is gone; drop when the last lend ends
};

struct OwnerState {
  Phase phase = Phase::Owned;
  Writer writer = Writer::None;
  Ceiling ceiling = Ceiling::Own;
  std::uint8_t flags = 0;
  std::uint32_t local_readers = 0;
  std::uint32_t shared_lends = 0;
  std::uint32_t parts_out = 0;

  [[nodiscard]] constexpr bool has(Flag flag) const noexcept { return (flags & flag) != 0; }
  constexpr void set(Flag flag) noexcept { flags = static_cast<std::uint8_t>(flags | flag); }
  constexpr void clear(Flag flag) noexcept { flags = static_cast<std::uint8_t>(flags & ~unsigned{flag}); }
  [[nodiscard]] constexpr bool idle() const noexcept { return phase == Phase::Owned; }
  friend constexpr bool operator==(const OwnerState&, const OwnerState&) noexcept = default;
};
static_assert(sizeof(OwnerState) == 16);
static_assert(std::is_trivially_copyable_v<OwnerState>);

inline constexpr std::uint32_t kCountMax = std::numeric_limits<std::uint32_t>::max();

// How each kind of handle begins.
[[nodiscard]] constexpr OwnerState owned_state() noexcept { return {}; }
// `facts`: kPublished if its parent was published, kPreImage if the parent's block is one.
[[nodiscard]] constexpr OwnerState child_state(unsigned facts = 0) noexcept {
  const unsigned kept = facts & (unsigned{kPublished} | unsigned{kPreImage});
  return {.ceiling = Ceiling::None, .flags = static_cast<std::uint8_t>(kept | kChild)};
}
[[nodiscard]] constexpr OwnerState reference_state(Ceiling ceiling) noexcept {  // received by a task
  const unsigned lent = ceiling == Ceiling::Mutable ? unsigned{kPreImage} : 0U;
  return {.ceiling = ceiling, .flags = static_cast<std::uint8_t>(kPublished | lent)};
}
// A Box that was moved to this process: its pointer was handed out on the way.
[[nodiscard]] constexpr OwnerState received_state() noexcept { return {.flags = kPublished}; }

enum class EventKind : std::uint8_t {
  Borrow,             // a shared borrow begins in this process
  BorrowEnd,          // fact kSurvivors: derived views outlived it
  BorrowMut,          // a mutable borrow begins in this process; facts kElsewhere, kInPlace
  BorrowMutEnd,       // fact kSurvivors: writable views outlived it
  BorrowMutAborted,   // the bytes could not be brought here; nothing was written (SplitMut too)
  Relocated,          // the bytes of a moved object have arrived here (SplitMut too)
  LendShared,         // to a task
  LendSharedEnd,      // it completed, or was fenced
  LendMut,            // to a task; fact kElsewhere
  LendMutCommitted,   // its completion; facts kNewAddress (it moved), kInPlace (written where it was)
  LendMutRolledBack,  // it was lost; our pointer still names the pre-image
  LendMutPoisoned,  // lost without a pre-image (the block's server drew a new colour first), or back as a
                    // poisoned reference; fact kNewAddress
  SplitMut,         // event.count parts; facts kElsewhere, kInPlace
  PartLend,         // one of the outstanding parts goes to a task
  PartEnd,          // one part is back, whole
  PartFailed,       // one part was left half written
  Join,             // ends a split; fact kSurvivors
  Transfer,         // moved to another owner; fact kElsewhere
  TransferUndone,  // the hand-over was refused before anybody saw it
  Drop,
  Abandon,    // the last handle is gone (a destructor cannot refuse)
  OwnerLost,  // the owner's process is gone; by its server, which waits until none of its lends is out
  IntoInner,
  Replace,
  ClearPoison,
  Return,             // a task gives its reference back: its completion leaves (and says if the reference is
                      // poisoned); fact kElsewhere
  ParentBorrowed,     // the parent is borrowed shared
  ParentBorrowedMut,  // the parent is borrowed mutably
  ParentReleased,
  MovedWithParent,  // a tied child: its bytes moved in the parent's batch
  PinsGone,         // the last derived view died (harmless when the object has left its block already)
};
inline constexpr int kEventKindCount = static_cast<int>(EventKind::PinsGone) + 1;

enum Fact : std::uint8_t {
  kSurvivors = 1U << 0,
  kElsewhere = 1U << 1,  // the block is on another server: views of it are views of a copy
  kNewAddress = 1U << 2,
  kInPlace = 1U << 3,  // too large to keep a pre-image: write, or was written, where it is
};

struct Event {
  EventKind kind;
  std::uint8_t facts = 0;
  std::uint32_t count = 0;  // SplitMut: how many parts

  [[nodiscard]] constexpr bool has(Fact fact) const noexcept { return (facts & fact) != 0; }
};

enum class Verdict : std::uint8_t {
  Ok,
  Moved,              // MovedError
  Dropped,            // MovedError: dropped, or taken with into_inner
  BorrowConflict,     // BorrowError: a writer holds it
  BorrowMutConflict,  // BorrowMutError: readers or another writer hold it
  ParentNotBorrowed,  // BorrowError: a child is reached only through an equally strong borrow of its parent
  ReadOnlyReference,  // BorrowMutError: a shared reference cannot be written or lent mutably
  NotOwner,           // a reference can be neither moved, dropped nor taken
  ChildBorrowed,      // the parent's borrow cannot end before the child's
  Poisoned,           // PoisonedError
  NotBorrowed,        // an end without a beginning: a bug in the caller
  TooMany,            // a counter would overflow
};

// What the runtime must do, lowest bit first. IntoInner: take the value before.
enum Action : std::uint32_t {
  kDropSharedDecode = 1U << 0,  // forget the decoded read-only value (nothing to do when there is none)
  kMoveHere = 1U << 1,          // bring the bytes to a new block here; report Relocated or BorrowMutAborted
  kMoveToNewBlock = 1U << 2,    // copy to a new block in this partition; warns if kKeepForViews is there too
  kKeepForViews = 1U << 3,      // the block just left is pinned by its views: its free waits for the last one
  kBumpColour = 1U << 4,        // draw a colour, into the header and into the pointer
  kPublish = 1U << 5,           // encode what is not encoded yet, children first
  kAdoptPointer = 1U << 6,      // take the pointer the event brought
  kRecordLend = 1U << 7,        // a record in the partition, before the task can be seen
  kEndLend = 1U << 8,           // remove the record
  kDetachFromParent = 1U << 9,  // clear the slot in the parent's pointer table
  kForbidRollback = 1U << 10,   // the lend above can no longer be rolled back: a crash poisons
  kMarkInTransit = 1U << 11,    // header owner := the task or queue that carries it, by compare-and-swap
  kDropLocalCopy = 1U << 12,    // this host's copy of it will not be read again
  kFreeOldBlock = 1U << 13,     // free the block just left, under its old colour; its children live on
  kFreeTree = 1U << 14,         // free the value's block and all it owns
  kQueueFree = 1U << 15,        // queue the free of this step on the lend above until its outcome is known
  kSendCompletion = 1U << 16,   // the pointer travels home inside the completion
};
// Frees are asynchronous, carry the colour, and have nothing to do when the value never had a block.
using Actions = std::uint32_t;

struct Step {
  OwnerState state;
  Verdict verdict = Verdict::Ok;
  Actions actions = 0;

  [[nodiscard]] constexpr bool ok() const noexcept { return verdict == Verdict::Ok; }
  friend constexpr bool operator==(const Step&, const Step&) noexcept = default;
};

// True for the states that apply() can produce; the tests enumerate them.
[[nodiscard]] constexpr bool well_formed(const OwnerState& s) noexcept {
  const bool readers = s.local_readers != 0 || s.shared_lends != 0;
  if (readers != (s.phase == Phase::Shared)) return false;
  if ((s.writer != Writer::None) != (s.phase == Phase::Modified)) return false;
  if (s.parts_out != 0 && s.writer != Writer::Split) return false;
  if (s.has(kPartFailed) && s.writer != Writer::Split) return false;
  if (s.has(kPoisoned) && (readers || s.writer != Writer::None)) return false;
  if (s.has(kChild) && s.ceiling == Ceiling::Own) return false;
  if ((readers || s.writer == Writer::Local) && s.ceiling < Ceiling::Shared) return false;
  if (s.writer != Writer::None && s.ceiling < Ceiling::Mutable) return false;
  const bool busy = s.phase == Phase::Shared || s.phase == Phase::Modified;
  if (s.has(kAbandoned) && (!busy || s.ceiling != Ceiling::Own)) return false;
  return true;
}

namespace detail {

[[nodiscard]] constexpr Step refuse(const OwnerState& s, Verdict verdict) noexcept { return {s, verdict, 0}; }

// Used up, poisoned, or held by a writer; `weakest` is what the event needs of the ceiling.
[[nodiscard]] constexpr Verdict check(const OwnerState& s, Ceiling weakest) noexcept {
  if (s.phase == Phase::Moved) return Verdict::Moved;
  if (s.phase == Phase::Dropped) return Verdict::Dropped;
  if (s.ceiling < weakest) {
    if (s.has(kChild)) return Verdict::ParentNotBorrowed;
    return weakest == Ceiling::Own ? Verdict::NotOwner : Verdict::ReadOnlyReference;
  }
  if (s.has(kPoisoned)) return Verdict::Poisoned;
  if (weakest == Ceiling::Shared) return s.phase == Phase::Modified ? Verdict::BorrowConflict : Verdict::Ok;
  return s.phase == Phase::Owned ? Verdict::Ok : Verdict::BorrowMutConflict;
}

// Owning is what a Box may do, and a child whose parent is borrowed mutably: it can be taken out of its slot.
[[nodiscard]] constexpr Ceiling owning(const OwnerState& s) noexcept {
  return s.has(kChild) ? Ceiling::Mutable : Ceiling::Own;
}

// The block just left is freed: by us; with the lend above, if that could still be rolled back to it; or,
// when it is the very block we were lent, by the lender, who learns from our completion that we left it.
constexpr void leave_block(Step& step) noexcept {
  if (!step.state.has(kPreImage)) {
    step.actions |= kFreeOldBlock;
  } else if (step.state.has(kChild) || step.state.ceiling == Ceiling::Own) {  // Own: it was taken out of its parent
    step.actions |= kFreeOldBlock | kQueueFree;
  }
  step.state.clear(kPreImage);
  step.state.clear(kPublished);  // a new block has a colour nobody was told
}

constexpr void move_to_new_block(Step& step) noexcept {
  step.actions |= kMoveToNewBlock;
  leave_block(step);
}

constexpr void move_away_from_views(Step& step) noexcept {
  step.actions |= kKeepForViews;
  step.state.clear(kPinned);
  move_to_new_block(step);
}

// Views of an ended shared borrow are alive in a block that may be written next: leave it to them. (Views of
// an object elsewhere are views of a copy, which nobody writes.)
constexpr void leave_pinned_block(Step& step, bool elsewhere) noexcept {
  if (step.state.has(kPinned) && !elsewhere) move_away_from_views(step);
}

constexpr void publish(Step& step) noexcept {
  if (!step.state.has(kPublished)) step.actions |= kPublish;
  step.state.set(kPublished);
}

// The end of every kind of local writing.
constexpr void end_write(Step& step, bool survivors) noexcept {
  step.state.phase = Phase::Owned;
  step.state.writer = Writer::None;
  if (survivors) {
    move_away_from_views(step);
  } else if (step.state.has(kPublished)) {
    step.actions |= kBumpColour;
    step.state.clear(kPublished);
  }
}

// The value goes, with its block and all it owns.
constexpr void release_value(Step& step) noexcept {
  step.actions |= kFreeTree;
  if (step.state.has(kPreImage)) step.actions |= kQueueFree;
  if (step.state.has(kPinned)) step.actions |= kKeepForViews;
  step.state.clear(kPinned);
  step.state.clear(kPreImage);
  step.state.clear(kPublished);
}

constexpr void drop(Step& step) noexcept {
  step.actions |= kDropSharedDecode;
  if (step.state.has(kChild)) step.actions |= kDetachFromParent;
  release_value(step);
  step.state.clear(kAbandoned);
  step.state.clear(kPoisoned);
  step.state.phase = Phase::Dropped;
}

// After a shared end or a mutable end: an abandoned handle is dropped once nobody is left.
constexpr void settle(Step& step) noexcept {
  OwnerState& s = step.state;
  if (s.phase == Phase::Shared && s.local_readers == 0 && s.shared_lends == 0) s.phase = Phase::Owned;
  if (s.phase == Phase::Owned && s.has(kAbandoned)) drop(step);
}

}  // namespace detail

[[nodiscard]] constexpr Step apply(const OwnerState& before, const Event& event) noexcept;

// --- The hot path: same results as apply(), inlined; `test_ownership.cpp` compares them over every small
// case. --- Each returns false and leaves the state alone when apply() must be asked; true means Ok with the
// actions named.

[[nodiscard]] constexpr bool try_borrow(OwnerState& s) noexcept {  // no actions
  if (s.phase > Phase::Shared || s.ceiling < Ceiling::Shared || (s.flags & kPoisoned) != 0 ||
      s.local_readers == kCountMax) {
    return false;
  }
  ++s.local_readers;
  s.phase = Phase::Shared;
  return true;
}

[[nodiscard]] constexpr bool try_borrow_end(OwnerState& s) noexcept {  // no survivors; no actions
  if (s.local_readers == 0 || (s.flags & kAbandoned) != 0) return false;
  --s.local_readers;
  if ((s.local_readers | s.shared_lends) == 0) s.phase = Phase::Owned;
  return true;
}

[[nodiscard]] constexpr bool try_borrow_mut(OwnerState& s) noexcept {  // block here; action kDropSharedDecode
  if (s.phase != Phase::Owned || s.ceiling < Ceiling::Mutable) return false;
  if ((s.flags & (kPoisoned | kPinned | kPreImage)) != 0) return false;
  s.phase = Phase::Modified;
  s.writer = Writer::Local;
  return true;
}

[[nodiscard]] constexpr bool try_borrow_mut_end(OwnerState& s) noexcept {  // no survivors; no actions
  if (s.writer != Writer::Local || (s.flags & (kPublished | kAbandoned)) != 0) return false;
  s.phase = Phase::Owned;
  s.writer = Writer::None;
  return true;
}

}  // namespace drust::protocol

#include "protocol/ownership_apply.hpp"  // the general function
