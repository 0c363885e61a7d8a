"""One death at a time, ordered: at a kill point, by a signal, stopped, for want of memory; and that the tools
which find what is wrong after one (account, invariants, chaos) can find it.
"""

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

import drust
from drust import Box, Session, WorkerLostError
from drust.server import pool, process
from drust.testing import account, chaos, faults, invariants
from looking import wait_until

WAIT_S = 5.0  # every wait on what was lost ends within this


def pid() -> int:
    return os.getpid()


def total(rows: Any) -> float:
    return float(rows.sum())


# -- a board and a session that the next tests share ---------------------------------------------------------


@pytest.fixture(scope="module")
def armed() -> Iterator[tuple[Session, faults.Board]]:
    with faults.Board() as board, drust.init(servers=2, workers=3, heap_bytes="256MiB") as session:
        chaos.wait_attached(session)
        yield session, board


def victims(session: Session, server: int) -> list[int]:
    return [pid for number, pid in chaos.attached(session) if number == server]


@pytest.mark.parametrize("how", faults.ACTIONS[:1] + faults.ACTIONS[2:])
def test_a_worker_dies_at_an_armed_kill_point_in_the_way_it_was_told(armed, how):
    session, board = armed
    chaos.wait_attached(session)
    rows = [board.arm(each, "queue.return.written", action=how) for each in victims(session, 1)]
    with pytest.raises(WorkerLostError, match="total"):
        drust.spawn(total, Box(np.ones(3)).borrow(), server=1).join(timeout=WAIT_S)
    assert [point for point in map(board.disarm, rows) if point] == ["queue.return.written"]


def test_a_task_can_arm_its_own_worker(armed):
    session, _ = armed
    with pytest.raises(WorkerLostError, match="arm_and_allocate"):
        drust.spawn(arm_and_allocate, server=1).join(timeout=WAIT_S)
    chaos.wait_attached(session)


def arm_and_allocate() -> Any:
    faults.arm_here("heap.publish.before", nth=2, action="exit")
    return [Box(np.ones(3)) for _ in range(4)]


def change_inside(value: dict[str, Any], point: str) -> None:
    with value["inner"].borrow_mut() as inner:
        inner["changed"] = True
    value["changed"] = True
    faults.arm_here(point)


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("point", ["heap.publish.before", "queue.return.written"])
def test_a_death_between_writing_a_version_and_returning_it_leaves_what_lies_three_levels_down(
    armed, server, point
):
    session, _ = armed
    chaos.wait_attached(session)
    before = account.take_at_rest(session)
    box = Box({"inner": Box({"deep": Box({"deeper": Box(np.full(100, 7.0))})})})
    with pytest.raises(WorkerLostError, match="rolled back"):
        drust.spawn(change_inside, box.borrow_mut(), point, server=server).join(timeout=WAIT_S)
    chaos.wait_attached(session)
    with box.borrow() as value, value["inner"].borrow() as inner, inner["deep"].borrow() as deep:
        assert "changed" not in value
        assert "changed" not in inner
        with deep["deeper"].borrow() as numbers:
            assert numbers.sum() == 700
    del box, value, inner, deep, numbers
    account.check_settled(session, before)


@pytest.mark.parametrize("age_ms", [0, 20, 60, 120, 200, 300])
def test_a_worker_that_dies_while_it_starts_is_replaced_and_leaves_nothing(armed, age_ms):
    session, _ = armed
    chaos.wait_attached(session)
    before = account.take_at_rest(session)
    server = psutil.Process(session.pids[1])
    known = {child.pid for child in server.children()}
    faults.send(victims(session, 1)[0], signal.SIGKILL)
    (newborn,) = wait_until(lambda: {child.pid for child in server.children()} - known)
    threading.Event().wait(age_ms / 1000)
    faults.send(newborn, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(newborn))
    chaos.wait_attached(session)
    assert len(victims(session, 1)) == 3
    assert drust.spawn(pid, server=1).join(timeout=WAIT_S) in victims(session, 1)
    account.check_settled(session, before)


