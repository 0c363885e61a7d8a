"""Every error drust raises, in branches by who must act.

    DrustError
      OwnershipError   your program: it broke a rule of ownership, or hands over what cannot travel
      ClusterError     the world: memory, machines, the network, the configuration
      TaskError        your task raised something that cannot be brought here (else that is raised itself)
      InternalError    us: a bug in drust

An error is its fields, keyword-only, typed and all optional, so that native code and Python raise alike.
The message is made of them by the class's template, and ends with what to do. Fields of one name mean the
same everywhere: `object` describes the value (`Box[ndarray float64 8192x8192]`), `holder` is process, task
and thread, `location` is `file:line`, and a name ends in its unit. All survive pickling, with fields, notes
and whatever else was set on them. A standard exception that callers may already catch (`MemoryError`) is a
base as well.

Rejected: messages written at the raising site; they end up in five wordings and lose the fields.
"""

import concurrent.futures
import pickle
import queue
import re
import threading
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

from drust.units import format_bytes, format_seconds

_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_EMPTY = (None, "", 0, ())
_FIELD = re.compile(r"\{(\w+)\}")


def _shown(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_s"):
        return format_seconds(value)
    return "; ".join(value) if isinstance(value, tuple) else str(value)


@dataclass_transform(kw_only_default=True)
class _Record(Exception):  # noqa: N818 - machinery, no error of its own
    """Makes every subclass a dataclass of its fields whose `str()` is its template, filled.

    In a template `{name}` is a field, and a part in `[...]` is left out when a field in it is empty.
    """

    template: ClassVar[str]
    advice: ClassVar[str]

    def __init_subclass__(cls) -> None:
        dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __str__(self) -> str:
        fields = vars(self)

        def filled(template: str) -> str:
            return _FIELD.sub(lambda field: _shown(field[1], fields[field[1]]), template)

        def part(optional: re.Match[str]) -> str:
            names = _FIELD.findall(optional[1])
            return optional[1] if all(fields[name] not in _EMPTY for name in names) else ""

        return filled(_OPTIONAL.sub(part, f"{self.template}. [{{detail}} ]") + self.advice)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name != "__notes__")
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), self.__dict__


class DrustError(_Record):
    """The base of every error drust raises."""

    template = "drust failed"
    advice = "Catch one of the branches: OwnershipError, ClusterError, TaskError."

    detail: str = ""  # one more sentence, where the raising site knows something the fields do not


# -- your program ------------------------------------------------------------------------------------------


class OwnershipError(DrustError):
    """Your program broke a rule of ownership, or hands over what cannot travel."""

    template = "a rule of ownership is broken"
    advice = "A value has one owner, and one writer or many readers."


class MovedError(OwnershipError):
    """A Box was used after it had been moved."""

    template = "{object} was moved[ into {into}][ at {location}]"
    advice = "Lend it there with .borrow() or .borrow_mut(), or pass .clone(), to keep it."

    object: str = "this Box"
    into: str = ""  # `task relax`, `channel jobs`, `into_inner()`
    location: str = ""  # of the move


class BorrowError(OwnershipError):
    """A shared borrow was refused: somebody holds the value exclusively."""

    template = (
        "cannot {action} {object}: it is borrowed[ {mode}][ by {holder}][ since {location}][ for {age_s}]"
    )
    advice = "End that borrow first (leave its `with` block, join its task), or wait with timeout=."

    object: str = "this value"
    action: str = "borrow"
    mode: str = "mutably"
    holder: str = ""
    location: str = ""  # where the holder's borrow began
    age_s: float | None = None  # of the holder's borrow


class BorrowMutError(BorrowError):
    """A mutable borrow, a move or a drop was refused: somebody holds the value, shared or exclusively."""

    template = (
        "cannot {action} {object}: it is borrowed[ {mode}][ {readers} times][ by {holder}]"
        "[ since {location}][ for {age_s}]"
    )

    action: str = "mutably borrow"  # or `move`, `drop`, `replace`
    mode: str = ""  # `shared` or `mutably`
    readers: int = 0  # the shared borrows outstanding; holder and location are of one of them


class AccessError(BorrowMutError):
    """The handle may not do that: it is a shared reference, or a Box that lies inside another one."""

    template = "{object}: {reason}"
    advice = (
        "Borrow it, or the Box around it, as strongly as needed; only the owner can move it or take it apart."
    )

    reason: str = "this handle may not do that"


