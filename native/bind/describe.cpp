// What tools and people see of a Box: its repr and the dictionary of _state().
#include "bind/box.hpp"
#include "bind/numpy_api.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::Ceiling;
using protocol::Phase;
using protocol::Writer;

namespace {

const char* name_of(Phase phase) noexcept {
  switch (phase) {
    case Phase::Owned: return "owned";
    case Phase::Shared: return "shared";
    case Phase::Modified: return "modified";
    case Phase::Moved: return "moved";
    case Phase::Dropped: return "dropped";
  }
  return "";
}

const char* name_of(Writer writer) noexcept {
  switch (writer) {
    case Writer::None: return "none";
    case Writer::Local: return "local";
    case Writer::Lend: return "lend";
    case Writer::Split: return "split";
  }
  return "";
}

const char* name_of(Ceiling ceiling) noexcept {
  switch (ceiling) {
    case Ceiling::None: return "none";
    case Ceiling::Shared: return "shared";
    case Ceiling::Mutable: return "mutable";
    case Ceiling::Own: return "own";
  }
  return "";
}

const char* name_of(Kind kind) noexcept {
  switch (kind) {
    case Kind::empty: return "empty";
    case Kind::live: return "live";
    case Kind::array: return "array";
    case Kind::gone: return "gone";
  }
  return "";
}

// Bytes of the value where they are known without encoding it; -1 elsewhere.
Py_ssize_t known_bytes(const BoxObject* box) noexcept {
  PyObject* parent = box->read.parent != nullptr ? box->read.parent : box->write.parent;
  if (parent != nullptr) return PyArray_NBYTES(as_array(parent));
  if (box->pin == nullptr || box->is_outdated) return -1;
  if (!is_mapped(pin_of(box))) return static_cast<Py_ssize_t>(pin_of(box)->pointer.extent_bytes);
  return static_cast<Py_ssize_t>(block_of(pin_of(box)).header().value_bytes);
}

PyObject* size_text(Py_ssize_t bytes) {
  static const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  if (bytes < 0) return PyUnicode_FromString("live");
  if (bytes < 1024) return PyUnicode_FromFormat("%zd B", bytes);
  std::size_t unit = 0;
  Py_ssize_t tenths = bytes * 10;
  while (tenths >= 10240 && unit < 4) {
    tenths /= 1024;
    ++unit;
  }
  return PyUnicode_FromFormat("%zd.%zd %s", tenths / 10, tenths % 10, kUnits[unit]);
}

PyObject* condition_text(const BoxObject* box) {
  const protocol::OwnerState& s = box->state;
  if (s.has(protocol::kPoisoned)) return PyUnicode_FromString("poisoned");
  switch (s.phase) {
    case Phase::Owned: return PyUnicode_FromString(s.ceiling == Ceiling::Own ? "owned" : "not borrowed");
    case Phase::Shared:
      return PyUnicode_FromFormat("%u borrow%s, %u lend%s", static_cast<unsigned>(s.local_readers),
                                  s.local_readers == 1 ? "" : "s", static_cast<unsigned>(s.shared_lends),
                                  s.shared_lends == 1 ? "" : "s");
    case Phase::Modified:
      if (s.writer == Writer::Split) {
        return PyUnicode_FromFormat("split, %u parts out", static_cast<unsigned>(s.parts_out));
      }
      return PyUnicode_FromString(s.writer == Writer::Lend ? "lent mutably" : "mutably borrowed");
    default: return box->moved_to == nullptr ? PyUnicode_FromString("moved") : Py_NewRef(box->moved_to);
  }
}

bool put(PyObject* dictionary, const char* key, PyObject* value) {
  const Owned owned(value);
  return owned && PyDict_SetItemString(dictionary, key, owned.get()) == 0;
}

PyObject* flag(const protocol::OwnerState& state, protocol::Flag which) {
  return PyBool_FromLong(state.has(which) ? 1 : 0);
}

PyObject* pointer_of(const BoxObject* box) {
  if (box->pin == nullptr) return new_none();
  return PyObject_GetAttrString(box->pin, "pointer");
}

}  // namespace

PyObject* box_repr(PyObject* self) {
  const BoxObject* box = as_box(self);
  const Owned name(label_of(box));
  const Owned size(size_text(known_bytes(box)));
  const Owned condition(condition_text(box));
  if (!name || !size || !condition) return nullptr;
  if (box->kind == Kind::gone) return PyUnicode_FromFormat("<%U: %U>", name.get(), condition.get());
  if (box->pin == nullptr)
    return PyUnicode_FromFormat("<%U: %U, %U>", name.get(), size.get(), condition.get());
  return PyUnicode_FromFormat("<%U: %U on server %u, %U>", name.get(), size.get(),
                              static_cast<unsigned>(pin_of(box)->pointer.address.server()), condition.get());
}

PyObject* box_state(BoxObject* box) {
  const protocol::OwnerState& s = box->state;
  Owned all(PyDict_New());
  PyObject* d = all.get();
  const bool fine =
      d != nullptr && put(d, "phase", PyUnicode_FromString(name_of(s.phase))) &&
      put(d, "writer", PyUnicode_FromString(name_of(s.writer))) &&
      put(d, "ceiling", PyUnicode_FromString(name_of(s.ceiling))) &&
      put(d, "readers", PyLong_FromUnsignedLong(s.local_readers)) &&
      put(d, "shared_lends", PyLong_FromUnsignedLong(s.shared_lends)) &&
      put(d, "parts_out", PyLong_FromUnsignedLong(s.parts_out)) &&
      put(d, "child", flag(s, protocol::kChild)) && put(d, "published", flag(s, protocol::kPublished)) &&
      put(d, "pinned", flag(s, protocol::kPinned)) && put(d, "poisoned", flag(s, protocol::kPoisoned)) &&
      put(d, "kind", PyUnicode_FromString(name_of(box->kind))) &&
      put(d, "outdated", PyBool_FromLong(box->is_outdated ? 1 : 0)) && put(d, "label", label_of(box)) &&
      put(d, "nbytes", PyLong_FromSsize_t(known_bytes(box))) && put(d, "pointer", pointer_of(box)) &&
      put(d, "elsewhere", PyBool_FromLong(is_elsewhere(box) ? 1 : 0)) &&
      put(d, "created", text_of(box->created)) &&
      put(d, "moved", box->moved_to == nullptr ? new_none() : Py_NewRef(box->moved_to)) &&
      put(d, "borrows", describe_guards(box)) &&
      put(d, "lends", box->lends == nullptr ? PyList_New(0) : PySequence_List(box->lends)) &&
      put(d, "parent", box->parent == nullptr ? new_none() : Py_NewRef(as_object(box->parent)));
  return fine ? all.release() : nullptr;
}

}  // namespace drust::bind