def test_all_workers_of_a_server_die_at_once_and_its_queue_goes_on(armed):
    session, _ = armed
    chaos.wait_attached(session)
    before = set(victims(session, 1))
    running = [drust.spawn(signal.pause, server=1) for _ in before]
    wait_until(lambda: session.status(1).running_tasks == len(before))
    queued = [drust.spawn(pid, server=1) for _ in range(5)]
    for each in before:
        faults.send(each, signal.SIGKILL)
    for job in running:
        with pytest.raises(WorkerLostError):
            job.join(timeout=WAIT_S)
    assert not before & {job.join(timeout=20) for job in queued}


def test_a_worker_that_stays_stopped_is_ended_and_its_lends_with_it(armed):
    session, _ = armed
    chaos.wait_attached(session)
    box = Box(np.zeros(10))
    job = drust.spawn(stop_and_fill, box.borrow_mut(), server=1)
    started = time.monotonic()
    with pytest.raises(WorkerLostError, match="stop_and_fill"):
        job.join(timeout=20)
    assert pool.STOPPED_MAX_S - 0.5 < time.monotonic() - started < WAIT_S
    with box.borrow_mut() as rows:
        assert not rows.any()


def stop_and_fill(rows: Any) -> None:
    rows[:] = 1
    os.kill(os.getpid(), signal.SIGSTOP)
    rows[:] = 2


def test_a_worker_that_is_continued_in_time_goes_on(armed):
    session, _ = armed
    chaos.wait_attached(session)
    box = Box(np.zeros(10))
    job = drust.spawn(stop_and_fill, box.borrow_mut(), server=1)
    stopped = wait_until(lambda: [each for each in victims(session, 1) if faults.process_state(each) == "T"])
    os.kill(stopped[0], signal.SIGCONT)
    job.join(timeout=WAIT_S)
    with box.borrow() as rows:
        assert rows.tolist() == [2] * 10
    assert stopped[0] in victims(session, 1)


def test_a_worker_that_the_kernel_kills_for_memory_is_lost_like_any_other(armed):
    session, _ = armed
    box = Box(np.zeros(10))
    with faults.memory_group(256 * 2**20) as group:
        if group is None:
            print("no control group can be made here: SIGKILL, as the kernel would send it")
            job = drust.spawn(fill_and_die, box.borrow_mut(), "", server=1)
        else:
            job = drust.spawn(fill_and_die, box.borrow_mut(), str(group), server=1)
        with pytest.raises(WorkerLostError):
            job.join(timeout=20)
    with box.borrow_mut() as rows:
        assert not rows.any()
    chaos.wait_attached(session)


def fill_and_die(rows: Any, group: str) -> None:
    rows[:] = 1
    if group:
        faults.exhaust_memory(group)
    faults.die("oom")


def test_what_a_task_started_ends_with_its_worker(armed):
    child = drust.spawn(start_child, server=1).join(timeout=WAIT_S)
    parent = psutil.Process(child).ppid()
    faults.send(parent, signal.SIGKILL)
    wait_until(lambda: faults.process_state(child) in ("", "Z", "X"))


def start_child() -> int:
    return subprocess.Popen(["sleep", "600"]).pid


def test_workers_leave_no_core_files_unless_told(armed, monkeypatch):
    assert drust.spawn(core_limit).join(timeout=WAIT_S)[0] == 0
    told: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: told.append(limit))
    monkeypatch.setenv(process.CORE_FILES, "1")
    process.forbid_core_files()
    assert told == []
    monkeypatch.setenv(process.CORE_FILES, "0")
    process.forbid_core_files()
    assert told == [(resource.RLIMIT_CORE, (0, core_limit()[1]))]


def core_limit() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_CORE)


