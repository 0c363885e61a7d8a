// Values that leave a Box for good, or are exchanged: into_inner, replace, clone, and moves to another owner.
#include <utility>

#include "bind/anchor.hpp"
#include "bind/box.hpp"
#include "bind/hooks.hpp"
#include "bind/numpy_api.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::EventKind;
using protocol::Step;

namespace {

PyObject* place_text(const char* verb) {
  Site site;
  record_user_site(site);
  const Owned place(text_of(site));
  site.clear();
  return place ? PyUnicode_FromFormat("%s at %U", verb, place.get()) : nullptr;
}

// The child is about to leave its parent's block: from now on its own handle frees it.
void detach(BoxObject* box, protocol::Actions actions) noexcept {
  if ((actions & protocol::kDetachFromParent) == 0 || box->pin == nullptr) return;
  leave_parent_block(box);
  if (pin_of(box)->on_release == OnRelease::nothing) pin_of(box)->on_release = own_release(pin_of(box));
}

// What is left of a Box whose value has gone.
void use_up(BoxObject* box, Owned where) {
  leave_parent(box);
  orphan_children(box);
  forget_value(box);
  forget_escapes(box);
  box->kind = Kind::gone;
  box->is_outdated = false;
  Py_XSETREF(box->moved_to, where.release());
  Py_CLEAR(box->pin);
}

// An array of the caller's own, over the block that the Box gives up.
PyObject* take_array(BoxObject* box) {
  if (box->write.parent == nullptr) {
    const Owned mapping(make_writable_sibling(pin_of(box)));
    if (!mapping) return nullptr;
    return make_parent(box->read.parent, as_pin(mapping.get()));
  }
  return make_parent(box->write.parent, as_pin(find_exporter(box->write.parent)->keep));
}

// Live values are copied by Python; immutable ones are shared.
PyObject* clone_live(BoxObject* box) {
  if (box->is_immutable && !PyTuple_CheckExact(box->value) && !PyFrozenSet_CheckExact(box->value)) {
    return make_box(box->value);
  }
  Owned copy;
  if (hooks().clone != nullptr) {
    copy = Owned(PyObject_CallOneArg(hooks().clone, as_object(box)));
  } else {
    const Owned module(PyImport_ImportModule("copy"));
    copy = Owned(module ? PyObject_CallMethod(module.get(), "deepcopy", "O", box->value) : nullptr);
  }
  return copy ? make_box(copy.get()) : nullptr;
}

// The bytes once more, in a block of its own: no codec runs.
PyObject* clone_array(BoxObject* box) {
  const Owned copy(duplicate_pin(as_pin(box->source), false));
  if (!copy) return nullptr;
  BoxObject* fresh = new_box();
  if (fresh == nullptr) return nullptr;
  record_user_site(fresh->created);
  PyObject* like = box->read.parent != nullptr ? box->read.parent : box->write.parent;
  const Owned array(make_parent(like, as_pin(copy.get())));
  if (!array || !install(fresh, array.get(), copy.get(), true, false)) Py_CLEAR(fresh);
  return as_object(fresh);
}

}  // namespace

PyObject* into_inner(BoxObject* box) {
  Step step;
  if (!decide(box, {EventKind::IntoInner}, -1, true, step)) return nullptr;
  const bool is_ready = box->kind == Kind::live && (box->is_writable || box->is_immutable);
  if (!is_ready) {
    // As a mutable borrow would: brings the bytes here, leaves a block that views still hold.
    if (!begin_write(box, {EventKind::BorrowMut}, -1)) return nullptr;
    if (!end_write(box, EventKind::BorrowMutEnd, false, box->created)) return nullptr;
    if (!decide(box, {EventKind::IntoInner}, -1, true, step)) return nullptr;
  }
  children_free_themselves(box);
  Owned where(place_text("taken with into_inner()"));
  if (!where || !forbid_rollback(box, step.actions)) return nullptr;
  detach(box, step.actions);
  PyObject* value = box->kind == Kind::array ? take_array(box) : Py_NewRef(box->value);
  if (value == nullptr) return nullptr;
  box->state = step.state;
  use_up(box, std::move(where));
  return value;
}

