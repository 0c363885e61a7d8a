"""torch tensors in CPU memory, through the numpy array that shares their memory.

Dense tensors without a gradient are stored as arrays are; all others (on a device, sparse, quantised,
parameters, with a gradient) go to pickle, which torch supports. Importing this module imports torch.

torch knows no read-only tensors and warns when it gets a read-only array. We hand it the address instead:
under a shared borrow the pages themselves are read-only, so a write ends in a fault and never in somebody
else's value.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch

from drust.codecs.arrays import decode_array, encode_array
from drust.codecs.base import TORCH, Array, Encoded, PinLike
from drust.codecs.registry import install

_WITHOUT_NUMPY = {  # what numpy has no name for, stored as integers of its size
    "torch.bfloat16": "int16",
    "torch.float8_e4m3fn": "uint8",
    "torch.float8_e4m3fnuz": "uint8",
    "torch.float8_e5m2": "uint8",
    "torch.float8_e5m2fnuz": "uint8",
    "torch.float8_e8m0fnu": "uint8",
}


class _Memory:
    """An array's memory for `np.asarray`, said to be writable. Holds the array and so the block."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


class TorchCodec:
    """`torch.Tensor`, dense, in CPU memory."""

    number = TORCH
    name = "torch"
    in_place = True

    def encode(self, value: Any, /) -> Encoded | None:
        """Copies nothing."""
        if value.device.type != "cpu" or value.layout is not torch.strided or value.requires_grad:
            return None
        if value.is_conj() or value.is_neg():
            return None
        kind = str(value.dtype)
        try:
            integers = _WITHOUT_NUMPY.get(kind)
            array = (value if integers is None else value.view(getattr(torch, integers))).numpy()
        except (TypeError, RuntimeError):  # a dtype numpy lacks
            return None
        parts = encode_array(array)
        return None if parts is None else Encoded(TORCH, msgspec.msgpack.encode((kind, parts[0])), [parts[1]])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> Any:
        """A tensor over the block's memory."""
        kind, layout = msgspec.msgpack.decode(pin.meta)
        array = decode_array(layout, pin, writable)
        tensor = torch.from_numpy(array if array.flags.writeable else np.asarray(_Memory(array)))
        return tensor.view(getattr(torch, kind.removeprefix("torch."))) if kind in _WITHOUT_NUMPY else tensor


install(TorchCodec(), torch.Tensor)
