"""What a crash leaves: one outcome for all that a task was lent, retries, orphans, and the memory account."""

import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import drust
from drust import Box, PoisonedError, WorkerLostError
from drust.errors import ConfigError, ServerLostError

LARGE = 200_000  # of 8 bytes: above the 1 MiB up to which a lend keeps a pre-image by itself
WITHIN_S = 20.0


def live_blocks() -> list[str]:
    here = drust.runtime.current()
    here.evict(2**40)  # copies are nobody's
    rows = here.largest_blocks(10_000)
    return sorted(f"codec {row['codec']}, {row['pointer'][2]} B, owner {row['owner_kind']}" for row in rows)


def account() -> list[list[str]]:
    """Live blocks of each server; the task that counts has some itself, wherever it runs."""
    servers = drust.current_session().servers
    return [drust.spawn(live_blocks, server=server).join(WITHIN_S) for server in range(servers)]


def comes_back_to(before: list[list[str]]) -> bool:
    """Frees travel, and what dead processes had on loan is looked at now and then."""
    gc.collect()  # tracebacks of expected errors hold the frames that hold boxes
    deadline = time.monotonic() + WITHIN_S / 4
    while time.monotonic() < deadline:
        drust.runtime.current().flush()
        after = account()
        if after == before:
            return True
    for old, new in zip(before, after, strict=True):
        print(
            "gone:", *(Counter(old) - Counter(new)).items(), "left:", *(Counter(new) - Counter(old)).items()
        )
    return False


@pytest.fixture
def settled(two_servers) -> Iterator[None]:
    """The account before a test; it must be the same afterwards."""
    account()  # whatever is made once, is made now
    before = account()
    yield
    assert comes_back_to(before)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_both_and_die(a: np.ndarray, b: np.ndarray) -> None:
    a[:] = 7
    b[:] = 7
    die()


def fill_and_die(a: np.ndarray) -> None:
    a[:] = 7
    die()


def fill(a: np.ndarray, value: float) -> None:
    a[:] = value


def total(a: np.ndarray) -> float:
    return float(a.sum())


# -- one outcome -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [0, 1])
def test_small_lends_of_one_task_roll_back_together(settled, server):
    boxes = [Box(np.zeros(10)), Box(np.ones(10))]
    with pytest.raises(WorkerLostError, match="were rolled back"):
        drust.spawn(fill_both_and_die, *(box.borrow_mut() for box in boxes), server=server).join(WITHIN_S)
    for value, box in enumerate(boxes):
        with box.borrow_mut() as a:
            assert (a == value).all()


def test_all_lends_are_poisoned_when_one_of_them_was_written_in_place(settled):
    small, large = Box(np.zeros(10)), Box(np.zeros(LARGE))
    with pytest.raises(WorkerLostError, match="are poisoned"):
        drust.spawn(fill_both_and_die, small.borrow_mut(), large.borrow_mut(), server=0).join(WITHIN_S)
    for box in (small, large):
        with pytest.raises(PoisonedError, match="fill_both_and_die"), box.borrow():
            pass
        box.replace(np.zeros(3))


def test_the_error_names_task_worker_signal_and_time_and_recover_shows_what_is_there(settled):
    box = Box(np.zeros(LARGE))
    with pytest.raises(WorkerLostError, match=r"pid \d+.*SIGKILL"):
        drust.spawn(fill_and_die, box.borrow_mut(), server=0).join(WITHIN_S)
    with pytest.raises(PoisonedError) as caught, box.borrow():
        pass
    error = caught.value
    assert error.task == "task fill_and_die"
    assert "pid" in error.worker
    assert "SIGKILL" in error.reason
    assert error.time.startswith("20")
    with box.recover() as a:
        assert (a == 7).all()
        a[:] = 1
    with box.borrow() as a:
        assert a.sum() == LARGE
    assert drust.spawn(total, box.borrow(), server=1).join(WITHIN_S) == LARGE


