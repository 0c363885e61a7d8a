// split_mut: one array mutably borrowed in disjoint parts, each a RefMut of its own.
//
// The Box is borrowed from the split until the last part ended or died; a part that was never used counts as
// ended. A part has a hidden parent of its own, so views that escape one part are told from the others'.
#include <algorithm>

#include "bind/box.hpp"
#include "bind/clock.hpp"
#include "bind/hooks.hpp"
#include "bind/numpy_api.hpp"
#include "bind/python.hpp"

namespace drust::bind {

using protocol::EventKind;

namespace {

PyObject* geometry_of(const BoxObject* box) noexcept {
  return box->write.parent != nullptr ? box->write.parent : box->read.parent;
}

// The array decoded and its bytes here, so that its shape is known.
bool bring_here(BoxObject* box) {
  if (box->kind == Kind::empty) {
    if (!begin_write(box, {EventKind::BorrowMut}, -1)) return false;
    if (!end_write(box, EventKind::BorrowMutEnd, false, box->created)) return false;
  }
  if (box->kind == Kind::live) {
    const Owned name(label_of(box));
    if (name) PyErr_Format(PyExc_TypeError, "%U: split_mut needs an array", name.get());
    return false;
  }
  return check_usable(box);
}

// Part `index` of `parts` as nearly equal as can be, the longer ones first.
Part nth_part(int axis, Py_ssize_t length, Py_ssize_t parts, Py_ssize_t index) noexcept {
  const Py_ssize_t size = length / parts;
  const Py_ssize_t longer = length % parts;
  const Py_ssize_t start = index * size + std::min(index, longer);
  return {axis, start, start + size + (index < longer ? 1 : 0)};
}

}  // namespace

PyObject* split_mut(BoxObject* box, Py_ssize_t parts, int axis) {
  if (parts < 1) {
    PyErr_SetString(PyExc_ValueError, "split_mut needs at least one part");
    return nullptr;
  }
  protocol::Step step;
  if (!decide(box, {EventKind::SplitMut, 0, 1}, -1, true, step)) return nullptr;
  if (!bring_here(box)) return nullptr;
  PyArrayObject* array = as_array(geometry_of(box));
  const int dimensions = PyArray_NDIM(array);
  if (axis < -dimensions || axis >= dimensions) {
    return PyErr_Format(PyExc_ValueError, "axis %d is out of bounds for an array of dimension %d", axis,
                        dimensions);
  }
  axis = axis < 0 ? axis + dimensions : axis;
  const Py_ssize_t length = PyArray_DIM(array, axis);
  parts = std::min(parts, length);
  Owned list(PyList_New(parts));
  if (!list || parts == 0) return list.release();
  if (!begin_write(box, {EventKind::SplitMut, 0, static_cast<std::uint32_t>(parts)}, -1)) return nullptr;
  if (box->write.parent == nullptr) {
    const Owned mapping(make_writable_sibling(pin_of(box)));
    if (mapping) box->write.parent = make_parent(box->read.parent, as_pin(mapping.get()));
  }
  for (Py_ssize_t i = 0; i < parts; ++i) {
    PyObject* made = box->write.parent == nullptr ? nullptr : make_guard(box, true, -1);
    if (made == nullptr) {  // the parts made so far end with the list; these never began
      for (Py_ssize_t j = i; j < parts; ++j)
        box->state = protocol::apply(box->state, {EventKind::PartEnd}).state;
      if (i == 0) {
        const ErrorKept kept;
        if (!end_write(box, EventKind::Join, false, box->created)) PyErr_WriteUnraisable(as_object(box));
      }
      return nullptr;
    }
    GuardObject* guard = as_guard(made);
    guard->is_part = true;
    guard->part = nth_part(axis, length, parts, i);
    record_user_site(guard->site);
    guard->thread = PyThread_get_thread_ident();
    guard->began_ms = coarse_now_ms();
    link_guard(guard);
    PyList_SET_ITEM(list.get(), i, made);
  }
  return list.release();
}

bool end_part(GuardObject* guard, bool failed, bool survivors) {
  BoxObject* box = guard->box;
  guard->phase = GuardPhase::ended;
  unlink_guard(guard);
  box->split_escaped = box->split_escaped || survivors;
  const protocol::Step step =
      protocol::apply(box->state, {failed ? EventKind::PartFailed : EventKind::PartEnd});
  if (!step.ok()) return set_refusal(box, step.verdict, "end a part of it", -1);
  box->state = step.state;
  return box->state.parts_out != 0 || end_write(box, EventKind::Join, box->split_escaped, guard->site);
}

PyObject* part_region(GuardObject* guard) {
  const BoxObject* box = guard->box;
  if (!guard->is_part || box->kind != Kind::array) {
    PyErr_SetString(PyExc_ValueError, "only a part of a split array is a region of its block");
    return nullptr;
  }
  PyObject* whole = geometry_of(box);
  PyArrayObject* array = as_array(whole);
  const bool c_order = PyArray_IS_C_CONTIGUOUS(array);
  if (!c_order && !PyArray_IS_F_CONTIGUOUS(array)) {
    PyErr_SetString(PyExc_ValueError, "the array is not contiguous in its block");
    return nullptr;
  }
  // Axes inside the split one make a chunk; those outside it count the chunks.
  unsigned long long inner_bytes = static_cast<unsigned long long>(PyArray_ITEMSIZE(array));
  unsigned long long count = 1;
  for (int i = 0; i < PyArray_NDIM(array); ++i) {
    if (i == guard->part.axis) continue;
    const bool is_inner = c_order ? i > guard->part.axis : i < guard->part.axis;
    (is_inner ? inner_bytes : count) *= static_cast<unsigned long long>(PyArray_DIM(array, i));
  }
  const auto start = static_cast<unsigned long long>(guard->part.start);
  const auto stop = static_cast<unsigned long long>(guard->part.stop);
  const auto length = static_cast<unsigned long long>(PyArray_DIM(array, guard->part.axis));
  const auto first = static_cast<unsigned long long>(PyArray_BYTES(array) -
                                                     reinterpret_cast<char*>(find_exporter(whole)->data));
  return Py_BuildValue("(KKKK)", first + start * inner_bytes, (stop - start) * inner_bytes, count,
                       length * inner_bytes);
}

}  // namespace drust::bind
