"""JoinHandle.cancel, and scopes that fail: what is taken back, what is waited for, what is whole again."""

import concurrent.futures
import fcntl
import threading
import time

import numpy as np
import pytest

import drust
from conftest import Gate
from drust import Box, CancelledError, arrivals
from drust.errors import ClosedError, TaskError
from drust.testing import account


def wait_for(path: str) -> str:
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return file.read()


def fail(message: str) -> None:
    raise ValueError(message)


def write(array: np.ndarray) -> None:
    array[:] = 7


def drop(box: Box) -> None:
    del box


def keep_busy(gate: Gate, server: int, workers: int) -> "list[drust.JoinHandle[str]]":
    """Tasks that hold every worker of a server until the gate opens."""
    jobs = [drust.spawn(wait_for, gate.path, server=server) for _ in range(workers)]
    until_taken(server)
    return jobs


def until_taken(server: int = 0) -> None:
    deadline = time.monotonic() + 20
    while drust.current_session().status(server).queued_tasks:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("server", [0, 1])
def test_a_task_that_waits_can_be_taken_back_and_one_that_runs_cannot(two_servers, gate, server):
    busy = keep_busy(gate, server, 1)
    job = drust.spawn(write, np.ones(3), server=server)
    assert not busy[0].cancel()
    assert job.cancel()
    assert job.cancel(), "cancelling twice says the same"
    assert job.cancelled()
    assert job.done()
    with pytest.raises(CancelledError, match="write was cancelled"):
        job.join()
    with pytest.raises(concurrent.futures.CancelledError):
        job.result()
    gate.open("gone")
    assert busy[0].join() == "gone"
    assert not busy[0].cancel()
    assert not busy[0].cancelled()


@pytest.mark.parametrize("server", [0, 1])
def test_what_a_cancelled_task_was_lent_is_whole_again_at_once(two_servers, gate, server):
    busy = keep_busy(gate, server, 1)
    lent, moved = Box(np.ones(1000)), Box(np.ones(1000))
    parts = Box(np.zeros(10))
    writing = drust.spawn(write, lent.borrow_mut(), server=server)
    halves = [drust.spawn(write, part, server=server) for part in parts.split_mut(2)]
    dropping = drust.spawn(drop, moved, server=server)
    with pytest.raises(drust.BorrowError):
        lent.borrow().__enter__()
    assert all(job.cancel() for job in [writing, *halves, dropping])
    for box, value in ((lent, 1.0), (parts, 0.0)):
        with box.borrow_mut() as a:
            assert (a == value).all()
    with pytest.raises(drust.MovedError):
        moved.borrow().__enter__()
    gate.open()
    busy[0].join()


@pytest.mark.parametrize("server", [0, 1])
def test_a_cancelled_task_leaves_no_block_behind(two_servers, gate, server):
    before = account.take_at_rest(two_servers)
    busy = keep_busy(gate, server, 1)
    for _ in range(20):
        box = Box(np.ones(100))
        assert drust.spawn(drop, box, server=server).cancel()
    del box
    gate.open()
    busy.pop().join()
    account.check_settled(two_servers, before)


def test_cancelling_one_of_many_spares_the_others(one_server, gate):
    busy = keep_busy(gate, 0, 2)
    jobs = [drust.spawn(abs, -number) for number in range(300)]
    cancelled = [job for job in jobs[::3] if job.cancel()]
    assert len(cancelled) == 100
    gate.open()
    for number, job in enumerate(jobs):
        if job in cancelled:
            assert isinstance(job.exception(), CancelledError)
        else:
            assert job.join() == number
    for job in busy:
        job.join()


def test_the_first_failure_of_a_scope_takes_back_what_is_queued(one_server, gate):
    box = Box(np.ones(3))
    with (
        pytest.raises(ExceptionGroup, match=r"1 of 203 tasks of the scope failed, 200 were") as caught,
        drust.scope() as s,
    ):
        busy = s.spawn(wait_for, gate.path)
        failing = s.spawn(fail, "one")
        failing.wait()
        held = s.spawn(wait_for, gate.path)
        until_taken()
        rest = [s.spawn(write, box.borrow_mut()), *(s.spawn(abs, -1) for _ in range(199))]
        rest[0].add_done_callback(lambda _: gate.open("later"))  # the last one to be taken back
    assert [str(each) for each in caught.value.exceptions] == ["one"]
    assert all(job.cancelled() for job in rest)
    assert failing.has_failed
    assert {busy.join(), held.join()} == {"later"}
    with box.borrow_mut() as a:
        assert (a == 1).all()


def test_an_exception_that_leaves_a_scope_takes_back_what_waits_and_awaits_what_runs(one_server, gate):
    with pytest.raises(KeyError) as caught, drust.scope() as s:
        busy = [s.spawn(wait_for, gate.path) for _ in range(2)]
        until_taken()
        rest = [s.spawn(wait_for, gate.path) for _ in range(50)]
        rest[0].add_done_callback(lambda _: gate.open("went"))  # the last one to be taken back
        raise KeyError("mine")
    assert caught.value.args == ("mine",)
    assert all(job.cancelled() for job in rest)
    assert [job.join() for job in busy] == ["went", "went"]


def test_a_scope_that_has_ended_takes_no_more(one_server):
    with drust.scope() as s:
        assert s.spawn(abs, -1).join() == 1
    with pytest.raises(ClosedError, match="scope is closed"):
        s.spawn(abs, -1)


def test_a_task_whose_error_was_met_inside_a_scope_is_raised_once_more_at_its_end(one_server):
    with pytest.raises(ExceptionGroup, match="1 of 1"), drust.scope() as s:
        job = s.spawn(fail, "seen")
        assert isinstance(job.exception(), ValueError)


def test_callbacks_come_once_at_once_or_later(one_server, gate):
    seen = []
    job = drust.spawn(wait_for, gate.path)
    ended = concurrent.futures.Future()
    job.add_done_callback(ended.set_result)
    job.add_done_callback(seen.append)
    assert not seen
    gate.open("x")
    assert ended.result(10) is job
    assert job.join() == "x"
    job.add_done_callback(seen.append)
    drust.spawn(abs, 1).join()
    assert seen == [job, job]


def test_whoever_waits_for_any_of_many_hears_of_a_cancellation_at_once(one_server, gate, monkeypatch):
    monkeypatch.setattr(arrivals, "_LOOK_MS", 60_000)
    busy = keep_busy(gate, 0, 2)
    jobs = [drust.spawn(abs, -1) for _ in range(5)]
    ending = arrivals.as_ended(jobs)
    canceller = threading.Thread(target=lambda: [job.cancel() for job in jobs])
    canceller.start()
    assert {next(ending) for _ in jobs} == set(jobs)
    canceller.join()
    gate.open()
    for job in busy:
        job.join()


def test_cancellations_that_are_told_twice_end_once_each(one_server, gate):
    busy = keep_busy(gate, 0, 2)
    ended = drust.spawn(abs, -1)
    assert ended.cancel()
    jobs = [drust.spawn(abs, -1) for _ in range(3)]
    ending = arrivals.as_ended([*jobs, ended])
    assert next(ending) is ended  # it has looked at all of them
    for job in jobs:
        assert job.cancel()
    assert list(ending) == jobs
    gate.open()
    for job in busy:
        job.join()


def test_a_cancelled_error_is_a_task_error_and_the_futures_error():
    error = CancelledError(task="task f")
    assert isinstance(error, TaskError)
    assert isinstance(error, concurrent.futures.CancelledError)
    assert "f was cancelled before" in str(error)