def test_recover_of_a_whole_value_is_a_mutable_borrow(settled):
    box = Box(np.zeros(3))
    with box.recover() as a:
        a += 1
    with box.borrow() as a:
        assert a.sum() == 3


def test_whoever_clears_a_poison_meets_no_copy_of_the_version_before(settled):
    box = Box(np.zeros(LARGE))
    assert drust.spawn(total, box.borrow(), server=1).join(WITHIN_S) == 0  # server 1 has a copy now
    with pytest.raises(WorkerLostError):
        drust.spawn(fill_and_die, box.borrow_mut(), server=0).join(WITHIN_S)
    box.recover()
    assert drust.spawn(total, box.borrow(), server=1).join(WITHIN_S) == 7 * LARGE


@pytest.mark.parametrize("server", [0, 1])
def test_undo_keeps_a_pre_image_of_any_size(settled, server):
    box = Box(np.zeros(LARGE))
    with pytest.raises(WorkerLostError, match="were rolled back"):
        drust.spawn(fill_and_die, box.borrow_mut(undo=True), server=server).join(WITHIN_S)
    with box.borrow() as a:
        assert not a.any()


def test_undo_is_taken_by_name_only():
    box = Box([1])
    with pytest.raises(TypeError, match="undo="):
        box.borrow_mut(None, True)
    with pytest.raises(TypeError):
        box.borrow(undo=True)
    with box.borrow_mut(timeout=1.0, undo=True) as value:
        value.append(2)


# -- values inside values --------------------------------------------------------------------------------


def change_children_and_die(boxes: list) -> None:
    with boxes[0].borrow_mut() as a:
        a[:] = 7
    boxes.append(Box(np.full(10, 7.0)))
    del boxes[1]
    die()


def change_children(boxes: list) -> None:
    with boxes[0].borrow_mut() as a:
        a[:] = 7
    boxes.append(Box(np.full(10, 7.0)))
    del boxes[1]


def sums(boxes: list) -> list[float]:
    result = []
    for box in boxes:
        with box.borrow() as a:
            result.append(float(a.sum()))
    return result


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("published", [False, True])
def test_boxes_inside_a_lent_value_are_as_before(settled, server, published):
    box = Box([Box(np.zeros(10)), Box(np.ones(10))])
    if published:
        assert drust.spawn(sums, box.borrow(), server=1).join(WITHIN_S) == [0, 10]
    with pytest.raises(WorkerLostError):
        drust.spawn(change_children_and_die, box.borrow_mut(), server=server).join(WITHIN_S)
    assert drust.spawn(sums, box.borrow(), server=server).join(WITHIN_S) == [0, 10]
    with box.borrow() as boxes:
        assert sums(boxes) == [0, 10]
    drust.spawn(change_children, box.borrow_mut(), server=server).join(WITHIN_S)
    with box.borrow() as boxes:
        assert sums(boxes) == [70, 70]


def take_out_and_die(boxes: list) -> None:
    boxes.pop().into_inner()
    die()


def test_a_child_that_was_taken_out_of_a_lent_value_cannot_be_rolled_back(two_servers):
    box = Box([Box(np.zeros(10)), Box(np.ones(10))])
    with pytest.raises(WorkerLostError, match=r"are poisoned|were rolled back"):
        drust.spawn(take_out_and_die, box.borrow_mut(), server=0).join(WITHIN_S)


# -- retry -----------------------------------------------------------------------------------------------


def die_first(path: str, a: np.ndarray, amount: np.ndarray) -> float:
    a += amount
    amount[:] = 1000
    if not Path(path).exists():
        Path(path).touch()
        die()
    return float(a.sum())


@pytest.mark.parametrize("server", [0, 1])
def test_a_retried_task_finds_what_the_first_run_found(settled, tmp_path, server):
    box = Box(np.zeros(10))
    once = str(tmp_path / "once")
    job = drust.spawn(die_first, once, box.borrow_mut(), np.ones(10), server=server, retry=1)
    assert job.join(WITHIN_S) == 10
    with box.borrow() as a:
        assert a.sum() == 10


