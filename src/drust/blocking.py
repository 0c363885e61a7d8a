"""Where a task blocks: the worker runs other tasks meanwhile, on a thread of its own.

`section()` surrounds every wait for another task. In a worker it sees to it that one more thread takes tasks
from the queue while this one sleeps, so that a task that joins its own children never starves them. In a
driver it is nothing.
Rejected: running another task on top of the blocked one's stack (the one below cannot go on before the one
above ends: two tasks that wait for each other would deadlock).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Pool(Protocol):
    """What a worker registers here."""

    def section(self) -> AbstractContextManager[None]:
        """Surrounds a wait."""
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
