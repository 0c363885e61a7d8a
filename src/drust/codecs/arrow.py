"""pyarrow values: a table is a parent block with one tied block a column and row group.

The parent has no buffers: its metadata is what kind of value it was, the lengths of its row groups and the
Arrow schema; its children are the columns of the first row group, then those of the next (columns.py says how
a column lies). An array on its own is one block, with all its chunks in it. Arrow data is immutable: what is
borrowed is read-only; drust.frames writes columns in place. Importing this module imports pyarrow.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.ipc

from drust.codecs import columns
from drust.codecs.base import ARROW, COLUMN, TIED, Encoded, Part, PinLike, borrowed
from drust.codecs.columns import ArrowArray, ArrowType, Column
from drust.codecs.registry import install

Table: TypeAlias = Any
Schema: TypeAlias = Any

TABLE = "t"
BATCH = "b"
_ARRAY = "a"
_CHUNKED = "c"
_COLUMN = "0"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()
_MARK_FRAME, _MARK_COLUMN = 0, 1
_OFFSETS_MAX = 2**31 - 1
_SCHEMAS_KEPT = 16


class FrameLayout(msgspec.Struct, array_like=True, frozen=True):
    """The metadata of a parent block."""

    kind: str
    lengths: list[int]  # of the row groups
    schema: bytes  # Arrow IPC

    @property
    def arrow_schema(self) -> Schema:
        """Names and types of the columns."""
        return decode_schema(self.schema).schema


class DecodedSchema(NamedTuple):
    """Names and types of columns, in the forms that opening them asks for."""

    schema: Schema
    types: list[ArrowType]
    capsules: list[Any]
    """Each field for Arrow's C data interface; None where `Pin.arrow_column` has no layout for its type."""


@lru_cache(maxsize=_SCHEMAS_KEPT)
def decode_schema(serialized: bytes) -> DecodedSchema:
    """An Arrow schema in its IPC form. Kept: a program reads many frames of few schemas."""
    schema = pa.ipc.read_schema(pa.py_buffer(serialized))
    capsules = [field.__arrow_c_schema__() if columns.can_export(field) else None for field in schema]
    return DecodedSchema(schema, schema.types, capsules)


_frame_decoder = msgspec.msgpack.Decoder(tuple[int, FrameLayout])


def read_layout(meta: bytes) -> FrameLayout:
    """What a parent's metadata says."""
    return _frame_decoder.decode(meta)[1]


def write_layout(layout: FrameLayout) -> bytes:
    """The metadata of a parent."""
    return _encoder.encode((_MARK_FRAME, layout))


# -- tables ------------------------------------------------------------------------------------------------


def encode_batches(codec: int, kind: str, schema: Schema, batches: Sequence[Any]) -> Encoded:
    """The parent and its columns. Copies nothing."""
    layout = FrameLayout(kind, [batch.num_rows for batch in batches], schema.serialize().to_pybytes())
    children = [(Column((column,)), TIED) for batch in batches for column in batch.columns]
    return Encoded(codec, write_layout(layout), [], children)


def regroup(encoded: Encoded, kept: Sequence[int] = ()) -> Encoded:
    """Merges the chunks that a reader or a join happened to leave into one row group.

    Row groups are what appending makes: those of the version before (`kept`, their lengths) stay as they are,
    if the frame still begins with them. What is merged is joined a column at a time, when that is written.
    """
    layout = read_layout(encoded.meta)
    lengths = layout.lengths
    first = len(kept) if lengths[: len(kept)] == list(kept) else 0
    if len(lengths) - first < 2 or not encoded.children or _is_too_long(encoded, first):
        return encoded
    width = len(encoded.children) // len(lengths)
    loose = [child.chunks for child, _ in encoded.children[first * width :]]
    merged = [
        (Column(tuple(chunk for chunks in loose[place::width] for chunk in chunks)), TIED)
        for place in range(width)
    ]
    meta = write_layout(msgspec.structs.replace(layout, lengths=[*lengths[:first], sum(lengths[first:])]))
    return Encoded(encoded.codec, meta, [], [*encoded.children[: first * width], *merged])


def _is_too_long(encoded: Encoded, first: int) -> bool:
    """Whether strings with offsets of 4 bytes could have more data than those can tell."""
    total = sum(child.nbytes for child, _ in encoded.children)
    return total > _OFFSETS_MAX and any(
        columns.has_small_offsets(child.chunks[0].type) for child, _ in encoded.children
    )


