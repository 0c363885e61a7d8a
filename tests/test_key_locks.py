"""KeyLocks and the locks of a Dict's keys: held by one, given on, and taken over from the dead."""

import os
import signal

import pytest

import drust
from drust import AtomicInt, BorrowTimeoutError, Dict, KeyLocks, WorkerLostError
from drust.errors import AccessError, ConfigError, DeadlockError, ServerLostError

WITHIN_S = 30.0


def add_slowly(counts: Dict, locks: KeyLocks, key: str, times: int) -> None:
    """Reads and puts as two steps: the lock makes them one."""
    for _ in range(times):
        with locks.lock(key, timeout=WITHIN_S):
            counts[key] = counts.get(key, 0) + 1


@pytest.mark.parametrize("on", [[0], [1], [0, 1]])
def test_what_is_done_under_a_keys_lock_is_done_by_one_at_a_time(settled, on):
    counts, locks = Dict(on=[0]), KeyLocks(on=on)
    jobs = [
        drust.spawn(add_slowly, counts, locks, key, 50, server=server)
        for key in ("a", "b")
        for server in (0, 1)
    ]
    add_slowly(counts, locks, "a", 50)
    for job in jobs:
        job.join(WITHIN_S)
    assert dict(counts.items()) == {"a": 150, "b": 100}
    assert list(locks._shards.scan()) == [], "nobody holds any"
    del counts, locks, jobs, job


def test_a_lock_that_nobody_wants_costs_two_steps(two_servers, counting):
    here, there = KeyLocks(on=[0]), KeyLocks(on=[1])
    counters = counting(two_servers)
    with here.lock("a", "b", "c"):
        pass
    assert counters.since()["shared_messages"] == 0
    counters = counting(two_servers)
    with there.lock("a"):
        pass
    assert counters.since()["shared_messages"] == 2


def test_keys_do_not_keep_each_other_out(two_servers):
    locks: KeyLocks = KeyLocks()
    with locks.lock("a"), locks.lock("b"), locks.lock(*range(100)):
        with pytest.raises(DeadlockError, match="holds that key"):
            locks.lock("c", "b").__enter__()
        with locks.lock("c"):
            pass
    assert list(locks._shards.scan()) == []
    with locks.lock(1, 1.0, True), locks.lock("a"):
        pass
    with locks.lock():
        pass


def test_a_guard_is_for_one_block_at_a_time(two_servers):
    guard = KeyLocks(on=[0]).lock("a")
    with guard, pytest.raises(AccessError, match="in use"):
        guard.__enter__()
    with guard:
        assert not guard.was_abandoned


def try_to_lock(locks: KeyLocks, key: str, timeout: float) -> str:
    try:
        with locks.lock(key, timeout=timeout):
            return "locked"
    except BorrowTimeoutError as error:
        return str(error)


@pytest.mark.parametrize("server", [0, 1])
def test_who_waits_too_long_is_told_who_has_it(settled, server):
    locks: KeyLocks = KeyLocks(on=[0, 1])
    with locks.lock("a"):
        told = drust.spawn(try_to_lock, locks, "a", 0.1, server=server).join(WITHIN_S)
        assert "a process on server 0" in told
        assert drust.spawn(try_to_lock, locks, "b", 0.1, server=server).join(WITHIN_S) == "locked"
        job = drust.spawn(try_to_lock, locks, "a", WITHIN_S, server=server)
    assert job.join(WITHIN_S) == "locked"
    del locks, job


def test_a_key_that_is_none_is_refused_and_an_error_in_the_block_gives_the_lock_back(two_servers):
    locks: KeyLocks = KeyLocks()
    with pytest.raises(TypeError):
        locks.lock(["a"])
    with pytest.raises(ZeroDivisionError), locks.lock("a"):
        raise ZeroDivisionError
    with locks.lock("a", timeout=1) as guard:
        assert not guard.was_abandoned


