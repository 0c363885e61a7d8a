"""The data-value and single-writer invariants, by real processes. Each test is a row of docs/memory.md."""

import threading

import numpy as np
import pytest

import drust
from drust import BorrowError, BorrowMutError, Box
from drust.testing import account


def total(a: np.ndarray) -> float:
    return float(a.sum())


def add(a: np.ndarray, amount: float) -> None:
    a += amount


def add_key(table: dict, key: str, value: int) -> int:
    table[key] = value
    return len(table)


def size(table: dict) -> int:
    return len(table)


def fill(rows: np.ndarray, value: int) -> tuple[int, ...]:
    rows[:] = value
    return rows.shape


def add_then_raise(a: np.ndarray) -> None:
    a += 1
    raise ValueError("after writing")


def wait_for(path: str, a: np.ndarray) -> float:
    """Holds its borrow until a file appears: reading a fifo blocks without polling."""
    with open(path) as fifo:
        fifo.read()
    return float(a.sum())


def test_a_borrow_sees_what_an_earlier_mutable_borrow_wrote(one_server):
    box = Box(np.zeros(100))
    for step in range(1, 4):
        with box.borrow_mut() as a:
            a += 1
        with box.borrow() as a:
            assert a.sum() == 100 * step


@pytest.mark.parametrize("server", [0, 1])
def test_a_worker_sees_what_the_driver_wrote(two_servers, server):
    box = Box(np.zeros(1000))
    for step in range(1, 4):
        with box.borrow_mut() as a:
            a += 1
        assert drust.spawn(total, box.borrow(), server=server).join() == 1000 * step


def test_another_server_sees_what_was_written_after_it_had_read(two_servers):
    box = Box({"a": 1})
    assert drust.spawn(size, box.borrow(), server=1).join() == 1
    with box.borrow_mut() as table:
        table["b"] = 2
    assert drust.spawn(size, box.borrow(), server=1).join() == 2
    assert drust.spawn(size, box.borrow(), server=0).join() == 2


@pytest.mark.parametrize("server", [0, 1])
def test_the_driver_sees_what_a_task_wrote(two_servers, server):
    array, table = Box(np.zeros(1000)), Box({})
    for step in range(1, 4):
        drust.spawn(add, array.borrow_mut(), 1.0, server=server).join()
        assert drust.spawn(add_key, table.borrow_mut(), f"k{step}", step, server=server).join() == step
        with array.borrow() as a, table.borrow() as t:
            assert a.sum() == 1000 * step
            assert t == {f"k{i}": i for i in range(1, step + 1)}


def test_a_value_follows_its_writers_from_server_to_server(two_servers):
    box = Box(np.zeros(10))
    for step in range(6):
        drust.spawn(add, box.borrow_mut(), 1.0, server=step % 2).join()
        assert box.server == step % 2
    with box.borrow() as a:
        assert a.sum() == 60


def make_table() -> Box:
    return Box({"numbers": np.zeros(1000)})


@pytest.mark.parametrize("server", [0, 1])
def test_a_value_that_was_moved_and_changed_has_one_block(two_servers, server):
    before = len(account.take_at_rest(two_servers).blocks)
    box = drust.spawn(make_table, server=server).join()
    for step in range(3):
        with box.borrow_mut() as table:
            table[step] = step
        assert drust.spawn(size, box.borrow(), server=server).join() == step + 2
        assert len(account.take_at_rest(two_servers).blocks) == before + 1


def test_a_reader_is_refused_while_a_task_writes(one_server, tmp_path):
    import os

    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    box = Box(np.ones(10))
    job = drust.spawn(wait_for, str(fifo), box.borrow_mut())
    with pytest.raises(BorrowError, match="wait_for"), box.borrow():
        pass
    with pytest.raises(BorrowMutError), box.borrow_mut():
        pass
    fifo.write_text("go")
    assert job.join() == 10
    with box.borrow() as a:
        assert a.sum() == 10


def test_a_writer_is_refused_while_tasks_read_and_waits_if_told_to(one_server, tmp_path):
    import os

    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    box = Box(np.ones(10))
    job = drust.spawn(wait_for, str(fifo), box.borrow())
    with box.borrow() as a:
        assert a.sum() == 10
    with pytest.raises(BorrowMutError), box.borrow_mut():
        pass
    threading.Thread(target=fifo.write_text, args=("go",)).start()
    with box.borrow_mut(timeout=20) as a:
        a += 1
    assert job.join() == 10


def test_readers_on_two_servers_read_at_once(two_servers):
    box = Box(np.arange(10_000))
    jobs = [drust.spawn(total, box.borrow(), server=i % 2) for i in range(8)]
    with box.borrow() as a:
        expected = float(a.sum())
    assert {job.join() for job in jobs} == {expected}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("servers", [(0, 0), (0, 1), (1, 1)])
def test_parts_written_by_two_workers_are_all_seen(two_servers, axis, order, servers):
    box = Box(np.zeros((6, 10), order=order))
    with drust.scope() as s:
        parts = box.split_mut(2, axis)
        for value, (part, server) in enumerate(zip(parts, servers, strict=True), 1):
            s.spawn(fill, part, value, server=server)
    with box.borrow() as a:
        expected = np.ones((6, 10))
        expected[(slice(None),) * axis + (slice(a.shape[axis] // 2, None),)] = 2
        np.testing.assert_array_equal(a, expected)


def test_a_task_that_raised_leaves_what_it_wrote(two_servers):
    for server in (0, 1):
        box = Box(np.zeros(4))
        with pytest.raises(ValueError, match="after writing"):
            drust.spawn(add_then_raise, box.borrow_mut(), server=server).join()
        with box.borrow() as a:
            assert a.tolist() == [1, 1, 1, 1]
