"""A worker dies whose task had lent on what it was lent: its lender hears whether that was written meanwhile.

The task below may have written in place what the dead one's lender is to be given back as it was.
"""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import drust
from drust import Box, PoisonedError, WorkerLostError
from drust.testing import account, chaos, faults
from looking import wait_until

LARGE = 200_000  # of 8 bytes: written in place where it lies
SMALL = 10
WITHIN_S = 20.0
UNNAMED_WITHIN_S = 40.0  # what nobody names is looked for some seconds after a loss


def make(n: int) -> Box:
    return Box(np.zeros(n))


def make_list(n: int) -> Box:
    return Box([Box(np.zeros(n))])


def write_then_wait(a: np.ndarray, started: str, gate: str) -> None:
    a[0] = 7
    Path(started).write_text(str(os.getpid()))
    with open(gate) as fifo:
        fifo.read()


def read_then_wait(a: np.ndarray, started: str, gate: str) -> None:
    Path(started).write_text(str(os.getpid()))
    with open(gate) as fifo:
        fifo.read()


def write_inside(boxes: list, started: str, gate: str) -> None:
    with boxes[0].borrow_mut() as a:
        write_then_wait(a, started, gate)


def lend_on(boxes: list, function: Callable[..., None], server: int, own: str, *args: str) -> None:
    if os.path.exists(own):
        return  # the second attempt
    Path(own).write_text(str(os.getpid()))
    below = drust.spawn(function, boxes[0].borrow_mut(), *args, server=server)
    # Not by a join: this worker, which is killed, would take the task itself meanwhile.
    look_again = threading.Event()
    while not below.done():
        look_again.wait(0.01)


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


@pytest.fixture(scope="module")
def session():
    with drust.init(servers=3, workers=2, heap_bytes="256MiB") as session:
        for server in range(3):
            drust.spawn(os.getpid, server=server).join(WITHIN_S)
        yield session


@pytest.fixture
def settled(session):
    before = account.take_at_rest(session)
    yield session
    account.check_settled(session, before)


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path, Path]:
    """Where the dying task and the one below it say who they are, and what the one below waits for."""
    own, started, gate = tmp_path / "own", tmp_path / "started", tmp_path / "gate"
    os.mkfifo(gate)
    return own, started, gate


@pytest.mark.parametrize("retry", [0, 1])
@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("below", [0, 1, 2])
def test_what_a_task_below_wrote_in_place_poisons(settled, files, server, below, retry):
    own, started, gate = files
    inner = drust.spawn(make, LARGE, server=below).join(WITHIN_S)
    box = Box([inner])
    args = [str(path) for path in files]
    job = drust.spawn(lend_on, box.borrow_mut(), write_then_wait, below, *args, server=server, retry=retry)
    pid_in(started)
    os.kill(pid_in(own), signal.SIGKILL)
    gate.write_text("x")
    with pytest.raises(WorkerLostError, match="poisoned"):
        job.join(WITHIN_S)
    with pytest.raises(PoisonedError, match="lend_on"), box.borrow():
        pass
    with box.recover() as boxes, boxes[0].borrow() as a:
        assert a[0] == 7
    del box, boxes, a, job, inner


@pytest.mark.parametrize("below", [0, 1, 2])
def test_what_a_task_below_was_writing_when_it_died_poisons(settled, files, below):
    own, started, _ = files
    box = drust.spawn(make_list, LARGE, server=below).join(WITHIN_S)
    outer = Box([box])
    args = [str(path) for path in files]
    job = drust.spawn(lend_on, outer.borrow_mut(), write_inside, below, *args, server=1)
    second = pid_in(started)
    os.kill(pid_in(own), signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="poisoned"):
        job.join(WITHIN_S)
    with outer.recover() as lists, lists[0].borrow() as boxes, boxes[0].borrow() as a:
        assert a[0] == 7
    del box, outer, lists, boxes, a, job


