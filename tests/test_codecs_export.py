"""Columns that go from native blocks to polars by Arrow's C data interface: as if through pyarrow."""

import gc
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pyarrow as pa
import pytest
from hypothesis import given, settings
from polars.testing.parametric import dataframes

from drust import _core
from drust.codecs import Encoded, base, columns, encode
from drust.codecs import frames as codec
from drust.codecs.arrow import decode_schema, open_table, read_layout
from test_codecs_columns import arrays, same
from test_codecs_frames import FRAME

EVERY_FLAT = {
    "b": pl.Boolean, "i1": pl.Int8, "i2": pl.Int16, "i4": pl.Int32, "i8": pl.Int64,
    "u1": pl.UInt8, "u2": pl.UInt16, "u4": pl.UInt32, "u8": pl.UInt64, "f4": pl.Float32, "f8": pl.Float64,
    "date": pl.Date, "time": pl.Time, "ms": pl.Datetime("ms"), "us": pl.Datetime("us", "Europe/Vienna"),
    "ns": pl.Datetime("ns"), "d_ms": pl.Duration("ms"), "d_us": pl.Duration("us"), "d_ns": pl.Duration("ns"),
}  # fmt: skip


class NativeDraft:
    """A block outside of any heap, as the registry fills one."""

    def __init__(self, pin: _core.Pin) -> None:
        self.pin = pin
        self._writable = pin.as_writable()

    def buffer(self, index: int) -> memoryview:
        return memoryview(self._writable.buffer(index))

    def copy_in(self, index: int, data: Any) -> None:
        self.buffer(index)[:] = memoryview(data).cast("B")

    def publish(self) -> _core.Pin:
        return self.pin


class Parent:
    """A frame's parent as its codec sees it; the columns are native blocks."""

    writable = False
    buffer_count = 0

    def __init__(self, value: Any) -> None:
        encoded = encode(value)
        self.codec = encoded.codec
        self.meta = encoded.meta
        self.parts: Sequence[_core.Pin] = [native(child.encode()) for child, _ in encoded.children]
        self.children = [(0, 0, 0, base.TIED)] * len(self.parts)

    def buffer(self, index: int, /) -> bytes:
        raise AssertionError(f"a parent has no buffer {index}")


def native(encoded: Encoded) -> _core.Pin:
    sizes = [base.part_bytes(part) for part in encoded.buffers]
    draft = NativeDraft(_core.Pin.private(encoded.codec, encoded.meta, sizes))
    for index, part in enumerate(encoded.buffers):
        base.fill(draft, index, part)
    return draft.publish()


def holders(parent: Parent) -> list[int]:
    """Who holds each column's block, the parent aside."""
    return [part.references - 1 for part in parent.parts]


def opened(parent: Parent) -> pl.DataFrame:
    return codec.open_frame(parent, parent.parts.__getitem__)


def through_pyarrow(parent: Parent) -> pl.DataFrame:
    return codec.from_arrow(open_table(parent, parent.parts.__getitem__)[1])


def exported(parent: Parent) -> list[str]:
    """The names of the columns that need no pyarrow."""
    layout = read_layout(parent.meta)
    schema = decode_schema(layout.schema)
    flat = columns.flat_rows(layout.lengths[0])
    found = [
        columns.export(pin, field, flat) for pin, field in zip(parent.parts, schema.capsules, strict=True)
    ]
    return [name for name, column in zip(schema.schema.names, found, strict=True) if column is not None]


def values_of(dtype: Any, rows: int, nulls: str) -> pl.Series:
    known = {"none": [True] * rows, "some": [i % 3 != 0 for i in range(rows)], "all": [False] * rows}[nulls]
    numbers = pl.Series("x", [i % 100 if good else None for i, good in enumerate(known)], pl.Int64)
    return numbers.cast(dtype)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("nulls", ["none", "some", "all"])
def test_every_flat_kind_is_exported_as_pyarrow_would_open_it(rows: int, nulls: str) -> None:
    frame = pl.DataFrame({name: values_of(dtype, rows, nulls) for name, dtype in EVERY_FLAT.items()})
    parent = Parent(frame)
    if rows:  # else it has no row group
        assert exported(parent) == frame.columns
    back = opened(parent)
    assert back.schema == frame.schema
    polars.testing.assert_frame_equal(back, frame)
    polars.testing.assert_frame_equal(back, through_pyarrow(parent))
    assert back.null_count().equals(frame.null_count())


