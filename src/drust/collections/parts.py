"""What an Array lends: all of it, a part of a split, or a tile with what lies around it.

Each is a borrow as a Ref or RefMut is: nothing is held until it is entered (`with part as opened`) or passed
to a task, which gets it opened. Pieces are blocks, or parts of blocks: arrays in place, not copies.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from drust._core import Ref, RefMut
from drust.collections.grid import Index, Region, Values
from drust.errors import AccessError

Held: TypeAlias = "Ref[Values] | RefMut[Values] | Values | None"
"""Of a piece: its borrow, its array once that is open, and None when that has ended."""


class _Guard(ABC):
    """Opens borrows that belong together, and ends them together."""

    __slots__ = ("_now", "_stack")

    def __init__(self) -> None:
        self._stack: ExitStack | None = None
        self._now: Self | None = None

    @abstractmethod
    def _opened(self, enter: ExitStack) -> Self:
        """The same with arrays in the place of borrows."""

    @abstractmethod
    def _end(self) -> None:
        """Lets go of the arrays, which would else outlive their borrows."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._now = self._opened(stack)
            self._stack = stack.pop_all()
        return self._now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now, self._now = self._now, None
        stack, self._stack = self._stack, None
        if now is not None:
            now._end()
        if stack is not None:
            stack.__exit__(kind, error, trace)


def _is_guard(held: Held) -> bool:
    return held is not None and not isinstance(held, np.ndarray)


def _open_already(what: object) -> AccessError:
    return AccessError(
        object=repr(what),
        reason="it is open, or has ended: lend the Array itself, or pass a copy, to_numpy()",
    )


def _open(stack: ExitStack, held: Held) -> Held:
    return held if held is None or isinstance(held, np.ndarray) else stack.enter_context(held)


def _opened_array(held: Held, what: object) -> Values:
    if isinstance(held, np.ndarray):
        return held
    if held is None:
        raise AccessError(object=repr(what), reason="its borrow has ended")
    raise AccessError(
        object=repr(what),
        reason="it is not open: `with part as opened`, or pass it to a task, which gets it opened",
    )


class _Pieces(_Guard):
    __slots__ = ("_pieces", "dtype", "where")

    def __init__(self, where: Region, dtype: "np.dtype[Any]", pieces: "list[tuple[Region, Held]]") -> None:
        super().__init__()
        self.where = where
        self.dtype = dtype
        self._pieces = pieces

    def __reduce__(self) -> tuple[Any, ...]:
        if not all(_is_guard(held) for _, held in self._pieces):
            raise _open_already(self)
        return type(self), (self.where, self.dtype, self._pieces)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {_text(self.where)}, {self.dtype}, {len(self._pieces)} pieces>"

    def _opened(self, enter: ExitStack) -> Self:
        return type(self)(
            self.where, self.dtype, [(where, _open(enter, held)) for where, held in self._pieces]
        )

    def _end(self) -> None:
        self._pieces = [(where, None) for where, _ in self._pieces]

    @property
    def shape(self) -> Index:
        """Of all pieces together."""
        return tuple(part.stop - part.start for part in self.where)

    @property
    def server(self) -> int:
        """Where most of it lies, before it is open: `spawn(f, part, server=part.server)`. No message."""
        held: dict[int, int] = {}
        for where, guard in self._pieces:
            if guard is None or isinstance(guard, np.ndarray):
                raise AccessError(object=repr(self), reason="it has been opened: its pieces are arrays here")
            items = int(np.prod([part.stop - part.start for part in where], dtype=np.int64))
            held[guard._box.server] = held.get(guard._box.server, 0) + items
        return max(held, key=held.__getitem__)

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[tuple[Region, Values]]:
        """Each piece: where it lies in the whole Array, and its values, in place."""
        for where, held in self._pieces:
            yield where, _opened_array(held, self)

    @property
    def values(self) -> Values:
        """The one piece's array, in place.

        Raises:
            ValueError: there are more pieces, which do not lie together in memory: iterate over them.
        """
        if len(self._pieces) != 1:
            raise ValueError(f"{self!r} is not one array: iterate over it, or take a copy, to_numpy()")
        return _opened_array(self._pieces[0][1], self)

    def to_numpy(self) -> Values:
        """A copy of all pieces in one array."""
        whole = np.empty(self.shape, self.dtype)
        for where, values in self:
            whole[within(where, self.where)] = values
        return whole


