"""numpy arrays: the metadata is dtype, shape and order, the one buffer is the data. Nothing is pickled.

C and Fortran order are kept. An array of other strides (a slice with a step, a reversed or broadcast one) is
stored in C order, at its full size, by one strided copy into the block. Whether the array was read-only is
not part of the value: the borrow decides. Arrays with objects in them and subclasses of ndarray go to pickle,
with their data out of band.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
import numpy as np

from drust.codecs.base import NDARRAY, Array, Encoded, Part, PinLike, borrowed
from drust.codecs.dtypes import describe, restore
from drust.codecs.registry import install
from drust.errors import CodecError

Shape: TypeAlias = tuple[int, ...]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


def pack_layout(shape: Shape, dtype: np.dtype[Any], order: str = "C") -> bytes | None:
    """The metadata of a block that holds such an array, or None if it has to be pickled.

    A block made with it and one buffer of `prod(shape) * itemsize` bytes decodes to the array: this is how
    arrays are allocated in the heap without ever having been anywhere else.
    """
    description = describe(dtype)
    return None if description is None else _encoder.encode((shape, description, order == "F"))


@lru_cache(maxsize=1024)
def unpack_layout(meta: bytes) -> tuple[Shape, np.dtype[Any], str]:
    """Shape, dtype and order (`C` or `F`) from the metadata.

    Raises:
        CodecError: these bytes describe no array.
    """
    try:
        shape, description, fortran = _decoder.decode(meta)
        if not isinstance(shape, list) or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise ValueError(f"{shape!r} is no shape")
        return tuple(shape), restore(description), "F" if fortran else "C"
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.DecodeError) as error:
        raise CodecError(codec="the codec 'numpy'", object="a block's metadata", reason=str(error)) from error


def encode_array(array: Array) -> tuple[bytes, Part] | None:
    """Metadata and data of an array, without a copy; None if pickle has to do it."""
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    meta = pack_layout(array.shape, array.dtype, "F" if fortran else "C")
    return None if meta is None else (meta, array.T if fortran else array)


def decode_array(meta: bytes, pin: PinLike, writable: bool) -> Array:
    """The array over buffer 0 of a block."""
    shape, dtype, order = unpack_layout(meta)
    return np.ndarray(shape, dtype, buffer=borrowed(pin, 0, writable), order="F" if order == "F" else "C")


class NdarrayCodec:
    """`numpy.ndarray` itself."""

    number = NDARRAY
    name = "numpy"
    in_place = True

    def encode(self, value: Array, /) -> Encoded | None:
        """Copies nothing."""
        parts = encode_array(value)
        return None if parts is None else Encoded(NDARRAY, parts[0], [parts[1]])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> Array:
        """An array over the block's memory; its base holds the block."""
        return decode_array(pin.meta, pin, writable)


install(NdarrayCodec(), np.ndarray)
