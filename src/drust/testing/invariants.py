"""The nine invariants of the design, each asked of a running session by using it.

    1  one owner: a moved Box raises MovedError; every live block has an owner that lives
    2  one writer or many readers
    3  data-value: a borrow after a mutable borrow sees all it wrote, on every server
    4  a write sends no message to any reader
    5  access inside one's own partition sends no message
    6  nothing is serialised while only its owner's process can see it
    7  after any crash the heap, the copy table, the queue and every lock are usable by the others
    8  what a `with` block hands out ends with the block
    9  a peer that is not authenticated can do nothing

`check` runs them all; it is meant for a session at rest, after whatever a test did to it. Each function can
be run alone, and raises InvariantError, which names the invariant.
"""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import drust
from drust import Box
from drust.errors import BorrowError, BorrowMutError, MovedError, RevokedError
from drust.session import Session
from drust.testing import account, faults

WITHIN_S = 5.0  # every wait of a session at rest
_MESSAGES = ("read_requests", "write_requests", "free_messages", "submit_messages", "complete_messages")
_PROCESS = 1  # owner kind


class InvariantError(AssertionError):
    """An invariant of the design does not hold in this session."""


def _hold(number: int, holds: bool, what: str) -> None:
    if not holds:
        raise InvariantError(f"invariant {number}: {what}")


def _refused(number: int, action: Callable[[], object], error: type[Exception], what: str) -> None:
    try:
        action()
    except error:
        return
    raise InvariantError(f"invariant {number}: {what}")


def _enter(borrow: Any) -> None:
    with borrow:
        pass


def _sum(rows: Any) -> float:
    return float(rows.sum())


def _take(box: "Box[Any]") -> None:
    """Owns the Box it is given, and drops it."""


def _add(rows: Any, number: int) -> None:
    rows += number


def _processes() -> list[int]:
    return [row["slot"] for row in drust.runtime.current().processes()]


def _queued() -> tuple[int, int]:
    return drust.runtime.current().queued()


def one_owner(session: Session) -> None:
    """Invariant 1."""
    box = Box(np.ones(8))
    drust.spawn(_take, box).join(timeout=WITHIN_S)
    _refused(1, lambda: _enter(box.borrow()), MovedError, "a moved Box could be borrowed")
    blocks = account.take(session).blocks
    for server in range(session.servers):
        slots = set(drust.spawn(_processes, server=server).join(timeout=WITHIN_S))
        for block in blocks:
            if block.server == server and block.owner_kind == _PROCESS:
                _hold(1, block.owner_slot in slots, f"the owner of a live block is dead: {block}")


def one_writer_or_many_readers(session: Session) -> None:
    """Invariant 2."""
    box = Box(np.ones(8))
    with box.borrow(), box.borrow():
        _refused(2, lambda: _enter(box.borrow_mut()), BorrowMutError, "a writer beside readers")
    with box.borrow_mut():
        _refused(2, lambda: _enter(box.borrow()), BorrowError, "a reader beside a writer")


def data_value(session: Session) -> None:
    """Invariant 3."""
    box = Box(np.zeros(8))
    for server in range(session.servers):
        drust.spawn(_add, box.borrow_mut(), 1, server=server).join(timeout=WITHIN_S)
        for reader in range(session.servers):
            seen = drust.spawn(_sum, box.borrow(), server=reader).join(timeout=WITHIN_S)
            _hold(3, seen == 8 * (server + 1), f"server {reader} reads {seen} after a write on {server}")


def _total(session: Session, names: tuple[str, ...]) -> int:
    return sum(session.status(server).counters[name] for server in range(session.servers) for name in names)


def _settled_messages(session: Session) -> int:
    """Messages counted so far; a worker counts one when its reply has come, so until two looks agree."""
    deadline = time.monotonic() + WITHIN_S
    drust.runtime.current().flush()
    before = _total(session, _MESSAGES)
    while (now := _total(session, _MESSAGES)) != before and time.monotonic() < deadline:
        before = now
    return now


def writes_tell_nobody(session: Session) -> None:
    """Invariant 4."""
    box = Box(np.zeros(8))
    for server in range(session.servers):
        drust.spawn(_sum, box.borrow(), server=server).join(timeout=WITHIN_S)
    before = _settled_messages(session)
    with box.borrow_mut() as rows:
        rows[:] = 1
    sent = _settled_messages(session) - before
    _hold(4, sent == 0, f"a write after readers on every server sent {sent} messages")


