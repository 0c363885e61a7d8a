"""The slow paths behind Box, Ref and RefMut: what their C types ask when a value comes, goes or is refused.

`native/bind` holds the state and decides every borrow; a borrow of a live value never comes here. What does:

    adopt        Box(value): array data goes into the heap at once (aliases of it could not be seen), all else
                 stays live
    materialise  a value whose block is here is decoded in place; elsewhere, it is fetched to read and moved
                 to write
    publish      another process is about to see a live value: encode it, children first
    conflict     a borrow was refused: the exception, with who holds the value

Who frees the children of a parent: its block, while the block is what others know of it; each child's own
handle, while the parent is a live object here that may let go of them.
"""

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

from drust import _core, codecs, creation, groups, runtime, shipping
from drust.codecs import arrays
from drust.config import HEAP_WATERMARK
from drust.errors import (
    AccessError,
    BorrowError,
    BorrowMutError,
    BorrowTimeoutError,
    ClosedError,
    DrustError,
    ForkedHandleError,
    ImmutableValueError,
    InternalError,
    MovedError,
    OutOfMemoryError,
    PickledBoxError,
    PoisonedError,
    RevokedError,
    ServerLostError,
    StaleViewError,
    StaleViewWarning,
)
from drust.runtime import Pointer

NOTHING, FREE_TREE = groups.NOTHING, groups.FREE_TREE  # what a Pin's end does: native/bind/runtime.hpp
FREE_MADE = _core.RELEASE_FREE_MADE
FREE_SHALLOW, FREE_TIED = groups.FREE_SHALLOW, groups.FREE_TIED

EXCEPTED = 128  # of a child pointer: of replicas, the value is an exception from what the session says
KEPT = 8  # of a child pointer: in a version that a borrower made, the pre-image owns the child as well
MADE = _core.CHILD_MADE  # of a child pointer in a version: a task below made the child, on another server
BORROWED = 2 | 4  # of a child pointer: the block does not own the child

Access: TypeAlias = Literal["owned", "shared", "mutable"]
Region: TypeAlias = tuple[int, int, int, int]


# -- values into the heap ----------------------------------------------------------------------------------


def is_excepted(handle: object) -> bool:
    """Whether its value is an exception from what the session says of replicas."""
    return isinstance(handle, _core.Box) and handle._excepted


def write_encoded(encoded: codecs.Encoded) -> _core.Pin:
    """A block with these parts: one copy of each buffer; children go with it."""
    if encoded.children and encoded.codec in codecs.GROUPS:
        return groups.write(encoded)
    owned: list[_core.Pin] = []

    def pointer_of(child: "_core.Box[Any]", flags: int) -> tuple[int, int, int, int]:
        pin = child._publish()
        owned.append(pin)
        kept, excepted = KEPT if child._kept else 0, EXCEPTED if is_excepted(child) else 0
        made = MADE if isinstance(child, _core.Box) and pin.is_made else 0
        return (*pin.pointer, flags | kept | excepted | made)

    block = codecs.write(runtime.current(), encoded, pointer_of)
    for pin in owned:
        pin.set_release(NOTHING)  # they are the new block's now
    for child, _ in encoded.children:
        if isinstance(child, _core.Box) and child._lease is not None:
            child._lease.name(block)
    return block


def _adopt(value: object) -> tuple[object, _core.Pin | None, bool]:
    if type(value) is np.ndarray:
        parts = arrays.encode_array(value)
        if parts is not None:
            encoded = codecs.Encoded(codecs.NDARRAY, parts[0], [parts[1]])
            try:
                pin = codecs.write(runtime.current(), encoded)
            except OutOfMemoryError as error:
                return value, creation.put_elsewhere(encoded, error), True
            runtime.count("blocks_copied")
            runtime.count("bytes_copied", value.nbytes)
            return codecs.decode(pin), pin, True
    _note_kind(value)
    return value, None, False


def _note_kind(value: object) -> None:
    """Frames and series are changed as objects, never in their memory: who kept one keeps a shallow copy."""
    if type(value).__module__.startswith("polars.") and hasattr(value, "clone"):
        _core.add_shallow_type(type(value))


