"""The worker's side of a task: take it from the queue, open what was lent, run it, send the completion home.

One thread runs tasks at a time (the GIL allows no more); when a task blocks in drust, another thread takes
over until the first goes on. A thread that finds another one taking tasks already, ends. Coroutines run in
one event loop on a thread of its own, any number at a time (aio.py).
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CoroutineType
from typing import Any

from drust import _core, blocking, calls, handles, incoming, lends, runtime, shipping
from drust.errors import ClosedError, TooManyBlockedError, WorkerLostError

_TAKE_MS = 60_000
_TRY_AGAIN_S = 0.2
HELP_DEPTH_MAX = 20  # tasks on one thread's stack, each run by the one below that waits for it
BLOCKED_FEW = 16  # threads of a worker that may be blocked before it keeps what its tasks spawn
_KEPT_US_PER_THREAD = (
    64  # longer the more are blocked: what is computed between spawn and join bounds their number
)
_KEPT_US_MAX = 100_000
_FRAMES_PER_DEPTH = 12  # of drust's own, which the tasks above must not miss
_FENCED = 3  # the exit status of a worker that was declared lost while it ran
TASKS_RUN = _core.COUNTER_NAMES.index("tasks_run")


class _Pool:
    """The worker's threads."""

    def __init__(self, here: _core.Runtime) -> None:
        self._here = here
        self._lock = threading.Lock()
        self._takers = 0  # threads that wait for a task, or run one and are not blocked; protected by _lock
        self._blocked = 0  # those that are; protected by _lock
        # Of a thread that is one of those: `depth`, see HELP_DEPTH_MAX; `kept`, record and ticket of what is
        # left to it (blocking.py), or None.
        self._mine = threading.local()
        self._closed = threading.Event()

    @contextmanager
    def section(self) -> Iterator[None]:
        """A task blocks: one more thread may take tasks until it goes on.

        A thread that a task has started itself, or that of the event loop, takes none, and so may block.
        """
        if not hasattr(self._mine, "depth"):
            yield
            return
        self._offer()
        with self._lock:
            self._takers -= 1
            self._blocked += 1
            need = self._takers == 0
        try:
            if need:
                self._start()
            yield
        finally:
            with self._lock:
                self._takers += 1
                self._blocked -= 1

    def kept_us(self) -> int:
        """How long what this thread spawns is left to it: not at all where it could not run it itself."""
        blocked = self._blocked
        if blocked < BLOCKED_FEW or getattr(self._mine, "depth", HELP_DEPTH_MAX) >= HELP_DEPTH_MAX:
            return 0
        return min(blocked * _KEPT_US_PER_THREAD, _KEPT_US_MAX)

    def keep(self, record: runtime.Pointer, ticket: int) -> None:
        """It was spawned; what was before it is anybody's."""
        self._offer()
        self._mine.kept = record, ticket

    def _offer(self) -> None:
        """What was left to this thread is anybody's."""
        kept, self._mine.kept = self._mine.kept, None
        if kept is not None:
            self._here.offer(kept[1])

    def _start(self) -> None:
        try:
            threading.Thread(target=self.run, name="drust-tasks", daemon=True).start()
        except RuntimeError as error:
            raise TooManyBlockedError(threads=threading.active_count(), reason=str(error)) from error

    def help(self, record: runtime.Pointer) -> bool:
        """Runs the task that this thread is about to wait for, unless a worker has begun it."""
        depth = getattr(self._mine, "depth", None)
        if depth is None or depth >= HELP_DEPTH_MAX:
            return False
        entry = self._here.take_task_of(record)
        if entry is None:
            return False
        if self._mine.kept is not None and self._mine.kept[0] == record:
            self._mine.kept = None
        self._offer()
        self._mine.depth = depth + 1
        try:
            run_task(self._here, entry)
            self._offer()
        finally:
            self._mine.depth = depth
        return True

    def run(self) -> None:
        """Takes and runs tasks until the server closes, or until another thread does that already."""
        self._mine.depth = 0
        self._mine.kept = None
        with self._lock:
            self._takers += 1
        try:
            while not self._leave_if_surplus():
                entry = self._here.take_task(_TAKE_MS)
                if entry is not None:
                    run_task(self._here, entry)
                    self._offer()
        except ClosedError:
            self._closed.set()

    def _leave_if_surplus(self) -> bool:
        """Whether another thread takes tasks; then this one counts no longer: decided in one step."""
        with self._lock:
            if self._takers > 1:
                self._takers -= 1
                return True
            return False

    def wait_closed(self) -> None:
        """Returns when the server closes."""
        self._closed.wait()


def work() -> None:
    """Runs tasks until this worker's server closes."""
    here = runtime.current()
    pool = _Pool(here)
    blocking.register(pool)
    sys.setrecursionlimit(sys.getrecursionlimit() + HELP_DEPTH_MAX * _FRAMES_PER_DEPTH)
    pool.run()
    if not here.closed:
        pool.wait_closed()


