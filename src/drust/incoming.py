"""A call as the worker sees it that runs it: its block opened, what was lent ready for the function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from drust import _core, calls, codecs, handles, lends, runtime
from drust.runtime import Pointer

_decoder = msgspec.msgpack.Decoder(calls.CallHeader)


class Incoming(NamedTuple):
    """A call as its worker sees it."""

    header: calls.CallHeader
    pin: _core.Pin

    def arguments(self, load: Callable[[int], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """By position and by keyword. `load` gives what stands for a child: a Box, or a value lent."""
        if not self.pin.buffer_count:
            return (), {}
        block = handles.PrivateBytes(self.pin) if self.header.again else self.pin
        args, kwargs = codecs.pickling.PickleCodec().decode(block, True, load)
        return args, kwargs


def open_call(here: _core.Runtime, pointer: Pointer) -> Incoming:
    """The call block behind a queue entry, which owns it until the task has ended."""
    pin = here.open(pointer, True, calls.RELEASE_NOTHING)
    return Incoming(_decoder.decode(pin.meta), pin)


def open_lent(
    here: _core.Runtime,
    pointer: Pointer,
    flags: int,
    part: calls.PartSpec | None,
    lease: lends.Lease,
    column: calls.ColumnSpec | None = None,
) -> lends.Lent:
    """What a task borrows, ready for its function."""
    excepted = bool(flags & calls.EXCEPTED)
    if column is not None:
        from drust import frames

        return frames.LentColumn(pointer, column.name, column.row_group, lease, excepted=excepted)
    if part is None:
        undo = bool(flags & calls.UNDO)
        return lends.Lent(pointer, bool(flags & calls.LENT_MUTABLE), lease, undo=undo, excepted=excepted)
    if runtime.server_of(pointer) == here.server:
        return lends.LentPart(pointer, part.start, part.stop, part.axis, lease)
    return lends.TravellingPart(pointer, part.region, part.layout, lease)
