"""A task moves the Boxes inside what it was lent: each is freed exactly once, when nobody has it any more."""

import os
import signal

import numpy as np
import pytest

import drust
from drust import Box, WorkerLostError
from drust.testing import account

WITHIN_S = 20.0
kept: list[Box] = []  # of a worker


@pytest.fixture(scope="module")
def session():
    with drust.init(servers=2, workers=1, heap_bytes="64MiB") as session:
        for server in range(2):
            drust.spawn(os.getpid, server=server).join(WITHIN_S)
        yield session


@pytest.fixture
def settled(session):
    before = account.take_at_rest(session)
    yield session
    account.check_settled(session, before, 3)


def array(value: float) -> Box:
    return Box(np.full(100, value))


def make_value() -> Box:
    return Box({"a": array(1), "inner": Box({"x": array(2), "deep": Box({"y": array(3)})})})


def found(value: dict) -> dict:
    """What lies in a tree of dicts of Boxes, as a tree of numbers."""
    tree = {}
    for name, box in value.items():
        with box.borrow() as inside:
            tree[name] = found(inside) if isinstance(inside, dict) else float(inside[0])
    return tree


# -- moves, each by what it leaves of make_value() -----------------------------------------------------------


def move_down(value: dict) -> None:
    with value["inner"].borrow_mut() as inner:
        inner["a"] = value.pop("a")


def move_up(value: dict) -> None:
    with value["inner"].borrow_mut() as inner:
        value["x"] = inner.pop("x")


def move_down_two(value: dict) -> None:
    with value["inner"].borrow_mut() as inner, inner["deep"].borrow_mut() as deep:
        deep["a"] = value.pop("a")


def move_up_two(value: dict) -> None:
    with value["inner"].borrow_mut() as inner, inner["deep"].borrow_mut() as deep:
        value["y"] = deep.pop("y")


def move_up_and_drop_the_rest(value: dict) -> None:
    with value["inner"].borrow_mut() as inner:
        value["x"] = inner.pop("x")
    del value["inner"]


def move_into_a_new_box(value: dict) -> None:
    value["new"] = Box({"a": value.pop("a")})


def move_a_tree_up(value: dict) -> None:
    with value["inner"].borrow_mut() as inner:
        value["deep"] = inner.pop("deep")


def move_a_changed_tree_up(value: dict) -> None:
    with value["inner"].borrow_mut() as inner:
        with inner["deep"].borrow_mut() as deep, deep["y"].borrow_mut() as y:
            y[:] = 7
        value["deep"] = inner.pop("deep")


def move_down_and_up(value: dict) -> None:
    move_down(value)
    with value["inner"].borrow_mut() as inner:
        value["again"] = inner.pop("a")


def drop_what_was_moved(value: dict) -> None:
    move_down(value)
    with value["inner"].borrow_mut() as inner:
        del inner["a"]


def drop_after_a_borrow(value: dict) -> None:
    with value["inner"].borrow_mut() as inner:
        inner["more"] = array(4)
    del value["inner"]


def drop_deep_after_a_borrow(value: dict) -> None:
    with value["inner"].borrow_mut() as inner, inner["deep"].borrow_mut() as deep:
        deep["more"] = array(4)
    value.clear()


def drop_a_new_box_with_a_moved_one(value: dict) -> None:
    move_into_a_new_box(value)
    drust.spawn(found, value["new"].borrow()).join(WITHIN_S)
    del value["new"]


def move_down_after_a_look(value: dict) -> None:
    a = value.pop("a")
    with a.borrow() as array:
        assert array[0] == 1
    with value["inner"].borrow_mut() as inner:
        inner["a"] = a


def move_down_what_was_changed(value: dict) -> None:
    a = value.pop("a")
    with a.borrow_mut() as array:
        array[:] = 6
    with value["inner"].borrow_mut() as inner:
        inner["a"] = a


def take_out_and_change_a_tree(value: dict) -> None:
    inner = value.pop("inner")
    with inner.borrow_mut() as tree, tree.pop("deep").borrow_mut() as deep:
        value["y"] = deep.pop("y")
    value["inner"] = inner


def drop_after_a_look(value: dict) -> None:
    with value.pop("a").borrow():
        pass