@pytest.mark.parametrize("server", [0, 1])
def test_a_child_that_a_dead_worker_was_writing_in_place_is_found_after_recover(settled, files, server):
    _, started, gate = files
    inner = drust.spawn(make, LARGE, server=server).join(WITHIN_S)
    box = Box([inner])
    job = drust.spawn(write_inside, box.borrow_mut(), str(started), str(gate), server=server)
    os.kill(pid_in(started), signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="poisoned"):
        job.join(WITHIN_S)
    with box.recover() as boxes, boxes[0].borrow() as a:
        assert a[0] == 7
    with box.borrow_mut() as boxes, boxes[0].borrow_mut() as a:
        a[0] = 8
    del box, boxes, a, job, inner


@pytest.mark.parametrize("below", [0, 1, 2])
@pytest.mark.parametrize(("function", "n"), [(write_then_wait, SMALL), (read_then_wait, LARGE)])
def test_what_a_task_below_did_not_write_in_place_is_rolled_back(settled, files, below, function, n):
    own, started, gate = files
    inner = drust.spawn(make, n, server=0).join(WITHIN_S)
    box = Box([inner])
    args = [str(path) for path in files]
    job = drust.spawn(lend_on, box.borrow_mut(), function, below, *args, server=1)
    pid_in(started)
    os.kill(pid_in(own), signal.SIGKILL)
    gate.write_text("x")
    if function is read_then_wait and below == 0:
        with pytest.raises(WorkerLostError, match="poisoned"):  # it could write: nobody knows that it did not
            job.join(WITHIN_S)
        with box.recover() as boxes, boxes[0].borrow() as a:
            assert not a.any()
    else:
        with pytest.raises(WorkerLostError, match="rolled back"):
            job.join(WITHIN_S)
        with box.borrow() as boxes, boxes[0].borrow() as a:
            assert not a.any()
    del box, boxes, a, job, inner


# -- versions inside of versions ----------------------------------------------------------------------


def make_deep() -> Box:
    return Box({"mark": 0, "in": Box({"mark": 0, "in": Box({"mark": 0, "leaf": Box(np.full(SMALL, 9))})})})


def marks(box: Box) -> tuple[int, int, int, float]:
    with (
        box.borrow() as top,
        top["in"].borrow() as middle,
        middle["in"].borrow() as low,
        low["leaf"].borrow() as leaf,
    ):
        return top["mark"], middle["mark"], low["mark"], float(leaf.sum())


def mark(value: dict) -> None:
    value["mark"] = 1


def mark_inside(value: dict) -> None:
    with value["in"].borrow_mut() as inside:
        mark(inside)


def look(value: dict) -> int:
    return value["mark"]


def publish_twice(top: dict, server: int) -> None:
    with top["in"].borrow_mut() as middle:
        drust.spawn(mark, middle["in"].borrow_mut(), server=server).join()
        mark(middle)
    drust.spawn(look, top["in"].borrow(), server=server).join()
    with top["in"].borrow_mut() as middle:
        mark(middle)


def open_again(top: dict, server: int) -> None:
    drust.spawn(mark_inside, top["in"].borrow_mut(), server=server).join()
    with top["in"].borrow_mut() as middle:
        mark(middle)


def take_out_and_put_back(top: dict, server: int) -> None:
    drust.spawn(mark_inside, top["in"].borrow_mut(), server=server).join()
    with top["in"].borrow_mut() as middle:
        low = middle.pop("in")
        middle["in"] = low
        mark(middle)


def take_out(top: dict, server: int) -> Box:
    drust.spawn(mark_inside, top["in"].borrow_mut(), server=server).join()
    with top["in"].borrow_mut() as middle:
        return middle.pop("in")


def change_what_was_taken_out(top: dict, server: int) -> None:
    low = take_out(top, server)
    with low.borrow_mut() as value:
        mark(value)
    with top["in"].borrow_mut() as middle:
        middle["in"] = low
        mark(middle)


