"""RwLock: readers together, writers alone, on one host and over the wire, and what deaths leave."""

import copy
import os
import signal
import threading
import time

import numpy as np
import pytest

import drust
from drust import AtomicBool, AtomicInt, BorrowTimeoutError, PoisonedError, RwLock, WorkerLostError
from drust.errors import DeadlockError

WITHIN_S = 30.0


def wait_until(atomic: AtomicInt, least: int) -> None:
    while (now := atomic.load()) < least:
        atomic.wait(now, timeout=WITHIN_S)


def step(atomic: AtomicInt) -> None:
    atomic.fetch_add()
    atomic.notify_all()


def make(value) -> RwLock:
    return RwLock(value)


def read(lock: RwLock):
    with lock.read() as value:
        return copy.deepcopy(value)


def count_up(lock: RwLock, times: int) -> None:
    for _ in range(times):
        with lock.write() as counts:
            counts["n"] = counts.get("n", 0) + 1
        with lock.read() as counts:
            assert counts["n"] > 0


def fill(lock: RwLock, index: int, value: float) -> None:
    with lock.write() as array:
        array[index] = value


def meet_inside(lock: RwLock, inside: AtomicInt) -> int:
    with lock.read() as value:
        step(inside)
        wait_until(inside, 2)
        return value


def read_until(lock: RwLock, inside: AtomicInt, leave: AtomicBool) -> None:
    with lock.read():
        step(inside)
        while not leave.load():
            leave.wait(False, timeout=WITHIN_S)


def read_and_die(lock: RwLock) -> None:
    with lock.read():
        os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(lock: RwLock) -> None:
    with lock.write():
        os.kill(os.getpid(), signal.SIGKILL)


def read_and_raise(lock: RwLock) -> None:
    with lock.read():
        raise ValueError("inside")


@pytest.mark.parametrize("home", [0, 1])
def test_what_a_writer_leaves_is_what_every_reader_finds(two_servers, home):
    lock = drust.spawn(make, {}, server=home).join(WITHIN_S)
    jobs = [drust.spawn(count_up, lock, 20, server=server) for server in (0, 1)]
    count_up(lock, 20)
    for job in jobs:
        job.join(WITHIN_S)
    assert read(lock) == {"n": 60}
    assert drust.spawn(read, lock, server=1 - home).join(WITHIN_S) == {"n": 60}


@pytest.mark.parametrize("home", [0, 1])
def test_an_array_is_written_and_read_from_both_servers(two_servers, home):
    lock = drust.spawn(make, np.zeros(4), server=home).join(WITHIN_S)
    for server in (0, 1):
        drust.spawn(fill, lock, server, 1.0 + server, server=server).join(WITHIN_S)
    fill(lock, 2, 3.0)
    assert read(lock).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("home", [0, 1])
def test_readers_of_two_servers_are_inside_together(two_servers, home):
    lock, inside = drust.spawn(make, 7, server=home).join(WITHIN_S), AtomicInt()
    job = drust.spawn(meet_inside, lock, inside, server=1)
    assert meet_inside(lock, inside) == 7
    assert job.join(WITHIN_S) == 7


def test_an_array_that_is_read_is_one_memory_for_the_host_and_read_only(one_server, counting):
    lock = RwLock(np.zeros(1000))
    drust.spawn(fill, lock, 1, 5.0).join(WITHIN_S)
    read(lock)
    count = counting(one_server)
    drust.spawn(fill, lock, 2, 6.0).join(WITHIN_S)
    with lock.read() as array:
        assert array[1:3].tolist() == [5.0, 6.0]
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert count.since()["bytes_copied"] == 0
    assert count.since()["shared_messages"] == 0


def test_reading_elsewhere_what_is_known_there_is_one_round_trip_each_way(two_servers, counting):
    lock = drust.spawn(make, np.zeros(1000), server=1).join(WITHIN_S)
    read(lock)
    count = counting(two_servers)
    assert read(lock).sum() == 0
    since = count.since()
    assert since["shared_messages"] == 2
    assert count.messages() == 0


@pytest.mark.parametrize("home", [0, 1])
def test_an_array_is_revoked_when_its_block_ends_and_a_view_keeps_what_it_saw(two_servers, home):
    lock = drust.spawn(make, np.zeros(3), server=home).join(WITHIN_S)
    with lock.read() as array:
        pass
    with pytest.raises(drust.RevokedError):
        array.sum()
    kept = []
    for number in range(3):
        with lock.read() as array:
            kept.append(array[:2])
        drust.spawn(fill, lock, 0, number + 1.0, server=home).join(WITHIN_S)
        fill(lock, 1, number + 5.0)
    assert [view.tolist() for view in kept] == [[0, 0], [1, 5], [2, 6]]
    assert read(lock).tolist() == [3, 7, 0]


