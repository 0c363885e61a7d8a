// The Python type Atomic, which AtomicInt and AtomicBool of drust.sync derive from.
#include "bind/hooks.hpp"
#include "bind/python.hpp"
#include "bind/shared.hpp"
#include "sync/atomic.hpp"

namespace drust::bind {
namespace {

using sync::Step;

PyTypeObject atomic_type;

bool is_boolean(PyObject* self) noexcept { return as_shared(self)->kind == sync::Kind::boolean; }

bool to_word(PyObject* self, PyObject* value, std::uint64_t& word) {
  if (is_boolean(self)) {
    if (!PyBool_Check(value)) {
      PyErr_Format(PyExc_TypeError, "an AtomicBool holds True or False, not %R", value);
      return false;
    }
    word = value == Py_True ? 1 : 0;
    return true;
  }
  if (PyBool_Check(value) || !PyIndex_Check(value)) {
    PyErr_Format(PyExc_TypeError, "an AtomicInt holds an int, not %R", value);
    return false;
  }
  const Owned number(PyNumber_Index(value));
  if (!number) return false;
  int overflow = 0;
  const long long wanted = PyLong_AsLongLongAndOverflow(number.get(), &overflow);
  if (overflow != 0) {
    PyErr_Format(PyExc_OverflowError, "%S does not fit: an AtomicInt has 64 bits and a sign", value);
    return false;
  }
  word = static_cast<std::uint64_t>(wanted);
  return wanted != -1 || PyErr_Occurred() == nullptr;
}

PyObject* from_word(PyObject* self, std::uint64_t word) {
  if (is_boolean(self)) return PyBool_FromLong(word != 0 ? 1 : 0);
  return PyLong_FromLongLong(static_cast<long long>(word));
}

bool take_step(PyObject* self, Step step, std::uint64_t first, std::uint64_t second, std::uint64_t& before) {
  SharedObject* shared = as_shared(self);
  if (!is_usable(shared)) [[unlikely]]
    return refuse_unusable(shared) != nullptr;
  if (shared->life != nullptr) [[likely]] {
    before = sync::apply(words_of<sync::AtomicWords>(shared)->value, step, first, second);
    return true;
  }
  std::array<std::uint64_t, 3> reply{};
  std::vector<std::byte> none;
  if (!call_home(shared, wire::SharedVerb::step, {static_cast<std::uint64_t>(step), first, second, 0}, {}, reply, none))
    return false;
  before = reply[1];
  return true;
}

template <Step kStep>
PyObject* with_one(PyObject* self, PyObject* value) {
  std::uint64_t word = 0;
  std::uint64_t before = 0;
  if (!to_word(self, value, word) || !take_step(self, kStep, word, 0, before)) return nullptr;
  return from_word(self, before);
}

// fetch_add(amount=1), for numbers alone.
template <Step kStep>
PyObject* by_amount(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count > 1 || is_boolean(self)) {
    PyErr_SetString(PyExc_TypeError, count > 1 ? "expected at most one argument: the amount" : "an AtomicBool is no number");
    return nullptr;
  }
  std::uint64_t word = 1;
  std::uint64_t before = 0;
  if (count == 1 && !to_word(self, arguments[0], word)) return nullptr;
  return take_step(self, kStep, word, 0, before) ? from_word(self, before) : nullptr;
}

PyObject* load(PyObject* self, PyObject*) {
  std::uint64_t before = 0;
  return take_step(self, Step::load, 0, 0, before) ? from_word(self, before) : nullptr;
}

PyObject* store(PyObject* self, PyObject* value) {
  const Owned before(with_one<Step::store>(self, value));
  return before ? new_none() : nullptr;
}

PyObject* compare_exchange(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  std::uint64_t expected = 0;
  std::uint64_t wanted = 0;
  std::uint64_t before = 0;
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "compare_exchange(expected, new)");
    return nullptr;
  }
  if (!to_word(self, arguments[0], expected) || !to_word(self, arguments[1], wanted)) return nullptr;
  if (!take_step(self, Step::compare_exchange, expected, wanted, before)) return nullptr;
  const Owned value(from_word(self, before));
  return value ? PyTuple_Pack(2, before == expected ? Py_True : Py_False, value.get()) : nullptr;
}

PyObject* notify_all(PyObject* self, PyObject*) {
  SharedObject* shared = as_shared(self);
  std::uint64_t before = 0;
  if (!take_step(self, Step::notify, 0, 0, before)) return nullptr;
  if (shared->life != nullptr) sync::notify(*shared->runtime->partition, *words_of<sync::AtomicWords>(shared));
  return new_none();
}

