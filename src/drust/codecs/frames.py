"""polars frames and series: their Arrow buffers in one IPC stream, as arrow.py writes it.

polars keeps strings as Arrow string views; asking for the newest level of compatibility hands them over as
they are, and everything comes back without a copy. What Arrow cannot hold (columns of Python objects) goes to
pickle. Importing this module imports polars and pyarrow.
"""

from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa

from drust.codecs.arrow import stream_of, table_in
from drust.codecs.base import POLARS, Encoded, PinLike
from drust.codecs.registry import install

_FRAME = b"d"
_SERIES = b"s"


class PolarsCodec:
    """`polars.DataFrame` and `polars.Series`."""

    number = POLARS
    name = "polars"

    def encode(self, value: Any, /) -> Encoded | None:
        """Copies nothing that Arrow and polars keep alike (all but categories)."""
        frame = value.to_frame() if isinstance(value, pl.Series) else value
        if frame.width == 0 or pl.Object in {dtype.base_type() for dtype in frame.dtypes}:
            return None
        try:
            table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
            stream = stream_of(table)
        except (pl.exceptions.PolarsError, pa.ArrowException, NotImplementedError):
            return None
        return Encoded(POLARS, _SERIES if frame is not value else _FRAME, [stream])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> Any:
        """A frame over the block's memory; its in-place methods change the frame, never the block."""
        table = table_in(pin)
        frame: Any = pl.from_arrow(table, rechunk=False)
        if frame.columns != table.column_names:  # polars names a column without a name
            frame.columns = table.column_names
        return frame.to_series(0) if pin.meta == _SERIES else frame


install(PolarsCodec(), pl.DataFrame, pl.Series)