def test_blocks_that_views_are_left_of_are_freed_with_them(one_server):
    lock = RwLock(np.zeros(1000))
    here = drust.runtime.current()
    live = here.live_blocks()
    kept = []
    for number in range(80):  # more than there are slots for
        with lock.read() as array:
            kept.append(array[:2])
        fill(lock, 0, number + 1.0)
    assert [view[0] for view in kept] == list(range(80))
    assert lock._viewing <= drust._core.VIEWS_MAX
    assert here.live_blocks() > live + 30
    kept.clear()
    del array
    assert lock._viewing == 0
    assert here.live_blocks() <= live + 1


def test_threads_read_at_the_same_time_and_write_alone(one_server):
    lock, wrong = RwLock(np.zeros(2)), []

    def work(index: int) -> None:
        for round_ in range(200):
            if (round_ + index) % 4 == 0:
                with lock.write() as array:
                    array += 1
            else:
                with lock.read() as array:
                    if array[0] != array[1]:
                        wrong.append(array.copy())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    assert not wrong
    assert read(lock).tolist() == [200, 200]


@pytest.mark.parametrize("home", [0, 1])
def test_a_thread_that_is_inside_may_not_ask_again(two_servers, home):
    lock = drust.spawn(make, 0, server=home).join(WITHIN_S)
    with lock.read(), pytest.raises(DeadlockError, match=r"end its read\(\) block first"), lock.write():
        pass
    with lock.read(), pytest.raises(DeadlockError, match="reads it again"), lock.read():
        pass
    for again in (lock.read, lock.write, lock.recover):
        with lock.write(), pytest.raises(DeadlockError, match="writes it and locks it again"), again():
            pass
    assert read(lock) == 0


@pytest.mark.parametrize("home", [0, 1])
def test_a_wait_to_write_or_to_read_ends_after_its_timeout_and_leaves_nothing_behind(two_servers, home):
    lock = drust.spawn(make, 0, server=home).join(WITHIN_S)
    inside, leave = AtomicInt(), AtomicBool()
    job = drust.spawn(read_until, lock, inside, leave, server=1)
    wait_until(inside, 1)
    for timeout_s in (0, 0.05):
        with pytest.raises(BorrowTimeoutError), lock.write(timeout=timeout_s):
            pass
    with lock.read(timeout=0):
        pass
    leave.store(True)
    leave.notify_all()
    job.join(WITHIN_S)
    guard = lock.write()
    with guard:
        guard.value = 5
    assert read(lock) == 5


def test_what_a_read_block_has_cannot_be_replaced(one_server):
    lock = RwLock(1)
    guard = lock.read()
    with guard as value, pytest.raises(RuntimeError, match=r"write\(\)"):
        guard.value = value + 1
    assert read(lock) == 1


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("server", [0, 1])
def test_a_reader_that_dies_leaves_within_a_second_and_poisons_nothing(two_servers, home, server):
    lock = drust.spawn(make, 3, server=home).join(WITHIN_S)
    with pytest.raises(WorkerLostError):
        drust.spawn(read_and_die, lock, server=server).join(WITHIN_S)
    began_s = time.monotonic()
    with lock.write(timeout=5) as value:
        assert value == 3
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("home", [0, 1])
def test_a_writer_that_dies_poisons_it_for_readers_too_and_a_block_that_raises_does_if_it_writes(
    two_servers, home
):
    lock = drust.spawn(make, 3, server=home).join(WITHIN_S)
    with pytest.raises(ValueError, match="inside"):
        drust.spawn(read_and_raise, lock, server=0).join(WITHIN_S)
    assert read(lock) == 3
    with pytest.raises(WorkerLostError):
        drust.spawn(write_and_die, lock, server=1).join(WITHIN_S)
    for ask in (lock.read, lock.write):
        with pytest.raises(PoisonedError, match="recover"), ask(timeout=5):
            pass
    with lock.recover() as value:
        assert value == 3
    with pytest.raises(ValueError, match="mine"), lock.write():
        raise ValueError("mine")
    with pytest.raises(PoisonedError), lock.read():
        pass
    with lock.recover():
        pass
    assert read(lock) == 3


def read_then_write(first: RwLock, second: RwLock, inside: AtomicInt) -> str:
    with first.read():
        step(inside)
        wait_until(inside, 2)
        try:
            with second.write(timeout=WITHIN_S):
                return ""
        except DeadlockError as error:
            return str(error)


def test_a_deadlock_of_readers_that_want_to_write_is_reported(two_servers):
    first, second, inside = RwLock(0), RwLock(0), AtomicInt()
    job = drust.spawn(read_then_write, first, second, inside, server=0)
    reports = [text for text in (read_then_write(second, first, inside), job.join(WITHIN_S)) if text]
    assert reports
    for text in reports:
        assert text.count("waits for a lock of") == 2
        assert text.count("in read_then_write") == 2
    assert read(first) == read(second) == 0