INNER = {"x": 2.0, "deep": {"y": 3.0}}
MOVES = {
    move_down: {"inner": {**INNER, "a": 1.0}},
    move_up: {"a": 1.0, "x": 2.0, "inner": {"deep": {"y": 3.0}}},
    move_down_two: {"inner": {"x": 2.0, "deep": {"y": 3.0, "a": 1.0}}},
    move_up_two: {"a": 1.0, "y": 3.0, "inner": {"x": 2.0, "deep": {}}},
    move_up_and_drop_the_rest: {"a": 1.0, "x": 2.0},
    move_into_a_new_box: {"inner": INNER, "new": {"a": 1.0}},
    move_a_tree_up: {"a": 1.0, "inner": {"x": 2.0}, "deep": {"y": 3.0}},
    move_a_changed_tree_up: {"a": 1.0, "inner": {"x": 2.0}, "deep": {"y": 7.0}},
    move_down_and_up: {"inner": INNER, "again": 1.0},
    move_down_after_a_look: {"inner": {**INNER, "a": 1.0}},
    move_down_what_was_changed: {"inner": {**INNER, "a": 6.0}},
    take_out_and_change_a_tree: {"a": 1.0, "y": 3.0, "inner": {"x": 2.0}},
    drop_after_a_look: {"inner": INNER},
    drop_what_was_moved: {"inner": INNER},
    drop_after_a_borrow: {"a": 1.0},
    drop_deep_after_a_borrow: {},
    drop_a_new_box_with_a_moved_one: {"inner": INNER},
}
BEFORE = {"a": 1.0, "inner": INNER}


def move_here(value: dict, name: str) -> int:
    globals()[name](value)
    return os.getpid()


def move_and_die(value: dict, name: str) -> None:
    globals()[name](value)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_what_a_task_moved_in_what_it_was_lent_is_there_and_the_rest_is_freed(settled, move, home, server):
    box = drust.spawn(make_value, server=home).join(WITHIN_S)
    worker = drust.spawn(move_here, box.borrow_mut(), move.__name__, server=server).join(WITHIN_S)
    os.kill(worker, signal.SIGKILL)  # nothing of it was the worker's own
    account.rest(settled)
    fill = [array(9) for _ in range(8)]  # whatever was freed is in use again
    with box.borrow() as value:
        assert found(value) == MOVES[move]
    del box, fill, value


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_what_a_task_moved_is_where_it_was_when_its_worker_is_killed(settled, move, server):
    box = drust.spawn(make_value, server=0).join(WITHIN_S)
    with pytest.raises(WorkerLostError):
        drust.spawn(move_and_die, box.borrow_mut(), move.__name__, server=server).join(WITHIN_S)
    account.rest(settled)
    fill = [array(9) for _ in range(8)]
    with box.borrow() as value:
        assert found(value) == BEFORE
    del box, fill, value


# -- out of what was lent ----------------------------------------------------------------------------------


def return_one(value: dict) -> Box:
    move_down(value)
    with value["inner"].borrow_mut() as inner:
        return inner.pop("a")


def return_in_a_new_box(value: dict) -> Box:
    return Box({"a": value.pop("a")})


def return_among_much(value: dict) -> list:
    return [Box({"a": value.pop("a")}), bytes(2**17)]


def take_in(box: Box) -> list:
    return [found({"it": box})["it"], box]


def take_apart(box: Box) -> list:
    return list(box.into_inner().values())


def give_to_a_task_below(value: dict) -> Box:
    return drust.spawn(take_in, value.pop("a")).join(WITHIN_S)[1]


def give_to_a_task_below_that_takes_it_apart(value: dict) -> Box:
    return drust.spawn(take_apart, Box({"a": value.pop("a")})).join(WITHIN_S)[0]


OUT = [
    return_one,
    return_in_a_new_box,
    return_among_much,
    give_to_a_task_below,
    give_to_a_task_below_that_takes_it_apart,
]


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("function", OUT, ids=lambda function: function.__name__)
def test_what_a_task_took_out_of_what_it_was_lent_is_its_receivers(settled, function, home, server):
    box = drust.spawn(make_value, server=home).join(WITHIN_S)
    result = drust.spawn(function, box.borrow_mut(), server=server).join(WITHIN_S)
    account.rest(settled)
    fill = [array(9) for _ in range(8)]
    with box.borrow() as value:
        assert found(value) == {"inner": INNER}
    del box, value
    account.rest(settled)
    fill += [array(9) for _ in range(8)]
    taken = result[0] if isinstance(result, list) else result
    assert found({"it": taken})["it"] in (1.0, {"a": 1.0})
    del taken, result, fill


def keep_one(value: dict) -> None:
    kept.append(value.pop("a"))


def look_at_kept() -> list[float]:
    return [found({"it": box})["it"] for box in kept]


def forget_kept() -> None:
    kept.clear()


@pytest.mark.parametrize("home", [0, 1])
def test_what_a_task_keeps_in_its_worker_is_there_until_the_worker_drops_it(settled, home):
    box = drust.spawn(make_value, server=home).join(WITHIN_S)
    drust.spawn(keep_one, box.borrow_mut(), server=1).join(WITHIN_S)
    fill = [array(9) for _ in range(8)]
    with box.borrow() as value:
        assert found(value) == {"inner": INNER}
    del box, value
    assert drust.spawn(look_at_kept, server=1).join(WITHIN_S) == [1.0]
    drust.spawn(forget_kept, server=1).join(WITHIN_S)
    del fill
