"""Bytes and what is like them: bytes, bytearray, array.array and memoryview.

The first three own their memory in Python, so decoding copies it once. What a mutable borrow does to a
bytearray or an array.array it does to that private copy, and the value is encoded anew when others are to see
it: these may change their length, which a block cannot. A memoryview is zero-copy both ways and writes
through: the one to choose for large bytes that are changed in place (or a numpy array of uint8).
"""

from array import array
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from drust.codecs.arrays import decode_array, encode_array
from drust.codecs.base import ARRAY, BYTEARRAY, BYTES, MEMORYVIEW, Encoded, PinLike, borrowed
from drust.codecs.registry import install
from drust.errors import CodecError

_CASTABLE = frozenset("?cbBhHiIlLqQnNfd")  # formats memoryview.cast() understands


class BytesCodec:
    """`bytes`."""

    number = BYTES
    name = "bytes"

    def encode(self, value: bytes, /) -> Encoded:
        """Copies nothing."""
        return Encoded(BYTES, b"", [value])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> bytes:
        """One copy: a bytes object has its bytes inside."""
        return bytes(pin.buffer(0))


class BytearrayCodec:
    """`bytearray`."""

    number = BYTEARRAY
    name = "bytearray"

    def encode(self, value: bytearray, /) -> Encoded:
        """Copies nothing; the bytearray cannot be resized while the parts are alive."""
        return Encoded(BYTEARRAY, b"", [memoryview(value)])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> bytearray:
        """A private copy, writable or not."""
        return bytearray(pin.buffer(0))


class ArrayCodec:
    """`array.array` of the standard library."""

    number = ARRAY
    name = "array"

    def encode(self, value: "array[Any]", /) -> Encoded:
        """Copies nothing; the array cannot be resized while the parts are alive."""
        return Encoded(ARRAY, value.typecode.encode(), [np.frombuffer(value, np.uint8)] if value else [b""])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> "array[Any]":
        """A private copy, writable or not."""
        value = array(pin.meta.decode("ascii"))
        value.frombytes(pin.buffer(0))
        return value


class MemoryviewCodec:
    """`memoryview` of any format and strides. The metadata is a plain format and shape, or else numpy's."""

    number = MEMORYVIEW
    name = "memoryview"
    in_place = True

    def encode(self, value: memoryview, /) -> Encoded:
        """Copies nothing. Strides and Fortran order are not part of the value: it comes back in C order."""
        format_ = value.format.removeprefix("@")
        if format_ in _CASTABLE and value.nbytes:
            meta = msgspec.msgpack.encode((format_, value.shape))
            if value.c_contiguous:
                return Encoded(MEMORYVIEW, meta, [value])
            try:
                return Encoded(MEMORYVIEW, meta, [np.asarray(value)])
            except (ValueError, NotImplementedError):  # indirect memory (suboffsets), or a format numpy lacks
                return Encoded(MEMORYVIEW, meta, [value.tobytes()])
        try:
            parts = encode_array(np.asarray(value))
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise _refusal(value, str(error)) from error
        if parts is None:
            raise _refusal(value, "its items are Python objects; pass the object behind it (view.obj)")
        return Encoded(MEMORYVIEW, parts[0], [parts[1]])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> memoryview:
        """A view of the block's memory."""
        parts = msgspec.msgpack.decode(pin.meta)
        if len(parts) == 2:
            view = memoryview(borrowed(pin, 0, writable)).cast("B")
            return view.cast(parts[0], tuple(parts[1]))
        array_: Any = decode_array(pin.meta, pin, writable)
        return memoryview(array_)


def _refusal(value: memoryview, reason: str) -> CodecError:
    object_ = f"a memoryview of format {value.format!r}"
    return CodecError(codec="the codec 'memoryview'", object=object_, reason=reason)


install(BytesCodec(), bytes)
install(BytearrayCodec(), bytearray)
install(ArrayCodec(), array)
install(MemoryviewCodec(), memoryview)