def open_batches(parent: PinLike, child: Callable[[int], Any]) -> tuple[FrameLayout, Schema, list[Any]]:
    """The row groups over the blocks of their columns."""
    layout = read_layout(parent.meta)
    schema, types, capsules = decode_schema(layout.schema)
    width = len(types)
    batches = []
    for group, length in enumerate(layout.lengths):
        flat = columns.flat_rows(length)
        arrays = []
        for place, capsule in enumerate(capsules):
            pin = child(group * width + place)
            column = columns.export(pin, capsule, flat)
            arrays.append(_open_exported(column) if column else columns.open_column(pin, types[place]))
        if not arrays:  # a table can have rows and no columns
            batches.append(pa.record_batch([pa.nulls(length)], names=[""]).select([]))
            continue
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return layout, schema, batches


def _open_exported(column: Any) -> ArrowArray:
    """As `pa.array(column)`, which looks at every other kind of value first."""
    return pa.Array._import_from_c_capsule(*column.__arrow_c_array__())


def open_table(pin: PinLike, child: Callable[[int], Any]) -> tuple[FrameLayout, Table]:
    """The table over the blocks of its columns; no copy."""
    layout, schema, batches = open_batches(pin, child)
    return layout, pa.Table.from_batches(batches, schema)


def keys_of(pin: PinLike, child: Callable[[int], Any]) -> list[Hashable]:
    """What tells the memory of each column of a parent from all other, in the order of its children."""
    return [columns.key_of(column) for batch in open_batches(pin, child)[2] for column in batch.columns]


# -- arrays on their own -----------------------------------------------------------------------------------


def encode_column(codec: int, kind: str, field: Any, chunks: Sequence[ArrowArray]) -> Encoded:
    """One block for all chunks. Copies nothing."""
    parts: list[Part] = []
    nodes = [columns.add(chunk, parts, flat=False) for chunk in chunks]
    schema = pa.schema([field]).serialize().to_pybytes()
    return Encoded(codec, _encoder.encode((_MARK_COLUMN, kind, schema, nodes)), parts)


def open_arrays(pin: PinLike) -> tuple[str, Any, list[ArrowArray]]:
    """The kind, the field and the chunks."""
    _, kind, schema, nodes = _decoder.decode(pin.meta)
    field = pa.ipc.read_schema(pa.py_buffer(schema)).field(0)

    def buffer(index: int) -> Any:
        return pa.py_buffer(borrowed(pin, index, False))

    return kind, field, [columns.build(field.type, node, buffer) for node in nodes]


def is_frame(meta: bytes) -> bool:
    """Whether a block with this metadata is a parent of columns."""
    return bool(_decoder.decode(meta)[0] == _MARK_FRAME)


class ArrowCodec:
    """Tables, record batches, arrays and chunked arrays."""

    number = ARROW
    name = "arrow"

    def encode(self, value: Any, /) -> Encoded:
        """Copies nothing. Chunks are kept, of a slice only the slice is written."""
        if isinstance(value, pa.Table):
            return encode_batches(ARROW, TABLE, value.schema, value.to_batches())
        if isinstance(value, pa.RecordBatch):
            return encode_batches(ARROW, BATCH, value.schema, [value])
        if isinstance(value, pa.ChunkedArray):
            return encode_column(ARROW, _CHUNKED, pa.field(_COLUMN, value.type), value.chunks)
        return encode_column(ARROW, _ARRAY, pa.field(_COLUMN, value.type), [value])

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> Any:
        """Views of the blocks."""
        if is_frame(pin.meta):
            layout, schema, batches = open_batches(pin, child)
            return batches[0] if layout.kind == BATCH else pa.Table.from_batches(batches, schema)
        kind, field, arrays = open_arrays(pin)
        return arrays[0] if kind == _ARRAY else pa.chunked_array(arrays, field.type)


class ColumnCodec:
    """A column's block, which its frame's codec reads. It is no value of its own."""

    number = COLUMN
    name = "column"

    def encode(self, value: Any, /) -> None:
        """Never asked for."""
        return

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> bytes:
        """How it lies; the type is its parent's to say."""
        return pin.meta


_codec = ArrowCodec()
install(_codec, pa.Table, pa.RecordBatch, pa.ChunkedArray)
install(_codec, pa.Array, subclasses=True)
install(ColumnCodec())
