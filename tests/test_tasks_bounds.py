"""Too much of something: deep recursion, more tasks than a queue holds; and what cannot be handed over."""

import threading
import time

import numpy as np
import pytest

import drust
from drust import Box
from drust.errors import ClosedError, TaskError, TooManyBlockedError, UnpicklableError
from drust.execution import BLOCKED_FEW, HELP_DEPTH_MAX
from test_cancel import keep_busy


def down(levels: int) -> tuple[int, int]:
    """(levels, the most threads that a level has seen in its worker)."""
    seen = threading.active_count()
    if levels == 0:
        return 0, seen
    below, most = drust.spawn(down, levels - 1).join()
    return below + 1, max(most, seen)


def down_busily(levels: int) -> tuple[int, int]:
    """As `down`, and computes for long enough that an idle worker is quicker to take each level."""
    seen = threading.active_count()
    if levels == 0:
        return 0, seen
    job = drust.spawn(down_busily, levels - 1)
    end_s = time.perf_counter() + 0.001
    while time.perf_counter() < end_s:
        pass
    below, most = job.join()
    return below + 1, max(most, seen)


def busy_below(levels: int) -> list[int]:
    """What tasks give that are never joined: one that is only looked at, some that a scope waits for."""
    if levels:
        return drust.spawn(busy_below, levels - 1).join()
    looked_at = drust.spawn(increment, 1)
    while not looked_at.done():
        pass
    jobs = [drust.spawn(increment, n) for n in range(3)]
    return [looked_at.join(), *(job.join() for job in reversed(jobs))]


def down_in_scopes(levels: int) -> int:
    if levels == 0:
        return 0
    with drust.scope() as s:
        job = s.spawn(down_in_scopes, levels - 1)
    return job.join() + 1


def fibonacci(n: int) -> int:
    if n < 2:
        return n
    one, other = drust.spawn(fibonacci, n - 1), drust.spawn(fibonacci, n - 2)
    return one.join() + other.join()


def increment(n: int) -> int:
    return n + 1


def spawn_here(count: int) -> int:
    """The sum of `count` tasks, all spawned before the first is joined, bound to this server."""
    here = drust.runtime.current().server
    jobs = [drust.spawn(increment, n, server=here) for n in range(count)]
    return sum(job.join() for job in jobs)


def add_below(array: np.ndarray, levels: int) -> None:
    array += 1
    if levels:
        inner = Box(np.zeros(3))
        drust.spawn(add_below, inner.borrow_mut(), levels - 1).join()
        with inner.borrow() as a:
            assert (a == 1).all()


def use_frames(depth: int) -> int:
    return 0 if depth == 0 else use_frames(depth - 1) + 1


def join_with_deep_frames(levels: int) -> int:
    """A task on top of others has as many frames as any."""
    if levels == 0:
        return use_frames(900)
    return drust.spawn(join_with_deep_frames, levels - 1).join()


def threads_for(levels: int) -> float:
    """One for every HELP_DEPTH_MAX, and those of the levels that other workers are quick to take."""
    return levels / HELP_DEPTH_MAX + 2 * BLOCKED_FEW + 8


@pytest.mark.parametrize("shape", ["one_server", "two_servers"])
def test_a_recursion_of_spawn_and_join_takes_few_threads_for_its_levels(request, shape):
    request.getfixturevalue(shape)
    levels, threads = drust.spawn(down, 600).join()
    assert levels == 600
    assert threads <= threads_for(600)


def test_what_is_computed_between_spawn_and_join_costs_no_thread_a_level(one_server):
    levels, threads = drust.spawn(down_busily, 1200).join()
    assert levels == 1200
    assert threads <= threads_for(1200)


def test_a_deep_task_need_not_wait_for_what_it_spawns(one_server):
    assert drust.spawn(busy_below, (BLOCKED_FEW + 4) * HELP_DEPTH_MAX * 2).join() == [2, 3, 2, 1]


@pytest.mark.slow
def test_a_recursion_ten_thousand_deep_comes_home(one_server):
    levels, threads = drust.spawn(down, 10_000).join()
    assert levels == 10_000
    assert threads <= threads_for(10_000)


