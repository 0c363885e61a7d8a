"""Stand-ins for what drust.handles gives the native handles: a codec on private blocks, no server.

Arrays are kept as their bytes, everything else pickled into one buffer; refusals become `Refused`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from drust import _core
from drust._core import Pin

ARRAY, PICKLE = 1, 2
HOOKS = ("adopt", "publish", "materialise", "absorb", "conflict", "survivors")


class Refused(Exception):  # noqa: N818
    """What the fake conflict hook makes of every refusal."""

    def __init__(self, kind: str, message: str, fields: dict[str, Any]) -> None:
        super().__init__(message)
        self.kind = kind
        self.fields = fields


class Stale(Exception):  # noqa: N818
    """What the fake survivors hook returns in strict mode."""


class Lend:
    """A borrower whose lend has ended when `done` is set; absorb notices."""

    def __init__(self, box: Any, *, mutable: bool) -> None:
        self.box = box
        self.mutable = mutable
        self.done = False
        self.outcome = "committed"
        self.pointer: Any = None

    def poll(self) -> None:
        if self.done:
            self.box._end_lend(self, self.mutable, self.outcome, self.pointer)

    def __str__(self) -> str:
        return "task 7 (relax)"


class Hooks:
    """The hooks, what they were called for, and what they shall raise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.survivors_seen: list[tuple[str, list[str]]] = []
        self.strict = False
        self.fail: BaseException | None = None
        self.remote: dict[Any, Pin] = {}  # what fetching or moving a pointer here brings

    @contextmanager
    def installed(self) -> Iterator[Hooks]:
        before = _core.set_hooks(**{name: getattr(self, name) for name in HOOKS})
        try:
            yield self
        finally:
            _core.set_hooks(**before)

    def block(self, codec: int, meta: bytes, data: bytes) -> Pin:
        pin = Pin.private(codec, meta, [len(data)])
        if data:
            memoryview(pin.as_writable().buffer(0))[:] = data
        return pin

    def pickled(self, value: Any) -> Pin:
        return self.block(PICKLE, b"", pickle.dumps(value))

    def array(self, pin: Pin) -> Any:
        shape, dtype, order = pickle.loads(pin.meta)
        return np.ndarray(shape, dtype, buffer=pin.buffer(0), order=order)

    def adopt(self, value: Any) -> tuple[Any, Any, bool]:
        if type(value) is not np.ndarray:
            return value, None, False
        order: Any = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        pin = self.block(ARRAY, pickle.dumps((value.shape, value.dtype, order)), value.tobytes(order))
        return self.array(pin), pin, True

    def publish(self, box: Any) -> Pin:
        self.calls.append("publish")
        if self.fail is not None:
            raise self.fail
        return self.pickled(box._value)

    def materialise(self, box: Any, writable: bool) -> None:
        self.calls.append("materialise writable" if writable else "materialise")
        if self.fail is not None:
            raise self.fail
        pin = box._pin if box._pin.local is not None else self.remote[box._pin.pointer]
        if pin.codec == ARRAY:
            box._install(self.array(pin.as_writable() if writable else pin), pin, True, writable)
        else:
            box._install(pickle.loads(bytes(pin.buffer(0))), pin, False, writable)

    def absorb(self, box: Any) -> None:
        self.calls.append("absorb")
        for lend in box._state()["lends"]:
            lend.poll()

    def conflict(self, box: Any, kind: str, message: str, **fields: Any) -> Exception:
        return Refused(kind, message, fields)

    def survivors(self, box: Any, mode: str, locations: list[str]) -> Exception | None:
        self.survivors_seen.append((mode, locations))
        return Stale(f"{mode} {locations}") if self.strict else None


class Unraisable:
    """Collects what sys.unraisablehook is told."""

    def __enter__(self) -> list[str]:
        self._before = sys.unraisablehook
        seen: list[str] = []
        sys.unraisablehook = lambda info: seen.append(str(info.exc_value))
        return seen

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._before


def refused(kind: str, match: str | None = None) -> Any:
    return pytest.raises(Refused, match=match, check=lambda error: error.kind == kind)


def enter(guard: Any) -> Any:
    return guard.__enter__()


def leave(guard: Any) -> None:
    guard.__exit__(None, None, None)
