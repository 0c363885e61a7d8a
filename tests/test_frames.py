"""Frames as parents of columns: what is shared, and that nothing is left in the heap, whatever was done."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pyarrow as pa
import pytest

import drust
from drust import Box, Ref, RefMut, Session, StaleViewWarning, frames


def small(rows: int = 100) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "i": np.arange(rows),
            "f": np.linspace(0, 1, rows),
            "s": [f"a string longer than twelve bytes, {i}" for i in range(rows)],
            "b": [None if i % 3 == 0 else i % 2 == 0 for i in range(rows)],
            "l": [[i, i + 1] for i in range(rows)],
        }
    )


def equal(left: pl.DataFrame, right: pl.DataFrame) -> None:
    pl.testing.assert_frame_equal(left, right)


def pointers(box: Box[Any]) -> list[tuple[int, int]]:
    """(address, colour) of each column's block."""
    return [child[:2] for child in box._publish().children]


def read(box: Box[Any]) -> Any:
    with box.borrow() as frame:
        return frame.clone() if isinstance(frame, pl.DataFrame) else frame


def total(frame: Ref[pl.DataFrame]) -> int:
    assert isinstance(frame, pl.DataFrame)
    return int(frame["i"].sum())


def live_blocks(session: Session) -> list[int]:
    drust.runtime.current().flush()
    drust.runtime.current().evict(2**40)
    counts = [drust.runtime.current().live_blocks()]
    counts += [drust.spawn(_live_blocks, server=server).join() for server in range(1, session.servers)]
    return counts


def _live_blocks() -> int:
    drust.runtime.current().flush()
    drust.runtime.current().evict(2**40)
    return drust.runtime.current().live_blocks()


@pytest.fixture
def nothing_is_left(two_servers: Session) -> Iterator[Session]:
    """Two servers, on each of which as many blocks are live after the test as before it."""
    functions = [
        _live_blocks,
        total,
        double_i,
        keep_total,
        fix_moved,
        take_and_return,
        make,
        _ignore_box,
        nested_total,
        correct,
    ]
    for function in functions:  # sent once a server, and kept
        for server in range(two_servers.servers):
            drust.spawn(_ignore, function, server=server).join()
    before = live_blocks(two_servers)
    yield two_servers
    assert live_blocks(two_servers) == before


def _ignore(function: Callable[..., Any]) -> None:
    pass


# -- sharing -----------------------------------------------------------------------------------------------


def test_a_task_reads_a_frame_that_it_was_lent(one_server: Session) -> None:
    box = Box(small())
    assert drust.spawn(total, box.borrow()).join() == sum(range(100))


def places_in_heap(box: Box[Any]) -> set[int]:
    """Where every buffer of every column of a frame lies in this process."""
    pin = box._publish()
    parts = [drust.runtime.current().open(child[:3], False, 0) for child in pin.children]
    return {
        np.frombuffer(part.buffer(index), np.uint8).ctypes.data
        for part in parts
        for index in range(part.buffer_count)
    }


def test_a_decoded_frame_is_the_heap_s_memory(one_server: Session) -> None:
    box = drust.spawn(make).join()
    with box.borrow() as frame:
        table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
        buffers = [buffer for column in table.columns for buffer in column.chunk(0).buffers() if buffer]
        found = {buffer.address for buffer in buffers if buffer.size}
        assert len(found) >= 7
        assert found <= places_in_heap(box)
        assert all(address % 64 == 0 for address in found)
        assert not any(buffer.is_mutable for buffer in buffers)


def test_an_arrow_table_is_the_heap_s_memory_too(one_server: Session) -> None:
    table = pa.table({"a": pa.array(range(1000)), "s": pa.array(["x", None] * 500)})
    box = Box(table)
    box._publish()
    copy = drust.handles.hold(box._publish().pointer, "shared", owns=False)
    with copy.borrow() as frame:
        assert frame.equals(table)
        found = {b.address for column in frame.columns for b in column.chunk(0).buffers() if b and b.size}
        assert found <= places_in_heap(box)


