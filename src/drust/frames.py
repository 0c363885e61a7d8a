"""Frames in Boxes, column by column: `box.column_mut(name)` and `append`.

A Box of a polars frame or an Arrow table is a parent block with one tied block a column and row group (see
docs/frames.md). A borrow hands out the frame itself, over those blocks; what is written under a mutable one
are new columns. Here a column is written where it lies:

    with box.column_mut("delay") as (values, mask):
        values[mask] = np.maximum(values[mask], 0)

Only this column gets a new version: the others keep their blocks, and whoever has copies of them keeps those.
Source: Ma et al., OSDI'24, section 4.1.3 (objects tied to one another are moved together).
"""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from drust import _core, calls, codecs, groups, handles, lends, runtime
from drust.codecs import arrays, arrow, columns
from drust.codecs.base import TIED, Encoded
from drust.errors import (
    AccessError,
    ColumnKindError,
    FrameSchemaError,
    InternalError,
    MissingColumnError,
    NotAFrameError,
    RowGroupError,
    StaleViewError,
)
from drust.runtime import Pointer

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

Mask: TypeAlias = npt.NDArray[np.bool_]
Values: TypeAlias = npt.NDArray[Any]
Column: TypeAlias = tuple[Values, Mask]


class _Turn:
    """A frame held by this thread for a change of some of its columns, and what it becomes.

    It is a lend of the Box to its own process: the protocol is the same, and the new parent comes home at its
    end like a task's.
    """

    def __init__(self, box: "_core.Box[Any]", purpose: str, depth: int) -> None:
        """`depth`: callers between this and the one whose line errors name."""
        self._box = box
        self.purpose = purpose
        caller = sys._getframe(depth + 1)
        self._place = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        self._source: _core.Pin | None = None
        self.parts: list[_core.Pin] = []
        self.flags: list[int] = []
        self.is_lent = False  # the group is a lender's: what it owns must stay as it was
        self.layout = arrow.FrameLayout("", [], b"")
        self.codec = 0
        self._is_out = False
        self._lent: _core.Pin | None = None

    def __str__(self) -> str:
        return f"{self.purpose} at {self._place}"

    def poll(self, wait_ms: int = 0) -> bool:
        """As of a task: it ends with its own block, so there is nothing to take in. Waits for any end."""
        if wait_ms:
            self._box._wait_end(wait_ms / 1000)
        return False

    def begin(self, timeout_s: float | None) -> None:
        """Holds the frame exclusively, its columns here: 2 round trips and a free if it is elsewhere."""
        with groups.writing(self._box):
            pin = self._box._lend_mut(self, timeout_s)
        self._is_out = True
        try:
            self._open(pin)
        except BaseException:
            self.undo()
            raise

    def _open(self, pin: _core.Pin) -> None:
        source = pin if pin.local is not None else runtime.current().take(pin.pointer)
        _check_frame(self._box, source)
        self._source = source
        self.layout = arrow.read_layout(source.meta)
        self.codec = source.codec
        source.origin = None
        if source is pin:
            self.parts = [*groups.open_parts(source)]
            self.flags = [TIED | groups.BORROWED] * len(self.parts)
            self.is_lent = pin.on_release == groups.NOTHING
        else:
            self.parts = runtime.current().take_tied(groups.pointers(source))
            self.flags = [TIED] * len(self.parts)

    def _is_viewed(self, source: _core.Pin, index: int) -> bool:
        """Whether a frame or series of an earlier borrow still looks at that column."""
        self.parts = []  # else every column would seem to be looked at
        viewed = source.viewed_parts()
        self.parts = [*groups.open_parts(source)]
        return index in viewed

    def own(self, index: int) -> bool:
        """Makes sure that a column's block may be written; whether it is a copy, which can be undone."""
        source = self._source
        if source is None or not self.flags[index] & groups.BORROWED:  # it was moved here just now
            return True
        is_viewed = self._is_viewed(source, index)
        part = self.parts[index]
        is_theirs = self.is_lent or bool(source.child(index)[3] & groups.BORROWED)
        if not is_viewed and not (is_theirs and part.nbytes <= lends.PRE_IMAGE_BYTES_MAX):
            return False
        if is_viewed:
            groups.tell_viewed(self._box)
        here = runtime.current()
        self.parts[index] = here.open(here.duplicate(part.pointer), False, groups.FREE_TREE)
        self.flags[index] = TIED
        return True

    def reopened(self, index: int) -> _core.Pin:
        """A Pin of that column for the arrays over it: those that were revoked hold it, and are no views."""
        self._lent = runtime.current().open(self.parts[index].pointer, False, groups.NOTHING)
        return self._lent

    def renew(self, index: int, written: _core.Pin) -> None:
        """The column has this version now: the same block, or another if arrays outlived their borrow."""
        pointer = written.pointer
        written.disown()
        before = self.parts[index]
        if pointer[0] != before.pointer[0]:
            if self._lent is not None:
                self._lent.origin = before  # the views keep the block that they have
            self.flags[index] = TIED
        else:
            before.disown()  # it is the block itself: under this colour nobody can free it
        release = groups.FREE_TREE if self.flags[index] == TIED else groups.NOTHING
        self.parts[index] = runtime.current().open(pointer, False, release)
        self._lent = None

    def commit(self) -> None:
        """The frame is these columns from now on: its parent alone is written again. No message."""
        encoded = Encoded(self.codec, arrow.write_layout(self.layout), [])
        parent = groups.write_parent(encoded, self.parts, self.flags)
        self._end()
        self._box._end_lend(self, True, "committed", parent)

    def undo(self, *, poisoned: bool = False) -> None:
        """The frame stays as it was; or nobody knows, if a column was written where it lay. Once."""
        if self._end():
            self._box._end_lend(self, True, "poisoned" if poisoned else "rolled_back")

    def _end(self) -> bool:
        was_out, self._is_out = self._is_out, False
        self._lent = None
        self.parts = []
        self._source = None
        return was_out


