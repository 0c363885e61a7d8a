"""Deadlocks among locks of several servers are found, with where everybody waits; long waits are none."""

import threading
import time

import pytest

import drust
from drust import AtomicBool, AtomicInt, Barrier, Mutex, RwLock
from drust.errors import DeadlockError
from drust.server import messages, notes
from drust.sync import cycles

WITHIN_S = 30.0


def lock_one_then_the_other(first: Mutex, second: Mutex, ready: Barrier) -> str:
    """What is reported, if anything is."""
    try:
        with first.recover():
            ready.wait(WITHIN_S)
            with second.recover():
                return ""
    except DeadlockError as error:
        return str(error)


def read_one_then_write_the_other(first: RwLock, second: RwLock, ready: Barrier) -> str:
    try:
        with first.read():
            ready.wait(WITHIN_S)
            with second.recover():
                return ""
    except DeadlockError as error:
        return str(error)


def made_at(kind: type, server: int) -> Mutex:
    return drust.spawn(kind, 0, server=server).join(WITHIN_S)


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize(("home", "other_home"), [(0, 1), (1, 0), (1, 1)])
def test_two_locks_of_any_homes_taken_crosswise_are_reported_with_both_stacks(
    settled, home, other_home, others
):
    first, second, ready = made_at(Mutex, home), made_at(Mutex, other_home), Barrier(2)
    began_s = time.monotonic()
    job = drust.spawn(lock_one_then_the_other, second, first, ready, server=others)
    told = [lock_one_then_the_other(first, second, ready), job.join(WITHIN_S)]
    assert time.monotonic() - began_s < WITHIN_S / 2
    reports = [text for text in told if text]
    assert reports
    for text in reports:
        assert text.count("waits for a lock of") == 2
        assert text.count("in lock_one_then_the_other") == 2
    for mutex in (first, second):
        with mutex.recover(timeout=WITHIN_S):
            pass
    del mutex, first, second, ready, job


def test_readers_that_want_to_write_crosswise_are_reported(settled):
    first, second, ready = made_at(RwLock, 0), made_at(RwLock, 1), Barrier(2)
    job = drust.spawn(read_one_then_write_the_other, second, first, ready, server=1)
    told = [read_one_then_write_the_other(first, second, ready), job.join(WITHIN_S)]
    assert any("in read_one_then_write_the_other" in text for text in told)
    del first, second, ready, job


def test_a_circle_of_three_servers_is_reported_with_all_stacks(three_unmeasured):
    locks = [made_at(Mutex, server) for server in (1, 2, 0)]
    ready = Barrier(3)
    jobs = [
        drust.spawn(lock_one_then_the_other, locks[at], locks[(at + 1) % 3], ready, server=at)
        for at in (1, 2)
    ]
    told = [lock_one_then_the_other(locks[0], locks[1], ready), *(job.join(WITHIN_S) for job in jobs)]
    reports = [text for text in told if text]
    assert reports
    assert reports[0].count("waits for a lock of") == 3
    assert max(text.count("in lock_one_then_the_other") for text in reports) == 3


def hold_until(mutex: Mutex, held: AtomicInt, released: AtomicBool) -> None:
    with mutex.lock():
        held.store(1)
        held.notify_all()
        released.wait(expected=False, timeout=WITHIN_S)


def release(released: AtomicBool) -> None:
    released.store(True)
    released.notify_all()


def test_a_long_wait_for_a_lock_elsewhere_is_no_deadlock(two_servers):
    mutex, held, released = made_at(Mutex, 1), AtomicInt(), AtomicBool()
    job = drust.spawn(hold_until, mutex, held, released, server=1)
    held.wait(0, timeout=WITHIN_S)
    timer = threading.Timer(3.5, release, (released,))
    timer.start()
    with mutex.lock(timeout=WITHIN_S) as value:
        assert value == 0
    job.join(WITHIN_S)
    timer.join()


# -- the walk, on facts that are made up --------------------------------------------------------------------