def test_a_guard_gives_back_what_it_can_when_a_server_is_lost():
    with drust.init(servers=2, workers=1, heap_bytes="64MiB") as session:
        locks: KeyLocks = KeyLocks(on=[0, 1])
        keys = {locks._shards.index_of(locks._shards.locate(key)): key for key in range(50)}
        guard = locks.lock(*keys.values())
        with pytest.raises(ServerLostError), guard:
            os.kill(session.status(1).pid, signal.SIGKILL)
            with pytest.raises(ServerLostError):
                locks.lock("x", *range(50)).__enter__()
        with locks.lock(keys[0], timeout=1) as guard:
            assert not guard.was_abandoned


def test_who_does_not_wait_gets_the_locks_of_the_dead_too(settled):
    locks, held = KeyLocks(on=[0]), AtomicInt()
    with pytest.raises(WorkerLostError):
        drust.spawn(lock_and_die, locks, held, server=1).join(WITHIN_S)
    guard = locks.lock("a", timeout=0)
    with guard:
        assert guard.was_abandoned
    with guard:
        assert not guard.was_abandoned
    with locks.lock("b", timeout=0):
        pass
    del locks, held, guard


def lock_and_die(locks: KeyLocks, held: AtomicInt) -> None:
    locks.lock("a", "b").__enter__()
    held.store(1)
    held.notify_all()
    os.kill(os.getpid(), signal.SIGKILL)


def lock_after(locks: KeyLocks) -> bool:
    with locks.lock("a", timeout=WITHIN_S) as guard:
        return guard.was_abandoned


@pytest.mark.parametrize("on", [[0], [1]])
@pytest.mark.parametrize("server", [0, 1])
def test_the_locks_of_the_dead_go_to_the_next_who_is_told(settled, on, server):
    locks, held = KeyLocks(on=on), AtomicInt()
    job = drust.spawn(lock_and_die, locks, held, server=server)
    with pytest.raises(WorkerLostError):
        job.join(WITHIN_S)
    assert lock_after(locks)
    assert not lock_after(locks)
    assert not drust.spawn(lock_after, locks, server=1 - server).join(WITHIN_S)
    with locks.lock("b", timeout=WITHIN_S) as guard:
        assert guard.was_abandoned
    del locks, held, job, guard


def wait_for_the_dead(locks: KeyLocks, waits: AtomicInt) -> bool:
    waits.fetch_add(1)
    waits.notify_all()
    return lock_after(locks)


def test_of_those_who_wait_for_the_dead_one_is_told_and_all_go_on(settled):
    locks, held, waits = KeyLocks(on=[0]), AtomicInt(), AtomicInt()
    with pytest.raises(WorkerLostError):
        drust.spawn(lock_and_die, locks, held, server=1).join(WITHIN_S)
    jobs = [drust.spawn(wait_for_the_dead, locks, waits, server=server) for server in (0, 1)]
    told = [lock_after(locks), *(job.join(WITHIN_S) for job in jobs)]
    assert sorted(told) == [False, False, True]
    with locks.lock("b", timeout=WITHIN_S):
        pass
    del locks, held, waits, jobs


def test_a_dict_has_locks_of_its_keys_if_it_was_made_with_them(settled):
    plain, counts = Dict(), Dict({"a": 1}, locks=True)
    with pytest.raises(ConfigError, match="locks=True"):
        plain.locked("a")
    with counts.locked("a"):
        told = drust.spawn(try_to_lock_key, counts, "a", server=1).join(WITHIN_S)
    assert told == "not locked"
    assert drust.spawn(try_to_lock_key, counts, "a", server=1).join(WITHIN_S) == 2
    assert len(counts) == 1
    del plain, counts


def try_to_lock_key(counts: Dict, key: str) -> object:
    try:
        with counts.locked(key, timeout=0.1):
            counts[key] += 1
            return counts[key]
    except BorrowTimeoutError:
        return "not locked"
