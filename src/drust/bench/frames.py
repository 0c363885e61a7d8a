"""Rows of frames: what a block a column costs beside one Arrow IPC stream for the whole frame.

The stream is what drust wrote before, and what others (Ray, Plasma) exchange: zero-copy to read, one piece.
It is read by pl.from_arrow, as most do, and by pl.DataFrame, which is faster.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from time import perf_counter
from typing import Any

import numpy as np

from drust import handles
from drust._core import Box
from drust.bench.peers import Unavailable
from drust.bench.rows import Aim, Bench, Row
from drust.bench.stats import Operation
from drust.runtime import Pointer

_BORROW_AIM = Aim(kind="ratio", bound=1.2)
_SHAPES = ((10, 100_000), (100, 10_000), (1000, 1000))  # columns and rows: 8 MB each


def loop(step: Callable[[], object]) -> Operation:
    """An operation that does `step` as often as asked."""

    def run(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            step()
        return perf_counter() - start

    return Operation(run)


def first_borrow(pointer: Pointer) -> None:
    """As of a process that never saw it."""
    with handles.hold(pointer, "shared", owns=False).borrow():
        pass


def encode(frame: Any) -> None:
    """Into new blocks, which are freed."""
    Box(frame)._publish()


def correct(box: "Box[Any]") -> None:
    """A column in place."""
    with box.column_mut("c0") as (values, _):
        np.add(values, 1, out=values)


def frames(bench: Bench) -> Iterator[Row]:
    """First borrows, encodings and corrections of a column, beside the same with an IPC stream."""
    try:
        import polars as pl
        import pyarrow as pa
    except ImportError as error:
        raise Unavailable("polars and pyarrow are not installed: pip install 'drust[frames]'") from error

    def to_stream(frame: Any) -> Any:
        table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write(table)
        return sink.getvalue()

    def from_stream(stream: Any) -> Any:
        with pa.ipc.open_stream(stream) as reader:
            return pl.from_arrow(reader.read_all(), rechunk=False)

    def straight_from_stream(stream: Any) -> Any:
        with pa.ipc.open_stream(stream) as reader:
            return pl.DataFrame(reader)

    def correct_stream(frame: Any) -> Any:
        return to_stream(frame.with_columns(pl.col("c0") + 1))

    for columns, rows in _SHAPES:
        frame = pl.DataFrame({f"c{number}": np.arange(rows) for number in range(columns)})
        kept: Box[Any] = Box(frame)
        pointer = kept._publish().pointer
        stream = to_stream(frame)
        size = f"{columns} columns of {rows} numbers"
        first = loop(partial(first_borrow, pointer))
        borrowing = f"first borrow in a process, {size}"
        yield bench.compare(
            f"frame-borrow-{columns}",
            borrowing,
            "pl.from_arrow() of its Arrow IPC stream",
            first,
            loop(partial(from_stream, stream)),
            _BORROW_AIM,
        )
        yield bench.compare(
            f"frame-borrow-{columns}-direct",
            borrowing,
            "pl.DataFrame() of its Arrow IPC stream",
            first,
            loop(partial(straight_from_stream, stream)),
        )
        yield bench.compare(
            f"frame-encode-{columns}",
            f"encoding a frame, {size}",
            "writing its Arrow IPC stream",
            loop(partial(encode, frame)),
            loop(partial(to_stream, frame)),
        )
        yield bench.compare(
            f"frame-column-{columns}",
            f"adding 1 to a column in place, {size}",
            "with_columns(), and its Arrow IPC stream again",
            loop(partial(correct, kept)),
            loop(partial(correct_stream, frame)),
        )
