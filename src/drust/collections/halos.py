"""Which strips of which blocks lie around each block: what `Array.tiles` has copied."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from drust.collections.grid import Grid, Index, Region
from drust.errors import ConfigError

MODES = ("constant", "edge", "reflect", "symmetric", "wrap")  # of numpy.pad


class Strip(NamedTuple):
    """Which strip, of those that a block gives, lies in which direction of another block."""

    direction: Index
    giver: int
    number: int


class Plan(NamedTuple):
    """For each block, by its number."""

    cuts: list[list[Region]]
    """What it gives, as regions of itself."""
    strips: list[list[Strip]]
    """What lies around it."""


def halo_of(halo: "int | Sequence[int]", grid: Grid, *, wraps: bool) -> Index:
    """The halo's width along each axis.

    Raises:
        ConfigError: there is no such halo, or it is wider than a block that gives some of it.
    """
    given: tuple[Any, ...] = tuple(halo) if isinstance(halo, Sequence) else (halo,) * len(grid.edges)
    widths = tuple(int(width) if isinstance(width, np.integer) else width for width in given)
    is_good = len(widths) == len(grid.edges) and all(
        isinstance(width, int) and width >= 0 for width in widths
    )
    if not is_good:
        raise ConfigError(
            variable="halo=", value=repr(halo), expected=f"a width of 0 or more, or {len(grid.edges)} of them"
        )
    for axis, (width, edges) in enumerate(zip(widths, grid.edges, strict=True)):
        smallest = min(end - begin for begin, end in itertools.pairwise(edges))
        if width > smallest and (wraps or len(edges) > 2):
            raise ConfigError(
                variable="halo=",
                value=repr(halo),
                expected=f"at most {smallest} along axis {axis}, its smallest block's extent",
            )
    return widths


def plan_edges(grid: Grid, halo: Index, *, wraps: bool) -> Plan:
    """Who gives what to whom. A strip that lies around several blocks is cut once."""
    total = sum(1 for _ in grid.indices())
    plan = Plan([[] for _ in range(total)], [[] for _ in range(total)])
    known: list[dict[Index, int]] = [{} for _ in range(total)]  # of each giver: direction -> number
    for index in grid.indices():
        for direction, neighbour in _neighbours(grid, index, halo, wraps=wraps):
            giver = grid.number(neighbour)
            if direction not in known[giver]:
                known[giver][direction] = len(plan.cuts[giver])
                plan.cuts[giver].append(_cut_of(grid.extents(neighbour), direction, halo))
            strip = Strip(direction, giver, known[giver][direction])
            plan.strips[grid.number(index)].append(strip)
    return plan


def _neighbours(grid: Grid, index: Index, halo: Index, *, wraps: bool) -> Iterator[tuple[Index, Index]]:
    for direction in itertools.product(*((-1, 0, 1) if width else (0,) for width in halo)):
        if not any(direction):
            continue
        beside = tuple(place + step for place, step in zip(index, direction, strict=True))
        if wraps:
            yield direction, tuple(place % count for place, count in zip(beside, grid.counts, strict=True))
        elif all(0 <= place < count for place, count in zip(beside, grid.counts, strict=True)):
            yield direction, beside


def _cut_of(extents: Index, direction: Index, halo: Index) -> Region:
    """What of a neighbour in that direction lies nearest."""
    return tuple(map(_along, extents, direction, halo))


def _along(extent: int, step: int, width: int) -> slice:
    match step:
        case -1:
            return slice(extent - width, extent)
        case 1:
            return slice(0, width)
        case _:
            return slice(0, extent)