def run_task(here: _core.Runtime, entry: _core.TaskEntry) -> None:
    """Runs one task and completes its record, whatever the task does.

    A task that is a coroutine goes on in the worker's event loop when this returns, and ends there.
    """
    run = _Run(here, entry)
    result, error = run.call()
    if isinstance(result, CoroutineType):
        from drust import aio

        aio.run(result, run.end)
    else:
        run.end(result, error)


class _Run:
    """One task in this worker: opened and called, then ended, maybe by another thread."""

    def __init__(self, here: _core.Runtime, entry: _core.TaskEntry) -> None:
        self._here = here
        self._entry = entry
        self._call = incoming.open_call(here, entry.task)
        self._remote = runtime.server_of(entry.record) != here.server
        self._children = self._call.pin.children
        self._lease = lends.Lease(here, entry)
        self._opened: list[tuple[int, lends.Lent]] = []
        lent = calls.LENT_SHARED | calls.LENT_MUTABLE
        self._moved = {i for i, child in enumerate(self._children) if not child[3] & lent}
        """Children that the arguments have not taken yet."""

    def call(self) -> tuple[Any, BaseException | None]:
        """Calls the function; what it returned, or what it raised."""
        call = self._call
        try:
            function = shipping.resolve(call.header.function)
            args, kwargs = call.arguments(self._load)
            return function(*args, **kwargs), None
        except BaseException as failure:  # noqa: BLE001 - SystemExit too ends the task, not the worker
            return None, failure

    def _load(self, child: int) -> object:
        flags = self._children[child][3]
        self._moved.discard(child)
        if not flags & (calls.LENT_SHARED | calls.LENT_MUTABLE):
            return handles.receive(self._call.pin, child, again=self._call.header.again)
        header = self._call.header
        pointer = self._children[child][:3]
        column = header.columns.get(child)
        lent = incoming.open_lent(self._here, pointer, flags, header.parts[child], self._lease, column)
        self._opened.append((child, lent))
        return lent.value

    def end(self, result: Any, error: BaseException | None) -> None:
        """Writes what the task left, and sends it home.

        A worker that was declared lost meanwhile (it had been stopped for too long) has lost its borrows to
        others: it ends before it can touch anything.
        """
        here, entry = self._here, self._entry
        completion = self._write(result, error)
        pointer = completion.pointer
        completion.disown()
        here.count(TASKS_RUN)
        try:
            here.returned(entry, pointer)
        except WorkerLostError:
            os._exit(_FENCED)
        self._lease.end()
        self._call.pin.set_release(calls.RELEASE_SHALLOW)
        # Its block goes before anybody hears of the end, unless the task has kept a view of it.
        del self._call
        if not here.give_home(entry, pointer):
            threading.Thread(target=_give_home_later, args=(here, entry, pointer), daemon=True).start()

    def _write(self, result: Any, error: BaseException | None) -> _core.Pin:
        """The completion. New pointers of mutable lends come in the call's order."""
        parts, children = self._call.header.parts, self._children
        mutable = [
            i for i, child in enumerate(children) if child[3] & calls.LENT_MUTABLE and parts[i] is None
        ]
        for child in self._moved:  # the function could not be had, or its arguments not decoded
            handles.receive(self._call.pin, child, again=self._call.header.again)
        self._lease.drain()
        outcome = calls.Outcome(result, error, len(mutable), remote=self._remote)
        if error is not None:
            _forget_arguments(error)
        result = error = None
        ended: dict[int, lends.Lent] = {}
        for child, lent in self._opened:
            try:
                lent.end()
            except Exception as failure:  # noqa: BLE001 - a borrow that cannot end well fails the task
                outcome.undo()
                outcome = calls.Outcome(None, failure, len(mutable), remote=self._remote)
            ended[child] = lent
        where: list[tuple[runtime.Pointer, bool, int]] = []
        poisoned: list[int] = []
        for index, child in enumerate(mutable):
            before = children[child][:3]
            lent_here = ended.get(child)
            now = before if lent_here is None else lent_here.pointer
            where.append((now, now[0] != before[0], children[child][3] & calls.EXCEPTED))
            if lent_here is not None and lent_here.is_poisoned:
                poisoned.append(index)
        self._lease.settle()
        return outcome.publish(where, calls.CompletionEnd(self._lease.frees, poisoned))


def _give_home_later(here: _core.Runtime, entry: _core.TaskEntry, completion: runtime.Pointer) -> None:
    """Sends a completion again until its receiver has it, or is known to be lost; each try takes its time.

    A server that was stopped or cut off comes back to what its task left. This process's death is no loss
    either: the entry keeps the completion, and the reaper goes on.
    """
    pause = threading.Event()
    with contextlib.suppress(ClosedError):
        while not here.give_home(entry, completion):
            pause.wait(_TRY_AGAIN_S)


def _forget_arguments(error: BaseException) -> None:
    """Clears the frames of the task's traceback: they hold the arrays that were only lent."""
    import traceback

    traceback.clear_frames(error.__traceback__)
