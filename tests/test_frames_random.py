"""Random programs on one frame, beside the same program on a plain polars frame in this process.

Whatever was borrowed, written, lent, moved, appended, cloned and kept, in whatever order: the frame is what
polars says, every view goes on showing what it saw, and at the end no block is left on any server.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import polars.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import drust
from drust import Box, Ref, RefMut, Session, StaleViewWarning, frames
from drust.errors import RowGroupError
from drust.testing.faults import Pause


def start(rows: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "a": np.arange(rows),
            "b": np.arange(rows) / 2,
            "c": [f"text of more than 12 bytes {i}" for i in range(rows)],
        }
    )


def double(frame: RefMut[pl.DataFrame]) -> None:
    frame.replace_column(0, frame["a"] * 2)


def add_one(column: tuple[Any, Any]) -> None:
    values, mask = column
    values[mask] += 1


def hide_first(column: tuple[Any, Any]) -> None:
    _, mask = column
    mask[:1] = False


def give_back(box: Box[pl.DataFrame]) -> Box[pl.DataFrame]:
    return box


def look(frame: Ref[pl.DataFrame]) -> list[Any]:
    return [frame["a"].to_list(), frame["b"].to_list(), frame["c"].to_list()]


def live_blocks() -> int:
    here = drust.runtime.current()
    here.flush()
    here.evict(2**40)
    return here.live_blocks()


def all_live_blocks() -> list[int]:
    return [live_blocks(), drust.spawn(live_blocks, server=1).join()]


class Program:
    """The Box and what it should hold; views that were kept and what they saw."""

    def __init__(self, rows: int) -> None:
        self.box: Box[pl.DataFrame] = Box(start(rows))
        self.plain = start(rows)
        self.kept: list[tuple[Any, Any]] = []

    def read(self, server: int) -> None:
        seen = drust.spawn(look, self.box.borrow(), server=server).join()
        assert seen == look(self.plain)

    def keep_frame(self, server: int) -> None:
        with self.box.borrow() as frame:
            polars.testing.assert_frame_equal(frame, self.plain)
            self.kept.append((frame, self.plain))

    def keep_column(self, server: int) -> None:
        with self.box.borrow() as frame:
            self.kept.append((frame.select("b"), self.plain.select("b")))

    def forget(self, server: int) -> None:
        self.kept.clear()

    def column_here(self, server: int) -> None:
        self._column(add_one, "a")
        self.plain = self.plain.with_columns(pl.col("a") + 1)

    def hide_here(self, server: int) -> None:
        self._column(hide_first, "b")
        self._hide("b")

    def _column(self, change: Callable[[Any], None], name: str) -> None:
        try:
            with self.box.column_mut(name) as pair:
                change(pair)
                del pair
        except RowGroupError as several:
            for group in range(several.row_groups) if change is add_one else (0,):
                with self.box.column_mut(name, row_group=group) as pair:
                    change(pair)
                    del pair

    def _hide(self, name: str) -> None:
        first = pl.int_range(pl.len()) == 0
        self.plain = self.plain.with_columns(pl.when(first).then(None).otherwise(pl.col(name)).alias(name))

    def column_in_a_task(self, server: int) -> None:
        drust.spawn(hide_first, self.box.column_mut("a", row_group=0), server=server).join()
        self._hide("a")

    def double_here(self, server: int) -> None:
        with self.box.borrow_mut() as frame:
            double(frame)
        self.plain = self.plain.with_columns(pl.col("a") * 2)

    def double_in_a_task(self, server: int) -> None:
        drust.spawn(double, self.box.borrow_mut(), server=server).join()
        self.plain = self.plain.with_columns(pl.col("a") * 2)

    def append(self, server: int) -> None:
        frames.append(self.box, start(3))
        self.plain = pl.concat([self.plain, start(3)])

    def move(self, server: int) -> None:
        self.box = drust.spawn(give_back, self.box, server=server).join()

    def clone(self, server: int) -> None:
        self.box = self.box.clone()

    def take_out_and_in(self, server: int) -> None:
        self.box = Box(self.box.into_inner())

    def replace(self, server: int) -> None:
        with self.box.borrow() as frame:
            changed = frame.with_columns(pl.col("b") + 1)
        self.box.replace(changed)
        self.plain = self.plain.with_columns(pl.col("b") + 1)


STEPS = [name for name in vars(Program) if not name.startswith("_")]
SENT = [double, add_one, hide_first, give_back, look, live_blocks]


def nothing(*_: Any) -> None:
    pass


@given(
    rows=st.integers(1, 9),
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), max_size=12),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_random_program_on_a_frame_does_what_polars_does(
    two_servers: Session, rows: int, steps: list[tuple[str, int]]
) -> None:
    for function in SENT:  # functions travel once a server and stay
        for server in (0, 1):
            drust.spawn(nothing, function, server=server).join()
    before = all_live_blocks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleViewWarning)  # views are kept on purpose
        program = Program(rows)
        for name, server in steps:
            getattr(program, name)(server)
            for view, seen in program.kept:
                polars.testing.assert_frame_equal(view, seen)
        program.read(1)
        program.read(0)
    view = seen = None
    del program
    pause, deadline = Pause(), time.monotonic() + 5  # frees of a worker travel in batches
    while all_live_blocks() != before and time.monotonic() < deadline:
        pause.wait()
    assert all_live_blocks() == before
