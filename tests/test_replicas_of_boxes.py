"""`Box(x, replicas=1)` in a session without replicas: what it keeps when a server is killed, through all that
gives the Box another block; what is lost beside it; and that a Box that did not ask costs nothing."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import pytest

import drust
from drust import Box, ServerLostError, Session
from drust.engines.ring import Ring
from drust.errors import ConfigError, PoisonedError, WorkerLostError
from drust.server import messages
from drust.testing import account
from fake_cluster import FakeCluster, recovery_of
from looking import wait_until

WITHIN_S = 5.0  # of every wait on a lost server


def make(count: int, value: float, replicas: int | None = None) -> Box:
    return Box(np.full(count, float(value)), replicas=replicas)


def make_many(count: int, replicas: int | None = None) -> list:
    return [make(100, number, replicas) for number in range(count)]


def make_frame() -> Box:
    return Box(pl.DataFrame({"a": np.arange(1000.0), "b": np.arange(1000.0)}), replicas=1)


def make_table() -> Box:
    return Box({"rows": Box(np.full(2000, 1.0)), "value": 1}, replicas=1)


def make_beside_much() -> list:
    """A result of its own block, as it is large: it travels when it is joined."""
    return [make(100, 5, 1), np.zeros(100_000)]


def add(a: np.ndarray, amount: float = 1.0) -> float:
    a += amount
    return float(a[0])


def same(value: Any) -> Any:
    return value


def replace(array: Box) -> Box:
    array.replace(np.full(500, 42.0))
    return array


def write_and_die(a: np.ndarray) -> None:
    a[:] = 9
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_stay(a: np.ndarray) -> None:
    a[:] = -1
    signal.pause()


def drop_and_die(boxes: list) -> None:
    boxes.clear()
    os.kill(os.getpid(), signal.SIGKILL)


def correct(column: Any) -> None:
    column[0][:] += 1


@contextmanager
def cluster(servers: int, replicas: int = 0, **settings: Any) -> Iterator[Session]:
    settings = {"workers": 1, "heap_bytes": "256MiB", **settings}
    with drust.init(servers=servers, replicas=replicas, **settings) as session:
        yield session


def kill(session: Session, server: int) -> None:
    os.kill(session.pids[server], signal.SIGKILL)


def answered_by(session: Session, server: int) -> int | None:
    assert session._cluster._ring is not None
    return session._cluster._ring.table[server].by


def replica_bytes(session: Session, server: int) -> int:
    drust.runtime.current().flush()
    return session.status(server).replica_bytes


def first_of(box: Box) -> float:
    with box.borrow() as a:
        return float(a[0])


# -- what is kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("servers", [2, 3])
def test_a_box_that_asked_survives_its_server_and_one_that_did_not_is_an_error_that_names_both(servers):
    with cluster(servers) as session:
        kept = drust.spawn(make, 1000, 7, 1, server=1).join()
        plain = drust.spawn(make, 1000, 8, server=1).join()
        kill(session, 1)
        began_s = time.monotonic()
        assert first_of(kept) == 7
        with pytest.raises(ServerLostError, match=r"server 1 was lost") as failure, plain.borrow():
            pass
        assert time.monotonic() - began_s < WITHIN_S
        assert "no replica" in str(failure.value)
        assert f"address {plain._pin.pointer[0]:#x}" in failure.value.object
        assert failure.value.server == "server 1"
        assert drust.spawn(add, kept.borrow_mut(), server=servers - 1).join() == 8
        assert first_of(kept) == 8
        wait_until(lambda: answered_by(session, 1) == 2 % servers)


def test_the_choice_moves_with_the_value_to_another_server():
    with cluster(3) as session:
        box = Box(np.full(1000, 1.0), replicas=1)  # at home, whose end is the session's
        drust.spawn(add, box.borrow_mut(), server=1).join()
        assert box.server == 1
        drust.spawn(add, box.borrow_mut(), server=2).join()
        assert box.server == 2
        kill(session, 2)
        assert first_of(box) == 3


def test_the_choice_stays_with_a_box_that_was_given_another_value_by_its_owner_and_by_a_task():
    with cluster(3) as session:
        box = drust.spawn(make, 1000, 1, 1, server=1).join()
        box.replace(np.full(500, 2.0))
        drust.spawn(add, box.borrow_mut(), server=1).join()
        other = drust.spawn(replace, drust.spawn(make, 1000, 1, 1, server=2).join(), server=1).join()
        assert (box.server, other.server) == (1, 1)
        kill(session, 1)
        assert (first_of(box), first_of(other)) == (3, 42)


def test_the_choice_stays_with_a_box_that_is_moved_on_and_with_its_clone():
    with cluster(3) as session:
        box = drust.spawn(make, 1000, 1, 1, server=1).join()
        box = drust.spawn(same, box, server=2).join()
        copy = drust.spawn(same, box.clone(), server=1).join()
        drust.spawn(add, box.borrow_mut(), server=1).join()
        drust.spawn(add, copy.borrow_mut(), 2, server=1).join()
        kill(session, 1)
        assert (first_of(box), first_of(copy)) == (2, 3)


def test_what_was_recovered_from_a_poison_has_a_replica_too():
    with cluster(3) as session:
        box = drust.spawn(make, 1_000_000, 1, 1, server=1).join()
        with pytest.raises(WorkerLostError):
            drust.spawn(write_and_die, box.borrow_mut(), server=1).join()
        with pytest.raises(PoisonedError), box.borrow():
            pass
        drust.spawn(add, box.recover(), server=1).join()
        assert box.server == 1
        kill(session, 1)
        assert first_of(box) == 10


def test_a_frame_and_its_columns_are_kept_as_one():
    with cluster(3) as session:
        frame = drust.spawn(make_frame, server=1).join()
        drust.spawn(correct, frame.column_mut("b"), server=1).join()
        kill(session, 1)
        with frame.borrow() as table:
            assert table["a"].to_list() == list(range(1000))
            assert table["b"].to_list() == list(range(1, 1001))


def test_what_is_inside_a_box_that_asked_is_kept_with_it_and_what_travels_beside_one_as_well():
    with cluster(3) as session:
        table = drust.spawn(make_table, server=1).join()
        beside = drust.spawn(make_beside_much, server=1)
        box, _ = beside.join()
        kill(session, 1)
        with table.borrow() as t, t["rows"].borrow() as rows:
            assert (t["value"], rows[-1]) == (1, 1)
        assert first_of(box) == 5


def test_what_a_task_wrote_in_place_on_a_lost_server_is_as_it_was_lent_and_a_plain_value_is_lost():
    with cluster(2, workers=2) as session:
        kept = drust.spawn(make, 1_000_000, 7, 1, server=1).join()
        plain = drust.spawn(make, 1_000_000, 8, server=1).join()
        tasks = [drust.spawn(write_and_stay, box.borrow_mut(), server=1) for box in (kept, plain)]
        wait_until(lambda: session.status(1).running_tasks == 2)
        kill(session, 1)
        for task in tasks:
            with pytest.raises(ServerLostError, match="write_and_stay"):
                task.join()
        assert first_of(kept) == 7
        with pytest.raises(ServerLostError, match="no replica of that version was kept"):
            first_of(plain)


def test_a_second_loss_is_survived_once_the_first_is_repaired():
    heard: list[object] = []
    with cluster(4, on_event=heard.append) as session:
        boxes = [drust.spawn(make, 1000, value, 1, server=1 + value % 2).join() for value in range(10)]
        kill(session, 1)
        assert first_of(boxes[0]) == 0
        wait_until(lambda: answered_by(session, 1) == 2)
        wait_until(lambda: any(isinstance(event, messages.Protected) for event in heard))
        kill(session, 2)
        assert [first_of(box) for box in boxes] == list(range(10))
        wait_until(lambda: answered_by(session, 1) == 3)


def test_in_a_session_with_replicas_a_box_that_wants_none_has_none():
    with cluster(3, replicas=1) as session:
        before = replica_bytes(session, 2)
        excepted = drust.spawn(make, 1000, 7, 0, server=1).join()
        kept = drust.spawn(make, 1000, 8, server=1).join()
        assert replica_bytes(session, 2) - before == kept._pin.pointer[2]
        kill(session, 1)
        assert first_of(kept) == 8
        with pytest.raises(ServerLostError, match="server 1"):
            first_of(excepted)


# -- who is started again ----------------------------------------------------------------------------------


def test_a_server_without_replicas_is_started_again_beside_one_that_has_some():
    with cluster(4) as session:
        kept = drust.spawn(make, 1000, 7, 1, server=1).join()
        plain = drust.spawn(make, 1000, 8, server=2).join()
        before = session.pids[2]
        kill(session, 2)  # the backup of 1
        with pytest.raises(ServerLostError, match="server 2"):
            first_of(plain)
        wait_until(lambda: session.pids[2] != before and drust.runtime.current().endpoint(2)[2])
        again = drust.spawn(make, 10, 9, 1, server=2).join(timeout=20)
        wait_until(lambda: session.status(3).replica_versions == 2)  # of 1, copied, and of 2
        kill(session, 1)
        assert (first_of(kept), first_of(again)) == (7, 9)
        wait_until(lambda: answered_by(session, 1) == 3)


def test_once_its_replicas_are_dropped_a_server_is_started_again():
    with cluster(2) as session:
        kept = drust.spawn(make, 1000, 7, 1, server=1).join()
        assert session.status(0).replica_versions == 1
        del kept
        wait_until(lambda: replica_bytes(session, 0) == 0)
        before = session.pids[1]
        kill(session, 1)
        wait_until(lambda: session.pids[1] != before and drust.runtime.current().endpoint(1)[2])
        again = drust.spawn(make, 1000, 8, 1, server=1).join(timeout=20)
        kill(session, 1)
        assert first_of(again) == 8
        assert answered_by(session, 1) == 0


def table_of(cluster: FakeCluster, server: int) -> list[messages.Endpoint]:
    sent = cluster.sent[server]
    assert isinstance(sent, messages.Endpoints)
    return sent.endpoints


def test_a_server_of_which_its_backup_has_nothing_is_started_again_and_nobody_waits():
    recovery, _, cluster, ring = recovery_of(4, restarts=True)
    cluster.living.remove(1)
    recovery.lost(1)
    assert table_of(cluster, 0)[1].backup == 2  # whoever asks, waits
    recovery.joined(0, [])
    recovery.joined(3, [])
    assert cluster.started == []  # the backup has not answered yet
    recovery.joined(2, [])
    assert cluster.started == [(1, 2)]
    assert table_of(cluster, 0)[1].backup is None
    recovery.ready(1, "host", 2000)
    assert (ring.table[1].port, ring.table[1].by, ring.table[1].backup) == (2000, None, 2)
    assert ring.table[3].backup == 0


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_of_which_its_backup_has_something_or_does_not_say_is_replaced(answers):
    recovery, loop, cluster, ring = recovery_of(4, restarts=True)
    cluster.living.remove(1)
    recovery.lost(1)
    recovery.joined(0, [])
    recovery.joined(3, [])
    if answers:
        recovery.joined(2, [1])
    else:
        loop.fire()
    recovery.joined(2, [])
    assert cluster.started == []
    assert ring.table[1].by == table_of(cluster, 0)[1].by == 2


def test_the_numbers_that_a_lost_server_answered_for_are_started_again_with_it():
    recovery, _, cluster, ring = recovery_of(4, restarts=True)
    cluster.living.remove(1)
    recovery.lost(1)
    for server in (0, 3):
        recovery.joined(server, [])
    recovery.joined(2, [1])
    recovery.joined(2, [])
    for server in (0, 3):
        recovery.joined(server, [])
    assert ring.table[1].by == 2
    cluster.living.remove(2)
    recovery.lost(2)
    recovery.joined(0, [])
    recovery.joined(3, [])
    assert sorted(cluster.started) == [(1, 2), (2, 2)]


def test_a_backup_stays_the_backup_when_a_lost_one_is_started_again():
    ring = Ring([("host", 1000 + number) for number in range(4)], 0)
    assert ring.table[1].backup == 2
    ring.lose(2)
    assert ring.table[1].backup == 3
    ring.give_up([2])
    ring.restart(2, "host", 2000)
    assert ring.table[1].backup == 3  # what is there need not be copied, nor dropped, again
    assert ring.table[2].backup == 3


# -- what it costs -----------------------------------------------------------------------------------------


SENT = ("replica_messages", "bytes_replicated", "frees_sent", "submit_messages", "complete_messages",
        "read_requests", "write_requests")  # fmt: skip


def what_ten_hand_overs_send(counting: Any, session: Session, box: Box) -> dict[str, int]:
    """Of a value that a task on another server writes and the driver then reads, as all servers count."""
    drust.spawn(add, box.borrow_mut(), server=1).join()
    counted = counting(session)
    for _ in range(10):
        drust.spawn(add, box.borrow_mut(), server=1).join()
        assert first_of(box) > 1
    since = counted.since()
    return {name: since[name] for name in SENT}


def test_a_box_that_did_not_ask_costs_no_message_and_no_byte_beside_one_that_did(counting):
    with cluster(3) as session:
        plain = drust.spawn(make, 1000, 1, server=1).join()
        alone = what_ten_hand_overs_send(counting, session, plain)
        kept = drust.spawn(make, 1000, 1, 1, server=1).join()
        assert replica_bytes(session, 2) == kept._pin.pointer[2]  # to the byte
        # Who owns `kept` is told to its backup some milliseconds later: that may fall into one of two.
        beside = [what_ten_hand_overs_send(counting, session, plain) for _ in range(2)]
        # The first and the last old version may be freed within what is counted, or just outside it.
        assert any(abs(each.pop("frees_sent") - alone["frees_sent"]) <= 1 for each in beside)
        assert {name: alone[name] for name in beside[0]} in beside
        assert alone["replica_messages"] == alone["bytes_replicated"] == 0
        asked = what_ten_hand_overs_send(counting, session, kept)
        assert asked["replica_messages"] == 10
        assert asked["bytes_replicated"] == 10 * kept._pin.pointer[2]


def test_boxes_that_asked_leave_nothing_when_they_are_dropped_whoever_dies():
    with cluster(3) as session:
        drust.spawn(make, 10, 1, server=1).join()
        drust.spawn(make_many, 1, server=1).join()
        with pytest.raises(WorkerLostError):
            drust.spawn(drop_and_die, [], server=1).join()
        before = account.take_at_rest(session)
        boxes = drust.spawn(make_many, 10, 1, server=1).join()
        extents = sum(box._pin.pointer[2] for box in boxes)
        assert replica_bytes(session, 2) == extents
        with pytest.raises(WorkerLostError):
            drust.spawn(drop_and_die, boxes, server=1).join()
        del boxes
        account.check_settled(session, before)
        assert replica_bytes(session, 2) == 0


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [2, -1, True, 1.0, "1"])
def test_another_number_of_replicas_is_an_error_that_says_which_there_are(two_servers, replicas):
    before = account.take_at_rest(two_servers)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        Box(np.zeros(10), replicas=replicas)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        drust.empty(10, replicas=replicas)
    account.check_settled(two_servers, before)


def test_a_session_of_one_server_says_what_a_replica_needs(one_server):
    with pytest.raises(ConfigError, match=r"drust.init\(servers=2\)"):
        Box([1], replicas=1)
    assert first_of(Box(np.ones(3), replicas=0)) == 1
    assert first_of(drust.zeros(3, replicas=0)) == 0