def _check_frame(box: "_core.Box[Any]", pin: _core.Pin) -> None:
    if pin.codec not in codecs.GROUPS or not arrow.is_frame(pin.meta):
        raise NotAFrameError(object=str(box._state()["label"]))


# -- one column --------------------------------------------------------------------------------------------


class ColumnMut:
    """An exclusive borrow of one column of a frame, for a `with` block. Made by `column_mut`."""

    def __init__(
        self, box: "_core.Box[Any]", name: str, row_group: int | None, timeout_s: float | None
    ) -> None:
        self._turn = _Turn(box, f"column_mut({name!r})", 2)
        self._box = box
        self._name = name
        self._row_group = row_group
        self._timeout_s = timeout_s
        self._began = False
        self._index: int | None = None  # among the frame's blocks; None if it has no rows, and so no blocks
        self._copied = True
        self._lent: list[
            tuple[_core.Box[Any], _core.RefMut[Any]]
        ] = []  # the last one's block is the column's
        self._unpacked: list[tuple[int, _core.Pin, int]] = []  # buffers of bits, the booleans lent, how many

    def __enter__(self) -> Column:
        """Values, and True where a row has one. Bind them to names, `as (values, mask)`, so they can end."""
        if self._began:
            raise AccessError(object=self._turn.purpose, reason="this borrow has begun already")
        self._began = True
        self._turn.begin(self._timeout_s)
        try:
            return self._open()
        except BaseException:
            self._forget()
            self._turn.undo()
            raise

    # -- lent to a task: what drust.calls asks of every borrow

    _part = None  # of a split array; this is a column
    _undo = False

    @property
    def is_in_place(self) -> bool:
        """Whether the column's block itself is being written, without a copy that could be gone back to."""
        return self._began and not self._copied

    @property
    def _column(self) -> tuple[str, int | None]:
        return self._name, self._row_group

    def _lend(self, lend: object = None) -> _core.Pin:
        """Lends the frame, of which the task is to write this column."""
        if self._began:
            raise AccessError(object=self._turn.purpose, reason="this borrow has begun already")
        self._began = True
        pin = self._box._lend_mut(lend, self._timeout_s)
        try:
            if pin.local is not None:
                _check_frame(self._box, pin)
                self._turn.layout = arrow.read_layout(pin.meta)
                self._find()
        except BaseException:
            self._box._end_lend(lend, True, "rolled_back")
            raise
        return pin

    def _is_large(self, pin: _core.Pin) -> bool:
        """Whether a task on the frame's server writes in place, without a copy; if not known here, it may."""
        if pin.local is None:
            return True
        if self._index is None:
            return False
        part = runtime.current().open(pin.child(self._index)[:3], False, groups.NOTHING)
        return part.nbytes > lends.PRE_IMAGE_BYTES_MAX

    def _end_lend(
        self,
        lend: object = None,
        outcome: Literal["committed", "rolled_back", "poisoned"] = "committed",
        pointer: Any = None,
        poison: dict[str, Any] | None = None,
    ) -> None:
        self._box._end_lend(lend, True, outcome, pointer, poison)

    # -- as a context manager

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends both arrays. The column has a new version, whether or not the block raised."""
        if self._index is None:
            self._turn.undo()
            return
        late: BaseException | None = None
        try:
            self._pack()
            for _, guard in self._lent:
                try:
                    guard.__exit__(kind, error, traceback)
                except StaleViewError as stale:  # the borrow ended all the same
                    late = stale
            inner = self._lent[-1][0]._pin
            self._forget()
            if inner is None:
                raise InternalError(detail="A column lost its block.")
            self._turn.renew(self._index, inner)
            del inner
            self._turn.commit()
        except BaseException:
            self._turn.undo(poisoned=not self._copied)
            raise
        if late is not None:
            raise late

    def _find(self) -> tuple[np.dtype[Any], int]:
        """The type of the values and their number; sets the place of the block."""
        layout = self._turn.layout
        schema = layout.arrow_schema
        label = str(self._box._state()["label"])
        places = schema.get_all_field_indices(self._name)
        if len(places) != 1:
            raise MissingColumnError(
                object=label, column=self._name, columns=tuple(schema.names), count=len(places)
            )
        kind = schema.field(places[0]).type
        dtype = columns.numpy_dtype(kind)
        if dtype is None:
            raise ColumnKindError(object=label, column=self._name, kind=str(kind))
        groups_there = len(layout.lengths)
        group = self._row_group
        if group is None and groups_there > 1:
            raise RowGroupError(object=label, column=self._name, row_groups=groups_there)
        if not 0 <= (group or 0) < max(groups_there, 1):
            raise RowGroupError(
                object=label, column=self._name, row_groups=groups_there, row_group=str(group)
            )
        if not groups_there:
            return dtype, 0
        self._index = (group or 0) * len(schema) + places[0]
        return dtype, layout.lengths[group or 0]

    def _open(self) -> Column:
        dtype, length = self._find()
        if self._index is None:
            return np.empty(0, dtype), np.empty(0, np.bool_)
        self._copied = self._turn.own(self._index)
        part = self._turn.reopened(self._index)
        block = part.as_writable()
        mask = self._lend_bits(columns.FLAT_VALIDITY, block, length)
        if dtype != np.bool_:
            return self._hand_out(part, columns.view(block, columns.FLAT_VALUES, dtype, length)), mask
        values = self._lend_bits(columns.FLAT_VALUES, block, length)
        bits = columns.view(block, columns.FLAT_VALUES, np.uint8, columns.bit_bytes(length))
        self._hand_out(part, bits)  # for us alone
        return values, mask

    def _lend_bits(self, index: int, block: _core.Pin, length: int) -> Values:
        """The bits of a buffer as an array of booleans, which is revoked like any other that was lent."""
        meta = arrays.pack_layout((length,), np.dtype(np.bool_))
        if meta is None:
            raise InternalError(detail="Booleans have no layout.")
        pin = _core.Pin.private(codecs.NDARRAY, meta, [length])
        array = columns.view(pin.as_writable(), 0, np.bool_, length)
        array[:] = columns.unpack(block, index, length)
        self._unpacked.append((index, pin, length))
        return self._hand_out(pin, array)

    def _hand_out(self, pin: _core.Pin, array: Values) -> Values:
        inner: _core.Box[Any] = _core.Box._from_pin(pin, "owned", np.ndarray)
        inner._install(array, pin, True, True)
        del array
        guard = inner.borrow_mut()
        lent: Values = guard.__enter__()
        self._lent.append((inner, guard))
        return lent

    def _pack(self) -> None:
        """Booleans that were lent become the block's bits, and the number of nulls is counted again."""
        block = self._turn.parts[self._index or 0].as_writable()
        for index, pin, length in self._unpacked:
            booleans = columns.view(pin, 0, np.bool_, length)
            columns.pack(booleans, block, index)
            if index == columns.FLAT_VALIDITY:
                columns.set_null_count(block, length - int(np.count_nonzero(booleans)))

    def _forget(self) -> None:
        self._lent.clear()
        self._unpacked.clear()


