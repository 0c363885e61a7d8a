"""Random programs on two real servers agree with the same programs on plain Python objects, always.

The model knows what each Box holds and whether a borrow must be refused. At the end of each program every Box
is dropped, and the memory account of both servers must be what it was.
"""

import copy
import gc

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

import drust
from drust import BorrowMutError, Box, MovedError

servers = st.integers(0, 1)
numbers = st.integers(-1000, 1000)


def read(value):
    """A copy of what a borrow shows, plain all the way down."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: read(item) for key, item in value.items()}
    if isinstance(value, Box):
        with value.borrow() as inner:
            return read(inner)
    return value


def change(value, key: int, number: int) -> None:
    """The same change to an array or a dict, with or without Boxes inside."""
    if isinstance(value, dict):
        child = value.get("child")
        if isinstance(child, Box):
            with child.borrow_mut() as array:
                array[key % len(array)] = number
        elif child is not None:
            child[key % len(child)] = number
        value[str(key)] = number
    else:
        value[key % len(value)] = number


def same(value):
    return value


def fill(rows: np.ndarray, number: int) -> None:
    rows[:] = number


class Programs(RuleBasedStateMachine):
    """`boxes` are names; `model` says what each one holds; a name that was moved away is in neither."""

    boxes = Bundle("boxes")

    def __init__(self) -> None:
        super().__init__()
        self.before = settled_blocks()
        self.live: dict[int, Box] = {}
        self.model: dict[int, object] = {}
        self.gone: list[Box] = []
        self.count = 0

    def add(self, box: Box, model: object) -> int:
        self.count += 1
        self.live[self.count] = box
        self.model[self.count] = model
        return self.count

    @rule(target=boxes, size=st.integers(1, 40), number=numbers, order=st.sampled_from("CF"))
    def make_array(self, size: int, number: int, order: str) -> int:
        return self.add(Box(np.full((size, 2), number, order=order)), [[number] * 2 for _ in range(size)])

    @rule(target=boxes, number=numbers)
    def make_dict(self, number: int) -> int:
        return self.add(Box({"a": number}), {"a": number})

    @rule(target=boxes, size=st.integers(1, 2000), number=numbers)
    def make_parent(self, size: int, number: int) -> int:
        return self.add(Box({"child": Box(np.full(size, number))}), {"child": [number] * size})

    @rule(target=boxes, box=boxes)
    def clone(self, box: int) -> int:
        return self.add(self.live[box].clone(), copy.deepcopy(self.model[box]))

    @rule(box=boxes)
    def look(self, box: int) -> None:
        assert read(self.live[box]) == self.model[box]

    @rule(box=boxes, server=servers)
    def lend(self, box: int, server: int) -> None:
        assert drust.spawn(read, self.live[box].borrow(), server=server).join() == self.model[box]

    def change_model(self, box: int, key: int, number: int) -> None:
        model = self.model[box]
        if isinstance(model, dict):
            change(model, key, number)
        else:
            model[key % len(model)] = [number] * 2

    @rule(box=boxes, key=st.integers(0, 50), number=numbers)
    def write(self, box: int, key: int, number: int) -> None:
        with self.live[box].borrow_mut() as value:
            change(value, key, number)
        self.change_model(box, key, number)

    @rule(box=boxes, key=st.integers(0, 50), number=numbers, server=servers)
    def lend_mutably(self, box: int, key: int, number: int, server: int) -> None:
        drust.spawn(change, self.live[box].borrow_mut(), key, number, server=server).join()
        self.change_model(box, key, number)

    @rule(box=boxes, parts=st.integers(1, 4), where=st.lists(servers, min_size=4, max_size=4))
    def write_parts(self, box: int, parts: int, where: list[int]) -> None:
        model = self.model[box]
        if isinstance(model, dict):
            return
        with drust.scope() as s:
            for index, part in enumerate(self.live[box].split_mut(parts)):
                s.spawn(fill, part, index, server=where[index])
        with self.live[box].borrow() as value:
            self.model[box] = value.tolist()
            assert {row[0] for row in self.model[box]} == set(range(min(parts, len(model))))

    @rule(target=boxes, box=consumes(boxes), server=servers)
    def move_through(self, box: int, server: int) -> int:
        moved = drust.spawn(same, self.live[box], server=server).join()
        self.gone.append(self.live.pop(box))
        return self.add(moved, self.model.pop(box))

    @rule(box=boxes, server=servers)
    def two_readers_and_no_writer(self, box: int, server: int) -> None:
        with self.live[box].borrow() as value:
            job = drust.spawn(read, self.live[box].borrow(), server=server)
            with pytest.raises(BorrowMutError), self.live[box].borrow_mut():
                pass
            assert read(value) == self.model[box]
            assert job.join() == self.model[box]

    @rule(box=boxes)
    def a_writer_refuses_everybody(self, box: int) -> None:
        with self.live[box].borrow_mut():
            with pytest.raises(drust.BorrowError), self.live[box].borrow():
                pass
            with pytest.raises(drust.BorrowError):
                drust.spawn(read, self.live[box].borrow())

    @rule(box=consumes(boxes))
    def drop(self, box: int) -> None:
        del self.live[box], self.model[box]

    @invariant()
    def moved_boxes_stay_moved(self) -> None:
        for box in self.gone:
            with pytest.raises(MovedError), box.borrow():
                pass

    def teardown(self) -> None:
        for box in self.live:
            assert read(self.live[box]) == self.model[box]
        self.live.clear()
        self.gone.clear()
        assert settled_blocks() <= self.before, "blocks leaked"


def settled_blocks() -> int:
    """Blocks alive on both servers, once the frees on their way have arrived."""
    counts = [live_blocks() for _ in range(5)]
    return min(counts)


def live_blocks() -> int:
    """Blocks alive on both servers but for copies, which nobody asks for any more."""
    gc.collect()
    return sum(drust.spawn(count_blocks, server=server).join() for server in (0, 1))


def count_blocks() -> int:
    gc.collect()
    here = drust.runtime.current()
    here.flush()
    here.evict(2**40)
    return here.live_blocks()


def test_random_programs_agree_with_plain_python_and_leak_nothing(two_servers):
    profile = settings(
        max_examples=25,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Programs, settings=profile)
