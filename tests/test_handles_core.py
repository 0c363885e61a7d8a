"""The rules of Box, Ref and RefMut on values of this process, each shown accepting and rejecting."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from drust._core import Box, Pin, Ref, RefMut
from fake_hooks import Hooks, enter, leave, refused


@pytest.fixture(autouse=True)
def hooks() -> Iterator[Hooks]:
    with Hooks().installed() as fakes:
        yield fakes


# -- borrows of live values ------------------------------------------------------------------------


def test_a_borrow_hands_out_the_value_itself() -> None:
    value = {"a": 1}
    box = Box(value)
    with box.borrow() as read:
        assert read is value
    with box.borrow_mut() as written:
        assert written is value
        written["b"] = 2
    with box.borrow() as read:
        assert read == {"a": 1, "b": 2}


def test_many_readers_are_let_in_and_no_writer() -> None:
    box = Box([1])
    with box.borrow(), box.borrow(), box.borrow():
        assert box._state()["readers"] == 3
        with refused("borrow_mut", "cannot borrow it mutably: it is borrowed by thread MainThread"):
            enter(box.borrow_mut())
    with box.borrow_mut():
        pass


def test_one_writer_is_let_in_and_nobody_else() -> None:
    box = Box([1])
    with box.borrow_mut():
        with refused("borrow", "mutably borrowed"):
            enter(box.borrow())
        with refused("borrow_mut", "mutably borrowed"):
            enter(box.borrow_mut())
    with box.borrow():
        pass


def test_a_refusal_names_thread_process_place_and_age() -> None:
    box = Box([1])
    with box.borrow_mut():
        line = sys._getframe().f_lineno - 1
        with refused("borrow") as caught:
            enter(box.borrow())
    fields = caught.value.fields
    assert fields["line"] == line
    assert fields["file"] == __file__
    assert fields["thread"] == "MainThread"
    assert fields["mode"] == "mutable"
    assert fields["function"] == "test_a_refusal_names_thread_process_place_and_age"
    assert 0 <= fields["age_s"] < 60
    assert f"test_handles_core.py:{line}" in str(caught.value)
    assert "s ago" in str(caught.value)
    assert "Box[list]" in str(caught.value)


def test_a_borrow_begins_when_entered_not_when_asked_for() -> None:
    box = Box([1])
    reading, writing = box.borrow(), box.borrow_mut()
    assert box._state()["phase"] == "owned"
    with writing:
        pass
    with reading:
        pass


def test_a_reference_is_entered_once_and_left_once() -> None:
    box = Box([1])
    guard = box.borrow()
    with refused("entered_twice", "has not begun"):
        leave(guard)
    enter(guard)
    with refused("entered_twice", "begun already"):
        enter(guard)
    leave(guard)
    with refused("entered_twice", "has ended"):
        enter(guard)
    with refused("entered_twice", "has ended"):
        leave(guard)
    assert box._state()["phase"] == "owned"


def test_a_guard_that_dies_ends_its_borrow() -> None:
    box = Box([1])
    guard = box.borrow_mut()
    enter(guard)
    assert box._state()["phase"] == "modified"
    del guard
    assert box._state()["phase"] == "owned"


def test_an_exception_leaves_the_block_and_ends_the_borrow() -> None:
    box = Box([1])
    with pytest.raises(KeyError), box.borrow_mut():
        raise KeyError("x")
    with box.borrow():
        pass


IMMUTABLE = [1, True, 1.5, 1j, "text", b"bytes", (1, 2), frozenset({1}), None]


@pytest.mark.parametrize("value", IMMUTABLE, ids=repr)
def test_a_mutable_borrow_of_an_immutable_value_names_the_ways_out(value: Any) -> None:
    box = Box(value)
    with refused("immutable", r"replace\(\).*Atomic"):
        enter(box.borrow_mut())
    with refused("immutable"):
        box._lend_mut()
    with box.borrow() as read:
        assert read is value
    box.replace([value])
    with box.borrow_mut() as written:
        written.append(1)


def test_one_that_turns_out_immutable_when_decoded_is_refused_unharmed(hooks: Hooks) -> None:
    box = Box._from_pin(hooks.pickled((1, 2)), "owned", "tuple")
    with refused("immutable"):
        enter(box.borrow_mut())
    with box.borrow() as value:
        assert value == (1, 2)


# -- waiting ---------------------------------------------------------------------------------------


def test_a_timeout_waits_for_another_thread() -> None:
    box = Box([1])
    entered = threading.Event()
    waiting = threading.Event()

    def hold() -> None:
        with box.borrow():
            entered.set()
            waiting.wait()
            # The main thread is about to wait; whichever comes first, it gets in.

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    guard = box.borrow_mut(timeout=30)
    waiting.set()
    with guard as value:
        value.append(2)
    thread.join()


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_a_timeout_that_runs_out_refuses_and_says_how_long(timeout_s: float) -> None:
    box = Box([1])
    with box.borrow():
        began = time.monotonic()
        with refused("borrow_mut", "waited") as caught:
            enter(box.borrow_mut(timeout=timeout_s))
        assert time.monotonic() - began >= timeout_s
        assert caught.value.fields["waited_s"] >= timeout_s
    with box.borrow_mut(timeout=0):
        pass


@pytest.mark.parametrize("bad", [-1, float("nan"), "soon"])
def test_a_timeout_that_is_no_duration_is_refused(bad: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Box([1]).borrow(timeout=bad)
    with pytest.raises(TypeError):
        Box([1]).borrow(1, 2)
    with pytest.raises(TypeError):
        Box([1]).borrow(patience=1)


def test_threads_that_wait_for_each_other_all_get_in_and_lose_no_update() -> None:
    box = Box([0])

    def add() -> None:
        for _ in range(200):
            with box.borrow_mut(timeout=60) as value:
                value[0] += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with box.borrow() as value:
        assert value == [800]


# -- moves, values in and out ----------------------------------------------------------------------


def test_a_moved_box_names_the_line_that_moved_it() -> None:
    box = Box([1])
    _, value = box._transfer(encode=False)
    line = sys._getframe().f_lineno - 1
    assert value == [1]
    for use in (
        lambda: enter(box.borrow()),
        lambda: enter(box.borrow_mut()),
        box.into_inner,
        box.clone,
        lambda: box.replace(1),
        lambda: box.split_mut(2),
        box._lend_shared,
        box._transfer,
    ):
        with refused("moved", f"moved at .*test_handles_core.py:{line}"):
            use()
    assert "moved at" in repr(box)
    assert box._state()["phase"] == "moved"


def test_a_transfer_takes_the_location_it_is_given() -> None:
    box = Box([1])
    box._transfer("notebook:12", encode=False)
    with refused("moved", "moved at notebook:12"):
        enter(box.borrow())


def test_a_borrowed_box_cannot_be_moved_taken_or_replaced() -> None:
    box = Box([1])
    with box.borrow():
        for use in (box._transfer, box.into_inner, lambda: box.replace([2])):
            with refused("borrow_mut"):
                use()
        assert enter(box.clone().borrow_mut()) == [1]


def test_an_undone_transfer_gives_the_value_back() -> None:
    box = Box([1])
    box._transfer_undone(*box._transfer(encode=False))
    with box.borrow_mut() as value:
        assert value == [1]
    with pytest.raises(ValueError, match="not moved"):
        box._transfer_undone(None, [2])


def test_a_transfer_publishes_what_was_never_encoded(hooks: Hooks) -> None:
    box = Box({"a": 1})
    pin, value = box._transfer()
    assert hooks.calls == ["publish"]
    assert pickle.loads(bytes(pin.buffer(0))) == value == {"a": 1}
    received = Box._from_pin(pin, "owned", "dict")
    with received.borrow_mut() as decoded:
        decoded["b"] = 2
    assert received.into_inner() == {"a": 1, "b": 2}


def test_a_transfer_that_cannot_be_encoded_changes_nothing(hooks: Hooks) -> None:
    box = Box({"a": 1})
    hooks.fail = ValueError("no codec")
    with pytest.raises(ValueError, match="no codec"):
        box._transfer()
    with pytest.raises(ValueError, match="no codec"):
        box._lend_shared()
    with pytest.raises(ValueError, match="no codec"):
        box._lend_mut()
    assert box._state()["phase"] == "owned"
    assert not box._state()["published"]
    with box.borrow_mut() as value:
        assert value == {"a": 1}


def test_into_inner_gives_the_value_and_uses_the_box_up() -> None:
    value = [1]
    box = Box(value)
    assert box.into_inner() is value
    with refused("moved", "into_inner"):
        enter(box.borrow())


def test_replace_exchanges_the_value_and_its_kind() -> None:
    box = Box([1])
    box.replace(np.arange(3.0))
    with box.borrow_mut() as a:
        a += 1
        assert a.tolist() == [1, 2, 3]
    box.replace("text")
    with box.borrow() as value:
        assert value == "text"
    assert "Box[str]" in repr(box)


def test_a_clone_is_deep_and_apart() -> None:
    box = Box({"a": [1]})
    other = box.clone()
    with other.borrow_mut() as value:
        value["a"].append(2)
    with box.borrow() as value:
        assert value == {"a": [1]}


def test_copying_and_pickling_a_box_or_a_reference_are_refused() -> None:
    box = Box([1])
    for copied in (copy.copy, copy.deepcopy):
        with refused("copied", "clone"):
            copied(box)
    for handle in (box, box.borrow()):
        with refused("pickled"):
            pickle.dumps(handle)


def test_a_box_is_compared_by_identity() -> None:
    box, other = Box([1]), Box([1])
    assert box == box
    assert box != other
    assert len({box, other}) == 2
    assert bool(Box([]))
    assert Box[int].__origin__ is Box
    assert Ref[int].__origin__ is Ref
    assert RefMut[int].__args__ == (int,)
    with pytest.raises(TypeError):
        Ref()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        type("Mine", (Box,), {})


def test_a_box_in_a_cycle_is_collected() -> None:
    box = Box({})
    link = weakref.ref(box)
    with box.borrow_mut() as value:
        value["self"] = box
        value["guard"] = box.borrow()
    del box, value
    gc.collect()
    assert link() is None


def test_the_block_dies_with_its_box() -> None:
    box = Box(np.zeros(10))
    link = weakref.ref(box._pin)
    del box
    assert link() is None


def test_repr_of_a_pin_tells_which_version_of_which_block_it_holds() -> None:
    pin = Pin.private(1, b"", [100])
    address, colour, extent = pin.pointer
    offset = address % 2**36 * 16
    assert repr(pin) == f"<Pin server 4095, offset {offset}, colour {colour:x}, {extent} bytes>"


def test_repr_tells_type_size_place_and_state() -> None:
    assert repr(Box([1])) == "<Box[list]: live, owned>"
    box = Box(np.zeros((1024, 128)))
    assert repr(box) == "<Box[ndarray]: 1.0 MiB on server 4095, owned>"
    with box.borrow():
        assert "1 borrow, 0 lends" in repr(box)
    with box.borrow_mut():
        assert "mutably borrowed" in repr(box)


# -- the process ends or forks ---------------------------------------------------------------------


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_forked_child_finds_inert_handles_and_makes_its_own() -> None:
    script = (
        "import os\nfrom drust._core import Box\n"
        "box, borrowed = Box([1]), Box([2])\n"
        "guard = borrowed.borrow()\nguard.__enter__()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        box.borrow().__enter__()\n"
        "    except RuntimeError as error:\n"
        "        print('forked child' in str(error), flush=True)\n"
        "    with Box([3]).borrow() as mine:\n"
        "        print(mine, flush=True)\n"
        "    del box, guard, borrowed\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "with box.borrow() as value:\n"
        "    print(value)\n"
    )
    assert run(script) == "True\n[3]\n[1]\n"


def test_the_interpreter_ends_with_borrows_and_lends_open() -> None:
    script = (
        "import threading\nfrom drust import _core\nfrom drust._core import Box, Pin\n"
        "_core.set_hooks(publish=lambda box: Pin.private(1, b'', [8]))\n"
        "box = Box({'self': []})\n"
        "with box.borrow_mut() as value:\n    value['self'].append(box)\n"
        "guard = box.borrow()\nvalue = guard.__enter__()\n"
        "lent = Box([1])\nlent._lend_shared()\n"
        "local = threading.local()\nlocal.box = Box([1])\n"
        "print('done')\n"
    )
    assert run(script) == "done\n"