def column_mut(
    box: "_core.Box[Any]", name: str, row_group: int | None = None, timeout: float | None = None
) -> ColumnMut:
    """One column of a frame in a Box, to be written in place: `with box.column_mut(name) as (values, mask)`.

    It is an exclusive borrow of the Box. At its end the column has a new version and the frame's parent block
    names it; the other columns keep their blocks and versions.

    Args:
        box: holds a polars `DataFrame`, an Arrow `Table` or `RecordBatch`.
        name: of a column of numbers, booleans, dates, times or durations.
        row_group: which of them, from 0; needed if there are several.
        timeout: seconds to wait for whoever borrows the frame; None refuses at once.

    Returns:
        What a `with` statement enters, or spawn() lends to a task, which gets the pair. It gives `values`
        (shape (rows,), the column's dtype: dates are days as int32, times of day integers, timestamps and
        durations numpy's) and `mask` (bool, True where a row has a value), both writable, both revoked at the
        end of the block.

    Raises:
        NotAFrameError: the Box holds something else.
        MissingColumnError: there is no such column, or more than one.
        ColumnKindError: strings, categories, decimals and nested columns cannot be written in place.
        RowGroupError: the frame has several row groups and none was named, or not that one.
        BorrowMutError: somebody borrows the frame.

    Cost: no message for a frame of this server. Values are written where they lie; the mask, and booleans,
    are unpacked and packed again (n bytes of scratch). One copy of the column if a frame from an earlier
    borrow still looks at it (StaleViewWarning), or if it was lent to this task and has at most 1 MiB: then a
    task that dies leaves it as it was. A frame that was never encoded is encoded first. A frame of another
    server is moved here whole: 2 reads and 1 free.
    Source: Ma et al., OSDI'24, sections 4.1.1 and 4.1.3.
    """
    return ColumnMut(box, name, row_group, timeout)


