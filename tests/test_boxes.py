"""Box on real memory: every kind of value, moves, nesting, dropping, bad input."""

import copy
import gc
import os
import pickle
import signal
import threading

import numpy as np
import pytest

import drust
from drust import BorrowMutError, Box, MovedError, OutOfMemoryError
from drust.errors import ForkedHandleError, ImmutableValueError, PickledBoxError, UnpicklableError
from fake_hooks import Unraisable


def same(value):
    return value


def total(a: np.ndarray) -> float:
    return float(a.sum())


def live() -> int:
    gc.collect()
    return drust.runtime.current().live_blocks()


VALUES = [
    {"a": [1, 2], "b": np.arange(5)},
    [1, "two", 3.0, None],
    b"bytes",
    bytearray(b"bytes"),
    "text",
    42,
    np.float32(1.5),
    np.zeros((0, 3)),
    np.array(7.0),
    np.arange(24).reshape(2, 3, 4)[:, ::-1, ::2],
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array([("a", 1.5)], dtype=[("name", "U8"), ("x", "<f4")]),
    np.array(["2024-01-01", "NaT"], dtype="datetime64[D]"),
    np.array([{"x": 1}, None], dtype=object),
    np.arange(4, dtype=">i4"),
]


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{str(value)[:20]!r}")
def test_every_kind_of_value_is_the_same_elsewhere(two_servers, value, server):
    box = Box(value)
    result = drust.spawn(same, box.borrow(), server=server).join()
    with box.borrow() as mine:
        for seen in (mine, result):
            assert type(seen) is type(value)
            np.testing.assert_equal(seen, value)


def test_a_box_frees_its_block_when_it_is_dropped(one_server):
    before = live()
    box = Box(np.zeros(100))
    assert live() == before + 1
    del box
    assert live() == before


def test_a_parent_takes_its_children_along(two_servers):
    before = live()
    parent = Box({"child": Box(np.zeros(100)), "list": [Box([1, 2])]})
    assert drust.spawn(sum_of_child, parent.borrow(), server=1).join() == 0
    with parent.borrow_mut() as p, p["child"].borrow_mut() as a:
        a += 1
    for server in (0, 1):
        assert drust.spawn(sum_of_child, parent.borrow(), server=server).join() == 100
    moved = drust.spawn(same, parent, server=1).join()
    with moved.borrow() as p, p["child"].borrow() as a:
        assert a.sum() == 100
    del moved, parent, p, a
    assert live() <= before + 1


def sum_of_child(parent: dict) -> float:
    with parent["child"].borrow() as a:
        return float(a.sum())


def raise_child(parent: dict, amount: float) -> None:
    with parent["child"].borrow_mut() as a:
        a += amount


def test_a_borrow_of_the_parent_lends_the_child_the_same_way(two_servers):
    parent = Box({"child": Box(np.zeros(10))})
    for server in (0, 1):
        with pytest.raises(BorrowMutError):
            drust.spawn(raise_child, parent.borrow(), 1.0, server=server).join()
        drust.spawn(raise_child, parent.borrow_mut(), 1.0, server=server).join()
    with parent.borrow() as p:
        with p["child"].borrow() as a:
            assert a.sum() == 20
        with pytest.raises(drust.BorrowError), p["child"].borrow_mut():
            pass


def test_a_child_is_reached_only_through_its_parent(one_server):
    child = Box(np.zeros(10))
    parent = Box([child])
    with pytest.raises(drust.BorrowError), child.borrow():
        pass
    with parent.borrow(), child.borrow() as a:
        assert a.sum() == 0


def test_clone_replace_and_into_inner(two_servers):
    box = Box(np.arange(5))
    twin = box.clone()
    with twin.borrow_mut() as a:
        a[:] = 0
    with box.borrow() as a:
        assert a.sum() == 10
    box.replace(np.ones(3))
    assert drust.spawn(total, box.borrow(), server=1).join() == 3
    assert box.into_inner().tolist() == [1, 1, 1]
    with pytest.raises(MovedError):
        box.clone()
    counter = Box(1)
    counter.replace(2)
    with counter.borrow() as n:
        assert n == 2


def test_an_immutable_value_cannot_be_borrowed_mutably(one_server):
    for value in (1, "a", (1, 2), None, 1.5, b"x", frozenset((1,))):
        with pytest.raises(ImmutableValueError, match="replace"), Box(value).borrow_mut():
            pass


