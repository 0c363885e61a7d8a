"""AtomicInt, AtomicBool, Mutex: on one host and over the wire, held and waited for by processes that die."""

import copy
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest

import drust
from drust import AtomicBool, AtomicInt, BorrowTimeoutError, Box, Mutex, PoisonedError, WorkerLostError
from drust.errors import DeadlockError, PickledBoxError, UnpicklableError

WITHIN_S = 30.0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def add_many(counter: AtomicInt, times: int) -> int:
    for _ in range(times):
        counter.fetch_add()
    return counter.load()


def make_counter(value: int) -> AtomicInt:
    return AtomicInt(value)


def make_mutex(value):
    return Mutex(value)


def count_up(mutex: Mutex, key: str, times: int) -> None:
    for _ in range(times):
        with mutex.lock() as counts:
            counts[key] = counts.get(key, 0) + 1


def add_number(mutex: Mutex, amount: int) -> int:
    guard = mutex.lock()
    with guard as number:
        guard.value = number + amount
        return number


def fill(mutex: Mutex, index: int, value: float) -> None:
    with mutex.lock() as array:
        array[index] = value


def lock_and_die(mutex: Mutex) -> None:
    with mutex.lock():
        die()


def lock_and_raise(mutex: Mutex) -> None:
    with mutex.lock():
        raise ValueError("inside")


def hold_until(mutex: Mutex, held: AtomicBool, released: AtomicBool) -> None:
    with mutex.lock():
        held.store(True)
        while not released.load():
            threading.Event().wait(0.001)


def wait_and_die(mutex: Mutex, waits: AtomicBool) -> None:
    threading.Thread(target=lambda: (wait_for(lambda: waits.load()), die()), daemon=True).start()
    waits.store(True)
    with mutex.lock():
        pass


def read(mutex: Mutex):
    with mutex.lock() as value:
        return copy.deepcopy(value)


def take_mutex_from(box) -> None:
    with box["mutex"].lock() as counts:
        counts["seen"] = True


def wait_for(condition, within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.002)


# -- atomics -----------------------------------------------------------------------------------------------


def test_every_step_of_an_atomic_gives_the_value_before(one_server):
    number = AtomicInt(5)
    assert number.load() == 5
    assert number.exchange(7) == 5
    assert number.fetch_add(3) == 7
    assert number.fetch_sub() == 10
    assert number.fetch_max(20) == 9
    assert number.fetch_min(-4) == 20
    assert number.fetch_and(0xFF) == -4
    assert number.fetch_or(1) == 0xFC
    assert number.fetch_xor(0xF) == 0xFD
    assert number.compare_exchange(0xF2, 1) == (True, 0xF2)
    assert number.compare_exchange(0xF2, 2) == (False, 1)
    number.store(-(2**63))
    assert number.fetch_sub(1) == -(2**63)
    assert number.load() == 2**63 - 1


