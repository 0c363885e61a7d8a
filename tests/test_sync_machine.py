"""Hypothesis: a Mutex, an RwLock and a channel whose users die within steps agree with plain values."""

import os
import signal
from collections import deque

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import initialize, invariant, precondition, rule

import drust
from drust import (
    Barrier,
    BorrowTimeoutError,
    Mutex,
    PoisonedError,
    Receiver,
    RwLock,
    Sender,
    WorkerLostError,
    channel,
)
from drust.errors import BarrierBrokenError, QueueFullError
from drust.testing import faults
from dying_machine import WITHIN_S, Machine, run

NOTHING = "nothing"
EXAMPLES = 8

servers = st.integers(0, 1)
items = st.integers(0, 9)


def points(*names: str) -> st.SearchStrategy[str]:
    return st.sampled_from([point for point in faults.POINTS if point.startswith(names)])


# -- locks --------------------------------------------------------------------------------------------------


def guard_of(lock: Mutex | RwLock, *, recovers: bool = False):
    if recovers:
        return lock.recover(timeout=WITHIN_S)
    return lock.lock(timeout=WITHIN_S) if isinstance(lock, Mutex) else lock.write(timeout=WITHIN_S)


def append(lock: Mutex | RwLock, item: int) -> list[int]:
    with guard_of(lock) as value:
        value.append(item)
        return list(value)


def append_and_raise(lock: Mutex | RwLock, item: int) -> None:
    with guard_of(lock) as value:
        value.append(item)
        raise ZeroDivisionError


def append_and_die(lock: Mutex | RwLock, item: int) -> None:
    with guard_of(lock) as value:
        value.append(item)
        os.kill(os.getpid(), signal.SIGKILL)


def look(lock: Mutex | RwLock) -> list[int]:
    with lock.lock(timeout=WITHIN_S) if isinstance(lock, Mutex) else lock.read(timeout=WITHIN_S) as value:
        return list(value)


class LockMachine(Machine):
    """A lock of a list. What a dead holder had done is written back or not; the lock is free again."""

    kind: type = Mutex

    @initialize(home=servers)
    def start(self, home: int) -> None:
        self.ours = drust.spawn(self.kind, [], server=home).join(WITHIN_S)
        self.plain: list[int] = []
        self.is_poisoned = False

    @precondition(lambda self: not self.is_poisoned)
    @rule(item=items, server=st.none() | servers)
    def write(self, item: int, server: int | None) -> None:
        self.plain.append(item)
        if server is None:
            assert append(self.ours, item) == self.plain
        else:
            assert drust.spawn(append, self.ours, item, server=server).join(WITHIN_S) == self.plain

    @precondition(lambda self: not self.is_poisoned)
    @rule(server=servers)
    def read_in_a_task(self, server: int) -> None:
        assert drust.spawn(look, self.ours, server=server).join(WITHIN_S) == self.plain

    @precondition(lambda self: not self.is_poisoned)
    @rule(item=items, server=servers)
    def raise_inside(self, item: int, server: int) -> None:
        with pytest.raises(ZeroDivisionError):
            drust.spawn(append_and_raise, self.ours, item, server=server).join(WITHIN_S)
        self.is_poisoned = True
        self.settle([self.plain, [*self.plain, item]])

    @precondition(lambda self: not self.is_poisoned)
    @rule(item=items, server=servers)
    def die_inside(self, item: int, server: int) -> None:
        with pytest.raises(WorkerLostError):
            drust.spawn(append_and_die, self.ours, item, server=server).join(WITHIN_S)
        Machine.deaths += 1
        self.is_poisoned = True
        self.settle([self.plain])

    @precondition(lambda self: not self.is_poisoned)
    @rule(
        item=items,
        server=servers,
        point=points("shared.lock", "shared.line", "shared.value"),
        nth=st.integers(1, 3),
    )
    def die_in_a_step(self, item: int, server: int, point: str, nth: int) -> None:
        is_dead, _ = self.run_until_dead(point, nth, server, append, self.ours, item)
        if not is_dead:
            self.plain.append(item)
            return
        try:
            with guard_of(self.ours):
                pass
        except PoisonedError:
            self.is_poisoned = True
        self.settle([self.plain, [*self.plain, item]])

    @precondition(lambda self: not self.is_poisoned)
    @rule(server=servers, point=points("shared.read", "shared.lock"), nth=st.integers(1, 2))
    def die_in_a_read(self, server: int, point: str, nth: int) -> None:
        is_dead, answer = self.run_until_dead(point, nth, server, look, self.ours)
        assert is_dead or answer == self.plain
        if is_dead and self.kind is Mutex:
            try:
                with guard_of(self.ours):
                    pass
            except PoisonedError:
                self.is_poisoned = True

    @precondition(lambda self: self.is_poisoned)
    @rule(server=st.none() | servers)
    def others_are_told(self, server: int | None) -> None:
        with pytest.raises(PoisonedError):
            look(self.ours) if server is None else drust.spawn(look, self.ours, server=server).join(WITHIN_S)

    @precondition(lambda self: self.is_poisoned)
    @rule(item=items)
    def accept(self, item: int) -> None:
        with guard_of(self.ours, recovers=True) as value:
            assert value == self.plain
            value.append(item)
        self.plain.append(item)
        self.is_poisoned = False

    def settle(self, possible: list[list[int]]) -> None:
        """What the value is now is one of these; the lock is left as it was, poisoned or not."""
        with guard_of(self.ours, recovers=True) as value:
            left = list(value)
        assert left in possible
        self.plain = left
        self.is_poisoned = False

    @invariant()
    def it_is_whole(self) -> None:
        if hasattr(self, "ours") and not self.is_poisoned:
            assert look(self.ours) == self.plain


