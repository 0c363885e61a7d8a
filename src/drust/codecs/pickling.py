"""Pickle: the codec of everything that has no better one.

In the block: buffer 0 is the pickle, the others are the buffers of 1 KiB and more that it refers to (arrays
in a dict, columns of a pandas frame), written from where they are and decoded as views of the block. Boxes in
the value are children of the block, in the order in which pickling meets them. What is tied to the value
follows it, a pickle each: tied.py.

A value is a Python object in the process that borrows it. Under a mutable borrow its buffers can be written
through, but the object around them is private, so the value is encoded anew when others are to see it.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from drust.codecs import picklers
from drust.codecs.base import PICKLE, Encoded, Part, PinLike, borrowed, type_name
from drust.codecs.culprit import find_culprit, places_of
from drust.codecs.picklers import (
    OUT_OF_BAND_BYTES_MIN,
    ChildUnpickler,
    MetHandle,
    NeedsCloudpickle,
    SharedHandle,
)
from drust.codecs.registry import count_encode, install
from drust.codecs.tied import Parts, Tied, pack_starts
from drust.errors import DrustError, UnpicklableError

_PROTOCOL = 5
_ATOMS = frozenset((int, float, str, bool, type(None), complex))

# Types of handles that values may own, with flags. Written when drust.handles is imported, then only read.
_handles: dict[type, int] = {}


def register_handle(kind: type, flags: int = 0) -> None:
    """Makes objects of exactly this type children of the values that hold them (`flags`: 1 for tied)."""
    _handles[kind] = flags


def set_importable(is_importable: Callable[[str], bool]) -> None:
    """Replaces the rule that says which modules other processes can import by name.

    What a module that they cannot import defines travels by value; a rule that says no must also have told
    cloudpickle (`register_pickle_by_value`) unless the module is `__main__`. The rule at the start: all but
    `__main__`.
    """
    picklers.is_importable = is_importable


def _dump(value: Any, handles: Mapping[type, int], by_value: bool, boxes: bool, tied: bool) -> Encoded:
    kind = {
        (False, False): picklers.PlainPickler,
        (False, True): picklers.BoxPickler,
        (True, False): picklers.CloudPickler,
        (True, True): picklers.CloudBoxPickler,
    }[by_value, boxes]
    buffers: list[Part] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # strided: pickle says so better
            return True
        if raw.nbytes < OUT_OF_BAND_BYTES_MIN:
            return True
        buffers.append(raw)
        return False

    children: list[tuple[Any, int]] = []
    seen: set[int] = set()
    found: list[Any] = [value]  # grows while what is tied is met
    starts: list[int] = []
    for part in found:
        stream = io.BytesIO()
        start = len(buffers)
        buffers.append(b"")
        pickler = kind(stream, _PROTOCOL, buffer_callback=keep_in_band)
        pickler.handles = handles
        pickler.children = children
        pickler.seen = seen
        pickler.tied = found if tied else None
        pickler.dump(part.value if starts else part)
        buffers[start] = stream.getbuffer()
        starts.append(start)
    return Encoded(PICKLE, pack_starts(starts[1:]), buffers, children)


def _encode(value: Any, handles: Mapping[type, int], tied: bool = True) -> Encoded:
    """As `_dump`, with the weakest pickler that can do it."""
    by_value = boxes = False
    while True:
        try:
            return _dump(value, handles, by_value, boxes, tied)
        except NeedsCloudpickle:
            by_value = True
        except MetHandle:
            boxes = True
        except (DrustError, SharedHandle, MemoryError):
            raise
        except Exception:
            if by_value:
                raise
            by_value = True  # cloudpickle may know how


def _refusal(value: Any, error: BaseException, handles: Mapping[type, int]) -> UnpicklableError:
    """The error that says which part of the value cannot travel, and where it is."""
    if isinstance(error, SharedHandle):
        first, *others = places_of(value, error.handle) or ["this value"]
        return UnpicklableError(
            object=first,
            type_name=type_name(type(error.handle)),
            reason=f"the same one is at {' and '.join(others)}, and it can have only one owner"
            if others
            else "it is in the value twice, and it can have only one owner",
            detail="Tie a copy of its value in the other place."
            if isinstance(error.handle, Tied)
            else "Put its .clone() into the other place.",
        )

    def failure(part: Any) -> Exception | None:
        try:
            _encode(part, handles)
        except Exception as found:  # noqa: BLE001 - whatever it is, it is the answer
            return found
        return None

    if isinstance(error, RecursionError) or isinstance(
        error.__cause__, RecursionError
    ):  # cloudpickle wraps it
        return UnpicklableError(
            object="this value",
            type_name=type_name(type(value)),
            reason="it is nested too deeply for pickle",
            detail="Keep its items in a flat list, tie them (drust.Tied), or give them Boxes of their own.",
        )
    culprit = find_culprit(value, error, failure)
    return UnpicklableError(
        object=culprit.path,
        type_name=type_name(type(culprit.value)),
        reason=culprit.reason,
        detail=culprit.advice,
    )


class PickleCodec:
    """Everything else."""

    number = PICKLE
    name = "pickle"

    def encode(self, value: Any, /, handles: Mapping[type, int] = _handles, tied: bool = True) -> Encoded:
        """Copies what is small into the pickle, and no buffer of 1 KiB and more.

        A value is pickled again if it turns out to hold a Box or something of `__main__`, so `__getstate__`
        can be called up to three times.

        Raises:
            UnpicklableError: naming the part, the path to it, and what to do.
        """
        if type(value) in _ATOMS:
            return Encoded(PICKLE, b"", [pickle.dumps(value, _PROTOCOL)])
        try:
            return _encode(value, handles, tied)
        except (DrustError, MemoryError):
            raise
        except Exception as error:
            raise _refusal(value, error, handles) from error

    def decode(self, pin: PinLike, writable: bool, child: Callable[[int], Any], /) -> Any:
        """The value; its large buffers are the block's memory, read-only unless `writable`."""
        if pin.meta and pin.codec == PICKLE:
            return Parts(pin, writable, child).load_all()
        buffers = [borrowed(pin, index, writable) for index in range(1, pin.buffer_count)]
        if pin.children:
            return ChildUnpickler(io.BytesIO(pin.buffer(0)), buffers, child).load()
        return pickle.loads(pin.buffer(0), buffers=buffers)


