"""What the demo's tasks do: plain functions of plain arrays, as they would be without drust.

Two know drust: `load` boxes what it read, so that the columns stay on the server where it ran;
`correct_share` owns a share while it splits it and lends the parts on.
"""

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

import drust
from drust import Box
from drust.demo import flights
from drust.demo.flights import Codes, Mask, Minutes

DAY = 24 * 60

Totals = npt.NDArray[np.int64]
"""[departure or arrival, sum or count, carriers and then destinations]: delays in minutes, exactly."""


class Shard(NamedTuple):
    """One server's share of the flights: the handles of its columns, as in `flights.Columns`."""

    departure_delay: Box[Minutes]
    departure_known: Box[Mask]
    arrival_delay: Box[Minutes]
    arrival_known: Box[Mask]
    landed: Box[Minutes]
    due: Box[Minutes]
    carrier: Box[Codes]
    destination: Box[Codes]


class Corrected(NamedTuple):
    """What `correct_share` returns."""

    shard: Shard
    filled: int


class Settled(NamedTuple):
    """What `settle` returns: how many delays it changed, and the process that did it."""

    changed: int
    pid: int


class Loaded(NamedTuple):
    """What `load` returns."""

    shard: Shard
    rows: int


def load(path: Path, part: int, parts: int) -> Loaded:
    """Reads one part of the rows. The arrays stay here; eight pointers travel."""
    frame = flights.read(path)
    names = flights.names(frame)
    mine = frame[flights.share(frame.height, part, parts)]
    boxes: list[Box[Any]] = [Box(array) for array in flights.columns(mine, names)]
    return Loaded(Shard(*boxes), mine.height)


def load_frame(path: Path, part: int, parts: int) -> Box[pl.DataFrame]:
    """One part of the rows as it is in the file, nulls and names included: a frame that stays here."""
    frame = flights.read(path)
    return Box(frame[flights.share(frame.height, part, parts)])


def late_carriers(frame: pl.DataFrame) -> list[float]:
    """The mean arrival delay of each carrier, by name: polars itself on the frame that was lent."""
    means = frame.group_by("carrier").agg(pl.col("arr_delay").mean()).sort("carrier")
    return means["arr_delay"].to_list()


def clip_early(column: tuple[Minutes, Mask]) -> int:
    """Counts early arrivals as on time, in place; returns how many there were. Nulls stay nulls."""
    delays, known = column
    early = known & (delays < 0)
    delays[early] = 0
    return int(np.count_nonzero(early))


def settle(arrival_delay: Minutes, killed: Path) -> Settled:
    """Counts early arrivals as on time, in place. The worker that runs it first is killed half way through.

    Args:
        arrival_delay: a column, lent mutably.
        killed: a file that is not there yet: the killed worker leaves its process id in it.
    """
    changed = int(np.count_nonzero(arrival_delay < 0))
    first, second = np.array_split(arrival_delay, 2)
    np.maximum(first, 0, out=first)
    if not killed.exists():
        killed.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    np.maximum(second, 0, out=second)
    return Settled(changed, os.getpid())


def totals(
    departure_delay: Minutes,
    departure_known: Mask,
    arrival_delay: Minutes,
    arrival_known: Mask,
    carrier: Codes,
    destination: Codes,
    rows: slice,
    groups: tuple[int, int],
) -> Totals:
    """Sums and counts of the known delays of some rows, by carrier and by destination.

    Args:
        departure_delay: whole columns, as the others.
        departure_known: where there is a value.
        arrival_delay: as the departure's.
        arrival_known: as the departure's.
        carrier: codes.
        destination: codes.
        rows: which rows to add up.
        groups: how many carriers and destinations there are.
    """
    result = np.zeros((2, 2, sum(groups)), np.int64)
    delays = ((departure_delay[rows], departure_known[rows]), (arrival_delay[rows], arrival_known[rows]))
    for number, (delay, known) in enumerate(delays):
        start = 0
        for codes, size in zip((carrier[rows], destination[rows]), groups, strict=True):
            picked = codes[known]
            # Weights are float64: exact for whole numbers up to 2**53.
            result[number, 0, start : start + size] = np.bincount(picked, delay[known], minlength=size)
            result[number, 1, start : start + size] = np.bincount(picked, minlength=size)
            start += size
    return result


def means(totals: Totals) -> npt.NDArray[np.float64]:
    """Mean delays, NaN where no delay is known."""
    sums, counts = totals[:, 0].astype(np.float64), totals[:, 1]
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def correct(
    departure_delay: Minutes,
    arrival_delay: Minutes,
    arrival_known: Mask,
    landed: Minutes,
    due: Minutes,
    start: int,
) -> int:
    """Corrects some rows in place, and returns how many arrival delays it filled in.

    A flight that was diverted has a landing time, but no arrival delay: it follows from the two times, where
    the day is the one nearest to the delay it left with. Then early counts as on time (0 minutes), as in the
    Bureau's own delay statistics.

    Args:
        departure_delay: the rows to correct.
        arrival_delay: the same rows.
        arrival_known: the same rows.
        landed: the whole column, read only.
        due: the whole column, read only.
        start: where in the whole columns the rows begin.
    """
    rows = slice(start, start + len(arrival_delay))
    missing = ~arrival_known & (landed[rows] >= 0)
    late = landed[rows][missing] - due[rows][missing]
    days = np.rint((departure_delay[missing] - late) / DAY).astype(np.int32)
    arrival_delay[missing] = late + days * DAY
    arrival_known |= missing
    np.maximum(departure_delay, 0, out=departure_delay)
    np.maximum(arrival_delay, 0, out=arrival_delay)
    return int(np.count_nonzero(missing))


def correct_share(shard: Shard, home: int, parts: int, servers: int) -> Corrected:
    """Runs `correct` on disjoint parts of a share that was moved here, by the workers of all servers.

    Args:
        shard: the share, whose columns lie on this server.
        home: this server.
        parts: how many.
        servers: the parts go to one after the other, `home` first.
    """
    with shard.due.borrow() as due:
        rows = len(due)
    columns = (shard.departure_delay, shard.arrival_delay, shard.arrival_known)
    jobs = []
    for number, part in enumerate(zip(*(box.split_mut(parts) for box in columns), strict=True)):
        consulted = (shard.landed.borrow(), shard.due.borrow())
        start = flights.share(rows, number, parts).start
        jobs.append(drust.spawn(correct, *part, *consulted, start, server=(home + number) % servers))
    return Corrected(shard, sum(job.join() for job in jobs))


def look(arrival_delay: Minutes) -> tuple[int, int]:
    """A reader: the first flight's arrival delay, and the sum of all."""
    return int(arrival_delay[0]), int(arrival_delay.sum(dtype=np.int64))
