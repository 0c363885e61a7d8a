"""What frames cost in messages and bytes, by counters, what they refuse, and what dies with a task."""

import os
import signal
import time
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pyarrow as pa
import pytest

import drust
from conftest import Counters
from drust import BorrowError, BorrowMutError, Box, Ref, RefMut, Session, WorkerLostError, frames
from drust.errors import (
    ColumnKindError,
    FrameSchemaError,
    MissingColumnError,
    NotAFrameError,
    RowGroupError,
    StaleViewWarning,
)

ROWS = 10_000
COLUMNS = 20
COLUMN_BYTES = 8 * ROWS


def wide(columns: int = COLUMNS, rows: int = ROWS) -> pl.DataFrame:
    return pl.DataFrame({f"c{number}": np.arange(rows) + number for number in range(columns)})


def total(frame: Ref[pl.DataFrame]) -> int:
    return int(frame["c0"].sum())


def pointers(box: Box[Any]) -> list[tuple[int, int]]:
    return [child[:2] for child in box._publish().children]


def read_on(box: Box[Any], server: int) -> int:
    return drust.spawn(total, box.borrow(), server=server).join()


# -- messages ----------------------------------------------------------------------------------------------


def test_a_frame_elsewhere_costs_two_reads_however_many_columns_it_has(
    two_servers: Session, counting: type[Counters]
) -> None:
    for columns in (1, COLUMNS, 200):
        box = Box(wide(columns, 100))
        counters = counting(two_servers)
        read_on(box, 1)
        assert counters.since()["read_requests"] == 2


def test_a_second_reader_of_the_host_costs_no_read(two_servers: Session, counting: type[Counters]) -> None:
    box = Box(wide())
    read_on(box, 1)
    counters = counting(two_servers)
    read_on(box, 1)
    assert counters.since()["read_requests"] == 0


def test_only_the_written_column_is_fetched_again(two_servers: Session, counting: type[Counters]) -> None:
    box = Box(wide())
    first = read_on(box, 1)
    before = pointers(box)
    counters = counting(two_servers)
    with box.column_mut("c0") as (values, _):
        values += 1
    assert counters.messages() == 0
    after = pointers(box)
    assert [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new] == [0]
    assert before[0][0] == after[0][0], "it was written where it lies"
    counters = counting(two_servers)
    assert read_on(box, 1) == first + ROWS
    since = counters.since()
    assert since["read_requests"] == 2
    assert COLUMN_BYTES < since["bytes_received"] < 2 * COLUMN_BYTES


def test_a_mutable_borrow_encodes_only_the_columns_that_changed(
    two_servers: Session, counting: type[Counters]
) -> None:
    box = Box(wide())
    expected = wide().with_columns(pl.col("c3") * 2)
    read_on(box, 1)
    before = pointers(box)
    counters = counting(two_servers)
    with box.borrow_mut() as frame:
        frame.replace_column(3, frame["c3"] * 2)
    after = pointers(box)
    assert COLUMN_BYTES <= counters.since()["bytes_encoded"] < 2 * COLUMN_BYTES
    assert [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new] == [3]
    with box.borrow() as frame:
        polars.testing.assert_frame_equal(frame, expected)
    del frame
    counters = counting(two_servers)
    read_on(box, 1)
    assert counters.since()["bytes_received"] < 2 * COLUMN_BYTES


def test_a_task_gives_back_a_frame_of_which_it_changed_one_column(
    two_servers: Session, counting: type[Counters]
) -> None:
    box = Box(wide())
    before = pointers(box)
    counters = counting(two_servers)
    drust.spawn(double_first, box.borrow_mut()).join()
    assert COLUMN_BYTES <= counters.since()["bytes_encoded"] < 2 * COLUMN_BYTES
    after = pointers(box)
    assert before[0] != after[0]
    assert before[1:] == after[1:]
    with box.borrow() as frame:
        polars.testing.assert_frame_equal(frame, wide().with_columns(pl.col("c0") * 2))


def double_first(frame: RefMut[pl.DataFrame]) -> None:
    frame.replace_column(0, frame["c0"] * 2)


def leave_alone(frame: RefMut[pl.DataFrame]) -> None:
    pass


def test_a_task_that_changed_nothing_gives_every_column_back(one_server: Session) -> None:
    box = Box(wide())
    before = pointers(box)
    drust.spawn(leave_alone, box.borrow_mut()).join()
    assert pointers(box) == before