class RwLockMachine(LockMachine):
    """The same, of an RwLock: readers that die poison nothing."""

    kind = RwLock


def test_a_mutex_whose_users_die_agrees_with_a_plain_value() -> None:
    run(LockMachine, EXAMPLES)


def test_an_rwlock_whose_users_die_agrees_with_a_plain_value() -> None:
    run(RwLockMachine, EXAMPLES)


# -- a channel ----------------------------------------------------------------------------------------------


def send(sender: Sender, item: int) -> bool:
    try:
        sender.try_send(item)
    except QueueFullError:
        return False
    return True


def receive(receiver: Receiver) -> object:
    try:
        return receiver.recv(timeout=0)
    except BorrowTimeoutError:
        return NOTHING


def make_channel(capacity: int) -> tuple[Sender, Receiver]:
    return channel(capacity)


class ChannelMachine(Machine):
    """A channel of three cells. What a dead process was about to send or had taken is there or not, whole."""

    CELLS = 3

    @initialize(home=servers)
    def start(self, home: int) -> None:
        self.sender, self.receiver = drust.spawn(make_channel, self.CELLS, server=home).join(WITHIN_S)
        self.plain: deque[int] = deque()

    @rule(item=items, server=st.none() | servers)
    def send(self, item: int, server: int | None) -> None:
        has_room = len(self.plain) < self.CELLS
        if server is None:
            assert send(self.sender, item) == has_room
        else:
            assert drust.spawn(send, self.sender, item, server=server).join(WITHIN_S) == has_room
        if has_room:
            self.plain.append(item)

    @rule(server=st.none() | servers)
    def receive(self, server: int | None) -> None:
        expected = self.plain.popleft() if self.plain else NOTHING
        if server is None:
            assert receive(self.receiver) == expected
        else:
            assert drust.spawn(receive, self.receiver, server=server).join(WITHIN_S) == expected

    @rule(item=items, server=servers, point=points("shared.channel", "shared.hold"), nth=st.integers(1, 2))
    def die_while_sending(self, item: int, server: int, point: str, nth: int) -> None:
        is_dead, was_sent = self.run_until_dead(point, nth, server, send, self.sender, item)
        before = list(self.plain)
        has_room = len(before) < self.CELLS
        if is_dead:
            self.settle([before, [*before, item]] if has_room else [before])
        else:
            assert was_sent == has_room
            if has_room:
                self.plain.append(item)

    @rule(server=servers, point=points("shared.channel", "shared.hold"), nth=st.integers(1, 2))
    def die_while_receiving(self, server: int, point: str, nth: int) -> None:
        is_dead, received = self.run_until_dead(point, nth, server, receive, self.receiver)
        before = list(self.plain)
        if is_dead:
            self.settle([before, before[1:]])
        else:
            assert received == (self.plain.popleft() if self.plain else NOTHING)

    def settle(self, possible: list[list[int]]) -> None:
        """What is in it is one of these. It is taken out, and put in again."""
        left: list[object] = []
        while (item := self.receive_in_time(wanted=max(map(len, possible)) > len(left))) is not NOTHING:
            left.append(item)
        assert left in possible
        for item in left:
            assert send(self.sender, item)
        self.plain = deque(left)

    def receive_in_time(self, *, wanted: bool) -> object:
        """What a dead one had taken comes back when it has been reaped: within a second."""
        try:
            return self.receiver.recv(timeout=1.0 if wanted else 0)
        except BorrowTimeoutError:
            return NOTHING


