"""Queued tasks that idle servers take over: which, and what becomes of them when somebody dies."""

import itertools
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import drust
from drust import Box, ServerLostError, WorkerLostError, runtime
from drust.server.load import OVERLOADED, choose_victim
from drust.server.messages import LoadRow
from drust.testing import account


def row(server: int, **fields) -> LoadRow:
    known = {
        "machine": f"m{server}", "age_s": 0.0, "workers": 1, "idle": 0, "queued": 0, "cpu": 0.1,
        "claimed_bytes": 10, "quota_bytes": 100,
    }  # fmt: skip
    return LoadRow(server=server, **(known | fields))


def test_an_idle_server_asks_the_one_with_the_longest_queue():
    idle = row(0, idle=1)
    assert choose_victim(0, [idle, row(1, queued=2), row(2, queued=5)], 1) == 2
    assert choose_victim(0, [idle, row(1, queued=2, idle=2), row(2)], 1) is None
    assert choose_victim(0, [idle, row(1, queued=9, age_s=2)], 1) is None
    assert choose_victim(0, [row(0), row(1, queued=9)], 1) is None
    assert choose_victim(0, [row(0, idle=1, queued=1), row(1, queued=9)], 1) is None
    assert choose_victim(0, [row(1, queued=9)], 1) is None


@pytest.mark.parametrize("load", [{"cpu": OVERLOADED}, {"claimed_bytes": 95}])
def test_the_queue_of_an_overloaded_server_is_offered_first(load):
    rows = [row(0, idle=1), row(1, queued=9), row(2, queued=1, **load)]
    assert choose_victim(0, rows, 1) == 2
    assert choose_victim(0, [row(0, idle=1, **load), row(1, queued=9)], 1) is None


# -- a cluster: tasks wait on server 0 behind one that a gate holds, until server 1 is idle ------------------


def where() -> int:
    return runtime.current().server


def hold(path: str) -> int:
    pause = threading.Event()
    while not os.path.exists(path):
        pause.wait(0.005)
    return where()


def add_one(array: np.ndarray) -> int:
    array += 1
    return where()


def add_and_hold(array: np.ndarray, reached: str, gate: str) -> int:
    array += 1
    Path(reached).write_text(str(os.getpid()))
    return hold(gate)


