"""Tied: a value that lies in its owner's block, so that both are fetched, moved and freed as one.

    class Node:
        value: int
        next: Tied["Node"] | None          # a list of n nodes is one block: one read brings all of it

In the block each tied value is a pickle of its own behind that of the value around it, with its large buffers
out of band; the metadata says where each begins. So encoding goes from one to the next however deep they are
nested, and a reader decodes those that it looks at, when it does (a writer all of them, and so does a reader
of a value with Boxes in it: they belong to the value as a whole).

A tied value has no borrow of its own: whoever has borrowed the owner may read it, or write it. Reading one
asks for no place and takes no lock: where the owner is, it is.

Rejected: a block for each, as columns of a frame have (native/heap/tied.cpp). A reader elsewhere would need a
request a level, as only the parent says where its children are, or a server that follows pointers for it; and
what makes that worth while for a column, to be written and to travel alone, a pickled value cannot do.
Source: Ma et al., OSDI'24, section 4.1.3 (TBox: fetched and moved with its owner in one batch, and
dereferenced without a look at where it is).
"""

import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from drust.codecs.base import PICKLE, PinLike, borrowed
from drust.errors import AccessError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_UNREAD: Any = object()


class Tied(Generic[T]):
    """A value tied to the one it lies in: copied, moved and freed with it, however deep it is nested.

    Cost: a dereference is an attribute; the first one in a process that read the owner decodes the value. No
    message: the owner's came with all that is tied to it.

    Args:
        value: anything that a Box could hold.

    Source: Ma et al., OSDI'24, section 4.1.3.
    """

    __slots__ = ("__weakref__", "_is_frozen", "_place", "_value")

    def __init__(self, value: T) -> None:
        self._value: T = value
        self._place: tuple[Parts, int] | None = None
        self._is_frozen = False

    @property
    def value(self) -> T:
        """The value, under a borrow of the one it is tied to."""
        place = self._place
        if place is not None:
            parts, index = place
            value = parts.load(index)
            if self._place is not None:  # else another thread was faster, and what it gave out is the value
                self._value, self._place = value, None
        return self._value

    @value.setter
    def value(self, value: T) -> None:
        if self._is_frozen:
            raise AccessError(object="this tied value", reason="its owner is borrowed shared")
        self._value, self._place = value, None

    def __reduce__(self) -> tuple[type["Tied[T]"], tuple[T]]:
        """Outside of a Box, as an argument by value, it is pickled where it stands."""
        return Tied, (self.value,)

    def __repr__(self) -> str:
        return f"Tied({'not read yet' if self._place is not None else repr(self._value)})"


class Parts:
    """The pickles in one block: that of the value, and those of all that is tied to it."""

    def __init__(self, pin: PinLike, writable: bool, child: "Callable[[int], Any]") -> None:
        self._pin = pin
        self._writable = writable
        self._child = child
        self._starts = [0, *unpack_starts(pin), pin.buffer_count]
        self._is_lazy = not writable and len(pin.children) == 0
        self._unread: list[Tied[Any]] = []  # while an eager load is under way: else this would be a cycle

    def load_all(self) -> Any:
        """The value; with all that is tied to it, unless it can wait."""
        value = self.load(0)
        while self._unread:
            _ = self._unread.pop().value
        return value

    def load(self, index: int) -> Any:
        """The value of one pickle."""
        from drust.codecs.picklers import ChildUnpickler

        first, end = self._starts[index], self._starts[index + 1]
        buffers = [borrowed(self._pin, number, self._writable) for number in range(first + 1, end)]
        return ChildUnpickler(io.BytesIO(self._pin.buffer(first)), buffers, self._child, self._tied).load()

    def _tied(self, index: int) -> Tied[Any]:
        tied: Tied[Any] = Tied(_UNREAD)
        tied._place = (self, index)
        tied._is_frozen = not self._writable
        if not self._is_lazy:
            self._unread.append(tied)
        return tied


def pack_starts(starts: Sequence[int]) -> bytes:
    """The metadata of a pickled value: which buffers begin another pickle, but the first."""
    return struct.pack(f"<{len(starts)}I", *starts)


def unpack_starts(pin: PinLike) -> Sequence[int]:
    """What `pack_starts` packed; nothing in blocks that are no values (a call has metadata of its own)."""
    return struct.unpack(f"<{len(pin.meta) // 4}I", pin.meta) if pin.codec == PICKLE else ()