PyObject* clone_box(BoxObject* box) {
  if (!begin_shared(box, -1)) return nullptr;
  PyObject* copy = box->kind == Kind::array ? clone_array(box) : clone_live(box);
  if (copy != nullptr) as_box(copy)->is_excepted = box->is_excepted;
  const ErrorKept kept;
  end_shared(box, false);
  return copy;
}

bool replace_value(BoxObject* box, PyObject* value) {
  Step step;
  if (!decide(box, {EventKind::Replace}, -1, true, step)) return false;
  BoxObject* fresh = new_box();
  const Owned kept(as_object(fresh));
  if (fresh == nullptr || !adopt_into(fresh, value)) return false;
  if (!decide(box, {EventKind::Replace}, -1, true, step)) return false;  // adopting ran foreign code
  box->state = step.state;
  set_poison(box, nullptr);
  orphan_children(box);
  forget_value(box);
  forget_escapes(box);
  PyObject* old_pin = std::exchange(box->pin, std::exchange(fresh->pin, nullptr));
  box->kind = std::exchange(fresh->kind, Kind::gone);
  box->is_outdated = fresh->is_outdated;
  box->is_writable = fresh->is_writable;
  box->is_immutable = fresh->is_immutable;
  std::swap(box->value, fresh->value);
  std::swap(box->read, fresh->read);
  std::swap(box->write, fresh->write);
  std::swap(box->source, fresh->source);
  std::swap(box->label, fresh->label);
  std::swap(box->first_child, fresh->first_child);
  for (BoxObject* child = box->first_child; child != nullptr; child = child->next_child) child->parent = box;
  leave_block(box, old_pin, step.actions);
  lower_ceiling(box);
  return true;
}

PyObject* give_away(BoxObject* box, EventKind event, bool encode, PyObject* where) {
  Step step;
  if (!prepare(box, {event}, -1, step)) return nullptr;
  if (encode && (step.actions & protocol::kPublish) != 0) {
    if (ensure_published(box) == nullptr || !prepare(box, {event}, -1, step)) {
      lower_ceiling(box);
      return nullptr;
    }
  }
  if (encode && !box->is_outdated && !settle_tied(box)) {
    lower_ceiling(box);
    return nullptr;
  }
  Owned place(where == nullptr ? place_text("moved") : PyUnicode_FromFormat("moved at %U", where));
  if (!place) return nullptr;
  detach(box, step.actions);
  if (!commit(box, step)) return nullptr;
  const bool has_block = box->pin != nullptr && !box->is_outdated;
  PyObject* value = box->kind == Kind::live ? box->value : Py_None;
  Owned given(PyTuple_Pack(2, has_block ? box->pin : Py_None, value));
  if (given) use_up(box, std::move(place));
  return given.release();
}

bool undo_transfer(BoxObject* box, PyObject* pin, PyObject* value) {
  const Step step = protocol::apply(box->state, {EventKind::TransferUndone});
  if (!step.ok() || box->kind != Kind::gone) {
    PyErr_SetString(PyExc_ValueError, "this Box was not moved");
    return false;
  }
  box->state = step.state;
  Py_CLEAR(box->moved_to);
  box->kind = Kind::empty;
  if (pin != Py_None) {
    if (!is_pin(pin)) {
      PyErr_SetString(PyExc_TypeError, "expected a Pin or None");
      return false;
    }
    set_pin(box, Py_NewRef(pin));
    disclaim_in_holder(as_pin(pin), false);
    anchor_former_child(as_pin(pin));  // the block that was to carry it has named it, or its parent's had before
  } else if (!install(box, value, Py_None, false, true)) {
    return false;
  }
  box->is_outdated = pin == Py_None;
  return true;
}

}  // namespace drust::bind
