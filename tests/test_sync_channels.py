"""channel(): order, bounds, closing, and messages of senders and receivers that die."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import drust
from drust import AtomicBool, AtomicInt, BorrowTimeoutError, Box, ChannelClosedError, WorkerLostError, channel
from drust.errors import ConfigError, MovedError, QueueFullError, UnpicklableError
from looking import wait_until

WITHIN_S = 30.0


def make_channel(capacity=None):
    return channel(capacity)


def send_all(sender, name: str, count: int) -> None:
    for number in range(count):
        sender.send((name, number), timeout=WITHIN_S)


def receive_all(receiver) -> list:
    return list(receiver)


def receive_one(receiver):
    return receiver.recv(timeout=WITHIN_S)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def send_and_die(sender, value) -> None:
    sender.send(value)
    die()


def hold_and_die(end, held: AtomicBool) -> None:
    held.store(True)
    die()


@pytest.mark.parametrize("home", [0, 1])
def test_values_come_in_the_order_in_which_they_were_sent(settled, home):
    sender, receiver = drust.spawn(make_channel, server=home).join(WITHIN_S)
    for number in range(50):
        sender.send({"n": number})
    assert [receiver.recv()["n"] for _ in range(50)] == list(range(50))
    with pytest.raises(BorrowTimeoutError):
        receiver.try_recv()


@pytest.mark.parametrize("capacity", [None, 1, 7])
@pytest.mark.parametrize("home", [0, 1])
def test_each_value_of_many_senders_is_received_once_by_one_of_many_receivers(settled, home, capacity):
    sender, receiver = drust.spawn(make_channel, capacity, server=home).join(WITHIN_S)
    receivers = [drust.spawn(receive_all, receiver, server=server) for server in (0, 1)]
    senders = [drust.spawn(send_all, sender, name, 30, server=server) for server, name in enumerate("ab")]
    send_all(sender, "c", 30)
    for job in senders:
        job.join(WITHIN_S)
    del sender, job, senders  # the last one: both loops end
    received = [job.join(WITHIN_S) for job in receivers]
    assert sorted(value for part in received for value in part) == [(n, i) for n in "abc" for i in range(30)]
    for part in received:
        for name in "abc":
            numbers = [number for other, number in part if other == name]
            assert numbers == sorted(numbers)


@pytest.mark.parametrize("home", [0, 1])
def test_a_bounded_channel_takes_no_more_than_its_bound(settled, home):
    sender, receiver = drust.spawn(make_channel, 2, server=home).join(WITHIN_S)
    sender.send(1)
    sender.try_send(2)
    with pytest.raises(QueueFullError):
        sender.try_send(3)
    with pytest.raises(BorrowTimeoutError, match="room"):
        sender.send(3, timeout=0.05)
    assert receiver.recv() == 1
    sender.send(3)
    assert [receiver.recv(), receiver.recv()] == [2, 3]


@pytest.mark.parametrize("home", [0, 1])
def test_a_sender_that_waits_for_room_goes_on_when_there_is_some(two_servers, home):
    sender, receiver = drust.spawn(make_channel, 1, server=home).join(WITHIN_S)
    job = drust.spawn(send_all, sender, "x", 20, server=1)
    assert [receiver.recv(timeout=WITHIN_S)[1] for _ in range(20)] == list(range(20))
    job.join(WITHIN_S)


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("server", [0, 1])
def test_boxes_travel_as_pointers(settled, counting, home, server):
    sender, receiver = drust.spawn(make_channel, server=home).join(WITHIN_S)
    box = Box(np.arange(10_000.0))
    pointer = box._publish().pointer
    count = counting(settled)
    sender.send({"box": box})
    assert count.since()["bytes_sent"] < 10_000
    with pytest.raises(MovedError), box.borrow():
        pass
    got = drust.spawn(receive_one, receiver, server=server).join(WITHIN_S)["box"]
    assert got._publish().pointer == pointer
    with got.borrow() as array:
        assert array.sum() == 49995000.0


def test_a_value_that_cannot_be_sent_stays_with_its_sender(settled):
    sender, receiver = channel(1)
    box = Box({"n": 1})
    with pytest.raises(UnpicklableError):
        sender.send([box, threading.Lock()])
    sender.send("full")
    with pytest.raises(QueueFullError):
        sender.try_send(box)
    del receiver
    wait_until_closed(sender)
    with pytest.raises(ChannelClosedError):
        sender.send(box)
    with box.borrow_mut() as value:
        value["n"] = 2


def wait_until_closed(sender) -> None:
    def is_closed() -> bool:
        try:
            sender.try_send(None)
        except QueueFullError:
            return False
        except ChannelClosedError:
            return True
        return False

    wait_until(is_closed)


@pytest.mark.parametrize("home", [0, 1])
def test_a_receiver_gets_all_values_and_then_hears_that_the_senders_are_gone(settled, home):
    sender, receiver = drust.spawn(make_channel, server=home).join(WITHIN_S)
    sender.send(1)
    sender.send(2)
    del sender
    assert list(receiver) == [1, 2]
    with pytest.raises(ChannelClosedError, match="other end"):
        receiver.recv()


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("server", [0, 1])
def test_the_death_of_the_last_sender_closes_the_channel_and_loses_nothing_it_sent(two_servers, home, server):
    sender, receiver = drust.spawn(make_channel, server=home).join(WITHIN_S)
    job = drust.spawn(send_and_die, sender, "last words", server=server)
    del sender
    assert receiver.recv(timeout=WITHIN_S) == "last words"
    with pytest.raises(WorkerLostError):
        job.join(WITHIN_S)
    began_s = time.monotonic()
    with pytest.raises(ChannelClosedError):
        receiver.recv(timeout=WITHIN_S)
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize("home", [0, 1])
def test_the_death_of_the_last_receiver_ends_a_send_that_waits(two_servers, home):
    sender, receiver = drust.spawn(make_channel, 1, server=home).join(WITHIN_S)
    held = AtomicBool()
    sender.send(1)
    job = drust.spawn(hold_and_die, receiver, held, server=1)
    del receiver
    with pytest.raises(ChannelClosedError):
        sender.send(2, timeout=WITHIN_S)
    with pytest.raises(WorkerLostError):
        job.join(WITHIN_S)


def test_what_is_left_in_a_channel_goes_with_it(settled):
    for home in (0, 1):
        sender, receiver = drust.spawn(make_channel, server=home).join(WITHIN_S)
        for number in range(3):
            sender.send({"box": Box(np.zeros(1000)), "count": AtomicInt(number)})
        del sender, receiver


def test_handles_travel_in_messages(settled):
    requests, inbox = channel()
    replies, answers = channel()
    requests.send((5, replies))
    number, back = inbox.recv()
    back.send(number * 2)
    assert answers.recv() == 10
    assert back is replies


def test_a_large_array_is_received_without_a_copy_on_its_host(one_server, counting):
    sender, receiver = channel()
    sender.send(np.arange(100_000.0))
    count = counting(one_server)
    array = receiver.recv()
    assert array.sum() == 4999950000.0
    array[0] = 1
    assert count.since()["bytes_copied"] == 0


def test_a_channel_needs_room_for_one_value(one_server):
    with pytest.raises(ConfigError, match="capacity"):
        channel(0)