class LentColumn(lends.Lent):
    """A column that this worker's task borrows: `value` is (values, mask)."""

    def __init__(
        self,
        pointer: Pointer,
        name: str,
        row_group: int | None,
        lease: lends.Lease,
        *,
        excepted: bool = False,
    ) -> None:
        self.pointer = pointer
        self.is_poisoned = False
        self._box = handles.hold(pointer, "mutable", owns=False, lease=lease, excepted=excepted)
        self._column = ColumnMut(self._box, name, row_group, None)
        self.value: Any = self._column.__enter__()
        if self._column.is_in_place:
            lease.forbid()

    def end(self) -> None:
        """Ends the borrow; `pointer` is where the frame is from now on."""
        self.value = None
        self._column.__exit__(None, None, None)
        self.is_poisoned = self._box._poisoned
        pin, _ = self._box._give_back()
        pin.disown()
        self.pointer = pin.pointer


calls.lend_columns(ColumnMut)


# -- rows --------------------------------------------------------------------------------------------------


def append(
    box: "_core.Box[Any]", rows: "pl.DataFrame | pa.Table | pa.RecordBatch", timeout: float | None = None
) -> None:
    """Adds rows to a frame in a Box, as one row group more.

    Nothing of what is there is copied, and copies of it elsewhere stay good: the new columns are written, and
    the parent block that names all.

    Args:
        box: holds a polars `DataFrame` or an Arrow `Table`.
        rows: of the same kind, with the same names and types in the same order.
        timeout: seconds to wait for whoever borrows the frame; None refuses at once.

    Raises:
        NotAFrameError: the Box holds something else, or `rows` is not of its kind.
        FrameSchemaError: names or types differ; the message has the first difference.
        BorrowMutError: somebody borrows the frame.

    Cost: no message for a frame of this server: one copy of `rows`, and 32 bytes a column and row group for
    the parent. A frame of another server is moved here first: 2 reads and 1 free.
    """
    turn = _Turn(box, "append()", 1)
    turn.begin(timeout)
    try:
        encoded = codecs.encode(rows)
        if encoded.codec in codecs.GROUPS and arrow.is_frame(encoded.meta):
            encoded = arrow.regroup(encoded)
        layout = turn.layout
        label = str(box._state()["label"])
        is_same_kind = (
            encoded.codec == turn.codec and arrow.is_frame(encoded.meta) and layout.kind != arrow.BATCH
        )
        if not is_same_kind:
            raise NotAFrameError(
                object=codecs.base.type_name(type(rows)), wanted=f"rows to append to {label}"
            )
        added = arrow.read_layout(encoded.meta)
        _check_schema(label, layout.arrow_schema, added.arrow_schema)
        fresh = [groups.write_part(column.encode()) for column, _ in encoded.children]
        turn.parts += fresh
        turn.flags += [TIED] * len(fresh)
        turn.layout = msgspec.structs.replace(layout, lengths=[*layout.lengths, *added.lengths])
        del fresh
        turn.commit()
    except BaseException:
        turn.undo()
        raise


def _check_schema(label: str, before: Any, added: Any) -> None:
    """The same names and types in the same order; for polars also the same categories of an Enum."""
    if before.names != added.names:
        raise FrameSchemaError(
            object=label, reason=f"its columns are {before.names}, those of the rows {added.names}"
        )
    for old, new in zip(before, added, strict=True):
        if not old.type.equals(new.type) or (old.metadata or {}) != (new.metadata or {}):
            raise FrameSchemaError(
                object=label,
                reason=f"column {old.name!r} is {_described(old)}, in the rows {_described(new)}",
            )


def _described(field: Any) -> str:
    values = {key: value for key, value in (field.metadata or {}).items() if b"VALUES" in key}
    return f"{field.type} of {values}" if values else str(field.type)
