// ownership_apply.hpp: the general transition function of ownership.hpp, one case an event.
//
// Included by ownership.hpp and by nobody else. A refused event changes nothing and asks for nothing: a
// caller may raise at once and the handle is as it was. Ends are checked as well as beginnings: an end
// without a beginning is NotBorrowed, never a wrapped counter.
#pragma once

#include "protocol/ownership.hpp"

namespace drust::protocol {
namespace detail {

[[nodiscard]] constexpr Step begin_write(const OwnerState& s, Writer writer, const Event& event) noexcept {
  Step step{s};
  leave_pinned_block(step, event.has(kElsewhere));
  step.actions |= kDropSharedDecode;
  if (writer != Writer::Lend) {
    if (event.has(kElsewhere)) {
      step.actions |= kMoveHere;
    } else if (step.state.has(kPreImage) && event.has(kInPlace)) {
      step.actions |= kForbidRollback;
    } else if (step.state.has(kPreImage)) {
      move_to_new_block(step);  // what we leave is the pre-image
    }
  }
  step.state.phase = Phase::Modified;
  step.state.writer = writer;
  return step;
}

[[nodiscard]] constexpr Step apply_local(const OwnerState& s, const Event& event) noexcept {
  Step step{s};
  switch (event.kind) {
    case EventKind::Borrow:
      if (const Verdict v = check(s, Ceiling::Shared); v != Verdict::Ok) return refuse(s, v);
      if (s.local_readers == kCountMax) return refuse(s, Verdict::TooMany);
      ++step.state.local_readers;
      step.state.phase = Phase::Shared;
      return step;
    case EventKind::BorrowEnd:
      if (s.local_readers == 0) return refuse(s, Verdict::NotBorrowed);
      --step.state.local_readers;
      if (event.has(kSurvivors)) step.state.set(kPinned);
      settle(step);
      return step;
    case EventKind::BorrowMut:
      if (const Verdict v = check(s, Ceiling::Mutable); v != Verdict::Ok) return refuse(s, v);
      return begin_write(s, Writer::Local, event);
    case EventKind::Relocated:
      if (s.writer != Writer::Local && s.parts_out == 0) return refuse(s, Verdict::NotBorrowed);
      step.state.clear(kPinned);  // the views are of the copy
      leave_block(step);
      return step;
    case EventKind::BorrowMutEnd:
      if (s.writer != Writer::Local) return refuse(s, Verdict::NotBorrowed);
      end_write(step, event.has(kSurvivors));
      settle(step);
      return step;
    default:  // BorrowMutAborted
      if (s.writer != Writer::Local && s.parts_out == 0) return refuse(s, Verdict::NotBorrowed);
      step.state.phase = Phase::Owned;
      step.state.writer = Writer::None;
      step.state.parts_out = 0;
      step.state.clear(kPartFailed);
      settle(step);
      return step;
  }
}

[[nodiscard]] constexpr Step apply_lend(const OwnerState& s, const Event& event) noexcept {
  Step step{s};
  switch (event.kind) {
    case EventKind::LendShared:
      if (const Verdict v = check(s, Ceiling::Shared); v != Verdict::Ok) return refuse(s, v);
      if (s.shared_lends == kCountMax) return refuse(s, Verdict::TooMany);
      publish(step);
      ++step.state.shared_lends;
      step.state.phase = Phase::Shared;
      step.actions |= kRecordLend;
      return step;
    case EventKind::LendSharedEnd:
      if (s.shared_lends == 0) return refuse(s, Verdict::NotBorrowed);
      --step.state.shared_lends;
      step.actions |= kEndLend;
      settle(step);
      return step;
    case EventKind::LendMut:
      if (const Verdict v = check(s, Ceiling::Mutable); v != Verdict::Ok) return refuse(s, v);
      step = begin_write(s, Writer::Lend, event);
      publish(step);
      step.actions |= kRecordLend;
      return step;
    default:
      break;
  }
  if (s.writer != Writer::Lend) return refuse(s, Verdict::NotBorrowed);
  step.state.phase = Phase::Owned;
  step.state.writer = Writer::None;
  step.actions |= kEndLend;
  if (event.kind == EventKind::LendMutCommitted) {
    step.actions |= kAdoptPointer;
    step.state.clear(kPinned);  // our views, if any, are of a copy of the version before
    if (event.has(kNewAddress)) leave_block(step);
    if (event.has(kInPlace) && s.has(kPreImage)) step.actions |= kForbidRollback;
    step.state.set(kPublished);  // the block holds the current bytes, and others know its colour
  } else if (event.kind == EventKind::LendMutPoisoned) {
    step.actions |= kAdoptPointer;
    if (event.has(kNewAddress)) leave_block(step);
    step.state.set(kPublished);
    if (s.has(kPreImage)) step.actions |= kForbidRollback;
    step.state.set(kPoisoned);
  }
  settle(step);
  return step;
}

[[nodiscard]] constexpr Step apply_split(const OwnerState& s, const Event& event) noexcept {
  Step step{s};
  if (event.kind == EventKind::SplitMut) {
    if (const Verdict v = check(s, Ceiling::Mutable); v != Verdict::Ok) return refuse(s, v);
    step = begin_write(s, Writer::Split, event);
    step.state.parts_out = event.count;
    return step;
  }
  if (s.writer != Writer::Split) return refuse(s, Verdict::NotBorrowed);
  if (event.kind == EventKind::Join) {
    if (s.parts_out != 0) return refuse(s, Verdict::BorrowMutConflict);
    end_write(step, event.has(kSurvivors));
    if (s.has(kPartFailed)) step.state.set(kPoisoned);
    step.state.clear(kPartFailed);
    settle(step);
    return step;
  }
  if (s.parts_out == 0) return refuse(s, Verdict::NotBorrowed);
  if (event.kind == EventKind::PartLend) {
    publish(step);
    step.actions |= kRecordLend;
    return step;
  }
  --step.state.parts_out;
  if (event.kind == EventKind::PartFailed) step.state.set(kPartFailed);
  return step;
}

[[nodiscard]] constexpr Step apply_ownership(const OwnerState& s, const Event& event) noexcept {
  Step step{s};
  switch (event.kind) {
    case EventKind::Transfer:
      if (const Verdict v = check(s, owning(s)); v != Verdict::Ok) return refuse(s, v);
      leave_pinned_block(step, event.has(kElsewhere));  // the next owner cannot know of our views
      publish(step);
      step.actions |= kDropSharedDecode | kMarkInTransit | kDropLocalCopy;
      if (s.has(kChild)) step.actions |= kDetachFromParent;
      if (s.has(kPreImage)) step.actions |= kForbidRollback;  // a child, or one that was taken out before
      step.state.phase = Phase::Moved;
      return step;
    case EventKind::TransferUndone:
      if (s.phase != Phase::Moved) return refuse(s, Verdict::NotBorrowed);
      step.state.phase = Phase::Owned;
      return step;
    case EventKind::Drop:
    case EventKind::Replace:
    case EventKind::IntoInner: {
      OwnerState whole = s;  // a poisoned object can be dropped and replaced, not taken
      if (event.kind != EventKind::IntoInner) whole.clear(kPoisoned);
      const Ceiling weakest = event.kind == EventKind::Replace ? Ceiling::Mutable : owning(s);
      if (const Verdict v = check(whole, weakest); v != Verdict::Ok) return refuse(s, v);
      if (event.kind != EventKind::Replace) {
        drop(step);
        return step;
      }
      step.actions |= kDropSharedDecode;
      step.state.clear(kPoisoned);
      release_value(step);
      return step;
    }
    case EventKind::OwnerLost:
      if (s.ceiling != Ceiling::Own) return step;  // the parent goes with it, the lender hears from the task
      if (s.phase == Phase::Moved || s.phase == Phase::Dropped) return step;
      if (s.shared_lends != 0 || s.writer == Writer::Lend || s.parts_out != 0) {
        return refuse(s, Verdict::BorrowMutConflict);
      }
      // Its own borrows and views ended with it, and nobody will read what it left half written.
      step.state.phase = Phase::Owned;
      step.state.writer = Writer::None;
      step.state.local_readers = 0;
      step.state.clear(kPartFailed);
      step.state.clear(kPinned);
      drop(step);
      return step;
    default:  // Abandon
      if (s.phase == Phase::Moved || s.phase == Phase::Dropped) return step;
      if (s.ceiling != Ceiling::Own) return step;  // the parent or the lender still owns it
      if (!s.idle()) {
        step.state.set(kAbandoned);
        return step;
      }
      drop(step);
      return step;
  }
}

[[nodiscard]] constexpr Step apply_relation(const OwnerState& s, const Event& event) noexcept {
  Step step{s};
  switch (event.kind) {
    case EventKind::ParentBorrowed:
    case EventKind::ParentBorrowedMut:
    case EventKind::ParentReleased: {
      if (!s.has(kChild)) return refuse(s, Verdict::NotBorrowed);
      if (s.phase == Phase::Moved || s.phase == Phase::Dropped) return step;  // it left its parent
      if (event.kind == EventKind::ParentReleased) {
        if (!s.idle()) return refuse(s, Verdict::ChildBorrowed);
        step.state.ceiling = Ceiling::None;
        return step;
      }
      // Told again of the same borrow, a child may be in use; a borrow of another strength finds it idle.
      const Ceiling ceiling = event.kind == EventKind::ParentBorrowed ? Ceiling::Shared : Ceiling::Mutable;
      if (ceiling != s.ceiling && !s.idle()) return refuse(s, Verdict::ChildBorrowed);
      step.state.ceiling = ceiling;
      return step;
    }
    case EventKind::MovedWithParent:
      if (!s.has(kChild)) return refuse(s, Verdict::NotBorrowed);
      if (!s.idle()) return refuse(s, Verdict::ChildBorrowed);
      if (s.has(kPinned)) step.actions |= kKeepForViews;
      step.state.clear(kPinned);
      leave_block(step);
      return step;
    case EventKind::PinsGone:
      step.state.clear(kPinned);
      return step;
    case EventKind::ClearPoison:
      if (!s.has(kPoisoned)) return refuse(s, Verdict::NotBorrowed);
      step.state.clear(kPoisoned);
      return step;
    default:  // Return
      if (s.has(kChild) || s.ceiling == Ceiling::Own) return refuse(s, Verdict::NotBorrowed);
      if (s.phase == Phase::Moved) return refuse(s, Verdict::Moved);
      if (s.phase == Phase::Shared) return refuse(s, Verdict::BorrowMutConflict);
      if (s.phase == Phase::Modified) return refuse(s, Verdict::BorrowConflict);
      if (s.ceiling == Ceiling::Mutable) {
        leave_pinned_block(step, event.has(kElsewhere));  // the owner cannot know of our views
        publish(step);  // the bytes are in the block before its pointer leaves
      }
      step.actions |= kDropSharedDecode | kSendCompletion;
      step.state.clear(kPinned);
      step.state.phase = Phase::Moved;
      return step;
  }
}

}  // namespace detail

[[nodiscard]] constexpr Step apply(const OwnerState& before, const Event& event) noexcept {
  switch (event.kind) {
    case EventKind::Borrow:
    case EventKind::BorrowEnd:
    case EventKind::BorrowMut:
    case EventKind::BorrowMutEnd:
    case EventKind::BorrowMutAborted:
    case EventKind::Relocated:
      return detail::apply_local(before, event);
    case EventKind::LendShared:
    case EventKind::LendSharedEnd:
    case EventKind::LendMut:
    case EventKind::LendMutCommitted:
    case EventKind::LendMutRolledBack:
    case EventKind::LendMutPoisoned:
      return detail::apply_lend(before, event);
    case EventKind::SplitMut:
    case EventKind::PartLend:
    case EventKind::PartEnd:
    case EventKind::PartFailed:
    case EventKind::Join:
      return detail::apply_split(before, event);
    case EventKind::Transfer:
    case EventKind::TransferUndone:
    case EventKind::Drop:
    case EventKind::Abandon:
    case EventKind::OwnerLost:
    case EventKind::IntoInner:
    case EventKind::Replace:
      return detail::apply_ownership(before, event);
    case EventKind::ClearPoison:
    case EventKind::Return:
    case EventKind::ParentBorrowed:
    case EventKind::ParentBorrowedMut:
    case EventKind::ParentReleased:
    case EventKind::MovedWithParent:
    case EventKind::PinsGone:
      return detail::apply_relation(before, event);
  }
  return detail::refuse(before, Verdict::NotBorrowed);
}

}  // namespace drust::protocol
