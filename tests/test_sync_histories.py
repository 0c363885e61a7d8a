"""Histories of shared objects are linearizable; the checker accepts what is and rejects what is not."""

import itertools
import random
from contextlib import suppress
from math import inf

import pytest

import drust
from drust import AtomicInt, BorrowTimeoutError, Mutex, channel
from drust.errors import QueueFullError
from drust.testing import history
from drust.testing.history import Atomic, NotLinearizable, Operation, Queue, Recorder, Register

WITHIN_S = 60.0


def op(name, arguments, result, called, returned) -> Operation:
    return Operation(name, arguments, result, called, returned)


# -- the checker -------------------------------------------------------------------------------------------


def test_operations_that_overlap_may_be_in_either_order():
    for result in (0, 1):
        history.linearize([op("store", (1,), None, 0, 3), op("load", (), result, 1, 2)], Atomic())


def test_a_read_of_what_was_overwritten_before_it_began_is_rejected():
    with pytest.raises(NotLinearizable, match="load"):
        history.linearize([op("store", (1,), None, 0, 1), op("load", (), 0, 2, 3)], Atomic())


def test_a_lost_update_is_rejected():
    both = [op("fetch_add", (1,), 0, 0, 3), op("fetch_add", (1,), 0, 1, 2)]
    with pytest.raises(NotLinearizable):
        history.linearize(both, Atomic())


def test_a_value_received_twice_or_out_of_order_is_rejected():
    sent = [op("send", ("a",), True, 0, 1), op("send", ("b",), True, 2, 3)]
    history.linearize([*sent, op("recv", (), "a", 4, 5), op("recv", (), "b", 6, 7)], Queue())
    for first, second in (("a", "a"), ("b", "a")):
        with pytest.raises(NotLinearizable):
            history.linearize([*sent, op("recv", (), first, 4, 5), op("recv", (), second, 6, 7)], Queue())


def test_an_operation_of_a_process_that_died_may_have_happened_or_not():
    for result in (0, 1):
        history.linearize([op("store", (1,), None, 0, inf), op("load", (), result, 5, 6)], Atomic())
    with pytest.raises(NotLinearizable):
        history.linearize([op("load", (), 1, 0, 1), op("store", (1,), None, 2, inf)], Atomic())


def test_a_wrong_answer_anywhere_in_a_right_history_is_found():
    chosen = random.Random(7)
    for _ in range(30):
        clock = itertools.count()
        state, operations = 0, []
        for _ in range(12):
            amount = chosen.randrange(1, 4)
            operations.append(op("fetch_add", (amount,), state, next(clock), next(clock)))
            state += amount
        history.linearize(operations, Atomic())
        wrong = chosen.randrange(len(operations))
        right = operations[wrong]
        spoiled = op("fetch_add", right.arguments, -1, right.called, right.returned)
        with pytest.raises(NotLinearizable):
            history.linearize([*operations[:wrong], spoiled, *operations[wrong + 1 :]], Atomic())


# -- what is checked ---------------------------------------------------------------------------------------


def use_atomic(atomic: AtomicInt, process: int, seed: int) -> Recorder:
    chosen, recorder = random.Random(seed), Recorder(process)
    for _ in range(12):
        match chosen.randrange(4):
            case 0:
                with recorder.calling("load") as got:
                    got.append(atomic.load())
            case 1:
                with recorder.calling("fetch_add", 1) as got:
                    got.append(atomic.fetch_add(1))
            case 2:
                expected, value = chosen.randrange(5), chosen.randrange(5)
                with recorder.calling("compare_exchange", expected, value) as got:
                    got.append(atomic.compare_exchange(expected, value))
            case _:
                value = chosen.randrange(5)
                with recorder.calling("exchange", value) as got:
                    got.append(atomic.exchange(value))
    return recorder


def use_mutex(mutex: Mutex, process: int) -> Recorder:
    recorder = Recorder(process)
    for number in range(8):
        item = (process, number)
        with recorder.calling("append", item) as got, mutex.lock() as items:
            got.append(tuple(items))
            items.append(item)
    return recorder


def use_channel(ends, process: int, seed: int) -> Recorder:
    (sender, receiver), chosen, recorder = ends, random.Random(seed), Recorder(process)
    for number in range(10):
        if chosen.randrange(2):
            with suppress(QueueFullError), recorder.calling("send", (process, number)) as got:
                sender.try_send((process, number))
                got.append(True)
        else:
            with recorder.calling("recv") as got:
                try:
                    got.append(receiver.try_recv())
                except BorrowTimeoutError:
                    got.append(None)
    return recorder


def make_ends():
    return channel(3)


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_histories_of_an_atomic_are_linearizable(two_servers, home, seed):
    atomic = drust.spawn(AtomicInt, server=home).join(WITHIN_S)
    jobs = [drust.spawn(use_atomic, atomic, server, seed * 10 + server, server=server) for server in (0, 1)]
    mine = use_atomic(atomic, 2, seed * 10 + 2)
    history.linearize(history.merged([mine, *(job.join(WITHIN_S) for job in jobs)]), Atomic())


@pytest.mark.parametrize("home", [0, 1])
def test_histories_of_a_value_behind_a_mutex_are_linearizable(two_servers, home):
    mutex = drust.spawn(Mutex, [], server=home).join(WITHIN_S)
    jobs = [drust.spawn(use_mutex, mutex, server, server=server) for server in (0, 1)]
    mine = use_mutex(mutex, 2)
    history.linearize(history.merged([mine, *(job.join(WITHIN_S) for job in jobs)]), Register())


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("seed", range(2))
def test_histories_of_a_bounded_channel_are_linearizable(two_servers, home, seed):
    ends = drust.spawn(make_ends, server=home).join(WITHIN_S)
    jobs = [drust.spawn(use_channel, ends, server, seed * 10 + server, server=server) for server in (0, 1)]
    mine = use_channel(ends, 2, seed * 10 + 2)
    history.linearize(history.merged([mine, *(job.join(WITHIN_S) for job in jobs)]), Queue(3))
