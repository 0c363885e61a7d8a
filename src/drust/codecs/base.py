"""What every codec speaks: the encoded form of a value, and the blocks it is written to and read from.

A block is metadata (a few bytes that only the codec understands), buffers (64-byte aligned), and pointers to
children (the Boxes inside the value). `Encoded` is that before it has a place: its buffers still are the
value's own memory, so that the one copy goes from there straight into the block.

The protocols here are all that codecs know of the native side. Rejected: importing the native types; third
parties test a codec without a heap, and so do we.
"""

from collections.abc import Callable, Hashable, Sequence
from pickle import PickleBuffer
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

PICKLE = 1
NDARRAY = 2
BYTES = 3
BYTEARRAY = 4
MEMORYVIEW = 5
ARRAY = 6
ARROW = 7
POLARS = 8
TORCH = 9
COLUMN = 10
THIRD_PARTY_MIN = 1000  # below: drust's own, now and later
THIRD_PARTY_MAX = 2**31 - 1  # above: blocks the runtime makes for itself

Array: TypeAlias = npt.NDArray[Any]
ChildPointer: TypeAlias = tuple[int, int, int, int]
"""(address, colour, extent in bytes, flags: 1 tied, 2 lent shared, 4 lent mutably)."""


class Deferred(NamedTuple):
    """A buffer whose bytes are written straight into the block, for formats that are produced, not copied."""

    nbytes: int
    fill: Callable[[Any], None]
    """Called once with the writable, 64-byte aligned memory."""


Buffer: TypeAlias = Any
"""Anything with the buffer protocol. (Python 3.11 has no type for it, and numpy names a few only.)"""
Part: TypeAlias = Buffer | Array | Deferred
"""A buffer of an encoded value: contiguous bytes, an array of any strides (written in C order), or a
Deferred."""


GROUPS = frozenset((ARROW, POLARS))
"""Whose children are blocks without handles, all tied (see `Tied`); elsewhere children are Boxes."""

TIED = 1
"""A child's flag: fetched, moved and freed together with its parent."""


class Tied(Protocol):
    """A child without a handle: a block that belongs to its parent's, as a column does to its frame's."""

    @property
    def nbytes(self) -> int:
        """About the bytes of its buffers."""
        ...

    @property
    def key(self) -> Hashable:
        """Equal for two that are the same memory, while both are alive: such a block need not be written
        again.
        """
        ...

    def equals(self, pin: "PinLike", /) -> bool:
        """Whether a block holds the same, as far as that is cheaply known."""
        ...

    def encode(self) -> "Encoded":
        """Its block."""
        ...


class Encoded(NamedTuple):
    """A value in parts. Valid only while nobody changes the value: the buffers are the value's own memory."""

    codec: int
    meta: bytes
    buffers: Sequence[Part]
    children: Sequence[tuple[Any, int]] = ()
    """Handles (Boxes) and their flags, in the order of the block's pointer table; of the codecs in `GROUPS`,
    what becomes a block with this one (see `Tied`).
    """

    @property
    def nbytes(self) -> int:
        """Bytes the buffers will take in the block, and in those tied to it."""
        tied = sum(child.nbytes for child, _ in self.children) if self.codec in GROUPS else 0
        return sum(part_bytes(part) for part in self.buffers) + tied


class PinLike(Protocol):
    """The hold on one version of a block, as far as a codec needs it."""

    @property
    def codec(self) -> int:
        """The number the block was encoded with."""
        ...

    @property
    def meta(self) -> bytes:
        """The codec's metadata."""
        ...

    @property
    def children(self) -> Sequence[Any]:
        """The pointers to children; codecs look at their number only."""
        ...

    @property
    def buffer_count(self) -> int:
        """How many buffers there are."""
        ...

    @property
    def writable(self) -> bool:
        """Whether `buffer` gives writable memory."""
        ...

    def buffer(self, index: int, /) -> Buffer:
        """Buffer `index`, without a copy. It keeps the pin, and so these bytes, alive."""
        ...


_P_co = TypeVar("_P_co", covariant=True)


class DraftLike(Protocol[_P_co]):
    """A block that is allocated and not yet complete. Dropped unpublished, it is freed."""

    def buffer(self, index: int, /) -> Buffer:
        """The writable memory of buffer `index`."""
        ...

    def copy_in(self, index: int, data: Any, /) -> object:
        """Copies contiguous `data` of exactly the buffer's size."""
        ...

    def publish(self) -> _P_co:
        """Makes the block a live version."""
        ...


class RuntimeLike(Protocol[_P_co]):
    """What allocates blocks."""

    def allocate(
        self, codec: int, meta: bytes, buffer_bytes: list[int], children: list[ChildPointer], /
    ) -> DraftLike[_P_co]:
        """A block with room for all that."""
        ...


class Codec(Protocol):
    """Encodes and decodes the values of some types.

    Optional: `in_place: bool = True` says that a writable decode is the block's own memory, so that after a
    mutable borrow nothing needs encoding.
    """

    @property
    def number(self) -> int:
        """Stored in every block. It never changes its meaning; third parties choose from 1000 up."""
        ...

    @property
    def name(self) -> str:
        """For messages: `numpy`, `arrow`."""
        ...

    def encode(self, value: Any, /) -> Encoded | None:
        """The parts of `value`, or None to leave this one to the next codec (in the end: pickle)."""
        ...

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> Any:
        """The value in a block. What shares the block's memory holds on to what `pin.buffer(i)` returned.

        Args:
            pin: the block.
            writable: whether the value may be changed; if not, what it shares with the block is read-only.
            child: gives the handle for the block's child `i`, or the pin of one that is tied.
        """
        ...


def part_bytes(part: Part) -> int:
    """The size of one buffer in bytes."""
    if isinstance(part, (np.ndarray, Deferred)):
        return int(part.nbytes)
    if isinstance(part, PickleBuffer):
        return part.raw().nbytes
    return memoryview(part).nbytes


def fill(draft: DraftLike[Any], index: int, part: Part) -> None:
    """Writes one buffer into its place: one copy, no temporary, whatever the strides."""
    if part_bytes(part) != 0:
        fill_some(draft, index, part)


def fill_some(draft: DraftLike[Any], index: int, part: Part) -> None:
    """As `fill`, for a part that is known not to be empty."""
    if isinstance(part, Deferred):
        part.fill(draft.buffer(index))
    elif not isinstance(part, np.ndarray):
        draft.copy_in(index, part)
    elif part.flags.c_contiguous:
        draft.copy_in(index, raw_bytes(part))
    else:
        # As opaque items: numpy copies structures field by field, and would leave the gaps as they were.
        dtype = part.dtype if part.dtype.names is None else np.dtype((np.void, part.dtype.itemsize))
        source = part if dtype is part.dtype else np.ndarray.view(part, dtype)
        np.copyto(np.ndarray(part.shape, dtype, buffer=draft.buffer(index)), source)


def raw_bytes(array: Array) -> Array:
    """A C-contiguous array as flat bytes; not every dtype (datetime64) has the buffer protocol itself."""
    return array.reshape(-1).view(np.uint8)


def borrowed(pin: PinLike, index: int, writable: bool) -> Buffer:
    """Buffer `index` of a block, read-only unless `writable`."""
    buffer = pin.buffer(index)
    return memoryview(buffer).toreadonly() if pin.writable and not writable else buffer


def type_name(kind: type) -> str:
    """`dict`, `numpy.matrix`: a type as messages name it."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
