"""This process's one connection to the heap: attach, close, errors from native code, statistics.

The only process-wide state of drust lives here: which runtime this process is attached to, and who starts one
when none is. Everything else asks `current()`. A forked child has no runtime (its mappings were not
inherited): handles it inherited raise, and what it does with drust starts servers of its own.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from drust import _core
from drust.config import Config
from drust.errors import (
    AuthenticationError,
    BorrowTimeoutError,
    ClosedError,
    DrustError,
    InternalError,
    OutOfMemoryError,
    QueueFullError,
    ServerLostError,
    VersionMismatchError,
    WorkerLostError,
)
from drust.units import format_bytes

Pointer = tuple[int, int, int]
"""(address, colour, extent in bytes): where a value is, which version, how many bytes to read."""

SERVER_BITS = 36  # an address is a server number above this many bits of 16-byte granules

KIND_DRIVER = 2
KIND_WORKER = 3

OWNER_NAMES = {
    0: "nobody",
    1: "process",
    2: "its parent",
    3: "a task in transit",
    4: "the copy table",
    5: "a queue",
    6: "a task, as its version of what it was lent",
    7: "another server, as a replica",
    8: "whoever has a handle of it",
    9: "whoever receives it",
}


class _State:
    """What this process is attached to. Protected by the interpreter lock."""

    runtime: _core.Runtime | None = None
    config: Config | None = None
    start: Callable[[], None] | None = None
    closed = False
    worker = False
    check: Callable[[], None] | None = None


_state = _State()


def current() -> _core.Runtime:
    """The runtime of this process. The first call in a script starts the default servers: under a second.

    Raises:
        ClosedError: drust was shut down in this process.
    """
    runtime = _state.runtime
    if runtime is not None:
        return runtime
    if _state.closed:
        raise ClosedError()
    if _state.start is None:
        raise InternalError(detail="nobody registered how to start servers")
    _state.start()
    if _state.runtime is None:
        raise InternalError(detail="starting servers left no runtime")
    return _state.runtime


def attached() -> _core.Runtime | None:
    """The runtime of this process, or None: never starts one."""
    return _state.runtime


def config() -> Config:
    """The settings this process runs under."""
    if _state.config is None:
        _state.config = Config.read()
    return _state.config


def in_worker() -> bool:
    """Whether this process is a worker (it runs tasks) rather than a driver."""
    return _state.worker


def on_demand(start: Callable[[], None]) -> None:
    """Registers what `current()` calls when nothing is attached yet."""
    _state.start = start


def watch(check: Callable[[], None]) -> None:
    """Registers what `check_alive` asks."""
    _state.check = check


def check_alive() -> None:
    """Raises ServerLostError if this process's own server has ended. No message."""
    if _state.check is not None:
        _state.check()


def attach(memfd: int, token: bytes, settings: Config, *, worker: bool) -> _core.Runtime:
    """Maps the partition behind `memfd` (which it takes over) and enters this process there."""
    kind = KIND_WORKER if worker else KIND_DRIVER
    runtime = _core.Runtime.attach(memfd, kind, token, os.getpid())
    _state.runtime, _state.config, _state.worker, _state.closed = runtime, settings, worker, False
    return runtime


def attach_worker(memfd: int, token: bytes, settings: Config | None = None) -> _core.Runtime:
    """As attach(), for a worker process."""
    return attach(memfd, token, settings or Config.read(), worker=True)


def detach() -> None:
    """Leaves the partition. Handles still alive become inert; arrays still alive keep their memory."""
    runtime, _state.runtime = _state.runtime, None
    _state.closed = True
    _state.check = None
    if runtime is not None:
        runtime.close()


def reopen() -> None:
    """Lets the next `current()` start servers again after a shutdown."""
    _state.closed = False


def _forget_in_child() -> None:
    _state.runtime = None
    _state.closed = False
    _state.worker = False
    _state.check = None


os.register_at_fork(after_in_child=_forget_in_child)


def server_of(pointer: Pointer) -> int:
    """The number of the server whose partition holds `pointer`."""
    return pointer[0] >> SERVER_BITS


def largest_objects(runtime: _core.Runtime, most: int = 5) -> tuple[str, ...]:
    """The biggest live objects of this server and who answers for each, as sentences for an error."""
    pids = {row["slot"]: row["pid"] for row in runtime.processes()}
    rows = []
    for row in runtime.largest_blocks(most):
        owner = OWNER_NAMES.get(row["owner_kind"], "nobody")
        if row["owner_kind"] == 1:
            owner = f"process {pids.get(row['owner_slot'], 'that has ended')}"
        rows.append(f"{format_bytes(row['pointer'][2])} owned by {owner}")
    return tuple(rows)


def vacant_servers(runtime: _core.Runtime) -> list[tuple[int, int]]:
    """(server, bytes left) of the others, most first, as far as this one has heard. No message."""
    rows = runtime.loads(config().servers)
    left = [(row[0], row[7] - row[6]) for row in rows if row[0] != runtime.server and row[1] < 2**63]
    return sorted((each for each in left if each[1] > 0), key=lambda each: -each[1])


def _native_error(code: int, detail: str) -> DrustError:
    """The exception for a native status; `code` as in native/base/status.hpp."""
    match code:
        case 1:
            runtime = _state.runtime
            largest = largest_objects(runtime) if runtime is not None else ()
            usage = runtime.usage() if runtime is not None else {"quota_bytes": 0, "claimed_bytes": 0}
            vacant = vacant_servers(runtime) if runtime is not None else []
            asked = re.search(r"no room for (\d+) bytes", detail)
            machine = "the machine or the container has no room" in detail
            return OutOfMemoryError(
                detail=f"{detail}.",
                requested_bytes=int(asked[1]) if asked else 0,
                limit="the memory limit of the machine or its container" if machine else "the heap's quota",
                heap_bytes=0 if machine else usage["quota_bytes"],
                free_bytes=0 if machine else usage["quota_bytes"] - usage["claimed_bytes"],
                largest=largest,
                vacant=f"server {vacant[0][0]} has {format_bytes(vacant[0][1])} left" if vacant else "",
            )
        case 2 | 3:
            return ServerLostError(reason="that version is gone", detail=detail)
        case 5:
            return AuthenticationError(detail=detail)
        case 6:
            return VersionMismatchError(detail=detail)
        case 7:
            return ServerLostError(reason=detail)
        case 8:
            return WorkerLostError(reason=detail)
        case 9:
            return BorrowTimeoutError(detail=detail)
        case 10:
            return QueueFullError(detail=detail)
        case 11:
            return ClosedError(detail=detail)
        case _:
            return InternalError(detail=detail)


_core.set_error_hook(_native_error)


_COUNTERS = {name: index for index, name in enumerate(_core.COUNTER_NAMES)}


def count(name: str, amount: int = 1) -> None:
    """Adds to a counter of this process; `drust status` and `statistics()` sum them. Not if unattached."""
    runtime = _state.runtime
    if runtime is not None:
        runtime.count(_COUNTERS[name], amount)


def statistics() -> dict[str, Any]:
    """What all processes of this server have counted: messages by kind, bytes, copies, encodings."""
    return dict(current().counters())
