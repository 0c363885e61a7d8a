"""spawn, spawn_to, JoinHandle: run a function on a worker, lend or move it values, get its result.

The call site says how it passes, as in Rust: `f(box)` moves, `box.borrow()` lends shared, `box.borrow_mut()`
lends exclusively. A task is a block in the heap (the pickled call, with moved boxes and lends as pointers)
queued on a server; its spawner waits on a *record*, a word in its own partition, so a join costs no message.
The completion carries the new pointers of mutable lends home: the owner update has no message of its own.
Messages: 0 for a task on this server; elsewhere 1 round trip to submit and 1 for the completion.
Source: Ma et al., OSDI'24, sections 4.1.2 and 4.2.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

from drust import _core, arrivals, blocking, calls, outstanding, runtime, shipping, submitting
from drust.errors import (
    BorrowTimeoutError,
    CancelledError,
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
_log = logging.getLogger("drust")


class JoinHandle(Generic[T]):
    """A task that was spawned: wait for it, get its result.

    A handle that is dropped without a join lets the task run; its result is freed and its error is lost.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_callbacks",
        "_decision",
        "_epoch",
        "_error",
        "_finished",
        "_is_unsure",
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
        self._decision = call.decision
        self._runtime = runtime.current()
        self._epoch = call.epoch
        self._silent_s = 0.0  # since when its server has not answered; 0 while it does
        self._finished = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._lock = threading.RLock()  # of settling: a join and a borrow that polls may meet
        self._callbacks: list[Callable[[JoinHandle[T]], object]] = []  # protected by _lock
        self._is_unsure = False  # whether it was cancelled: the answer did not come

    def keep(self, shipped: shipping.Shipped) -> None:
        """A function that the task names in its arguments: its bytes must outlive the task."""
        if self._call is not None:
            self._call.keep(shipped)
            self.outlive(self._call)

    def outlive(self, call: calls.Outgoing) -> None:
        """Keeps the handle, and so what the task was lent, until it has ended, if that is necessary."""
        if call.must_outlive:
            call.poll = self.poll
            outstanding.keep(self)

    @property
    def is_unsure(self) -> bool:
        """Whether it was cancelled and the answer did not come: the next look finds out."""
        return self._is_unsure

    @property
    def runtime(self) -> _core.Runtime:
        """Of the session it was spawned in."""
        return self._runtime

    @property
    def key(self) -> int:
        """What `arrivals` calls this task: the address of its record."""
        return self._record[0]

    @property
    def server(self) -> int:
        """The server that has the task: where it was sent, or who took it over while it waited."""
        self._follow()
        return self._server

    def explain(self) -> str:
        """Why the task was sent where it was sent: the rule, and what was known of every server. No message.

        Source: Ma et al., OSDI'24, section 4.1.2 (placement), 4.2 (the controller's rules).
        """
        taken_over = f"; server {self._server} took it over while it waited" if self._follow() else ""
        return f"task {self.name}: {self._decision}{taken_over}"

    def _follow(self) -> bool:
        """Whether another server took the task over; that one is asked about it from then on. No message."""
        if not self._finished:
            server = self._runtime.record_server(self._record)
            if server is not None and server != self._server:
                self._server = server
                self._epoch = self._runtime.endpoint(server)[0]
                if self._call is not None:
                    self._call.target = server
        return self._decision is not None and self._server != self._decision.server

    def done(self) -> bool:
        """Whether the task has ended, without waiting. No message."""
        return self._finished or self.poll()

    def cancelled(self) -> bool:
        """Whether the task was taken back before it began. No message."""
        return self.done() and isinstance(self._error, CancelledError)

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, as far as was looked, with an error other than its cancellation."""
        return self._error is not None and not isinstance(self._error, CancelledError)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits for the task and returns what it raised, or None. As `join` otherwise."""
        try:
            self.join(timeout)
        except BaseException as error:
            if error is self._error:
                return error.with_traceback(None)  # which has this frame, and so the handle
            raise
        return None

    def cancel(self) -> bool:
        """Takes the task back if no worker has begun it. What it was lent is whole again at once.

        A task that runs is not disturbed: Python has no safe way to. Boxes that were moved to it are freed,
        as if it had run and dropped them. Joining raises CancelledError.
        Cost: 0 messages on this server, 1 round trip elsewhere.

        Returns:
            Whether it is cancelled, by this call or an earlier one; False: it runs, or has ended.

        Raises:
            ServerLostError: its server did not answer. If that lives, waiting for the task tells.
        """
        if self.poll():
            return self.cancelled()
        with self._lock:
            if self._call is None:
                return self.cancelled()
            try:
                if not self._runtime.withdraw(self._server, self._record):
                    return False
            except ServerLostError:
                self._is_unsure = True
                raise
            self._withdrawn(self._call)
        self._tell()
        return True

    def _withdrawn(self, call: calls.Outgoing) -> None:
        call.withdrawn()
        self._settle(None, CancelledError(task=f"task {self.name}"))
        self._runtime.tell_arrival(self.key)  # no completion will

    def add_done_callback(self, function: "Callable[[JoinHandle[T]], object]") -> None:
        """Calls `function` with this handle once the task has ended: at once if it has.

        It is called in whichever thread meets the end first, often one of drust's own: it must not wait.
        """
        with self._lock:
            is_over = self._finished
            if not is_over:
                self._callbacks.append(function)
        if is_over:
            function(self)
        else:
            arrivals.watch(self)

    def abandon(self, error: DrustError) -> None:
        """The session has ended, so no completion will come: who waits hears of that."""
        with self._lock:
            if not self._finished:
                self._error, self._finished = error, True
                outstanding.drop(self)
        self._tell()

    def _tell(self) -> None:
        """Calls back, once, and without the lock."""
        with self._lock:
            functions, self._callbacks = self._callbacks, []
        for function in functions:
            try:
                function(self)
            except Exception:  # noqa: BLE001 - as futures do: the others are to be called all the same
                _log.exception("drust: a callback of %r failed", self)

    def __await__(self) -> Generator[Any, None, T]:
        """`await handle`: as `join`, and the event loop goes on meanwhile.

        If the waiting is cancelled, a task that no worker has begun is taken back.
        """
        if not self._finished:
            from drust import aio

            yield from aio.wake_in(self).__await__()
        return self.join()

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
            if timeout is None:
                self.wait()
            else:
                with blocking.section():
                    self._wait(time.monotonic() + timeout, timeout)
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
        if not self.poll() and not self.help():
            with blocking.section():
                self._wait(None, None)

    def help(self) -> bool:
        """Runs the task in this thread, if that is a worker's and none has begun it: whether it has ended."""
        return self._server == self._runtime.server and blocking.help(self._record) and self.poll()

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
            self.look()

    def look(self) -> None:
        """Ends the wait if nobody is left who could complete the task: 1 ping where it runs elsewhere.

        If the table says that its server has ended, what it was lent may be in tasks further down: the record
        is completed once that is over. If it is only silent, nobody will ever say.
        """
        try:
            runtime.check_alive()
            self._follow()
        except ServerLostError as error:
            self._write_off(error)
            return
        began_s = time.monotonic()
        try:
            if self._is_unsure:
                self._look_for()
            elif self._server != self._runtime.server:
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
                self._runtime.tell_arrival(self.key)
        self._tell()

    def _look_for(self) -> None:
        """Whether a cancellation whose answer was lost had reached the server: 1 round trip.

        A completion arrives before its server forgets the task, so one that it does not know, and that has
        not arrived, was taken back.
        """
        is_known = self._runtime.knows_task(self._server, self._record)
        self._is_unsure = False
        if not is_known and not self.poll():
            with self._lock:
                if self._call is not None:
                    self._withdrawn(self._call)
            self._tell()

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
            was_taken_over = self._follow()
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
            elif (was_taken_over and not block[0]) or (
                self._epoch and self._runtime.endpoint(self._server)[0] != self._epoch
            ):
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
        self._tell()
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
        outstanding.drop(self)

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
        server: where to run it; else where most of what it borrows lies, or this server, or, when that is
            busy, the least busy one: see drust.placement and `JoinHandle.explain`.
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
        QueueFullError: all 16,384 tasks that the server holds have begun, and wait for others.
        ConfigError: `retry` with a Box to be moved, which dies with its worker.

    Cost: 0 messages on this server, 1 round trip elsewhere, with the small arguments in it.
    """
    return start(function, args, kwargs, server=server, retry=retry)


def start(
    function: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    server: int | None = None,
    retry: int = 0,
) -> JoinHandle[T]:
    """`spawn` for a function whose own keyword arguments may be called `server` and `retry`."""
    here = runtime.current()
    told = _check_target(server)
    call = calls.Outgoing(_name_of(function), told, shipping.ship(function), function, _check_retry(retry))
    record = _prepare(here, call, args, kwargs)
    try:
        submitting.submit(here, call.target, [(call.pointer, record)], retry, bound=call.is_bound)
    except BaseException:
        here.free(record)
        call.undo()
        raise
    return _sent(call, record)


def start_many(
    function: Callable[..., T],
    arguments: Sequence[tuple[Any, ...]],
    *,
    server: int | None = None,
    retry: int = 0,
) -> list[JoinHandle[T]]:
    """As `start(function, each)` for each of `arguments`, in messages of up to 256 tasks.

    If one cannot be sent, those that were are taken back.
    """
    here = runtime.current()
    told = _check_target(server)
    shipped = shipping.ship(function)
    handles: list[JoinHandle[T]] = []
    try:
        for first in range(0, len(arguments), submitting.BATCH):
            batch = arguments[first : first + submitting.BATCH]
            _start_batch(here, told, function, shipped, batch, _check_retry(retry), handles)
    except BaseException:
        for handle in reversed(handles):
            if not handle.done():
                handle.cancel()
        raise
    return handles


def _start_batch(
    here: _core.Runtime,
    told: int | None,
    function: Callable[..., T],
    shipped: shipping.Shipped,
    arguments: Sequence[tuple[Any, ...]],
    retry: int,
    handles: list[JoinHandle[T]],
) -> None:
    """Starts these, a message for each server they go to; adds their handles, in the order of `arguments`."""
    ready: list[tuple[int, calls.Outgoing, Pointer]] = []
    sent: dict[int, JoinHandle[T]] = {}
    try:
        for number, args in enumerate(arguments):
            call = calls.Outgoing(_name_of(function), told, shipped, function, retry)
            ready.append((number, call, _prepare(here, call, args, {})))
        ready.sort(key=lambda each: each[1].target)  # stable: in order on each server
        while ready:
            first = ready[0][1]
            blocks = [(call.pointer, record) for _, call, record in ready if call.target == first.target]
            count = submitting.submit(here, first.target, blocks, retry, bound=first.is_bound)
            for number, call, record in ready[:count]:
                sent[number] = _sent(call, record)
            del ready[:count]
    except BaseException:
        for _, call, record in ready:
            here.free(record)
            call.undo()
        raise
    finally:
        handles += [sent[number] for number in sorted(sent)]


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _prepare(
    here: _core.Runtime, call: calls.Outgoing, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Pointer:
    """Encodes a call, with its lends and moves; its record. If it raises, nothing was lent or moved."""
    try:
        call.encode(args, kwargs)
        call.epoch = here.endpoint(call.target)[0] if call.target != here.server else 0
        return here.make_record(call.target, call.records, 0 if call.lease is None else call.lease.id)
    except BaseException:
        call.undo()
        raise


def _sent(call: calls.Outgoing, record: Pointer) -> "JoinHandle[Any]":
    """The queue has it: its handle."""
    call.sent()
    handle: JoinHandle[Any] = JoinHandle(call.name, call.target, record, call)
    if call.lease is not None:
        call.lease.below.append(handle)
    handle.outlive(call)
    return handle


def spawn_to(
    where: "_core.Box[Any] | int", function: Callable[..., T], /, *args: Any, **kwargs: Any
) -> JoinHandle[T]:
    """Runs a task on the server where a Box's value lies, or on the server of that number.

    Source: Ma et al., OSDI'24, section 4.1.3 (`spawn_to`).
    """
    server = where if isinstance(where, int) else where.server
    return spawn(function, *args, server=server, **kwargs)


def _check_target(server: int | None) -> int | None:
    if runtime.config().workers == 0:
        raise ConfigError(variable="workers=", value="0", expected="at least 1 to spawn tasks")
    return None if server is None else _check_server(server)


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
