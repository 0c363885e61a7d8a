"""What costs a message and what does not, proved by the counters."""

import numpy as np

import drust
from drust import Box


def first(a: np.ndarray) -> float:
    return float(a[0])


def keep(values: list[float]) -> Box:
    return Box(np.array(values))


def nothing() -> None:
    pass


def test_access_in_the_own_partition_sends_no_message(two_servers, counting):
    counters = counting(two_servers)
    box = Box(np.zeros(1000))
    for _ in range(10):
        with box.borrow_mut() as a:
            a += 1
        assert drust.spawn(first, box.borrow(), server=0).join() >= 1
    assert counters.messages() == 0


def test_a_write_sends_no_message_to_earlier_readers(two_servers, counting):
    box = Box(np.zeros(1000))
    for server in (0, 1):
        drust.spawn(first, box.borrow(), server=server).join()
    counters = counting(two_servers)
    with box.borrow_mut() as a:
        a[0] = 7
    assert counters.messages() == 0
    assert drust.spawn(first, box.borrow(), server=1).join() == 7


def test_a_version_is_fetched_once_a_host(two_servers, counting):
    box = Box(np.zeros(1000))
    drust.spawn(first, box.borrow(), server=1).join()
    counters = counting(two_servers)
    for _ in range(5):
        drust.spawn(first, box.borrow(), server=1).join()
    assert counters.since()["read_requests"] == 0


def test_a_remote_value_is_read_once_and_then_borrowed_for_nothing(two_servers, counting):
    box = drust.spawn(keep, [1.0, 2.0], server=1).join()
    assert box.server == 1
    counters = counting(two_servers)
    for _ in range(5):
        with box.borrow() as a:
            assert a.tolist() == [1.0, 2.0]
    since = counters.since()
    assert since["read_requests"] == 1
    assert counters.messages() == 1


def test_a_remote_write_is_one_read_and_one_free(two_servers, counting):
    box = drust.spawn(keep, [1.0, 2.0], server=1).join()
    counters = counting(two_servers)
    with box.borrow_mut() as a:
        a += 1
    since = counters.since()
    assert (since["read_requests"], since["frees_sent"]) == (1, 1)
    assert box.server == 0
    with box.borrow_mut() as a:
        a += 1
    assert counters.since()["read_requests"] == 1


def test_moving_a_box_to_another_server_leaves_its_value_where_it_is(two_servers, counting):
    box = drust.spawn(keep, [1.0] * 100_000, server=1).join()
    counters = counting(two_servers)
    box = drust.spawn(pass_on, box, server=0).join()
    assert box.server == 1
    assert counters.since()["read_requests"] == 0


def pass_on(box: Box) -> Box:
    return box


def test_nothing_is_encoded_before_it_is_lent(one_server, counting):
    before = drust.codecs.statistics()["encodes"]
    box = Box({"a": [1, 2, 3]})
    for _ in range(3):
        with box.borrow_mut() as table:
            table["a"].append(4)
    with box.borrow() as table:
        assert len(table["a"]) == 6
    assert drust.codecs.statistics()["encodes"] == before
    sizes = [drust.spawn(len, box.borrow()).join() for _ in range(3)]
    assert sizes == [1, 1, 1]
    # one for the value, one for each call's arguments
    assert drust.codecs.statistics()["encodes"] == before + 1 + 3
