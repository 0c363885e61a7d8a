"""Where a task runs: one pure function, what it is told, and why it decided as it did.

    told       server=, spawn_to: there
    only       no other server takes tasks, or none is known to
    data       most of what the task borrows lies there, and it is more than a message's worth
    here       this server has a worker for it
    least      everybody here is busy: where the fewest tasks would be before it, a worker each

The 90 % rules (Ma et al., OSDI'24, section 4.2): a server above OVERLOADED of its machine's processors, or of
its partition, gets no task that was not told to go there, while another one is below; and so for one with
more than BACKLOG tasks waiting for each worker. Here is left only if it helps: at a tie the task stays.

A task that waits all the same may be taken over by a server that has nothing to do, unless it was told where
to run, or takes too much along: native/server/takeovers.hpp.

What is known of other servers stands in this partition, at most a few periods old (server/load.py), and
counts what this host has sent there since; of this server the queue itself is asked. So to decide costs no
message. Rejected: asking the controller at each spawn (a round trip a task, and one process that all wait
for); two random choices (with the table at hand all are as cheap as two).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from drust import _core, codecs, runtime
from drust.server.load import OVERLOADED, STALE_PERIODS

BACKLOG = 16  # tasks that wait for each worker
STAY_BYTES_MIN = 16 * 2**20  # borrowed in all, from which on no other server may take the task over
FOLLOW_BYTES_MIN = 64 * 1024  # borrowed in all, to be followed: fewer travel in the time of a message

Rule: TypeAlias = Literal["told", "only", "data", "here", "least"]


class Load(NamedTuple):
    """How busy a server is, as the one who spawns knows it."""

    server: int
    workers: int
    idle: int
    queued: int
    """Tasks that wait, and those that were sent there since it was measured."""
    cpu: float
    """The part of its machine's processors in use, by anybody."""
    memory: float
    """The part of its partition in use."""
    is_fresh: bool = True
    """Measured a moment ago: a server that is lost is not."""

    @property
    def is_able(self) -> bool:
        """Whether it can be given tasks at all."""
        return self.is_fresh and self.workers > 0

    @property
    def is_overloaded(self) -> bool:
        """Whether it gets no more tasks while others can have them."""
        return (
            self.cpu >= OVERLOADED
            or self.memory >= OVERLOADED
            or self.queued > BACKLOG * max(1, self.workers)
        )

    @property
    def is_saturated(self) -> bool:
        """Whether tasks wait that no idle worker is about to take."""
        return self.queued > self.idle

    @property
    def depth(self) -> float:
        """How many tasks each worker would have with one more."""
        return (self.queued + max(0, self.workers - self.idle) + 1) / max(1, self.workers)

    def __str__(self) -> str:
        if not self.is_fresh:
            return f"server {self.server}: not heard of lately"
        return (
            f"server {self.server}: {self.idle} of {self.workers} workers idle, {self.queued} tasks waiting,"
            f" processors {self.cpu:.0%}, memory {self.memory:.0%}"
        )


class Decision(NamedTuple):
    """Where a task was sent, and what was known then."""

    server: int
    rule: Rule
    here: int
    loads: tuple[Load, ...] = ()
    borrowed: tuple[tuple[int, int], ...] = ()
    """Server and bytes of what it borrows or is given, most first."""

    @property
    def is_bound(self) -> bool:
        """Whether the task stays there though it has to wait and another server is idle."""
        return self.rule == "told" or sum(size for _, size in self.borrowed) >= STAY_BYTES_MIN

    def __str__(self) -> str:
        why = {
            "told": "it was told to run there",
            "only": "no other server takes tasks",
            "data": "most of what it borrows is there",
            "here": "a worker here is free for it",
            "least": "the fewest tasks are before it there",
        }[self.rule]
        known = [f"server {server} has {size:,} bytes of what it borrows" for server, size in self.borrowed]
        known += [str(load) for load in self.loads]
        return f"server {self.server}, as {why}" + (f" ({'; '.join(known)})" if known else "")