class ArrayRef(_Pieces):
    """A shared borrow of an Array: all its blocks, read-only. What `Array.borrow` returns.

    Opened, it is iterated: pairs of where a block lies (slices of the whole) and its values.
    """

    __slots__ = ()


class ArrayMut(_Pieces):
    """An exclusive borrow of an Array or of a part of it: blocks, or parts of blocks, to be written in place.

    Opened, it is iterated: pairs of where a piece lies (slices of the whole) and its values.
    """

    __slots__ = ()

    def fill(self, value: Any) -> None:
        """Sets every item."""
        for _, values in self:
            values[...] = value


class Tile(_Guard):
    """An exclusive borrow of one block, and copies of what lay around it when the tiles were made.

    def smooth(tile: Tile) -> None:
        around = tile.padded()
        tile.values[...] = (around[:-2] + around[1:-1] + around[2:]) / 3

    A task gets it open, as above; elsewhere: `with tile as opened`.
    """

    __slots__ = ("_edges", "_held", "fill_value", "halo", "index", "mode", "where")

    def __init__(
        self,
        index: Index,
        where: Region,
        halo: Index,
        mode: str,
        fill_value: Any,
        held: Held,
        edges: "dict[Index, Held]",
    ) -> None:
        super().__init__()
        self.index = index
        self.where = where
        self.halo = halo
        self.mode = mode
        self.fill_value = fill_value
        self._held = held
        self._edges = edges

    def __reduce__(self) -> tuple[Any, ...]:
        if not _is_guard(self._held):
            raise _open_already(self)
        fields = (self.index, self.where, self.halo, self.mode, self.fill_value)
        return type(self), (*fields, self._held, self._edges)

    def __repr__(self) -> str:
        return f"<Tile {self.index} of {_text(self.where)}, halo {self.halo}>"

    def _opened(self, enter: ExitStack) -> Self:
        edges: dict[Index, Held] = {where: _open(enter, held) for where, held in self._edges.items()}
        held = _open(enter, self._held)
        return type(self)(self.index, self.where, self.halo, self.mode, self.fill_value, held, edges)

    def _end(self) -> None:
        self._held = None
        self._edges = dict.fromkeys(self._edges)

    @property
    def values(self) -> Values:
        """The block's array, in place, without the halo."""
        return _opened_array(self._held, self)

    def padded(self) -> Values:
        """A new array: the block as it is now, and around it `halo` items along each axis.

        These are the neighbours' as they were when the tiles were made; beyond the array's border they are
        what `mode` says, as `numpy.pad` does.
        """
        values = self.values
        sides = [
            tuple(width if self._has(axis, side) else 0 for side in (-1, 1))
            for axis, width in enumerate(self.halo)
        ]
        shape = [extent + sum(side) for extent, side in zip(values.shape, sides, strict=True)]
        whole = np.empty(shape, values.dtype)
        places = [
            {-1: slice(0, low), 0: slice(low, low + extent), 1: slice(low + extent, low + extent + high)}
            for extent, (low, high) in zip(values.shape, sides, strict=True)
        ]
        whole[tuple(place[0] for place in places)] = values
        for direction, held in self._edges.items():
            at = tuple(place[step] for place, step in zip(places, direction, strict=True))
            whole[at] = _opened_array(held, self)
        missing = [
            tuple(width - there for there in side) for width, side in zip(self.halo, sides, strict=True)
        ]
        if not any(map(any, missing)):
            return whole
        more = {"constant_values": self.fill_value} if self.mode == "constant" else {}
        padded: Values = np.pad(whole, missing, self.mode, **more)  # type: ignore[call-overload]
        return padded

    def _has(self, axis: int, side: int) -> bool:
        return any(direction[axis] == side for direction in self._edges)


def within(where: Region, of: Region) -> Region:
    """The same places, counted from where `of` begins."""
    return tuple(
        slice(part.start - all_of.start, part.stop - all_of.start)
        for part, all_of in zip(where, of, strict=True)
    )


def _text(where: Region) -> str:
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in where) + "]"