class RevokedError(OwnershipError):
    """An array that a `with` block had lent was used after the block."""

    template = "{object} was only lent, and its borrow ended[ at {location}]"
    advice = "Use it inside the `with` block, or keep a copy made there with .copy()."

    object: str = "this array"
    location: str = ""  # where the borrow ended


class StaleViewError(OwnershipError):
    """Strict mode only: a view derived from a borrowed array was still alive after its borrow."""

    template = "a view of {object} outlived the borrow[ at {location}]"
    advice = "Delete the view before the block ends (the last `row` of a loop is one), or .copy() it."

    object: str = "this value"
    location: str = ""  # of the borrow that the view came from


class ImmutableValueError(OwnershipError, TypeError):
    """A mutable borrow of a value that cannot be changed in place: an int, a str, a tuple."""

    template = "cannot mutably borrow {object}[ of type {type_name}], which cannot change in place"
    advice = "Use box.replace(value), or an Atomic for a counter: `n += 1` would change the name only."

    object: str = "this value"
    type_name: str = ""


class PickledBoxError(OwnershipError, pickle.PicklingError):
    """A handle was pickled outside of a hand-over: captured by a function, or given to another library."""

    template = "{object} would be moved silently[ by {via}]"
    advice = "Pass it as an argument of spawn(), or inside one."

    object: str = "a Box"
    via: str = ""  # `the closure of relax`, `pickle.dumps`


class ForkedHandleError(OwnershipError):
    """A handle that a forked child inherited was used there: the value stays the parent's."""

    template = "{object} belongs to {process} and cannot be used after fork()"
    advice = "Use drust.spawn() for parallel work, or drust.init() in the child for values of its own."

    object: str = "this Box"
    process: str = "the parent process"


class DeadlockError(OwnershipError):
    """Everybody who could end the wait waits too."""

    template = "waiting for {object} would never end[: {cycle}]"
    advice = "Take them in one order everywhere, or hold one at a time."

    object: str = "a lock"
    cycle: tuple[str, ...] = ()  # who waits for what, as sentences


class CaptureTooLargeError(OwnershipError):
    """A function to be spawned captures a big value, which would travel with every spawn."""

    template = "{function} captures {variable}, {size_bytes} in each spawn (at most {limit_bytes})"
    advice = "Put it into a Box and pass box.borrow() as an argument."

    function: str = "the function"
    variable: str = "values around it"
    size_bytes: int = 0
    limit_bytes: int = 0


class UnpicklableError(OwnershipError, pickle.PicklingError):
    """A value cannot leave this process: neither a codec nor pickle knows how."""

    template = "{object} cannot be sent[ because of a {type_name}][ ({reason})]"
    advice = "Hand over what it is made of (a path, not the open file), or register a codec for its type."

    object: str = "this value"  # or `argument 2 of relax`
    type_name: str = ""  # of the part that refused
    reason: str = ""  # what pickle said


class CodecError(OwnershipError, ValueError):
    """A codec could not encode a value, or could not decode the bytes of a block."""

    template = "{codec} failed on {object}[ ({reason})]"
    advice = "Register the same codecs in every process, with the same versions of the libraries behind them."

    codec: str = "the codec"
    object: str = "this value"
    reason: str = ""


class NotAFrameError(OwnershipError, TypeError):
    """Columns or rows of a value were asked for that has none."""

    template = "{object} is no {wanted}"
    advice = "Put a polars DataFrame or an Arrow Table with columns into the Box, and append its own kind."

    object: str = "this value"
    wanted: str = "frame with columns that drust can reach"


class MissingColumnError(OwnershipError, KeyError):
    """A frame has no column of that name, or several."""

    template = "{object} has {count} columns named {column}[; it has {columns}]"
    advice = "Name one that it has once; add a column with borrow_mut() or replace()."

    object: str = "the frame"
    column: str = "a name"
    columns: tuple[str, ...] = ()
    count: int = 0


class ColumnKindError(OwnershipError, TypeError):
    """A column of strings, categories, decimals or nested values: they have no fixed place to be written."""

    template = "column {column} of {object} is {kind}, which cannot be written in place"
    advice = "Replace the whole column: borrow_mut() the frame, or box.replace(frame.with_columns(...))."

    object: str = "the frame"
    column: str = "a name"
    kind: str = "of variable size"


