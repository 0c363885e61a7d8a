#include "bind/key_bytes.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bind/python.hpp"

namespace drust::bind {
namespace {

void append(std::vector<std::byte>& bytes, const void* start, std::size_t count) {
  const auto* from = static_cast<const std::byte*>(start);
  bytes.insert(bytes.end(), from, from + count);
}

// False if its length does not fit.
bool append_text(std::vector<std::byte>& bytes, char kind, const char* start, Py_ssize_t count) {
  if (count > 1 << 28) {
    PyErr_SetString(PyExc_ValueError, "the key of a Dict is too long: hash it, and keep the long one in the value");
    return false;
  }
  const auto length = static_cast<std::uint32_t>(count);
  append(bytes, &kind, 1);
  append(bytes, &length, sizeof length);
  append(bytes, start, length);
  return true;
}

bool append_int(PyObject* key, std::vector<std::byte>& bytes) {
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(key, &overflow);
  if (overflow == 0) {
    if (number == -1 && PyErr_Occurred() != nullptr) return false;
    append(bytes, "i", 1);
    append(bytes, &number, sizeof number);
    return true;
  }
  const Owned digits(PyNumber_ToBase(key, 16));
  Py_ssize_t count = 0;
  const char* start = digits ? PyUnicode_AsUTF8AndSize(digits.get(), &count) : nullptr;
  return start != nullptr && append_text(bytes, 'I', start, count);
}

bool append_float(PyObject* key, std::vector<std::byte>& bytes) {
  const double number = PyFloat_AS_DOUBLE(key);
  if (std::isnan(number)) {
    PyErr_SetString(PyExc_ValueError, "nan is not equal to itself, so it is no key of a Dict");
    return false;
  }
  if (std::isfinite(number) && std::floor(number) == number) {
    const Owned whole(PyLong_FromDouble(number));
    return whole && append_int(whole.get(), bytes);
  }
  append(bytes, "f", 1);
  append(bytes, &number, sizeof number);
  return true;
}

bool append_str(PyObject* key, std::vector<std::byte>& bytes) {
  if (PyUnicode_IS_COMPACT_ASCII(key))
    return append_text(bytes, 's', reinterpret_cast<const char*>(PyUnicode_1BYTE_DATA(key)), PyUnicode_GET_LENGTH(key));
  const Owned encoded(PyUnicode_AsEncodedString(key, "utf-8", "surrogatepass"));
  return encoded && append_text(bytes, 's', PyBytes_AS_STRING(encoded.get()), PyBytes_GET_SIZE(encoded.get()));
}

PyObject* fail() {
  PyErr_SetString(PyExc_ValueError, "these bytes are no key of a Dict");
  return nullptr;
}

template <class T>
bool take(std::span<const std::byte>& bytes, T& value) {
  if (bytes.size() < sizeof value) return false;
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes = bytes.subspan(sizeof value);
  return true;
}

PyObject* take_tuple(std::span<const std::byte>& bytes, std::uint32_t count) {
  if (count > bytes.size()) return fail();
  if (Py_EnterRecursiveCall(" in a key of a Dict") != 0) return nullptr;
  Owned items(PyTuple_New(count));
  for (std::uint32_t index = 0; items && index < count; ++index) {
    PyObject* item = take_key(bytes);
    if (item == nullptr) items = Owned();
    else PyTuple_SET_ITEM(items.get(), index, item);
  }
  Py_LeaveRecursiveCall();
  return items.release();
}

}  // namespace

bool append_key(PyObject* key, std::vector<std::byte>& bytes) {
  if (PyUnicode_CheckExact(key)) return append_str(key, bytes);
  if (PyLong_CheckExact(key) || PyBool_Check(key)) return append_int(key, bytes);
  if (PyBytes_CheckExact(key)) return append_text(bytes, 'b', PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key));
  if (PyFloat_CheckExact(key)) return append_float(key, bytes);
  if (!PyTuple_CheckExact(key)) {
    PyErr_Format(PyExc_TypeError,
                 "a %s is no key of a Dict: keys are str, bytes, int, bool, float and tuples of them, the same in every "
                 "process. Make one of it: str(key), int(key), tuple(key)",
                 Py_TYPE(key)->tp_name);
    return false;
  }
  const auto count = static_cast<std::uint32_t>(PyTuple_GET_SIZE(key));
  append(bytes, "t", 1);
  append(bytes, &count, sizeof count);
  if (Py_EnterRecursiveCall(" in a key of a Dict") != 0) return false;
  bool is_good = true;
  for (Py_ssize_t index = 0; is_good && index < PyTuple_GET_SIZE(key); ++index)
    is_good = append_key(PyTuple_GET_ITEM(key, index), bytes);
  Py_LeaveRecursiveCall();
  return is_good;
}

PyObject* take_key(std::span<const std::byte>& bytes) {
  char kind = 0;
  if (!take(bytes, kind)) return fail();
  if (kind == 'i') {
    long long number = 0;
    return take(bytes, number) ? PyLong_FromLongLong(number) : fail();
  }
  if (kind == 'f') {
    double number = 0;
    return take(bytes, number) ? PyFloat_FromDouble(number) : fail();
  }
  std::uint32_t count = 0;
  if (!take(bytes, count)) return fail();
  if (kind == 't') return take_tuple(bytes, count);
  if (count > bytes.size()) return fail();
  const auto* start = reinterpret_cast<const char*>(bytes.data());
  const auto length = static_cast<Py_ssize_t>(count);
  bytes = bytes.subspan(count);
  switch (kind) {
    case 's': return PyUnicode_DecodeUTF8(start, length, "surrogatepass");
    case 'b': return PyBytes_FromStringAndSize(start, length);
    case 'I': {
      const Owned digits(PyUnicode_FromStringAndSize(start, length));
      return digits ? PyLong_FromUnicodeObject(digits.get(), 16) : nullptr;
    }
    default: return fail();
  }
}

}  // namespace drust::bind