def test_columns_of_every_kind_but_categories_are_exported() -> None:
    parent = Parent(FRAME)
    assert set(FRAME.columns) - set(exported(parent)) == {"c", "e"}
    back = opened(parent)
    assert back.schema == FRAME.schema
    assert back.equals(FRAME)


@given(dataframes(max_cols=6, max_size=20, chunked=None, excluded_dtypes=[pl.Object], allow_null=True))
@settings(max_examples=50, deadline=None)
def test_any_frame_is_the_one_that_pyarrow_would_open(frame: pl.DataFrame) -> None:
    if encode(frame).codec != base.POLARS:
        return  # pickled: it has no columns, or integers of 128 bits
    parent = Parent(frame)
    back = opened(parent)
    assert back.schema == frame.schema
    polars.testing.assert_frame_equal(back, frame)
    polars.testing.assert_frame_equal(back, through_pyarrow(parent))


@pytest.mark.parametrize("names", [["i", "s", "l", "r", "a", "m"], ["n"], ["c"]], ids=str)
def test_row_groups_stay_the_chunks_they_were(names: list[str]) -> None:
    part = FRAME.select(names)
    table = pa.concat_tables([codec.to_arrow(one) for one in (part, part.reverse(), part)])
    parent = Parent(table)
    assert read_layout(parent.meta).lengths == [3, 3, 3]
    back = opened(parent)
    assert back.equals(pl.concat([part, part.reverse(), part]))
    assert [series.n_chunks() for series in back.get_columns()] == [
        series.n_chunks() for series in through_pyarrow(parent).get_columns()
    ]


@given(arrays(), arrays())
@settings(max_examples=100, deadline=None)
def test_any_arrow_table_comes_back_from_native_blocks(left: Any, right: Any) -> None:
    rows = min(len(left), len(right))
    table = pa.table({"l": left.slice(0, rows), "r": right.slice(len(right) - rows), "": left.slice(0, rows)})
    parent = Parent(table)
    back = open_table(parent, parent.parts.__getitem__)[1]
    back.validate(full=True)
    assert back.schema.equals(table.schema, check_metadata=True)
    for place in range(3):
        assert same(back.column(place), table.column(place))


def test_long_strings_of_several_buffers_are_shared_not_copied() -> None:
    halves = [pl.DataFrame({"s": [f"{half} {i} " + "long" * 2000 for i in range(200)]}) for half in "ab"]
    frame = pl.concat(halves, rechunk=True)
    parent = Parent(frame)
    assert parent.parts[0].buffer_count > 3, "views and more than one buffer of data"
    back = opened(parent)
    assert back.equals(frame)
    part = parent.parts[0]
    theirs = {np.frombuffer(part.buffer(i), np.uint8).ctypes.data for i in range(part.buffer_count)}
    array = back.to_arrow(compat_level=pl.CompatLevel.newest())["s"].chunk(0)
    ours = {buffer.address for buffer in array.buffers() if buffer is not None}
    assert ours <= theirs


def test_each_column_holds_its_own_block_and_no_other() -> None:
    parent = Parent(pl.DataFrame({"a": [1, 2], "s": ["x" * 20, None], "b": [True, None]}))
    assert holders(parent) == [0, 0, 0]
    frame = opened(parent)
    assert holders(parent) == [1, 1, 1]
    kept = frame["s"]
    del frame
    gc.collect()
    assert holders(parent) == [0, 1, 0]
    assert kept.to_list() == ["x" * 20, None]
    del kept
    assert holders(parent) == [0, 0, 0]


def test_another_thread_may_let_go_of_a_column() -> None:
    parent = Parent(pl.DataFrame({"a": np.arange(1000)}))
    kept = [opened(parent)["a"]]
    assert holders(parent) == [1]
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert holders(parent) == [0]


def test_pyarrow_takes_an_exported_column_too_and_lets_go_of_it() -> None:
    parent = Parent(pl.DataFrame({"a": [1, None, 3], "s": ["x" * 20, None, "y"]}))
    fields = decode_schema(read_layout(parent.meta).schema).capsules
    for place, field in enumerate(fields):
        column = columns.export(parent.parts[place], field, columns.flat_rows(3))
        array = pa.array(column)
        array.validate(full=True)
        assert pa.array(column).equals(array), "it can be exported twice"
        assert array.null_count == 1
        assert holders(parent)[place] == 1
        del column, array
    assert holders(parent) == [0, 0]


def test_a_capsule_nobody_imported_is_released() -> None:
    parent = Parent(pl.DataFrame({"a": [1]}))
    (field,) = decode_schema(read_layout(parent.meta).schema).capsules
    column = columns.export(parent.parts[0], field, columns.flat_rows(1))
    capsules = column.__arrow_c_array__(requested_schema=None)
    del column
    assert holders(parent) == [1]
    del capsules
    assert holders(parent) == [0]


