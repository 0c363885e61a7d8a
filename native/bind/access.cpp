// Borrows begin and end here: the protocol decides, this file does what its actions say.
//
// An event is decided on the state as it is, then the state is changed, then the slow work is done: while a
// hook or a copy runs without the interpreter lock, other threads meet the new state and are refused or wait.
#include "bind/box.hpp"

#include <utility>

#include "bind/hooks.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::Event;
using protocol::EventKind;
using protocol::Phase;
using protocol::Step;
using protocol::Verdict;

namespace {

// One attempt to be let in: absorbs ended lends first, then waits as long as its caller allowed.
class Turn {
 public:
  Turn(BoxObject* box, bool for_writing, double timeout_s, const char* wish)
      : box_(box), for_writing_(for_writing), timeout_s_(timeout_s), wish_(wish) {}

  // True: try again. False: an error is set.
  bool again(Verdict verdict) {
    if (verdict == Verdict::ParentNotBorrowed && release_if_taken_out(box_)) return true;
    const bool may_wait = verdict == Verdict::BorrowConflict || verdict == Verdict::BorrowMutConflict;
    if (!may_wait) return refuse(verdict);
    if (!absorbed_ && box_->lends != nullptr && PyList_GET_SIZE(box_->lends) != 0 &&
        hooks().absorb != nullptr) {
      absorbed_ = true;
      return done(PyObject_CallOneArg(hooks().absorb, as_object(box_)));
    }
    if (timeout_s_ < 0) return refuse(verdict);
    const double now_s = monotonic_s();
    if (began_s_ < 0) began_s_ = now_s;
    const double left_s = timeout_s_ - (now_s - began_s_);
    if (left_s <= 0) return refuse(verdict);
    absorbed_ = false;
    if (hooks().wait == nullptr) return wait_for_end(left_s);
    return done(PyObject_CallFunction(hooks().wait, "OOd", as_object(box_), for_writing_ ? Py_True : Py_False,
                                      left_s));
  }

 private:
  bool refuse(Verdict verdict) {
    lower_ceiling(box_);
    return set_refusal(box_, verdict, wish_, began_s_ < 0 ? -1 : monotonic_s() - began_s_);
  }
  static bool done(PyObject* result) {
    Py_XDECREF(result);
    return result != nullptr;
  }

  BoxObject* box_;
  bool for_writing_;
  double timeout_s_;
  const char* wish_;
  double began_s_ = -1;
  bool absorbed_ = false;
};

const char* wish_of(EventKind event) noexcept {
  switch (event) {
    case EventKind::Borrow: return "borrow it";
    case EventKind::LendShared: return "lend it";
    case EventKind::LendMut: return "lend it mutably";
    case EventKind::SplitMut: return "split it";
    case EventKind::Transfer: return "move it";
    case EventKind::IntoInner: return "take its value";
    case EventKind::Replace: return "replace its value";
    default: return "borrow it mutably";
  }
}

// Views outlived a borrow and the object is about to be copied: a warning, or an error in strict mode.
bool tell_survivors(BoxObject* box, const char* mode, PyObject* locations) {
  if (hooks().survivors == nullptr) return true;
  const Owned error(PyObject_CallFunction(hooks().survivors, "OsO", as_object(box), mode, locations));
  if (!error) return false;
  if (error.get() == Py_None) return true;
  PyErr_SetObject(as_object(Py_TYPE(error.get())), error.get());
  return false;
}

PyObject* escape_locations(const BoxObject* box) {
  Owned places(PyList_New(0));
  if (!places) return nullptr;
  for (std::size_t i = 0; box->escapes != nullptr && i < box->escapes->size(); ++i) {
    const Owned place(text_of((*box->escapes)[i].ended));
    if (!place || PyList_Append(places.get(), place.get()) != 0) return nullptr;
  }
  return places.release();
}

// The object to a new block of this partition; the old one stays with the views that hold its Pin.
bool move_to_new_block(BoxObject* box, protocol::Actions actions) {
  PyObject* copy = duplicate_pin(pin_of(box), find_lease(box) != nullptr);
  if (copy == nullptr) return false;
  if (box->kind == Kind::array) {
    PyObject* like = box->read.parent != nullptr ? box->read.parent : box->write.parent;
    PyObject* parent = make_parent(like, as_pin(copy));
    if (parent == nullptr) {
      Py_DECREF(copy);
      return false;
    }
    box->read.clear();
    box->write.clear();
    box->read.parent = parent;
    Py_XSETREF(box->source, Py_NewRef(copy));
  }
  forget_escapes(box);
  leave_block(box, std::exchange(box->pin, copy), actions);
  return true;
}

// Before a write that `step` grants: tells of views that outlived a borrow. A value decoded over the
// protected mapping cannot be written, so it is forgotten; arrays inside it may be held by others, which
// counts as a view. False with an error set (strict mode).
bool leave_escaped_views(BoxObject* box, const Step& step) {
  bool leaves = (step.actions & protocol::kKeepForViews) != 0;
  // A frame is never written over its columns: whoever does write one settles with the views of it.
  const bool has_parts = box->pin != nullptr && pin_of(box)->parts != nullptr;
  if (box->kind == Kind::live && !has_parts && !box->is_writable && !box->is_immutable) {
    const bool is_local = box->source != nullptr && box->source == box->pin;
    const bool is_named =
        Py_REFCNT(box->value) > 1;  // the whole value, by a name: a snapshot its holder knows of
    forget_value(box);
    if (!is_local || Py_REFCNT(box->pin) == 1) return true;
    box->state = protocol::apply(box->state, {EventKind::Borrow}).state;
    box->state = protocol::apply(box->state, {EventKind::BorrowEnd, protocol::kSurvivors}).state;
    leaves = !is_named;
  }
  if (!leaves) return true;
  const Owned places(escape_locations(box));
  return places && tell_survivors(box, "shared", places.get());
}

// The session that its block lies in has ended.
bool is_left_over(const BoxObject* box) noexcept {
  if (box->pin == nullptr) return false;
  const Runtime* runtime = pin_of(box)->runtime;
  return runtime != nullptr && runtime != current_runtime();
}

void abort_write(BoxObject* box) {
  box->state = protocol::apply(box->state, {EventKind::BorrowMutAborted}).state;
  lower_ceiling(box);
  notify_ended();
}

// The facts of the moment: where the bytes are, and whether a copy of them is too much to ask.
Event with_place(const BoxObject* box, Event event) {
  unsigned facts = event.facts;
  if (is_elsewhere(box)) {
    facts |= protocol::kElsewhere;
  } else if (box->state.has(protocol::kPreImage) && !box->keeps_undo && box->pin != nullptr &&
             is_mapped(pin_of(box)) && block_of(pin_of(box)).header().value_bytes > kPreImageBytesMax) {
    facts |= protocol::kInPlace;
  }
  event.facts = static_cast<std::uint8_t>(facts);
  return event;
}

}  // namespace

