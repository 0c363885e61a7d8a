"""polars frames and series: Arrow tables and arrays, as arrow.py lays them out.

polars keeps strings as Arrow string views; asking for the newest level of compatibility hands them over as
they are, and everything comes back without a copy, but for categories. What Arrow cannot hold (columns of
Python objects) goes to pickle. Importing this module imports polars and pyarrow.
"""

from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa

from drust.codecs.arrow import encode_batches, encode_column, is_frame, open_arrays, open_table
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
            return from_arrow(open_table(pin, child)[1])
        _, field, arrays = open_arrays(pin)
        table = pa.table([pa.chunked_array(arrays, field.type)], schema=pa.schema([field]))
        return from_arrow(table).to_series(0)


install(PolarsCodec(), pl.DataFrame, pl.Series)
