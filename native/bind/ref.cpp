// Ref and RefMut: the guards of one borrow. `with box.borrow() as a` is the hottest path of the project.
//
// A guard comes from a free list and does nothing until it is entered or lent: one that never is costs
// nothing and holds nobody up. Entering an owned, live object takes the protocol's inlined transition,
// records where and when, and hands the value out; no allocation, no Python call.
#include "bind/box.hpp"

#include <array>
#include <utility>

#include "bind/clock.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"
#include "bind/revoke.hpp"

namespace drust::bind {

using protocol::EventKind;
using protocol::Verdict;

PyTypeObject ref_type;
PyTypeObject ref_mut_type;

namespace {

constexpr std::size_t kFreeGuards = 64;
std::array<GuardObject*, kFreeGuards> free_guards;  // protected by the interpreter lock
std::size_t free_guard_count = 0;

}  // namespace

PyObject* refuse_phase(GuardObject* guard) {
  const char* why = guard->phase == GuardPhase::fresh  ? "this borrow has not begun"
                    : guard->phase == GuardPhase::lent ? "this reference was lent already"
                    : guard->phase == GuardPhase::ended
                        ? "this borrow has ended; call borrow() again"
                        : "this borrow has begun already: a reference is entered once";
  return set_box_conflict(guard->box, "entered_twice", "%s", why);
}

namespace {

ViewSet& views_of(GuardObject* guard) noexcept {
  return guard->is_mutable ? guard->box->write : guard->box->read;
}

bool is_mapped_array(const BoxObject* box, const ViewSet& views) noexcept {
  return box->kind == Kind::array && views.parent != nullptr && is_mapped(as_pin(box->source));
}

// The state's inlined transition where nothing slow is needed; false: ask the general path.
bool try_begin(GuardObject* guard) noexcept {
  BoxObject* box = guard->box;
  if (box->epoch != process_epoch()) [[unlikely]]
    return false;
  if (!guard->is_mutable) {
    return (box->kind == Kind::live || is_mapped_array(box, box->read)) && protocol::try_borrow(box->state);
  }
  if (box->kind == Kind::live) {
    if (box->is_immutable || !box->is_writable || is_shallow_value(box->value) ||
        !protocol::try_borrow_mut(box->state)) {
      return false;
    }
    box->is_outdated = true;
    if (box->first_child != nullptr) children_free_themselves(box);
    return true;
  }
  return is_mapped_array(box, box->write) && !is_elsewhere(box) && protocol::try_borrow_mut(box->state);
}

PyObject* refuse_immutable(BoxObject* box) {
  return set_box_conflict(
      box, "immutable",
      "its value cannot be changed in place, so a mutable borrow would lose what you assign; "
      "use replace(), or an Atomic for a shared counter");
}

bool begin(GuardObject* guard) {
  BoxObject* box = guard->box;
  if (!guard->is_mutable) return begin_shared(box, guard->timeout_s);
  if (box->kind == Kind::live && box->is_immutable) {
    refuse_immutable(box);
    return false;
  }
  if (!begin_write(box, {EventKind::BorrowMut}, guard->timeout_s)) return false;
  const bool is_changeable = !box->is_immutable || box->kind != Kind::live;
  if (is_changeable && separate_value(box)) return true;
  // Only now is it known what it is. Nothing was written.
  if (!is_changeable) box->is_outdated = false;
  box->state = protocol::apply(box->state, {EventKind::BorrowMutAborted}).state;
  lower_ceiling(box);
  if (!is_changeable) refuse_immutable(box);
  return false;
}

// The hidden parent for this borrow: the Box's, or one of its own while another borrow uses that.
bool choose_parent(GuardObject* guard) {
  BoxObject* box = guard->box;
  ViewSet& views = views_of(guard);
  if (views.parent == nullptr) {
    const ViewSet& other = guard->is_mutable ? box->read : box->write;
    const Owned mapping(guard->is_mutable ? make_writable_sibling(pin_of(box)) : Py_NewRef(box->source));
    if (!mapping) return false;
    views.parent = make_parent(other.parent, as_pin(mapping.get()));
    if (views.parent == nullptr) return false;
  }
  if (!views.is_busy) {
    views.is_busy = true;
    guard->parent = Py_NewRef(views.parent);
    return true;
  }
  guard->parent = make_parent(views.parent, as_pin(find_exporter(views.parent)->keep));
  return guard->parent != nullptr;
}

// The ViewSet whose parent this guard uses, or null if it has its own.
ViewSet* used_views(GuardObject* guard) noexcept {
  ViewSet& views = views_of(guard);
  return !guard->is_part && views.is_busy && views.parent == guard->parent ? &views : nullptr;
}

bool hand_out_array(GuardObject* guard) {
  if (guard->is_part) {
    guard->parent =
        make_part_parent(guard->box->write.parent, guard->part.axis, guard->part.start, guard->part.stop);
    if (guard->parent == nullptr) return false;
  } else if (!choose_parent(guard)) {
    return false;
  }
  ViewSet* views = used_views(guard);
  guard->handed = hand_out(views, guard->parent);
  if (guard->handed != nullptr) return true;
  if (views != nullptr) views->is_busy = false;
  Py_CLEAR(guard->parent);
  return false;
}

void record(GuardObject* guard) noexcept {
  record_site(guard->site);
  guard->thread = PyThread_get_thread_ident();
  guard->began_ms = coarse_now_ms();
}

// Takes the array back. True if views of it are left.
bool take_back(GuardObject* guard, PyObject* error, const Site& ended) {
  ViewSet* views = used_views(guard);
  PyObject* handed = std::exchange(guard->handed, nullptr);
  PyObject* parent = std::exchange(guard->parent, nullptr);
  const Py_ssize_t own = 1 + (views == nullptr ? 0 : own_references(*views));
  const Remains remains = examine(handed, parent, own, error, ended, guard->is_mutable);
  if (views != nullptr) views->is_busy = false;
  if (!remains.has_survivors) {
    if (views == nullptr) {
      Py_DECREF(handed);
    } else {
      keep_spare(*views, handed);
    }
    Py_DECREF(parent);
    return false;
  }
  BoxObject* box = guard->box;
  if (views != nullptr) {  // this parent stays with the views; the next borrow gets another
    PyObject* next = make_parent(parent, as_pin(find_exporter(parent)->keep));
    if (next == nullptr) PyErr_WriteUnraisable(as_object(box));
    views->clear();
    views->parent = next;
    if (next == nullptr && box->read.parent == nullptr && box->write.parent == nullptr) forget_value(box);
  }
  if (guard->is_mutable) {
    Py_DECREF(handed);
    Py_DECREF(parent);
    return true;
  }
  if (box->escapes == nullptr) box->escapes = new std::vector<Escape>();
  box->escapes->push_back({handed, parent, ended.share()});
  return true;
}

void dealloc(PyObject* self) {
  GuardObject* guard = as_guard(self);
  PyObject_GC_UnTrack(self);
  const bool is_open_part = guard->is_part && guard->phase != GuardPhase::ended;
  if (guard->phase == GuardPhase::active || is_open_part) [[unlikely]] {
    const ErrorKept kept;
    Py_SET_REFCNT(self, 1);  // ending it runs code that may look at it
    // A part that died while it was lent: nobody knows what became of its rows.
    const bool fine = guard->phase == GuardPhase::active
                          ? end_guard(guard, nullptr)
                          : end_part(guard, guard->phase == GuardPhase::lent, false);
    if (!fine) PyErr_WriteUnraisable(nullptr);
    const Py_ssize_t left = Py_REFCNT(self) - 1;
    Py_SET_REFCNT(self, left);
    if (left != 0) {  // its end waits for a child's
      PyObject_GC_Track(self);
      return;
    }
  }
  guard->site.clear();
  Py_CLEAR(guard->box);
  if (free_guard_count < kFreeGuards) {
    free_guards[free_guard_count++] = guard;
  } else {
    PyObject_GC_Del(self);
  }
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(as_guard(self)->box);
  return 0;
}

}  // namespace

PyObject* enter_guard(PyObject* self, PyObject*) {
  GuardObject* guard = as_guard(self);
  BoxObject* box = guard->box;
  if (guard->phase != GuardPhase::fresh) return refuse_phase(guard);
  if (guard->is_part) {  // its borrow began with the split
    if (!check_usable(box)) return nullptr;
  } else {
    if (!try_begin(guard) && !begin(guard)) return nullptr;
    record(guard);
    link_guard(guard);
    count_borrow(guard->is_mutable);
  }
  guard->phase = GuardPhase::active;
  if (box->kind != Kind::array) return Py_NewRef(box->value);
  if (hand_out_array(guard)) return Py_NewRef(guard->handed);
  const ErrorKept kept;
  static_cast<void>(end_guard(guard, nullptr));
  return nullptr;
}

PyObject* exit_guard(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  GuardObject* guard = as_guard(self);
  if (guard->phase != GuardPhase::active) return refuse_phase(guard);
  PyObject* error = count >= 2 && arguments[1] != Py_None ? arguments[1] : nullptr;
  return end_guard(guard, error) ? new_none() : nullptr;
}

void link_guard(GuardObject* guard) noexcept {
  BoxObject* box = guard->box;
  guard->next = box->guards;
  guard->previous = nullptr;
  if (box->guards != nullptr) box->guards->previous = guard;
  box->guards = guard;
}

void unlink_guard(GuardObject* guard) noexcept {
  (guard->previous != nullptr ? guard->previous->next : guard->box->guards) = guard->next;
  if (guard->next != nullptr) guard->next->previous = guard->previous;
  guard->next = nullptr;
  guard->previous = nullptr;
}

PyObject* make_guard(BoxObject* box, bool is_mutable, double timeout_s) noexcept {
  PyTypeObject* type = is_mutable ? &ref_mut_type : &ref_type;
  GuardObject* guard = nullptr;
  if (free_guard_count != 0) {
    guard = free_guards[--free_guard_count];
    PyObject_INIT(as_object(guard), type);
  } else {
    guard = PyObject_GC_New(GuardObject, type);
    if (guard == nullptr) return nullptr;
  }
  guard->box = reinterpret_cast<BoxObject*>(Py_NewRef(as_object(box)));
  guard->next = nullptr;
  guard->previous = nullptr;
  guard->handed = nullptr;
  guard->parent = nullptr;
  guard->site = {};
  guard->timeout_s = timeout_s;
  guard->phase = GuardPhase::fresh;
  guard->is_mutable = is_mutable;
  guard->is_part = false;
  guard->keeps_undo = false;
  PyObject_GC_Track(as_object(guard));
  return as_object(guard);
}

bool end_guard(GuardObject* guard, PyObject* error) {
  BoxObject* box = guard->box;
  if (guard->handed == nullptr && box->children_borrowed != 0 &&
      (guard->is_mutable || box->state.local_readers == 1)) {
    guard->phase = GuardPhase::deferred;
    Py_INCREF(guard);
    return set_refusal(box, Verdict::ChildBorrowed, "end its borrow", -1);
  }
  guard->phase = GuardPhase::ended;
  if (guard->handed == nullptr && !guard->is_part) {
    unlink_guard(guard);
    if (!guard->is_mutable) {
      if (box->parent == nullptr && protocol::try_borrow_end(box->state)) {
        notify_ended();
      } else {
        end_shared(box, false);
      }
      return true;
    }
    if (box->parent == nullptr && protocol::try_borrow_mut_end(box->state)) {
      notify_ended();
      return true;
    }
    return end_write(box, EventKind::BorrowMutEnd, false, guard->site);
  }
  Site ended;
  record_site(ended);
  const bool survivors = guard->handed != nullptr && take_back(guard, error, ended);
  bool fine = true;
  if (guard->is_part) {
    fine = end_part(guard, false, survivors);
  } else {
    unlink_guard(guard);
    if (guard->is_mutable) {
      if (survivors || box->parent != nullptr || !protocol::try_borrow_mut_end(box->state)) {
        fine = end_write(box, EventKind::BorrowMutEnd, survivors, ended);
      } else {
        notify_ended();
      }
    } else if (survivors || box->parent != nullptr || !protocol::try_borrow_end(box->state)) {
      end_shared(box, survivors);
    } else {
      notify_ended();
    }
  }
  ended.clear();
  return fine;
}

void prepare_guard_type(PyTypeObject& type) noexcept {
  type.tp_basicsize = sizeof(GuardObject);
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  type.tp_dealloc = dealloc;
  type.tp_traverse = traverse;
}

}  // namespace drust::bind
