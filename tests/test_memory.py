"""Memory pressure: copies that go, errors that say what is left, and `drust memory`."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import drust
from drust import Box, OutOfMemoryError, WorkerLostError, cli, runtime
from drust.config import HEAP_WATERMARK
from drust.server.messages import Endpoint
from drust.testing import account

MIB = 2**20


def until(condition) -> None:
    pause = threading.Event()
    for _ in range(4000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come to be within 20 s")


def make(nbytes: int) -> Box:
    return drust.zeros(nbytes, np.int8)


def used() -> float:
    usage = runtime.current().usage()
    return usage["claimed_bytes"] / usage["quota_bytes"]


@pytest.fixture
def small_heaps():
    with drust.init(servers=2, workers=1, heap_bytes="64MiB", load_period_s=0.05) as session:
        yield session


def test_copies_that_nobody_reads_go_by_age_above_the_watermark(small_heaps, counting):
    boxes = [drust.spawn(make, 4 * MIB, server=1).join() for _ in range(14)]
    kept = boxes[0].borrow()
    with kept as array:
        for box in boxes[1:]:
            with box.borrow() as other:
                assert not other.any()
        until(lambda: used() <= HEAP_WATERMARK)
        assert not array.any()
        counted = counting(small_heaps)
        with boxes[0].borrow(), boxes[-1].borrow():  # one that is read, and the last to have been
            pass
        assert counted.since()["read_requests"] == 0
        with boxes[1].borrow():
            pass
        assert counted.since()["read_requests"] == 1
    assert drust.statistics()["copies_evicted"] >= 1


def test_more_can_be_read_through_ones_own_boxes_than_the_heap_holds(small_heaps):
    boxes = [drust.spawn(make, 20 * MIB, server=server).join() for server in (1, 1, 1, 0)]
    for _ in range(2):
        for box in boxes:
            with box.borrow() as array:
                assert not array.any()


def test_a_heap_below_the_watermark_keeps_its_copies(small_heaps):
    boxes = [drust.spawn(make, 4 * MIB, server=1).join() for _ in range(4)]
    for box in boxes:
        with box.borrow():
            pass
    looks = [row[1] for row in runtime.current().loads(2)]
    until(lambda: runtime.current().loads(2)[0][1] < looks[0] or looks[0] == 0)
    assert drust.statistics()["copies_evicted"] == 0


def test_a_borrow_larger_than_what_is_left_says_so(small_heaps):
    there = drust.spawn(make, 30 * MIB, server=1).join()
    here = make(40 * MIB)
    until(lambda: runtime.current().loads(2)[1][6] >= 30 * MIB)
    with pytest.raises(OutOfMemoryError) as caught, there.borrow():
        pass
    assert caught.value.requested_bytes > 30 * MIB
    assert caught.value.free_bytes < 30 * MIB
    assert "server 1 has" in str(caught.value)
    assert f"40 MiB owned by process {os.getpid()}" in str(caught.value)
    with here.borrow() as array:  # nothing else has changed
        assert len(array) == 40 * MIB


def total(array: np.ndarray) -> tuple[float, int]:
    return float(array.sum()), runtime.current().server


def make_and_die(nbytes: int) -> None:
    kept = make(40 * MIB), Box(np.ones(nbytes, np.int8))
    if kept[1].server != runtime.current().server:
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_array_for_which_there_is_no_room_goes_to_the_most_vacant_server(small_heaps, counting):
    before = account.take_at_rest(small_heaps)
    until(lambda: runtime.vacant_servers(runtime.current()))
    here = make(40 * MIB)
    counted = counting(small_heaps)
    there = Box(np.arange(3 * MIB).reshape(3, MIB).T)  # 24 MiB, in Fortran order
    assert there.server == 1
    assert counted.since()["bytes_sent"] >= 24 * MIB
    expected = float(np.arange(3 * MIB).sum())
    assert drust.spawn(total, there.borrow()).join() == (expected, 1)  # a task goes where it lies
    with pytest.raises(OutOfMemoryError, match="no room"), there.borrow():
        pass
    del here
    with there.borrow() as array:
        assert array.shape == (MIB, 3)
        assert array.flags.f_contiguous
        assert array.sum() == expected
        del array
    with there.borrow_mut() as array:
        array += 1
        assert array.sum() == expected + array.size
        del array
    assert there.server == 0
    del there
    account.check_settled(small_heaps, before)


def test_zeros_and_empty_fall_over_as_well_and_nowhere_is_an_error(small_heaps):
    until(lambda: runtime.vacant_servers(runtime.current()))
    kept = make(40 * MIB)
    there = drust.full(25 * MIB, 3, np.int8)
    assert there.server == 1
    assert drust.spawn(total, there.borrow()).join() == (75 * MIB, 1)
    assert drust.empty(25 * MIB, np.int8).server == 1
    with pytest.raises(OutOfMemoryError, match="no room"):
        drust.zeros(100 * MIB, np.int8)
    with pytest.raises(OutOfMemoryError, match="no room"):
        Box(np.zeros(100 * MIB, np.int8))
    del kept


def test_what_went_elsewhere_is_freed_with_the_process_that_owned_it(small_heaps):
    before = account.take_at_rest(small_heaps)
    until(lambda: runtime.vacant_servers(runtime.current()))
    with pytest.raises(WorkerLostError):
        drust.spawn(make_and_die, 30 * MIB, server=0).join()
    account.check_settled(small_heaps, before)
    box = Box(np.zeros(10))
    kept = make(40 * MIB)
    moved = Box(np.ones(30 * MIB, np.int8))
    assert drust.spawn(give_back, moved, server=1).join() == 30 * MIB
    del box, kept, moved
    account.check_settled(small_heaps, before)


def give_back(box: Box) -> float:
    with box.borrow() as array:
        return float(array.sum(dtype=float))


def memory(*words: str) -> str:
    command = [sys.executable, "-m", "drust", "memory", *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_memory_lists_objects_by_size_owner_place_and_state(small_heaps):
    mine = Box(np.zeros(5 * MIB, np.int8))
    theirs = drust.spawn(make, 3 * MIB, server=1).join()
    with theirs.borrow():
        pass
    sessions = json.loads(memory("--json"))["sessions"]
    (session,) = [each for each in sessions if each["driver_pid"] == os.getpid()]  # others may test beside us
    home, other = session["servers"]
    assert session["driver_pid"] == os.getpid()
    assert home["quota_bytes"] == 64 * MIB
    assert home["claimed_bytes"] >= 8 * MIB
    sizes = [each["size_bytes"] for each in home["objects"]]
    assert sizes == sorted(sizes, reverse=True)
    largest, copy = home["objects"][:2]
    assert largest["kind"] == "numpy"
    assert largest["owner"] == f"driver (pid {os.getpid()})"
    assert largest["state"] == "owned"
    assert largest["size_bytes"] >= 5 * MIB
    assert copy["state"] == "copy"
    assert copy["size_bytes"] >= 3 * MIB
    assert int(copy["place"], 16) != int(largest["place"], 16)
    assert other["objects"][0]["state"] in ("handed out", "inside another")  # of the result it came with
    shown = memory("--most", "1")
    assert "5 MiB" in shown
    assert "64 MiB in use" in shown
    assert "3 MiB" in shown  # the largest of the other server
    with mine.borrow():
        pass


def test_memory_of_nobody_says_so(monkeypatch):
    monkeypatch.setattr("drust.server.joining.find_servers", list)
    assert "No drust session" in CliRunner().invoke(cli.main, ["memory"]).output


def test_memory_says_which_server_does_not_answer(small_heaps):
    command = importlib.import_module("drust.cli.memory")
    assert command._ask(Endpoint(server=1, host="127.0.0.1", port=0), 3).error == ""
    assert "server 9" in command._ask(Endpoint(server=9, host="127.0.0.1", port=0), 3).error


def test_a_machine_without_room_is_not_called_a_full_heap():
    machine = "the machine or the container has no room for "
    assert machine in (Path(__file__).parents[1] / "native/heap/segments.cpp").read_text()
    error = runtime._native_error(1, f"no room for 208 bytes on server 0: {machine}65536 more bytes")
    assert "no room for 208 B: the memory limit of the machine or its container is reached" in str(error)
    assert "quota is reached" not in str(error)
    full = runtime._native_error(1, "no room for 208 bytes on server 0: the quota is used up")
    assert "the heap's quota is reached" in str(full)
