"""What a task carries to its worker, and what its completion carries home: both are blocks in the heap.

A *call* block: metadata names the function and the lends; the buffers are one pickle of the arguments and,
out of band, their arrays; the child table points to moved boxes (owned by the block) and lent values
(flagged, not owned). A *completion* block: first one child for each mutable lend, its new pointer, then the
boxes and big arrays of the result. Nothing of what a pointer names is touched on the way.
"""

import os
import struct
import traceback
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import msgspec

from drust import _core, codecs, handles, lends, placement, runtime, shipping
from drust.errors import ConfigError, InternalError, RemoteTraceback, TaskError
from drust.runtime import Pointer

LENT_SHARED = 2
LENT_MUTABLE = 4
UNDO = 16
PART = 32
RELENT = 64
EXCEPTED = handles.EXCEPTED
RELEASE_NOTHING = 0
RELEASE_SHALLOW = 2
APART_BYTES = 32 * 1024  # of a result for another server; the wire takes completions of up to 64 KiB

Child: TypeAlias = tuple[int, int, int, int]
Guard: TypeAlias = "_core.Ref[Any] | _core.RefMut[Any]"

_ARGUMENT_HANDLES: dict[type, int] = {_core.Box: 0, _core.Ref: LENT_SHARED, _core.RefMut: LENT_MUTABLE}
_RESULT_HANDLES: dict[type, int] = {_core.Box: 0}


def pass_by_hold(kind: type, flags: int) -> None:
    """Registers a class of shared handles: drust.sync. Whoever gets one gets a hold of his own."""
    _ARGUMENT_HANDLES[kind] = flags
    _RESULT_HANDLES[kind] = flags


def lend_columns(kind: type) -> None:
    """Registers the class of column borrows: drust.frames, which is imported only where frames are."""
    _ARGUMENT_HANDLES[kind] = LENT_MUTABLE


class PartSpec(msgspec.Struct, frozen=True, array_like=True):
    """Which part of a split array is lent: place along the axis, and bytes in the block's buffer 0."""

    start: int
    stop: int
    axis: int
    region: tuple[int, int, int, int]  # offset, chunk bytes, count, stride
    layout: bytes  # shape, dtype and order of the part


class ColumnSpec(msgspec.Struct, frozen=True, array_like=True):
    """Which column of a frame is lent: its name and row group."""

    name: str
    row_group: int | None


class CallHeader(msgspec.Struct, frozen=True, array_like=True):
    """The metadata of a call block. `parts` has an entry for each child: the part lent, if not all of it."""

    function: shipping.FunctionReference
    name: str
    parts: list[PartSpec | None]
    again: bool = False  # it may be run again: what it gets by value is decoded with memory of its own
    columns: dict[int, ColumnSpec] = {}  # by child: the column lent, of a frame


class CompletionHeader(msgspec.Struct, frozen=True, array_like=True):
    """The metadata of a completion block.

    Its child table ends with the new pointers of `lends` mutable lends and with a block for a
    `CompletionEnd`, which is null in most.
    """

    raised: bool
    lends: int
    worker: str
    traceback: str = ""
    apart: bool = False  # the result is a block of its own: child 0


class CompletionEnd(msgspec.Struct, frozen=True, array_like=True):
    """What is known only when the borrows have ended, and is rarely anything."""

    frees: list[tuple[Pointer, bool]] = []  # blocks of pre-images, and whether with all they own
    poisoned: list[int] = []  # which mutable lends came back half written by a task below


class Loss(NamedTuple):
    """A task that was lost with its worker: what the reaper of its server reports."""

    poisoned: bool
    pid: int
    reason: str
    time: str
    lends: list[Pointer | None]
    """Of every mutable lend, parts included: where it is, under the colour it has now."""


_header_encoder = msgspec.msgpack.Encoder()
_completion_decoder = msgspec.msgpack.Decoder(CompletionHeader)
_end_decoder = msgspec.msgpack.Decoder(CompletionEnd)
_LOSS = struct.Struct("<IIQ")
"""As tasks::Loss of native/tasks/queue.hpp: poisoned, pid, nanoseconds since the epoch."""


class _Lend(NamedTuple):
    guard: Guard
    in_place: bool  # a task that dies may leave it half written


