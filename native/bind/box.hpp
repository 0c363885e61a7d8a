// Box and its guards Ref and RefMut: the structures, and the functions that the files of this folder share.
//
// A Box is one OwnerState (protocol/ownership.hpp decides every transition) beside what this process has of
// the value:
//
//     kind     value         views             pin
//     live     the object    -                 the block that holds its bytes, once published
//     array    -             read / write      the block, always current
//     empty    -             -                 the block, nothing decoded: hooks().materialise fills it in
//     gone     -             -                 -      (moved, taken, dropped)
//
// Every member of every structure is protected by the interpreter lock. Code that may release it (a hook, a
// copy of a large block) runs with the OwnerState already in the state that keeps others away.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "bind/frames.hpp"
#include "bind/pin.hpp"
#include "bind/views.hpp"
#include "protocol/ownership.hpp"

namespace drust::bind {

enum class Kind : std::uint8_t { empty, live, array, gone };

struct GuardObject;

struct BoxObject {
  PyObject_HEAD protocol::OwnerState state;
  Kind kind;
  bool is_outdated;    // a live value that the block, if any, does not hold: encoded when somebody else must
                       // see it
  bool is_writable;    // the live value may be written: not decoded over the page-protected mapping
  bool is_immutable;   // an int, a str, a tuple ...: borrow_mut would lose what `n += 1` does
  bool is_lent;        // a lend is out: the Box holds a reference to itself until it ends
  bool split_escaped;  // a part of the current split ended with survivors
  bool keeps_undo;     // lent here with undo=True: the value before is kept whatever its size
  bool is_excepted;    // of replicas, from what the session says (ChildPointer::kExcepted)
  bool counts_in_parent;  // one of the parent's children_borrowed
  std::uint32_t
      epoch;  // of the process that made it: a forked child has another, and finds its handles inert
  std::uint32_t children_borrowed;  // Boxes inside, borrowed now: this one's borrow ends after theirs
  PyObject* value;
  ViewSet read;
  ViewSet write;
  PyObject* pin;  // a Pin: what owns the block
  PyObject*
      source;  // a Pin: what `value` or `read` was decoded from; `pin` itself or a copy of a block elsewhere
  GuardObject* guards;           // active borrows here, newest first
  std::vector<Escape>* escapes;  // views that outlived shared borrows; null while there are none
  PyObject* lends;               // list of Python objects that describe outstanding lends, or null
  PyObject* lease;               // of what a task was lent: the Python object that stands for the task, or null
  PyObject* poison;              // dict: which task left it half written, where and when; or null
  BoxObject* parent;             // not counted: the parent clears it when it dies
  BoxObject* first_child;
  BoxObject* next_child;  // siblings, doubly linked
  BoxObject* previous_child;
  PyObject* label;     // the value's type, or its name
  PyObject* moved_to;  // str: where it was moved or taken
  Site created;
  PyObject* weak_references;
};

enum class GuardPhase : std::uint8_t { fresh, active, deferred, lent, ended };

struct Part {
  int axis;
  Py_ssize_t start;
  Py_ssize_t stop;
};

struct GuardObject {
  PyObject_HEAD BoxObject* box;  // counted
  GuardObject* next;
  GuardObject* previous;
  PyObject* handed;  // the array in the block's hands, or null
  PyObject* parent;  // its hidden parent
  Site site;         // where the borrow began
  std::uint64_t thread;
  std::int64_t began_ms;  // coarse monotonic clock
  double timeout_s;       // negative: refuse at once
  GuardPhase phase;
  bool keeps_undo;  // of a lend: the borrower keeps the value before, whatever its size
  bool is_mutable;
  bool is_part;
  Part part;
};

extern PyTypeObject box_type;
extern PyTypeObject ref_type;
extern PyTypeObject ref_mut_type;

[[nodiscard]] inline bool is_box(PyObject* object) noexcept { return Py_TYPE(object) == &box_type; }
[[nodiscard]] inline BoxObject* as_box(PyObject* object) noexcept {
  return reinterpret_cast<BoxObject*>(object);
}
[[nodiscard]] inline GuardObject* as_guard(PyObject* object) noexcept {
  return reinterpret_cast<GuardObject*>(object);
}
[[nodiscard]] inline PinObject* pin_of(const BoxObject* box) noexcept { return as_pin(box->pin); }

// The block is on another server: a mutable borrow has to move it here.
[[nodiscard]] inline bool is_elsewhere(const BoxObject* box) noexcept {
  return box->pin != nullptr && pin_of(box)->readable == nullptr;
}

// -- box.cpp: what a Box holds
// ------------------------------------------------------------------------------------
[[nodiscard]] std::uint32_t process_epoch() noexcept;
// A new Box of `value`, through hooks().adopt.
[[nodiscard]] PyObject* make_box(PyObject* value);
// Of replicas: what a hand-over says of the value. Boxes inside another's value go with that one.
[[nodiscard]] bool is_excepted_with_all(const BoxObject* box) noexcept;
// A Box with nothing in it yet.
[[nodiscard]] BoxObject* new_box() noexcept;
// Takes what a codec decoded. `pin` may be null; `writable`: decoded over the writable mapping.
[[nodiscard]] bool install(BoxObject* box, PyObject* value, PyObject* pin, bool is_array, bool writable);
[[nodiscard]] bool adopt_into(BoxObject* box, PyObject* value);
// Forgets the decoded value and views, not the block.
void forget_value(BoxObject* box) noexcept;
void set_pin(BoxObject* box, PyObject* pin) noexcept;  // takes the reference
[[nodiscard]] bool is_immutable_value(PyObject* value) noexcept;
void prepare_box_type(PyTypeObject& type) noexcept;

// -- children.cpp: Boxes inside a Box
// ----------------------------------------------------------------------------- Finds and adopts the Boxes
// inside the live value: they become children of this one.
[[nodiscard]] bool adopt_children(BoxObject* box);
// The live value may let go of the Boxes inside it from now on: each frees its own block, the parent's block
// only itself. (handles.py does the reverse when it publishes the parent.)
void children_free_themselves(BoxObject* parent) noexcept;
[[nodiscard]] bool set_parent(BoxObject* child, BoxObject* parent);
void leave_parent(BoxObject* child) noexcept;
void orphan_children(BoxObject* parent) noexcept;
// A new block has taken the place of the one that named the children: those on other servers that it does not name,
// taken out of the value, get holders of their own.
void anchor_strays(const BoxObject* parent) noexcept;
// Before a child is used: reports to the protocol what the parent's current borrow allows.
void raise_ceiling(BoxObject* child) noexcept;
// After: once nobody borrows the child. May end borrows of the parent that waited for that.
void lower_ceiling(BoxObject* child);
// The block at `child` is not the parent's block's any more. False if it was not, or the parent has no block here.
bool clear_entry(const BoxObject* parent, Address child) noexcept;
// The child table of the parent's block does not own the child any more; the child's own handle does.
void leave_parent_block(BoxObject* child) noexcept;
// The task that this value, or one around it, was lent to; null in the owner's hands. Borrowed reference.
[[nodiscard]] PyObject* find_lease(const BoxObject* box) noexcept;
// True if the child is no longer in the parent's value: then it stands on its own from now on.
[[nodiscard]] bool release_if_taken_out(BoxObject* child);

// -- access.cpp: borrows begin and end
// ---------------------------------------------------------------------------- False with an error set: the
// runtime is closed, or this is a forked child.
[[nodiscard]] bool check_usable(BoxObject* box);
// Begins a borrow in this process, waiting at most `timeout_s` (negative: not at all). False with an error
// set.
[[nodiscard]] bool begin_shared(BoxObject* box, double timeout_s);
[[nodiscard]] bool begin_write(BoxObject* box, const protocol::Event& event, double timeout_s);
void end_shared(BoxObject* box, bool survivors) noexcept;
// Ends a mutable borrow or a split: moves the object when views survive. False with an error set; the borrow
// ended anyway.
[[nodiscard]] bool end_write(BoxObject* box, protocol::EventKind event, bool survivors, const Site& where);
// Asks the protocol about `event`, waiting where that may help. Nothing is changed yet. False with an error
// set.
[[nodiscard]] bool decide(BoxObject* box, const protocol::Event& event, double timeout_s, bool for_writing,
                          protocol::Step& step);
// The same, for an event after which the block may be written: views that still hold it are told of
// (survivors hook).
[[nodiscard]] bool prepare(BoxObject* box, const protocol::Event& event, double timeout_s,
                           protocol::Step& step);
// Enters the state of a prepared step; moves the object to a new block if the step says so.
[[nodiscard]] bool commit(BoxObject* box, const protocol::Step& step);
// Decodes what is not decoded yet.
[[nodiscard]] bool materialise(BoxObject* box, bool writable);
// The Pin whose block holds the current value, encoded now if need be. Borrowed reference, or null with an
// error set.
[[nodiscard]] PyObject* ensure_published(BoxObject* box);
// Before the block gets another owner or writer: views that this process still has of tied children (columns
// of a frame) keep the old ones, and the block names copies. False with an error set.
[[nodiscard]] bool settle_tied(BoxObject* box);
// Drops the Escapes whose views have died; tells the protocol when none is left.
void refresh_escapes(BoxObject* box);
void forget_escapes(BoxObject* box) noexcept;
// Drops `old_pin` (the reference is taken) of a block that was left, so that its death frees what `actions`
// say.
void leave_block(BoxObject* box, PyObject* old_pin, protocol::Actions actions);
// Tells the lend above that it can no longer be rolled back, if `actions` say so. False with an error set.
[[nodiscard]] bool forbid_rollback(BoxObject* box, protocol::Actions actions);

// -- shallow.cpp: values whose memory is never written
[[nodiscard]] bool is_shallow_value(PyObject* value) noexcept;
// Before such a value is changed: who kept it keeps it as it was. False with an error set.
[[nodiscard]] bool separate_value(BoxObject* box);

// -- waiting.cpp
// -------------------------------------------------------------------------------------------------- Wakes
// those who wait for any borrow to end; a load when nobody does.
void notify_ended() noexcept;
// Waits for the end of any borrow in this process. False with an error set (a signal handler raised).
[[nodiscard]] bool wait_for_end(double timeout_s);
[[nodiscard]] double monotonic_s() noexcept;

// -- conflict.cpp: the messages
// ----------------------------------------------------------------------------------- Sets the error for a
// refused event; always false.
bool set_refusal(BoxObject* box, protocol::Verdict verdict, const char* wish, double waited_s);
PyObject* set_box_conflict(BoxObject* box, const char* kind, const char* format, ...);
[[nodiscard]] PyObject* label_of(const BoxObject* box) noexcept;         // new str
[[nodiscard]] PyObject* describe_guards(const BoxObject* box) noexcept;  // new list of dicts

// -- ref.cpp, part.cpp
// --------------------------------------------------------------------------------------------
[[nodiscard]] PyObject* make_guard(BoxObject* box, bool is_mutable, double timeout_s) noexcept;
void link_guard(GuardObject* guard) noexcept;
void unlink_guard(GuardObject* guard) noexcept;
// Ends what a guard holds: revokes its array, ends the borrow. `error`: the exception leaving the block, or
// null.
[[nodiscard]] bool end_guard(GuardObject* guard, PyObject* error);
[[nodiscard]] PyObject* split_mut(BoxObject* box, Py_ssize_t parts, int axis);
// A part is back: the last one ends the split.
[[nodiscard]] bool end_part(GuardObject* guard, bool failed, bool survivors);
void set_poison(BoxObject* box, PyObject* poison) noexcept;  // null: there is none any more
[[nodiscard]] PyObject* part_region(GuardObject* guard);
void prepare_guard_type(PyTypeObject& type) noexcept;
[[nodiscard]] PyObject* enter_guard(PyObject* self, PyObject*);
[[nodiscard]] PyObject* exit_guard(PyObject* self, PyObject* const* arguments, Py_ssize_t count);
// The error that this guard cannot do that (any more). Null.
PyObject* refuse_phase(GuardObject* guard);

// -- lend.cpp: lends to tasks
// ------------------------------------------------------------------------------------- `lend` describes the
// borrower (its str() is in errors), or is null. New reference to the Pin to hand over, or null.
[[nodiscard]] PyObject* begin_lend(BoxObject* box, bool is_mutable, PyObject* lend, double timeout_s);
enum class Outcome : std::uint8_t { committed, rolled_back, poisoned };
// `pointer`: what the object is from now on, a pointer tuple or the Pin that owns it; None after a roll back.
// `poison`: a dict for the error of whoever uses a poisoned value, or null.
[[nodiscard]] bool end_lend(BoxObject* box, PyObject* lend, bool is_mutable, Outcome outcome, PyObject* pointer,
                            PyObject* poison);
[[nodiscard]] bool to_outcome(PyObject* name, Outcome& outcome);
// Who has it, for errors and for whoever waits: of a lend, or of one part that was lent.
[[nodiscard]] bool note_lend(BoxObject* box, PyObject* lend);
void forget_lend(BoxObject* box, PyObject* lend);

// -- give.cpp: values leave a Box for good
// -----------------------------------------------------------------------
[[nodiscard]] PyObject* into_inner(BoxObject* box);
[[nodiscard]] PyObject* clone_box(BoxObject* box);
[[nodiscard]] bool replace_value(BoxObject* box, PyObject* value);
// Transfer or Return: (Pin or None, live value or None), and the Box is used up. `where`: str or null.
[[nodiscard]] PyObject* give_away(BoxObject* box, protocol::EventKind event, bool encode, PyObject* where);
[[nodiscard]] bool undo_transfer(BoxObject* box, PyObject* pin, PyObject* value);

// -- the rest
// -----------------------------------------------------------------------------------------------------
extern PyMethodDef box_private_methods[];           // private.cpp
[[nodiscard]] PyObject* box_state(BoxObject* box);  // describe.cpp
[[nodiscard]] PyObject* box_repr(PyObject* self);
[[nodiscard]] bool collect_boxes(PyObject* value, std::size_t budget, std::vector<PyObject*>& found) noexcept;
void count_borrow(bool is_mutable) noexcept;

[[nodiscard]] bool register_box(PyObject* module);
[[nodiscard]] bool register_guards(PyObject* module);
[[nodiscard]] bool register_find_boxes(PyObject* module);
[[nodiscard]] bool register_waiting(PyObject* module);
[[nodiscard]] bool register_shallow(PyObject* module);

}  // namespace drust::bind
