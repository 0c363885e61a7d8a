"""What decided where tasks went, and loads of one's own making.

A test of where a program's tasks go:

    with drust.init(servers=2, load_period_s=0), placing.traced() as decisions:
        placing.pretend(1, workers=1, idle=1)         # instead of a measurement
        drust.spawn(f)
        assert decisions[-1].rule == "here"
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from drust import placement, runtime

TRACE_MAX = 10_000  # decisions kept; the oldest go
_QUOTA_BYTES = 1_000_000


@contextmanager
def traced() -> "Iterator[deque[placement.Decision]]":
    """The decisions of this process in the block, oldest first, at most TRACE_MAX."""
    kept: deque[placement.Decision] = deque(maxlen=TRACE_MAX)
    placement.trace(kept)
    try:
        yield kept
    finally:
        placement.trace(None)


def pretend(
    server: int,
    *,
    workers: int = 1,
    idle: int = 0,
    queued: int = 0,
    cpu: float = 0.0,
    memory: float = 0.0,
) -> None:
    """Has this host believe that of a server, until it is measured again (`load_period_s=0`: for ever).

    Of this process's own server, `idle` and `queued` have no effect: its queue is asked.
    """
    words = (
        0, workers, idle, queued, int(cpu * 1000), int(memory * _QUOTA_BYTES), _QUOTA_BYTES
    )  # fmt: skip
    runtime.current().set_load(server, words)
