"""pyarrow and polars: everything Arrow can hold comes back, and the columns lie in the block."""

import datetime
import decimal
import gc
import weakref
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from drust.codecs import ARROW, PICKLE, POLARS, is_in_place
from drust.errors import UnpicklableError
from fake_pin import opened, pinned, round_trip

FRAME = pl.DataFrame(
    {
        "i": [1, None, 3],
        "f": [0.5, float("nan"), None],
        "s": ["short", None, "a string longer than twelve bytes"],
        "b": [True, None, False],
        "d": [datetime.date(2020, 1, 1), None, None],
        "t": [datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC), None, None],
        "x": [b"ab", None, b""],
        "l": [[1, 2], [], None],
        "r": [{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}],
        "n": [None, None, None],
        "m": [decimal.Decimal("1.25"), None, decimal.Decimal("-3.50")],
        "y": [datetime.timedelta(seconds=1), None, None],
        "w": [datetime.time(1, 2, 3), None, None],
    }
).with_columns(
    pl.Series("c", ["u", "v", "u"], pl.Categorical),
    pl.Series("e", ["u", None, "v"], pl.Enum(["u", "v"])),
    pl.Series("a", [[1, 2], [3, 4], None], pl.Array(pl.Int8, 2)),
    pl.Series("u8", [1, 2, 3], pl.UInt8),
)


def buffers(column: Any) -> list[int]:
    return [
        buffer.address
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer is not None and buffer.size
    ]


def test_a_frame_of_every_kind_of_column_comes_back() -> None:
    pin = pinned(FRAME)
    assert pin.codec == POLARS
    back = opened(pin)
    assert type(back) is pl.DataFrame
    assert back.schema == FRAME.schema
    assert back.equals(FRAME)


@pytest.mark.parametrize("name", FRAME.columns)
def test_a_series_comes_back_with_its_name(name: str) -> None:
    pin = pinned(FRAME[name])
    assert pin.codec == POLARS
    back = opened(pin)
    assert type(back) is pl.Series
    assert (back.name, back.dtype) == (name, FRAME[name].dtype)
    assert back.equals(FRAME[name], null_equal=True)


@pytest.mark.parametrize(
    "frame",
    [
        FRAME.clear(),
        FRAME[1:2],
        FRAME[::-1],
        pl.concat([FRAME, FRAME], rechunk=False),
        pl.DataFrame(),
        pl.DataFrame({"": [1]}),
    ],
    ids=["empty", "slice", "reversed", "chunks", "no columns", "no name"],
)
def test_shapes_and_chunks_of_frames(frame: pl.DataFrame) -> None:
    back = round_trip(frame)
    assert back.schema == frame.schema
    assert back.equals(frame)


def test_polars_columns_lie_in_the_block() -> None:
    frame = pl.DataFrame(
        {"i": range(10_000), "f": [0.5] * 10_000, "s": [f"number {i} of many" for i in range(10_000)]}
    )
    pin = pinned(frame)
    back = opened(pin)
    for name in ("i", "f"):
        assert pin.contains(back[name].to_numpy(allow_copy=False).ctypes.data), name
    table = back.to_arrow(compat_level=pl.CompatLevel.newest())
    assert table.schema.field("s").type == pa.string_view()
    assert all(pin.contains(address) for name in ("i", "f", "s") for address in buffers(table[name]))


def test_chunks_stay_apart_and_in_the_block() -> None:
    part = pl.DataFrame({"i": range(1000)})
    pin = pinned(pl.concat([part, part], rechunk=False))
    back = opened(pin)
    assert back.n_chunks() == 2
    assert all(pin.contains(address) for address in buffers(back.to_arrow()["i"]))


def test_a_column_keeps_the_block_and_dropping_it_lets_go() -> None:
    pin = pinned(pl.DataFrame({"i": range(1000)}))
    watch = weakref.ref(pin.tied[0])
    column = opened(pin)["i"].slice(5, 10)
    del pin
    gc.collect()
    assert watch() is not None
    assert column.to_list() == list(range(5, 15))
    del column
    gc.collect()
    assert watch() is None


def test_changing_a_frame_changes_a_copy_and_never_the_block() -> None:
    pin = pinned(pl.DataFrame({"i": [1, 2, 3]}))
    frame = opened(pin, writable=True)
    frame[0, "i"] = 99
    assert opened(pin)["i"].to_list() == [1, 2, 3]
    assert round_trip(frame)["i"].to_list() == [99, 2, 3]
    assert not is_in_place(POLARS)
    assert not is_in_place(ARROW)


class Thing:
    pass


def test_columns_of_python_objects_are_not_for_arrow() -> None:
    with pytest.raises(UnpicklableError):
        pinned(pl.DataFrame({"o": pl.Series([Thing()], dtype=pl.Object)}))


def test_lazy_frames_and_subclasses_go_to_pickle() -> None:
    class Mine(pl.DataFrame):
        pass

    assert pinned(FRAME.lazy()).codec == PICKLE
    assert pinned(Mine({"a": [1]})).codec == PICKLE


@pytest.mark.parametrize(
    "value",
    [
        pa.table({"a": [1, None], "b": ["x", "y"]}),
        pa.table({"a": [1]}).replace_schema_metadata({"who": "me"}),
        pa.table({"a": pa.chunked_array([[1], [2, 3], []])}),
        pa.table({}),
        pa.table({"a": pa.array([], pa.int8())}),
        pa.record_batch({"a": [1, 2]}),
        pa.record_batch({"a": pa.array([], pa.string())}),
        pa.array([1, None, 3]),
        pa.array([], pa.float32()),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([[1], None, [2, 3]]),
        pa.array([None, None]),
        pa.array([1, 2, 3, 4])[1:3],
        pa.chunked_array([[1], [2, 3]]),
        pa.chunked_array([], pa.int64()),
    ],
    ids=lambda value: f"{type(value).__name__}-{len(value)}",
)
def test_arrow_values_come_back(value: Any) -> None:
    pin = pinned(value)
    assert pin.codec == ARROW
    back = opened(pin)
    assert type(back) is type(value)
    assert back.equals(value)
    back.validate(full=True)
    if isinstance(value, pa.Table | pa.RecordBatch):
        assert back.schema.equals(value.schema, check_metadata=True)


def test_chunks_of_arrow_values_are_kept() -> None:
    assert round_trip(pa.chunked_array([[1], [2, 3]])).num_chunks == 2


def test_arrow_buffers_lie_in_the_block_and_are_read_only() -> None:
    pin = pinned(pa.array(range(10_000)))
    back = opened(pin, writable=True)
    assert all(pin.contains(buffer.address) and not buffer.is_mutable for buffer in back.buffers() if buffer)


def test_other_pyarrow_objects_go_to_pickle() -> None:
    assert pinned(pa.schema([("a", pa.int8())])).codec == PICKLE
    assert round_trip(pa.scalar(5)).as_py() == 5


def test_only_the_slice_of_a_large_array_is_written() -> None:
    assert pinned(pa.array(range(100_000))[10:20]).nbytes < 2000
