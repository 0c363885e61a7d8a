"""Stand-ins for the native heap: blocks in a bytearray, with the views and lifetimes of real pins."""

import ctypes
import itertools
import weakref
from typing import Any

from drust.codecs import GROUPS, Encoded, decode, encode, write

ALIGNMENT = 64


_numbers = itertools.count()
_orphans: dict[int, "FakePin"] = {}  # columns whose frame is not written yet


class FakePin:
    def __init__(self, codec: int, meta: bytes, sizes: list[int], children: list[Any]) -> None:
        self.codec = codec
        self.meta = meta
        self.children = tuple(children)
        self.buffer_count = len(sizes)
        self.nbytes = sum(sizes)
        self.writable = True
        self.tied = [_orphans.pop(child[0]) for child in children] if codec in GROUPS else []
        self._buffers = [self._allocate(size) for size in sizes]

    @staticmethod
    def _allocate(size: int) -> memoryview:
        memory = bytearray(b"\xa5" * (size + ALIGNMENT))
        start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % ALIGNMENT
        return memoryview(memory)[start : start + size]

    def buffer(self, index: int) -> memoryview:
        memory = self._buffers[index]
        if memory.nbytes == 0:
            return memory if self.writable else memory.toreadonly()
        exporter = (ctypes.c_char * memory.nbytes).from_buffer(memory)
        exporter.pin = self  # as the native buffers do: who holds one holds the pin
        view = memoryview(exporter).cast("B")
        return view if self.writable else view.toreadonly()

    def contains(self, address: int) -> bool:
        """Whether it, or a block tied to it, holds that byte."""
        for memory in [part for pin in (self, *self.tied) for part in pin._buffers]:
            if memory.nbytes:
                start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
                if start <= address < start + memory.nbytes:
                    return True
        return False

    def raw(self) -> list[bytes]:
        return [bytes(memory) for memory in self._buffers]


class FakeDraft:
    def __init__(self, pin: FakePin) -> None:
        self._pin = pin
        self.copied: list[int] = []

    def buffer(self, index: int) -> memoryview:
        return self._pin.buffer(index)

    def copy_in(self, index: int, data: Any) -> None:
        source = memoryview(data)
        assert source.contiguous
        target = self._pin.buffer(index)
        assert source.nbytes == target.nbytes
        target[:] = source.cast("B")
        self.copied.append(index)

    def publish(self) -> FakePin:
        self._pin.writable = False
        return self._pin


class FakeRuntime:
    def __init__(self) -> None:
        self.drafts: list[weakref.ref[FakeDraft]] = []

    def allocate(self, codec: int, meta: bytes, buffer_bytes: list[int], children: list[Any]) -> FakeDraft:
        assert isinstance(meta, bytes)
        assert all(type(size) is int for size in buffer_bytes)
        draft = FakeDraft(FakePin(codec, meta, buffer_bytes, children))
        self.drafts.append(weakref.ref(draft))
        return draft


class FakeBox:
    """A handle: what it owns is only its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AssertionError("a Box is never pickled itself")


def pointer_of(child: Any, flags: int) -> tuple[int, int, int, int]:
    if isinstance(child, FakeBox):
        return (child.number, 1, 64, flags)
    number = next(_numbers)
    _orphans[number] = put(child.encode())
    return (number, 1, 64, flags)


def child_of(pin: FakePin, index: int) -> Any:
    return pin.tied[index] if pin.codec in GROUPS else FakeBox(pin.children[index][0])


def pinned(value: Any) -> FakePin:
    """The published block of a value."""
    return put(encode(value))


def put(encoded: Encoded) -> FakePin:
    return write(FakeRuntime(), encoded, pointer_of)


def opened(pin: FakePin, writable: bool = False) -> Any:
    """The value in a block, borrowed shared or mutably."""
    pin.writable = writable
    return decode(pin, writable, lambda index: child_of(pin, index))


def round_trip(value: Any, writable: bool = False) -> Any:
    return opened(pinned(value), writable)
