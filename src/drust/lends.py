"""The borrower's side of a lend: what a task was lent, and what its end waits for.

A task has one *lease* for all it was lent: whether it can still be rolled back (a word in the partition),
which blocks go only if it commits, and which tasks it lent on to. The lender's side is `calls.Outgoing`.
"""

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from drust import _core, codecs, handles, runtime
from drust.codecs import arrays
from drust.errors import StaleViewError
from drust.handles import NOTHING, Region
from drust.runtime import Pointer

if TYPE_CHECKING:
    from drust.tasks import JoinHandle


_leases: "weakref.WeakValueDictionary[int, Lease]" = weakref.WeakValueDictionary()
"""By the address of a block of this process that has children of a lender's in its table."""


def gave(block: _core.Pin, lease: "Lease | None" = None, moved: bool = True) -> None:
    """A Box with this block is moved or lent to a task; what lies in it may have been lent to one here.

    Args:
        block: what it has.
        lease: the Box's, if it was lent to a task here or taken out of what was.
        moved: not lent.
    """
    if not _leases and lease is None:
        return
    lease = _leases.get(block.pointer[0], lease)
    if lease is not None:
        lease.gave(block, moved)
    if block.local is None:
        return
    here = runtime.current()
    for child in block.children:
        pointer = child[:3]
        if (
            not child[3] & handles.BORROWED
            and runtime.server_of(pointer) == here.server
            and here.is_live(pointer)
        ):
            gave(here.open(pointer, False, NOTHING), lease, moved)


OF_PRE_IMAGE = handles.KEPT | handles.MADE  # of a child pointer: a pre-image owns it, or some of it, too
PRE_IMAGE_BYTES_MAX = 2**20  # as native/base/limits.hpp


class Lease:
    """Stands for one running task in the handles of what it was lent."""

    def __init__(self, here: _core.Runtime, entry: _core.TaskEntry) -> None:
        self.id = entry.id
        self.frees: list[tuple[Pointer, bool]] = []
        """Blocks of pre-images, and whether with all they own: freed once the outermost lend commits."""
        self.below: list[JoinHandle[Any]] = []
        """Tasks that have on loan what this one was lent."""
        self._here = here
        self._entry = entry
        self._shared: dict[int, Pointer] = {}  # children of blocks that the task left, by address
        self._named_by: dict[int, Pointer] = {}  # blocks made since that have some of them in their tables
        self._handles: dict[int, weakref.ref[_core.Box[Any]]] = {}  # of those children, by address
        self._given: set[int] = set()  # those that were moved to others
        self._has_ended = False

    def left(self, version: _core.Pin) -> None:
        """The task writes `version` from now on, in place of a block whose children it shares."""
        shared = [
            child for child in version.children if child[3] & handles.KEPT and not child[3] & handles.BORROWED
        ]
        if shared:
            self._shared.update((child[0], child[:3]) for child in shared)
            self._given.difference_update(child[0] for child in shared)
            self.name(version)

    def met(self, version: _core.Pin) -> None:
        """A task below made `version`: what its pre-image owns as well is for this task to settle."""
        if version.local is None:
            return
        self.left(version)
        for child in version.children:
            pointer = child[:3]
            if child[3] & handles.MADE and runtime.server_of(pointer) == self._here.server:
                self.met(self._here.open(pointer, False, NOTHING))

    def opened(self, child: "_core.Box[Any]") -> None:
        """`child` lies in such a version, and the block that was left owns it as well."""
        if child._pin is not None:
            self._handles[child._pin.pointer[0]] = weakref.ref(child)

    def name(self, block: _core.Pin) -> None:
        """What stands in the table of `block` stays as long as the block does."""
        self._named_by[block.pointer[0]] = block.pointer
        _leases[block.pointer[0]] = self

    def gave(self, block: _core.Pin, moved: bool = True) -> None:
        """Another task has it from now on, and may take it apart: that one decides about what lies in it.

        What was moved there and may be freed is not there for a rollback.
        """
        children = () if block.local is None else block.children
        if moved:
            self._given.add(block.pointer[0])
            shares = any(child[3] & OF_PRE_IMAGE and not child[3] & handles.BORROWED for child in children)
            if shares or block.is_made:
                self.forbid()
        self._given.update(child[0] for child in children)

    def settle(self) -> None:
        """Queues what nobody has any more of what the blocks share that the task left.

        Not before the task's end: until then a Box that was taken out of one value may be put into another.
        What went to another task is that one's to decide about. No message.
        """
        queued = {pointer[0] for pointer, _ in self.frees} | self._given
        missing = {address: pointer for address, pointer in self._shared.items() if address not in queued}
        for address, pointer in self._named_by.items():
            _leases.pop(address, None)
            if not missing:
                continue
            if not self._here.is_live(pointer):
                continue  # it was dropped, or another one took its place
            for child in self._here.open(pointer, False, NOTHING).children:
                if not child[3] & handles.BORROWED:
                    missing.pop(child[0], None)
        for address, pointer in missing.items():
            reference = self._handles.get(address)
            box = None if reference is None else reference()
            if box is not None and box._pin is not None and box._pin.pointer[0] == address:
                box._pin.set_release(handles.FREE_TREE)  # this process has it: it goes with its handle
                continue
            self.frees.append((pointer, True))

    def forbid(self) -> None:
        """From now on a lost worker poisons what this task was lent mutably. No message."""
        if not self._has_ended:
            self._here.forbid_rollback(self._entry)

    def end(self) -> None:
        """The task has returned: versions that this process has kept own all that they name."""
        self._has_ended = True
        for pointer in self._named_by.values():
            self._here.keep_version(pointer)

    def drain(self) -> None:
        """Waits until every task below has ended: else there would be two writers once this one returned."""
        for handle in self.below:
            handle.wait()
        self.below.clear()