def _publish(box: "_core.Box[Any]") -> _core.Pin:
    encoded = codecs.encode(box._value)
    if encoded.children and encoded.codec in codecs.GROUPS:
        before = box._pin
        is_version = before is not None and before.local is not None and groups.is_parent(before)
        return groups.rewrite(encoded, before) if before is not None and is_version else groups.write(encoded)
    for child, _ in encoded.children:
        child._set_parent(box)
    return write_encoded(encoded)


# -- values out of the heap --------------------------------------------------------------------------------


class PrivateBytes:
    """A block as a codec sees it that is to be changed as a Python object: its buffers are copies.

    Else a borrower would change arrays inside a dict in the very block that is its lender's pre-image.
    """

    writable = True

    def __init__(self, pin: _core.Pin) -> None:
        self._pin = pin
        self.codec = pin.codec
        self.meta = pin.meta
        self.children = pin.children
        self.buffer_count = pin.buffer_count

    def buffer(self, index: int, /) -> bytearray:
        """A copy of buffer `index`."""
        return bytearray(self._pin.buffer(index))


_read: "OrderedDict[int, weakref.ref[_core.Box[Any]]]" = OrderedDict()
"""The Boxes whose values this process has read from elsewhere, oldest first. Protected by the GIL."""
_LOOK_EVERY_BYTES = 2**20  # read, between looks at how full the heap is
_read_since_bytes = 0  # racing threads may lose a few


def _fetch(here: _core.Runtime, box: "_core.Box[Any]", pointer: Pointer) -> _core.Pin:
    """A copy of a value elsewhere.

    A Box keeps what it has read for its next borrow, which pins the copy: while the heap is short of room,
    those that nobody borrows let go, so that the oldest copies can be evicted.
    """
    global _read_since_bytes
    _read_since_bytes += pointer[2]
    if _read_since_bytes >= _LOOK_EVERY_BYTES:
        _read_since_bytes = 0
        usage = here.usage()
        if usage["claimed_bytes"] > HEAP_WATERMARK * usage["quota_bytes"]:
            forget_read()
    pin = _with_room(lambda: here.fetch(pointer))
    key = id(box)
    _read[key] = weakref.ref(box, lambda _: _read.pop(key, None))
    _read.move_to_end(key)
    return pin


def _with_room(read: Callable[[], _core.Pin]) -> _core.Pin:
    try:
        return read()
    except OutOfMemoryError:
        if not forget_read():
            raise
        return read()


def forget_read() -> int:
    """Has every Box let go of what it has read from elsewhere and nobody borrows. Returns how many did."""
    forgotten = 0
    for key, reference in list(_read.items()):
        box = reference()
        if box is not None and box._forget():
            _read.pop(key, None)
            forgotten += 1
    return forgotten


def _materialise(box: "_core.Box[Any]", writable: bool) -> None:
    pin = box._pin
    if pin is None:
        raise InternalError(detail="A value is to be decoded that has no block.")
    source = pin
    here = runtime.current()
    if pin.local is None:
        is_lent = box._lease is not None
        where = pin.pointer
        try:
            source = _with_room(lambda: here.take(where, is_lent)) if writable else _fetch(here, box, where)
        except ServerLostError as error:
            raise _name_lost(box, where, error) from None
    if source.codec == codecs.NDARRAY:  # the path of every remote read of an array: not through the registry
        view = source.as_writable() if writable else source
        box._install(arrays.decode_array(source.meta, view, writable), source, True, writable)
        runtime.count("decodes")
        return
    if groups.is_parent(source):
        _materialise_group(box, source, writable)
        return
    owns_children = pin.on_release == FREE_TREE
    lease = box._lease

    def child(index: int) -> "_core.Box[Any] | _core.Shared":
        *where, flags = source.child(index)
        pointer = (where[0], where[1], where[2])
        kept = lease is not None and bool(flags & KEPT)
        owns = owns_children and writable and not kept
        if flags & _core.HOLD:
            return open_hold(pointer, flags, owns=owns)
        made = lease is not None and not kept and bool(flags & MADE)
        box_inside = hold(pointer, "owned", owns, box, kept=kept, made=made, excepted=bool(flags & EXCEPTED))
        if kept and lease is not None:
            lease.opened(box_inside)
        return box_inside

    if writable and lease is not None:
        lease.left(source)
    block = PrivateBytes(source) if writable else source
    value = codecs.decode(block, writable, child)
    _note_kind(value)
    box._install(value, source, False, writable)
    if owns_children and writable and source.children:
        source.set_release(FREE_SHALLOW)


