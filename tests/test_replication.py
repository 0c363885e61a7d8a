"""A server with replicas is killed: what any other server could have seen is read, changed and dropped as
before, within seconds; nothing is left behind; and without replicas nothing of all this costs a message."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import drust
from drust import Box, ServerLostError, Session
from drust.bench import replication
from drust.config import Config
from drust.engines.ring import Ring
from drust.errors import ConfigError, WorkerLostError
from drust.server import messages
from fake_cluster import recovery_of
from looking import wait_until

WITHIN_S = 5.0  # of every wait on a lost server


def make(count: int, value: float, replicas: int | None = None) -> Box:
    return Box(np.full(count, float(value)), replicas=replicas)


def make_table(value: float) -> Box:
    return Box({"rows": Box(np.full(2000, float(value))), "value": value})


def add(a: np.ndarray, amount: float = 1.0) -> float:
    a += amount
    return float(a[0])


def add_to_table(table: dict, amount: float = 1.0) -> None:
    table["value"] += amount
    with table["rows"].borrow_mut() as rows:
        rows += amount


def first_of(a: np.ndarray) -> float:
    return float(a[0])


@contextmanager
def cluster(servers: int, workers: int = 1, replicas: int = 1) -> Iterator[Session]:
    with drust.init(servers=servers, workers=workers, heap_bytes="256MiB", replicas=replicas) as session:
        yield session


def kill(session: Session, server: int) -> None:
    os.kill(session.pids[server], signal.SIGKILL)


def killer_of(pid: int, delay_s: float) -> "subprocess.Popen[bytes]":
    """A process that kills another one, so long after its release."""
    code = f"import os, time; input(); time.sleep({delay_s}); os.kill({pid}, 9)"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def release(killer: "subprocess.Popen[bytes]") -> None:
    assert killer.stdin is not None
    killer.stdin.write(b"\n")
    killer.stdin.close()


def versions(session: Session, server: int) -> int:
    drust.runtime.current().flush()
    return session.status(server).replica_versions


def is_protected(session: Session) -> bool:
    return not session._cluster.unprotected


@pytest.mark.parametrize("servers", [2, 3])
def test_values_of_a_killed_server_are_read_changed_and_dropped_as_before(servers):
    with cluster(servers) as session:
        at_start = [session.status(server).replica_versions for server in range(servers)]
        blocks = drust.runtime.current().live_blocks()
        small = [drust.spawn(make, 10, value, server=1).join() for value in range(20)]
        large = drust.spawn(make, 1_000_000, 7, server=1).join()
        table = drust.spawn(make_table, 3, server=1).join()
        drust.spawn(add, large.borrow_mut(), server=1).join()  # in place
        drust.spawn(add_to_table, table.borrow_mut(), server=1).join()
        kill(session, 1)
        began_s = time.monotonic()
        for value, box in enumerate(small):
            with box.borrow() as a:
                assert (a == value).all()
        assert time.monotonic() - began_s < WITHIN_S
        with large.borrow() as a:
            assert (a == 8).all()
        with table.borrow() as t, t["rows"].borrow() as rows:
            assert t["value"] == 4
            assert (rows == 4).all()
        with small[3].borrow_mut() as a:
            a += 10
        assert drust.spawn(add, small[4].borrow_mut(), server=servers - 1).join() == 5
        with small[3].borrow() as a, small[4].borrow() as b:
            assert (a[0], b[0]) == (13, 5)
        successor = 2 % servers
        wait_until(lambda: session._cluster._ring.table[1].by == successor)
        del small, large, table, box, a, b, t, rows
        wait_until(lambda: versions(session, successor) == at_start[successor])
        drust.runtime.current().evict(2**40)
        wait_until(lambda: drust.runtime.current().live_blocks() <= blocks)


def test_tasks_for_a_lost_server_run_at_its_successor():
    with cluster(3) as session:
        box = drust.spawn(make, 10, 1, server=1).join()
        kill(session, 1)
        with box.borrow() as a:
            assert a[0] == 1
        assert drust.spawn_to(box, add, box.borrow_mut()).join() == 2
        assert drust.spawn(os.getpid, server=1).join() == drust.spawn(os.getpid, server=2).join()
        with pytest.raises(ServerLostError, match="server 2 has its replicas"):
            session.status(1)


def test_a_task_that_ran_on_a_lost_server_fails_and_what_it_wrote_in_place_is_as_it_was():
    with cluster(2) as session:
        box = drust.spawn(make, 1_000_000, 7, server=1).join()
        task = drust.spawn(fill_and_stay, box.borrow_mut(), server=1)
        wait_until(lambda: session.status(1).running_tasks == 1)
        kill(session, 1)
        began_s = time.monotonic()
        with pytest.raises(ServerLostError, match="fill_and_stay"):
            task.join()
        with box.borrow() as a:
            assert (a == 7).all()
        assert time.monotonic() - began_s < WITHIN_S


def fill_and_stay(a: np.ndarray) -> None:
    a[:] = -1
    signal.pause()


def test_a_second_loss_is_survived_once_the_first_is_repaired():
    with cluster(3) as session:
        boxes = [drust.spawn(make, 1000, value, server=1 + value % 2).join() for value in range(20)]
        wait_until(lambda: is_protected(session))
        kill(session, 1)
        with boxes[0].borrow() as a:
            assert a[0] == 0
        wait_until(lambda: session._cluster._ring.table[1].by == 2)
        wait_until(lambda: 1 not in session._cluster.unprotected)
        kill(session, 2)
        for value, box in enumerate(boxes):
            with box.borrow() as a:
                assert (a == value).all()


def test_the_loss_of_a_backup_is_survived_and_the_next_one_has_all():
    with cluster(3) as session:
        boxes = [drust.spawn(make, 1000, value, server=1).join() for value in range(20)]
        kill(session, 2)
        wait_until(lambda: session._cluster._ring.table[1].backup == 0)
        wait_until(lambda: 1 not in session._cluster.unprotected)
        boxes.append(drust.spawn(make, 1000, 20, server=1).join())
        kill(session, 1)
        for value, box in enumerate(boxes):
            with box.borrow() as a:
                assert (a == value).all()


def test_two_servers_lost_at_once_are_an_error_that_says_so():
    with cluster(3) as session:
        box = drust.spawn(make, 1000, 1, server=1).join()
        other = drust.spawn(make, 1000, 2, server=2).join()
        kill(session, 1)
        kill(session, 2)
        began_s = time.monotonic()
        with pytest.raises(ServerLostError, match="server 1"), box.borrow():
            pass
        with other.borrow() as a:  # its replica was at home
            assert a[0] == 2
        assert time.monotonic() - began_s < WITHIN_S


@pytest.mark.parametrize(("seed", "replicas"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 0), (5, 0), (6, 0)])
def test_a_server_killed_at_any_time_loses_nothing_that_another_could_have_seen(seed, replicas):
    """Boxes live on server 1 and are changed there; the driver notes what each task it joined has left. In a
    session without replicas each of them asks for one."""
    dice = random.Random(seed)
    asked = None if replicas else 1
    with cluster(3, replicas=replicas) as session:
        drust.spawn(os.getpid, server=1).join()
        blocks = drust.runtime.current().live_blocks()
        sizes = [10, 3000, 200_000]
        known = [
            (drust.spawn(make, dice.choice(sizes), value, asked, server=1).join(), [value])
            for value in range(6)
        ]
        killer = killer_of(session.pids[1], dice.uniform(0, 0.15))
        release(killer)
        failures = 0
        while killer.poll() is None or dice.random() < 0.9:
            box, states = dice.choice(known)
            began_s = time.monotonic()
            try:
                what = dice.random()
                if what < 0.2:
                    with box.borrow() as a:
                        assert a[0] == states[-1]
                        assert (a == a[0]).all()
                elif what < 0.4:
                    assert drust.spawn(first_of, box.borrow(), server=2).join() == states[-1]
                else:
                    assert drust.spawn(add, box.borrow_mut(), server=1).join() == states[-1] + 1
                    states.append(states[-1] + 1)
            except (ServerLostError, WorkerLostError):
                failures += 1
            assert time.monotonic() - began_s < WITHIN_S
        assert failures <= 3
        for box, states in known:
            with box.borrow() as a:
                assert (a == states[-1]).all()
        del known, box, a
        wait_until(lambda: session._cluster._ring.table[1].by == 2)
        wait_until(lambda: versions(session, 2) == 0)
        wait_until(lambda: versions(session, 0) == 0)
        drust.runtime.current().evict(2**40)
        wait_until(lambda: drust.runtime.current().live_blocks() <= blocks)


def change_many(boxes: list, rounds: int) -> list:
    """A task that owns boxes of its server and gives them back."""
    for _ in range(rounds):
        for box in boxes:
            with box.borrow_mut() as a:
                a += 1
    return boxes


@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10, 30])
def test_a_hand_over_in_progress_ends_in_a_value_or_an_error(delay_ms):
    with cluster(2) as session:
        drust.spawn(os.getpid, server=1).join()
        killer = killer_of(session.pids[1], delay_ms / 1000)
        tasks = [drust.spawn(make, 300_000, value, server=1) for value in range(4)]
        release(killer)
        began_s = time.monotonic()
        for value, task in enumerate(tasks):
            try:
                box = task.join()
            except (ServerLostError, WorkerLostError):
                continue
            with box.borrow() as a:
                assert (a == value).all()
        killer.wait()
        assert time.monotonic() - began_s < 2 * WITHIN_S


def test_without_replicas_nothing_is_sent_or_kept(two_servers, counting):
    box = drust.spawn(make, 1000, 1, server=1).join()
    counted = counting(two_servers)
    for _ in range(10):
        drust.spawn(add, box.borrow_mut(), server=1).join()
        with box.borrow() as a:
            assert a[0] > 1
    since = counted.since()
    assert since["replica_messages"] == since["blocks_replicated"] == since["bytes_replicated"] == 0
    assert (
        counted.messages()
        == since["submit_messages"]
        + since["complete_messages"]
        + since["read_requests"]
        + since["free_messages"]
    )
    assert all(two_servers.status(server).replica_versions == 0 for server in (0, 1))


def test_a_version_costs_one_message_however_often_it_is_handed_out(counting):
    with cluster(3) as session:
        box = drust.spawn(make, 1000, 1, server=1).join()
        counted = counting(session)
        for server in (1, 2, 1, 2):
            assert drust.spawn(first_of, box.borrow(), server=server).join() == 1
        assert counted.since()["replica_messages"] == 0
        drust.spawn(add, box.borrow_mut(), server=1).join()
        assert counted.since()["replica_messages"] == 1


def test_what_stays_on_a_server_costs_no_message(counting):
    with cluster(3) as session:
        boxes = drust.spawn(make_many, server=1).join()
        counted = counting(session)
        boxes = drust.spawn(change_many, boxes, 20, server=1).join()
        since = counted.since()
        assert since["replica_messages"] == 1  # when they came back, all in one commit
        assert since["blocks_replicated"] == len(boxes)


def make_many() -> list:
    return [Box(np.zeros(100)) for _ in range(10)]


def drop_and_die(boxes: list) -> None:
    boxes.clear()
    os.kill(os.getpid(), signal.SIGKILL)


def test_replicas_that_a_killed_worker_could_not_report_are_dropped():
    with cluster(3) as session:
        for _ in range(3):
            boxes = drust.spawn(make_many, server=1).join()
            with pytest.raises(WorkerLostError):
                drust.spawn(drop_and_die, boxes, server=1).join()
        wait_until(lambda: versions(session, 2) == 0)


def test_a_server_that_was_started_again_knows_nothing_of_before():
    with cluster(2, replicas=0) as session:
        box = drust.spawn(make, 10, 1, server=1).join()
        before = session.pids[1]
        kill(session, 1)
        wait_until(lambda: session.pids[1] != before and session._cluster._ring.table[1].port)
        wait_until(lambda: drust.runtime.current().endpoint(1)[2])
        fresh = drust.spawn(make, 10, 2, server=1).join(timeout=20)  # most likely at the same address
        assert fresh._pin.pointer[1] >> 48 == 2
        assert box._pin.pointer[1] >> 48 == 1
        with pytest.raises(ServerLostError, match="that version is gone"), box.borrow():
            pass
        with fresh.borrow() as a:
            assert a[0] == 2


def test_a_replica_needs_another_server():
    with pytest.raises(ConfigError, match="servers=2"):
        drust.init(servers=1, replicas=1)
    with pytest.raises(ConfigError, match="replicas="):
        drust.init(servers=2, replicas=2)
    with pytest.raises(ConfigError, match="DRUST_REPLICAS"):
        Config.read({"DRUST_REPLICAS": "many", "DRUST_SERVERS": "2"})


# -- who answers for whom: the table alone -----------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 7), st.data())
def test_as_long_as_replicas_are_in_time_every_server_is_answered_for(servers, data):
    ring = Ring([("host", 1000 + number) for number in range(servers)], 0)
    living = set(range(servers))
    epochs = [row.epoch for row in ring.table]
    while len(living) > 1:
        lost = data.draw(st.sampled_from(sorted(living - {0})))
        living.discard(lost)
        assert ring.lose(lost) == []
        assert all(not row.port for row in ring.table if row.server == lost)
        assert ring.replace(lost) in living
        for row in ring.table:
            answering = row.server if row.by is None else row.by
            assert answering in living
            assert row.port == 1000 + answering
            assert row.backup != answering
            assert (row.backup is None) == (answering == 0)
            assert row.backup is None or row.backup in living
            assert row.epoch >= epochs[row.server]
            if row.backup is not None:
                ring.protected(row.server, row.backup)
        epochs = [row.epoch for row in ring.table]


def test_what_was_not_replicated_in_time_is_gone_and_nobody_waits_for_it():
    ring = Ring([("host", 1000 + number) for number in range(4)], 0)
    assert ring.lose(1) == []
    assert ring.replace(1) == 2
    assert 1 in ring.unprotected
    assert ring.lose(2) == [1]  # its values were on 2 alone
    assert ring.table[1].backup is None
    assert ring.table[2].backup == 3
    assert ring.replace(2) == 3
    assert (ring.table[1].port, ring.table[2].by) == (0, 3)


def test_others_hear_of_a_successor_only_when_it_has_taken_the_place():
    recovery, _, cluster, ring = recovery_of(4)
    cluster.living.remove(1)
    recovery.lost(1)
    for server in (0, 2, 3):
        assert cluster.sent[server].endpoints[1].port == 0
        assert ring.table[1].by is None
        recovery.joined(server)
    assert cluster.sent[2].endpoints[1].by == 2
    assert cluster.sent[0].endpoints[1].by is None
    recovery.joined(2)
    assert cluster.sent[0].endpoints[1].by == cluster.sent[3].endpoints[1].by == 2
    assert cluster.told == []
    recovery.joined(0)
    recovery.joined(3)
    assert [(type(event), event.server, event.by) for event in cluster.told] == [
        (messages.ServerReplaced, 1, 2)
    ]


def test_a_server_that_does_not_answer_is_not_waited_for():
    recovery, loop, cluster, ring = recovery_of(4)
    cluster.living.remove(1)
    recovery.lost(1)
    recovery.joined(0)
    recovery.joined(2)
    loop.fire()  # 3 is silent
    recovery.joined(2)
    assert ring.table[1].by == cluster.sent[0].endpoints[1].by == 2


def test_a_successor_that_is_lost_before_it_could_take_the_place_ends_the_wait():
    recovery, _, cluster, _ = recovery_of(3)
    cluster.living = [0]
    recovery.lost(1)
    recovery.lost(2)
    for _ in range(4):
        recovery.joined(0)
    table = cluster.sent[0].endpoints
    assert (table[1].port, table[1].backup, table[2].by) == (0, None, 0)


def test_a_loss_is_measured():
    read_s, repair_s = replication._lose(2**20)
    assert 0 < read_s < WITHIN_S
    assert repair_s > 0


def test_a_script_with_replicas_leaves_no_process_behind_when_a_server_was_lost(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal
            import drust
            with drust.init(servers=3, workers=1, heap_bytes="64MiB", replicas=1) as session:
                print(*session.pids, flush=True)
                drust.spawn(os.getpid, server=1).join()
                os.kill(session.pids[1], signal.SIGKILL)
                while session._cluster._ring.table[1].by != 2:
                    pass
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    for pid in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
