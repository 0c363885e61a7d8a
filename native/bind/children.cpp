// Boxes inside a Box: the inner one is reached through a borrow of the outer one, as strong as its own.
//
// The links are not counted: an outer Box owns its value, its value holds the inner ones, and a counted link
// back would make every nested value a cycle that only the collector frees. Whoever dies first clears the
// link. A child's ceiling is raised when it is borrowed, not when its parent is: a borrow costs nothing for
// the children that it does not touch. So a Box that was taken out of its parent's value is noticed when it
// is next used, too.
#include <algorithm>
#include <utility>
#include <vector>

#include "bind/anchor.hpp"
#include "bind/box.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::Ceiling;
using protocol::EventKind;
using protocol::Writer;

namespace {

// How many objects of a value are looked at for Boxes. Publishing finds all of them: its pickler meets each.
constexpr std::size_t kSearchBudget = 100'000;

// No block may name it any longer.
void anchor_child(const BoxObject* child) noexcept {
  if (child->pin != nullptr && Py_REFCNT(child) > 0) anchor_former_child(pin_of(child));
}

Ceiling allowed_by(const BoxObject* parent) noexcept {
  if (parent->state.writer == Writer::Local) return Ceiling::Mutable;
  return parent->state.local_readers != 0 ? Ceiling::Shared : Ceiling::None;
}

void unlink(BoxObject* child) noexcept {
  BoxObject* parent = std::exchange(child->parent, nullptr);
  (child->previous_child != nullptr ? child->previous_child->next_child : parent->first_child) =
      child->next_child;
  if (child->next_child != nullptr) child->next_child->previous_child = child->previous_child;
  child->next_child = nullptr;
  child->previous_child = nullptr;
}

// The parent's borrows whose end waited for the children's. From the start each time: ending one runs foreign
// code.
void finish_deferred(BoxObject* parent) {
  const auto first = [parent] {
    GuardObject* guard = parent->guards;
    while (guard != nullptr && guard->phase != GuardPhase::deferred) guard = guard->next;
    return guard;
  };
  for (GuardObject* guard = first(); guard != nullptr && parent->children_borrowed == 0; guard = first()) {
    const Owned kept(as_object(guard));  // the reference that deferring took
    guard->phase = GuardPhase::active;
    if (!end_guard(guard, nullptr)) PyErr_WriteUnraisable(as_object(parent));
  }
}

}  // namespace

void raise_ceiling(BoxObject* child) noexcept {
  if (child->parent == nullptr || !child->state.has(protocol::kChild)) return;
  const Ceiling allowed = allowed_by(child->parent);
  if (allowed <= child->state.ceiling) return;
  const EventKind event =
      allowed == Ceiling::Mutable ? EventKind::ParentBorrowedMut : EventKind::ParentBorrowed;
  const protocol::Step step = protocol::apply(child->state, {event});
  if (!step.ok()) return;
  child->state = step.state;
  if (!child->counts_in_parent) {
    child->counts_in_parent = true;
    ++child->parent->children_borrowed;
  }
}

void lower_ceiling(BoxObject* child) {
  if (!child->counts_in_parent) return;
  const protocol::Step step = protocol::apply(child->state, {EventKind::ParentReleased});
  if (!step.ok()) return;  // still borrowed
  child->state = step.state;
  child->counts_in_parent = false;
  BoxObject* parent = child->parent;
  if (--parent->children_borrowed != 0) return;
  const Owned kept = Owned::share(as_object(parent));
  const ErrorKept error;
  finish_deferred(parent);
}

bool set_parent(BoxObject* child, BoxObject* parent) {
  if (child->parent == parent) return true;
  for (const BoxObject* above = parent; above != nullptr; above = above->parent) {
    if (above != child) continue;
    PyErr_SetString(PyExc_ValueError, "a Box cannot lie inside itself");
    return false;
  }
  raise_ceiling(child);
  protocol::Step step = protocol::apply(child->state, {EventKind::Transfer});
  if (step.verdict == protocol::Verdict::ParentNotBorrowed) {
    lower_ceiling(child);
    // Taken out of a value whose borrow has ended since, or that is being encoded.
    if (release_if_taken_out(child)) step = protocol::apply(child->state, {EventKind::Transfer});
  }
  if (!step.ok()) {
    lower_ceiling(child);
    return set_refusal(child, step.verdict, "move it into another Box", -1);
  }
  leave_parent(child);
  if (find_lease(parent) != nullptr) Py_CLEAR(child->lease);  // from here on it is that task's
  child->state = protocol::child_state(child->state.flags);
  child->parent = parent;
  child->next_child = parent->first_child;
  if (parent->first_child != nullptr) parent->first_child->previous_child = child;
  parent->first_child = child;
  return true;
}