// _wait(expected, wait_ms) -> whether the value is another now; one slice, 1 round trip elsewhere
PyObject* wait(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  SharedObject* shared = as_shared(self);
  std::uint64_t expected = 0;
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "_wait(expected, wait_ms)");
    return nullptr;
  }
  const unsigned long wait_ms = PyLong_AsUnsignedLong(arguments[1]);
  if (PyErr_Occurred() != nullptr || !to_word(self, arguments[0], expected)) return nullptr;
  if (!is_usable(shared)) return refuse_unusable(shared);
  if (shared->life == nullptr) {
    std::array<std::uint64_t, 3> reply{};
    std::vector<std::byte> none;
    if (!call_home(shared, wire::SharedVerb::step, {static_cast<std::uint64_t>(Step::wait), expected, wait_ms, 0}, {},
                   reply, none))
      return nullptr;
    return PyBool_FromLong(reply[0] != static_cast<std::uint64_t>(wire::SharedAnswer::waiting) ? 1 : 0);
  }
  auto& words = *words_of<sync::AtomicWords>(shared);
  if (words.value.load() != expected) return Py_NewRef(Py_True);
  Wake wake{};
  {
    const Unlocked unlocked;
    wake = sync::wait(words, expected, deadline_in(static_cast<std::uint32_t>(wait_ms)));
  }
  if (wake == Wake::interrupted && PyErr_CheckSignals() != 0) return nullptr;
  return PyBool_FromLong(words.value.load() != expected ? 1 : 0);
}

// _make(kind, value) -> handle of a new object of this server
PyObject* make(PyObject* cls, PyObject* arguments) {
  unsigned int kind = 0;
  PyObject* value = nullptr;
  if (PyArg_ParseTuple(arguments, "IO:_make", &kind, &value) == 0) return nullptr;
  Runtime* runtime = current_runtime();
  if (runtime == nullptr) {
    set_error(Status(Code::closed, "this process is not attached to a drust server"));
    return nullptr;
  }
  GlobalPointer object;
  const auto hold = sync::make<sync::AtomicWords>(*runtime->heap, static_cast<sync::Kind>(kind), object);
  if (!hold.ok()) {
    set_error(hold.status());
    return nullptr;
  }
  Owned self(make_handle(reinterpret_cast<PyTypeObject*>(cls), static_cast<sync::Kind>(kind), object, hold.value(), 0));
  const Owned before(self ? with_one<Step::store>(self.get(), value) : nullptr);
  return before ? self.release() : nullptr;
}

PyMethodDef methods[] = {
    {"load", load, METH_NOARGS, "load() -> the value now."},
    {"store", store, METH_O, "store(value): another value."},
    {"exchange", with_one<Step::exchange>, METH_O, "exchange(value) -> the value before."},
    {"fetch_add", as_method(by_amount<Step::add>), METH_FASTCALL, "fetch_add(amount=1) -> the value before; wraps at 64 bits."},
    {"fetch_sub", as_method(by_amount<Step::sub>), METH_FASTCALL, "fetch_sub(amount=1) -> the value before; wraps at 64 bits."},
    {"fetch_and", with_one<Step::bit_and>, METH_O, "fetch_and(value) -> the value before."},
    {"fetch_or", with_one<Step::bit_or>, METH_O, "fetch_or(value) -> the value before."},
    {"fetch_xor", with_one<Step::bit_xor>, METH_O, "fetch_xor(value) -> the value before."},
    {"fetch_max", with_one<Step::max>, METH_O, "fetch_max(value) -> the value before; the larger one stays."},
    {"fetch_min", with_one<Step::min>, METH_O, "fetch_min(value) -> the value before; the smaller one stays."},
    {"compare_exchange", as_method(compare_exchange), METH_FASTCALL,
     "compare_exchange(expected, new) -> (whether it was `expected` and is `new` now, the value before)."},
    {"notify_all", notify_all, METH_NOARGS, "notify_all(): whoever waits for another value looks again."},
    {"_wait", as_method(wait), METH_FASTCALL, "_wait(expected, wait_ms) -> whether the value is another now"},
    {"_make", make, METH_VARARGS | METH_CLASS, "_make(kind, value) -> handle"},
    kNoMoreMethods,
};

}  // namespace

bool register_atomic(PyObject* module) {
  atomic_type.tp_name = "drust._core.Atomic";
  atomic_type.tp_doc = "One word that processes share: see drust.sync.";
  atomic_type.tp_basicsize = sizeof(SharedObject);
  atomic_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
  atomic_type.tp_base = &shared_type;
  atomic_type.tp_methods = methods;
  return add_type(module, atomic_type, "Atomic") &&
         PyModule_AddIntConstant(module, "KIND_INTEGER", static_cast<long>(sync::Kind::integer)) == 0 &&
         PyModule_AddIntConstant(module, "KIND_BOOLEAN", static_cast<long>(sync::Kind::boolean)) == 0;
}

}  // namespace drust::bind
