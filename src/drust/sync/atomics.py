"""AtomicInt, AtomicBool: one word that processes share. Their steps: native/bind/atomic_type.cpp."""

from typing import Self

from drust import _core, runtime


class AtomicInt(_core.Atomic):
    """A 64-bit integer that processes share: every step is atomic, and all see one order of them.

    Cost: on its home's host one atomic instruction, no message; elsewhere 1 round trip a step.

    Args:
        value: what it is at first.
    """

    __slots__ = ()

    def __new__(cls, value: int = 0) -> Self:
        """A new one, at home on this process's server."""
        runtime.current()
        return cls._make(_core.KIND_INTEGER, value)

    def __repr__(self) -> str:
        return f"<AtomicInt on server {self.server}>"


class AtomicBool(_core.Atomic):
    """A flag that processes share. As AtomicInt.

    Args:
        value: what it is at first.
    """

    __slots__ = ()

    def __new__(cls, value: bool = False) -> Self:
        """A new one, at home on this process's server."""
        runtime.current()
        return cls._make(_core.KIND_BOOLEAN, value)

    def __repr__(self) -> str:
        return f"<AtomicBool on server {self.server}>"
