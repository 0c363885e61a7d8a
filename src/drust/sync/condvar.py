"""Condvar: wait until the value behind a Mutex is as wanted."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from drust import _core
from drust.errors import BorrowTimeoutError
from drust.sync.atomics import AtomicInt
from drust.sync.mutex import Mutex

T = TypeVar("T")


class Condvar:
    """Wakes those who wait for the value of a Mutex to become what they need.

        with ready.when(jobs, lambda value: value) as value:    # the lock, once there are jobs
            job = value.pop()

        with jobs.lock() as value:
            value.append(job)
        ready.notify_all()

    An atomic that counts notifications: read before the value is looked at, so that none is missed.
    """

    __slots__ = ("_notifications",)

    def __init__(self) -> None:
        self._notifications = AtomicInt()

    def when(
        self, mutex: Mutex[T], condition: Callable[[T], Any], timeout: float | None = None
    ) -> "Locked[T]":
        """The lock of `mutex`, for a `with` block, from the time on at which `condition(value)` is true.

        Between two looks the lock is free. After `timeout` seconds its start raises BorrowTimeoutError.

        Cost: a lock and its end for each look; a futex in between, or 1 round trip a second elsewhere.
        """
        return Locked(self._notifications, mutex, condition, timeout)

    def notify_all(self) -> None:
        """Whoever waits looks at its value again. Call it after the block that changed the value."""
        self._notifications.fetch_add(1)
        self._notifications.notify_all()


class Locked(Generic[T]):
    """One `with condvar.when(...)` block."""

    __slots__ = ("_condition", "_guard", "_mutex", "_notifications", "_timeout")

    def __init__(
        self,
        notifications: AtomicInt,
        mutex: Mutex[T],
        condition: Callable[[T], Any],
        timeout: float | None,
    ) -> None:
        self._notifications = notifications
        self._mutex = mutex
        self._condition = condition
        self._timeout = timeout
        self._guard: _core.LockGuard[T] | None = None

    def __enter__(self) -> T:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            seen = self._notifications.load()
            guard = self._mutex.lock(timeout=_left(deadline))
            value = guard.__enter__()
            try:
                if self._condition(value):
                    self._guard = guard
                    return value
            finally:
                if self._guard is None:
                    del value  # else it counts as a view that outlives the block
                    guard.__exit__(None, None, None)
            try:
                self._notifications.wait(seen, _left(deadline))
            except BorrowTimeoutError:
                what = f"a condition on {self._mutex!r}"
                raise BorrowTimeoutError(object=what, timeout_s=self._timeout or 0.0) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.__exit__(kind, error, traceback)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
