"""What a task carries to its worker, and what its completion carries home: both are blocks in the heap.

A *call* block: metadata names the function and the lends; the buffers are one pickle of the arguments and,
out of band, their arrays; the child table points to moved boxes (owned by the block) and lent values
(flagged, not owned). A *completion* block: first one child for each mutable lend, its new pointer, then the
boxes and big arrays of the result. Nothing of what a pointer names is touched on the way.
"""

import os
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import msgspec

from drust import _core, codecs, handles, runtime, shipping
from drust.errors import InternalError, RemoteTraceback, TaskError
from drust.runtime import Pointer

LENT_SHARED = 2
LENT_MUTABLE = 4
RELEASE_SHALLOW = 2
PRE_IMAGE_BYTES_MAX = (
    2**20
)  # as native/bind: up to this a task writes a copy, and the lender's block is its pre-image
APART_BYTES = 32 * 1024  # of a result for another server; the wire takes completions of up to 64 KiB

Child: TypeAlias = tuple[int, int, int, int]
Guard: TypeAlias = "_core.Ref[Any] | _core.RefMut[Any]"

_ARGUMENT_HANDLES: dict[type, int] = {_core.Box: 0, _core.Ref: LENT_SHARED, _core.RefMut: LENT_MUTABLE}
_RESULT_HANDLES: dict[type, int] = {_core.Box: 0}


class PartSpec(msgspec.Struct, frozen=True, array_like=True):
    """Which part of a split array is lent: place along the axis, and bytes in the block's buffer 0."""

    start: int
    stop: int
    axis: int
    region: tuple[int, int, int, int]  # offset, chunk bytes, count, stride
    layout: bytes  # shape, dtype and order of the part


class CallHeader(msgspec.Struct, frozen=True, array_like=True):
    """The metadata of a call block. `parts` has an entry for each child: the part lent, if not all of it."""

    function: shipping.FunctionReference
    name: str
    parts: list[PartSpec | None]


class CompletionHeader(msgspec.Struct, frozen=True, array_like=True):
    """The metadata of a completion block. The new pointers of `lends` mutable lends end the child table."""

    raised: bool
    lends: int
    worker: str
    traceback: str = ""
    apart: bool = False  # the result is a block of its own: child 0


_header_encoder = msgspec.msgpack.Encoder()
_call_decoder = msgspec.msgpack.Decoder(CallHeader)
_completion_decoder = msgspec.msgpack.Decoder(CompletionHeader)


class _Lend(NamedTuple):
    guard: Guard
    in_place: bool  # a task that dies may leave it half written


