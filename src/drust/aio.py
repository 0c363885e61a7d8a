"""Tasks and borrows in an event loop: `await handle`, `async def` tasks, `async with box.borrow()`.

A worker has one event loop, on a thread of its own, started by the first `async def` task that comes. Tasks
run in it side by side, as in any event loop, and the worker goes on taking others. A coroutine that computes
for long holds up its neighbours; one that joins without `await` holds up the loop, but not the worker.

An asynchronous borrow is entered in a helper thread when it may have to wait or to fetch, and left at once in
the loop, because leaving revokes what this very frame still holds.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias

from drust import _core, runtime
from drust.errors import ClosedError

if TYPE_CHECKING:
    from drust.tasks import JoinHandle

_log = logging.getLogger("drust")

Guard: TypeAlias = "_core.Ref[Any] | _core.RefMut[Any]"
End = Callable[[Any, BaseException | None], None]


async def wake_in(handle: "JoinHandle[Any]") -> None:
    """Returns in this event loop when the task has ended; takes it back if the waiting is cancelled."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake(_: object) -> None:
        if not future.done():
            future.set_result(None)

    def ended(_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(wake, None)

    handle.add_done_callback(ended)
    try:
        await future
    except asyncio.CancelledError:
        await loop.run_in_executor(None, handle.cancel)
        raise


class _Loop:
    """A worker's event loop, and the thread that ends its tasks: that may wait, which a loop must not."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._loop.run_forever, name="drust-loop", daemon=True).start()
        threading.Thread(target=self._end_tasks, name="drust-loop-ends", daemon=True).start()

    def _end_tasks(self) -> None:
        while True:
            try:
                self._ended.get()()
            except ClosedError:
                return
            except Exception:  # noqa: BLE001 - the next ones are to be ended all the same
                _log.exception("drust: a task could not be ended")

    def run(self, coroutine: Coroutine[Any, Any, Any], end: End) -> None:
        """Runs `coroutine`, then `end` with what it returned or raised."""

        async def whole() -> None:
            result, error = None, None
            try:
                result = await coroutine
            except BaseException as failure:  # noqa: BLE001 - SystemExit too ends the task, not the loop
                error = failure
            self._ended.put(lambda: end(result, error))

        asyncio.run_coroutine_threadsafe(whole(), self._loop)


_lock = threading.Lock()
_loop: _Loop | None = None  # this worker's; protected by _lock


def run(coroutine: Coroutine[Any, Any, Any], end: End) -> None:
    """Runs a task's coroutine in this worker's event loop; does not wait for it."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = _Loop()
    _loop.run(coroutine, end)


async def enter(guard: Guard) -> Any:
    """What `async with box.borrow()` awaits: as entering it with `with`, while the event loop goes on.

    A borrow that neither waits (`timeout=`) nor fetches is entered at once, in this thread.
    """
    here = runtime.current()
    if guard._timeout is None and guard._box.server == here.server:
        return guard.__enter__()
    # Not the future's result: a reference that the helper thread still had would count as a survivor.
    handed: list[Any] = []
    entering = asyncio.get_running_loop().run_in_executor(None, _enter_into, guard, handed)
    try:
        await asyncio.shield(entering)
    except asyncio.CancelledError:
        entering.add_done_callback(lambda done: _leave(guard, handed, done))
        raise
    return handed.pop()


def _enter_into(guard: Guard, handed: list[Any]) -> None:
    handed.append(guard.__enter__())


def _leave(guard: Guard, handed: list[Any], entered: "asyncio.Future[None]") -> None:
    """Nobody waits for the borrow any more: it ends as soon as it has begun."""
    if not entered.cancelled() and entered.exception() is None:
        handed.clear()
        guard.__exit__(None, None, None)


async def completed(result: Any) -> Any:
    """What leaving awaits: nothing."""
    return result
