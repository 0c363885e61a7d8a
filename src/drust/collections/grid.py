"""Where the blocks of an n-d array begin and end, and which of them an index expression meets."""

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drust.errors import ConfigError

Index = tuple[int, ...]
Region = tuple[slice, ...]
Values = npt.NDArray[Any]


class Span(NamedTuple):
    """What one axis of an index expression asks for: `places` places from `low` on, `step` apart."""

    low: int
    places: int
    step: int
    is_reversed: bool
    is_dropped: bool
    """An integer: the axis is not in the result."""

    @property
    def flip(self) -> slice:
        """Brings the places, or what is to be written to them, into the order asked for."""
        return slice(None, None, -1 if self.is_reversed else None)


class Meeting(NamedTuple):
    """A block, the part of it that is asked for, and where that is in the result (before any flip)."""

    block: int
    inside: Region
    outside: Region


class Grid(NamedTuple):
    """An array's cuts: for each axis where its blocks begin, and at last where it ends."""

    edges: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> Index:
        """Of the whole array."""
        return tuple(axis[-1] for axis in self.edges)

    @property
    def counts(self) -> Index:
        """How many blocks there are along each axis."""
        return tuple(len(axis) - 1 for axis in self.edges)

    def indices(self) -> Iterator[Index]:
        """Of all blocks, the last axis fastest."""
        return itertools.product(*(range(count) for count in self.counts))

    def number(self, index: Index) -> int:
        """The place of a block in `indices()`."""
        number = 0
        for place, count in zip(index, self.counts, strict=True):
            number = number * count + place
        return number

    def region(self, index: Index) -> Region:
        """Where a block lies in the array."""
        return tuple(
            slice(axis[place], axis[place + 1]) for axis, place in zip(self.edges, index, strict=True)
        )

    def extents(self, index: Index) -> Index:
        """A block's shape."""
        return tuple(part.stop - part.start for part in self.region(index))

    def meetings(self, spans: Sequence[Span]) -> Iterator[Meeting]:
        """The blocks that have something of what is asked for."""
        for parts in itertools.product(*map(_meet, self.edges, spans)):
            number = self.number(tuple(part[0] for part in parts))
            yield Meeting(number, tuple(part[1] for part in parts), tuple(part[2] for part in parts))


def _meet(edges: Sequence[int], span: Span) -> Iterator[tuple[int, slice, slice]]:
    low, places, step = span.low, span.places, span.step
    for block, (begin, end) in enumerate(itertools.pairwise(edges)):
        first = max(0, -(-(begin - low) // step))
        last = min(places, -(-(end - low) // step))
        if first < last:
            start = low + first * step - begin
            yield block, slice(start, start + (last - first - 1) * step + 1, step), slice(first, last)


def spans_of(key: Any, shape: Index) -> list[Span]:
    """What an index expression of integers, slices and `...` asks for, an axis each.

    Raises:
        IndexError: as numpy; or of a kind that an Array does not have.
    """
    parts = list(key) if isinstance(key, tuple) else [key]
    dots = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    at = dots[0] if dots else len(parts)
    given = len(parts) - len(dots)
    if given > len(shape):
        raise IndexError(
            f"too many indices for array: array is {len(shape)}-dimensional, but {given} were indexed"
        )
    parts[at : at + len(dots)] = [slice(None)] * (len(shape) - given)
    return [
        _span_of(part, axis, extent) for axis, (part, extent) in enumerate(zip(parts, shape, strict=True))
    ]


def _span_of(part: Any, axis: int, extent: int) -> Span:
    if isinstance(part, slice):
        places = range(extent)[part]
        low = places[-1] if places and places.step < 0 else places.start
        return Span(low, len(places), abs(places.step), places.step < 0, is_dropped=False)
    try:
        place = operator.index(part)
    except TypeError:
        place = None
    if place is None or isinstance(part, bool | np.ndarray):
        raise IndexError(
            f"an Array takes integers, slices and '...', not {type(part).__name__}:"
            " use map_blocks, or to_numpy()[...]"
        )
    if not -extent <= place < extent:
        raise IndexError(f"index {place} is out of bounds for axis {axis} with size {extent}")
    return Span(place % extent, 1, 1, is_reversed=False, is_dropped=True)


def cut(shape: Index, chunks: "int | Sequence[int | None] | None", parts: int) -> Grid:
    """A grid of blocks of `chunks`, the last ones of an axis smaller.

    Args:
        shape: of the array.
        chunks: a block's extent along each axis, or along the first; None is all of an axis. Where nothing
            is given, the first axis is cut into `parts`.
        parts: how many of equal size, or nearly.
    """
    if chunks is None:
        if not shape:
            return Grid(())
        return Grid((even_edges(shape[0], parts), *((0, extent) for extent in shape[1:])))
    sizes: list[Any] = list(chunks) if isinstance(chunks, tuple | list) else [chunks]
    sizes = [int(size) if isinstance(size, np.integer) else size for size in sizes]
    is_good = all(size is None or (isinstance(size, int) and size >= 1) for size in sizes)
    if len(sizes) > len(shape) or not is_good:
        raise ConfigError(
            variable="chunks=",
            value=repr(chunks),
            expected=f"the extent of a block, at least 1, along up to {len(shape)} axes",
        )
    sizes += [None] * (len(shape) - len(sizes))
    return Grid(
        tuple(
            (*range(0, extent, size or extent or 1), extent) if extent else (0, 0)
            for extent, size in zip(shape, sizes, strict=True)
        )
    )


def even_edges(extent: int, parts: int) -> tuple[int, ...]:
    """Where parts of equal size, or nearly, begin and end: none is empty unless all is."""
    parts = max(1, min(parts, extent))
    return tuple(extent * part // parts for part in range(parts + 1))