class Outgoing:
    """A call on its way: what it lends and moves, undone together if it cannot be sent."""

    def __init__(
        self, name: str, target: int, shipped: shipping.Shipped, function: Callable[..., Any]
    ) -> None:
        self.name = name
        self.target = target
        self.pointer: Pointer = (0, 0, 0)
        self.lends: list[_Lend] = []
        self.poll: Callable[[int], bool] = _never  # the join handle's, once there is one
        self.was_rolled_back = False  # its server was lost, and others have what it had lent as it was
        self._kept = (shipped.pin, function)  # the function's bytes must outlive the task
        self._function = shipped.reference
        self._moved: list[tuple[_core.Box[Any], _core.Pin, object]] = []
        self._pin: _core.Pin | None = None

    def __str__(self) -> str:
        return f"task {self.name} on server {self.target}"

    @property
    def must_outlive(self) -> bool:
        """Whether it must be kept until the task has ended, joined or not: lends, or its function's bytes."""
        return bool(self.lends) or self._kept[0] is not None

    @property
    def outcome_if_lost(self) -> str:
        """What becomes of its mutable lends when its worker dies, for the error."""
        mutable = [lend for lend in self.lends if isinstance(lend.guard, _core.RefMut)]
        if any(lend.in_place for lend in mutable):
            return "are poisoned where it wrote in place"
        return "were rolled back" if mutable else "have ended"

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pickles, then lends and moves, then writes the block. If it raises, `undo` puts all back."""
        if args or kwargs:
            encoded = codecs.encode_arguments((args, kwargs), _ARGUMENT_HANDLES)
        else:
            encoded = _no_arguments()
        parts: list[PartSpec | None] = [None] * len(encoded.children)
        pointers: list[Child] = []
        pin: _core.Pin
        for index, (handle, flags) in enumerate(encoded.children):
            if isinstance(handle, _core.Box):
                pin, value = handle._transfer()
                self._moved.append((handle, pin, value))
            else:
                pin = handle._lend(self)
                in_place = flags == LENT_MUTABLE and self._in_place(pin)
                part = handle._part
                if part is not None:
                    parts[index] = _part_of(handle, part, pin)
                    in_place = runtime.server_of(pin.pointer) == self.target
                self.lends.append(_Lend(handle, in_place))
            pointers.append((*pin.pointer, flags))
        header = CallHeader(self._function, self.name, parts)
        self._pin = write_block(_core.TASK_CODEC, header, encoded, pointers)
        self.pointer = self._pin.pointer

    def _in_place(self, pin: _core.Pin) -> bool:
        """Whether the task will write into the very block, with no pre-image; if not known here, it may."""
        if runtime.server_of(pin.pointer) != self.target:
            return False
        if pin.local is None:
            return True
        return codecs.is_in_place(pin.codec) and pin.nbytes > PRE_IMAGE_BYTES_MAX

    def sent(self) -> None:
        """The block and the moved boxes are the queue's now."""
        if self._pin is not None:
            self._pin.disown()
            self._pin = None
        for _, pin, _ in self._moved:
            pin.disown()
        self._moved.clear()

    def undo(self) -> None:
        """Nothing was sent: the boxes are whole and here again, the lends have ended."""
        if self._pin is not None:
            self._pin.set_release(RELEASE_SHALLOW)
            self._pin = None
        for box, pin, value in self._moved:
            box._transfer_undone(pin, value)
        for lend in self.lends:
            lend.guard._end_lend(self, "rolled_back")
        self._moved.clear()
        self.lends.clear()

    def ended(self, completion: "Completion | None") -> None:
        """Ends every lend: with the pointers its completion brought; undone or poisoned if it was lost."""
        pointers = iter(completion.lends if completion is not None else ())
        for guard, in_place in self.lends:
            if completion is None:
                is_poisoned = in_place and not self.was_rolled_back
                guard._end_lend(self, "poisoned" if is_poisoned else "rolled_back")
            elif isinstance(guard, _core.RefMut) and guard._part is None:
                guard._end_lend(self, "committed", next(pointers))
            else:
                guard._end_lend(self, "committed")
        self.lends.clear()


def _never(wait_ms: int = 0) -> bool:
    return False


def _part_of(guard: Guard, part: tuple[int, int, int], pin: _core.Pin) -> PartSpec:
    start, stop, axis = part
    shape, dtype, order = codecs.arrays.unpack_layout(pin.meta)
    extents = (*shape[:axis], stop - start, *shape[axis + 1 :])
    layout = codecs.arrays.pack_layout(extents, dtype, order)
    if layout is None:
        raise InternalError(detail=f"An array of {dtype} was split.")
    return PartSpec(start, stop, axis, guard._region(), layout)


def write_block(
    codec: int, header: msgspec.Struct, encoded: codecs.Encoded, children: list[Child]
) -> _core.Pin:
    """A call block: one copy of every buffer."""
    return draft_block(codec, header, encoded, children).publish()


def draft_block(
    codec: int, header: msgspec.Struct, encoded: codecs.Encoded, children: list[Child]
) -> _core.Draft:
    """As `write_block`, not published yet."""
    sizes = [codecs.base.part_bytes(part) for part in encoded.buffers]
    draft = runtime.current().allocate(codec, _header_encoder.encode(header), sizes, children)
    for index, part in enumerate(encoded.buffers):
        codecs.base.fill(draft, index, part)
    return draft


