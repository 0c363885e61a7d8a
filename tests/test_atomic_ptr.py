"""AtomicPtr: one order of its values in all processes, compared by identity."""

import threading

import pytest

import drust
from drust import AtomicPtr, Box
from drust.errors import UnpicklableError

WITHIN_S = 30.0


def add_each(pointer: AtomicPtr, numbers: range) -> None:
    for number in numbers:
        while True:
            before = pointer.load()
            if pointer.compare_exchange(before, [*before, number])[0]:
                break


@pytest.mark.parametrize("home", [0, 1])
def test_what_many_processes_exchange_is_all_there(settled, home):
    pointer = drust.spawn(AtomicPtr, [], server=home).join(WITHIN_S)
    jobs = [drust.spawn(add_each, pointer, range(at, at + 40), server=at // 40 % 2) for at in (0, 40)]
    threads = [threading.Thread(target=add_each, args=(pointer, range(at, at + 40))) for at in (80, 120)]
    for thread in threads:
        thread.start()
    for ending in (*(thread.join for thread in threads), *(job.join for job in jobs)):
        ending(WITHIN_S)
    numbers = pointer.load()
    assert sorted(numbers) == list(range(160))
    for at in range(0, 160, 40):
        ours = [number for number in numbers if at <= number < at + 40]
        assert ours == sorted(ours), "each sees its own in order"
    assert pointer.server == home
    del pointer, jobs, ending


def test_it_is_compared_by_identity(settled):
    pointer = AtomicPtr({"a": 1})
    first = pointer.load()
    assert pointer.load() is first
    assert pointer.compare_exchange({"a": 1}, {}) == (False, {"a": 1})
    assert pointer.compare_exchange(first, {"b": 2}) == (True, {"a": 1})
    assert pointer.compare_exchange(first, {}) == (False, {"b": 2})
    pointer.store({"a": 1})
    assert pointer.compare_exchange(first, {}) == (False, {"a": 1})
    assert pointer.swap(None) == {"a": 1}
    assert pointer.load() is None
    assert repr(pointer) == "<AtomicPtr on server 0>"
    del pointer


def test_a_load_costs_no_message_here_and_one_round_trip_elsewhere(two_servers, counting):
    here = AtomicPtr("a")
    there = drust.spawn(AtomicPtr, "b", server=1).join(WITHIN_S)
    counters = counting(two_servers)
    assert here.load() == "a"
    assert counters.since()["shared_messages"] == 0
    counters = counting(two_servers)
    assert there.load() == "b"
    assert counters.since()["shared_messages"] == 1


def test_what_cannot_travel_is_refused_and_it_names_what_it_named(settled):
    pointer = AtomicPtr(1)
    for value in (Box(1), [threading.Lock()]):
        with pytest.raises(UnpicklableError):
            pointer.store(value)
    assert pointer.load() == 1
    del pointer, value