def test_columns_that_only_changed_places_or_names_are_not_encoded(
    one_server: Session, counting: type[Counters]
) -> None:
    box = Box(wide())
    read_on(box, 0)
    before = pointers(box)
    counters = counting(one_server)
    with box.borrow_mut() as frame:
        last = frame.drop_in_place("c19")
        frame.insert_column(0, last.rename("new"))
    after = pointers(box)
    assert after == [before[-1], *before[:-1]]
    assert counters.since()["bytes_encoded"] < 1000
    with box.borrow() as frame:
        assert frame.columns == ["new", *(f"c{number}" for number in range(19))]


def test_a_column_that_is_there_twice_gets_two_blocks(one_server: Session) -> None:
    box = Box(wide(2))
    box._publish()
    with box.borrow_mut() as frame:
        frame.insert_column(2, frame["c0"].alias("twin"))
    del frame
    assert len(set(pointers(box))) == 3
    with box.column_mut("twin") as (values, _):
        values[:] = 0
    with box.borrow() as frame:
        assert (frame["twin"].sum(), frame["c0"].sum()) == (0, sum(range(ROWS)))


def test_appending_copies_nothing_of_what_is_there(two_servers: Session, counting: type[Counters]) -> None:
    box = Box(wide())
    read_on(box, 1)
    before = pointers(box)
    counters = counting(two_servers)
    frames.append(box, wide(rows=100))
    assert pointers(box)[:COLUMNS] == before
    since = counters.since()
    assert since["bytes_encoded"] < COLUMNS * 1200
    assert since["bytes_copied"] == 0
    assert counters.messages() == 0
    counters = counting(two_servers)
    assert read_on(box, 1) == sum(range(ROWS)) + sum(range(100))
    assert counters.since()["bytes_received"] < COLUMNS * 2000
    with box.borrow() as frame:
        polars.testing.assert_frame_equal(frame, pl.concat([wide(), wide(rows=100)]))


def test_a_frame_moves_to_its_writer_with_two_reads_and_one_free(
    two_servers: Session, counting: type[Counters]
) -> None:
    box = Box(wide())
    box._publish()
    counters = counting(two_servers)
    drust.spawn(double_first, box.borrow_mut(), server=1).join()
    since = counters.since()
    assert since["read_requests"] == 2
    assert since["free_messages"] == 0, "the old group was the lender's own: freed without a message"
    assert box.server == 1
    counters = counting(two_servers)
    del box
    since = counters.since()
    assert (since["free_messages"], since["read_requests"]) == (1, 0)


def test_a_version_that_shares_columns_elsewhere_is_freed_with_one_message(
    two_servers: Session, counting: type[Counters]
) -> None:
    box = Box(wide())
    drust.spawn(double_first, box.borrow_mut(), server=1).join()
    drust.spawn(blocks).join()
    before = drust.spawn(blocks, server=1).join()
    counters = counting(two_servers)
    drust.spawn(double_first, box.borrow_mut(), server=1).join()
    assert counters.since()["free_messages"] == 1
    assert drust.spawn(blocks, server=1).join() == before
    with box.borrow() as frame:
        polars.testing.assert_frame_equal(frame, wide().with_columns(pl.col("c0") * 4))


def blocks() -> int:
    drust.runtime.current().evict(2**40)
    return drust.runtime.current().live_blocks()


def test_chunks_become_one_row_group_and_appended_rows_stay_another(one_server: Session) -> None:
    strings = pl.DataFrame(
        {"s": ["a" * 20, None], "c": pl.Series(["u", "v"], dtype=pl.Categorical), "x": [1, None]}
    )
    other = pl.DataFrame(
        {"s": ["b", "c" * 30], "c": pl.Series(["w", "u"], dtype=pl.Categorical), "x": [3, 4]}
    )
    whole = pl.concat([strings, other, strings], rechunk=False)
    box = Box(whole)
    assert len(pointers(box)) == 3
    frames.append(box, pl.concat([other, strings], rechunk=False))
    before = pointers(box)
    assert len(before) == 6
    with box.borrow_mut() as frame:
        assert frame.n_chunks() == 2
        frame.replace_column(2, frame["x"] + 1)
        frame.vstack(other, in_place=True)
    del frame
    after = pointers(box)
    assert len(after) == 9
    assert after[0] == before[0]
    expected = pl.concat([whole, other, strings]).with_columns(pl.col("x") + 1).vstack(other)
    with box.borrow() as frame:
        polars.testing.assert_frame_equal(frame, expected, categorical_as_str=True)


def test_a_private_frame_is_not_encoded(one_server: Session, counting: type[Counters]) -> None:
    counters = counting(one_server)
    box = Box(wide())
    with box.borrow() as frame:
        assert frame.width == COLUMNS
    with box.borrow_mut() as frame:
        frame.drop_in_place("c1")
    assert counters.since()["bytes_encoded"] == 0


