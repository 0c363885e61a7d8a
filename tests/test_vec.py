"""Vec: as a list, or as a 1-d array that grows, in chunks on two servers."""

import copy
import gc
import os
import signal
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import drust
from drust import Box, OutOfMemoryError, Session, Vec, WorkerLostError
from drust.errors import BorrowError, BorrowMutError, ConfigError, MovedError, PickledBoxError
from drust.testing import account

WITHIN_S = 60.0
FEW = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def settled(two_servers):
    before = account.take_at_rest(two_servers)
    yield two_servers
    gc.collect()
    account.check_settled(two_servers, before)


def double(values: np.ndarray) -> None:
    values *= 2


# -- as a list -----------------------------------------------------------------------------------------------


class VecMachine(RuleBasedStateMachine):
    """A Vec and a list to which the same is done."""

    items = st.integers(-100, 100)

    @initialize(
        dtype=st.sampled_from([None, "i4"]), chunk=st.integers(1, 7), first=st.lists(items, max_size=20)
    )
    def begin(self, dtype, chunk, first):
        self.vec = Vec(first, dtype=dtype, chunk=chunk, on=[0, 1])
        self.plain = list(first)

    @rule(item=items)
    def append(self, item):
        self.vec.append(item)
        self.plain.append(item)

    @rule(more=st.lists(items, max_size=20), is_array=st.booleans())
    def extend(self, more, is_array):
        self.vec.extend(np.array(more, "i8") if is_array else more)
        self.plain.extend(more)

    @precondition(lambda self: self.plain)
    @rule()
    def pop(self):
        assert self.vec.pop() == self.plain.pop()

    @rule()
    def clear(self):
        self.vec.clear()
        self.plain.clear()

    @precondition(lambda self: self.plain)
    @rule(data=st.data(), item=items)
    def set_and_get(self, data, item):
        place = data.draw(st.integers(-len(self.plain), len(self.plain) - 1))
        assert self.vec[place] == self.plain[place]
        self.vec[place] = self.plain[place] = item

    @rule(data=st.data())
    def look_at_some(self, data):
        places = data.draw(st.slices(len(self.plain)))
        assert list(self.vec[places]) == self.plain[places]

    @rule()
    def lend_chunks(self):
        with drust.scope() as tasks:
            for chunk in self.vec.chunks_mut():
                tasks.spawn(negate, chunk)
        self.plain = [-each for each in self.plain]

    @rule()
    def go_there_and_back(self):
        self.vec = drust.spawn(and_back, self.vec, server=1).join(WITHIN_S)

    @invariant()
    def has_the_same(self):
        if hasattr(self, "vec"):
            assert len(self.vec) == len(self.plain)
            assert list(self.vec) == self.plain


def negate(values):
    values[:] = [-each for each in values]


def and_back(vec: Vec) -> Vec:
    return vec


@pytest.mark.usefixtures("two_servers")
def test_a_vec_agrees_with_a_list():
    run_state_machine_as_test(VecMachine, settings=FEW)


def test_items_may_be_any_values_and_boxes(settled):
    vec: Vec = Vec(chunk=2, on=[1, 0])
    vec.extend(["a", {"b": 1}, None])
    vec.append(Box(np.arange(3)))
    assert vec[0] == "a"
    assert vec[1] == {"b": 1}
    box = vec.pop()
    with box.borrow() as values:
        assert values.sum() == 3
    assert vec.servers == [1]
    assert [each._box.server for each in vec.chunks()] == [1, 0]
    assert repr(vec) == "<Vec of 3 items, any, in 2 chunks>"
    del box, values


def test_chunks_lie_on_their_servers_in_turns(settled):
    assert Vec(range(10), chunk=2, on=[0, 1]).servers == [0, 1, 0, 1, 0]
    assert Vec(np.arange(10), dtype="f8", chunk=2, on=[1]).servers == [1] * 5
    assert Vec(range(10), chunk=4).servers == [0, 0], "the rest waits for the end of its chunk"


