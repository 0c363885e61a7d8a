// The canonical bytes of a Dict's key: equal in Python if and only if equal here. str, bytes, int, bool, float and
// tuples of them; of exactly these types, as a subclass may have its own idea of what it is equal to.
//
//     'i' int64 | 'I' u32 n, hexadecimal digits | 'f' a float that is no whole number | 's' u32 n, UTF-8 |
//     'b' u32 n, bytes | 't' u32 n, items
//
// A bool is the int that it is equal to, and so is a float that is whole.
#pragma once

#include <Python.h>

#include <cstddef>
#include <span>
#include <vector>

namespace drust::bind {

// Appended to `bytes`. False with a TypeError or a ValueError set.
[[nodiscard]] bool append_key(PyObject* key, std::vector<std::byte>& bytes);
// The key; takes it off `bytes`. Null with an error set if it is none.
[[nodiscard]] PyObject* take_key(std::span<const std::byte>& bytes);

}  // namespace drust::bind