class Outgoing:
    """A call on its way: what it lends and moves, undone together if it cannot be sent."""

    def __init__(
        self,
        name: str,
        target: int | None,
        shipped: shipping.Shipped,
        function: Callable[..., Any],
        retries: int = 0,
    ) -> None:
        """`target`: the server it was told to run on; None has `encode` decide, which knows its arguments."""
        self.name = name
        self.decision = None if target is None else placement.told(target)
        self.target = -1 if target is None else target
        self.epoch = 0
        """Of the target's row before the call was sent, which may be lost as soon as it has it; 0 here."""
        self.retries = retries
        self.pointer: Pointer = (0, 0, 0)
        self.lends: list[_Lend] = []
        self.records: list[Child] = []
        """What the task's record says of each lend: where it was when it was lent."""
        self.lease: lends.Lease | None = None
        """The lease of the task that lends on, by this call, what it was lent itself."""
        self.poll: Callable[[int], bool] = _never  # the join handle's, once there is one
        self._kept = (shipped.pin, function)  # the function's bytes must outlive the task
        self._also_kept: _core.Pin | None = None  # of a function among the arguments, too
        self._function = shipped.reference
        self._moved: list[tuple[_core.Box[Any] | _core.Shared, _core.Pin, object]] = []
        self._pin: _core.Pin | None = None

    def __str__(self) -> str:
        return f"task {self.name} on server {self.target}"

    @property
    def is_bound(self) -> bool:
        """Whether no other server may take it over while it waits."""
        return self.decision is not None and self.decision.is_bound

    @property
    def must_outlive(self) -> bool:
        """Whether it must be kept until the task has ended, joined or not: lends, or its function's bytes."""
        return bool(self.lends) or self._kept[0] is not None or self._also_kept is not None

    def keep(self, shipped: shipping.Shipped) -> None:
        """A function that its arguments name."""
        self._also_kept = shipped.pin

    def outcome_of(self, loss: Loss) -> str:
        """What becomes of its mutable lends when it is lost, for the error."""
        mutable = [lend for lend in self.lends if not isinstance(lend.guard, _core.Ref)]
        if loss.poisoned and mutable:
            return "are poisoned"
        return "were rolled back" if mutable else "have ended"

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pickles, decides where to, lends and moves, writes the block. If it raises, `undo` undoes all."""
        if args or kwargs:
            encoded = codecs.encode_arguments((args, kwargs), _ARGUMENT_HANDLES)
        else:
            encoded = _EMPTY
        if self.retries and any(isinstance(handle, _core.Box) for handle, _ in encoded.children):
            raise ConfigError(
                variable="retry=",
                value=str(self.retries),
                expected="a call that moves no Box (it would die with its worker): lend it, or pass .clone()",
            )
        if self.decision is None:
            self.decision = placement.decide(encoded.children)
            self.target = self.decision.server
        parts: list[PartSpec | None] = [None] * len(encoded.children)
        columns: dict[int, ColumnSpec] = {}
        pointers: list[Child] = []
        pin: _core.Pin
        for index, (handle, flags) in enumerate(encoded.children):
            if isinstance(handle, _core.Box | _core.Shared):
                excepted = EXCEPTED if handles.is_excepted(handle) else 0
                lease = handle._lease
                pin, value = handle._transfer()
                self._moved.append((handle, pin, value))
                lends.gave(pin, lease)
                pointers.append((*pin.pointer, flags | excepted))
                continue
            excepted = EXCEPTED if handle._box._excepted_with_all else 0
            relent = RELENT if handle._box._lease else 0
            lent = flags | excepted | relent | (UNDO if handle._undo else 0)
            self.lease = self.lease or handle._box._lease
            pin = handle._lend(self)
            if flags == LENT_MUTABLE:
                lends.gave(pin, handle._box._lease, moved=False)
            in_place = flags == LENT_MUTABLE and not handle._undo and self._in_place(pin)
            column = getattr(handle, "_column", None)
            if column is not None:
                columns[index] = ColumnSpec(*column)
                in_place = runtime.server_of(pin.pointer) == self.target and handle._is_large(pin)
            part = handle._part
            if part is not None:
                parts[index] = _part_of(handle, part, pin)
                in_place = runtime.server_of(pin.pointer) == self.target
                lent |= PART
            self.lends.append(_Lend(handle, in_place))
            pointers.append((*pin.pointer, lent))
            self.records.append(pointers[-1])
        header = CallHeader(self._function, self.name, parts, self.retries > 0, columns)
        self._pin = write_block(_core.TASK_CODEC, header, encoded, pointers)
        self.pointer = self._pin.pointer
        for _, pin, _ in self._moved:
            pin.let_go()

    def _in_place(self, pin: _core.Pin) -> bool:
        """Whether the task will write into the very block, with no pre-image; if not known here, it may."""
        if runtime.server_of(pin.pointer) != self.target:
            return False
        if pin.local is None:
            return True
        return codecs.is_in_place(pin.codec) and pin.nbytes > lends.PRE_IMAGE_BYTES_MAX

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

    def committed(self, completion: "Completion") -> None:
        """Ends every lend with the pointer that its completion brought; frees what only a pre-image was."""
        index = 0
        for guard, _ in self.lends:
            if isinstance(guard, _core.Ref) or guard._part is not None:
                guard._end_lend(self, "committed")
                continue
            pointer = completion.lend(index, guard._box)
            if index in completion.end.poisoned:
                guard._end_lend(self, "poisoned", pointer, {"task": f"a task below {self.name}"})
            else:
                guard._end_lend(self, "committed", pointer)
            completion.taken(index)
            index += 1
            if self.lease is not None and guard._box._pin is not None:
                self.lease.met(guard._box._pin)
        self.lends.clear()
        if self.lease is not None:
            self.lease.frees.extend(completion.end.frees)
        else:
            for pointer, tree in completion.end.frees:
                runtime.current().free(pointer, shallow=not tree)

    def withdrawn(self) -> None:
        """Ends every lend of a task that was taken back before it began; its block is gone already."""
        for lend in self.lends:
            lend.guard._end_lend(self, "rolled_back")
        self.lends.clear()

    def lost(self, loss: Loss) -> None:
        """Ends every lend of a task that will not return: all rolled back, or all poisoned."""
        index = 0
        for guard, _ in self.lends:
            if isinstance(guard, _core.Ref):
                guard._end_lend(self, "rolled_back")
                continue
            pointer, index = loss.lends[index] if index < len(loss.lends) else None, index + 1
            if loss.poisoned:
                guard._end_lend(self, "poisoned", pointer, self._poison(loss))
            else:
                guard._end_lend(self, "rolled_back")
        self.lends.clear()

    def refused(self, poisoned: bool) -> Loss:
        """The task has returned, but its completion found no room here.

        Cost: 1 message for each block of its poisoned lends that is on another server.
        """
        now = self._lends_now()[0] if poisoned else []
        return Loss(poisoned, 0, "its completion found no room", "", now)

    def looked_after(self, loss: Loss) -> Loss:
        """A report, after the tables here name what was written in place below what was lent.

        Cost: 0, or, if it says poisoned, 1 message for each block of the mutable lends on another server.
        """
        if not loss.poisoned:
            return loss
        found = self._lends_now()[0]
        told = loss.lends + [None] * (len(found) - len(loss.lends))
        return loss._replace(lends=[now or then for now, then in zip(found, told, strict=True)])

    def unreported(self, *, gone: int = _core.NO_SERVER) -> Loss:
        """The loss of a task of which nobody can say more: what it was lent says whether it was written.

        A block that has another version than was lent was written in place, by the task or below it. Cost: 1
        message for each block of its mutable lends that is on another server.

        Args:
            gone: its server, if that has ended. What lay there is lost, or its backup has it as it was lent;
                else what the task may have written there is taken for written.
        """
        now, written = self._lends_now(gone)
        unsure = gone == _core.NO_SERVER and any(lend.in_place for lend in self.lends)
        return Loss(written or unsure, 0, "", "", now)

    def _lends_now(self, gone: int = _core.NO_SERVER) -> tuple[list[Pointer | None], bool]:
        """Of every mutable lend, where it is under the version it has now; whether one was written."""
        now: list[Pointer | None] = []
        written = False
        for address, colour, extent_bytes, flags in self.records:
            pointer = (address, colour, extent_bytes)
            if not flags & LENT_MUTABLE:
                continue
            if flags & PART:  # its colour is drawn when the array is joined
                now.append(pointer)
                continue
            found, is_written = runtime.current().look_at_lent(pointer, gone)
            now.append(found)
            written = written or is_written
        return now, written

    def _poison(self, loss: Loss) -> dict[str, str]:
        if not loss.pid:
            return {"task": f"task {self.name}", "worker": f"server {self.target}", "reason": loss.reason}
        worker = f"worker (pid {loss.pid}) on server {self.target}"
        return {"task": f"task {self.name}", "worker": worker, "reason": loss.reason, "time": loss.time}


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
        self._first_lend = len(children) - header.lends - 1
        self.end = CompletionEnd()
        if children[-1][0]:
            self.end = _end_decoder.decode(handles.take_value(children[-1][:3]))
            runtime.current().take_child(pin.pointer, len(children) - 1)

    def lend(self, index: int, box: "_core.Box[Any]") -> "Pointer | _core.Pin":
        """Where mutable lend `index` is now. This process's death frees it if it is a new version."""
        child = self._first_lend + index
        *where, flags = self._pin.child(child)
        pointer = (where[0], where[1], where[2])
        before = box._pin
        is_new = flags & (LENT_SHARED | LENT_MUTABLE) == LENT_MUTABLE
        is_elsewhere = runtime.server_of(pointer) != runtime.current().server
        if is_new and is_elsewhere and before is not None:
            release = before.on_release if box._lease is None else _core.RELEASE_FREE_MADE
            return _core.Pin.hold(pointer, release, self._pin, child)
        return pointer

    def taken(self, index: int) -> None:
        """Mutable lend `index` has its owner; one elsewhere stays in this block until its Pin dies."""
        child = self._first_lend + index
        if runtime.server_of(self._pin.child(child)[:3]) == runtime.current().server:
            runtime.current().take_child(self._pin.pointer, child)

    def outcome(self) -> tuple[Any, BaseException | None]:
        """(result, None) or (None, error). Decodes once; the boxes in it are this process's now."""
        try:
            if self._header.apart:
                pointer = self._pin.child(0)[:3]
                value = handles.take_value(pointer)
                runtime.current().take_child(self._pin.pointer, 0)
                return value, None
            value = None
            if self._pin.buffer_count:
                value = codecs.pickling.PickleCodec().decode(
                    self._pin, True, lambda child: handles.receive(self._pin, child)
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


def open_loss(here: _core.Runtime, pointer: Pointer) -> Loss | None:
    """The report of a lost task that has come to this partition; None if its server had no room for one."""
    if not pointer[0]:
        return None
    pin = here.open(pointer, False, RELEASE_SHALLOW)
    poisoned, pid, at_ns = _LOSS.unpack_from(pin.meta)
    time = datetime.fromtimestamp(at_ns / 1e9).astimezone().isoformat(" ", "seconds")
    lends: list[Pointer | None] = [child[:3] for child in pin.children]
    return Loss(bool(poisoned), pid, pin.meta[_LOSS.size :].decode(errors="replace"), time, lends)


_EMPTY = codecs.Encoded(codecs.PICKLE, b"", [])
"""The arguments of a call that has none, and None as a result: no buffer, so nothing to write and to read."""


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
        room: list[Child] = [(0, 0, 0, LENT_SHARED)] * (self._lends + 1)
        if remote and not raised:
            whole = _EMPTY if value is None else codecs.encode(value)
            if whole.nbytes > APART_BYTES:
                # It travels as one value: with replicas, if one of the Boxes in it has them.
                has_replicas = any(handles.is_excepted(handle) for handle, _ in whole.children)
                excepted = EXCEPTED if has_replicas and not runtime.config().replicas else 0
                self._apart = handles.write_encoded(whole)
                lends.gave(self._apart)
                apart = msgspec.structs.replace(header, apart=True)
                child = (*self._apart.pointer, excepted)
                return draft_block(_core.COMPLETION_CODEC, apart, _EMPTY, [child, *room])
        encoded = _EMPTY if value is None else codecs.encode_arguments(value, _RESULT_HANDLES)
        try:
            flags = [
                flags | (EXCEPTED if handles.is_excepted(handle) else 0) for handle, flags in encoded.children
            ]
            for box, _ in encoded.children:
                lease = box._lease
                pin, kept = box._transfer()
                self._moved.append((box, pin, kept))
                lends.gave(pin, lease)
            children = [(*moved[1].pointer, flag) for moved, flag in zip(self._moved, flags, strict=True)]
            return draft_block(_core.COMPLETION_CODEC, header, encoded, [*children, *room])
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Nobody will see it: the boxes of the result are the task's again."""
        for box, pin, kept in self._moved:
            box._transfer_undone(pin, kept)
        self._moved.clear()

    def publish(self, lends: list[tuple[Pointer, bool, int]], end: CompletionEnd) -> _core.Pin:
        """The completion block.

        Args:
            lends: where each mutable lend is now, whether that is a new version, and its `EXCEPTED` flag.
            end: what else its receiver must know.
        """
        index = len(self._moved) + (self._apart is not None)
        for pointer, is_new, excepted in lends:
            self._draft.set_child(index, (*pointer, excepted | (LENT_MUTABLE if is_new else LENT_SHARED)))
            index += 1
        last: _core.Pin | None = None
        if end.frees or end.poisoned:
            last = handles.write_encoded(codecs.encode(_header_encoder.encode(end)))
            self._draft.set_child(index, (*last.pointer, 0))
        pin = self._draft.publish()
        for _, moved, _ in self._moved:
            moved.disown()
        for kept in (self._apart, last):
            if kept is not None:
                kept.disown()
        return pin