def test_an_append_costs_nothing_until_its_chunk_is_full(two_servers: Session, counting):
    vec = Vec(dtype="f8", chunk=100, on=[1])
    counters = counting(two_servers)
    for number in range(99):
        vec.append(number)
    assert counters.messages() == 0
    vec.append(99)
    since = counters.since()
    assert (since["write_requests"], since["submit_messages"]) == (1, 0)
    counters = counting(two_servers)
    assert vec[50] == 50
    assert vec[51] == 51
    assert counters.since()["read_requests"] == 1
    vec[50] = 7
    assert vec.servers == [1], "what is set is set where it lies"
    assert vec[50] == 7


def test_numbers_are_taken_if_they_can_be(two_servers):
    vec = Vec(dtype="u1")
    vec.append(255)
    with pytest.raises(OverflowError, match="256"):
        vec.append(256)
    with pytest.raises(TypeError):
        vec.append(1.5)
    with pytest.raises(ValueError, match="no item"):
        vec.append([1, 2])
    with pytest.raises(OverflowError):
        vec[0] = -1
    assert list(vec) == [255]
    short = Vec(dtype="u1", chunk=2)
    with pytest.raises(OverflowError):
        short.extend(np.arange(300))
    with pytest.raises(ValueError, match="dimensions"):
        short.extend(np.ones((3, 2), "u1"))
    assert len(short) == 0
    assert vec.to_numpy().dtype == np.uint8
    with pytest.raises(TypeError, match="dtype="):
        Vec("abc").to_numpy()
    with pytest.raises(TypeError, match="leave dtype out"):
        Vec(dtype=object)


def test_places_and_settings_that_there_are_not_are_refused(two_servers):
    vec = Vec(range(3))
    for place in (3, -4):
        with pytest.raises(IndexError, match="3 items"):
            vec[place]
        with pytest.raises(IndexError, match="3 items"):
            vec[place] = 1
    with pytest.raises(IndexError, match="pop from empty"):
        Vec().pop()
    for chunk in (0, "a", 1.5):
        with pytest.raises(ConfigError, match="chunk="):
            Vec(chunk=chunk)
    with pytest.raises(ConfigError, match="on="):
        Vec(on=[7])


# -- its chunks ----------------------------------------------------------------------------------------------


def test_chunks_are_lent_to_tasks_in_place(two_servers: Session, counting):
    vec = Vec(np.arange(1000.0), dtype="f8", chunk=100, on=[0, 1])
    vec.update_chunks(double)
    counters = counting(two_servers)
    vec.update_chunks(double)
    since = counters.since()
    assert (since["submit_messages"], since["read_requests"]) == (1, 0)
    np.testing.assert_array_equal(vec.to_numpy(), np.arange(1000) * 4)
    assert vec.servers == [0, 1] * 5


def test_mapped_chunks_stay_where_they_lie(settled):
    words = Vec(["a", "bb", "ccc"] * 5, chunk=4, on=[0, 1])
    lengths = words.map_chunks(lambda chunk, more: [len(word) + more for word in chunk], 1)
    assert list(lengths) == [2, 3, 4] * 5
    assert lengths.dtype is None
    assert lengths.servers == words.servers == [0, 1, 0, 1]
    numbers = words.map_chunks(lambda chunk: np.array([len(word) for word in chunk], "f4"))
    assert numbers.dtype == np.float32
    numbers.append(7)
    assert numbers.to_numpy().sum() == 37
    assert list(Vec().map_chunks(list)) == []


def test_chunks_of_another_length_are_refused(settled):
    vec = Vec(range(10), chunk=4, on=[0, 1])
    with pytest.raises(ValueError, match="a chunk of 4 items came back with 3"):
        vec.map_chunks(lambda chunk: chunk[1:])
    with pytest.raises(ValueError, match="a chunk of 4 items came back with 3"):
        vec.update_chunks(lambda chunk: chunk.pop())
    assert list(vec) == list(range(10))
    with pytest.raises(ValueError, match="float32"):
        vec.map_chunks(lambda chunk: np.array(chunk, "f4" if chunk[0] else "f8"))


