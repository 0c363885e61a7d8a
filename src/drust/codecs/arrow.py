"""pyarrow values: one Arrow IPC stream in the block, written there directly and read back as views of it.

The stream has the schema in it, so the metadata is one letter that says what kind of value it was. Arrow data
is immutable: a mutable borrow replaces it. Importing this module imports pyarrow.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from drust.codecs.base import ARROW, Deferred, Encoded, PinLike, borrowed
from drust.codecs.registry import install

_TABLE = b"t"
_BATCH = b"b"
_ARRAY = b"a"
_CHUNKED = b"c"
_COLUMN = "0"


def stream_of(table: Any) -> Deferred:
    """The IPC stream of a table or record batch, to be written. Its size is found without writing it."""

    def write(sink: Any) -> None:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write(table)

    sizes = pa.MockOutputStream()
    write(sizes)

    def fill(target: Any) -> None:
        with pa.FixedSizeBufferWriter(pa.py_buffer(target)) as sink:
            write(sink)

    return Deferred(sizes.size(), fill)


def table_in(pin: PinLike) -> Any:
    """The table in buffer 0 of a block; its columns are views that hold the pin. Always read-only."""
    with pa.ipc.open_stream(pa.py_buffer(borrowed(pin, 0, writable=False))) as reader:
        return reader.read_all()


class ArrowCodec:
    """Tables, record batches, arrays and chunked arrays."""

    number = ARROW
    name = "arrow"

    def encode(self, value: Any, /) -> Encoded:
        """Copies nothing. Chunks are kept, of a slice only the slice is written."""
        if isinstance(value, pa.Table):
            return Encoded(ARROW, _TABLE, [stream_of(value)])
        if isinstance(value, pa.RecordBatch):
            return Encoded(ARROW, _BATCH, [stream_of(value)])
        if isinstance(value, pa.ChunkedArray):
            return Encoded(ARROW, _CHUNKED, [stream_of(pa.table([value], names=[_COLUMN]))])
        return Encoded(ARROW, _ARRAY, [stream_of(pa.record_batch([value], names=[_COLUMN]))])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> Any:
        """Views of the block."""
        table = table_in(pin)
        if pin.meta == _TABLE:
            return table
        if pin.meta == _CHUNKED:
            return table.column(0)
        batches = table.to_batches()
        batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
        return batch if pin.meta == _BATCH else batch.column(0)


_codec = ArrowCodec()
install(_codec, pa.Table, pa.RecordBatch, pa.ChunkedArray)
install(_codec, pa.Array, subclasses=True)
