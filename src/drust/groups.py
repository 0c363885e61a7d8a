"""Tied groups: a parent block and the blocks tied to it, as a frame and its columns. No handle knows them.

A group lies on one server. In the process that has it open, the Pin of the parent holds the Pins of the
tied blocks (`parts`), and views of a column hold that column's Pin: so a column that a view still looks at
outlives its frame (native/bind/pin.cpp), and a new version of the parent can take over what did not change
(native/heap/tied.cpp).

What a process knows of where columns came from (`origin`) tells it after a mutable borrow which of them are
the memory they were: those keep their blocks.
Source: Ma et al., OSDI'24, section 4.1.3 (TBox: fetched and moved with its owner, in one batch).
"""

import threading
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from drust import _core, codecs, runtime
from drust.codecs.base import TIED, ChildPointer, Encoded
from drust.errors import StaleViewError, StaleViewWarning
from drust.runtime import Pointer

NOTHING, FREE_TREE, FREE_SHALLOW, FREE_TIED = 0, 1, 2, 4  # what a Pin's end does: native/bind/runtime.hpp
BORROWED = 2  # a child's flag: another version of the parent owns it, until this one takes its place

Part: TypeAlias = _core.Pin


class Origin(NamedTuple):
    """The columns a parent was written from: while they are kept here, their memory is nobody else's."""

    keys: list[Hashable]
    columns: list[Any]


class _Writing(threading.local):
    """The parent that this thread is about to write one column of: its other columns need not be settled."""

    box: "_core.Box[Any] | None" = None


_writing = _Writing()


def is_parent(pin: _core.Pin) -> bool:
    """Whether the block has tied children."""
    return pin.codec in codecs.GROUPS and pin.child_count > 0


def pointers(pin: _core.Pin) -> list[Pointer]:
    """Where the children are."""
    return [child[:3] for child in pin.children]


# -- making them -------------------------------------------------------------------------------------------


def write_part(encoded: Encoded) -> Part:
    """A tied block that is nobody's yet; its Pin frees it until a parent names it."""
    pin = codecs.write(runtime.current(), encoded)
    runtime.count("bytes_encoded", pin.nbytes)
    return pin


def write_parent(encoded: Encoded, parts: Sequence[Part], flags: Sequence[int]) -> _core.Pin:
    """The parent of these blocks, which are its own from now on (or will be, where flagged as borrowed)."""
    children: list[ChildPointer] = [(*part.pointer, flag) for part, flag in zip(parts, flags, strict=True)]
    here = runtime.current()
    draft = here.allocate(encoded.codec, encoded.meta, [], children)
    parent = draft.publish()
    for part in parts:
        if part.on_release == FREE_TREE:
            part.set_release(NOTHING)
    parent.parts = tuple(parts)
    return parent


def write(encoded: Encoded) -> _core.Pin:
    """A value whose children are all tied: a copy of each buffer, no message."""
    from drust.codecs import arrow

    encoded = arrow.regroup(encoded)
    tied = [child for child, _ in encoded.children]
    parts = [write_part(column.encode()) for column in tied]
    parent = write_parent(encoded, parts, [TIED] * len(parts))
    parent.origin = Origin([column.key for column in tied], tied)
    return parent


def rewrite(encoded: Encoded, old: _core.Pin) -> _core.Pin:
    """The next version of a parent. Children that are the memory they were keep their blocks.

    `old` itself if nothing changed. A block is taken once: a column that is there twice gets two.
    """
    from drust.codecs import arrow

    parts = open_parts(old)
    encoded = arrow.regroup(encoded, arrow.read_layout(old.meta).lengths)
    known = _known(old, parts)
    taken: set[int] = set()
    tied = [child for child, _ in encoded.children]
    chosen: list[Part] = []
    flags: list[int] = []
    for place, column in enumerate(tied):
        index = known.get(column.key)
        if index is None and place < len(parts) and column.equals(parts[place]):
            index = place
        if index is None or index in taken:
            chosen.append(write_part(column.encode()))
            flags.append(TIED)
        else:
            taken.add(index)
            chosen.append(parts[index])
            flags.append(TIED | BORROWED)
    if encoded.codec == old.codec and encoded.meta == old.meta and tuple(chosen) == parts:
        return old
    parent = write_parent(encoded, chosen, flags)
    parent.origin = Origin([column.key for column in tied], tied)
    return parent


def _known(old: _core.Pin, parts: Sequence[Part]) -> dict[Hashable, int]:
    """Which memory is which block's: the blocks' own, and what they were written from."""
    from drust.codecs import arrow

    known = {key: index for index, key in enumerate(arrow.keys_of(old, parts.__getitem__))}
    origin: Origin | None = old.origin
    if origin is not None:
        known.update((key, index) for index, key in enumerate(origin.keys))
    return known


# -- having them here --------------------------------------------------------------------------------------


def open_parts(parent: _core.Pin) -> tuple[Part, ...]:
    """The tied blocks of a parent in this partition; no message."""
    if parent.parts is None:
        parent.parts = runtime.current().open_tied(parent)
    return parent.parts


def fetch_parts(parent: _core.Pin) -> list[Part]:
    """Copies of the tied blocks of a copied parent: 1 round trip for all that this host has no copy of."""
    return runtime.current().fetch_tied(pointers(parent))


def move_parts(parent: _core.Pin) -> _core.Pin:
    """A parent that was moved here, with its tied blocks moved after it: 1 round trip."""
    parts = runtime.current().take_tied(pointers(parent))
    return write_parent(Encoded(parent.codec, parent.meta, []), parts, [TIED] * len(parts))


# -- giving them away --------------------------------------------------------------------------------------


@contextmanager
def writing(box: "_core.Box[Any]") -> Iterator[None]:
    """The lend that begins in this block is for one column: `settle` leaves the others as they are."""
    _writing.box = box
    try:
        yield
    finally:
        _writing.box = None


def settle(box: "_core.Box[Any]", is_named: bool) -> _core.Pin | None:
    """Before another process owns or writes the group: columns that views of this process hold are copied.

    The views keep the blocks they have. Returns the parent that names the copies, or None if there are none.
    """
    pin = box._pin
    if pin is None or _writing.box is box:
        return None
    pin.origin = None
    viewed = pin.viewed_parts()
    if pin.on_release == NOTHING or not viewed:  # what is lent here is its lender's to settle
        pin.parts = None
        return None
    if not is_named:
        tell_viewed(box)
    here = runtime.current()
    copied: list[Part] = [*open_parts(pin)]
    flags = [TIED | BORROWED] * len(copied)
    for index in viewed:
        copied[index] = here.open(here.duplicate(copied[index].pointer), False, FREE_TREE)
        flags[index] = TIED
    fresh = write_parent(Encoded(pin.codec, pin.meta, []), copied, flags)
    fresh.parts = None
    return fresh


def tell_viewed(box: "_core.Box[Any]") -> None:
    """A view outlived its borrow, and a column is copied for it.

    Raises:
        StaleViewError: in strict mode.
    """
    name = box._state()["label"]
    if runtime.config().strict:
        raise StaleViewError(object=name)
    text = (
        f"a frame or series from a borrow of {name} is still alive: it keeps the columns it saw, and those to"
        " be written are copied. Delete it before, or .clone() what you keep."
    )
    warnings.warn(text, StaleViewWarning, stacklevel=3)