def test_a_recursion_of_scopes_comes_home(one_server):
    assert drust.spawn(down_in_scopes, 200).join() == 200


def test_a_tree_of_tasks_is_run_down_its_branches(one_server):
    assert drust.spawn(fibonacci, 13).join() == 233


def test_a_task_run_by_the_one_that_waits_for_it_is_lent_values_as_any(one_server):
    box = Box(np.zeros(3))
    drust.spawn(add_below, box.borrow_mut(), 40).join()
    with box.borrow() as a:
        assert (a == 1).all()


def test_a_task_on_top_of_others_has_room_for_a_deep_recursion(two_servers):
    assert drust.spawn(join_with_deep_frames, 2 * HELP_DEPTH_MAX).join() == 900


MANY = 18_000  # the queue holds 16,384


@pytest.mark.slow
def test_a_spawner_in_the_driver_waits_while_the_queue_is_full(two_servers, gate):
    (held,) = keep_busy(gate, 0, 1)
    here = drust.runtime.current()

    def open_when_full() -> None:
        look_again = threading.Event()
        while sum(here.queued()) < 16_384:
            look_again.wait(0.01)
        gate.open("full")

    opener = threading.Thread(target=open_when_full)
    opener.start()
    assert spawn_here(MANY) == MANY * (MANY + 1) // 2
    opener.join()
    assert held.join() == "full"


@pytest.mark.slow
def test_a_spawner_in_the_only_worker_runs_others_while_the_queue_is_full(two_servers):
    assert drust.spawn(spawn_here, MANY).join() == MANY * (MANY + 1) // 2


class NoThreads:
    """Stands in for threading.Thread where the system gives none."""

    def __init__(self, **_: object) -> None: ...

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def join_where_no_thread_starts(levels: int) -> int:
    threading.Thread, kept = NoThreads, threading.Thread  # type: ignore[misc,assignment]
    try:
        return down(levels)[0]
    finally:
        threading.Thread = kept  # type: ignore[misc]


def test_a_worker_that_gets_no_thread_says_so_and_goes_on(two_servers):
    assert drust.spawn(join_where_no_thread_starts, 5).join() == 5
    with pytest.raises(TooManyBlockedError, match="gets no more: can't start new thread"):
        drust.spawn(join_where_no_thread_starts, 50).join()
    assert drust.spawn(increment, 1).join() == 2


# -- bad input ---------------------------------------------------------------------------------------------


class Rude(Exception):  # noqa: N818
    def __init__(self, lock: object) -> None:
        super().__init__("rude")
        self.lock = lock


def raise_rudely() -> None:
    raise Rude(threading.Lock())


def view_of(a: np.ndarray) -> np.ndarray:
    return a[1:]


def test_a_function_that_cannot_travel_is_refused_at_the_spawn(one_server):
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            pass

    box = Box(np.zeros(3))
    with pytest.raises(UnpicklableError, match="locked"):
        drust.spawn(locked, box)
    with box.borrow_mut() as a:
        a += 1


def test_an_exception_that_cannot_travel_comes_home_as_its_text(one_server):
    with pytest.raises(TaskError, match="Rude: rude") as caught:
        drust.spawn(raise_rudely).join()
    assert "raise_rudely" in str(caught.value.__cause__)


@pytest.mark.parametrize("server", [0, 1])
def test_a_view_of_what_was_lent_comes_home_as_a_copy(two_servers, server):
    box = Box(np.arange(4.0))
    tail = drust.spawn(view_of, box.borrow(), server=server).join()
    with box.borrow_mut() as a:
        a += 1
    assert tail.tolist() == [1, 2, 3]


def test_a_spawn_after_the_end_says_so():
    with drust.init(workers=1, heap_bytes="256MiB"):
        handle = drust.spawn(increment, 1)
        assert handle.join() == 2
        waiting = drust.spawn(increment, 2)
    assert handle.join() == 2
    with pytest.raises(ClosedError):
        drust.spawn(increment, 1)
    with pytest.raises(ClosedError):
        waiting.join()
    with pytest.raises(ClosedError):
        drust.Executor().submit(increment, 1)