def test_arrays_made_in_the_heap_are_not_copied(one_server, counting):
    counters = counting(one_server)
    zeros, full, empty = drust.zeros((10, 10)), drust.full(5, 7, dtype="i4"), drust.empty((2, 3), order="F")
    with zeros.borrow() as z, full.borrow() as f, empty.borrow() as e:
        assert z.sum() == 0
        assert f.tolist() == [7] * 5
        assert e.shape == (2, 3)
        assert e.flags.f_contiguous
    assert counters.since()["bytes_copied"] == 0


def test_repr_says_type_size_server_and_state(one_server):
    box = Box(np.zeros((8, 4)))
    assert "ndarray" in repr(box)
    assert "256" in repr(box)
    assert "server 0" in repr(box)
    with box.borrow():
        assert "1 borrow" in repr(box)
    drust.spawn(same, box).join()
    assert "moved" in repr(box)


def test_a_box_refuses_to_be_pickled_or_copied(one_server):
    box = Box({})
    with pytest.raises(PickledBoxError):
        pickle.dumps(box)
    for refuse in (copy.copy, copy.deepcopy):
        with pytest.raises((TypeError, drust.OwnershipError), match="clone"):
            refuse(box)


def test_an_unpicklable_value_is_refused_when_it_is_lent_and_stays(one_server):
    box = Box({"inner": [threading.Lock()]})
    with pytest.raises(UnpicklableError, match=r"\['inner'\]\[0\]"):
        drust.spawn(same, box.borrow())
    with box.borrow_mut() as value:
        value["inner"].clear()
    assert drust.spawn(same, box.borrow()).join() == {"inner": []}


def test_an_object_larger_than_the_heap_names_the_largest_objects(one_server):
    keep = Box(np.zeros(10_000_000))
    with pytest.raises(OutOfMemoryError, match=r"no room for 1\.4.*76\.\d+ MiB owned by process"):
        Box(np.zeros(200_000_000))
    with pytest.raises(MemoryError):
        drust.zeros(200_000_000)
    with keep.borrow() as a:
        assert a.sum() == 0


def test_memory_is_used_again_after_it_was_freed(one_server):
    for _ in range(30):
        Box(np.zeros(10_000_000))


def test_a_borrow_in_a_thread_is_seen_by_the_others(one_server):
    box = Box([])
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with box.borrow_mut():
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(drust.BorrowError, match=r"test_boxes\.py"), box.borrow():
        pass
    with pytest.raises(drust.BorrowTimeoutError), box.borrow(timeout=0.05):
        pass
    release.set()
    with box.borrow(timeout=20) as value:
        assert value == []
    thread.join()


def test_a_borrow_in_a_signal_handler_is_refused_like_any_other(one_server):
    box = Box([])
    seen: list[Exception] = []

    def handler(*_: object) -> None:
        try:
            with box.borrow():
                pass
        except drust.BorrowError as error:
            seen.append(error)

    old = signal.signal(signal.SIGUSR1, handler)
    try:
        with box.borrow_mut():
            os.kill(os.getpid(), signal.SIGUSR1)
            while not seen:
                pass
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert len(seen) == 1


def test_a_borrow_in_a_finaliser_works(one_server):
    box, seen = Box([1]), []

    class Finalised:
        def __del__(self) -> None:
            with box.borrow() as value:
                seen.append(list(value))

    Finalised()
    assert seen == [[1]]


def test_a_forked_child_finds_inert_handles(one_server):
    array, table = Box(np.zeros(10)), Box({})
    with array.borrow(), table.borrow():
        pass
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for box in (array, table):
                try:
                    with box.borrow():
                        os.write(write, b"borrowed ")
                except ForkedHandleError:
                    os.write(write, b"refused ")
            del array, table, box
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as answers:
        assert answers.read() == "refused refused "
    with array.borrow_mut() as a:
        a += 1


def test_use_after_shutdown_says_closed():
    with drust.init(workers=0, heap_bytes="64MiB"):
        box = Box(np.zeros(3))
    with pytest.raises(drust.ClosedError), box.borrow():
        pass
    with pytest.raises(drust.ClosedError):
        drust.spawn(same, 1)


@pytest.mark.parametrize("is_viewed", [False, True])
def test_a_write_that_outlives_its_session_ends_in_silence(is_viewed):
    with drust.init(workers=0, heap_bytes="64MiB"):
        box = Box(np.zeros(3))
        box._publish()  # others may know this version: the end of a write gives it another
        borrow = box.borrow_mut()
        view = borrow.__enter__()[1:] if is_viewed else borrow.__enter__()[0]
    with Unraisable() as seen:
        del borrow, box
        gc.collect()
    assert seen == []
    del view


def test_a_borrow_entered_twice_is_the_programs_mistake(one_server):
    borrow = Box({}).borrow()
    with borrow:
        pass
    with pytest.raises(drust.OwnershipError), borrow:
        pass