def make() -> Box[pl.DataFrame]:
    return Box(small())


def double_i(frame: RefMut[pl.DataFrame]) -> None:
    frame.replace_column(0, frame["i"] * 2)


def keep_total(frame: pl.DataFrame) -> int:
    return int(frame["i"].sum())


def fix_moved(box: Box[pl.DataFrame]) -> Box[pl.DataFrame]:
    with box.column_mut("i") as (values, mask):
        values += 1
        mask[0] = False
    return box


def take_and_return(box: Box[pl.DataFrame]) -> Box[pl.DataFrame]:
    return box


def test_a_frame_that_was_kept_stays_as_it_was(one_server: Session) -> None:
    original = small()
    box = Box(original)
    kept = [original]
    for factor in (2, 3):
        with box.borrow() as frame:
            kept.append(frame)
        with box.borrow_mut() as frame:
            frame.replace_column(0, frame["i"] * factor)
        box._publish()
    twin = box.clone()
    with twin.borrow_mut() as frame:
        frame.replace_column(0, frame["i"] * 0)
    assert [each["i"].sum() for each in kept] == [4950, 4950, 9900]
    assert (read(box)["i"].sum(), read(twin)["i"].sum()) == (29700, 0)


# -- what is left in the heap ------------------------------------------------------------------------------


def _cloned(box: Box[Any]) -> None:
    other = box.clone()
    drust.spawn(total, other.borrow(), server=1).join()
    with other.column_mut("i") as (values, _):
        values[:] = 0
    assert read(other)["i"].sum() == 0
    assert read(box)["i"].sum() == 4950


def _taken_out(box: Box[Any]) -> None:
    frame = box.into_inner()
    equal(frame, small())


def _replaced(box: Box[Any]) -> None:
    box.replace(small(7))
    drust.spawn(total, box.borrow(), server=1).join()
    box.replace({"not": "a frame"})


def _moved_here(box: Box[Any]) -> None:
    box = drust.spawn(take_and_return, box).join()
    equal(read(box), small())


def _moved_elsewhere(box: Box[Any]) -> None:
    box = drust.spawn(take_and_return, box, server=1).join()
    equal(read(box), small())


def _moved_for_good(box: Box[Any]) -> None:
    drust.spawn(_ignore_box, box, server=1).join()


def _ignore_box(box: Box[Any]) -> None:
    pass


def _value_for_good(box: Box[Any]) -> None:
    assert drust.spawn(keep_total, box.borrow(), server=1).join() == 4950


def _lent_mutably_here(box: Box[Any]) -> None:
    drust.spawn(double_i, box.borrow_mut()).join()
    assert read(box)["i"].sum() == 9900


def _lent_mutably_elsewhere(box: Box[Any]) -> None:
    drust.spawn(double_i, box.borrow_mut(), server=1).join()
    assert box.server == 1
    drust.spawn(double_i, box.borrow_mut(), server=1).join()
    assert read(box)["i"].sum() == 19800
    drust.spawn(double_i, box.borrow_mut(), server=0).join()
    assert read(box)["i"].sum() == 39600


def _changed_here(box: Box[Any]) -> None:
    for factor in (2, 3):
        with box.borrow_mut() as frame:
            frame.replace_column(0, frame["i"] * factor)
        drust.spawn(total, box.borrow(), server=1).join()
    assert read(box)["i"].sum() == 4950 * 6


def _column_here(box: Box[Any]) -> None:
    for _ in range(3):
        with box.column_mut("i") as (values, mask):
            values += 1
            mask[3] = False
        drust.spawn(total, box.borrow(), server=1).join()
    assert read(box)["i"].sum() == 4950 + 99 * 3 - 3