_codec = PickleCodec()
install(_codec, object, subclasses=True)


def pickle_alone(value: Any, name: str) -> bytes:
    """A value as one pickle, its buffers inside, for what stores bytes and owns nothing.

    Args:
        value: without Boxes and handles of shared objects.
        name: what an error calls it.

    Raises:
        UnpicklableError: naming the part, the path to it, and what to do.
    """
    if type(value) in _ATOMS:
        return pickle.dumps(value, _PROTOCOL)
    for kind in (picklers.PlainPickler, picklers.CloudPickler):
        stream = io.BytesIO()
        pickler = kind(stream, _PROTOCOL)
        pickler.handles = _handles
        pickler.tied = None
        try:
            pickler.dump(value)
        except MetHandle:
            raise UnpicklableError(
                object=name,
                reason="it holds a Box or a handle of a shared object, and could not own it",
                detail="Put what the Box holds, or keep the handle beside it.",
            ) from None
        except (DrustError, MemoryError):
            raise
        except NeedsCloudpickle:
            continue
        except Exception as error:
            if kind is picklers.CloudPickler:
                raise _refusal(value, error, _handles) from error
            continue
        return stream.getvalue()
    raise AssertionError("cloudpickle needs cloudpickle")


def encode_arguments(value: Any, handles: Mapping[type, int]) -> Encoded:
    """A value in which more kinds of handles may occur than one may own: a task's arguments with its borrows.

    Args:
        value: usually a tuple and a dict.
        handles: the exact types that become children, with their flags (0 moved, 2 lent shared, 4 lent
        mutably).

    Raises:
        UnpicklableError: as `encode`.
    """
    encoded = _codec.encode(value, handles, tied=False)  # the block's metadata is the call's
    count_encode(encoded)
    return encoded
