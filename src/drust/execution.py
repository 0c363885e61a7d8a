"""The worker's side of a task: take it from the queue, open what was lent, run it, send the completion home.

One thread runs tasks at a time (the GIL allows no more); when a task blocks in drust, another thread takes
over until the first goes on. A thread that finds another one taking tasks already, ends.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drust import _core, blocking, calls, codecs, handles, lends, runtime, shipping
from drust.errors import ClosedError, WorkerLostError

_TAKE_MS = 60_000
_TRY_AGAIN_S = 0.2
_FENCED = 3  # the exit status of a worker that was declared lost while it ran
TASKS_RUN = _core.COUNTER_NAMES.index("tasks_run")


class _Pool:
    """The worker's threads."""

    def __init__(self, here: _core.Runtime) -> None:
        self._here = here
        self._lock = threading.Lock()
        self._takers = 0  # threads that wait for a task, or run one and are not blocked; protected by _lock
        self._closed = threading.Event()

    @contextmanager
    def section(self) -> Iterator[None]:
        """A task blocks: one more thread may take tasks until it goes on."""
        with self._lock:
            self._takers -= 1
            need = self._takers == 0
        if need:
            threading.Thread(target=self.run, name="drust-tasks", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._takers += 1

    def run(self) -> None:
        """Takes and runs tasks until the server closes, or until another thread does that already."""
        with self._lock:
            self._takers += 1
        try:
            while not self._leave_if_surplus():
                entry = self._here.take_task(_TAKE_MS)
                if entry is not None:
                    run_task(self._here, entry)
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
    pool.run()
    if not here.closed:
        pool.wait_closed()


def run_task(here: _core.Runtime, entry: _core.TaskEntry) -> None:
    """Runs one task and completes its record, whatever the task does.

    A worker that was declared lost meanwhile (it had been stopped for too long) has lost its borrows to
    others: it ends before it can touch anything.
    """
    remote = runtime.server_of(entry.record) != here.server
    call = calls.open_call(here, entry.task)
    completion = _run(here, entry, call, remote=remote)
    pointer = completion.pointer
    completion.disown()
    here.count(TASKS_RUN)
    try:
        here.returned(entry, pointer)
    except WorkerLostError:
        os._exit(_FENCED)
    call.pin.set_release(calls.RELEASE_SHALLOW)
    del call  # its block goes before anybody hears of the end, unless the task has kept a view of it
    if not here.give_home(entry, pointer):
        threading.Thread(target=_give_home_later, args=(here, entry, pointer), daemon=True).start()


def _give_home_later(here: _core.Runtime, entry: _core.TaskEntry, completion: runtime.Pointer) -> None:
    """Sends a completion again until its receiver has it, or is known to be lost; each try takes its time.

    A server that was stopped or cut off comes back to what its task left. This process's death is no loss
    either: the entry keeps the completion, and the reaper goes on.
    """
    pause = threading.Event()
    with contextlib.suppress(ClosedError):
        while not here.give_home(entry, completion):
            pause.wait(_TRY_AGAIN_S)


def _run(here: _core.Runtime, entry: _core.TaskEntry, call: calls.Incoming, *, remote: bool) -> _core.Pin:
    """Calls the function and writes what it left. New pointers of mutable lends come in the call's order."""
    children = call.pin.children
    parts = call.header.parts
    mutable = [i for i, child in enumerate(children) if child[3] & calls.LENT_MUTABLE and parts[i] is None]
    lease = lends.Lease(here, entry)
    opened: list[tuple[int, lends.Lent]] = []

    def load(child: int) -> object:
        flags = children[child][3]
        if not flags & (calls.LENT_SHARED | calls.LENT_MUTABLE):
            return handles.receive(call.pin, child, again=call.header.again)
        column = call.header.columns.get(child)
        lent = calls.open_lent(here, children[child][:3], flags, parts[child], lease, column)
        opened.append((child, lent))
        return lent.value

    error: BaseException | None = None
    result: Any = None
    args = kwargs = None
    try:
        function = shipping.resolve(call.header.function)
        block = handles.PrivateBytes(call.pin) if call.header.again else call.pin
        args, kwargs = codecs.pickling.PickleCodec().decode(block, True, load)
        result = function(*args, **kwargs)
    except BaseException as failure:  # noqa: BLE001 - SystemExit too ends the task, not the worker
        error = failure
    lease.drain()
    outcome = calls.Outcome(result, error, len(mutable), remote=remote)
    if error is not None:
        _forget_arguments(error)
    args = kwargs = result = error = None
    ended: dict[int, lends.Lent] = {}
    for child, lent in opened:
        try:
            lent.end()
        except Exception as failure:  # noqa: BLE001 - a borrow that cannot end well fails the task
            outcome.undo()
            outcome = calls.Outcome(None, failure, len(mutable), remote=remote)
        ended[child] = lent
    where: list[tuple[runtime.Pointer, bool]] = []
    poisoned: list[int] = []
    for index, child in enumerate(mutable):
        before = children[child][:3]
        lent_here = ended.get(child)
        now = before if lent_here is None else lent_here.pointer
        where.append((now, now[0] != before[0]))
        if lent_here is not None and lent_here.is_poisoned:
            poisoned.append(index)
    return outcome.publish(where, calls.CompletionEnd(lease.frees, poisoned))


def _forget_arguments(error: BaseException) -> None:
    """Clears the frames of the task's traceback: they hold the arrays that were only lent."""
    import traceback

    traceback.clear_frames(error.__traceback__)
