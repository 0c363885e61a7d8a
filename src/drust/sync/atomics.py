"""AtomicInt, AtomicBool: one word that processes share. Their steps: native/bind/atomic_type.cpp.

What waits for something that is neither a lock nor a message (barriers, semaphores, conditions) waits for an
atomic to change: `wait` and `notify_all` are those of C++20's std::atomic, between processes.
"""

import time
from typing import Any, Self

from drust import _core, blocking, runtime
from drust.sync.waits import check_time, slice_ms


def _wait(atomic: _core.Atomic, expected: Any, timeout: float | None) -> Any:
    deadline = None if timeout is None else time.monotonic() + timeout
    if not atomic._wait(expected, 0):
        with blocking.section():
            while not atomic._wait(expected, slice_ms(deadline)):
                check_time(f"a change of {atomic!r}", timeout, deadline)
                runtime.check_alive()
    return atomic.load()


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

    def wait(self, expected: int, timeout: float | None = None) -> int:
        """Waits until the value is another one, and returns that. Whoever changes it calls `notify_all`.

        Cost: a futex on its home's host; elsewhere 1 round trip, and 1 more for each second of waiting.

        Raises:
            BorrowTimeoutError: it was still `expected` after `timeout` seconds.
        """
        value: int = _wait(self, expected, timeout)
        return value


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

    def wait(self, expected: bool, timeout: float | None = None) -> bool:
        """Waits until the value is another one, and returns that. Whoever changes it calls `notify_all`.

        Cost: a futex on its home's host; elsewhere 1 round trip, and 1 more for each second of waiting.

        Raises:
            BorrowTimeoutError: it was still `expected` after `timeout` seconds.
        """
        value: bool = _wait(self, expected, timeout)
        return value