bool check_usable(BoxObject* box) {
  if (box->epoch != process_epoch()) [[unlikely]] {
    set_box_conflict(box, "forked", "it belongs to the process that made it; a forked child cannot use it");
    return false;
  }
  if (box->pin == nullptr || box->kind == Kind::live) return true;
  const PinObject* pin = pin_of(box);
  if (pin->runtime == nullptr || pin->runtime == current_runtime()) return true;
  set_box_conflict(box, "closed", "the drust runtime that held it has been closed");
  return false;
}

bool decide(BoxObject* box, const Event& event, double timeout_s, bool for_writing, Step& step) {
  Turn turn(box, for_writing, timeout_s, wish_of(event.kind));
  for (;;) {
    if (!check_usable(box)) return false;
    raise_ceiling(box);
    if (for_writing && box->escapes != nullptr) refresh_escapes(box);
    step = protocol::apply(box->state, with_place(box, event));
    if (step.ok()) return true;
    if (!turn.again(step.verdict)) return false;
  }
}

bool begin_shared(BoxObject* box, double timeout_s) {
  Step step;
  if (!decide(box, {EventKind::Borrow}, timeout_s, false, step)) return false;
  box->state = step.state;
  if (box->kind != Kind::empty || materialise(box, false)) return true;
  end_shared(box, false);
  return false;
}

bool prepare(BoxObject* box, const Event& event, double timeout_s, Step& step) {
  if (!decide(box, event, timeout_s, true, step)) return false;
  if (!leave_escaped_views(box, step)) {
    lower_ceiling(box);
    return false;
  }
  step = protocol::apply(box->state, with_place(box, event));  // that may have run foreign code
  if (step.ok()) return true;
  lower_ceiling(box);
  return set_refusal(box, step.verdict, wish_of(event.kind), -1);
}

bool commit(BoxObject* box, const Step& step) {
  const protocol::OwnerState before = std::exchange(box->state, step.state);
  const bool moves = (step.actions & protocol::kMoveToNewBlock) != 0;
  if (forbid_rollback(box, step.actions) && (!moves || move_to_new_block(box, step.actions))) return true;
  box->state = before;
  lower_ceiling(box);
  return false;
}