A, B, C, D = ((number << 24, number) for number in range(1, 5))


@pytest.fixture
def facts(monkeypatch):
    """Thread -> who keep it waiting; a thread waits where it is a key."""
    made: dict[cycles.Thread, list[cycles.Thread]] = {}

    def ask(thread):
        return cycles.Wait((0, 1), f"note of {thread[1]}", made[thread]) if thread in made else None

    monkeypatch.setattr(cycles, "_ask", ask)
    return made


def test_a_circle_is_walked_from_its_waiter_to_itself(facts):
    facts.update({A: [B], B: [C], C: [A]})
    assert [link.holder for link in cycles.find_cycle(A)] == [B, C, A]
    assert [link.note for link in cycles.find_cycle(A)] == ["note of 2", "note of 3", ""]
    facts.clear()
    facts.update({A: [A]})
    assert [link.holder for link in cycles.find_cycle(A)] == [A]


def test_a_chain_and_a_circle_of_others_are_no_circle(facts):
    facts.update({A: [B], B: [C]})
    assert cycles.find_cycle(A) == []
    facts.update({C: [B]})
    assert cycles.find_cycle(A) == []
    assert cycles.find_cycle(D) == []


def test_of_several_readers_one_that_waits_in_a_circle_is_found(facts):
    facts.update({A: [D, B, C], B: [D], C: [A]})
    assert [link.holder for link in cycles.find_cycle(A)] == [C, A]


def test_a_circle_that_is_gone_at_the_second_look_is_none(facts, monkeypatch):
    facts.update({A: [B], B: [A]})
    ask, asked = cycles._ask, []

    def ask_and_change(thread):
        asked.append(thread)
        if len(asked) > 2:
            facts.pop(B, None)
        return ask(thread)

    monkeypatch.setattr(cycles, "_ask", ask_and_change)
    assert cycles.find_cycle(A) == []
    assert len(asked) == 4


def test_notes_go_when_their_thread_waits_no_more_or_there_are_many():
    waits = {(1, 1): (64, b"", [(2, 2)])}
    hold, other = (1, 0, 128), (2, 0, 128)
    locks = {hold: 64, other: 128}
    kept = notes.Notes(lambda who, token: waits.get((who, token)), locks.__getitem__)
    assert kept.of(messages.WaitOf(1, 1)) == messages.Waiting(64, "", [(2, 2)])
    kept.keep(messages.WaitNote(1, 1, hold, "here" * messages.NOTE_CHARACTERS_MAX))
    assert kept.of(messages.WaitOf(1, 1)).note == "here" * (messages.NOTE_CHARACTERS_MAX // 4)
    kept.keep(messages.WaitNote(1, 1, other, "of another lock"))
    assert kept.of(messages.WaitOf(1, 1)).note == ""
    kept.keep(messages.WaitNote(1, 1, hold, "here"))
    del waits[1, 1]
    assert kept.of(messages.WaitOf(1, 1)) == messages.Waiting()
    waits[1, 1] = (64, b"there", [])
    assert kept.of(messages.WaitOf(1, 1)).note == "there"
    waits[1, 1] = (64, b"", [])
    assert kept.of(messages.WaitOf(1, 1)).note == ""
    for number in range(notes.NOTES_MAX + 1):
        waits[number, 0] = (64, b"", [])
        kept.keep(messages.WaitNote(number, 0, hold, "x"))
    assert kept.of(messages.WaitOf(0, 0)).note == ""
    assert kept.of(messages.WaitOf(1, 0)).note == "x"


def test_locks_that_a_reported_deadlock_left_can_be_taken(two_servers):
    first, second, ready = made_at(Mutex, 0), made_at(Mutex, 1), Barrier(2)
    job = drust.spawn(lock_one_then_the_other, second, first, ready, server=1)
    assert any([lock_one_then_the_other(first, second, ready), job.join(WITHIN_S)])
    with first.recover(timeout=WITHIN_S), second.recover(timeout=WITHIN_S):
        pass
