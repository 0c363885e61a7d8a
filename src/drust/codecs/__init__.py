"""Codecs: how a value becomes the bytes of one block on the heap, and a value again.

| number | values | in the block | decoding |
|---|---|---|---|
| 1 | everything else | pickle 5, large buffers out of band, Boxes as children | buffers are zero-copy |
| 2 | `numpy.ndarray`, any dtype without objects | dtype and shape; the data | zero-copy |
| 3, 4, 6 | `bytes`, `bytearray`, `array.array` | the bytes | one copy (Python owns the memory of these) |
| 5 | `memoryview` | format and shape; the bytes | zero-copy |
| 7 | pyarrow tables, batches and arrays | Arrow's buffers, a block a column | zero-copy |
| 8 | polars `DataFrame`, `Series` | the same | zero-copy |
| 9 | dense `torch.Tensor` in CPU memory | shape and type; the data | zero-copy |
| 10 | a column of 7 or 8, tied to its frame's block | Arrow's buffers | its frame's |
| 1000 and up | whatever others `register` | theirs | theirs |

The numbers are part of the format of a block: they never change. pyarrow, polars and torch are imported only
when the program itself has imported them, or when a block holds one of their values.

What a writable decode means is the codec's `in_place`: with True (2 and 5) the block itself is what the
borrower changes; with False the borrower changes a Python object of its own (a bytearray, a dict, a frame)
and the value is encoded anew when somebody outside the process is about to see it.
"""

from drust.codecs import arrays, base, binary, pickling
from drust.codecs.base import (
    ARRAY,
    ARROW,
    BYTEARRAY,
    BYTES,
    COLUMN,
    GROUPS,
    MEMORYVIEW,
    NDARRAY,
    PICKLE,
    POLARS,
    THIRD_PARTY_MAX,
    THIRD_PARTY_MIN,
    TIED,
    TORCH,
    Codec,
    Deferred,
    Encoded,
    PinLike,
)
from drust.codecs.pickling import encode_arguments, register_handle, set_importable
from drust.codecs.registry import (
    codec_name,
    decode,
    encode,
    is_in_place,
    observe,
    register,
    statistics,
    write,
)

__all__ = [
    "ARRAY",
    "ARROW",
    "BYTEARRAY",
    "BYTES",
    "COLUMN",
    "GROUPS",
    "MEMORYVIEW",
    "NDARRAY",
    "PICKLE",
    "POLARS",
    "THIRD_PARTY_MAX",
    "THIRD_PARTY_MIN",
    "TIED",
    "TORCH",
    "Codec",
    "Deferred",
    "Encoded",
    "PinLike",
    "arrays",
    "base",
    "binary",
    "codec_name",
    "decode",
    "encode",
    "encode_arguments",
    "is_in_place",
    "observe",
    "pickling",
    "register",
    "register_handle",
    "set_importable",
    "statistics",
    "write",
]