def die_counting(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    die()


def test_retries_end_with_the_error_of_the_last(settled, tmp_path):
    counted = tmp_path / "counted"
    with pytest.raises(WorkerLostError):
        drust.spawn(die_counting, str(counted), retry=2).join(WITHIN_S)
    assert counted.read_text() == "xxx"


def test_nothing_is_retried_after_a_poison(settled, tmp_path):
    box = Box(np.zeros(LARGE))
    once = str(tmp_path / "once")
    with pytest.raises(WorkerLostError, match="poisoned"):
        drust.spawn(die_first, once, box.borrow_mut(), np.ones(LARGE), server=0, retry=5).join(WITHIN_S)


def test_a_task_that_moves_a_box_cannot_be_retried(settled):
    box = Box(np.zeros(10))
    with pytest.raises(ConfigError, match="clone"):
        drust.spawn(total, box, retry=1)
    with pytest.raises(ConfigError, match="retry="):
        drust.spawn(total, box.borrow(), retry=-1)
    with box.borrow_mut() as a:
        a += 1


# -- what was lent on ------------------------------------------------------------------------------------


def wait_and_fill(a: np.ndarray, gate: str, value: float) -> None:
    with open(gate) as fifo:
        fifo.read()
    a[:] = value


def lend_on_and_die(a_box: list, gate: str, ready: str) -> None:
    drust.spawn(wait_and_fill, a_box[0].borrow_mut(), gate, 5.0, server=1 - drust.runtime.current().server)
    with open(ready, "w") as fifo:
        fifo.write("x")
    die()


def own_lend_and_die(gate: str, ready: str) -> None:
    box = Box(np.zeros(10))
    drust.spawn(wait_and_fill, box.borrow_mut(), gate, 5.0, server=1 - drust.runtime.current().server)
    with open(ready, "w") as fifo:
        fifo.write("x")
    die()


def opened(path: Path) -> str:
    with open(path) as fifo:
        return fifo.read()


def open_gate(path: Path) -> None:
    with open(path, "w") as fifo:
        fifo.write("x")


@pytest.fixture
def gates(tmp_path) -> tuple[Path, Path]:
    gate, ready = tmp_path / "gate", tmp_path / "ready"
    os.mkfifo(gate)
    os.mkfifo(ready)
    return gate, ready


@pytest.mark.parametrize("server", [0, 1])
def test_a_loss_is_reported_only_when_what_was_lent_on_has_ended(settled, gates, server):
    gate, ready = gates
    box = Box([Box(np.zeros(10))])
    job = drust.spawn(lend_on_and_die, box.borrow_mut(), str(gate), str(ready), server=server)
    assert opened(ready) == "x"
    with pytest.raises(TimeoutError):
        job.join(timeout=1.0)  # the grandchild may still write
    open_gate(gate)
    with pytest.raises(WorkerLostError):
        job.join(WITHIN_S)
    with box.borrow() as boxes:
        assert sums(boxes) == [0]


@pytest.mark.parametrize("server", [0, 1])
def test_what_a_dead_worker_owned_stays_while_a_task_has_it(settled, gates, server):
    gate, ready = gates
    job = drust.spawn(own_lend_and_die, str(gate), str(ready), server=server)
    assert opened(ready) == "x"
    with pytest.raises(WorkerLostError):
        job.join(WITHIN_S)
    open_gate(gate)


def wait_and_look_inside(boxes: list, gate: str) -> None:
    with open(gate) as fifo:
        fifo.read()
    try:
        found = str(sums(boxes))  # what lies inside is opened only now
    except drust.DrustError as error:
        found = repr(error)
    with open(gate, "w") as fifo:
        fifo.write(found)


def own_nested_lend_and_die(gate: str, ready: str, to: int) -> None:
    box = Box([Box(np.ones(10))])
    drust.spawn(wait_and_look_inside, box.borrow(), gate, server=to)
    with open(ready, "w") as fifo:
        fifo.write("x")
    die()


@pytest.mark.parametrize("server", [0, 1])
def test_what_lies_inside_of_what_a_dead_worker_owned_is_there_for_a_task_that_has_it(settled, gates, server):
    gate, ready = gates
    job = drust.spawn(own_nested_lend_and_die, str(gate), str(ready), 1 - server, server=server)
    assert opened(ready) == "x"
    with pytest.raises(WorkerLostError):
        job.join(WITHIN_S)
    drust.spawn(len, [], server=server).join(WITHIN_S)  # by another worker: the dead one has been reaped
    open_gate(gate)
    assert opened(gate) == "[10.0]"


def lend_on_and_return(boxes: list) -> None:
    drust.spawn(fill, boxes[0].borrow_mut(), 5.0, server=1 - drust.runtime.current().server)


@pytest.mark.parametrize("server", [0, 1])
def test_a_task_returns_only_when_what_it_lent_on_is_back(settled, server):
    box = Box([Box(np.zeros(10))])
    for _ in range(5):
        drust.spawn(lend_on_and_return, box.borrow_mut(), server=server).join(WITHIN_S)
        with box.borrow() as boxes:
            assert sums(boxes) == [50]


def lend_on(boxes: list, server: int) -> None:
    drust.spawn(fill, boxes[0].borrow_mut(), 5.0, server=server).join()


def lend_on_elsewhere_join_and_die(boxes: list) -> None:
    lend_on(boxes, 1 - drust.runtime.current().server)
    die()


def lend_on_again_and_die(boxes: list) -> None:
    for server in (1, 0, 1):
        lend_on(boxes, server)
    die()


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("function", [lend_on_elsewhere_join_and_die, lend_on_again_and_die])
def test_what_a_task_got_back_from_below_goes_with_its_worker(settled, server, function):
    box = Box([Box(np.zeros(10))])
    with pytest.raises(WorkerLostError, match="were rolled back"):
        drust.spawn(function, box.borrow_mut(), server=server).join(WITHIN_S)
    with box.borrow() as boxes:
        assert sums(boxes) == [0]


def lend_on_again(boxes: list) -> None:
    for server in (1, 0, 1, 0):
        lend_on(boxes, server)


def lend_on_and_replace(boxes: list) -> None:
    lend_on(boxes, 1 - drust.runtime.current().server)
    boxes[0] = Box(np.full(10, 5.0))


def lend_on_and_drop(boxes: list) -> None:
    boxes.append(Box(np.full(10, 5.0)))
    lend_on(boxes, 1 - drust.runtime.current().server)
    del boxes[0]


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("function", [lend_on_again, lend_on_and_replace, lend_on_and_drop])
def test_versions_that_a_task_got_back_from_below_and_left_are_freed(settled, server, function):
    box = Box([Box(np.zeros(10))])
    drust.spawn(function, box.borrow_mut(), server=server).join(WITHIN_S)
    with box.borrow() as boxes:
        assert sums(boxes) == [50]


def wait_and_make(gate: str) -> Box:
    with open(gate) as fifo:
        fifo.read()
    return Box(np.ones(1000))


@pytest.mark.parametrize("server", [0, 1])
def test_what_a_server_brings_after_it_was_written_off_is_freed(settled, gates, monkeypatch, server):
    gate, _ = gates
    job = drust.spawn(wait_and_make, str(gate), server=server)

    def write_off() -> None:
        raise ServerLostError(object="task wait_and_make", server=f"server {server}", reason="it is silent")

    with monkeypatch.context() as patched, pytest.raises(ServerLostError, match="silent"):
        patched.setattr(drust.runtime, "check_alive", write_off)
        job.join(WITHIN_S)
    open_gate(gate)


# -- boxes on the move -----------------------------------------------------------------------------------


def keep_and_die(box: Box) -> None:
    with box.borrow() as a:
        a.sum()
    die()


def put_into_and_die(box: Box) -> None:
    around = Box([box])
    drust.spawn(len, around.borrow()).join()
    die()


def make() -> Box:
    return Box(np.ones(1000))


def make_many_and_die() -> None:
    kept = [Box(np.ones(1000)), Box({"inner": Box(np.ones(10))}), drust.spawn(make, server=0).join()]
    kept.append(drust.spawn(make, server=1).join())
    with kept[1].borrow() as inside:
        kept.append(inside["inner"].clone())
    del kept[1]
    drust.spawn(sums, Box(kept).borrow()).join()
    die()


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("function", [keep_and_die, put_into_and_die])
@pytest.mark.parametrize("home", [0, 1])
def test_a_box_that_was_moved_to_a_dead_worker_dies_with_it(settled, server, function, home):
    box = drust.spawn(make, server=home).join()
    with pytest.raises(WorkerLostError):
        drust.spawn(function, box, server=server).join(WITHIN_S)


@pytest.mark.parametrize("server", [0, 1])
def test_all_that_a_dead_worker_had_made_and_received_is_freed(settled, server):
    with pytest.raises(WorkerLostError):
        drust.spawn(make_many_and_die, server=server).join(WITHIN_S)


def hand_on_and_die(box: Box, gate: str) -> None:
    drust.spawn(wait_and_fill_box, box, gate, server=1 - drust.runtime.current().server)
    die()


def wait_and_fill_box(box: Box, gate: str) -> None:
    with open(gate) as fifo:
        fifo.read()
    with box.borrow_mut() as a:
        a += 1
    with open(gate, "w") as fifo:
        fifo.write("done")


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("home", [0, 1])
def test_a_box_that_was_handed_on_survives_its_last_owner_but_one(settled, gates, server, home):
    box = drust.spawn(make, server=home).join()
    gate, _ = gates
    with pytest.raises(WorkerLostError):
        drust.spawn(hand_on_and_die, box, str(gate), server=server).join(WITHIN_S)
    open_gate(gate)
    assert opened(gate) == "done"


# -- a receiver that does not answer ----------------------------------------------------------------------


def wait_and_add(a: np.ndarray, gate: str, ready: str) -> float:
    with open(ready, "w") as fifo:
        fifo.write("x")
    with open(gate) as fifo:
        fifo.read()
    a += 1
    return float(a.sum())


def until_stopped(pid: int) -> None:
    """A signal is pending until the process is scheduled: on a busy machine others of its threads go on."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        pass


def test_what_a_task_left_waits_for_a_lender_that_was_stopped(settled, gates):
    gate, ready = gates
    session = drust.current_session()
    box = Box(np.zeros(10))
    job = drust.spawn(wait_and_add, box.borrow_mut(), str(gate), str(ready), server=1)
    assert opened(ready) == "x"  # the array has come to server 1
    os.kill(session.pids[0], signal.SIGSTOP)
    try:
        until_stopped(session.pids[0])
        open_gate(gate)
        assert not job.done()
        with pytest.raises(TimeoutError):
            job.join(timeout=6.0)  # longer than a peer's silence is borne
    finally:
        os.kill(session.pids[0], signal.SIGCONT)
    assert job.join(WITHIN_S) == 10
    with box.borrow() as a:
        assert a.sum() == 10


class Unloadable:
    """A function that travels, and cannot be had where it arrives."""

    def __reduce__(self) -> tuple:
        return (int, ("no number",))

    def __call__(self, box: Box) -> None:
        raise AssertionError


@pytest.mark.parametrize("server", [0, 1])
def test_boxes_moved_to_a_task_whose_function_cannot_be_had_are_freed(settled, server):
    with pytest.raises(ValueError, match="no number"):
        drust.spawn(Unloadable(), Box(np.zeros(1000)), [Box(np.zeros(10))], server=server).join(WITHIN_S)
