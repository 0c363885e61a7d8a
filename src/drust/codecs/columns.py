"""One column of a frame as a block: the buffers of its Arrow array, each aligned, and how they lie together.

    metadata   msgpack [length, null count, places of the buffers, children], children likewise: the tree of
               the Arrow type (a list's values, a struct's fields, a dictionary) without its names
    buffers    as Arrow defines them: validity bits, values or offsets or string views, the data of strings

The type itself stands once in the parent's metadata, as an Arrow schema. Columns of numbers, booleans and
times are *flat*: two buffers, the first after one of 8 bytes with the number of nulls; the validity bits are
there even if nothing is null. So such a column can be written in place, nulls included, and its size is known
before. (1/64 of a column of 8-byte numbers; 0 nulls still decode to a column without validity bits.)

Arrays are written as they lie, one copy; a slice is first copied by Arrow to one of its own, so that only the
slice is written. Types that we have no layout for (unions, runs, list views) are an IPC stream of one column.
Rejected: the whole frame as one IPC stream (one block: nothing can be written, moved or fetched apart).
"""

import importlib
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc

from drust.codecs.base import COLUMN, Array, Buffer, Deferred, Encoded, Part, PinLike, borrowed

IN_BUFFER = -2  # of a null count: it is written in buffer 0
NO_BUFFER = -1  # among the places of buffers: Arrow has none there
STREAM = -3  # of a null count: the one buffer is an IPC stream
FLAT_STATE, FLAT_VALIDITY, FLAT_VALUES = 0, 1, 2  # the buffers of a flat column
COMPACT_BYTES = 64 * 1024  # data of string views that no view uses is left out above this

Node: TypeAlias = tuple[int, int, list[int], list[Any]]
ArrowArray: TypeAlias = Any
ArrowType: TypeAlias = Any

_types: Any = importlib.import_module("pyarrow.lib")  # compiled, and nothing describes it
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()
_state = np.dtype("<i8")

_FLAT = frozenset(
    getattr(_types, f"Type_{name}")
    for name in [
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "HALF_FLOAT",
        "FLOAT",
        "DOUBLE",
        "DATE32",
        "DATE64",
        "TIME32",
        "TIME64",
        "TIMESTAMP",
        "DURATION",
    ]
)
_FIXED = frozenset(
    getattr(_types, f"Type_{name}")
    for name in [
        "DECIMAL32",
        "DECIMAL64",
        "DECIMAL128",
        "DECIMAL256",
        "FIXED_SIZE_BINARY",
        "INTERVAL_MONTH_DAY_NANO",
    ]
)
_STRINGS = {
    _types.Type_STRING: 4,
    _types.Type_BINARY: 4,
    _types.Type_LARGE_STRING: 8,
    _types.Type_LARGE_BINARY: 8,
}
_VIEWS = {_types.Type_STRING_VIEW: pa.large_string(), _types.Type_BINARY_VIEW: pa.large_binary()}
_LISTS = {_types.Type_LIST: 4, _types.Type_LARGE_LIST: 8, _types.Type_MAP: 4}
_EXPORTED = frozenset(
    {
        *(*_FLAT, *_FIXED, *_STRINGS, *_VIEWS, *_LISTS),
        *(_types.Type_NA, _types.Type_FIXED_SIZE_LIST, _types.Type_STRUCT),
    }
)
_EXTENSION = b"ARROW:extension:name"


def is_flat(arrow_type: ArrowType) -> bool:
    """Whether a column of this type can be written in place."""
    return arrow_type.id in _FLAT


def has_small_offsets(arrow_type: ArrowType) -> bool:
    """Whether offsets of 4 bytes are anywhere in it: then its data has at most 2 GiB."""
    below = [arrow_type.field(index).type for index in range(arrow_type.num_fields)]
    mine = _STRINGS.get(arrow_type.id) == 4 or _LISTS.get(arrow_type.id) == 4
    return mine or any(map(has_small_offsets, below))


