"""Where a task blocks: the worker runs other tasks meanwhile, on a thread of its own.

`section()` surrounds every wait for another task. In a worker it sees to it that one more thread takes tasks
from the queue while this one sleeps, so that a task that joins its own children never starves them. In a
driver it is nothing.

A task that waits for one that no worker has begun runs that one itself: `help()`. It could not go on before
that one has ended anyway, so nothing waits longer than it must; and a recursion of spawn and join goes down
one branch, as a call would, with a thread for every twentieth level rather than for each.

Idle processors are in the way of that: whoever is quick takes each level before the one above has come to
its join, and then every level holds a thread of its own. So a worker with many blocked threads *keeps* what
a task of it spawned last, for a moment: nobody else takes that one before its spawner spawns another,
waits, or ends, or the moment is over. What it had spawned before is anybody's at once, so that tasks which
fan out do.

Rejected: running any *other* task on top of the blocked one's stack (the one below cannot go on before the
one above ends: two tasks that wait for each other would deadlock); a thread for each task that blocks (10,000
levels are 10,000 threads, and a tree of calls is run breadth first, so that nearly all of it blocks at once);
a greenlet for each (each of their switches copies stacks, and C code below a task, as in a sort's key
function, cannot be left); running what the blocked one waits for further down, on top of it (the one in
between need not wait for it yet, and may never).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from drust.runtime import Pointer


class Pool(Protocol):
    """What a worker registers here."""

    def section(self) -> AbstractContextManager[None]:
        """Surrounds a wait."""
        ...

    def help(self, record: Pointer) -> bool:
        """Runs the task of that record."""
        ...

    def kept_us(self) -> int:
        """How long what this thread spawns is kept."""
        ...

    def keep(self, record: Pointer, ticket: int) -> None:
        """It has spawned that."""
        ...


class _Registered:
    pool: Pool | None = None


def register(pool: Pool) -> None:
    """Called once by a worker before it takes its first task."""
    _Registered.pool = pool


def section() -> AbstractContextManager[None]:
    """Surrounds a wait for other tasks."""
    pool = _Registered.pool
    return nullcontext() if pool is None else pool.section()


def help(record: Pointer) -> bool:  # noqa: A001 - Python's own is for consoles
    """Runs the task of a record of this process, on this server, if no worker has begun it: whether it did.

    For a thread that is about to wait for just that task. In a driver it never does.
    """
    pool = _Registered.pool
    return pool is not None and pool.help(record)


def kept_us() -> int:
    """How long (microseconds) a task that this thread is about to spawn on its server is to be left to it.

    0 in a driver, and in a worker where few threads are blocked.
    """
    pool = _Registered.pool
    return 0 if pool is None else pool.kept_us()


def keep(record: Pointer, ticket: int) -> None:
    """This thread has spawned a task that is left to it, of that record, queued with that ticket."""
    pool = _Registered.pool
    if pool is not None:
        pool.keep(record, ticket)
