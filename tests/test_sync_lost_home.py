"""Shared state when a server dies: its objects are lost, what its processes held elsewhere is given back."""

import os
import signal
import threading
import time

import pytest

import drust
from drust import AtomicBool, AtomicInt, Mutex, PoisonedError, channel
from drust.errors import ClusterError, ServerLostError

WITHIN_S = 30.0
BOUND_S = 6.0  # of a wait for a lost server


def hold_until_killed(mutex: Mutex, held: AtomicBool) -> None:
    with mutex.lock():
        held.store(True)
        held.notify_all()
        threading.Event().wait(WITHIN_S)


def make_channel():
    return channel()


def ended_with(work) -> list:
    """What the thread that runs `work` raised, once it has."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the test looks
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return [thread, raised]


def test_every_wait_at_a_lost_home_ends_and_says_so():
    with drust.init(servers=2, workers=1, heap_bytes="256MiB") as session:
        mutex = drust.spawn(Mutex, 0, server=1).join(WITHIN_S)
        atomic = drust.spawn(AtomicInt, server=1).join(WITHIN_S)
        _, receiver = drust.spawn(make_channel, server=1).join(WITHIN_S)
        held = AtomicBool()
        job = drust.spawn(hold_until_killed, mutex, held, server=1)
        held.wait(False, timeout=WITHIN_S)
        waits = [
            ended_with(lambda: mutex.lock().__enter__()),
            ended_with(lambda: atomic.wait(0)),
            ended_with(receiver.recv),
        ]
        began_s = time.monotonic()
        os.kill(session.pids[1], signal.SIGKILL)
        for thread, raised in waits:
            thread.join(WITHIN_S)
            assert not thread.is_alive()
            assert isinstance(raised[0], ClusterError)
        assert time.monotonic() - began_s < BOUND_S
        with pytest.raises(ServerLostError):
            atomic.fetch_add()
        with pytest.raises(ClusterError):
            job.join(WITHIN_S)


def test_what_processes_of_a_lost_server_held_elsewhere_is_given_back():
    with drust.init(servers=2, workers=1, heap_bytes="256MiB") as session:
        mutex, held = Mutex({"n": 1}), AtomicBool()
        job = drust.spawn(hold_until_killed, mutex, held, server=1)
        held.wait(False, timeout=WITHIN_S)
        os.kill(session.pids[1], signal.SIGKILL)
        with pytest.raises(PoisonedError), mutex.lock(timeout=BOUND_S):
            pass
        with mutex.recover() as value:
            assert value == {"n": 1}
        with pytest.raises(ClusterError):
            job.join(WITHIN_S)