# -- columns in place --------------------------------------------------------------------------------------

EVERY_KIND = {
    "int8": (pl.Int8, np.int8), "int64": (pl.Int64, np.int64), "uint16": (pl.UInt16, np.uint16),
    "float32": (pl.Float32, np.float32), "float64": (pl.Float64, np.float64), "bool": (pl.Boolean, np.bool_),
    "date": (pl.Date, np.int32), "time": (pl.Time, np.int64), "datetime": (pl.Datetime("us"), "<M8[us]"),
    "zoned": (pl.Datetime("ms", "Europe/Vienna"), "<M8[ms]"), "duration": (pl.Duration("ns"), "<m8[ns]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("nulls", ["none", "some", "all"])
def test_every_kind_of_fixed_size_is_written_in_place(
    one_server: Session, kind: str, rows: int, nulls: str
) -> None:
    dtype, numpy_dtype = EVERY_KIND[kind]
    known = {"none": [True] * rows, "some": [i % 3 != 0 for i in range(rows)], "all": [False] * rows}[nulls]
    numbers = [i % 2 if good else None for i, good in enumerate(known)]
    series = pl.Series("x", numbers, pl.Int8).cast(dtype if kind != "time" else pl.Int64).cast(dtype)
    box = Box(pl.DataFrame([series, pl.Series("y", ["other"] * rows)]))
    with box.column_mut("x") as (values, mask):
        assert values.dtype == np.dtype(numpy_dtype)
        assert values.shape == mask.shape == (rows,)
        assert mask.tolist() == known
        assert values.flags.writeable
        assert mask.flags.writeable
        mask[:] = ~mask
        values[:] = np.ones(rows, np.int8).astype(values.dtype)
    expected = pl.Series("x", [None if good else 1 for good in known], pl.Int8)
    expected = expected.cast(dtype if kind != "time" else pl.Int64).cast(dtype)
    with box.borrow() as frame:
        polars.testing.assert_series_equal(frame["x"], expected)
        assert frame["x"].null_count() == sum(known)
        assert frame["y"].to_list() == ["other"] * rows


def test_values_of_a_large_column_are_written_where_they_lie(one_server: Session) -> None:
    box = Box(pl.DataFrame({"x": np.zeros(300_000)}))
    block = pointers(box)[0][0]
    with box.column_mut("x") as (values, _):
        values[:] = 1.0
    assert pointers(box)[0][0] == block
    with box.borrow() as frame:
        assert frame["x"].sum() == 300_000


def test_the_arrays_of_a_column_end_with_the_block(one_server: Session) -> None:
    box = Box(wide(2))
    with box.column_mut("c0") as (values, mask):
        row = values[5:]
    for array in (values, mask, row):
        with pytest.raises(drust.RevokedError):
            array.sum()


def test_a_view_of_a_column_kept_elsewhere_reaches_no_live_version(one_server: Session) -> None:
    box = Box(wide(2, 100))
    kept = []
    with pytest.warns(StaleViewWarning), box.column_mut("c0") as (values, _):
        kept.append(values[:5])
    kept[0][:] = -1
    with box.borrow() as frame:
        assert frame["c0"].to_list() == list(range(100))
    kept.clear()


def test_a_block_that_raised_leaves_what_it_wrote_and_ends_the_borrow(one_server: Session) -> None:
    box = Box(wide(2, 10))
    with pytest.raises(ZeroDivisionError), box.column_mut("c0") as (values, _):
        values[0] = 77
        1 / 0
    with box.borrow() as frame:
        assert frame["c0"][0] == 77


def test_a_column_is_an_exclusive_borrow_of_its_frame(one_server: Session) -> None:
    box = Box(wide(2, 10))
    with box.column_mut("c0") as (values, _):
        values[0] = 5
        for borrow in (box.borrow, box.borrow_mut):
            with pytest.raises((BorrowError, BorrowMutError), match=r"column_mut\('c0'\)"), borrow():
                pass
        with pytest.raises(BorrowMutError), box.column_mut("c1"):
            pass
    with box.borrow():
        with pytest.raises(BorrowMutError), box.column_mut("c0"):
            pass
        with pytest.raises(TimeoutError), box.column_mut("c0", timeout=0.01):
            pass
    with box.column_mut("c1") as (values, _):
        values[0] = 6
    with box.borrow() as frame:
        assert (frame["c0"][0], frame["c1"][0]) == (5, 6)


def test_one_of_several_row_groups_is_written(one_server: Session) -> None:
    box = Box(wide(2, 10))
    frames.append(box, wide(2, 4))
    with pytest.raises(RowGroupError, match="2 row groups"), box.column_mut("c1"):
        pass
    with box.column_mut("c1", row_group=1) as (values, _):
        assert len(values) == 4
        values[:] = -1
    with pytest.raises(RowGroupError, match="2 is none of them"), box.column_mut("c1", row_group=2):
        pass
    with box.borrow() as frame:
        assert frame["c1"].to_list() == [*range(1, 11), -1, -1, -1, -1]
        box2 = Box(frame.rechunk())
    with box2.column_mut("c1") as (values, _):
        assert len(values) == 14


def test_a_column_of_an_arrow_table_is_written(one_server: Session) -> None:
    for value in (pa.table({"a": [1, None, 3]}), pa.record_batch({"a": [1, None, 3]})):
        box: Box[Any] = Box(value)
        with box.column_mut("a") as (values, mask):
            assert mask.tolist() == [True, False, True]
            values[1], mask[1] = 2, True
        with box.borrow() as table:
            assert type(table) is type(value)
            assert table.column("a").to_pylist() == [1, 2, 3]
            table.validate(full=True)


# -- bad input ---------------------------------------------------------------------------------------------


def test_a_column_that_does_not_exist(one_server: Session) -> None:
    box = Box(wide(2, 10))
    with pytest.raises(MissingColumnError, match="it has c0; c1") as caught, box.column_mut("x"):
        pass
    assert caught.value.column == "x"
    with box.column_mut("c0") as (values, _):
        values[0] = 1


@pytest.mark.parametrize("name", ["s", "c", "e", "l", "r", "d", "n", "x", "a"])
def test_a_column_of_a_kind_that_cannot_be_written(one_server: Session, name: str) -> None:
    frame = pl.DataFrame({"s": ["a"], "l": [[1]], "r": [{"a": 1}], "n": [None], "x": [b"b"]}).with_columns(
        pl.Series("c", ["u"], pl.Categorical),
        pl.Series("e", ["u"], pl.Enum(["u"])),
        pl.Series("d", ["1.5"]).cast(pl.Decimal(10, 2)),
        pl.Series("a", [[1, 2]], pl.Array(pl.Int8, 2)),
    )
    box = Box(frame)
    with pytest.raises(ColumnKindError, match="with_columns"), box.column_mut(name):
        pass
    with box.borrow() as same:
        polars.testing.assert_frame_equal(same, frame)


def test_columns_and_rows_of_what_is_no_frame(one_server: Session) -> None:
    for value in (np.zeros(3), {"a": 1}, pl.Series("a", [1]), pl.DataFrame(), pa.array([1])):
        box: Box[Any] = Box(value)
        with pytest.raises(NotAFrameError), box.column_mut("a"):
            pass
        with pytest.raises(NotAFrameError):
            frames.append(box, wide(1, 1))
        with box.borrow():
            pass
    box = Box(wide(1, 1))
    with pytest.raises(NotAFrameError, match="dict"):
        frames.append(box, {"c0": 1})  # type: ignore[arg-type]
    with pytest.raises(NotAFrameError, match="Table"):
        frames.append(box, pa.table({"c0": [1]}))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (pl.DataFrame({"a": [1], "e": pl.Series(["u"], dtype=pl.Enum(["u"]))}), r"'c0'.*'a'"),
        (pl.DataFrame({"c0": [1.0], "e": pl.Series(["u"], dtype=pl.Enum(["u"]))}), "int64.*double"),
        (pl.DataFrame({"c0": [1], "e": pl.Series(["u"], dtype=pl.Enum(["u", "v"]))}), "'e'"),
        (pl.DataFrame({"e": pl.Series(["u"], dtype=pl.Enum(["u"])), "c0": [1]}), "its columns are"),
        (pl.DataFrame({"c0": [1]}), "its columns are"),
    ],
    ids=["name", "type", "categories", "order", "fewer"],
)
def test_rows_of_another_schema(one_server: Session, rows: pl.DataFrame, reason: str) -> None:
    before = pl.DataFrame({"c0": [1], "e": pl.Series(["u"], dtype=pl.Enum(["u"]))})
    box = Box(before)
    with pytest.raises(FrameSchemaError, match=reason):
        frames.append(box, rows)
    with box.borrow() as frame:
        polars.testing.assert_frame_equal(frame, before)