def choose(here: int, loads: Sequence[Load], borrowed: Sequence[tuple[int, int]]) -> tuple[int, Rule]:
    """The server for a task that was not told where to run. Pure.

    Args:
        here: the server of the process that spawns.
        loads: of every server.
        borrowed: server and bytes of what the task borrows, each server once.
    """
    able = [load for load in loads if load.is_able]
    if not any(load.server != here for load in able):
        return here, "only"
    fit = [load for load in able if not load.is_overloaded] or able
    if sum(size for _, size in borrowed) >= FOLLOW_BYTES_MIN:
        most, _ = max(borrowed, key=lambda each: (each[1], each[0] == here, -each[0]))
        if any(load.server == most for load in fit):
            return most, "data"
    for load in fit:
        if load.server == here and not load.is_saturated:
            return here, "here"
    best = min(fit, key=lambda load: (load.depth, load.server != here, load.server))
    return best.server, "least"


def decide(handles: Iterable[tuple[Any, int]]) -> Decision:
    """Where a task with these arguments is to run. No message.

    Args:
        handles: the Boxes, Refs and RefMuts in its arguments, as `codecs.encode_arguments` found them.
    """
    here = runtime.current().server
    servers = runtime.config().servers
    if servers == 1:
        return _keep(Decision(here, "only", here))
    stale_ms = runtime.config().load_period_s * 1000 * STALE_PERIODS
    rows = runtime.current().loads(servers)
    loads = tuple([_load(row, stale_ms, here) for row in rows])
    borrowed = where_it_lies(handles)
    server, rule = choose(here, loads, borrowed)
    return _keep(Decision(server, rule, here, loads, borrowed))


def told(server: int) -> Decision:
    """The decision of whoever says `server=`."""
    return _keep(Decision(server, "told", runtime.current().server))


def where_it_lies(handles: Iterable[tuple[Any, int]]) -> tuple[tuple[int, int], ...]:
    """Server and bytes of what is lent or given, most first.

    What has no block yet, a live object that only this process knows, is not weighed: it is written when it
    is lent. Nor is shared state, which stays at home.
    """
    sizes: dict[int, int] = {}
    for handle, _ in handles:
        if isinstance(handle, _core.Shared):
            continue
        guard: Any = handle
        is_owner = isinstance(handle, _core.Box)
        box = guard if is_owner else guard._box
        pin = box._pin
        if pin is None:
            continue
        pointer = pin.pointer
        size = pointer[2]
        if not is_owner and guard._part is not None and pin.local is not None:
            _, chunk_bytes, count, _ = guard._region()
            size = chunk_bytes * count
        elif pin.local is not None and pin.codec in codecs.GROUPS:
            size += sum(child[2] for child in pin.children)
        server = runtime.server_of(pointer)
        sizes[server] = sizes.get(server, 0) + size
    return tuple(sorted(sizes.items(), key=lambda each: (-each[1], each[0])))


def _load(row: tuple[int, int, int, int, int, int, int, int], stale_ms: float, here: int) -> Load:
    server, age_ms, workers, idle, queued, cpu, claimed_bytes, quota_bytes = row
    is_known = age_ms < 2**63
    if server == here and not is_known:  # nothing was measured yet; the queue is known all the same
        workers = runtime.config().workers
    return Load(
        server,
        workers,
        idle,
        queued,
        cpu / 1000,
        claimed_bytes / quota_bytes if quota_bytes else 0.0,
        server == here or (is_known and (not stale_ms or age_ms < stale_ms)),
    )


# -- a trace for tests -------------------------------------------------------------------------------------

_trace: "deque[Decision] | None" = None  # the latest decisions while somebody asks; protected by the GIL


def trace(kept: "deque[Decision] | None") -> None:
    """Appends every decision of this process to `kept` from now on; None ends that. See drust.testing."""
    global _trace
    _trace = kept


def _keep(decision: Decision) -> Decision:
    if _trace is not None:
        _trace.append(decision)
    return decision
