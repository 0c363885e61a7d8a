// Lends: an object in the hands of a task, here or elsewhere. drust.tasks calls these; the protocol decides.
//
// A Box with a lend out holds a reference to itself: the block a task works on must not be freed because the
// last handle of it here died. The reference goes with the end of the last lend.
#include <algorithm>
#include <utility>

#include "bind/anchor.hpp"
#include "bind/box.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::Event;
using protocol::EventKind;
using protocol::Step;
using protocol::Writer;

bool note_lend(BoxObject* box, PyObject* lend) {
  if (lend == nullptr || lend == Py_None) return true;
  if (box->lends == nullptr) box->lends = PyList_New(0);
  return box->lends != nullptr && PyList_Append(box->lends, lend) == 0;
}

void forget_lend(BoxObject* box, PyObject* lend) {
  for (Py_ssize_t i = 0; box->lends != nullptr && i < PyList_GET_SIZE(box->lends); ++i) {
    if (PyList_GET_ITEM(box->lends, i) != lend) continue;
    if (PySequence_DelItem(box->lends, i) != 0) PyErr_Clear();
    return;
  }
}

namespace {

bool remember(BoxObject* box, PyObject* lend) {
  if (!note_lend(box, lend)) return false;
  if (!box->is_lent) Py_INCREF(box);
  box->is_lent = true;
  return true;
}

bool lend_shared(BoxObject* box, double timeout_s) {
  Step step;
  if (!decide(box, {EventKind::LendShared}, timeout_s, false, step)) return false;
  if ((step.actions & protocol::kPublish) != 0 && ensure_published(box) == nullptr) {
    lower_ceiling(box);
    return false;
  }
  if (!decide(box, {EventKind::LendShared}, timeout_s, false, step))
    return false;  // publishing ran foreign code
  box->state = step.state;
  return true;
}

bool lend_mutable(BoxObject* box, double timeout_s) {
  if (box->kind == Kind::live && box->is_immutable) {
    set_box_conflict(
        box, "immutable",
        "its value cannot be changed in place, so a mutable lend would lose what the task assigns; use "
        "replace(), or an Atomic for a shared counter");
    return false;
  }
  const bool was_published = box->state.has(protocol::kPublished);
  if (!begin_write(box, {EventKind::LendMut}, timeout_s)) return false;
  if (ensure_published(box) != nullptr && settle_tied(box)) {
    forget_value(box);  // the borrower changes it
    return true;
  }
  box->state = protocol::apply(box->state, {EventKind::LendMutRolledBack}).state;
  if (!was_published) box->state.clear(protocol::kPublished);
  lower_ceiling(box);
  return false;
}

bool is_here(Address address) noexcept {
  const Runtime* runtime = current_runtime();
  return runtime != nullptr && runtime->partition->is_local(address);
}

// Takes the pointer that an end of a lend brought.
bool adopt_pointer(BoxObject* box, PyObject* pointer, protocol::Actions actions) {
  PinObject* old = pin_of(box);
  if (is_pin(pointer)) {
    const bool moved = as_pin(pointer)->pointer.address != old->pointer.address;
    if (!moved) old->on_release = OnRelease::nothing;  // the same block under its new colour
    leave_block(box, std::exchange(box->pin, Py_NewRef(pointer)), actions);
    return true;
  }
  unsigned long long address = 0;
  unsigned long long colour = 0;
  unsigned long long extent_bytes = 0;
  if (PyArg_ParseTuple(pointer, "KKK;a pointer is (address, colour, extent_bytes)", &address, &colour,
                       &extent_bytes) == 0) {
    return false;
  }
  const GlobalPointer fresh{Address(address), colour, extent_bytes};
  if (is_here(fresh.address) && fresh.address != old->pointer.address) {
    // On the way home it was nobody's; if this process dies, it is to be freed with its other blocks: of what was
    // lent to this process, without what its pre-image owns too.
    Runtime* runtime = current_runtime();
    const auto kind = find_lease(box) == nullptr ? heap::OwnerKind::process : heap::OwnerKind::borrower;
    runtime->heap->set_owner(fresh, heap::owner_word(kind, runtime->process));
  }
  if (fresh.address == old->pointer.address) {
    old->pointer = fresh;
    if (old->readable != nullptr) old->local = fresh;
    return true;
  }
  // The lender frees what he lent; what came of it in a task below is this task's own.
  const bool was_lent = find_lease(box) != nullptr && old->on_release == OnRelease::nothing;
  const bool was_made = old->on_release == OnRelease::free_made;  // elsewhere; here its owner word says so
  const OnRelease action = was_lent || was_made ? OnRelease::free_tree : old->on_release;
  PyObject* pin = is_here(fresh.address) ? make_pin(fresh, fresh, false, action, 0)
                                         : make_hold(fresh, old->on_release);
  if (pin == nullptr) return false;
  anchor_former_child(as_pin(pin));  // the report that brought the pointer named it
  leave_block(box, std::exchange(box->pin, pin), actions);
  return true;
}

bool is_new_address(const BoxObject* box, PyObject* pointer) {
  const std::uint64_t before = pin_of(box)->pointer.address.raw();
  if (is_pin(pointer)) return as_pin(pointer)->pointer.address.raw() != before;
  if (!PyTuple_Check(pointer) || PyTuple_GET_SIZE(pointer) == 0) return false;
  return PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(pointer, 0)) != before;
}