def _name_lost(box: "_core.Box[Any]", pointer: Pointer, error: ServerLostError) -> ServerLostError:
    """The error for a value that its server, or who answers in its place, does not have: names both."""
    state = box._state()
    made = f", at hand since {state['created']}" if state["created"] else ""
    return ServerLostError(
        object=f"{state['label']} (address {pointer[0]:#x}{made})",
        server=f"server {runtime.server_of(pointer)}",
        reason=error.reason,
        detail=error.detail,
    )


def _materialise_group(box: "_core.Box[Any]", source: _core.Pin, writable: bool) -> None:
    """A frame over the blocks of its columns: what changes it makes new ones, so the memory is read-only.

    Elsewhere: 1 more round trip for all columns that this host has no copy of.
    """
    pin = box._pin
    is_here = pin is not None and pin.local is not None
    if writable and not is_here:
        source = groups.move_parts(source)
    parts = groups.open_parts(source) if is_here or writable else groups.fetch_parts(source)
    value = codecs.decode(source, False, parts.__getitem__)
    _note_kind(value)
    box._install(value, source, False, writable)


_shared_classes: dict[int, "type[_core.Shared]"] = {}  # by kind; set when drust.sync is imported


def open_holds_as(classes: "dict[int, type[_core.Shared]]") -> None:
    """Registers the classes of shared objects by their kinds: drust.sync."""
    _shared_classes.update(classes)


def open_hold(
    pointer: Pointer, flags: int, *, owns: bool, holder: "_core.Pin | None" = None, index: int = 0
) -> "_core.Shared":
    """The handle of a shared object whose hold came as a child: 1 round trip if elsewhere and not owned."""
    kind = (flags >> _core.HOLD_KIND_SHIFT) & 31
    return _shared_classes[kind]._open(pointer, owns, flags, holder, index)


def hold(
    pointer: Pointer,
    access: Access,
    owns: bool = True,
    parent: "_core.Box[Any] | None" = None,
    *,
    lease: object = None,
    undo: bool = False,
    kept: bool = False,
    made: bool = False,
    excepted: bool = False,
    holder: "tuple[_core.Pin, int] | None" = None,
) -> "_core.Box[Any]":
    """A handle for a value that came from elsewhere, wherever it lies. No message.

    Args:
        pointer: where it is.
        access: what the handle may do.
        owns: whether the handle's end frees the value.
        parent: the Box whose value it lies in.
        lease: the task that it was lent to.
        undo: keep its pre-image whatever its size.
        kept: its block belongs to the pre-image of its parent.
        made: a task below made it, of a pre-image that owns some of what it owns.
        excepted: of replicas, from what the session says.
        holder: the block here, and the index in its child table, that frees it if this process dies; for a
            value on another server.
    """
    here = runtime.current()
    release = FREE_TREE if owns else NOTHING
    label: str | type
    if runtime.server_of(pointer) == here.server:
        pin = here.open(pointer, False, release)
        label = np.ndarray if pin.codec == codecs.NDARRAY else codecs.codec_name(pin.codec)
    else:
        around, index = holder or (None, 0)
        pin = _core.Pin.hold(pointer, FREE_MADE if made else release, around, index)
        if made and not owns:
            pin.set_release(NOTHING)
        label = "remote value"
    return _core.Box._from_pin(
        pin, access, label, parent, undo=undo, lease=lease, kept=kept, excepted=excepted
    )