void leave_parent(BoxObject* child) noexcept {
  if (child->parent == nullptr) return;
  // Wherever it goes, it is a part of what that task was lent.
  if (child->lease == nullptr) child->lease = Py_XNewRef(find_lease(child));
  if (child->counts_in_parent) {
    child->counts_in_parent = false;
    --child->parent->children_borrowed;
  }
  unlink(child);
  anchor_child(child);
  if (!child->state.has(protocol::kChild)) return;
  child->state.clear(protocol::kChild);
  child->state.ceiling = Ceiling::Own;
}

void anchor_strays(const BoxObject* parent) noexcept {
  for (const BoxObject* child = parent->first_child; child != nullptr; child = child->next_child) anchor_child(child);
}

void orphan_children(BoxObject* parent) noexcept {
  while (parent->first_child != nullptr) leave_parent(parent->first_child);
}

bool clear_entry(const BoxObject* parent, Address child) noexcept {
  if (parent == nullptr || parent->pin == nullptr) return false;
  const PinObject* around = pin_of(parent);
  if (!is_mapped(around) || around->writable_bytes == nullptr) return false;
  const heap::Block block(around->writable_bytes);
  for (heap::ChildPointer& entry : block.children()) {
    if (entry.address != child.raw() || (entry.flags & heap::ChildPointer::kBorrowed) != 0) continue;
    entry.flags |= heap::ChildPointer::kShared;
    return true;
  }
  return false;
}

void leave_parent_block(BoxObject* child) noexcept {
  if (child->pin == nullptr || !clear_entry(child->parent, pin_of(child)->pointer.address)) return;
  Runtime* runtime = current_runtime();
  if (runtime == nullptr || pin_of(child)->readable == nullptr) return;
  static_cast<void>(runtime->heap->make_own(pin_of(child)->pointer));
}

PyObject* find_lease(const BoxObject* box) noexcept {
  for (; box != nullptr; box = box->parent) {
    if (box->lease != nullptr) return box->lease;
  }
  return nullptr;
}

bool adopt_children(BoxObject* box) {
  // The collector does not track what cannot hold a Box.
  if (PyObject_IS_GC(box->value) == 0 || PyObject_GC_IsTracked(box->value) == 0) return true;
  std::vector<PyObject*> found;
  if (!collect_boxes(box->value, kSearchBudget, found)) return false;
  return std::all_of(found.begin(), found.end(),
                     [&](PyObject* child) { return set_parent(as_box(child), box); });
}

void children_free_themselves(BoxObject* parent) noexcept {
  if (parent->first_child == nullptr || parent->pin == nullptr) return;
  if (pin_of(parent)->on_release != OnRelease::free_tree) return;  // lent here: the lender's block has them
  pin_of(parent)->on_release = OnRelease::free_shallow;
  for (BoxObject* child = parent->first_child; child != nullptr; child = child->next_child) {
    const bool is_kept = child->state.has(protocol::kPreImage);  // its lender frees it, if at all
    if (child->pin != nullptr && !is_kept) pin_of(child)->on_release = own_release(pin_of(child));
  }
}

bool release_if_taken_out(BoxObject* child) {
  BoxObject* parent = child->parent;
  if (parent == nullptr || parent->kind != Kind::live || child->counts_in_parent) return false;
  std::vector<PyObject*> found;
  if (!collect_boxes(parent->value, kSearchBudget, found)) {
    PyErr_Clear();
    return false;
  }
  if (std::find(found.begin(), found.end(), as_object(child)) != found.end()) return false;
  // What a lend above may be rolled back to is still the lender's: its task's end decides (lends.py).
  if (!child->state.has(protocol::kPreImage)) leave_parent_block(child);
  leave_parent(child);
  return true;
}

}  // namespace drust::bind