def test_a_channel_whose_users_die_agrees_with_a_queue() -> None:
    run(ChannelMachine, EXAMPLES)


# -- a barrier ----------------------------------------------------------------------------------------------


def pass_it(barrier: Barrier, rounds: int) -> list[int]:
    return [barrier.wait(WITHIN_S) for _ in range(rounds)]


def arrive_and_die(barrier: Barrier, rounds: int) -> None:
    for _ in range(rounds):
        barrier.wait(WITHIN_S)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_a_little(barrier: Barrier) -> str:
    try:
        barrier.wait(0.2)
    except BarrierBrokenError:
        return "broken"
    return "passed"


class BarrierMachine(Machine):
    """A barrier of three, here and on both servers. Who dies is missed; who waits for it finds it broken."""

    @initialize(home=servers)
    def start(self, home: int) -> None:
        self.ours = drust.spawn(Barrier, 3, server=home).join(WITHIN_S)
        self.is_broken = False

    @precondition(lambda self: not self.is_broken)
    @rule(rounds=st.integers(1, 4))
    def all_pass(self, rounds: int) -> None:
        jobs = [drust.spawn(pass_it, self.ours, rounds, server=server) for server in (0, 1)]
        arrivals = [pass_it(self.ours, rounds), *(job.join(WITHIN_S) for job in jobs)]
        for of_a_round in zip(*arrivals, strict=True):
            assert sorted(of_a_round) == [0, 1, 2]

    @precondition(lambda self: not self.is_broken)
    @rule(rounds=st.integers(0, 2), server=servers)
    def one_dies(self, rounds: int, server: int) -> None:
        dying = drust.spawn(arrive_and_die, self.ours, rounds, server=server)
        other = drust.spawn(pass_it, self.ours, rounds, server=1 - server)
        assert len(pass_it(self.ours, rounds)) == len(other.join(WITHIN_S)) == rounds
        with pytest.raises(WorkerLostError):
            dying.join(WITHIN_S)
        Machine.deaths += 1
        late = drust.spawn(wait_a_little, self.ours, server=1 - server)
        assert [wait_a_little(self.ours), late.join(WITHIN_S)] == ["broken", "broken"]
        self.is_broken = True

    @precondition(lambda self: self.is_broken)
    @rule(server=servers)
    def it_stays_broken(self, server: int) -> None:
        assert drust.spawn(wait_a_little, self.ours, server=server).join(WITHIN_S) == "broken"


def test_a_barrier_of_which_one_dies_is_broken_for_all() -> None:
    run(BarrierMachine, EXAMPLES)
