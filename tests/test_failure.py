"""Workers and servers that die: every wait ends with an error that says who, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import psutil
import pytest

import drust
from drust import Box, ServerLostError, WorkerLostError, submitting
from drust.errors import PoisonedError
from drust.testing import faults
from looking import shared_memory_files


def die(value: object = None) -> None:
    os._exit(1)


def kill_me(value: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pid() -> int:
    return os.getpid()


def change_and_die(table: dict) -> None:
    table["changed"] = True
    os._exit(1)


def make(n: int) -> Box:
    return Box(np.ones(n))


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("end", [die, kill_me])
def test_a_worker_that_dies_fails_its_task_and_is_replaced(two_servers, end, server):
    with pytest.raises(WorkerLostError, match=end.__name__):
        drust.spawn(end, server=server).join(timeout=20)
    assert drust.spawn(pid, server=server).join(timeout=20) > 0


@pytest.mark.parametrize("server", [0, 1])
def test_what_a_dead_worker_had_decoded_is_as_before(two_servers, server):
    box = Box({"a": 1})
    with pytest.raises(WorkerLostError):
        drust.spawn(change_and_die, box.borrow_mut(), server=server).join(timeout=20)
    with box.borrow_mut() as table:
        assert table == {"a": 1}


def fill_and_die(rows: np.ndarray) -> None:
    rows[:] = 7
    os._exit(1)


@pytest.mark.parametrize(("n", "server"), [(10, 0), (10, 1), (1_000_000, 1)])
def test_an_array_with_a_pre_image_is_as_before(two_servers, n, server):
    box = Box(np.zeros(n))
    with pytest.raises(WorkerLostError):
        drust.spawn(fill_and_die, box.borrow_mut(), server=server).join(timeout=20)
    with box.borrow_mut() as a:
        assert not a.any()


def test_a_large_array_that_a_dead_worker_wrote_in_place_is_poisoned_until_it_is_replaced(two_servers):
    box = Box(np.zeros(1_000_000))
    with pytest.raises(WorkerLostError):
        drust.spawn(fill_and_die, box.borrow_mut(), server=0).join(timeout=20)
    with pytest.raises(PoisonedError, match="replace"), box.borrow():
        pass
    box.replace(np.ones(3))
    with box.borrow() as a:
        assert a.sum() == 3


def fill_with_one(rows: np.ndarray) -> None:
    rows[:] = 1


def split_between_a_dying_task_and_another(n: int, server: int) -> Box:
    box = Box(np.zeros(n))
    with pytest.raises(ExceptionGroup) as caught, drust.scope() as s:
        dying, other = box.split_mut(2)
        s.spawn(fill_with_one, other, server=server).wait()  # a failure would take it back if it still waited
        s.spawn(fill_and_die, dying, server=server)
    assert [type(error) for error in caught.value.exceptions] == [WorkerLostError]
    return box


def test_a_large_part_that_a_dead_worker_wrote_in_place_poisons_the_array(two_servers):
    box = split_between_a_dying_task_and_another(1_000_000, server=0)
    with pytest.raises(PoisonedError, match="fill_and_die"), box.borrow():
        pass
    with box.recover() as a:
        assert (a[:500_000] == 7).all()


@pytest.mark.parametrize(("n", "server"), [(10, 0), (10, 1), (1_000_000, 1)])
def test_a_part_that_was_not_written_in_place_is_as_before(two_servers, n, server):
    box = split_between_a_dying_task_and_another(n, server)
    with box.borrow() as a:
        assert not a[: n // 2].any()
        assert (a[n // 2 :] == 1).all()


def fill_and_die_once_it_is_back(rows: np.ndarray) -> None:
    rows[:] = 7
    faults.arm_here("queue.return.written")  # the part is where it belongs, but nobody has said so yet


@pytest.mark.parametrize("server", [0, 1])
def test_a_part_that_was_put_back_by_a_task_that_never_returned_poisons_the_array(two_servers, server):
    box = Box(np.zeros(10))
    job = drust.spawn(fill_and_die_once_it_is_back, next(iter(box.split_mut(2))), server=server)
    with pytest.raises(WorkerLostError, match="are poisoned"):
        job.join(timeout=20)
    with pytest.raises(PoisonedError), box.borrow():
        pass
    with box.recover() as a:
        assert (a[:5] == 7).all()
        assert not a[5:].any()


def test_what_a_dead_worker_only_read_is_free_again(two_servers):
    box = Box(np.ones(10))
    for server in (0, 1):
        with pytest.raises(WorkerLostError):
            drust.spawn(die, box.borrow(), server=server).join(timeout=20)
    with box.borrow_mut() as a:
        a += 1


def test_a_lost_server_ends_every_wait_on_it():
    with drust.init(servers=2, workers=1, heap_bytes="256MiB") as session:
        box = drust.spawn(make, 10, server=1).join()
        sleeper = drust.spawn(signal.pause, server=1)
        os.kill(session.pids[1], signal.SIGKILL)
        with pytest.raises(ServerLostError, match="server 1"):
            sleeper.join(timeout=20)
        with pytest.raises(ServerLostError), box.borrow():
            pass
        assert drust.spawn(pid, server=0).join() > 0


def test_a_server_that_is_lost_as_soon_as_it_has_the_task_is_what_the_join_names(monkeypatch):
    submit = submitting.submit

    def submit_and_lose(here, target, *args, **kwargs):
        before = here.endpoint(target)
        count = submit(here, target, *args, **kwargs)
        os.kill(session.pids[target], signal.SIGKILL)
        pause = faults.Pause()
        while here.endpoint(target)[0] == before[0]:
            pause.wait()
        return count

    with drust.init(servers=2, workers=1, heap_bytes="256MiB") as session:
        drust.spawn(pid, server=1).join()
        monkeypatch.setattr(submitting, "submit", submit_and_lose)
        sleeper = drust.spawn(signal.pause, server=1)
        with pytest.raises(ServerLostError, match="server 1"):
            sleeper.join(timeout=20)


def test_a_stopped_server_is_noticed():
    with drust.init(servers=2, workers=1, heap_bytes="256MiB") as session:
        box = drust.spawn(make, 10, server=1).join()
        os.kill(session.pids[1], signal.SIGSTOP)
        while psutil.Process(session.pids[1]).status() != psutil.STATUS_STOPPED:
            pass
        try:
            with pytest.raises(ServerLostError), box.borrow():
                pass
        finally:
            os.kill(session.pids[1], signal.SIGCONT)


def test_the_home_server_s_death_ends_a_join():
    with drust.init(servers=1, workers=1, heap_bytes="256MiB") as session:
        sleeper = drust.spawn(signal.pause)
        os.kill(session.pids[0], signal.SIGKILL)
        with pytest.raises(ServerLostError):
            sleeper.join(timeout=20)


SCRIPT = """
    import drust, numpy as np, os, signal, sys
    box = drust.Box(np.ones(1000))
    def where(a):
        return os.getpid()
    worker = drust.spawn(where, box.borrow()).join()
    print(*drust.current_session().pids, worker, flush=True)
    {end}
"""


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGINT)",
        "1 / 0",
    ],
)
def test_nothing_is_left_however_a_script_ends(tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(end=end))
    files = shared_memory_files()
    environment = {**os.environ, "DRUST_HEAP_BYTES": "64MiB", "DRUST_WORKERS": "1"}
    command = [sys.executable, str(script)]
    script_run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    pids = [int(word) for word in script_run.stdout.split()]
    assert len(pids) == 2, script_run.stderr
    processes = [psutil.Process(each) for each in pids if psutil.pid_exists(each)]
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    assert shared_memory_files() <= files
