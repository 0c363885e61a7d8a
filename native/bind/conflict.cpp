// What a refused borrow says: who holds the object, where that began, how long ago. Built when it is raised,
// not before.
#include <cstdarg>

#include <unistd.h>

#include "bind/box.hpp"
#include "bind/clock.hpp"
#include "bind/hooks.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::Phase;
using protocol::Verdict;
using protocol::Writer;

namespace {

const char* kind_of(Verdict verdict) noexcept {
  switch (verdict) {
    case Verdict::Ok: return "internal";
    case Verdict::Moved:
    case Verdict::Dropped: return "moved";
    case Verdict::BorrowConflict: return "borrow";
    case Verdict::BorrowMutConflict: return "borrow_mut";
    case Verdict::ParentNotBorrowed: return "parent_not_borrowed";
    case Verdict::ReadOnlyReference: return "read_only";
    case Verdict::NotOwner: return "not_owner";
    case Verdict::ChildBorrowed: return "child_borrowed";
    case Verdict::Poisoned: return "poisoned";
    case Verdict::NotBorrowed: return "internal";
    case Verdict::TooMany: return "too_many";
  }
  return "internal";
}

// The name of the thread with this identity, as `threading` knows it.
PyObject* thread_name(std::uint64_t identity) {
  const ErrorKept kept;
  const Owned threading(PyImport_ImportModule("threading"));
  const Owned threads(threading ? PyObject_CallMethod(threading.get(), "enumerate", nullptr) : nullptr);
  for (Py_ssize_t i = 0; threads && i < PyList_GET_SIZE(threads.get()); ++i) {
    PyObject* thread = PyList_GET_ITEM(threads.get(), i);
    const Owned ident(PyObject_GetAttrString(thread, "ident"));
    if (!ident || !PyLong_Check(ident.get())) continue;
    if (PyLong_AsUnsignedLongLong(ident.get()) == identity) return PyObject_GetAttrString(thread, "name");
  }
  PyErr_Clear();
  return PyUnicode_FromFormat("thread %llu", static_cast<unsigned long long>(identity));
}

const char* mode_of(const GuardObject* guard) noexcept {
  if (guard->phase == GuardPhase::deferred) return "borrowed (until the borrows of Boxes inside it end)";
  return guard->is_mutable ? "mutably borrowed" : "borrowed";
}

// One holder as the keyword fields of an error.
PyObject* fields_of_guard(const GuardObject* guard) {
  const Owned thread(thread_name(guard->thread));
  auto* code = reinterpret_cast<PyCodeObject*>(guard->site.code);
  if (!thread) return nullptr;
  return Py_BuildValue("{s:i,s:O,s:O,s:i,s:O,s:d,s:s}", "process", static_cast<int>(getpid()), "thread",
                       thread.get(), "file", code == nullptr ? Py_None : code->co_filename, "line",
                       line_of(guard->site), "function", code == nullptr ? Py_None : code->co_qualname,
                       "age_s", static_cast<double>(coarse_now_ms() - guard->began_ms) / 1000.0, "mode",
                       guard->is_mutable ? "mutable" : "shared");
}

PyObject* holder_text(const GuardObject* guard) {
  const Owned thread(thread_name(guard->thread));
  const Owned place(text_of(guard->site));
  if (!thread || !place) return nullptr;
  const std::int64_t tenths = (coarse_now_ms() - guard->began_ms) / 100;
  return PyUnicode_FromFormat("%s by thread %U of process %d at %U, %lld.%lld s ago", mode_of(guard),
                              thread.get(), static_cast<int>(getpid()), place.get(),
                              static_cast<long long>(tenths / 10), static_cast<long long>(tenths % 10));
}

// Who holds it, in words: local borrows, lends, or the parts of a split.
PyObject* holders_text(const BoxObject* box) {
  const bool is_lend = box->guards == nullptr && box->lends != nullptr && PyList_GET_SIZE(box->lends) != 0;
  if (is_lend) {
    const Py_ssize_t count = PyList_GET_SIZE(box->lends);
    const char* how = box->state.writer == Writer::Lend ? "lent mutably" : "lent";
    if (count == 1) return PyUnicode_FromFormat("%s to %S", how, PyList_GET_ITEM(box->lends, 0));
    return PyUnicode_FromFormat("%s to %S and %zd more", how, PyList_GET_ITEM(box->lends, 0), count - 1);
  }
  if (box->guards == nullptr) {
    if (box->state.writer == Writer::Split) {
      return PyUnicode_FromFormat("split, and %u of its parts are out",
                                  static_cast<unsigned>(box->state.parts_out));
    }
    return PyUnicode_FromString(box->state.phase == Phase::Shared ? "lent" : "lent mutably");
  }
  const Owned guard = Owned::share(as_object(box->guards));  // asking for names runs Python
  const Owned newest(holder_text(as_guard(guard.get())));
  if (!newest) return nullptr;
  if (box->state.writer == Writer::Split) {
    return PyUnicode_FromFormat("split, and %u of its parts are out; one is %U",
                                static_cast<unsigned>(box->state.parts_out), newest.get());
  }
  const auto others = static_cast<unsigned long>(box->state.local_readers + box->state.shared_lends);
  if (others < 2) return Py_NewRef(newest.get());
  return PyUnicode_FromFormat("%U, and %lu more", newest.get(), others - 1);
}

PyObject* reason(BoxObject* box, Verdict verdict) {
  const Owned name(label_of(box));
  if (!name) return nullptr;
  switch (verdict) {
    case Verdict::Moved:
    case Verdict::Dropped:
      if (box->moved_to == nullptr) return PyUnicode_FromString("it was moved");
      return PyUnicode_FromFormat("it was %U", box->moved_to);
    case Verdict::BorrowConflict:
    case Verdict::BorrowMutConflict: {
      const Owned holders(holders_text(box));
      return holders ? PyUnicode_FromFormat("it is %U", holders.get()) : nullptr;
    }
    case Verdict::ParentNotBorrowed: {
      const Owned outer(box->parent == nullptr ? PyUnicode_FromString("Box") : label_of(box->parent));
      if (!outer) return nullptr;
      return PyUnicode_FromFormat("it lies inside a %U, which has to be borrowed at least as strongly first",
                                  outer.get());
    }
    case Verdict::ReadOnlyReference:
      return PyUnicode_FromString("it was lent here shared: it can be read, not written");
    case Verdict::NotOwner: return PyUnicode_FromString("it was lent here: only its owner can do that");
    case Verdict::ChildBorrowed:
      return PyUnicode_FromString("a Box inside it is borrowed; the borrow ends when that one does");
    case Verdict::Poisoned:
      return PyUnicode_FromString(
          "a task was lost in the middle of changing it; recover() accepts what is there, replace() gives it a "
          "value again");
    case Verdict::TooMany: return PyUnicode_FromString("it is borrowed too many times");
    default: return PyUnicode_FromString("it is not borrowed (a bug in drust)");
  }
}

PyObject* fields_for(BoxObject* box, double waited_s) {
  const Owned guard = Owned::share(as_object(box->guards));
  Owned fields(guard ? fields_of_guard(as_guard(guard.get())) : PyDict_New());
  if (!fields) return nullptr;
  const Owned name(label_of(box));
  if (!name || PyDict_SetItemString(fields.get(), "box_label", name.get()) != 0) return nullptr;
  if (box->poison != nullptr && PyDict_SetItemString(fields.get(), "poison", box->poison) != 0) return nullptr;
  if (waited_s >= 0) {
    const Owned waited(PyFloat_FromDouble(waited_s));
    if (!waited || PyDict_SetItemString(fields.get(), "waited_s", waited.get()) != 0) return nullptr;
  }
  return fields.release();
}

}  // namespace