def drop_the_leaf_of_what_was_taken_out(top: dict, server: int) -> None:
    with take_out(top, server).borrow_mut() as value:
        del value["leaf"]


def drop_it(top: dict, server: int) -> None:
    drust.spawn(mark_inside, top["in"].borrow_mut(), server=server).join()
    with top["in"].borrow_mut() as middle:
        del middle["in"]


def drop_it_changed(top: dict, server: int) -> None:
    with top["in"].borrow_mut() as middle:
        mark_inside(middle)
        del middle["in"]


_kept: list[Box] = []  # of a worker


def keep_it(top: dict, server: int) -> None:
    _kept.append(take_out(top, server))


def forget_kept(_: int) -> bool:
    had_some = bool(_kept)
    _kept.clear()
    return had_some


def drop_given(box: Box) -> None:
    del box


def give_it_away(top: dict, server: int) -> None:
    drust.spawn(drop_given, take_out(top, server), server=0).join()


def give_it_away_in_another(top: dict, server: int) -> None:
    drust.spawn(drop_given, Box([take_out(top, server)]), server=0).join()


def give_away_unchanged_in_another(top: dict, server: int) -> None:
    with top["in"].borrow_mut() as middle:
        low = middle.pop("in")
    drust.spawn(drop_given, Box([low]), server=server).join()


def send_it(top: dict, server: int) -> None:
    sender, receiver = drust.channel(1)
    sender.send(take_out(top, server))
    receiver.recv(WITHIN_S)


def change_deep(top: dict, way: Callable[[dict, int], Box | None], server: int, dies: bool) -> Box | None:
    result = way(top, server)
    mark(top)
    if dies:
        faults.arm_here("queue.return.written")
    return result


CHANGES = [publish_twice, open_again, take_out_and_put_back, change_what_was_taken_out]
DROPS = [drop_the_leaf_of_what_was_taken_out, drop_it, drop_it_changed, keep_it]
GIVES = [give_it_away, give_it_away_in_another, give_away_unchanged_in_another, send_it, take_out]


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("way", [*CHANGES, *DROPS, *GIVES])
def test_what_a_task_leaves_of_versions_inside_of_versions_is_in_memory_once(settled, way, server):
    box = make_deep()
    result = drust.spawn(change_deep, box.borrow_mut(), way, server, False, server=0).join(WITHIN_S)
    if way in CHANGES:
        assert marks(box) == (1, 1, 1, 9.0 * SMALL)
    if result is not None:
        with result.borrow() as low, low["leaf"].borrow() as leaf:
            assert leaf.sum() == 9 * SMALL
            del leaf
        del low
    if way is keep_it:
        wait_until(lambda: any(drust.map(forget_kept, range(8), server=0)))
    del box, result


def die_after(session: drust.Session, way: Callable[[dict, int], Box | None], server: int) -> None:
    box = make_deep()
    with pytest.raises(WorkerLostError):
        drust.spawn(change_deep, box.borrow_mut(), way, server, True, server=0).join(WITHIN_S)
    chaos.wait_attached(session)
    account.take_at_rest(session)
    if way in GIVES:
        with pytest.raises(PoisonedError):
            marks(box)
    else:
        assert marks(box) == (0, 0, 0, 9.0 * SMALL)


@pytest.mark.parametrize("way", [*CHANGES, *DROPS, *GIVES])
def test_what_a_version_inside_of_a_version_shares_is_its_lenders_until_it_is_moved(settled, way):
    die_after(settled, way, 0)


def test_a_version_elsewhere_that_a_lost_task_had_left_as_it_came_is_freed(session):
    before = account.take_at_rest(session)
    die_after(session, drop_it, 1)
    account.check_settled(session, before, UNNAMED_WITHIN_S)


@pytest.mark.parametrize("way", [*CHANGES, *DROPS, *GIVES])
def test_what_a_version_elsewhere_shares_is_its_lenders_until_it_is_moved(session, way):
    die_after(session, way, 1)
