"""Tasks into the queue of a server, one or many in a message; and what a spawner does while that is full.

It waits. That is the brake on a spawner that is faster than the workers: what is queued stays bounded, and
nothing fails. A worker runs other tasks meanwhile, so tasks that spawn can fill the queue and still empty it.
Rejected: keeping what does not fit in the spawner's own memory (nothing would slow it down before the heap is
full, and a deadlock of waiting tasks would be one all the same).
"""

import time

from drust import _core, blocking
from drust.errors import QueueFullError
from drust.runtime import Pointer

BATCH = 256  # tasks in a message, as kSubmitsPerBatchMax in native/base/limits.hpp
_FULL_LOOK_S = 0.02  # how long a full queue is left alone at most,
_FULL_RUN = (
    256  # or until so many tasks of this process have ended: else the two sides wake each other each time
)
_STUCK_S = 10.0  # a queue whose tasks have all begun, none of which ends in this time, will not move


def submit(
    here: _core.Runtime,
    target: int,
    tasks: list[tuple[Pointer, Pointer]],
    retry: int,
    *,
    bound: bool = False,
) -> int:
    """Queues call blocks with their records; returns how many: the first ones, at least one.

    Args:
        here: this process.
        target: the server.
        tasks: of each its block and its record.
        retry: how often each may be run again.
        bound: no other server may take them over.

    Raises:
        QueueFullError: all that the server holds has begun, and waits for others.
    """
    try:
        return _try_submit(here, target, tasks, retry, bound)
    except QueueFullError:
        pass
    reader = _core.Arrivals(here)
    stuck_since = time.monotonic()
    while True:
        with blocking.section():
            until = time.monotonic() + _FULL_LOOK_S
            ended = 0
            while ended < _FULL_RUN and (left_s := until - time.monotonic()) > 0:
                news = reader.wait(max(1, int(left_s * 1000)))
                ended += _FULL_RUN if news is None else len(news)
        try:
            return _try_submit(here, target, tasks, retry, bound)
        except QueueFullError as error:
            if ended or target != here.server or here.queued()[0]:
                stuck_since = time.monotonic()
            elif time.monotonic() - stuck_since > _STUCK_S:
                raise QueueFullError(
                    queue=f"the task queue of server {target}",
                    capacity=here.queued()[1],
                    detail="Every entry is a task that has begun and waits for others.",
                ) from error


def _try_submit(
    here: _core.Runtime, target: int, tasks: list[tuple[Pointer, Pointer]], retry: int, bound: bool
) -> int:
    if len(tasks) > 1:
        return here.submit_many(target, tasks, retry, bound)
    task, record = tasks[0]
    kept_us = blocking.kept_us() if target == here.server else 0
    ticket = here.submit(target, task, record, retry, bound, kept_us)
    if kept_us:
        blocking.keep(record, ticket)
    return 1
