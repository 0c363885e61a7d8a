#include "bind/hooks.hpp"

#include <array>
#include <exception>
#include <utility>

#include "bind/pointer.hpp"
#include "bind/python.hpp"

namespace drust::bind {
namespace {

Hooks set;

struct Named {
  const char* name;
  PyObject* Hooks::* member;
};
constexpr std::array<Named, 12> kNamed = {{{"adopt", &Hooks::adopt},
                                           {"materialise", &Hooks::materialise},
                                           {"publish", &Hooks::publish},
                                           {"clone", &Hooks::clone},
                                           {"absorb", &Hooks::absorb},
                                           {"wait", &Hooks::wait},
                                           {"conflict", &Hooks::conflict},
                                           {"survivors", &Hooks::survivors},
                                           {"forbid_rollback", &Hooks::forbid_rollback},
                                           {"queue_free", &Hooks::queue_free},
                                           {"settle", &Hooks::settle},
                                           {"choose_replicas", &Hooks::choose_replicas}}};

PyObject* set_hooks(PyObject*, PyObject* arguments, PyObject* keywords) {
  if (PyTuple_GET_SIZE(arguments) != 0) {
    PyErr_SetString(PyExc_TypeError, "set_hooks takes keyword arguments only");
    return nullptr;
  }
  Hooks next;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t at = 0;
  while (keywords != nullptr && PyDict_Next(keywords, &at, &key, &value) != 0) {
    bool known = false;
    for (const Named& named : kNamed) {
      if (PyUnicode_CompareWithASCIIString(key, named.name) != 0) continue;
      next.*named.member = value == Py_None ? nullptr : value;
      known = true;
    }
    if (!known) return PyErr_Format(PyExc_TypeError, "there is no hook named %R", key);
  }
  Owned before(PyDict_New());
  for (const Named& named : kNamed) {
    const Owned old(std::exchange(set.*named.member, Py_XNewRef(next.*named.member)));
    if (before && old && PyDict_SetItemString(before.get(), named.name, old.get()) != 0) return nullptr;
  }
  return before.release();
}

PyMethodDef functions[] = {
    {"set_hooks", as_method(set_hooks), METH_VARARGS | METH_KEYWORDS,
     "set_hooks(**functions) -> dict: the slow paths of handles; those not named are unset. Returns those "
     "before."},
    kNoMoreMethods,
};

}  // namespace

const Hooks& hooks() noexcept { return set; }

void set_error(const Status& status) noexcept {
  try {
    raise(status);
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

PyObject* set_conflict(PyObject* box, const char* kind, PyObject* message, PyObject* fields) noexcept {
  if (message == nullptr) return nullptr;
  if (set.conflict == nullptr) {
    PyErr_SetObject(PyExc_RuntimeError, message);
    return nullptr;
  }
  Owned positional(Py_BuildValue("(OsO)", box == nullptr ? Py_None : box, kind, message));
  if (!positional) return nullptr;
  Owned error(PyObject_Call(set.conflict, positional.get(), fields));
  if (!error) return nullptr;
  if (PyExceptionInstance_Check(error.get()) == 0) {
    PyErr_Format(PyExc_TypeError, "the conflict hook returned %R, which is no exception", error.get());
    return nullptr;
  }
  PyErr_SetObject(as_object(Py_TYPE(error.get())), error.get());
  return nullptr;
}

bool register_hooks(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace drust::bind