class Completion:
    """What a task left: new pointers of its mutable lends, and its result or error."""

    def __init__(self, pin: _core.Pin, header: CompletionHeader) -> None:
        self._pin = pin
        self._header = header
        children = pin.children
        self._result_children = children[: len(children) - header.lends]
        self.lends: list[Pointer] = [child[:3] for child in children[len(children) - header.lends :]]

    def outcome(self) -> tuple[Any, BaseException | None]:
        """(result, None) or (None, error). Decodes once; the boxes in it are this process's now."""
        try:
            if self._header.apart:
                return handles.take_value(self._result_children[0][:3]), None
            value = codecs.pickling.PickleCodec().decode(
                self._pin, True, lambda child: handles.receive(self._result_children[child][:3])
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the join is told
            what = "what it raised" if self._header.raised else "its result"
            undecodable = TaskError(
                worker=self._header.worker,
                error=f"{what} cannot be decoded here: {error!r}",
                traceback=self._header.traceback,
            )
            undecodable.__cause__ = self._remote_traceback() if self._header.raised else error
            return None, undecodable
        if not self._header.raised:
            return value, None
        failure = value if isinstance(value, BaseException) else TaskError(error=str(value))
        failure.__cause__ = self._remote_traceback()
        return None, failure

    def _remote_traceback(self) -> RemoteTraceback:
        return RemoteTraceback(f"{self._header.traceback}\nin {self._header.worker}")


def open_completion(here: _core.Runtime, pointer: Pointer) -> Completion:
    """A completion that has arrived in this partition; it dies with what was decoded from it."""
    pin = here.open(pointer, True, RELEASE_SHALLOW)
    return Completion(pin, _completion_decoder.decode(pin.meta))


class Incoming(NamedTuple):
    """A call as its worker sees it."""

    header: CallHeader
    pin: _core.Pin


def open_call(here: _core.Runtime, pointer: Pointer) -> Incoming:
    """The call block behind a queue entry; this worker frees it when it is done."""
    pin = here.open(pointer, True, RELEASE_SHALLOW)
    return Incoming(_call_decoder.decode(pin.meta), pin)


def open_lent(here: _core.Runtime, pointer: Pointer, mutable: bool, part: PartSpec | None) -> handles.Lent:
    """What a task borrows, ready for its function."""
    if part is None:
        return handles.Lent(pointer, mutable)
    if runtime.server_of(pointer) == here.server:
        return handles.LentPart(pointer, part.start, part.stop, part.axis)
    return handles.TravellingPart(pointer, part.region, part.layout)


@cache
def _no_arguments() -> codecs.Encoded:
    """The arguments of a call that has none: encoded once."""
    return codecs.encode_arguments(((), {}), {})


@cache
def _nothing() -> codecs.Encoded:
    """None, the most frequent result: encoded once."""
    return codecs.encode_arguments(None, {})


@cache
def worker_name() -> str:
    """This process in an error: `worker (pid 4711) on server 1`."""
    return f"worker (pid {os.getpid()}) on server {runtime.current().server}"


class Outcome:
    """A completion being written.

    The result is encoded while the task's borrows last (a task may return a part of what it was lent: a copy
    of it travels); the new pointers of its mutable lends are known only when they have ended.
    """

    def __init__(self, result: Any, error: BaseException | None, lends: int, *, remote: bool) -> None:
        """Encodes a result, or an error. One that cannot travel becomes the error that says so.

        A result above `APART_BYTES` that goes to another server stays here as a block of its own, and only
        its pointer travels: the spawner takes it when it joins.
        """
        self._lends = lends
        self._moved: list[tuple[_core.Box[Any], _core.Pin, object]] = []
        self._apart: _core.Pin | None = None
        if error is None:
            try:
                self._draft = self._encode(result, "", raised=False, remote=remote)
                return
            except Exception as failure:  # noqa: BLE001 - whatever it is, the completion says so
                error = failure
        text = "".join(traceback.format_exception(error))
        try:
            self._draft = self._encode(error, text, raised=True, remote=remote)
        except Exception:  # noqa: BLE001 - the error itself cannot travel: its text does
            name = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
            substitute = TaskError(worker=worker_name(), error=name, traceback=text)
            self._draft = self._encode(substitute, text, raised=True, remote=remote)

    def _encode(self, value: Any, text: str, *, raised: bool, remote: bool) -> _core.Draft:
        header = CompletionHeader(raised, self._lends, worker_name(), text)
        room: list[Child] = [(0, 0, 0, LENT_MUTABLE)] * self._lends
        if remote and not raised:
            whole = _nothing() if value is None else codecs.encode(value)
            if whole.nbytes > APART_BYTES:
                self._apart = handles.write_encoded(whole)
                apart = msgspec.structs.replace(header, apart=True)
                return draft_block(
                    _core.COMPLETION_CODEC, apart, _nothing(), [(*self._apart.pointer, 0), *room]
                )
        encoded = _nothing() if value is None else codecs.encode_arguments(value, _RESULT_HANDLES)
        try:
            for box, _ in encoded.children:
                self._moved.append((box, *box._transfer()))
            children = [(*pin.pointer, 0) for _, pin, _ in self._moved]
            return draft_block(_core.COMPLETION_CODEC, header, encoded, [*children, *room])
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Nobody will see it: the boxes of the result are the task's again."""
        for box, pin, kept in self._moved:
            box._transfer_undone(pin, kept)
        self._moved.clear()

    def publish(self, lends: list[Pointer]) -> _core.Pin:
        """The completion block, with the new pointers of the mutable lends."""
        first = len(self._moved) + (self._apart is not None)
        for index, pointer in enumerate(lends, first):
            self._draft.set_child(index, (*pointer, 0))
        pin = self._draft.publish()
        for _, moved, _ in self._moved:
            moved.disown()
        if self._apart is not None:
            self._apart.disown()
        return pin