def test_what_is_lent_is_refused_to_others_and_nothing_is_lost(settled):
    vec = Vec(range(10), chunk=4)
    first, *_, last = vec.chunks_mut()
    with first, last:
        with pytest.raises(BorrowError):
            vec[0]
        with pytest.raises(BorrowMutError):
            vec.pop()
        vec.append(10)
        with pytest.raises(BorrowMutError):
            vec.append(11)
        assert len(vec) == 11
        assert vec[10] == 10
    assert list(vec) == list(range(11))
    vec.append(11)
    assert list(vec) == list(range(12))
    del first, _, last


def test_an_item_for_which_there_is_no_room_is_not_added():
    with drust.init(servers=1, workers=1, heap_bytes="16MiB"):
        vec = Vec(dtype="f8", chunk=2**18)
        with pytest.raises(OutOfMemoryError):
            vec.extend(np.arange(2.0**22))
        length = len(vec)
        assert 0 < length < 2**22
        assert vec[length - 1] == length - 1


def test_it_moves_into_a_task(settled):
    vec = Vec(range(10), chunk=4)
    assert drust.spawn(sum, vec).join(WITHIN_S) == 45
    with pytest.raises(MovedError):
        vec[0]
    gone = Vec(range(3))
    drust.spawn(sum, gone).join(WITHIN_S)
    with pytest.raises(MovedError):
        gone.append(9)
    with pytest.raises(MovedError):
        gone.pop()
    del gone


def test_what_is_appended_during_an_iteration_is_met_as_in_a_list(settled):
    vec, plain = Vec(["a", "b"], chunk=4), ["a", "b"]
    vec.chunks()
    vec.append("c")
    plain.append("c")
    vec.extend(vec[:])
    plain.extend(plain[:])
    assert list(vec) == plain
    met = []
    for item in vec:
        met.append(item)
        if len(vec) < 12:
            vec.append(item)
            vec.chunks()
    assert met == list(vec)
    assert len(met) == 12


def shorten_and_raise(chunk):
    chunk.append(99)
    raise KeyError("shortened")


def test_a_function_that_raises_does_not_leave_a_chunk_of_another_length(settled):
    vec = Vec(range(8), chunk=4, on=[0, 1])
    with pytest.raises(KeyError, match="shortened"):
        vec.update_chunks(shorten_and_raise)
    assert list(vec) == list(range(8))
    with pytest.raises(ValueError, match="2-d"):
        vec.map_chunks(lambda chunk: np.stack([chunk, chunk], 1))


def test_a_copy_that_would_own_the_same_chunks_is_refused(two_servers):
    with pytest.raises(PickledBoxError, match="own the same chunks"):
        copy.copy(Vec(range(8)))


def test_items_of_several_fields_are_no_views_of_their_chunk(settled):
    vec = Vec([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")])
    vec.chunks()
    kept = [vec[0], *vec]
    vec[0] = np.array((7, 8.5), vec.dtype)
    assert [tuple(each) for each in kept] == [(1, 2.5), (1, 2.5), (3, 4.5)]
    assert tuple(vec[0]) == (7, 8.5)


def die_at(values: list, flag: str) -> None:
    is_it = values[0] == 4
    values[:] = [-each for each in values]
    if is_it and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("retry", [0, 1])
def test_a_worker_that_dies_leaves_its_chunk_as_it_was(settled, tmp_path, retry):
    vec = Vec(range(10), chunk=4, on=[0, 1])
    flag = str(tmp_path / "flag")
    if retry:
        vec.update_chunks(die_at, flag, retry=1)
        assert list(vec) == [-each for each in range(10)]
    else:
        with pytest.raises(WorkerLostError):
            vec.update_chunks(die_at, flag)
        assert list(vec) == [0, -1, -2, -3, 4, 5, 6, 7, -8, -9]
