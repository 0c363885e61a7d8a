"""spawn, spawn_to, scope, JoinHandle: arguments, results, errors, nesting."""

import os
import threading

import numpy as np
import pytest

import drust
from drust import BorrowError, Box, MovedError
from drust.errors import CaptureTooLargeError, ConfigError, PickledBoxError, UnpicklableError


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


def add(x, y=1):
    return x + y


def shift(point: Point) -> Point:
    return Point(point.x + 1, point.y)


def fail(message: str) -> None:
    raise ValueError(message)


def exit_quietly() -> None:
    raise SystemExit(3)


def make(n: int) -> np.ndarray:
    return np.arange(n, dtype=float)


def make_box(n: int) -> Box:
    return Box(np.arange(n, dtype=float))


def make_boxes(n: int) -> dict:
    return {"first": Box(np.zeros(n)), "second": [Box({"n": n})]}


def consume(box: Box) -> float:
    with box.borrow() as a:
        return float(a.sum())


def fibonacci(n: int) -> int:
    if n < 2:
        return n
    jobs = [drust.spawn(fibonacci, n - 1), drust.spawn(fibonacci, n - 2)]
    return sum(job.join() for job in jobs)


def where() -> int:
    return drust.runtime.current().server


def kind_of(value) -> str:
    return type(value).__name__


@pytest.mark.parametrize("server", [0, 1])
def test_a_task_gets_its_arguments_and_its_result_comes_home(two_servers, server):
    assert drust.spawn(add, 2, y=3, server=server).join() == 5
    point = drust.spawn(shift, Point(1, 2), server=server).result()
    assert isinstance(point, Point)
    assert (point.x, point.y) == (2, 2)


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("n", [0, 10, 100_000])
def test_a_large_result_is_an_array_of_ones_own(two_servers, server, n):
    array = drust.spawn(make, n, server=server).join()
    np.testing.assert_array_equal(array, np.arange(n))
    array += 1
    assert array.sum() == n * (n + 1) / 2


def test_a_task_runs_where_it_is_told(two_servers):
    assert [drust.spawn(where, server=server).join() for server in (0, 1, 0)] == [0, 1, 0]
    box = drust.spawn(make_box, 10, server=1).join()
    assert drust.spawn_to(box, where).join() == 1
    with pytest.raises(ConfigError, match="0 to 1"):
        drust.spawn(where, server=2)


@pytest.mark.parametrize("server", [0, 1])
def test_a_moved_box_arrives_as_a_box_and_is_gone_here(two_servers, server):
    box = Box(np.ones(10))
    assert drust.spawn(consume, box, server=server).join() == 10
    with pytest.raises(MovedError, match=r"moved at .*test_tasks\.py"), box.borrow():
        pass


@pytest.mark.parametrize("server", [0, 1])
def test_boxes_inside_a_result_are_owned_by_the_one_who_joins(two_servers, server):
    boxes = drust.spawn(make_boxes, 5, server=server).join()
    with boxes["first"].borrow_mut() as a, boxes["second"][0].borrow() as table:
        a += 1
        assert table == {"n": 5}
    with boxes["first"].borrow() as a:
        assert a.sum() == 5


@pytest.mark.parametrize("server", [0, 1])
def test_an_error_comes_home_with_the_remote_traceback(two_servers, server):
    job = drust.spawn(fail, "no such luck", server=server)
    with pytest.raises(ValueError, match="no such luck") as caught:
        job.join()
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="no such luck"):
        job.join()


def test_an_exit_in_a_task_ends_the_task_and_not_the_worker(one_server):
    with pytest.raises(SystemExit):
        drust.spawn(exit_quietly).join()
    assert drust.spawn(add, 1).join() == 2


def test_a_task_that_joins_its_own_tasks_never_starves(one_server):
    assert drust.spawn(fibonacci, 7).join() == 13


def test_lambdas_and_closures_travel_with_what_they_held(one_server):
    factor = 3
    assert drust.spawn(lambda x: x * factor, 4).join() == 12
    factor = 5
    assert drust.spawn(lambda x: x * factor, 4).join() == 20


def test_a_scope_raises_every_error_and_ends_every_lend(one_server):
    box = Box(np.ones(3))
    with pytest.raises(ExceptionGroup) as caught, drust.scope() as s:
        for job in (s.spawn(fail, "one"), s.spawn(fail, "two"), s.spawn(consume_view, box.borrow())):
            job.wait()  # what still waited would be taken back
    assert sorted(str(error) for error in caught.value.exceptions) == ["one", "two"]
    with box.borrow_mut() as a:
        a += 1


def consume_view(a: np.ndarray) -> float:
    return float(a.sum())


def test_a_join_can_time_out_and_be_repeated(one_server, tmp_path):
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    job = drust.spawn(read, str(fifo))
    with pytest.raises(TimeoutError, match="read"):
        job.join(timeout=0.05)
    assert not job.done()
    threading.Thread(target=fifo.write_text, args=("go",)).start()
    assert job.join(timeout=20) == "go"
    assert job.done()


def read(path: str) -> str:
    with open(path) as fifo:
        return fifo.read()