Event end_event(const BoxObject* box, bool is_mutable, Outcome outcome, PyObject* pointer) {
  if (!is_mutable) return {EventKind::LendSharedEnd};
  if (outcome == Outcome::rolled_back) return {EventKind::LendMutRolledBack};
  unsigned facts = 0;
  if (pointer != Py_None) facts = is_new_address(box, pointer) ? protocol::kNewAddress : protocol::kInPlace;
  const bool committed = outcome == Outcome::committed;
  return {committed ? EventKind::LendMutCommitted : EventKind::LendMutPoisoned,
          static_cast<std::uint8_t>(facts)};
}

}  // namespace

PyObject* begin_lend(BoxObject* box, bool is_mutable, PyObject* lend, double timeout_s) {
  if (!(is_mutable ? lend_mutable(box, timeout_s) : lend_shared(box, timeout_s))) return nullptr;
  PyObject* pin = Py_NewRef(box->pin);
  if (remember(box, lend)) return pin;
  Py_DECREF(pin);
  const ErrorKept kept;
  if (!end_lend(box, nullptr, is_mutable, Outcome::rolled_back, Py_None, nullptr))
    PyErr_WriteUnraisable(as_object(box));
  return nullptr;
}

void set_poison(BoxObject* box, PyObject* poison) noexcept {
  Py_XSETREF(box->poison, poison == Py_None ? nullptr : Py_XNewRef(poison));
}

bool end_lend(BoxObject* box, PyObject* lend, bool is_mutable, Outcome outcome, PyObject* pointer,
              PyObject* poison) {
  const Owned kept = Owned::share(as_object(box));
  const Step step = protocol::apply(box->state, end_event(box, is_mutable, outcome, pointer));
  if (PyErr_Occurred() != nullptr) return false;
  if (!step.ok()) return set_refusal(box, step.verdict, "end a lend of it", -1);
  if (!forbid_rollback(box, step.actions)) return false;
  if ((step.actions & protocol::kAdoptPointer) != 0 && pointer != Py_None &&
      !adopt_pointer(box, pointer, step.actions)) {
    return false;
  }
  box->state = step.state;
  if (outcome == Outcome::poisoned) set_poison(box, poison);
  if (is_mutable) {
    forget_escapes(box);
    box->is_outdated = false;
  }
  forget_lend(box, lend);
  lower_ceiling(box);
  if (box->is_lent && box->state.shared_lends == 0 && box->state.writer != Writer::Lend) {
    box->is_lent = false;
    Py_DECREF(box);
  }
  notify_ended();
  return true;
}

bool to_outcome(PyObject* name, Outcome& outcome) {
  if (name == nullptr || PyUnicode_CompareWithASCIIString(name, "committed") == 0) {
    outcome = Outcome::committed;
  } else if (PyUnicode_CompareWithASCIIString(name, "rolled_back") == 0) {
    outcome = Outcome::rolled_back;
  } else if (PyUnicode_CompareWithASCIIString(name, "poisoned") == 0) {
    outcome = Outcome::poisoned;
  } else {
    PyErr_Format(PyExc_ValueError, "an outcome is committed, rolled_back or poisoned, not %R", name);
    return false;
  }
  return true;
}

}  // namespace drust::bind