def receive(block: "_core.Pin", index: int, *, again: bool = False) -> "_core.Box[Any] | _core.Shared":
    """The handle that child `index` of a call or completion brought here, wherever it lies. No message.

    Args:
        block: the call or completion.
        index: which child.
        again: the block keeps a hold that it brought, for the next run of its task.
    """
    *where, flags = block.child(index)
    pointer = (where[0], where[1], where[2])
    excepted = bool(flags & EXCEPTED)
    here = runtime.current()
    if flags & _core.HOLD:
        handle = open_hold(pointer, flags, owns=not again, holder=block, index=index)
        if not again and runtime.server_of(pointer) == here.server:
            here.take_child(block.pointer, index)
        return handle
    if runtime.server_of(pointer) != here.server:
        return hold(pointer, "owned", excepted=excepted, holder=(block, index))
    box = hold(pointer, "owned", excepted=excepted)
    here.take_child(block.pointer, index)
    return box


def take_value(pointer: Pointer) -> Any:
    """The value of a block that was made for this process alone: 1 read and a free if it is elsewhere."""
    here = runtime.current()
    if runtime.server_of(pointer) == here.server:
        pin = here.open(pointer, False, FREE_TREE)
    else:
        old = _core.Pin.hold(pointer, FREE_TIED)
        pin = here.take(pointer)
        if groups.is_parent(pin):
            pin = groups.move_parts(pin)
        del old
    if groups.is_parent(pin):
        return codecs.decode(pin, False, groups.open_parts(pin).__getitem__)

    def child(index: int) -> "_core.Box[Any] | _core.Shared":
        *where, flags = pin.child(index)
        pointer = (where[0], where[1], where[2])
        if flags & _core.HOLD:
            return open_hold(pointer, flags, owns=True)
        box = hold(pointer, "owned", excepted=bool(flags & EXCEPTED))
        if box._pin is not None:
            box._pin.anchor()
        return box

    value = codecs.decode(pin.as_writable(), True, child)
    if pin.children:
        pin.set_release(FREE_SHALLOW)  # they go with their handles
    return value


# -- refusals ----------------------------------------------------------------------------------------------


def _absorb(box: "_core.Box[Any]") -> None:
    for lend in box._state()["lends"]:
        lend.poll()


def _wait(box: "_core.Box[Any]", writable: bool, timeout_s: float) -> None:
    lends = box._state()["lends"]
    if lends:
        lends[0].poll(min(int(timeout_s * 1000) + 1, 100))
    else:
        _core.Box._wait_end(box, timeout_s)


def _holder(fields: dict[str, Any], box: "_core.Box[Any] | None") -> dict[str, Any]:
    lends = box._state()["lends"] if box is not None else ()
    if lends:
        return {"holder": ", ".join(dict.fromkeys(map(str, lends)))}
    if "file" in fields:
        return {
            "holder": f"thread {fields['thread']} of process {fields['process']}",
            "location": f"{fields['file']}:{fields['line']}",
            "age_s": fields["age_s"],
            "mode": "mutably" if fields["mode"] == "mutable" else "shared",
        }
    return {}


def _conflict(box: "_core.Box[Any] | None", kind: str, message: str, **fields: Any) -> DrustError:
    """The exception for a refusal of native/bind: `kind` as in native/bind/conflict.cpp."""
    name = fields.get("box_label", "this Box")
    if "waited_s" in fields and kind in ("borrow", "borrow_mut"):
        held = _holder(fields, box)
        return BorrowTimeoutError(
            object=name,
            timeout_s=fields["waited_s"],
            holder=held.get("holder", ""),
            location=held.get("location", ""),
        )
    match kind:
        case "moved":
            how, _, place = message.rpartition(" at ")
            return MovedError(object=name, into="into_inner()" if "into_inner" in how else "", location=place)
        case "borrow":
            return BorrowError(object=name, **_holder(fields, box))
        case "borrow_mut":
            return BorrowMutError(object=name, **_holder(fields, box))
        case (
            "read_only"
            | "not_owner"
            | "parent_not_borrowed"
            | "child_borrowed"
            | "entered_twice"
            | "too_many"
        ):
            return AccessError(object=name, reason=message.partition(": ")[2])
        case "poisoned":
            return PoisonedError(object=name, **fields.get("poison", {}))
        case "immutable":
            return ImmutableValueError(object=name, detail=f"{message}.")
        case "pickled" | "copied":
            return PickledBoxError(object=name, detail=f"{message}.")
        case "forked":
            return ForkedHandleError(object=name)
        case "closed":
            return ClosedError(detail=f"{message}.")
        case "revoked":
            place = message.rpartition(" ended at ")[2].partition(";")[0]
            return RevokedError(location=place)
        case _:
            return InternalError(detail=f"{kind}: {message}.")