# -- into a block ------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column that is to become a block tied to its frame's: encoded only if no block holds it already."""

    chunks: tuple[ArrowArray, ...]  # at least one; become one array

    @property
    def nbytes(self) -> int:
        """About as many bytes as its block will have."""
        return sum(int(chunk.nbytes) for chunk in self.chunks)

    @property
    def key(self) -> Hashable:
        """Equal for arrays that are the same memory; only while both are alive."""
        return key_of(self.chunks[0]) if len(self.chunks) == 1 else tuple(map(key_of, self.chunks))

    def equals(self, pin: PinLike) -> bool:
        """Whether a block holds the same values: looked at only for categories, which polars makes anew at
        each export.
        """
        kind = self.chunks[0].type
        is_looked_at = kind.id == _types.Type_DICTIONARY and len(self.chunks) == 1
        return is_looked_at and bool(open_column(pin, kind).equals(self.chunks[0]))

    def encode(self) -> Encoded:
        """The block. Copies nothing but slices, to be whole, and chunks, to be one."""
        parts: list[Part] = []
        node = add(self._joined(), parts)
        return Encoded(COLUMN, _encoder.encode(node), parts)

    def _joined(self) -> ArrowArray:
        if len(self.chunks) == 1:
            return self.chunks[0]
        chunked = pa.chunked_array(self.chunks)
        if chunked.type.id == _types.Type_DICTIONARY:
            chunked = chunked.unify_dictionaries()
        return chunked.combine_chunks()


def key_of(array: ArrowArray) -> Hashable:
    """What tells one array's memory from all others that are alive."""
    places = tuple(0 if buffer is None else buffer.address for buffer in array.buffers())
    kind = array.type
    deep = key_of(array.dictionary) if kind.id == _types.Type_DICTIONARY else None
    return kind.id, len(array), array.offset, places, deep


