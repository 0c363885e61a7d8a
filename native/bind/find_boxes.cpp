// Finding the Boxes inside a value, cheaply: its containers are walked through tp_traverse, as the collector
// does.
//
// Rejected: pickling it (encodes everything to look at a few pointers); walking __dict__ and items in Python
// (50 times slower, and runs foreign code). Not entered: modules, types, functions, frames, arrays without
// objects in them, and the Boxes themselves.
#include <new>
#include <unordered_set>
#include <vector>

#include "bind/box.hpp"
#include "bind/numpy_api.hpp"
#include "bind/python.hpp"

namespace drust::bind {
namespace {

struct Walk {
  std::vector<PyObject*>& found;
  std::vector<PyObject*> to_visit;
  std::unordered_set<PyObject*> seen;
  std::size_t left;
};

bool is_entered(PyObject* object) noexcept {
  const PyTypeObject* type = Py_TYPE(object);
  if (type->tp_traverse == nullptr || PyObject_IS_GC(object) == 0) return false;
  return !PyType_Check(object) && !PyModule_Check(object) && !PyFunction_Check(object) &&
         !PyCFunction_Check(object) && !PyFrame_Check(object) && !PyCode_Check(object) &&
         !PyMethod_Check(object);
}

constexpr int kBudgetSpent = 1;  // what ends a traversal early, beside -1 for no memory

// Called by tp_traverse for each reference an object holds; runs no Python.
int visit(PyObject* object, void* argument) noexcept {
  Walk& walk = *static_cast<Walk*>(argument);
  if (walk.left == 0) return kBudgetSpent;
  --walk.left;
  const bool is_a_box = is_box(object);
  const bool has_objects = PyArray_Check(object) && PyDataType_REFCHK(PyArray_DESCR(as_array(object)));
  if (!is_a_box && !has_objects && !is_entered(object)) return 0;
  try {
    if (!walk.seen.insert(object).second) return 0;
    (is_a_box ? walk.found : walk.to_visit).push_back(object);
  } catch (const std::bad_alloc&) {
    return -1;
  }
  return 0;
}

// An array of objects is no container to the collector: its items are read here. Structured ones are not
// searched.
int visit_items(PyObject* array, Walk& walk) {
  if (PyArray_TYPE(as_array(array)) != NPY_OBJECT) return 0;
  const Owned iterator(PyArray_IterNew(array));
  if (!iterator) return -1;
  auto* at = reinterpret_cast<PyArrayIterObject*>(iterator.get());
  while (PyArray_ITER_NOTDONE(at)) {
    PyObject* item = *reinterpret_cast<PyObject**>(PyArray_ITER_DATA(at));
    if (const int ended = item == nullptr ? 0 : visit(item, &walk); ended != 0) return ended;
    PyArray_ITER_NEXT(at);
  }
  return 0;
}

PyObject* find_boxes(PyObject*, PyObject* arguments) {
  PyObject* value = nullptr;
  Py_ssize_t budget = 0;
  if (PyArg_ParseTuple(arguments, "On:find_boxes", &value, &budget) == 0) return nullptr;
  std::vector<PyObject*> found;
  if (!collect_boxes(value, static_cast<std::size_t>(budget < 0 ? 0 : budget), found)) return nullptr;
  for (PyObject* box : found) Py_INCREF(box);  // before anything is allocated that may start the collector
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(found.size()));
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (list != nullptr) {
      PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), found[i]);
    } else {
      Py_DECREF(found[i]);
    }
  }
  return list;
}

PyMethodDef functions[] = {
    {"find_boxes", find_boxes, METH_VARARGS,
     "find_boxes(value, budget) -> list[Box]: the Boxes inside a value, looking at no more than `budget` "
     "objects."},
    kNoMoreMethods,
};

}  // namespace

bool collect_boxes(PyObject* value, std::size_t budget, std::vector<PyObject*>& found) noexcept {
  try {
    Walk walk{found, {}, {}, budget};
    if (visit(value, &walk) < 0) throw std::bad_alloc();
    while (!walk.to_visit.empty() && walk.left != 0) {
      PyObject* object = walk.to_visit.back();
      walk.to_visit.pop_back();
      const int ended = PyArray_Check(object) ? visit_items(object, walk)
                                              : Py_TYPE(object)->tp_traverse(object, visit, &walk);
      if (ended < 0) throw std::bad_alloc();
    }
    return true;
  } catch (const std::bad_alloc&) {
    if (PyErr_Occurred() == nullptr) PyErr_NoMemory();
    return false;
  }
}

bool register_find_boxes(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace drust::bind