def own_partition_is_silent(session: Session) -> None:
    """Invariant 5."""
    box = Box(np.zeros(8))
    before = _settled_messages(session)
    for _ in range(3):
        with box.borrow_mut() as rows:
            rows[:] = 1
        with box.borrow() as rows:
            float(rows.sum())
    sent = _settled_messages(session) - before
    _hold(5, sent == 0, f"access in the own partition sent {sent} messages")


def private_is_not_serialised(session: Session) -> None:
    """Invariant 6."""

    def encodes() -> int:
        return int(drust.statistics()["encodes"])

    before = encodes()
    box = Box({"a": 1})
    with box.borrow_mut() as value:
        value["a"] = 2
    with box.borrow() as value:
        _hold(6, value == {"a": 2}, "a value that nobody else saw has changed")
    _hold(6, encodes() == before, "a value that nobody else could see was serialised")
    drust.spawn(dict, box.borrow()).join(timeout=WITHIN_S)
    drust.spawn(dict, box.borrow()).join(timeout=WITHIN_S)


def survivors_go_on(session: Session) -> None:
    """Invariant 7: small, medium and large blocks, shared fetches, queue and records, on every server."""
    sizes = (1, 1000, 100_000)
    for server in range(session.servers):
        for size in sizes:
            box = drust.spawn(np.ones, size, server=server).join(timeout=WITHIN_S)
            _hold(7, float(box.sum()) == size, f"server {server} cannot make an array of {size}")
        there = drust.spawn(_boxed, 5000, server=server).join(timeout=WITHIN_S)
        readers = [
            drust.spawn(_sum, there.borrow(), server=reader)
            for reader in range(session.servers)
            for _ in range(session.config.workers)
        ]
        for job in readers:
            _hold(7, job.join(timeout=WITHIN_S) == 5000, f"a shared fetch from server {server} went wrong")
        drust.spawn(_add, there.borrow_mut(), 1, server=server).join(timeout=WITHIN_S)
    for server in range(session.servers):
        status, pause, deadline = session.status(server), faults.Pause(), time.monotonic() + WITHIN_S
        while status.queued_tasks + status.running_tasks and time.monotonic() < deadline:
            pause.wait()  # a worker is done with its task after its spawner has the result
            status = session.status(server)
        _hold(7, status.queued_tasks == 0, f"server {server} at rest has {status.queued_tasks} queued tasks")
        _hold(7, status.running_tasks == 0, f"server {server} at rest runs {status.running_tasks} tasks")
        missing = [worker.worker for worker in status.workers if worker.state != "attached"]
        _hold(7, not missing, f"server {server} has not replaced its workers {missing}")


def _boxed(size: int) -> "Box[Any]":
    return Box(np.ones(size))


def borrows_end(session: Session) -> None:
    """Invariant 8."""
    box = Box(np.ones(8))
    with box.borrow() as rows:
        part = rows[2:]
    _refused(8, lambda: float(rows.sum()), RevokedError, "an array could be used after its borrow")
    del part


def strangers_are_refused(session: Session) -> None:
    """Invariant 9: garbage and silence from a stranger end in a closed connection, and hurt nobody."""
    for server in range(session.servers):
        _, host, port = drust.runtime.current().endpoint(server)
        with socket.create_connection((host, port), timeout=WITHIN_S) as stranger:
            stranger.sendall(os.urandom(4096))
            answer = b"-"
            try:
                while answer:
                    answer = stranger.recv(4096)
            except ConnectionError:
                pass
            except TimeoutError:
                raise InvariantError(f"invariant 9: server {server} keeps a stranger connected") from None
        session.status(server)


INVARIANTS: tuple[Callable[[Session], None], ...] = (
    one_owner,
    one_writer_or_many_readers,
    data_value,
    writes_tell_nobody,
    own_partition_is_silent,
    private_is_not_serialised,
    survivors_go_on,
    borrows_end,
    strangers_are_refused,
)


def check(session: Session) -> None:
    """Asks all nine of a session at rest. Cost: some dozen tasks, less than a second.

    Raises:
        InvariantError: which one does not hold, and what was seen.
    """
    for invariant in INVARIANTS:
        invariant(session)