def test_an_unpicklable_argument_is_named_and_nothing_is_lost(one_server):
    box, lent = Box(np.ones(3)), Box(np.ones(3))
    with pytest.raises(UnpicklableError, match="lock"):
        drust.spawn(add, box, lent.borrow_mut(), threading.Lock())
    with box.borrow() as a, lent.borrow_mut() as b:
        b += a


def test_a_refused_lend_undoes_the_others(one_server):
    first, second = Box(np.ones(3)), Box(np.ones(3))
    with second.borrow(), pytest.raises(BorrowError):
        drust.spawn(add, first.borrow_mut(), second.borrow_mut())
    with first.borrow_mut() as a, second.borrow_mut() as b:
        a += b


def test_an_unpicklable_result_is_the_tasks_error(one_server):
    with pytest.raises(UnpicklableError):
        drust.spawn(threading.Lock).join()


def test_a_captured_box_is_refused_with_the_way_to_pass_it(one_server):
    box = Box(np.ones(3))
    with pytest.raises(PickledBoxError, match="argument"):
        drust.spawn(lambda: box)


def test_a_large_capture_is_refused_by_name(one_server):
    big = np.zeros(1_000_000)
    with pytest.raises(CaptureTooLargeError, match="big"):
        drust.spawn(lambda: big.sum())


def test_the_same_box_twice_is_refused(one_server):
    box = Box(np.ones(3))
    with pytest.raises(UnpicklableError, match="one owner"):
        drust.spawn(add, box, box)
    with box.borrow() as a:
        assert a.sum() == 3


def test_a_lent_value_is_the_plain_value(one_server):
    for value, name in ((np.ones(2), "ndarray"), ({}, "dict"), (3, "int"), (b"x", "bytes")):
        assert drust.spawn(kind_of, Box(value).borrow()).join() == name


def test_many_small_tasks_all_come_home(one_server):
    jobs = [drust.spawn(add, i) for i in range(300)]
    assert [job.join() for job in jobs] == list(range(1, 301))


def test_a_dropped_handle_leaves_nothing_behind(one_server):
    box = Box(np.ones(1000))
    drust.spawn(add, 1).join()
    before = drust.runtime.current().live_blocks()
    for _ in range(20):
        drust.spawn(consume_view, box.borrow())
    with box.borrow_mut(timeout=20) as a:
        a += 1
    for _ in range(3):
        drust.spawn(add, 1).join()
    assert drust.runtime.current().live_blocks() <= before + 1


class Settings:
    """An instance that changes in place."""

    def __init__(self) -> None:
        self.n = 1


def spawn_and_forget(path: str) -> None:
    drust.spawn(lambda: open(path, "w").close())


def test_a_task_that_nobody_joins_runs_all_the_same(one_server, tmp_path):
    path = tmp_path / "made"
    spawn_and_forget(str(path))
    for i in range(10_000):
        drust.spawn(add, i).join()
        if path.exists():
            break
    assert path.exists()


def test_a_function_travels_with_what_it_holds_at_that_moment(one_server):
    settings, array, factor = Settings(), np.zeros(2), 1.5

    def look() -> tuple[int, float, list[float]]:
        return settings.n, float(array.sum()), [factor for _ in range(2)]

    assert drust.spawn(look).join() == (1, 0.0, [1.5, 1.5])
    settings.n, factor = 2, 2.5
    array += 1
    assert drust.spawn(look).join() == (2, 2.0, [2.5, 2.5])


class Awkward(Exception):  # noqa: N818 - an exception whose pickle cannot be read again
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def raise_awkward() -> None:
    raise Awkward("told", "you")


def test_an_error_that_cannot_be_rebuilt_here_keeps_its_traceback(one_server):
    with pytest.raises(drust.TaskError, match="cannot be decoded") as caught:
        drust.spawn(raise_awkward).join()
    assert "Awkward: told" in str(caught.value.__cause__)


def test_parts_that_came_back_need_no_join(one_server):
    box = Box(np.ones(10))
    for part in box.split_mut(2):
        drust.spawn(consume_view, part)
    with box.borrow(timeout=20) as a:
        assert a.sum() == 10


def test_a_failed_join_keeps_nothing_borrowed(one_server):
    box = Box(np.ones(10))
    try:
        for part in box.split_mut(2):
            drust.spawn(fail_on, part).join()
    except ValueError:
        pass
    del part
    with box.borrow() as a:
        assert a.sum() == 10


def fail_on(a: np.ndarray) -> None:
    raise ValueError


def test_a_thousand_lends_in_one_call(one_server):
    boxes = [Box(i) for i in range(1000)]
    assert drust.spawn(sum_all, [box.borrow() for box in boxes]).join() == sum(range(1000))


def sum_all(values: list[int]) -> int:
    return sum(values)


def parent_of(n: int) -> int:
    return sum(job.join() for job in [drust.spawn(add, i) for i in range(n)])


def test_a_worker_never_stops_taking_tasks(one_server):
    for _ in range(40):
        jobs = [drust.spawn(parent_of, 3) for _ in range(8)]
        assert {job.join(timeout=30) for job in jobs} == {6}