def until(condition) -> None:
    pause = threading.Event()
    for _ in range(4000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come to be within 20 s")


def holds_ones(box: Box) -> bool:
    with box.borrow() as array:
        return bool((array == 1).all())


class Gates:
    """Two servers whose only workers are held until a gate is opened."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"gate {server}" for server in range(2)]
        self.jobs = [drust.spawn(hold, str(path), server=server) for server, path in enumerate(self._paths)]
        until(lambda: [row[3] for row in runtime.current().loads(2)] == [0, 0])  # nobody is idle

    def open(self, server: int) -> None:
        self._paths[server].touch()
        self.jobs[server].join()


@pytest.fixture
def session():
    with drust.init(servers=2, workers=1, heap_bytes="128MiB", load_period_s=0.05) as running:
        drust.spawn(where, server=1).join()
        drust.spawn(where, server=0).join()
        yield running


def queued_here(make, count: int) -> list:
    """Jobs that were sent to server 0: with both workers held, every other one goes to server 1."""
    jobs = []
    while len(jobs) < count:
        job = make(len(jobs))
        if job.server == 0:
            jobs.append(job)
    return jobs


def test_an_idle_server_takes_over_what_waits_but_nothing_that_is_bound(session, tmp_path):
    gates = Gates(tmp_path)
    bound = [drust.spawn(where, server=0), drust.spawn_to(Box(np.zeros(3)), where)]
    jobs = queued_here(lambda _: drust.spawn(where), 6)
    gates.open(1)
    assert [job.join(timeout=30) for job in jobs] == [1] * 6  # server 0's only worker is still held
    assert not any(job.done() for job in bound)
    assert "server 1 took it over while it waited" in jobs[0].explain()
    assert jobs[0].server == 1
    gates.open(0)
    assert [job.join() for job in bound] == [0, 0]
    assert "took it over" not in bound[0].explain()


def test_what_a_task_was_lent_comes_home_from_the_server_that_took_it_over(session, tmp_path):
    before = account.take_at_rest(session)
    gates = Gates(tmp_path)
    boxes: list[Box] = []

    def lend(_: int):
        boxes.append(Box(np.zeros(1000)))
        return drust.spawn(add_one, boxes[-1].borrow_mut())

    jobs = queued_here(lend, 5)
    gates.open(1)
    assert [job.join(timeout=30) for job in jobs] == [1] * 5
    assert all(holds_ones(box) for box in boxes)
    gates.open(0)
    jobs.clear()
    boxes.clear()
    account.check_settled(session, before)


def test_a_task_that_takes_much_along_stays(session, tmp_path):
    gates = Gates(tmp_path)
    large, small = Box(np.zeros(3 * 2**20)), Box(np.zeros(1000))
    staying = drust.spawn(add_one, large.borrow_mut())
    going = queued_here(lambda _: drust.spawn(where), 1)
    gates.open(1)
    assert going[0].join(timeout=30) == 1
    assert not staying.done()
    gates.open(0)
    assert staying.join() == 0
    del small


def taken_over(folder: Path, retry: int = 0):
    """A task of server 0 that runs on server 1 now, with a Box lent to it, and the pid of its worker."""
    gates = Gates(folder)
    boxes = []

    def lend(n: int):
        boxes.append(Box(np.zeros(1000)))
        paths = str(folder / f"reached {n}"), str(folder / "never")
        return drust.spawn(add_and_hold, boxes[-1].borrow_mut(), *paths, retry=retry)

    (job,) = queued_here(lend, 1)
    assert not list(folder.glob("reached*"))
    gates.open(1)
    return gates, job, boxes


def test_a_task_that_was_taken_over_is_lost_with_its_worker_and_rolled_back(session, tmp_path):
    gates, job, boxes = taken_over(tmp_path)
    until(lambda: job.server == 1 and any(tmp_path.glob("reached*")))
    for path in tmp_path.glob("reached*"):
        until(path.read_text)
        os.kill(int(path.read_text()), signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="on server 1"):
        job.join(timeout=30)
    with boxes[-1].borrow() as array:
        assert not array.any()
    gates.open(0)


def test_a_task_that_was_taken_over_is_run_again_where_it_is(session, tmp_path):
    gates, job, _ = taken_over(tmp_path, retry=1)
    until(lambda: job.server == 1 and any(tmp_path.glob("reached*")))
    (path,) = tmp_path.glob("reached*")
    until(path.read_text)
    (tmp_path / "never").touch()
    os.kill(int(path.read_text()), signal.SIGKILL)
    assert job.join(timeout=30) == 1
    gates.open(0)


def test_a_task_that_was_taken_over_is_lost_with_its_server_and_rolled_back(session, tmp_path):
    gates, job, boxes = taken_over(tmp_path)
    until(lambda: job.server == 1 and any(tmp_path.glob("reached*")))
    os.kill(session.pids[1], signal.SIGKILL)
    with pytest.raises(ServerLostError, match="server 1"):
        job.join(timeout=30)
    with boxes[-1].borrow_mut() as array:
        assert not array.any()
    gates.open(0)
    assert drust.spawn(add_one, boxes[-1].borrow_mut(), server=0).join() == 0


def test_however_often_the_thief_dies_every_task_ends_once(session, tmp_path):
    """Tasks leave a mark each time they begin; without `retry=` none begins twice."""
    gates = Gates(tmp_path)
    numbers = itertools.count()
    jobs = queued_here(lambda _: drust.spawn(mark, str(tmp_path / "marks"), next(numbers)), 40)
    gates.open(1)
    until(lambda: any(job.server == 1 for job in jobs))
    os.kill(session.pids[1], signal.SIGKILL)
    gates.open(0)
    lost = 0
    for job in jobs:
        try:
            job.join(timeout=30)
        except ServerLostError:
            lost += 1
    begun = (tmp_path / "marks").read_text().split()
    assert len(begun) == len(set(begun))
    assert len(begun) >= len(jobs) - lost
    assert lost < len(jobs)  # those that had come home, or were still here


def mark(path: str, n: int) -> None:
    with open(path, "a") as file:
        file.write(f"{n}\n")


def nest(folder: str) -> None:
    """On server 0, which this very task keeps busy: its tasks wait, and are taken over; then it dies."""
    jobs = queued_here(lambda _: drust.spawn(leave_a_trace, folder), 2)
    until(lambda: all(job.server == 1 for job in jobs))
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_trace(folder: str) -> np.ndarray:
    Path(folder, f"ran {os.getpid()}").touch()
    return np.zeros(10_000)


def test_nothing_is_left_when_who_spawned_dies_after_its_tasks_were_taken_over(session, tmp_path):
    before = account.take_at_rest(session)
    with pytest.raises(WorkerLostError):
        drust.spawn(nest, str(tmp_path), server=0).join(timeout=30)
    account.check_settled(session, before)


def nest_and_wait(folder: str) -> None:
    """On server 1, which this very task keeps busy: its task is taken over by server 0, and held there."""
    box = Box(np.zeros(1000))
    job = drust.spawn(add_and_hold, box.borrow_mut(), f"{folder}/reached", f"{folder}/gate")
    until(lambda: job.server == 0)
    Path(folder, "taken").touch()
    hold(f"{folder}/never")


def test_a_server_that_dies_after_its_tasks_were_taken_over_leaves_nothing_elsewhere(session, tmp_path):
    before = account.take_at_rest(session)
    outer = drust.spawn(nest_and_wait, str(tmp_path), server=1)
    until(lambda: (tmp_path / "taken").exists() and (tmp_path / "reached").exists())
    os.kill(session.pids[1], signal.SIGKILL)
    with pytest.raises(ServerLostError):
        outer.join(timeout=30)
    (tmp_path / "gate").touch()
    assert drust.spawn(where, server=0).join(timeout=30) == 0  # its worker is free again
    account.check_settled(session, before)