# -- the tools themselves must be able to fail ---------------------------------------------------------------


def test_a_leaked_block_is_found_and_described(armed):
    session, _ = armed
    before = account.take_at_rest(session)
    kept = Box(np.ones(1000))
    with pytest.raises(account.LeakError, match=r"leaked: server 0: .*numpy, owned by process slot"):
        account.check_settled(session, before, within_s=0.2)
    del kept
    account.check_settled(session, before)


def test_the_nine_invariants_hold_on_a_session_at_rest(armed):
    session, _ = armed
    chaos.wait_attached(session)
    invariants.check(session)


def test_a_dead_owner_is_found(armed, monkeypatch):
    session, _ = armed
    kept = Box(np.ones(10))
    monkeypatch.setattr(invariants, "_processes", no_processes)
    with pytest.raises(invariants.InvariantError, match="invariant 1"):
        invariants.one_owner(session)
    del kept


def no_processes() -> list[int]:
    return []


def test_a_wrong_model_is_found_and_the_seed_printed(armed, monkeypatch):
    session, board = armed
    monkeypatch.setattr(chaos.programs, "expect", disagree)
    with pytest.raises(chaos.ChaosError, match=r"--seed 4711 --kills 3 --servers 2 --workers 3 --times 5"):
        chaos.Run(session, board, 4711).play(3)
    account.rest(session)  # what the run had under way ends here, not in another test


def disagree(*_: object) -> None:
    raise chaos.programs.ModelError("it is not so")


def test_what_cannot_be_armed_is_refused():
    board = faults.Board()
    with pytest.raises(ValueError, match=r"not in tuple"):
        board.arm(1, "no.such.point")
    with pytest.raises(ValueError, match="counts from 1"):
        board.arm(1, "queue.push.ready", nth=0)
    board.close()


def test_a_task_that_had_not_begun_runs_on_another_worker(armed):
    session, board = armed
    chaos.wait_attached(session)
    row = board.arm(victims(session, 1)[0], "queue.take.running")
    while board.fired(row) is None:
        assert drust.spawn(total, Box(np.ones(3)).borrow(), server=1).join(timeout=20) == 3
    board.disarm(row)


@pytest.mark.parametrize("point", ["call.request.before", "call.request.sent", "deliver.completion.sent"])
def test_completions_that_were_to_travel_together_arrive_when_their_worker_dies(armed, point):
    session, board = armed
    chaos.wait_attached(session)
    row = board.arm(victims(session, 1)[0], point, 2)
    while board.fired(row) is None:
        jobs = drust.spawn_many(total, [np.full(3, number) for number in range(200)], server=1)
        results = [(job.exception(timeout=20), number) for number, job in enumerate(jobs)]
        assert {type(error) for error, _ in results} <= {type(None), drust.WorkerLostError}
        done = [(jobs[number].join(), number) for error, number in results if error is None]
        assert all(found == 3 * number for found, number in done)
        assert len(done) >= 198, "only what a worker was running is lost with it"
    board.disarm(row)
    account.rest(session)


def test_a_message_whose_receiver_dies_before_it_has_opened_it_goes_with_what_is_in_it(armed):
    session, _ = armed
    sender, receiver = drust.channel()
    chaos.wait_attached(session)
    for warm in (0, 1):  # functions and handles travel, the channel's cells are made
        before = account.take_at_rest(session)
        sender.send({"number": warm, "box": Box(np.ones(1000))})
        with pytest.raises(WorkerLostError, match="receive_and_die"):
            drust.spawn(receive_and_die, receiver, server=1).join(timeout=20)
        chaos.wait_attached(session)
    account.check_settled(session, before)
    sender.send("next")
    assert receiver.recv(timeout=WAIT_S) == "next"


def receive_and_die(receiver: Any) -> None:
    faults.arm_here("call.reply.read", nth=1, action="kill")
    receiver.recv(timeout=WAIT_S)
