"""Executor and map: concurrent.futures' own usage, chunks, progress, failures."""

import asyncio
import concurrent.futures
import operator
import threading

import numpy as np
import pytest

import drust
from drust import Box
from drust.errors import ConfigError
from test_cancel import keep_busy, until_taken, wait_for


def square(x: int) -> int:
    return x * x


def fail_at(x: int, at: int) -> int:
    if x >= at:
        raise ValueError(f"at {x}")
    return x


def total(array: np.ndarray) -> float:
    return float(array.sum())


def keyword(*, server: str, retry: str) -> str:
    return server + retry


@pytest.fixture(params=[None, 1])
def executor(request, two_servers):
    with drust.Executor(server=request.param) as made:
        yield made


def test_submit_gives_a_future_with_the_result_or_the_error(executor):
    assert executor.submit(square, 7).result(timeout=20) == 49
    error = executor.submit(fail_at, 3, at=0).exception(timeout=20)
    assert isinstance(error, ValueError)
    assert executor.submit(keyword, server="a", retry="b").result() == "ab"


def test_map_keeps_the_order_with_and_without_chunks(executor):
    for chunksize in (1, 7):
        assert list(executor.map(operator.add, range(40), range(1, 99), chunksize=chunksize)) == [
            2 * n + 1 for n in range(40)
        ]


def test_a_failing_map_yields_what_came_before(executor):
    results = executor.map(fail_at, range(10), [5] * 10)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="at 5"):
        next(results)


def test_as_completed_and_wait_work_on_its_futures(executor):
    futures = {executor.submit(square, n): n for n in range(20)}
    for future in concurrent.futures.as_completed(futures, timeout=30):
        assert future.result() == futures[future] ** 2
    done, pending = concurrent.futures.wait([executor.submit(square, n) for n in range(5)], timeout=30)
    assert len(done) == 5
    assert not pending


def test_a_callback_sees_the_finished_future(executor):
    seen = threading.Event()
    future = executor.submit(square, 3)
    future.add_done_callback(lambda each: each is future and each.result() == 9 and seen.set())
    assert seen.wait(20)


def test_a_queued_future_can_be_cancelled_and_a_running_one_cannot(one_server, gate):
    busy = keep_busy(gate, 0, 2)
    with drust.Executor() as executor:
        queued = executor.submit(square, 3)
        assert not queued.done()
        assert queued.cancel()
        assert queued.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            queued.result()
        done, _ = concurrent.futures.wait([queued], timeout=10)
        assert done == {queued}
        gate.open()
        finished = executor.submit(square, 3)
        assert finished.result(20) == 9
        assert not finished.cancel()
    for job in busy:
        job.join()


def test_shutdown_waits_or_cancels_and_then_refuses(one_server, gate):
    executor = drust.Executor()
    busy = [executor.submit(wait_for, gate.path) for _ in range(2)]
    until_taken()
    queued = [executor.submit(square, n) for n in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    assert not any(future.done() for future in busy)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(square, range(9), chunksize=3)
    gate.open("x")
    executor.shutdown()
    assert [future.result(0) for future in busy] == ["x", "x"]


def test_boxes_and_borrows_pass_through_submit(executor):
    box = Box(np.ones(10))
    assert executor.submit(total, box.borrow()).result(20) == 10
    with box.borrow_mut() as a:
        a += 1


def test_an_event_loop_runs_in_it(executor):
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, square, n) for n in range(10)))

    assert asyncio.run(main()) == [n * n for n in range(10)]


# -- map ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 3, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_map_is_the_builtin_map(one_server, n, chunk):
    assert drust.map(operator.add, range(n), range(n, 1000), chunk=chunk) == [2 * i + n for i in range(n)]


def test_map_ships_a_local_function_once(one_server):
    step = np.arange(1000)
    before = drust.statistics()["encodes"]
    assert drust.map(lambda x: x + int(step[1]), range(50), chunk=5) == list(range(1, 51))
    assert drust.statistics()["encodes"] - before <= 30


def test_map_lends_items(one_server):
    boxes = [Box(np.full(10, float(n))) for n in range(6)]
    assert drust.map(total, [box.borrow() for box in boxes], chunk=2) == [10.0 * n for n in range(6)]
    for box in boxes:
        with box.borrow_mut() as a:
            a += 1


def test_map_raises_the_first_items_error_with_its_number_and_takes_back_the_rest(one_server):
    with pytest.raises(ValueError, match="at 5") as caught:
        drust.map(fail_at, range(5000), [5] * 5000, chunk=1)
    assert "for item 5 of those given to map" in caught.value.__notes__
    session = drust.current_session()
    assert session.status(0).queued_tasks == 0


def test_map_tells_of_its_progress(one_server):
    seen: list[tuple[int, int]] = []
    drust.map(square, range(10), chunk=3, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 4
    assert seen[-1] == (10, 10)
    assert sorted(done for done, _ in seen) == [done for done, _ in seen]
    assert drust.map(square, range(3), progress=True) == [0, 1, 4]


def test_map_refuses_a_chunk_of_nothing(one_server):
    with pytest.raises(ConfigError, match="chunk="):
        drust.map(square, range(3), chunk=0)


# -- spawn_many --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [0, 1])
def test_many_tasks_leave_in_one_message_and_all_come_home(two_servers, counting, server):
    drust.spawn(square, 1, server=server).join()
    counters = counting(two_servers)
    jobs = drust.spawn_many(square, range(500), server=server)
    assert [job.join() for job in jobs] == [n * n for n in range(500)]
    assert counters.since()["submit_messages"] == (2 if server else 0)


@pytest.mark.parametrize("server", [0, 1])
def test_more_tasks_than_a_queue_holds_are_sent_as_it_empties(two_servers, gate, server):
    (held,) = keep_busy(gate, server, 1)
    opener = threading.Timer(0.5, gate.open)  # before or after the queue is full: both must end well
    opener.start()
    jobs = drust.spawn_many(square, range(17_000), server=server)
    assert sum(job.join() for job in jobs) == sum(n * n for n in range(17_000))
    opener.join()
    held.join()


def test_a_batch_with_one_that_cannot_be_sent_takes_back_the_others(one_server, gate):
    busy = keep_busy(gate, 0, 2)
    box, held = Box(np.ones(3)), Box(np.ones(3))
    with held.borrow_mut(), pytest.raises(drust.BorrowError):
        drust.spawn_many(total, [box.borrow(), box.borrow(), held.borrow()])
    with box.borrow_mut() as a:
        a += 1
    lent = [box.borrow() for _ in range(300)]
    with held.borrow_mut(), pytest.raises(drust.BorrowError):
        drust.spawn_many(total, [*lent, held.borrow()])
    assert one_server.status(0).queued_tasks == 0
    with box.borrow_mut() as a:
        a += 1
    gate.open()
    for job in busy:
        job.join()


@pytest.mark.parametrize("server", [0, 1])
def test_a_batch_lends_and_moves(two_servers, server):
    boxes = [Box(np.full(10, float(n))) for n in range(300)]
    jobs = drust.spawn_many(total, [box.borrow() for box in boxes], server=server)
    assert [job.join() for job in jobs] == [10.0 * n for n in range(300)]
    jobs = drust.spawn_many(drop_sum, boxes, server=server)
    assert sum(job.join() for job in jobs) == sum(10.0 * n for n in range(300))
    with pytest.raises(drust.MovedError):
        boxes[0].borrow().__enter__()


def drop_sum(box: Box) -> float:
    with box.borrow() as a:
        return float(a.sum())