class Lent:
    """A value that this worker's task borrows: `value` for the function, `end()` when it has returned."""

    def __init__(
        self, pointer: Pointer, mutable: bool, lease: Lease, *, undo: bool = False, excepted: bool = False
    ) -> None:
        self.pointer = pointer
        self.is_poisoned = False
        access: handles.Access = "mutable" if mutable else "shared"
        self._box = handles.hold(pointer, access, owns=False, lease=lease, undo=undo, excepted=excepted)
        self._mutable = mutable
        self._guard = self._box.borrow_mut() if mutable else self._box.borrow()
        self.value: Any = self._guard.__enter__()

    def end(self) -> None:
        """Ends the borrow; `pointer` is where the value is from now on."""
        self.value = None
        self._guard.__exit__(None, None, None)
        if self._mutable:
            self.is_poisoned = self._box._poisoned
            pin, _ = self._box._give_back()
            pin.disown()
            self.pointer = pin.pointer


class LentPart(Lent):
    """A part of a split array on this server.

    Up to `PRE_IMAGE_BYTES_MAX` the task writes a copy, put in place when it has returned: a worker that dies
    before leaves the array as it was. A larger part is written in place, and a lost worker poisons the array.
    """

    def __init__(self, pointer: Pointer, start: int, stop: int, axis: int, lease: Lease) -> None:
        self.pointer = pointer
        self.is_poisoned = False
        self._lease = lease
        self._pin = runtime.current().open(pointer, True, NOTHING)
        part = codecs.decode(self._pin, True)[(slice(None),) * axis + (slice(start, stop),)]
        self._place: Any = None
        if part.nbytes <= PRE_IMAGE_BYTES_MAX:
            self._place, part = part, part.copy(order="K")
        else:
            lease.forbid()
        self._copy = part if self._place is not None else None
        self.value = part

    def end(self) -> None:
        """Raises StaleViewError if a view of a part in place is still alive: it could write into it later."""
        self.value = None
        if self._place is None:
            if self._pin.references:
                raise StaleViewError(object="a part of a split array", location="the task it was lent to")
            return
        self._lease.forbid()  # from here on it may be half in place
        self._place[...] = self._copy
        self._place = self._copy = None


class TravellingPart(Lent):
    """A part of a split array on another server: comes here with one request, goes back with another."""

    def __init__(self, pointer: Pointer, region: Region, layout: bytes, lease: Lease) -> None:
        self.pointer = pointer
        self.is_poisoned = False
        self._lease = lease
        self._region = region
        shape, dtype, order = arrays.unpack_layout(layout)
        self._bytes = bytearray(region[1] * region[2])
        runtime.current().read_region(pointer, region, self._bytes)
        self.value = np.ndarray(shape, dtype, buffer=self._bytes, order="F" if order == "F" else "C")

    def end(self) -> None:
        """Writes the part back: 1 round trip. Once it has left, the task cannot be rolled back any more."""
        self.value = None
        self._lease.forbid()
        runtime.current().write_region(self.pointer, self._region, self._bytes)
