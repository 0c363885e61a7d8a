#include "bind/views.hpp"

#include <algorithm>
#include <vector>

#include "bind/numpy_api.hpp"
#include "bind/python.hpp"
#include "bind/revoke.hpp"

namespace drust::bind {
namespace {

// Callers searched when the caller's own frame does not explain the counts: ExitStack and generator-based
// context managers put frames between the block and its end.
constexpr int kSearchDepth = 24;

PinBufferObject* exporter_of(PyObject* parent) noexcept {
  return reinterpret_cast<PinBufferObject*>(fields_of(parent)->base);
}

// Spares come back only as they were handed out: shape, dtype and flags of an array can be assigned to.
bool is_pristine(PyObject* view, PyObject* parent) noexcept {
  const PyArrayObject_fields* a = fields_of(view);
  const PyArrayObject_fields* p = fields_of(parent);
  constexpr int kFlags = NPY_ARRAY_WRITEABLE | NPY_ARRAY_OWNDATA | NPY_ARRAY_WRITEBACKIFCOPY;
  return a->data == p->data && a->nd == p->nd && a->descr == p->descr && a->base == parent &&
         a->weakreflist == nullptr && ((a->flags ^ p->flags) & kFlags) == 0 &&
         std::equal(a->dimensions, a->dimensions + a->nd, p->dimensions) &&
         std::equal(a->strides, a->strides + a->nd, p->strides);
}

PyObject* over(PyObject* like, Owned exporter, char* data, int nd, const npy_intp* shape) {
  PyArray_Descr* dtype = PyArray_DESCR(as_array(like));
  Py_INCREF(dtype);
  const int flags = reinterpret_cast<PinBufferObject*>(exporter.get())->is_readonly ? 0 : NPY_ARRAY_WRITEABLE;
  PyObject* parent = PyArray_NewFromDescr(&PyArray_Type, dtype, nd, const_cast<npy_intp*>(shape),
                                          PyArray_STRIDES(as_array(like)), data, flags, nullptr);
  if (parent == nullptr) return nullptr;
  PyArray_UpdateFlags(as_array(parent), NPY_ARRAY_UPDATE_ALL);
  if (PyArray_SetBaseObject(as_array(parent), exporter.release()) != 0) Py_CLEAR(parent);
  return parent;
}

// Counts the references to the array handed out and to arrays derived from it.
class Search final : public FrameVisitor {
 public:
  Search(PyObject* handed, PyObject* parent) : handed_(handed), parent_(parent) {}

  void found(PyObject* object) override {
    if (object == handed_) {
      ++names;
    } else if (PyArray_CheckExact(object) && fields_of(object)->base == parent_) {
      const auto at =
          std::find_if(derived.begin(), derived.end(), [&](const Seen& s) { return s.array == object; });
      if (at == derived.end()) {
        derived.push_back({object, 1});
      } else {
        ++at->references;
      }
    }
  }

  void again(int depth, PyObject* error) {
    names = 0;
    derived.clear();
    scan(depth, error);
  }

  struct Seen {
    PyObject* array;
    Py_ssize_t references;
  };
  Py_ssize_t names = 0;
  std::vector<Seen> derived;