NUMBERS = pa.array(range(8))
STRINGS = pa.array(["ab"] * 8)
LISTS = pa.array([[1, 2]] * 8)
PAIRS = pa.array([[1, 2]] * 8, pa.list_(pa.int64(), 2))
RECORDS = pa.array([{"a": 1}] * 8)
VIEWS = pa.array(["x" * 20] * 8, pa.string_view())
INNER = (16, 0, (-1, 1), ())
CHILD = (8, 0, (-1, 0), ())


@pytest.mark.parametrize(
    ("array", "node", "message"),
    [
        (NUMBERS, (9, -2, (1, 2), ()), "values are missing"),
        (NUMBERS, (8, 9, (1, 2), ()), "more nulls"),
        (NUMBERS, (8, -3, (1, 2), ()), "more nulls"),
        (NUMBERS, (8, 1, (-1, 2), ()), "validity bits"),
        (NUMBERS, (8, 0, (1, 3), ()), "no such buffer"),
        (NUMBERS, (8, 0, (1, -1), ()), "no such buffer"),
        (NUMBERS, (8, 0, (1,), ()), "other buffers"),
        (NUMBERS, (8, 0, (1, 2, 2), ()), "other buffers"),
        (NUMBERS, (8, 0, (1, 2), (CHILD,)), "other children"),
        (NUMBERS, (-1, 0, (1, 2), ()), "no fewer than no rows"),
        (NUMBERS, (8, 0, "12", ()), "a node is"),
        (NUMBERS, (8, 0, (1, 2)), "a node is"),
        (STRINGS, (9, 0, (-1, 0, 1), ()), "values are missing"),
        (STRINGS, (8, 0, (-1, 0, 0), ()), None),  # 36 bytes of offsets are data enough for 16
        (STRINGS, (8, 0, (-1, 1, 0), ()), "values are missing"),
        (VIEWS, (9, 0, (-1, 0, 1), ()), "values are missing"),
        (VIEWS, (8, 0, (-1,), ()), "other buffers"),
        (LISTS, (8, 0, (-1, 0), (INNER,)), None),
        (LISTS, (8, 0, (-1, 0), ((15, 0, (-1, 1), ()),)), "too few rows"),
        (LISTS, (8, 0, (-1, 0), ((17, 0, (-1, 1), ()),)), "values are missing"),
        (LISTS, (8, 0, (-1, 0), ()), "other children"),
        (PAIRS, (8, 0, (-1,), ((15, 0, (-1, 0), ()),)), "too few rows"),
        (RECORDS, (8, 0, (-1,), ((7, 0, (-1, 0), ()),)), "too few rows"),
        (RECORDS, (8, 0, (-1,), (CHILD,)), None),
    ],
)
def test_what_does_not_fit_its_block_is_refused(array: Any, node: Any, message: str | None) -> None:
    table = pa.table({"a": array})
    parent = Parent(table)
    (field,) = decode_schema(read_layout(parent.meta).schema).capsules
    if message is None:
        parent.parts[0].arrow_column(field, node)
        return
    with pytest.raises(ValueError, match=message):
        parent.parts[0].arrow_column(field, node)


def test_only_a_field_for_the_c_data_interface_and_of_a_known_layout_is_taken() -> None:
    part = Parent(pa.table({"a": NUMBERS})).parts[0]
    node = columns.flat_rows(8).node
    with pytest.raises(ValueError, match="Capsule"):
        part.arrow_column(object(), node)
    for kind in (pa.dictionary(pa.int64(), pa.string()), pa.run_end_encoded(pa.int16(), pa.int64())):
        with pytest.raises(ValueError, match="laid out otherwise"):
            part.arrow_column(pa.field("a", kind).__arrow_c_schema__(), node)


def test_an_offset_that_points_before_the_data_is_refused() -> None:
    part = native(Encoded(base.COLUMN, b"", [np.array([0, -1], np.int32), b"ab"]))
    with pytest.raises(ValueError, match="negative"):
        part.arrow_column(pa.field("a", pa.string()).__arrow_c_schema__(), (1, 0, (-1, 0, 1), ()))


def test_a_polars_without_these_inner_parts_opens_frames_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec, "_inner", None)
    back = opened(Parent(FRAME))
    assert back.schema == FRAME.schema
    assert back.equals(FRAME)


def test_this_polars_has_them() -> None:
    assert codec._inner is not None
