"""Executor: drust's workers behind the interface of `concurrent.futures`.

For programs and libraries that take an executor: `loop.run_in_executor`, `concurrent.futures.wait`,
`as_completed`. A future is settled by the process's watcher thread (arrivals.py), so its callbacks run there.
"""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from drust import arrivals
from drust.parallel import start_chunks
from drust.tasks import JoinHandle, start

T = TypeVar("T")


class TaskFuture(concurrent.futures.Future[T]):
    """The future of a task of drust. Made by `Executor.submit`.

    `running()` stays False: where a task is, queued or in a worker, is known to its server alone.
    """

    def __init__(self, handle: JoinHandle[T]) -> None:
        super().__init__()
        self.handle = handle

    def cancel(self) -> bool:
        """Takes the task back if no worker has begun it. 0 messages on this server, else 1 round trip."""
        if not self.done():
            self.handle.cancel()  # its end calls settle()
        return self.cancelled()

    def settle(self, handle: JoinHandle[T]) -> None:
        """The task has ended."""
        if handle.cancelled():
            super().cancel()
        if not self.set_running_or_notify_cancel():
            return
        error = handle.exception()
        if error is None:
            self.set_result(handle.join())
        else:
            self.set_exception(error)


class Executor(concurrent.futures.Executor):
    """An executor whose workers are drust's: of this server, or of another.

    What is submitted may carry Boxes (moved) and borrows (lent until the task has ended). `submit` waits only
    while the server's queue is full. There is nothing to start: the workers run anyway.
    """

    def __init__(self, *, server: int | None = None, retry: int = 0) -> None:
        """Args: `server` and `retry` as for `drust.spawn`, for all that is submitted."""
        self._server = server
        self._retry = retry
        self._lock = threading.Lock()
        self._pending: set[TaskFuture[Any]] = set()  # protected by _lock
        self._is_shut_down = False  # protected by _lock

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
        """As `drust.spawn(fn, *args, **kwargs)`, as a future.

        Raises:
            RuntimeError: after `shutdown`.
            DrustError: what `drust.spawn` raises: a borrow that is refused, an argument that cannot travel.
        """
        with self._lock:
            self._check_open()
        future = TaskFuture(start(fn, args, kwargs, server=self._server, retry=self._retry))
        with self._lock:
            self._pending.add(future)
        future.handle.add_done_callback(lambda handle: self._end(future, handle))
        return future

    def _end(self, future: "TaskFuture[T]", handle: JoinHandle[T]) -> None:
        try:
            future.settle(handle)
        finally:
            with self._lock:
                self._pending.discard(future)

    def _check_open(self) -> None:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """As `concurrent.futures.Executor.map`: results in order, tasks started at once.

        Args:
            fn: what to call; it travels once.
            iterables: its arguments.
            timeout: seconds from this call until the last result must have come.
            chunksize: how many items a task takes.
        """
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        with self._lock:
            self._check_open()
        items = list(zip(*iterables, strict=False))
        handles = start_chunks(fn, items, chunk=chunksize, server=self._server, retry=self._retry)
        return _results(handles, timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more. The workers stay, as they are everybody's.

        Args:
            wait: until all that was submitted has ended.
            cancel_futures: take back what no worker has begun.
        """
        with self._lock:
            self._is_shut_down = True
            pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            for _ in arrivals.as_ended([future.handle for future in pending]):
                pass
            concurrent.futures.wait(pending)  # the watcher may be settling the last of them


def _results(handles: list[JoinHandle[list[T]]], timeout: float | None) -> Iterator[T]:
    deadline = None if timeout is None else time.monotonic() + timeout

    def results() -> Iterator[T]:
        try:
            for handle in handles:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                yield from handle.join(left)
        finally:
            for handle in handles:
                if not handle.done():
                    handle.cancel()

    return results()