 private:
  PyObject* handed_;
  PyObject* parent_;
};

}  // namespace

void ViewSet::clear() noexcept {
  for (PyObject*& spare : spares) Py_CLEAR(spare);
  Py_CLEAR(parent);
  is_busy = false;
}

PinBufferObject* find_exporter(PyObject* array) noexcept {
  if (!PyArray_CheckExact(array)) return nullptr;
  PyObject* base = fields_of(array)->base;
  while (base != nullptr) {
    if (PyArray_Check(base)) {
      base = fields_of(base)->base;
    } else if (PyMemoryView_Check(base)) {
      base = PyMemoryView_GET_BUFFER(base)->obj;
    } else {
      break;
    }
  }
  if (base == nullptr || !is_pin_buffer(base)) return nullptr;
  auto* exporter = reinterpret_cast<PinBufferObject*>(base);
  return is_pin(exporter->keep) ? exporter : nullptr;
}

PyObject* make_parent(PyObject* like, PinObject* pin) {
  const PinBufferObject* before = find_exporter(like);
  // The same place in the block: relative to the mapping that `like` uses.
  const std::byte* start = bytes_of(as_pin(before->keep));
  std::byte* data = bytes_of(pin) + (before->data - start);
  Owned exporter(
      make_pin_buffer(as_object(pin), data, static_cast<std::size_t>(before->bytes), !pin->is_writable));
  if (!exporter) return nullptr;
  const Py_ssize_t inside = PyArray_BYTES(as_array(like)) - reinterpret_cast<const char*>(before->data);
  return over(like, std::move(exporter), reinterpret_cast<char*>(data) + inside, PyArray_NDIM(as_array(like)),
              PyArray_DIMS(as_array(like)));
}

PyObject* make_part_parent(PyObject* like, int axis, Py_ssize_t start, Py_ssize_t stop) {
  const PinBufferObject* before = exporter_of(like);
  Owned exporter(make_pin_buffer(before->keep, before->data, static_cast<std::size_t>(before->bytes),
                                 before->is_readonly));
  if (!exporter) return nullptr;
  PyArrayObject* array = as_array(like);
  std::vector<npy_intp> shape(PyArray_DIMS(array), PyArray_DIMS(array) + PyArray_NDIM(array));
  shape[static_cast<std::size_t>(axis)] = stop - start;
  return over(like, std::move(exporter), PyArray_BYTES(array) + start * PyArray_STRIDE(array, axis),
              PyArray_NDIM(array), shape.data());
}

PyObject* hand_out(ViewSet* views, PyObject* parent) {
  for (int i = 0; views != nullptr && i < kSpares; ++i) {
    PyObject* spare = views->spares[i];
    if (spare == nullptr || Py_REFCNT(spare) != 1) continue;
    views->spares[i] = nullptr;
    if (is_revoked(spare)) restore(spare);
    if (is_pristine(spare, parent)) return spare;
    Py_DECREF(spare);
  }
  return PyArray_View(as_array(parent), nullptr, nullptr);
}

Remains examine(PyObject* handed, PyObject* parent, Py_ssize_t own, PyObject* error, const Site& ended,
                bool was_mutable) {
  const PinBufferObject* exporter = exporter_of(parent);
  const Py_ssize_t handed_is_plain = is_revoked(handed) ? 0 : 1;
  const Py_ssize_t derived = Py_REFCNT(parent) - own - handed_is_plain - exporter->revoked;
  const Py_ssize_t holders = Py_REFCNT(handed) - 1;
  if (derived == 0 && holders == 0 && Py_REFCNT(exporter) == 1) return {};
  Search search(handed, parent);
  search.again(1, nullptr);
  const auto is_all_names = [](const Search::Seen& seen) { return Py_REFCNT(seen.array) == seen.references; };
  const auto explained = [&] {
    return search.names == holders && static_cast<Py_ssize_t>(search.derived.size()) >= derived &&
           std::all_of(search.derived.begin(), search.derived.end(), is_all_names);
  };
  if (!explained()) search.again(kSearchDepth, error);
  bool all_found = explained() && Py_REFCNT(exporter) == 1;
  const bool swaps_handed = holders != 0 && search.names == holders && handed_is_plain != 0;
  if (swaps_handed || !search.derived.empty()) {
    EndNote* note = make_note(ended, was_mutable);
    if (note == nullptr) {
      all_found = false;
    } else {
      for (const Search::Seen& seen : search.derived) {
        if (is_all_names(seen)) revoke(seen.array, note);
      }
      if (swaps_handed) revoke(handed, note);
      drop_note(note);
    }
  }
  return {.has_survivors = !all_found};
}

bool is_held(PyObject* handed, PyObject* parent, const Site& ended) {
  return examine(handed, parent, 1, nullptr, ended, false).has_survivors;
}

Py_ssize_t own_references(const ViewSet& views) noexcept {
  Py_ssize_t count = views.parent == nullptr ? 0 : 1;
  for (PyObject* spare : views.spares) count += spare != nullptr && !is_revoked(spare) ? 1 : 0;
  return count;
}

void keep_spare(ViewSet& views, PyObject* handed) noexcept {
  if (fields_of(handed)->weakreflist != nullptr) {  // else a weak reference would lead to the next borrow's array
    Py_DECREF(handed);
    return;
  }
  for (PyObject*& spare : views.spares) {
    if (spare != nullptr) continue;
    spare = handed;
    return;
  }
  PyObject* oldest = std::exchange(views.spares[0], std::exchange(views.spares[1], handed));
  Py_DECREF(oldest);
}

}  // namespace drust::bind