def add(array: ArrowArray, parts: list[Part], *, flat: bool = True) -> Node:
    """Appends the buffers of an array; how they lie. `flat`: the array is a block's whole content."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return add(array.storage, parts, flat=flat)
    if array.offset != 0:
        array = pa.concat_arrays([array])
    length, number = len(array), kind.id
    if number in _FLAT:
        return _add_flat(array, parts) if flat else _node(array, parts, [_values(array)])
    if number in _FIXED:
        return _node(array, parts, [_values(array)])
    if number == _types.Type_NA:
        return length, length, [], []
    if number in _STRINGS:
        offsets, first, last = _offsets(array, _STRINGS[number])
        if first:
            return add(pa.concat_arrays([array]), parts, flat=flat)
        return _node(array, parts, [offsets, _head(array.buffers()[2], last)])
    if number in _VIEWS:
        array = _compacted(array, _VIEWS[number])
        return _node(
            array, parts, [_head(array.buffers()[1], 16 * length), *map(_whole, array.buffers()[2:])]
        )
    if number in _LISTS:
        offsets, first, last = _offsets(array, _LISTS[number])
        if first:
            return add(pa.concat_arrays([array]), parts, flat=flat)
        values = _map_entries(array) if number == _types.Type_MAP else array.values
        return _node(array, parts, [offsets], [values.slice(0, last)])
    if number == _types.Type_FIXED_SIZE_LIST:
        return _node(array, parts, [], [array.values.slice(0, length * kind.list_size)])
    if number == _types.Type_STRUCT:
        return _node(array, parts, [], [array.field(index) for index in range(kind.num_fields)])
    if number == _types.Type_DICTIONARY:
        return _node(array, parts, [_values(array.indices)], [array.dictionary])
    parts.append(_stream(array))
    return length, STREAM, [len(parts) - 1], []


def _node(
    array: ArrowArray, parts: list[Part], buffers: list[Part], children: list[ArrowArray] | None = None
) -> Node:
    """A node with validity bits, these buffers and these children."""
    nulls = int(array.null_count)
    places = []
    for part in (_validity(array) if nulls else None, *buffers):
        places.append(NO_BUFFER if part is None else len(parts))
        if part is not None:
            parts.append(part)
    return len(array), nulls, places, [add(child, parts, flat=False) for child in children or ()]


def _add_flat(array: ArrowArray, parts: list[Part]) -> Node:
    """State, validity bits whatever they say, values."""
    length, nulls = len(array), int(array.null_count)
    room = bit_bytes(length)
    validity = (
        _validity(array) if nulls else _ALL_SET[:room] if room <= len(_ALL_SET) else Deferred(room, _set_all)
    )
    parts += [nulls.to_bytes(8, "little"), validity, _values(array)]
    return length, IN_BUFFER, [FLAT_VALIDITY, FLAT_VALUES], []


_ALL_SET = memoryview(b"\xff" * 4096)


def _set_all(target: Any) -> None:
    np.frombuffer(target, np.uint8)[:] = 0xFF


def _head(buffer: Any, nbytes: int) -> Part:
    """The first bytes of an Arrow buffer; zeros where an empty array has none."""
    if buffer is None or buffer.size < nbytes:
        return bytes(nbytes)
    return buffer if buffer.size == nbytes else memoryview(buffer)[:nbytes]


def _whole(buffer: Any) -> Part:
    return b"" if buffer is None else buffer


def _validity(array: ArrowArray) -> Part:
    return _head(array.buffers()[0], bit_bytes(len(array)))


def _values(array: ArrowArray) -> Part:
    return _head(array.buffers()[1], (len(array) * array.type.bit_width + 7) // 8)


def _offsets(array: ArrowArray, width: int) -> tuple[Part, int, int]:
    """The offsets, and the first and the last of them."""
    part: Any = _head(array.buffers()[1], (len(array) + 1) * width)
    numbers = np.frombuffer(part, f"<i{width}")
    return part, int(numbers[0]), int(numbers[-1])


def _map_entries(array: ArrowArray) -> ArrowArray:
    kind = array.type
    fields = [kind.key_field.with_nullable(False), kind.item_field]
    return pa.StructArray.from_arrays([array.keys, array.items], fields=fields)


def _compacted(array: ArrowArray, offsets_type: ArrowType) -> ArrowArray:
    """The views alone know what of the data is used: of a slice of long strings only its part is kept."""
    buffers = array.buffers()
    held = sum(buffer.size for buffer in buffers[2:] if buffer is not None)
    if held <= COMPACT_BYTES:
        return array
    views: Any = _head(buffers[1], 16 * len(array))
    lengths = np.frombuffer(views, "<i4")[::4]
    used = int(lengths[lengths > 12].sum(dtype=np.int64))
    return array if held <= 2 * used + COMPACT_BYTES else array.cast(offsets_type).cast(array.type)


def _stream(array: ArrowArray) -> Deferred:
    """An IPC stream, written straight into the block."""
    batch = pa.record_batch([array], names=["0"])

    def write(sink: Any) -> None:
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)

    sizes = pa.MockOutputStream()
    write(sizes)

    def fill(target: Any) -> None:
        with pa.FixedSizeBufferWriter(pa.py_buffer(target)) as sink:
            write(sink)

    return Deferred(sizes.size(), fill)


# -- written in place --------------------------------------------------------------------------------------

_INTEGERS = {
    _types.Type_DATE32: "<i4",
    _types.Type_DATE64: "<i8",
    _types.Type_TIME32: "<i4",
    _types.Type_TIME64: "<i8",
}
_TIMES = {_types.Type_TIMESTAMP: "<M8", _types.Type_DURATION: "<m8"}


def numpy_dtype(arrow_type: ArrowType) -> np.dtype[Any] | None:
    """What the values of a flat column are to numpy, in place; None if the column is not flat."""
    if not is_flat(arrow_type):
        return None
    if arrow_type.id in _INTEGERS:
        return np.dtype(_INTEGERS[arrow_type.id])
    if arrow_type.id in _TIMES:
        return np.dtype(f"{_TIMES[arrow_type.id]}[{arrow_type.unit}]")
    dtype: np.dtype[Any] = np.dtype(arrow_type.to_pandas_dtype())
    return dtype


def view(pin: PinLike, index: int, dtype: Any, length: int) -> Array:
    """The first items of a buffer, in place."""
    return np.ndarray(length, dtype, buffer=pin.buffer(index))


def bit_bytes(length: int) -> int:
    """How many bytes so many bits take."""
    return (length + 7) // 8


def unpack(pin: PinLike, index: int, length: int) -> Array:
    """The bits of a buffer as bytes of 0 and 1."""
    return np.unpackbits(view(pin, index, np.uint8, bit_bytes(length)), count=length, bitorder="little")


def pack(booleans: Array, pin: PinLike, index: int) -> None:
    """The reverse, into place."""
    view(pin, index, np.uint8, bit_bytes(len(booleans)))[:] = np.packbits(booleans, bitorder="little")


def set_null_count(pin: PinLike, nulls: int) -> None:
    """Of a flat column."""
    view(pin, FLAT_STATE, _state, 1)[0] = nulls


# -- out of a block ----------------------------------------------------------------------------------------


def open_column(pin: PinLike, arrow_type: ArrowType) -> ArrowArray:
    """The array over a column's block: read-only views that hold the pin."""

    def buffer(index: int) -> Buffer:
        return pa.py_buffer(borrowed(pin, index, False))

    length, nulls, places, below = _decoder.decode(pin.meta)
    if nulls != IN_BUFFER:
        return build(arrow_type, (length, nulls, places, below), buffer)
    # Most columns, and thousands of them in a wide frame: as few steps as can be.
    nulls = int.from_bytes(pin.buffer(FLAT_STATE), "little")
    validity = buffer(FLAT_VALIDITY) if nulls else None
    storage = arrow_type.storage_type if isinstance(arrow_type, pa.BaseExtensionType) else arrow_type
    array = pa.Array.from_buffers(storage, length, [validity, buffer(FLAT_VALUES)], nulls)
    return array if storage is arrow_type else pa.ExtensionArray.from_storage(arrow_type, array)


