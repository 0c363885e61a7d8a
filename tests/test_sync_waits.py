"""What waits for an atomic to change: AtomicInt.wait, Barrier, Semaphore, Condvar, Once."""

import threading
import time

import pytest

import drust
from drust import AtomicInt, Barrier, BorrowTimeoutError, Condvar, Mutex, Once, PoisonedError, Semaphore
from drust.errors import BarrierBrokenError, ConfigError

WITHIN_S = 30.0


def wait_for_change(atomic: AtomicInt, waits: AtomicInt, expected: int) -> int:
    waits.fetch_add()
    waits.notify_all()
    return atomic.wait(expected, timeout=WITHIN_S)


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("server", [0, 1])
def test_a_waiter_wakes_when_the_value_is_another(settled, home, server):
    atomic = drust.spawn(AtomicInt, 5, server=home).join(WITHIN_S)
    waits = AtomicInt()
    job = drust.spawn(wait_for_change, atomic, waits, 5, server=server)
    waits.wait(0, timeout=WITHIN_S)
    atomic.store(8)
    atomic.notify_all()
    assert job.join(WITHIN_S) == 8


@pytest.mark.parametrize("home", [0, 1])
def test_a_wait_for_a_change_ends_after_its_timeout(two_servers, home):
    atomic = drust.spawn(AtomicInt, 5, server=home).join(WITHIN_S)
    began_s = time.monotonic()
    with pytest.raises(BorrowTimeoutError):
        atomic.wait(5, timeout=0.1)
    assert 0.1 <= time.monotonic() - began_s < 5
    assert atomic.wait(4) == 5


def meet(barrier: Barrier, arrived: AtomicInt, rounds: int) -> list[int]:
    seen = []
    for _ in range(rounds):
        arrived.fetch_add()
        barrier.wait(timeout=WITHIN_S)
        seen.append(arrived.load())
    return seen


@pytest.mark.parametrize("home", [0, 1])
def test_nobody_passes_a_barrier_before_all_have_arrived(settled, home):
    barrier = drust.spawn(Barrier, 3, server=home).join(WITHIN_S)
    arrived = AtomicInt()
    jobs = [drust.spawn(meet, barrier, arrived, 5, server=server) for server in (0, 1)]
    for seen in [meet(barrier, arrived, 5), *(job.join(WITHIN_S) for job in jobs)]:
        assert all(count >= 3 * (index + 1) for index, count in enumerate(seen))


def test_a_party_that_gives_up_breaks_the_barrier_for_all(one_server):
    barrier = Barrier(2)
    with pytest.raises(BarrierBrokenError, match="gave up"):
        barrier.wait(timeout=0.05)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()


def enter(semaphore: Semaphore, inside: AtomicInt, most: AtomicInt, times: int) -> None:
    for _ in range(times):
        with semaphore:
            most.fetch_max(inside.fetch_add() + 1)
            inside.fetch_sub()


@pytest.mark.parametrize("home", [0, 1])
def test_no_more_are_inside_than_there_are_permits(settled, home):
    semaphore = drust.spawn(Semaphore, 2, server=home).join(WITHIN_S)
    inside, most = AtomicInt(), AtomicInt()
    jobs = [drust.spawn(enter, semaphore, inside, most, 20, server=server) for server in (0, 1, 0)]
    enter(semaphore, inside, most, 20)
    for job in jobs:
        job.join(WITHIN_S)
    assert 1 <= most.load() <= 2
    assert inside.load() == 0
    semaphore.acquire()
    semaphore.acquire()
    with pytest.raises(BorrowTimeoutError, match="permit"):
        semaphore.acquire(timeout=0.05)
    semaphore.release()
    semaphore.acquire(timeout=0)


def take_jobs(jobs: Mutex, ready: Condvar, count: int) -> list[int]:
    taken = []
    for _ in range(count):
        with ready.when(jobs, lambda value: value, timeout=WITHIN_S) as value:
            taken.append(value.pop(0))
    return taken


@pytest.mark.parametrize("home", [0, 1])
def test_a_condition_is_met_when_its_block_begins(settled, home):
    jobs = drust.spawn(Mutex, [], server=home).join(WITHIN_S)
    ready = Condvar()
    takers = [drust.spawn(take_jobs, jobs, ready, 10, server=server) for server in (0, 1)]
    for number in range(20):
        with jobs.lock() as value:
            value.append(number)
        ready.notify_all()
    taken = [number for taker in takers for number in taker.join(WITHIN_S)]
    assert sorted(taken) == list(range(20))


def test_a_condition_that_is_not_met_in_time_leaves_the_lock_free(one_server):
    jobs, ready = Mutex([]), Condvar()
    with pytest.raises(BorrowTimeoutError, match="condition"), ready.when(jobs, bool, timeout=0.05):
        pass
    with pytest.raises(ZeroDivisionError), ready.when(jobs, lambda _: 1 / 0):
        pass
    with jobs.lock(timeout=1) as value:
        value.append(1)
    with ready.when(jobs, bool) as value:
        assert value == [1]


def run_once(once: Once, runs: AtomicInt) -> int:
    once.call(runs.fetch_add)
    return runs.load()


@pytest.mark.parametrize("home", [0, 1])
def test_what_is_done_once_is_done_by_one_process(settled, home):
    once = drust.spawn(Once, server=home).join(WITHIN_S)
    runs = AtomicInt()
    jobs = [drust.spawn(run_once, once, runs, server=server) for server in (0, 1, 0, 1)]
    assert run_once(once, runs) == 1
    assert [job.join(WITHIN_S) for job in jobs] == [1, 1, 1, 1]


def test_what_failed_once_says_so_ever_after(one_server):
    once = Once()
    with pytest.raises(ZeroDivisionError):
        once.call(lambda: 1 / 0)
    with pytest.raises(PoisonedError):
        once.call(lambda: None)
    assert not once.is_done


def test_a_barrier_of_nobody_and_permits_below_none_are_refused(one_server):
    for make in (lambda: Barrier(0), lambda: Semaphore(-1), lambda: Semaphore(1).release(0)):
        with pytest.raises(ConfigError):
            make()
