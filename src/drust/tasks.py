"""spawn, spawn_to, scope, JoinHandle: run a function on a worker, lend or move it values, get its result.

The call site says how it passes, as in Rust: `f(box)` moves, `box.borrow()` lends shared, `box.borrow_mut()`
lends exclusively. A task is a block in the heap (the pickled call, with moved boxes and lends as pointers)
queued on a server; its spawner waits on a *record*, a word in its own partition, so a join costs no message.
The completion carries the new pointers of mutable lends home: the owner update has no message of its own.
Messages: 0 for a task on this server; elsewhere 1 round trip to submit and 1 for the completion.
Source: Ma et al., OSDI'24, sections 4.1.2 and 4.2.
"""

import itertools
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

from drust import _core, blocking, calls, runtime, shipping
from drust.errors import (
    BorrowTimeoutError,
    ConfigError,
    DrustError,
    ResultRefusedError,
    ServerLostError,
    WorkerLostError,
)
from drust.runtime import Pointer

P = ParamSpec("P")
T = TypeVar("T")

_LOOK_MS = 500  # between looks at whether the server that runs the task is alive
_SILENCE_S = 4.0  # as kPeerTimeoutMs: a server of which nobody says that it has ended is written off after it
_DONE = 1  # of a record, as tasks::RecordState; else its task was lost
_REFUSED, _REFUSED_POISONED = 6, 10  # or it has returned, and there was no room here for its completion
RETRIES_MAX = 1000

_POLLED_PER_SPAWN = 2

# With lends out: their Boxes must outlive the tasks, whoever forgets the handles. Protected by the GIL.
_outstanding: "dict[JoinHandle[Any], None]" = {}


