"""A server dies in a chain of lends: nobody gets back what a task further down may still write."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

import drust
from drust import Box, PoisonedError, ServerLostError, Session
from drust.engines.fence import Fence
from drust.errors import BorrowTimeoutError
from drust.server import messages
from drust.testing import account
from looking import wait_until

LARGE = 200_000  # of 8 bytes: written in place where it lies
WITHIN_S = 20.0


def make(n: int) -> Box:
    return Box(np.zeros(n))


def write_for_ever(a: np.ndarray, started: str) -> None:
    a[0] = 7
    Path(started).write_text(str(os.getpid()))
    while True:
        a[1] += 1


def read_for_ever(a: np.ndarray, started: str) -> None:
    Path(started).write_text(str(os.getpid()))
    while a[0] == 0:
        pass


def write_once(a: np.ndarray, started: str) -> None:
    a[0] = 7


def wait_for(a: np.ndarray, started: str, gate: str) -> None:
    Path(started).write_text(str(os.getpid()))
    with open(gate) as fifo:
        fifo.read()


def lend_on(boxes: list, function: Callable[..., None], server: int, *args: str) -> None:
    drust.spawn(function, boxes[0].borrow_mut(), *args, server=server).join()


def lend_on_to_read(boxes: list, server: int, started: str) -> None:
    drust.spawn(read_for_ever, boxes[0].borrow(), started, server=server).join()


def lend_on_and_stay(boxes: list, server: int, started: str) -> None:
    lend_on(boxes, write_once, server, started)
    Path(started).write_text(str(os.getpid()))
    signal.pause()


def lend_on_twice(boxes: list, gate: str, started: str) -> None:
    """From the middle of the chain: on to home, which nobody ends."""
    drust.spawn(wait_for, boxes[0].borrow_mut(), started, gate, server=0).join()


def lend_down(boxes: list, gate: str, started: str) -> None:
    drust.spawn(lend_on_twice, boxes[0].borrow_mut(), gate, started, server=2).join()


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def kill(session: Session, server: int) -> None:
    os.kill(session.pids[server], signal.SIGKILL)


def left_of(session: Session, before: account.Account) -> account.Account:
    """The account without server 1, which was lost."""
    return account.Account(tuple(b for b in before.blocks if b.server != 1), before.copies)


@pytest.fixture(params=[0, 1], ids=["restarted", "promoted"])
def three(request):
    with drust.init(servers=3, workers=1, heap_bytes="256MiB", replicas=request.param) as session:
        for server in range(3):
            drust.spawn(os.getpid, server=server).join(WITHIN_S)
        yield session


@pytest.mark.parametrize("where", [0, 2])
def test_who_writes_through_a_lost_server_is_ended_before_its_lender_hears_of_it(three, tmp_path, where):
    before = account.take_at_rest(three)
    started = tmp_path / "started"
    inner = drust.spawn(make, LARGE, server=where).join() if where else make(LARGE)
    box = Box([inner])
    job = drust.spawn(lend_on, box.borrow_mut(), write_for_ever, where, str(started), server=1)
    writer = pid_in(started)
    kill(three, 1)
    with pytest.raises(ServerLostError, match="lend_on"):
        job.join(WITHIN_S)
    assert has_ended(writer)
    with pytest.raises(PoisonedError, match="lend_on"), box.borrow():
        pass
    with box.recover() as boxes, boxes[0].borrow() as a:
        assert a[0] == 7
    del box, boxes, a, job, inner
    account.check_settled(three, left_of(three, before))


def test_who_reads_through_a_lost_server_is_ended_before_its_lender_hears_of_it(three, tmp_path):
    before = account.take_at_rest(three)
    started = tmp_path / "started"
    box = Box([drust.spawn(make, LARGE, server=2).join()])
    job = drust.spawn(lend_on_to_read, box.borrow(), 2, str(started), server=1)
    reader = pid_in(started)
    kill(three, 1)
    with pytest.raises(ServerLostError):
        job.join(WITHIN_S)
    assert has_ended(reader)
    with box.borrow_mut() as boxes, boxes[0].borrow_mut() as a:
        a += 1
    del box, boxes, a, job
    account.check_settled(three, left_of(three, before))


def test_what_a_task_below_a_lost_server_had_written_in_place_poisons(three, tmp_path):
    before = account.take_at_rest(three)
    started = tmp_path / "started"
    box = Box([drust.spawn(make, LARGE, server=2).join()])
    job = drust.spawn(lend_on_and_stay, box.borrow_mut(), 2, str(started), server=1)
    pid_in(started)
    kill(three, 1)
    with pytest.raises(ServerLostError):
        job.join(WITHIN_S)
    with pytest.raises(PoisonedError), box.borrow():
        pass
    with box.recover() as boxes, boxes[0].borrow() as a:
        assert a[0] == 7
    del box, boxes, a, job
    account.check_settled(three, left_of(three, before))


def test_a_lender_hears_of_a_lost_server_only_when_what_was_lent_on_twice_has_ended(three, tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"
    os.mkfifo(gate)
    box = Box([Box([Box(np.zeros(10))])])
    job = drust.spawn(lend_down, box.borrow_mut(), str(gate), str(started), server=1)
    last = pid_in(started)
    kill(three, 1)
    with pytest.raises(BorrowTimeoutError):
        job.join(timeout=2.0)
    assert not has_ended(last)
    gate.write_text("x")
    with pytest.raises(ServerLostError):
        job.join(WITHIN_S)
    with box.borrow() as outer, outer[0].borrow() as boxes, boxes[0].borrow() as a:
        assert not a.any()


class Servers:
    """What a Fence asks of the engine."""

    def __init__(self, *living: int) -> None:
        self.living = list(living)
        self.sent: list[tuple[int, messages.Message]] = []

    def send(self, server: int, message: messages.Message) -> None:
        self.sent.append((server, message))

    def settled(self) -> list[int]:
        return [server for server, message in self.sent if isinstance(message, messages.Settle)]


def test_a_fence_is_closed_when_all_that_live_have_answered_its_turn():
    servers = Servers(0, 2, 3)
    fence = Fence(servers)
    fence.lost(1)
    fence.begin(1)
    assert servers.sent == [(server, messages.Fence(1)) for server in (0, 2, 3)]
    fence.answered(0, 1)
    fence.answered(2, 1)
    assert not servers.settled()
    fence.answered(3, 1)
    assert servers.settled() == [0, 2, 3]
    fence.answered(3, 1)
    assert servers.settled() == [0, 2, 3]


def test_a_second_loss_opens_the_fence_again_for_the_first():
    servers = Servers(0, 2, 3)
    fence = Fence(servers)
    fence.lost(1)
    fence.begin(1)
    fence.answered(0, 1)
    fence.answered(3, 1)
    servers.living = [0, 3]
    fence.lost(2)  # the last that had not answered; what it had lent on is not fenced
    assert not servers.settled()
    fence.begin(2)
    fence.answered(0, 1)
    fence.answered(3, 1)  # of the turn before
    assert not servers.settled()
    fence.answered(0, 2)
    fence.answered(3, 2)
    assert servers.settled() == [0, 3]