def test_an_atomic_refuses_what_it_cannot_hold(one_server):
    with pytest.raises(OverflowError, match="64 bits"):
        AtomicInt(2**63)
    with pytest.raises(TypeError, match="holds an int"):
        AtomicInt(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="True or False"):
        AtomicBool(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no number"):
        AtomicBool(True).fetch_add()


@pytest.mark.parametrize("home", [0, 1])
def test_no_step_of_an_atomic_is_lost_between_servers(settled, home):
    counter = drust.spawn(make_counter, 0, server=home).join(WITHIN_S)
    assert counter.server == home
    jobs = [drust.spawn(add_many, counter, 200, server=server) for server in (0, 1)]
    add_many(counter, 200)
    for job in jobs:
        job.join(WITHIN_S)
    assert counter.load() == 600


def test_a_step_on_the_own_host_sends_no_message_and_elsewhere_one(two_servers, counting):
    here = AtomicInt()
    there = drust.spawn(make_counter, 0, server=1).join(WITHIN_S)
    count = counting(two_servers)
    add_many(here, 50)
    assert count.since()["shared_messages"] == 0
    there.fetch_add()
    assert count.since()["shared_messages"] == 1


# -- a mutex -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [0, 1])
def test_every_holder_finds_what_the_one_before_left(settled, home):
    mutex = drust.spawn(make_mutex, {}, server=home).join(WITHIN_S)
    jobs = [drust.spawn(count_up, mutex, key, 40, server=server) for server, key in enumerate("ab")]
    count_up(mutex, "c", 40)
    for job in jobs:
        job.join(WITHIN_S)
    assert read(mutex) == {"a": 40, "b": 40, "c": 40}


@pytest.mark.parametrize("home", [0, 1])
def test_a_number_is_replaced_by_assigning_to_the_guard(settled, home):
    mutex = drust.spawn(make_mutex, 10, server=home).join(WITHIN_S)
    before = [drust.spawn(add_number, mutex, 5, server=server).join(WITHIN_S) for server in (0, 1)]
    assert before == [10, 15]
    assert add_number(mutex, 1) == 20
    assert read(mutex) == 21


@pytest.mark.parametrize("home", [0, 1])
def test_an_array_is_written_by_all(settled, home):
    mutex = drust.spawn(make_mutex, np.zeros(4), server=home).join(WITHIN_S)
    for server in (0, 1):
        drust.spawn(fill, mutex, server, 1.0 + server, server=server).join(WITHIN_S)
    fill(mutex, 2, 3.0)
    np.testing.assert_array_equal(read(mutex), [1, 2, 3, 0])


def test_a_lock_that_nobody_else_can_see_encodes_nothing(one_server, counting):
    mutex = Mutex({"n": 0})
    count = counting(one_server)
    for _ in range(20):
        with mutex.lock() as value:
            value["n"] += 1
    assert count.since()["encodes"] == 0
    assert drust.spawn(read, mutex).join(WITHIN_S) == {"n": 20}


def test_an_array_in_a_mutex_is_one_memory_for_the_host(one_server, counting):
    mutex = Mutex(np.zeros(1000))
    drust.spawn(fill, mutex, 1, 5.0).join(WITHIN_S)
    count = counting(one_server)
    drust.spawn(fill, mutex, 2, 6.0).join(WITHIN_S)
    assert read(mutex)[1:3].tolist() == [5.0, 6.0]
    assert count.since()["bytes_copied"] == 0
    assert count.since()["shared_messages"] == 0


def test_an_uncontended_lock_of_another_server_is_one_round_trip_each_way(two_servers, counting):
    mutex = drust.spawn(make_mutex, {}, server=1).join(WITHIN_S)
    read(mutex)
    count = counting(two_servers)
    with mutex.lock() as value:
        value["n"] = 1
    assert count.since()["shared_messages"] == 2
    assert count.messages() == 0


def test_an_array_is_revoked_when_its_block_ends(one_server):
    mutex = Mutex(np.zeros(3))
    with mutex.lock() as array:
        array[0] = 1
    with pytest.raises(drust.RevokedError):
        array[0] = 2


@pytest.mark.parametrize("home", [0, 1])
def test_a_view_that_outlives_the_block_keeps_what_it_saw(two_servers, home):
    mutex = drust.spawn(make_mutex, np.zeros(3), server=home).join(WITHIN_S)
    kept = []
    with mutex.lock() as array:
        array[0] = 1
        kept.append(array[:2])
    fill(mutex, 0, 9.0)
    assert kept[0].tolist() == [1.0, 0.0]
    kept[0][1] = 7
    assert read(mutex).tolist() == [9.0, 0.0, 0.0]


def test_a_thread_that_locks_again_what_it_holds_is_told_at_once(two_servers):
    mutex = Mutex(0)
    with mutex.lock(), pytest.raises(DeadlockError, match="locks it again"), mutex.lock():
        pass
    assert read(mutex) == 0
    there = drust.spawn(make_mutex, 0, server=1).join(WITHIN_S)
    with there.lock(), pytest.raises(DeadlockError, match="locks it again"), there.lock():
        pass
    assert read(there) == 0


@pytest.mark.parametrize("home", [0, 1])
def test_a_wait_ends_after_its_timeout_and_leaves_nothing_behind(settled, home):
    mutex = drust.spawn(make_mutex, 0, server=home).join(WITHIN_S)
    held, released = AtomicBool(), AtomicBool()
    job = drust.spawn(hold_until, mutex, held, released, server=1)
    wait_for(held.load)
    for timeout_s in (0, 0.05):
        began_s = time.monotonic()
        with pytest.raises(BorrowTimeoutError), mutex.lock(timeout=timeout_s):
            pass
        assert timeout_s <= time.monotonic() - began_s < timeout_s + 2
    released.store(True)
    job.join(WITHIN_S)
    assert read(mutex) == 0


def test_threads_of_a_process_exclude_each_other(one_server):
    mutex = Mutex([0])

    def add() -> None:
        for _ in range(300):
            with mutex.lock() as numbers:
                number = numbers[0]
                numbers[0] = number + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    assert read(mutex) == [1200]


# -- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("server", [0, 1])
def test_a_holder_that_dies_poisons_the_mutex_within_a_second(two_servers, home, server):
    mutex = drust.spawn(make_mutex, {"n": 1}, server=home).join(WITHIN_S)
    with pytest.raises(WorkerLostError):
        drust.spawn(lock_and_die, mutex, server=server).join(WITHIN_S)
    began_s = time.monotonic()
    with pytest.raises(PoisonedError, match="recover"), mutex.lock(timeout=5):
        pass
    assert time.monotonic() - began_s < 1
    with mutex.recover() as value:
        assert value == {"n": 1}
        value["n"] = 2
    assert read(mutex) == {"n": 2}


@pytest.mark.parametrize("home", [0, 1])
def test_a_block_that_raises_poisons_the_mutex(two_servers, home):
    mutex = drust.spawn(make_mutex, 0, server=home).join(WITHIN_S)
    with pytest.raises(ValueError, match="inside"):
        drust.spawn(lock_and_raise, mutex, server=0).join(WITHIN_S)
    with pytest.raises(PoisonedError), mutex.lock():
        pass
    with mutex.recover():
        pass
    assert read(mutex) == 0


@pytest.mark.parametrize("home", [0, 1])
def test_a_waiter_that_dies_is_passed_over(two_servers, home):
    mutex = drust.spawn(make_mutex, 0, server=home).join(WITHIN_S)
    waits = AtomicBool()
    with mutex.lock():
        job = drust.spawn(wait_and_die, mutex, waits, server=1)
        with pytest.raises(WorkerLostError):
            job.join(WITHIN_S)
    with mutex.lock(timeout=5) as value:
        assert value == 0


def lock_both(first: Mutex, second: Mutex, has_first: AtomicInt) -> str:
    with first.lock():
        has_first.fetch_add()
        has_first.notify_all()
        while (count := has_first.load()) < 2:
            has_first.wait(count, timeout=WITHIN_S)
        try:
            with second.lock(timeout=WITHIN_S):
                return ""
        except DeadlockError as error:
            return str(error)


@pytest.mark.parametrize("server", [0, 1])
def test_a_deadlock_between_processes_is_reported_with_the_stacks_of_both(two_servers, server):
    first, second, has_first = Mutex(0), Mutex(0), AtomicInt()
    job = drust.spawn(lock_both, first, second, has_first, server=server)
    began_s = time.monotonic()
    told = [lock_both(second, first, has_first), job.join(WITHIN_S)]
    assert time.monotonic() - began_s < WITHIN_S / 2
    reports = [text for text in told if text]
    assert reports
    for text in reports:
        assert text.count("waits for a lock of") == 2
        assert "this one" in text
        assert text.count("in lock_both") == 2
    for mutex in (first, second):
        assert read(mutex) == 0


def test_a_long_wait_is_no_deadlock(two_servers):
    mutex, held, released = Mutex(0), AtomicBool(), AtomicBool()
    job = drust.spawn(hold_until, mutex, held, released, server=0)
    wait_for(held.load)
    threading.Timer(1.5, lambda: released.store(True)).start()
    assert read(mutex) == 0
    job.join(WITHIN_S)


def test_a_value_with_a_box_in_it_is_refused(one_server):
    mutex = Mutex([Box(1)])
    with pytest.raises(UnpicklableError, match="two owners"):
        drust.spawn(read, mutex)


def test_a_handle_is_pickled_only_on_its_way_to_a_task(one_server):
    for handle in (AtomicInt(), Mutex(0)):
        with pytest.raises(PickledBoxError, match="pass it to a task"):
            pickle.dumps(handle)


# -- handles -----------------------------------------------------------------------------------------------


def test_an_object_is_freed_with_its_last_handle_wherever_that_was(settled):
    for home in (0, 1):
        mutex = drust.spawn(make_mutex, {"big": b"x" * 5000}, server=home).join(WITHIN_S)
        for server in (0, 1):
            drust.spawn(count_up, mutex, "n", 1, server=server).join(WITHIN_S)
        del mutex


@pytest.mark.parametrize("server", [0, 1])
def test_a_handle_travels_inside_a_box(settled, server):
    mutex = Mutex({})
    box = Box({"mutex": mutex, "name": "x"})
    drust.spawn(take_mutex_from, box.borrow(), server=server).join(WITHIN_S)
    assert read(mutex) == {"seen": True}
    drust.spawn(take_mutex_from, box.borrow_mut(), server=server).join(WITHIN_S)
    with box.borrow() as value:
        take_mutex_from(value)
    del box


def test_a_process_has_one_handle_of_each_object_of_its_host(one_server):
    mutex = Mutex(0)
    box = Box([mutex])
    with box.borrow() as value:
        assert value[0] is mutex
    assert mutex.clone() is mutex


def test_what_a_killed_process_held_is_given_back(settled):
    mutex = drust.spawn(make_mutex, {}, server=1).join(WITHIN_S)
    for server in (0, 1):
        with pytest.raises(WorkerLostError):
            drust.spawn(lock_and_die, mutex, server=server).join(WITHIN_S)
        with mutex.recover():
            pass


def test_a_worker_that_never_imported_drust_gets_a_handle():
    with drust.init(servers=2, workers=1, heap_bytes="256MiB"):
        mutex = Mutex(0)
        for server in (0, 1):
            assert drust.spawn(repr, mutex, server=server).join(WITHIN_S) == "<Mutex on server 0>"