bool forbid_rollback(BoxObject* box, protocol::Actions actions) {
  if ((actions & protocol::kForbidRollback) == 0 || hooks().forbid_rollback == nullptr) return true;
  const Owned result(PyObject_CallOneArg(hooks().forbid_rollback, as_object(box)));
  return static_cast<bool>(result);
}

bool begin_write(BoxObject* box, const Event& event, double timeout_s) {
  Step step;
  if (!prepare(box, event, timeout_s, step) || !commit(box, step)) return false;
  if (event.kind == EventKind::LendMut) return true;
  if (((step.actions & protocol::kMoveHere) != 0 || box->kind == Kind::empty) && !materialise(box, true)) {
    abort_write(box);
    return false;
  }
  if (box->kind == Kind::live) {
    box->is_outdated = true;
    children_free_themselves(box);
  } else if ((step.actions & protocol::kForbidRollback) != 0 && pin_of(box)->runtime != nullptr) {
    pin_of(box)->runtime->heap->begin_writing(pin_of(box)->local);
  }
  return true;
}

void end_shared(BoxObject* box, bool survivors) noexcept {
  const Step step = protocol::apply(
      box->state, {EventKind::BorrowEnd, static_cast<std::uint8_t>(survivors ? protocol::kSurvivors : 0)});
  box->state = step.state;
  lower_ceiling(box);
  notify_ended();
}

bool end_write(BoxObject* box, EventKind event, bool survivors, const Site& where) {
  Step step =
      protocol::apply(box->state, {event, static_cast<std::uint8_t>(survivors ? protocol::kSurvivors : 0)});
  if (!step.ok()) return set_refusal(box, step.verdict, "end its borrow", -1);
  bool fine = true;
  if (is_left_over(box)) {
    // Nobody can meet the version that was written, nor wants another.
  } else if ((step.actions & protocol::kMoveToNewBlock) != 0) {
    const Owned place(text_of(where));
    const Owned places(place ? PyList_New(0) : nullptr);
    fine = places && PyList_Append(places.get(), place.get()) == 0 &&
           tell_survivors(box, "mutable", places.get());
    ErrorKept kept;
    if (!move_to_new_block(box, step.actions)) {
      // No room for the copy. The views keep this block in sight; the next writer tries again before it
      // writes.
      PyErr_WriteUnraisable(as_object(box));
      step = protocol::apply(box->state, {event});
      step.state = protocol::apply(step.state, {EventKind::Borrow}).state;
      step.state = protocol::apply(step.state, {EventKind::BorrowEnd, protocol::kSurvivors}).state;
    }
  } else if ((step.actions & protocol::kBumpColour) != 0 && box->pin != nullptr && box->kind == Kind::array) {
    fine = recolour_pin(pin_of(box));  // a live value gets its colour with its next block
  } else if (box->kind == Kind::array && box->pin != nullptr && pin_of(box)->runtime != nullptr) {
    pin_of(box)->runtime->heap->end_writing(pin_of(box)->local);  // under a colour that is its own already
  }
  box->state = step.state;
  if (event == EventKind::Join) box->split_escaped = false;
  lower_ceiling(box);
  notify_ended();
  return fine;
}

bool materialise(BoxObject* box, bool writable) {
  if (hooks().materialise == nullptr) {
    set_box_conflict(box, "closed", "nothing here can decode it: drust is not initialised");
    return false;
  }
  const Owned result(
      PyObject_CallFunction(hooks().materialise, "OO", as_object(box), writable ? Py_True : Py_False));
  if (!result) return false;
  if (box->kind != Kind::empty) return true;
  PyErr_SetString(PyExc_RuntimeError, "the materialise hook did not call _install");
  return false;
}

PyObject* ensure_published(BoxObject* box) {
  if (box->pin != nullptr && !box->is_outdated) return box->pin;
  if (hooks().publish == nullptr) {
    return set_box_conflict(box, "closed", "nothing here can encode it: drust is not initialised");
  }
  // Readers only while it is encoded; a child that its parent publishes may be out of reach of an event of
  // its own.
  const Step reading = protocol::apply(box->state, {EventKind::Borrow});
  if (reading.ok()) box->state = reading.state;
  PyObject* fresh = PyObject_CallOneArg(hooks().publish, as_object(box));
  if (reading.ok()) {
    const ErrorKept kept;
    end_shared(box, false);
  }
  if (fresh != nullptr && !is_pin(fresh)) {
    PyErr_Format(PyExc_TypeError, "the publish hook returned %R, which is no Pin", fresh);
    Py_CLEAR(fresh);
  }
  if (fresh == nullptr) return nullptr;
  if (fresh == box->pin) {  // nothing had changed: the same version
    Py_DECREF(fresh);
    box->is_outdated = false;
    return box->pin;
  }
  if (box->pin != nullptr &&
      !box->is_outdated) {  // another thread was faster, and may have handed its block out
    Py_DECREF(fresh);
    return box->pin;
  }
  box->is_outdated = false;
  anchor_strays(box);
  Py_CLEAR(box->source);  // what its value was decoded from; the value needs no bytes of it
  leave_block(box, std::exchange(box->pin, fresh), protocol::kFreeOldBlock);
  return box->pin;
}

