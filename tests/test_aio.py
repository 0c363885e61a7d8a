"""await handle, async def tasks, async with box.borrow()."""

import asyncio
import os
import threading
import time

import numpy as np
import pytest

import drust
from drust import BorrowError, BorrowTimeoutError, Box
from test_cancel import keep_busy, wait_for


def square(x: int) -> int:
    return x * x


def fail(text: str) -> None:
    raise ValueError(text)


async def turn() -> None:
    """Lets others run."""
    await asyncio.get_running_loop().run_in_executor(None, int)


async def meet(name: str, others: int) -> tuple[int, int]:
    """Ends when `others` have come too: all of them must be under way at once."""
    came, all_here = vars(asyncio).setdefault(name, (set(), asyncio.Event()))
    came.add(asyncio.current_task())
    if len(came) == others:
        all_here.set()
        del vars(asyncio)[name]
    await all_here.wait()
    return os.getpid(), threading.get_ident()


async def fail_later(text: str) -> None:
    await turn()
    raise ValueError(text)


async def exit_later() -> None:
    await turn()
    raise SystemExit(3)


async def fill(array: np.ndarray, value: float) -> None:
    await turn()
    array[:] = value


async def gather_below(n: int) -> int:
    return sum(await asyncio.gather(*(join_below(drust.spawn(square, i)) for i in range(n))))


async def join_below(handle: "drust.JoinHandle[int]") -> int:
    return await handle


async def take_mutably(box: Box, within_s: float | None) -> float:
    async with box.borrow_mut(timeout=within_s) as a:
        a += 1
        return float(a[0])


def read(a: np.ndarray) -> float:
    return float(a[0])


@pytest.mark.parametrize("server", [0, 1])
def test_a_handle_can_be_awaited(two_servers, server):
    async def main() -> None:
        assert await drust.spawn(square, 5, server=server) == 25
        with pytest.raises(ValueError, match="mine"):
            await drust.spawn(fail, "mine", server=server)
        done = drust.spawn(square, 6, server=server)
        done.join()
        assert await done == 36
        assert await asyncio.gather(
            *(join_below(drust.spawn(square, n, server=server)) for n in range(50))
        ) == [n * n for n in range(50)]

    asyncio.run(main())


def test_the_event_loop_goes_on_while_a_task_is_awaited(one_server, gate):
    async def main() -> None:
        handle = drust.spawn(wait_for, gate.path)
        waiting = asyncio.ensure_future(join_below(handle))
        for _ in range(5):
            await turn()
        assert not waiting.done()
        gate.open("went")
        assert await waiting == "went"

    asyncio.run(main())


def test_a_cancelled_wait_takes_back_a_queued_task(one_server, gate):
    async def main() -> None:
        busy = keep_busy(gate, 0, 2)
        handle = drust.spawn(square, 3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(join_below(handle), 0.01)
        assert handle.cancelled()
        gate.open()
        for job in busy:
            await job

    asyncio.run(main())


@pytest.mark.parametrize("server", [0, 1])
def test_coroutines_run_side_by_side_in_the_loop_of_one_worker(two_servers, server):
    jobs = [drust.spawn(meet, "_met_in_a_test", 40, server=server) for n in range(40)]
    places = {job.join(30) for job in jobs}
    assert len(places) == 1, "one server has one worker, and that one loop"


@pytest.mark.parametrize("server", [0, 1])
def test_a_coroutine_is_lent_values_and_fails_as_other_tasks_do(two_servers, server):
    box = Box(np.zeros(4))
    drust.spawn(fill, box.borrow_mut(), 3.0, server=server).join()
    with box.borrow() as a:
        assert (a == 3).all()
    with pytest.raises(ValueError, match="late"):
        drust.spawn(fail_later, "late", server=server).join()
    with pytest.raises(SystemExit):
        drust.spawn(exit_later, server=server).join()
    assert drust.spawn(square, 2, server=server).join() == 4


async def meet_or_fail(name: str, number: int) -> int:
    await meet(name, 4)
    if number % 2:
        raise SystemExit(number)
    return number * number


def late_or_never(number: int) -> object:
    if number == 2:
        raise ValueError("no coroutine")
    return turn()


def test_items_of_an_async_function_given_to_map_run_side_by_side(one_server):
    found = drust.map(meet, ["_met_in_a_map"] * 12, [12] * 12, chunk=12)
    assert len(found) == 12
    with drust.Executor() as executor:
        assert len(list(executor.map(meet, ["_met_by_an_executor"] * 6, [6] * 6, chunksize=6))) == 6


def test_the_first_item_of_an_async_function_that_fails_is_named(one_server):
    with pytest.raises(SystemExit) as failed:
        drust.map(meet_or_fail, ["_failing_in_a_map"] * 4, [0, 1, 2, 3], chunk=4)
    assert failed.value.code == 1
    assert "for item 1" in failed.value.__notes__[0]
    with pytest.raises(ValueError, match="no coroutine") as never:
        drust.map(late_or_never, range(4), chunk=4)
    assert "for item 2" in never.value.__notes__[0]
    assert drust.spawn(square, 2).join() == 4


def test_a_coroutine_awaits_tasks_of_its_own(two_servers):
    assert drust.spawn(gather_below, 10).join() == sum(n * n for n in range(10))


def test_a_borrow_in_an_async_with_is_the_borrow_of_a_with(one_server):
    async def main() -> None:
        box = Box(np.zeros(3))
        async with box.borrow_mut() as a:
            a += 1
            with pytest.raises(BorrowError):
                async with box.borrow():
                    pass
        with pytest.raises(drust.RevokedError):
            a[0]
        async with box.borrow() as a:
            row = a[1:]
            assert a.sum() == 3
            with pytest.raises(ValueError, match="read-only"):
                a[0] = 1
        with pytest.raises(drust.RevokedError):
            row[0]

    asyncio.run(main())


def test_an_async_borrow_waits_while_the_loop_goes_on(one_server):
    async def main() -> None:
        box = Box(np.zeros(3))
        async with box.borrow_mut() as a:
            with pytest.raises(BorrowTimeoutError):
                await take_mutably(box, 0.02)
            waiting = asyncio.ensure_future(take_mutably(box, 20))
            await turn()
            assert not waiting.done()
            a[:] = 4
        assert await waiting == 5

    asyncio.run(main())


def test_an_async_borrow_fetches_from_another_server(two_servers):
    async def main() -> None:
        box = drust.spawn(make_box, server=1).join()
        async with box.borrow() as a:
            assert a[0] == 7
        assert await take_mutably(box, None) == 8
        assert await drust.spawn(read, box.borrow(), server=1) == 8

    asyncio.run(main())


def make_box() -> Box:
    return Box(np.full(1000, 7.0))


def test_a_cancelled_wait_for_a_borrow_ends_it_as_soon_as_it_begins(one_server):
    async def main() -> None:
        box = Box(np.zeros(3))
        async with box.borrow():
            waiting = asyncio.ensure_future(take_mutably(box, 20))
            await turn()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        deadline = time.monotonic() + 10
        while True:
            try:
                async with box.borrow_mut(timeout=1) as a:
                    assert (a == 0).all()
                    return
            except BorrowTimeoutError:
                assert time.monotonic() < deadline

    asyncio.run(main())