class RowGroupError(OwnershipError, IndexError):
    """A column lies in several row groups, each a block of its own, and it is not clear which is meant."""

    template = "column {column} of {object} has {row_groups} row groups[, and {row_group} is none of them]"
    advice = "Name one with row_group=, counted from 0, or merge them: box.replace(frame.rechunk())."

    object: str = "the frame"
    column: str = "a name"
    row_groups: int = 0
    row_group: str = ""


class FrameSchemaError(OwnershipError, ValueError):
    """Rows were to be appended whose columns are not those of the frame."""

    template = "these rows do not fit {object}[: {reason}]"
    advice = "Give them its columns: rows.select(frame.columns).cast(frame.schema)."

    object: str = "the frame"
    reason: str = ""


# -- the world ---------------------------------------------------------------------------------------------


class ClusterError(DrustError):
    """The world is at fault: memory, machines, the network, the configuration."""

    template = "the cluster failed"
    advice = "Ask `drust status` which server or worker is at fault."


class ConfigError(ClusterError, ValueError):
    """An argument or environment variable has a value drust cannot use."""

    template = "{variable} is {value}; expected {expected}"
    advice = "Correct it, or leave it out for the default."

    variable: str = "the configuration"  # `DRUST_HEAP_BYTES` or `heap_bytes=`
    value: str = "wrong"
    expected: str = "a valid value"


class OutOfMemoryError(ClusterError, MemoryError):
    """A server's partition, its container or its machine has no room for an allocation."""

    template = (
        "no room for {requested_bytes}[ on {server}]: {limit} is reached[ ({heap_bytes} in all)]"
        "[; {free_bytes} are free][; the largest objects are {largest}][; {vacant}]"
    )
    advice = "Drop what is no longer needed, or raise DRUST_HEAP_BYTES or the number of servers."

    requested_bytes: int = 0
    free_bytes: int = 0
    heap_bytes: int = 0  # the partition's quota
    limit: str = "the heap's quota"  # or `the container's memory limit`, `the machine's memory`
    server: str = ""
    largest: tuple[str, ...] = ()  # live objects with size and owner, biggest first
    vacant: str = ""  # `server 1 has 3.2 GiB left`: a task there could make it, or borrow it


class ResultRefusedError(OutOfMemoryError):
    """A task has returned, but its spawner's server had no room for what it returned: that is gone."""

    template = (
        "task {task} has returned, but there is no room[ on {server}] for its result; its mutable borrows"
        " {outcome}"
    )

    task: str = "a task"
    outcome: str = "have ended"  # or `were rolled back`, `are poisoned`


class WorkerLostError(ClusterError):
    """The process that ran a task ended before the task did."""

    template = "{worker}[ on {server}] ended[ ({reason})] while it ran {task}; its mutable borrows {outcome}"
    advice = "Spawn it again: another worker has taken its place."

    task: str = "a task"
    worker: str = "a worker"  # `worker 3 (pid 4711)`
    server: str = ""
    reason: str = ""  # `killed by signal 9`
    outcome: str = "have ended"  # or `were rolled back`, `are poisoned`


class ServerLostError(ClusterError):
    """A server does not answer any more, and no replica holds the object."""

    template = "{object} is on {server}[ at {host}], which is lost[ ({reason})]"
    advice = "Compute it again on the servers that are left."

    object: str = "the object"
    server: str = "a server"
    host: str = ""
    reason: str = ""  # how it was noticed: `connection reset`, `silent for 4 s`


class ServerStartError(ClusterError):
    """A server could not be started, or did not get ready in time."""

    template = "{server} could not be started[: {reason}]"
    advice = "Its own messages on stderr say more; DRUST_LOG=debug makes them detailed."

    server: str = "a server"
    reason: str = ""


class DeadProcessError(ClusterError):
    """The process that owned an object is gone, and the object with it."""

    template = "{object} belonged to {process}, which has ended"
    advice = "Let it be owned by a process that outlives its users, usually the driver."

    object: str = "the object"
    process: str = "a process"