namespace {

// The object's content is in another block now, and its children went with it: all of them, but for tied ones
// that only the old version names. Those are freed with it.
void leave_tied_children(const BoxObject* box, PinObject* old) {
  const Runtime* runtime = current_runtime();
  const GlobalPointer fresh = box->pin == nullptr ? GlobalPointer{} : pin_of(box)->pointer;
  old->on_release = OnRelease::free_shallow;
  if (runtime == nullptr || old->runtime != runtime) return;
  if (runtime->partition->is_local(old->pointer.address)) {
    if (runtime->heap->pass_on(old->pointer, fresh)) old->on_release = OnRelease::free_tree;
  } else if (fresh.address.server() != old->pointer.address.server()) {
    old->on_release = OnRelease::free_tied;  // a tied child lies on its parent's server: none is shared
  } else {
    old->on_release = OnRelease::nothing;
    runtime->peers->free_tied_later(old->pointer, fresh);
  }
}

}  // namespace

bool settle_tied(BoxObject* box) {
  if (box->pin == nullptr || pin_of(box)->parts == nullptr || hooks().settle == nullptr) return true;
  const bool is_named = box->kind == Kind::live && Py_REFCNT(box->value) > 1;  // a snapshot its holder knows of
  forget_value(box);
  PyObject* fresh = PyObject_CallFunction(hooks().settle, "OO", as_object(box), is_named ? Py_True : Py_False);
  if (fresh == nullptr) return false;
  if (fresh == Py_None) {
    Py_DECREF(fresh);
    return true;
  }
  if (!is_pin(fresh)) {
    PyErr_Format(PyExc_TypeError, "the settle hook returned %R, which is no Pin", fresh);
    Py_DECREF(fresh);
    return false;
  }
  leave_block(box, std::exchange(box->pin, fresh), protocol::kFreeOldBlock);
  return true;
}

void leave_block(BoxObject* box, PyObject* old_pin, protocol::Actions actions) {
  if (old_pin == nullptr) return;
  const Owned old(old_pin);
  PinObject* pin = as_pin(old_pin);
  const bool is_own = pin->on_release == OnRelease::free_tree || pin->on_release == OnRelease::free_made;
  if (is_own || pin->on_release == OnRelease::free_shallow) {
    if ((actions & protocol::kFreeOldBlock) != 0) {
      leave_tied_children(box, pin);
    } else if ((actions & protocol::kFreeTree) == 0) {
      pin->on_release = OnRelease::nothing;  // the lender frees it
    }
  }
  const bool is_tree = (actions & protocol::kFreeTree) != 0;
  const bool is_pre_image = (actions & protocol::kQueueFree) != 0;
  if (hooks().queue_free == nullptr || !(is_pre_image || (is_tree && find_lease(box) != nullptr))) return;
  if (is_pre_image) clear_entry(box->parent, pin->pointer.address);  // what is left there was dropped
  const ErrorKept kept;
  const Owned result(PyObject_CallFunctionObjArgs(hooks().queue_free, as_object(box), old_pin,
                                                  is_tree ? Py_True : Py_False, is_pre_image ? Py_True : Py_False,
                                                  nullptr));
  if (!result) PyErr_WriteUnraisable(as_object(box));
}

void refresh_escapes(BoxObject* box) {
  std::vector<Escape> alive;
  std::vector<Escape> checked = std::move(*box->escapes);
  box->escapes->clear();
  for (Escape& escape : checked) {
    if (is_held(escape.handed, escape.parent, escape.ended)) {
      alive.push_back(escape);
    } else {
      Py_DECREF(escape.handed);
      Py_DECREF(escape.parent);
      escape.ended.clear();
    }
  }
  if (!alive.empty()) {
    *box->escapes = std::move(alive);
    return;
  }
  forget_escapes(box);
  box->state = protocol::apply(box->state, {EventKind::PinsGone}).state;
}

void forget_escapes(BoxObject* box) noexcept {
  std::vector<Escape>* escapes = std::exchange(box->escapes, nullptr);
  if (escapes == nullptr) return;
  for (Escape& escape : *escapes) {
    Py_DECREF(escape.handed);
    Py_DECREF(escape.parent);
    escape.ended.clear();
  }
  delete escapes;
}

}  // namespace drust::bind