def _column_of_a_frame_elsewhere(box: Box[Any]) -> None:
    box = drust.spawn(make, server=1).join()
    with box.column_mut("i") as (values, _):
        values += 1
    assert box.server == 0
    assert read(box)["i"].sum() == 5050


def _column_in_a_task(box: Box[Any]) -> None:
    for server in (0, 1):
        box = drust.spawn(fix_moved, box, server=server).join()
    assert read(box)["i"].sum() == 4950 + 2 * 99 - 0


def _appended(box: Box[Any]) -> None:
    drust.spawn(total, box.borrow(), server=1).join()
    for _ in range(3):
        frames.append(box, small(5))
    assert drust.spawn(total, box.borrow(), server=1).join() == 4980
    equal(read(box), pl.concat([small(), small(5), small(5), small(5)]))


def _appended_elsewhere(box: Box[Any]) -> None:
    box = drust.spawn(make, server=1).join()
    frames.append(box, small(5))
    assert read(box)["i"].sum() == 4960


def _viewed(box: Box[Any]) -> None:
    drust.spawn(total, box.borrow()).join()
    with box.column_mut("f") as (values, _):
        values[:] = 0
    with box.borrow() as frame:
        kept = frame["i"]
    del frame
    with pytest.warns(StaleViewWarning, match="still alive"), box.column_mut("i") as (values, _):
        values[:] = 0
    assert kept.sum() == 4950
    assert read(box)["i"].sum() == 0
    del box
    assert kept.sum() == 4950


def _viewed_and_lent(box: Box[Any]) -> None:
    box = drust.spawn(take_and_return, box).join()
    with box.borrow() as frame:
        kept = frame["i"]
        whole = frame
    del frame
    drust.spawn(double_i, box.borrow_mut()).join()  # no warning: the whole frame has a name, a snapshot
    box = drust.spawn(fix_moved, box).join()
    assert kept.sum() == whole["i"].sum() == 4950
    del box
    assert kept.sum() == 4950
    equal(whole, small())


def _nested(box: Box[Any]) -> None:
    outer = Box({"frame": box})
    assert drust.spawn(nested_total, outer.borrow(), server=1).join() == 4950
    with outer.borrow_mut() as value, value["frame"].column_mut("i") as (values, _):
        values += 1
    assert drust.spawn(nested_total, outer.borrow(), server=1).join() == 5050


def nested_total(value: Ref[dict[str, Box[pl.DataFrame]]]) -> int:
    with value["frame"].borrow() as frame:
        return int(frame["i"].sum())


def correct(column: tuple[Any, Any]) -> int:
    values, mask = column
    values[mask] += 1
    mask[0] = False
    return int(values.size)


def _column_lent_here(box: Box[Any]) -> None:
    assert drust.spawn(correct, box.column_mut("i")).join() == 100
    assert drust.spawn(correct, box.column_mut("i")).join() == 100
    assert read(box)["i"].sum() == 5148
    assert read(box)["i"].null_count() == 1


def _column_lent_elsewhere(box: Box[Any]) -> None:
    assert drust.spawn(correct, box.column_mut("i"), server=1).join() == 100
    assert box.server == 1
    assert drust.spawn(correct, box.column_mut("f"), server=1).join() == 100
    assert drust.spawn(correct, box.column_mut("i"), server=0).join() == 100
    assert box.server == 0
    assert read(box)["i"].null_count() == read(box)["f"].null_count() == 1


PATHS = [
    value
    for name, value in list(globals().items())
    if name.startswith("_")
    and name[1:2].isalpha()
    and getattr(value, "__module__", "") == __name__
    and name not in ("_live_blocks", "_ignore", "_ignore_box")
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__[1:])
@pytest.mark.parametrize("published", [False, True])
def test_nothing_is_left_after(
    path: Callable[[Box[Any]], None], published: bool, nothing_is_left: Session
) -> None:
    box = Box(small())
    if published:
        box._publish()
    arguments = [box]
    del box
    with warnings.catch_warnings():
        path(arguments.pop())