def test_a_change_of_type_is_a_new_column(two_servers: Session) -> None:
    box = Box(wide(3, 10))
    read_on(box, 1)
    with box.borrow_mut() as frame:
        frame.replace_column(1, frame["c1"].cast(pl.Utf8))
    expected = wide(3, 10).with_columns(pl.col("c1").cast(pl.Utf8))
    assert drust.spawn(same_as, box.borrow(), expected, server=1).join()
    box.replace(expected.with_columns(pl.col("c0").cast(pl.Float32)))
    assert drust.spawn(
        same_as, box.borrow(), expected.with_columns(pl.col("c0").cast(pl.Float32)), server=1
    ).join()


def same_as(frame: Ref[pl.DataFrame], expected: pl.DataFrame) -> bool:
    polars.testing.assert_frame_equal(frame, expected)
    return True


@pytest.mark.parametrize(
    "frame",
    [
        wide(3, 0),
        pl.DataFrame({"a": [None, None], "b": pl.Series([None, None], dtype=pl.Utf8)}),
        pl.DataFrame(
            {
                "c": pl.Series([None] * 9, dtype=pl.Categorical),
                "l": pl.Series([None] * 9, dtype=pl.List(pl.Int8)),
            }
        ),
    ],
    ids=["no rows", "all null", "null categories"],
)
def test_frames_of_nothing(two_servers: Session, frame: pl.DataFrame) -> None:
    box = Box(frame)
    for server in (0, 1):
        assert drust.spawn(same_as, box.borrow(), frame, server=server).join()
    drust.spawn(leave_alone, box.borrow_mut(), server=1).join()
    with box.borrow() as back:
        polars.testing.assert_frame_equal(back, frame)
    del back
    frames.append(box, frame)
    with box.borrow() as back:
        polars.testing.assert_frame_equal(back, pl.concat([frame, frame]))