def _survivors(box: "_core.Box[Any]", mode: str, locations: list[str]) -> DrustError | None:
    where = ", ".join(locations)
    name = box._state()["label"]
    if runtime.config().strict:
        return StaleViewError(object=name, location=where)
    text = (
        f"a view of {name} outlived its borrow, which ended at {where}; it keeps the version it saw, so"
        f" {name} is copied to a new block. Delete the view before the block ends, or take a .copy() of it."
    )
    warnings.warn(text, StaleViewWarning, stacklevel=2)
    return None


class _PrivateParts:
    """The parts of an encoded value in memory of this process: what a clone is decoded from."""

    writable = True

    def __init__(self, encoded: codecs.Encoded) -> None:
        self.codec = encoded.codec
        self.meta = encoded.meta
        self.children = [(0, 0, 0, flags) for _, flags in encoded.children]
        self.buffer_count = len(encoded.buffers)
        self._buffers = [bytearray(codecs.base.part_bytes(part)) for part in encoded.buffers]
        for index, part in enumerate(encoded.buffers):
            codecs.base.fill(self, index, part)

    def buffer(self, index: int, /) -> bytearray:
        """The memory of buffer `index`."""
        return self._buffers[index]

    def copy_in(self, index: int, data: Any, /) -> None:
        """Fills it with contiguous bytes."""
        memoryview(self._buffers[index])[:] = memoryview(data).cast("B")

    def publish(self) -> None:
        """Nobody else is to see it."""


def _clone(box: "_core.Box[Any]") -> object:
    """A copy of a live value as its codec makes it, the Boxes inside cloned: one encoding, no message."""
    encoded = codecs.encode(box._value)
    if encoded.children and encoded.codec in codecs.GROUPS:
        return box._value  # nobody can change it: the columns are shared until one is written
    clones = [child.clone() for child, _ in encoded.children]  # of a shared object, the handle itself
    return codecs.decode(_PrivateParts(encoded), True, clones.__getitem__)


def _forbid_rollback(box: "_core.Box[Any]") -> None:
    lease = box._lease
    if lease is not None:
        lease.forbid()
        if box._pin is not None and box._state()["phase"] == "moved":
            lease.gave(box._pin)


def _queue_free(box: "_core.Box[Any]", pin: "_core.Pin", tree: bool, pre_image: bool) -> None:
    lease = box._lease
    if lease is None:
        return
    if pre_image:
        lease.frees.append((pin.pointer, tree))
    elif pin.local is not None and groups.is_parent(pin):
        lease.frees += [
            (child[:3], True) for child in pin.children if child[3] & KEPT and not child[3] & BORROWED
        ]


def _count(kind: str, nbytes: int) -> None:
    runtime.count(kind)
    if nbytes:
        runtime.count("bytes_encoded", nbytes)


_core.set_hooks(
    adopt=_adopt,
    materialise=_materialise,
    publish=_publish,
    clone=_clone,
    absorb=_absorb,
    wait=_wait,
    conflict=_conflict,
    survivors=_survivors,
    forbid_rollback=_forbid_rollback,
    queue_free=_queue_free,
    settle=groups.settle,
    choose_replicas=creation.choose_replicas,
)
codecs.register_handle(_core.Box)
codecs.set_importable(shipping.is_importable)
codecs.observe(_count)
