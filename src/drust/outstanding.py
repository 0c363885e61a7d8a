"""Tasks whose handles must outlive them, whoever forgets these: what they were lent is only here.

Their ends are looked at a few at each spawn, so that tasks that nobody joins cannot pile up. All of it is
protected by the GIL.
"""

import itertools
from typing import Protocol

from drust import _core

_POLLED_PER_SPAWN = 2


class Handle(Protocol):
    """What is asked of a tasks.JoinHandle."""

    @property
    def runtime(self) -> _core.Runtime:
        """The runtime it was spawned in."""
        ...

    def poll(self) -> bool:
        """Whether it has ended: then it drops itself."""
        ...


_kept: dict[Handle, None] = {}


def keep(handle: Handle) -> None:
    """Until the task has ended, or its session."""
    if handle in _kept:
        return
    for oldest in list(itertools.islice(_kept, _POLLED_PER_SPAWN)):
        if oldest.runtime.closed:  # an earlier session's, whose heap is gone
            drop(oldest)
        elif not oldest.poll() and _kept.pop(oldest, oldest) is None:
            _kept[oldest] = None  # behind the others
    _kept[handle] = None


def drop(handle: Handle) -> None:
    """The task has ended."""
    _kept.pop(handle, None)


def poll() -> None:
    """Takes in the ends of all whose session is open."""
    for handle in list(_kept):
        if not handle.runtime.closed:
            handle.poll()
