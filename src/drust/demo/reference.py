"""The demo's results by polars, in one process: another program for the same answers, so that a match means
something.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from drust.demo.flights import Names, minute_of_day

DELAYS = ("dep_delay", "arr_delay")
GROUPS = ("carrier", "dest")
DAY = 24 * 60

Means = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def amended(frame: pl.DataFrame, minutes: int) -> pl.DataFrame:
    """The table with the first flight's arrival delay raised by `minutes`."""
    raised = pl.when(pl.int_range(pl.len()) == 0).then(pl.col("arr_delay") + minutes).otherwise("arr_delay")
    return frame.with_columns(raised.alias("arr_delay"))


def settled(frame: pl.DataFrame, rows: slice) -> pl.DataFrame:
    """The table as `work.settle` shall leave it, when it has run for these rows."""
    place = pl.int_range(pl.len())
    early = place.is_between(rows.start, rows.stop, closed="left") & (pl.col("arr_delay") < 0)
    return frame.with_columns(pl.when(early).then(0).otherwise("arr_delay").cast(pl.Int32).alias("arr_delay"))


def corrected(frame: pl.DataFrame) -> pl.DataFrame:
    """The table as `work.correct` shall leave it."""
    late = minute_of_day("arr_time") - minute_of_day("sched_arr_time")
    days = ((pl.col("dep_delay") - late) / DAY).round().cast(pl.Int32)
    return frame.with_columns(
        pl.col("dep_delay").clip(lower_bound=0),
        pl.coalesce("arr_delay", late + days * DAY).clip(lower_bound=0),
    )


def filled_in(frame: pl.DataFrame) -> int:
    """How many arrival delays `work.correct` shall fill in."""
    return frame.filter(pl.col("arr_delay").is_null() & pl.col("arr_time").is_not_null()).height


def means(frame: pl.DataFrame, names: Names) -> Means:
    """Mean delays, [departure or arrival, carriers and then destinations], NaN where a group knows none."""
    table = _by_group(frame, names, pl.col(*DELAYS).mean())
    return table.select(pl.all().fill_null(float("nan"))).to_numpy().T


def known(frame: pl.DataFrame, names: Names) -> Counts:
    """How many delays each group knows, shaped as `means`."""
    return _by_group(frame, names, pl.col(*DELAYS).count().cast(pl.Int64)).to_numpy().T


def _by_group(frame: pl.DataFrame, names: Names, aggregate: pl.Expr) -> pl.DataFrame:
    parts = []
    for group, members in zip(GROUPS, names, strict=True):
        found = frame.group_by(group).agg(aggregate)
        rows = pl.DataFrame({group: members}).join(found, on=group, how="left", maintain_order="left")
        parts.append(rows.select(*DELAYS))
    return pl.concat(parts)
