"""polars frames and series: Arrow tables and arrays, as arrow.py lays them out.

polars keeps strings as Arrow string views; asking for the newest level of compatibility hands them over as
they are, and everything comes back without a copy, but for categories. What Arrow cannot hold (columns of
Python objects) goes to pickle. Importing this module imports polars and pyarrow.

A wide frame is opened a column at a time, so each step of that counts. Columns go from their blocks to polars
by Arrow's C data interface, one call each; for categories, and what has no layout of its own, pyarrow is in
between. polars' own constructors take such a column too, but spend four times as long around that
call as in it, so their inner parts are called where this polars has them, and `pl.from_arrow` where not.
Rejected: one Arrow stream for the whole frame (as fast, but polars then keeps all columns for each of them).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from drust.codecs import columns
from drust.codecs.arrow import (
    DecodedSchema,
    decode_schema,
    encode_batches,
    encode_column,
    is_frame,
    open_arrays,
    open_table,
    read_layout,
)
from drust.codecs.base import POLARS, Encoded, PinLike
from drust.codecs.registry import install

FRAME = "d"
_SERIES = "s"


def to_arrow(frame: pl.DataFrame) -> Any:
    """The table over the frame's memory, or None if Arrow cannot hold it."""
    if frame.width == 0 or pl.Object in {dtype.base_type() for dtype in frame.dtypes}:
        return None
    try:
        return frame.to_arrow(compat_level=pl.CompatLevel.newest())
    except (pl.exceptions.PolarsError, pa.ArrowException, NotImplementedError):
        return None


def from_arrow(table: Any) -> pl.DataFrame:
    """The frame over a table's memory, chunks as they are."""
    anything: Any = pl.from_arrow(table, rechunk=False)  # polars' type does not say which of its two
    frame: pl.DataFrame = anything
    if frame.columns != table.column_names:  # polars names a column without a name
        frame.columns = table.column_names
    return frame


class _Inner(NamedTuple):
    """What polars' constructors call in the end."""

    series: Callable[[Any], Any]  # of anything with __arrow_c_array__
    frame: Callable[[list[Any]], Any]
    wrapped: Callable[[Any], pl.DataFrame]


def _find_inner() -> _Inner | None:
    """None if this polars names them otherwise."""
    try:
        series: Any = type(pl.Series()._s)
        return _Inner(series.from_arrow_c_array, type(pl.DataFrame()._df), pl.DataFrame._from_pydf)
    except AttributeError:
        return None


_inner = _find_inner()


def open_frame(pin: PinLike, child: Callable[[int], Any]) -> pl.DataFrame:
    """The frame over the blocks of its columns; no copy, but for categories."""
    layout = read_layout(pin.meta)
    schema = decode_schema(layout.schema)
    # pl.concat makes two chunks of each that holds nothing but nulls.
    is_doubled = len(layout.lengths) > 1 and pa.null() in schema.types
    if _inner is None or not layout.lengths or is_doubled:
        return from_arrow(open_table(pin, child)[1])
    width = len(schema.types)
    groups = [
        _open_group(_inner, schema, length, [child(group * width + i) for i in range(width)])
        for group, length in enumerate(layout.lengths)
    ]
    return groups[0] if len(groups) == 1 else pl.concat(groups, rechunk=False)


def _open_group(inner: _Inner, schema: DecodedSchema, length: int, pins: list[Any]) -> pl.DataFrame:
    flat = columns.flat_rows(length)
    pairs = zip(pins, schema.capsules, strict=True)
    exports = [columns.export(pin, field, flat) for pin, field in pairs]
    series = [column if column is None else inner.series(column) for column in exports]
    others = [place for place, column in enumerate(exports) if column is None]
    if others:
        arrays = [columns.open_column(pins[place], schema.types[place]) for place in others]
        fields = pa.schema([schema.schema.field(place) for place in others])
        opened = from_arrow(pa.Table.from_arrays(arrays, schema=fields))
        for place, one in zip(others, opened.get_columns(), strict=True):
            series[place] = one._s
    return inner.wrapped(inner.frame(series))


class PolarsCodec:
    """`polars.DataFrame` and `polars.Series`."""

    number = POLARS
    name = "polars"

    def encode(self, value: Any, /) -> Encoded | None:
        """Copies nothing that Arrow and polars keep alike (all but categories)."""
        is_series = isinstance(value, pl.Series)
        table = to_arrow(value.to_frame() if is_series else value)
        if table is None:
            return None
        if is_series:
            return encode_column(POLARS, _SERIES, table.schema.field(0), table.column(0).chunks)
        return encode_batches(POLARS, FRAME, table.schema, table.to_batches())

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> Any:
        """A frame over the blocks' memory; its in-place methods change the frame, never a block."""
        if is_frame(pin.meta):
            return open_frame(pin, child)
        _, field, arrays = open_arrays(pin)
        table = pa.table([pa.chunked_array(arrays, field.type)], schema=pa.schema([field]))
        return from_arrow(table).to_series(0)


install(PolarsCodec(), pl.DataFrame, pl.Series)
