"""One thread's loop: descriptors, timers, and calls from other threads. Sleeps in the kernel while nothing
happens.

All state of a server's control plane is touched in this loop alone, so none of it needs a lock; other threads
hand their results over with `post`. Rejected: asyncio (its import costs more than a server's whole start, and
child watching there needs threads).
"""

import heapq
import os
import selectors
import time
from collections import deque
from collections.abc import Callable

Callback = Callable[[], object]


class Timer:
    """A call to come; `cancel` takes it back."""

    __slots__ = ("callback", "due_s")

    def __init__(self, due_s: float, callback: Callback) -> None:
        self.due_s = due_s
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Nothing will be called. May be called again, or late."""
        self.callback = None


class Loop:
    """Runs callbacks in the one thread that calls `run`; only `post` may be called from others."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._posted: deque[Callback] = deque()  # any thread appends, the loop empties; deques are atomic
        self._timers: list[tuple[float, int, Timer]] = []
        self._timers_made = 0
        self._stopped = False
        self.watch(self._wake, self._drain)

    def watch(self, descriptor: int, readable: Callback | None, writable: Callback | None = None) -> None:
        """Calls `readable` or `writable` whenever `descriptor` is; replaces an earlier watch of it."""
        known = descriptor in self._selector.get_map()
        events = (selectors.EVENT_READ if readable else 0) | (selectors.EVENT_WRITE if writable else 0)
        if not events:
            if known:
                self._selector.unregister(descriptor)
        elif known:
            self._selector.modify(descriptor, events, (readable, writable))
        else:
            self._selector.register(descriptor, events, (readable, writable))

    def unwatch(self, descriptor: int) -> None:
        """Ends the watch of `descriptor`, before it is closed. Unknown ones are fine."""
        self.watch(descriptor, None)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """Calls `callback` once, `delay_s` from now."""
        timer = Timer(time.monotonic() + delay_s, callback)
        self._timers_made += 1
        heapq.heappush(self._timers, (timer.due_s, self._timers_made, timer))
        return timer

    def post(self, callback: Callback) -> None:
        """Calls `callback` in the loop soon. From any thread, and from signal handlers."""
        self._posted.append(callback)
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Runs until `stop`. An exception from a callback ends the loop and is raised here."""
        while not self._stopped:
            for key, events in self._selector.select(self._next_timeout_s()):
                # An earlier callback of this round may have ended or replaced the watch.
                if self._selector.get_map().get(key.fd) is not key:
                    continue
                readable, writable = key.data
                if events & selectors.EVENT_READ and readable:
                    readable()
                elif events & selectors.EVENT_WRITE and writable:
                    writable()
            self._run_due()

    def stop(self) -> None:
        """Ends `run` after the callback at hand. In the loop's thread only."""
        self._stopped = True

    def close(self) -> None:
        """Gives the descriptors back. After `run` has ended."""
        self._selector.close()
        os.close(self._wake)

    def _next_timeout_s(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_due(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic() and not self._stopped:
            callback = heapq.heappop(self._timers)[2].callback
            if callback:
                callback()

    def _drain(self) -> None:
        os.eventfd_read(self._wake)
        while self._posted and not self._stopped:
            self._posted.popleft()()