class JoinHandle(Generic[T]):
    """A task that was spawned: wait for it, get its result.

    A handle that is dropped without a join lets the task run; its result is freed and its error is lost.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_epoch",
        "_error",
        "_finished",
        "_lock",
        "_record",
        "_runtime",
        "_server",
        "_silent_s",
        "_value",
        "name",
    )

    def __init__(self, name: str, server: int, record: Pointer, call: calls.Outgoing) -> None:
        self.name = name
        self._server = server
        self._record = record
        self._call: calls.Outgoing | None = call
        self._runtime = runtime.current()
        self._epoch = self._runtime.endpoint(server)[0] if server != self._runtime.server else 0
        self._silent_s = 0.0  # since when its server has not answered; 0 while it does
        self._finished = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._lock = threading.RLock()  # of settling: a join and a borrow that polls may meet

    @property
    def server(self) -> int:
        """The server the task was queued on."""
        return self._server

    def done(self) -> bool:
        """Whether the task has ended, without waiting. No message."""
        return self._finished or self.poll()

    def join(self, timeout: float | None = None) -> T:
        """Waits for the task and returns what it returned, or raises what it raised. May be called again.

        A worker that waits here runs other tasks meanwhile. No message: the worker sent the completion.

        Args:
            timeout: seconds to wait; None waits as long as the task's server is alive.

        Raises:
            BorrowTimeoutError: a TimeoutError: the task is still running after `timeout`.
            WorkerLostError: the process that ran it ended. What the task was lent mutably is as before, or
                poisoned where it was being written in place, all of it alike.
            ServerLostError: its server, or this process's, does not answer any more.
            ResultRefusedError: an OutOfMemoryError: it has returned, but there was no room here for what it
                returned. What it was lent mutably is as before, or poisoned, as with a lost worker.
            BaseException: whatever the task raised, with the remote traceback as its cause.
        """
        if not self.poll():
            deadline = None if timeout is None else time.monotonic() + timeout
            with blocking.section():
                self._wait(deadline, timeout)
        if self._error is not None:
            try:
                raise self._error.with_traceback(None)
            finally:
                del self  # else the traceback keeps this handle, and with the caller's frames all it lent
        result: T = self._value
        return result

    result = join

    def wait(self) -> None:
        """Waits for the task to end, whatever became of it: raises nothing that it raised."""
        if not self.poll():
            with blocking.section():
                self._wait(None, None)

    def _wait(self, deadline: float | None, timeout: float | None) -> None:
        while not self._finished:
            wait_ms = _LOOK_MS
            if deadline is not None:
                left_ms = int((deadline - time.monotonic()) * 1000)
                if left_ms <= 0:
                    raise BorrowTimeoutError(object=f"task {self.name}", timeout_s=timeout or 0.0)
                wait_ms = min(wait_ms, left_ms)
            if self.poll(wait_ms):
                return
            self._look()

    def _look(self) -> None:
        """Ends the wait if nobody is left who could complete the task: 1 ping where it runs elsewhere.

        If the table says that its server has ended, what it was lent may be in tasks further down: the record
        is completed once that is over. If it is only silent, nobody will ever say.
        """
        try:
            runtime.check_alive()
        except ServerLostError as error:
            self._write_off(error)
            return
        if self._server == self._runtime.server:
            return
        began_s = time.monotonic()
        try:
            self._runtime.ping(self._server)
            self._silent_s = 0.0
        except ServerLostError as error:
            epoch, _, port = self._runtime.endpoint(self._server)
            if epoch != self._epoch or not port:
                self._silent_s = 0.0
                return
            self._silent_s = self._silent_s or began_s
            if time.monotonic() - self._silent_s > _SILENCE_S - _LOOK_MS / 1000:
                self._write_off(error)

    def _write_off(self, error: ServerLostError) -> None:
        if self.poll():
            return
        lost = ServerLostError(
            object=f"task {self.name}", server=f"server {self._server}", reason=error.reason
        )
        with self._lock:
            if self._call is not None:
                self._call.lost(self._call.unreported())
                self._settle(None, lost, is_over=False)

    def poll(self, wait_ms: int = 0) -> bool:
        """Takes in the completion if it comes within `wait_ms`: the lends end, the result is here."""
        if self._finished:
            return True
        try:
            found = self._runtime.wait(self._record, wait_ms)
        except DrustError:
            if self._has_ended():  # another thread took the completion in and freed the record meanwhile
                return True
            raise
        if found is None:
            return False
        with self._lock:
            if self._call is None:  # done, or being done further up in this very thread
                return self._finished
            state, block = found
            call = self._call
            if state == _DONE:
                completion = calls.open_completion(self._runtime, block)
                call.committed(completion)
                self._settle(completion, None)
            elif state in (_REFUSED, _REFUSED_POISONED):
                loss = call.refused(state == _REFUSED_POISONED)
                refused = ResultRefusedError(
                    task=self.name,
                    server=f"server {self._runtime.server}",
                    outcome=call.outcome_of(loss),
                )
                call.lost(loss)
                self._settle(None, refused)
            elif self._epoch and self._runtime.endpoint(self._server)[0] != self._epoch:
                call.lost(call.unreported(gone=self._server))
                lost = ServerLostError(
                    object=f"task {self.name}", server=f"server {self._server}", reason="it has ended"
                )
                self._settle(None, lost)
            else:
                reported = calls.open_loss(self._runtime, block)
                loss = call.unreported() if reported is None else call.looked_after(reported)
                outcome = call.outcome_of(loss)
                call.lost(loss)
                self._settle(None, self._lost(loss, outcome))
        return True

    def _has_ended(self) -> bool:
        return self._finished

    def _lost(self, loss: calls.Loss, outcome: str) -> WorkerLostError:
        return WorkerLostError(
            task=self.name,
            worker=f"the worker (pid {loss.pid})" if loss.pid else "its worker",
            server=f"server {self._server}",
            reason=loss.reason,
            outcome=outcome,
        )

    def _settle(
        self, completion: calls.Completion | None, error: DrustError | None, *, is_over: bool = True
    ) -> None:
        self._call = None
        if completion is not None:
            self._value, self._error = completion.outcome()
        else:
            self._error = error
        self._finished = True
        if is_over:
            self._runtime.free(self._record)
        else:  # a server written off may still bring a completion: its record says that nobody wants it
            self._runtime.drop_record(self._record)
        _outstanding.pop(self, None)

    def __del__(self) -> None:
        if not getattr(self, "_finished", True) and not self._runtime.closed:
            self._runtime.drop_record(self._record)  # a completion that comes later is freed by who brings it

    def __repr__(self) -> str:
        state = "running or queued"
        if self.done():
            state = "failed" if self._error is not None else "done"
        return f"<JoinHandle {self.name} on server {self._server}: {state}>"


def spawn(
    function: Callable[..., T], /, *args: Any, server: int | None = None, retry: int = 0, **kwargs: Any
) -> JoinHandle[T]:
    """Runs `function(*args, **kwargs)` in a worker.

    A Box argument moves; `box.borrow()` and `box.borrow_mut()` lend until the task ends, and the function
    receives the plain value; everything else travels as a copy.

    Args:
        function: anything callable. What can be imported travels as its name, else as bytes once a server.
        args: positional arguments.
        server: where to run it; this process's own server unless given.
        retry: how often it may be run again when its worker is lost, for functions that may run twice. Only
            after all that it was lent mutably was rolled back: what may have been written in place is
            poisoned instead.
        kwargs: keyword arguments, except `server` and `retry`.

    Returns:
        The handle to join.

    Raises:
        BorrowError: a value to be lent is held by somebody.
        MovedError: a Box to be moved was moved before.
        UnpicklableError: an argument cannot travel. Then nothing was moved or lent.
        CaptureTooLargeError: the function drags a large value along.
        QueueFullError: the server has no room for another task.
        ConfigError: `retry` with a Box to be moved, which dies with its worker.

    Cost: 0 messages on this server, 1 round trip elsewhere, with the small arguments in it.
    """
    here = runtime.current()
    target = here.server if server is None else _check_server(server)
    if runtime.config().workers == 0:
        raise ConfigError(variable="workers=", value="0", expected="at least 1 to spawn tasks")
    name = getattr(function, "__qualname__", None) or repr(function)
    call = calls.Outgoing(name, target, shipping.ship(function), function, _check_retry(retry))
    try:
        call.encode(args, kwargs)
        record = here.make_record(target, call.records, 0 if call.lease is None else call.lease.id)
        try:
            here.submit(target, call.pointer, record, retry)
        except BaseException:
            here.free(record)
            raise
    except BaseException:
        call.undo()
        raise
    call.sent()
    handle: JoinHandle[T] = JoinHandle(name, target, record, call)
    if call.lease is not None:
        call.lease.below.append(handle)
    if call.must_outlive:
        call.poll = handle.poll
        _poll_the_oldest()
        _outstanding[handle] = None
    return handle


def _poll_the_oldest() -> None:
    """Ends the lends of tasks that nobody joins: a few at each spawn, so that they cannot pile up."""
    for handle in list(itertools.islice(_outstanding, _POLLED_PER_SPAWN)):
        if handle._runtime.closed:  # an earlier session's, whose heap is gone
            _outstanding.pop(handle, None)
        elif not handle.poll() and _outstanding.pop(handle, handle) is None:
            _outstanding[handle] = None  # behind the others


def spawn_to(
    where: "_core.Box[Any] | int", function: Callable[..., T], /, *args: Any, **kwargs: Any
) -> JoinHandle[T]:
    """Runs a task on the server where a Box's value lies, or on the server of that number.

    Source: Ma et al., OSDI'24, section 4.1.3 (`spawn_to`).
    """
    server = where if isinstance(where, int) else where.server
    return spawn(function, *args, server=server, **kwargs)


def _check_server(server: int) -> int:
    count = runtime.config().servers
    if not isinstance(server, int) or not 0 <= server < count:
        raise ConfigError(
            variable="server=", value=str(server), expected=f"a server number from 0 to {count - 1}"
        )
    return server


def _check_retry(retry: int) -> int:
    if not isinstance(retry, int) or not 0 <= retry <= RETRIES_MAX:
        expected = f"how often to run it again, from 0 to {RETRIES_MAX}"
        raise ConfigError(variable="retry=", value=repr(retry), expected=expected)
    return retry


class Scope:
    """Tasks that end with a block, as in Rust's `std::thread::scope`. Made by `scope()`."""

    def __init__(self) -> None:
        self._handles: list[JoinHandle[Any]] = []

    def spawn(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> JoinHandle[T]:
        """As `drust.spawn`, joined at the end of the block."""
        handle = spawn(function, *args, **kwargs)
        self._handles.append(handle)
        return handle

    def spawn_to(
        self, where: "_core.Box[Any] | int", function: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> JoinHandle[T]:
        """As `drust.spawn_to`, joined at the end of the block."""
        handle = spawn_to(where, function, *args, **kwargs)
        self._handles.append(handle)
        return handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        errors: list[BaseException] = []
        for handle in self._handles:
            try:
                handle.join()
            except KeyboardInterrupt:
                raise
            except BaseException as failure:  # noqa: BLE001 - all are raised below, in one group
                errors.append(failure)
        if error is not None:
            for each in errors:
                error.add_note(f"and a task of the scope failed: {each!r}")
            return
        if errors:
            raise BaseExceptionGroup(
                f"{len(errors)} of {len(self._handles)} tasks of the scope failed", errors
            )


def scope() -> Scope:
    """A block at whose end every task spawned in it has ended, so that what it lent is whole again.

    Raises:
        ExceptionGroup: at the end of the block, with the error of every task that failed.
    """
    return Scope()
