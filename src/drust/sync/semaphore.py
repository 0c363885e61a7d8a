"""Semaphore: a number of permits."""

import time
from types import TracebackType

from drust.errors import BorrowTimeoutError, ConfigError
from drust.sync.atomics import AtomicInt


class Semaphore:
    """A number of permits that any thread of any process takes and gives back, not always the same one.

        with Semaphore(3):   # at most three at a time
            ...

    Nobody owns a permit: what a process had that dies is lost (a Mutex knows its holder). Those who wait have
    no order.

    Cost: on its home's host two atomic steps; elsewhere 2 round trips to take one, 2 to give it back.

    Args:
        permits: how many there are at first.
    """

    __slots__ = ("_permits",)

    def __init__(self, permits: int) -> None:
        if permits < 0:
            raise ConfigError(variable="permits=", value=repr(permits), expected="0 or more")
        self._permits = AtomicInt(permits)

    def acquire(self, timeout: float | None = None) -> None:
        """Takes a permit, and waits for one.

        Raises:
            BorrowTimeoutError: there was none in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        left = self._permits.load()
        while True:
            if left > 0:
                taken, left = self._permits.compare_exchange(left, left - 1)
                if taken:
                    return
                continue
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                left = self._permits.wait(left, remaining)
            except BorrowTimeoutError:
                raise BorrowTimeoutError(object="a permit", timeout_s=timeout or 0.0) from None

    def release(self, permits: int = 1) -> None:
        """Gives permits back, or adds some."""
        if permits < 1:
            raise ConfigError(variable="permits=", value=repr(permits), expected="1 or more")
        self._permits.fetch_add(permits)
        self._permits.notify_all()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
