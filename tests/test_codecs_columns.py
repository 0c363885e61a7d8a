"""Columns as blocks, of whatever Arrow and polars can make: types, nulls, chunks, slices, nesting."""

import datetime
import decimal
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing.parametric import dataframes

from drust.codecs import ARROW, POLARS, encode
from drust.codecs.columns import FLAT_VALIDITY, Column, key_of, numpy_dtype
from fake_pin import opened, pinned, round_trip

EARLIEST = datetime.datetime(1700, 1, 1)  # noqa: DTZ001 - hypothesis adds the zone
LATEST = datetime.datetime(2200, 1, 1)  # noqa: DTZ001

SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    pa.null(): st.none(),
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.string(): st.text(max_size=20),
    pa.large_string(): st.text(max_size=20),
    pa.string_view(): st.text(max_size=20),
    pa.binary(): st.binary(max_size=20),
    pa.binary_view(): st.binary(max_size=20),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.date32(): st.dates(),
    pa.timestamp("us", "UTC"): st.datetimes(EARLIEST, LATEST, timezones=st.just(datetime.UTC)),
    pa.time64("us"): st.times(),
    pa.duration("ms"): st.integers(0, 10**6).map(lambda n: datetime.timedelta(milliseconds=n)),
    pa.decimal128(10, 2): st.integers(-(10**6), 10**6).map(lambda n: decimal.Decimal(n).scaleb(-2)),
}


def nested(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Types with one of `below` inside."""
    return st.one_of(
        below.map(pa.list_),
        below.map(pa.large_list),
        below.map(lambda kind: pa.list_(kind, 2)),
        st.tuples(below, below).map(lambda pair: pa.struct([("a", pair[0]), ("b", pair[1])])),
        below.map(lambda kind: pa.map_(pa.int8(), kind)),
    )


TYPES = st.recursive(st.sampled_from(list(SCALARS)), nested, max_leaves=4)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an Arrow type, None among them."""
    if kind in SCALARS:
        return st.none() | SCALARS[kind]
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    if pa.types.is_map(kind):
        pairs = st.tuples(st.integers(-128, 127), values_of(kind.item_type))
        return st.none() | st.lists(pairs, max_size=3, unique_by=lambda pair: pair[0])
    inner = values_of(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return st.none() | st.lists(inner, min_size=kind.list_size, max_size=kind.list_size)
    return st.none() | st.lists(inner, max_size=3)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """An Arrow array of any type, perhaps a slice of one."""
    kind = draw(TYPES)
    array = pa.array(draw(st.lists(values_of(kind), max_size=20)), kind)
    start = draw(st.integers(0, len(array)))
    return array.slice(start, draw(st.integers(0, len(array) - start)))


def same(left: Any, right: Any) -> bool:
    """Equal, where NaN is itself."""
    return str(left.to_pylist()) == str(right.to_pylist()) and left.type == right.type


@given(arrays())
@settings(max_examples=100, deadline=None)
def test_any_array_comes_back_alone_and_as_a_column(array: Any) -> None:
    back = round_trip(array)
    back.validate(full=True)
    assert same(back, array)
    table = pa.table({"x": array, "y": array})
    columns = round_trip(table)
    columns.validate(full=True)
    assert same(columns["x"], table["x"])
    assert same(columns["y"], table["y"])


@given(st.lists(arrays(), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_chunks_come_back_as_they_were_cut(chunks: list[Any]) -> None:
    kind = chunks[0].type
    chunked = pa.chunked_array([chunk for chunk in chunks if chunk.type == kind], kind)
    back = round_trip(chunked)
    assert [len(chunk) for chunk in back.chunks] == [len(chunk) for chunk in chunked.chunks]
    assert same(back, chunked)


@given(
    dataframes(
        max_cols=6,
        max_size=20,
        chunked=None,
        excluded_dtypes=[pl.Object],
        allow_null=True,
    )
)
@settings(max_examples=50, deadline=None)
def test_any_polars_frame_comes_back(frame: pl.DataFrame) -> None:
    back = round_trip(frame)
    assert back.schema == frame.schema
    polars.testing.assert_frame_equal(back, frame)


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", None, "b", "a"]).dictionary_encode(),
        pa.array(["a", None, "b", "a"]).dictionary_encode().slice(1, 2),
        pa.array([[1], None, [2, 3]], pa.list_view(pa.int8())),
        pa.array([1, 1, 2]).cast(pa.int32()),
        pa.RunEndEncodedArray.from_arrays([2, 3], ["x", "y"]),
        pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]),
        pa.ExtensionArray.from_storage(pa.json_(pa.utf8()), pa.array(["{}", None])),
    ],
    ids=lambda array: str(array.type)[:30],
)
def test_types_beyond_plain_ones(array: Any) -> None:
    back = round_trip(pa.table({"x": array}))["x"].chunk(0)
    back.validate(full=True)
    assert back.equals(array)
    assert back.type == array.type


def test_a_flat_column_has_room_for_nulls_and_decodes_without_them() -> None:
    pin = pinned(pa.table({"x": pa.array(range(100))}))
    assert pin.tied[0].raw()[FLAT_VALIDITY] == b"\xff" * 13
    assert opened(pin)["x"].chunk(0).buffers()[0] is None


def test_of_a_slice_of_long_strings_only_the_slice_is_written() -> None:
    frame = pl.DataFrame({"s": [f"a string longer than twelve bytes {i}" for i in range(20_000)]})
    whole = sum(column.nbytes for column in pinned(frame).tied)
    part = pinned(frame[:100])
    assert sum(column.nbytes for column in part.tied) < whole / 50
    assert opened(part).equals(frame[:100])


def test_an_encoded_frame_copies_no_buffer() -> None:
    array = pa.array(np.arange(1000))
    encoded = encode(pa.table({"x": array}))
    assert encoded.codec == ARROW
    column = encoded.children[0][0].encode()
    assert np.frombuffer(column.buffers[2], np.int64).ctypes.data == array.buffers()[1].address


def test_the_memory_of_a_column_is_recognised_through_polars() -> None:
    frame = pl.DataFrame({"i": range(100), "s": ["x" * 20] * 100})
    first = [child.key for child, _ in encode(frame).children]
    kept = frame.with_columns(pl.col("i") + 1)
    second = [child.key for child, _ in encode(kept).children]
    assert encode(frame).codec == POLARS
    assert first[1] == second[1]
    assert first[0] != second[0]
    assert key_of(pa.array([1, 2])) != key_of(pa.array([1, 2]))


def test_only_columns_of_fixed_size_have_a_numpy_type() -> None:
    assert numpy_dtype(pa.int16()) == np.int16
    assert numpy_dtype(pa.timestamp("ns", "UTC")) == np.dtype("<M8[ns]")
    for kind in (pa.string(), pa.list_(pa.int8()), pa.decimal128(5, 2), pa.null(), pa.binary(4)):
        assert numpy_dtype(kind) is None


def test_categories_are_compared_by_value() -> None:
    frame = pl.DataFrame({"c": pl.Series(["u", "v", "u"], dtype=pl.Categorical)})
    pin = pinned(frame)
    (column,) = [child for child, _ in encode(frame).children]
    assert column.equals(pin.tied[0])
    other = pl.DataFrame({"c": pl.Series(["u", "v", "v"], dtype=pl.Categorical)})
    (changed,) = [child for child, _ in encode(other).children]
    assert not changed.equals(pin.tied[0])
    assert not Column((pa.array([1]),)).equals(pin.tied[0])