class PoisonedError(ClusterError):
    """A task was lost while it wrote the value in place: it may be half written."""

    template = (
        "{object} is poisoned: {task} was lost while writing it[, with {worker}][ ({reason})][ at {time}]"
    )
    advice = "Accept what is there with recover(), or give it a value again with replace()."

    object: str = "this value"
    task: str = "a task"
    worker: str = ""  # `worker (pid 4711) on server 1`
    reason: str = ""  # `killed by SIGKILL`
    time: str = ""  # local time, ISO 8601


class AuthenticationError(ClusterError):
    """The other side did not prove that it knows the cluster's token."""

    template = "{host} and this process have different tokens"
    advice = "Give this process the cluster's token in DRUST_TOKEN."

    host: str = "the server"


class VersionMismatchError(ClusterError):
    """The other side runs a drust, a Python or a library that does not understand ours."""

    template = "{host} has another version of {part}[: {theirs}][, this process {ours}]"
    advice = "Install the same version on both."

    host: str = "the server"
    part: str = "the protocol"  # or `Python`, `numpy`
    ours: str = ""
    theirs: str = ""


class ClosedError(ClusterError):
    """The runtime or a channel was shut down."""

    template = "{object} is closed"
    advice = "Do this before closing it, or open a new one (drust.init() for the runtime)."

    object: str = "drust"  # or `channel jobs`


class ChannelClosedError(ClosedError):
    """A channel whose other end is gone: its last sender, or its last receiver."""

    template = "the other end of {object} is gone"
    advice = "Keep a handle of that end as long as it is needed; a receiver's loop ends by itself."

    object: str = "the channel"


class BarrierBrokenError(ClusterError, threading.BrokenBarrierError):
    """Somebody gave up waiting at a barrier: the others would wait for ever."""

    template = "{object} is broken: one of its parties gave up waiting"
    advice = "Make a new one for those who are left."

    object: str = "the barrier"


class BorrowTimeoutError(ClusterError, TimeoutError):
    """Waiting for a borrow, a lock, a channel or a task took longer than `timeout=` allowed."""

    template = "waited {timeout_s} for {object}[, held by {holder}][ since {location}]"
    advice = "End that borrow or join that task first, or allow more time."

    object: str = "this value"
    timeout_s: float = 0.0
    holder: str = ""
    location: str = ""  # where the holder's borrow began


class QueueFullError(ClusterError, queue.Full):
    """A bounded queue of tasks or a bounded channel has no room."""

    template = "{queue} is full[ ({capacity} entries)]"
    advice = "Join some of what was handed over first, or hand over larger pieces."

    queue: str = "the queue"
    capacity: int = 0


class TooManyBlockedError(ClusterError):
    """A task that is about to wait needs a thread for those that run meanwhile, and the system gives none."""

    template = "this worker has {threads} threads, most of which wait for tasks, and gets no more[: {reason}]"
    advice = "Join fewer tasks from within tasks at a time, or allow more threads (ulimit -u, pids.max)."

    threads: int = 0
    reason: str = ""


# -- tasks, and us -----------------------------------------------------------------------------------------


class TaskError(DrustError):
    """A task raised something that cannot be brought here. Where it can, that exception is raised itself.

    Either way the `__cause__` is a RemoteTraceback.
    """

    template = "{task} failed[ on {worker}][: {error}]"
    advice = "The remote traceback above says where."

    task: str = "a task"
    worker: str = ""
    error: str = ""  # the exception's type and text
    traceback: str = ""  # the remote traceback, as text


class CancelledError(TaskError, concurrent.futures.CancelledError):
    """A task was taken back before a worker had begun it: by `cancel()`, or because its scope failed.

    What it was lent is as before. Boxes that were moved to it are gone, as if it had run and dropped them.
    """

    template = "{task} was cancelled before a worker had begun it"
    advice = "Spawn it again if it is wanted after all."


class RemoteTraceback(Exception):  # noqa: N818 - a reader meets the name above a traceback
    """The `__cause__` of an exception that came from a task: its `str()` is the other process's traceback."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0] if self.args else ""}"""'


class InternalError(DrustError):
    """drust broke a rule of its own; nothing a program does should cause it."""

    template = "this is a bug in drust"
    advice = "Please report it, with this text and the traceback."


class StaleViewWarning(UserWarning):
    """A view outlived its borrow. It keeps the version it saw, and the next write pays one copy for that."""