PyObject* label_of(const BoxObject* box) noexcept {
  if (box->label == nullptr) return PyUnicode_FromString("Box");
  if (PyUnicode_Check(box->label)) return PyUnicode_FromFormat("Box[%U]", box->label);
  const Owned name(PyObject_GetAttrString(box->label, "__name__"));
  return name ? PyUnicode_FromFormat("Box[%S]", name.get()) : nullptr;
}

bool set_refusal(BoxObject* box, Verdict verdict, const char* wish, double waited_s) {
  const Owned name(label_of(box));
  const Owned why(reason(box, verdict));
  const Owned fields(fields_for(box, waited_s));
  if (!name || !why || !fields) return false;
  const auto tenths = static_cast<long long>(waited_s * 10);
  const Owned message(waited_s < 0
                          ? PyUnicode_FromFormat("%U: cannot %s: %U", name.get(), wish, why.get())
                          : PyUnicode_FromFormat("%U: cannot %s: %U (waited %lld.%lld s)", name.get(), wish,
                                                 why.get(), tenths / 10, tenths % 10));
  set_conflict(as_object(box), kind_of(verdict), message.get(), fields.get());
  return false;
}

PyObject* set_box_conflict(BoxObject* box, const char* kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const Owned text(PyUnicode_FromFormatV(format, arguments));
  va_end(arguments);
  const Owned name(label_of(box));
  const Owned fields(fields_for(box, -1));
  if (!text || !name || !fields) return nullptr;
  const Owned message(PyUnicode_FromFormat("%U: %U", name.get(), text.get()));
  return set_conflict(as_object(box), kind, message.get(), fields.get());
}

PyObject* describe_guards(const BoxObject* box) noexcept {
  std::vector<Owned> guards;  // the list may change while Python is asked for names
  for (GuardObject* guard = box->guards; guard != nullptr; guard = guard->next) {
    guards.push_back(Owned::share(as_object(guard)));
  }
  Owned all(PyList_New(0));
  for (std::size_t i = 0; all && i < guards.size(); ++i) {
    const Owned fields(fields_of_guard(as_guard(guards[i].get())));
    if (!fields || PyList_Append(all.get(), fields.get()) != 0) return nullptr;
  }
  return all.release();
}

}  // namespace drust::bind