class FlatRows(NamedTuple):
    """What every flat column of so many rows has for metadata: as it stands in the block, and decoded."""

    meta: bytes
    node: tuple[int, int, tuple[int, int], tuple[()]]


def flat_rows(length: int) -> FlatRows:
    """For `export`."""
    node = (length, IN_BUFFER, (FLAT_VALIDITY, FLAT_VALUES), ())
    return FlatRows(_encoder.encode(node), node)


def can_export(field: Any) -> bool:
    """Whether `Pin.arrow_column` knows the layout of this type and of all below."""
    kind = field.type
    if kind.id not in _EXPORTED or _EXTENSION in (field.metadata or ()):
        return False
    return all(can_export(kind.field(index)) for index in range(kind.num_fields))


def export(pin: PinLike, capsule: Any, flat: FlatRows) -> Any:
    """A column's block for Arrow's C data interface, or None: then `open_column` opens it.

    Args:
        pin: of the column; a stand-in without the native method gives None.
        capsule: its field, or None if that has no such layout.
        flat: of the frame's row group.
    """
    arrow_column = getattr(pin, "arrow_column", None)
    if capsule is None or arrow_column is None:
        return None
    meta = pin.meta
    if meta == flat.meta:
        return arrow_column(capsule, flat.node)
    node = _decoder.decode(meta)
    return arrow_column(capsule, node) if node[0] == flat.node[0] else None


def build(arrow_type: ArrowType, node: Any, buffer: Callable[[int], Buffer]) -> ArrowArray:
    """The array that a node describes, over buffers of a block."""
    length, nulls, places, below = node
    if isinstance(arrow_type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(arrow_type, build(arrow_type.storage_type, node, buffer))
    if nulls == STREAM:
        with pa.ipc.open_stream(buffer(places[0])) as reader:
            return reader.read_next_batch().column(0)
    buffers = [None if place == NO_BUFFER else buffer(place) for place in places]
    if arrow_type.id == _types.Type_NA:
        return pa.nulls(length)
    if arrow_type.id == _types.Type_DICTIONARY:
        dictionary = build(arrow_type.value_type, below[0], buffer)
        return pa.DictionaryArray.from_buffers(arrow_type, length, buffers, dictionary, nulls)
    types = _types_below(arrow_type)
    children = [build(kind, child, buffer) for kind, child in zip(types, below, strict=True)]
    return pa.Array.from_buffers(arrow_type, length, buffers, nulls, 0, children or None)


def _types_below(kind: ArrowType) -> list[ArrowType]:
    if kind.id == _types.Type_MAP:
        return [pa.struct([kind.key_field.with_nullable(False), kind.item_field])]
    if kind.id == _types.Type_STRUCT:
        return [kind.field(index).type for index in range(kind.num_fields)]
    return [kind.value_type] if kind.num_fields else []