def test_a_column_without_rows_is_empty_arrays(one_server: Session) -> None:
    box = Box(wide(1, 0))
    with box.column_mut("c0") as (values, mask):
        assert (values.shape, values.dtype, mask.shape) == ((0,), np.int64, (0,))
    frames.append(box, wide(1, 3))
    with box.column_mut("c0") as (values, mask):
        assert values.tolist() == [0, 1, 2]


def test_ten_thousand_columns(two_servers: Session, counting: type[Counters]) -> None:
    frame = wide(10_000, 10)
    box = Box(frame)
    began = time.perf_counter()
    counters = counting(two_servers)
    assert read_on(box, 1) == 45
    assert counters.since()["read_requests"] == 1 + -(-10_000 // 256)
    with box.column_mut("c5000") as (values, _):
        values += 1
    counters = counting(two_servers)
    assert read_on(box, 1) == 45
    assert counters.since()["read_requests"] == 2
    with box.borrow() as back:
        polars.testing.assert_frame_equal(back, frame.with_columns(pl.col("c5000") + 1))
    assert time.perf_counter() - began < 30


# -- deaths ------------------------------------------------------------------------------------------------


def corrects_and_dies(column: tuple[Any, Any]) -> None:
    values, mask = column
    values[:] = -1
    mask[:] = False
    os.kill(os.getpid(), signal.SIGKILL)


def changes_and_dies(frame: RefMut[pl.DataFrame]) -> None:
    frame.replace_column(0, frame["c0"] * 2)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("server", [0, 1])
def test_a_task_that_dies_while_it_corrects_a_column_leaves_the_frame_as_it_was(
    two_servers: Session, server: int
) -> None:
    box = Box(wide())
    before = pointers(box)
    with pytest.raises(WorkerLostError):
        drust.spawn(corrects_and_dies, box.column_mut("c0"), server=server).join()
    assert pointers(box) == before
    with box.borrow() as frame:
        polars.testing.assert_frame_equal(frame, wide())
    del frame
    with box.column_mut("c0") as (values, _):
        values[0] = 5


@pytest.mark.parametrize("server", [0, 1])
def test_a_task_that_dies_with_a_frame_leaves_it_as_it_was(two_servers: Session, server: int) -> None:
    box = Box(wide())
    with pytest.raises(WorkerLostError):
        drust.spawn(changes_and_dies, box.borrow_mut(), server=server).join()
    with box.borrow() as frame:
        polars.testing.assert_frame_equal(frame, wide())


def test_a_task_that_dies_while_it_writes_a_large_column_in_place_poisons_the_frame(
    one_server: Session,
) -> None:
    box = Box(wide(2, 200_000))
    with pytest.raises(WorkerLostError, match="poisoned"):
        drust.spawn(corrects_and_dies, box.column_mut("c0")).join()
    with pytest.raises(drust.errors.PoisonedError), box.borrow():
        pass
    box.replace(wide(2, 3))
    with box.borrow() as frame:
        assert frame.height == 3
