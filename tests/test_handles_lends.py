"""Publishing, lends, handles received from elsewhere, and Pins."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from drust import _core
from drust._core import Box, Pin
from fake_hooks import HOOKS, PICKLE, Hooks, Lend, Refused, enter, refused


@pytest.fixture(autouse=True)
def hooks() -> Iterator[Hooks]:
    with Hooks().installed() as fakes:
        yield fakes


# -- publishing and lends --------------------------------------------------------------------------


def test_nothing_is_encoded_until_somebody_else_must_see_it_and_then_once(hooks: Hooks) -> None:
    box = Box({"a": 1})
    for _ in range(3):
        with box.borrow_mut() as value:
            value["a"] += 1
    assert hooks.calls == []
    first = box._lend_shared()
    second = box._lend_shared()
    assert hooks.calls == ["publish"]
    assert first is second
    box._end_lend(None, False)
    box._end_lend(None, False)
    with box.borrow_mut() as value:
        value["a"] += 1
    third = box._lend_shared()
    assert hooks.calls == ["publish", "publish"]
    assert third.pointer != first.pointer
    assert pickle.loads(bytes(third.buffer(0))) == {"a": 5}


def test_a_shared_lend_lets_readers_in_and_no_writer() -> None:
    box = Box([1])
    lend = Lend(box, mutable=False)
    box._lend_shared(lend)
    with box.borrow() as value:
        assert value == [1]
    with refused("borrow_mut", r"lent to task 7 \(relax\)"):
        enter(box.borrow_mut())
    lend.done = True
    with box.borrow_mut():
        pass
    assert box._state()["lends"] == []


def test_a_mutable_lend_keeps_everybody_out_until_it_is_back(hooks: Hooks) -> None:
    box = Box([1])
    lend = Lend(box, mutable=True)
    pin = box._lend_mut(lend)
    for use in (box.borrow(), box.borrow_mut()):
        with pytest.raises(Refused, match="lent mutably to task 7"):
            enter(use)
    fresh = hooks.pickled([1, 2])
    lend.pointer = fresh
    lend.done = True
    with box.borrow() as value:
        assert value == [1, 2]
    assert fresh.pointer != pin.pointer


def test_a_lend_that_is_rolled_back_leaves_the_value_as_it_was() -> None:
    box = Box([1])
    box._lend_mut()
    box._end_lend(None, True, "rolled_back")
    with box.borrow_mut() as value:
        assert value == [1]


def test_a_poisoned_value_is_refused_until_replaced_or_accepted() -> None:
    box = Box([1])
    for cure in (lambda: box.replace([2]), box._clear_poison):
        box._lend_mut()
        box._end_lend(None, True, "poisoned")
        for use in (
            lambda: enter(box.borrow()),
            lambda: enter(box.borrow_mut()),
            box.into_inner,
            box._lend_shared,
        ):
            with refused("poisoned", "replace"):
                use()
        assert "poisoned" in repr(box)
        cure()
        with box.borrow() as value:
            assert value == [2]


def test_ends_of_lends_that_never_began_are_refused() -> None:
    box = Box([1])
    with refused("internal"):
        box._end_lend(None, True)
    with refused("internal"):
        box._end_lend(None, False)
    with pytest.raises(ValueError, match="outcome"):
        box._end_lend(None, False, "maybe")


def test_a_lent_block_outlives_every_handle_of_its_box() -> None:
    box = Box(np.zeros(8))
    lend = Lend(None, mutable=False)
    link, block = weakref.ref(box), weakref.ref(box._lend_shared(lend))
    del box
    gc.collect()
    assert link() is not None
    assert block() is not None
    link()._end_lend(lend, False)  # type: ignore[union-attr]
    assert link() is None
    assert block() is None


def test_a_write_after_publishing_draws_a_new_colour_at_the_same_place() -> None:
    box = Box(np.zeros(4))
    with box.borrow_mut() as a:
        a += 1
    unpublished = box._state()["pointer"]
    pin = box._lend_shared()
    assert pin.pointer == unpublished
    box._end_lend(None, False)
    with box.borrow_mut() as a:
        a += 1
    after = box._state()["pointer"]
    assert after[0] == unpublished[0]
    assert after[1] != unpublished[1]


def test_a_committed_colour_is_taken_in_place(hooks: Hooks) -> None:
    box = Box(np.zeros(4))
    pin = box._lend_mut()
    address, colour, extent = pin.pointer
    del pin
    box._end_lend(None, True, "committed", (address, colour + 1, extent))
    assert box._state()["pointer"] == (address, colour + 1, extent)
    with box.borrow() as a:
        assert a.tolist() == [0, 0, 0, 0]
    assert hooks.calls == ["materialise"]


def test_an_object_that_comes_back_from_elsewhere_is_fetched_to_read_and_moved_to_write(hooks: Hooks) -> None:
    box = Box(np.zeros(4))
    box._lend_mut()
    there = (1 << 40, 7 << 48, 128)
    box._end_lend(None, True, "committed", there)
    assert box._state()["elsewhere"]
    assert box._state()["nbytes"] == 128
    hooks.remote[there] = hooks.adopt(np.arange(4.0))[1]
    with box.borrow() as a:
        assert a.tolist() == [0, 1, 2, 3]
    assert box._state()["elsewhere"]
    with box.borrow_mut() as a:
        a += 1
    assert not box._state()["elsewhere"]
    with box.borrow() as a:
        assert a.tolist() == [1, 2, 3, 4]
    assert hooks.calls == ["materialise", "materialise writable"]


def test_a_move_here_that_fails_leaves_the_object_where_it_is(hooks: Hooks) -> None:
    pin = Pin.hold((1 << 40, 7 << 48, 128), _core.RELEASE_NOTHING)
    box = Box._from_pin(pin, "owned", "ndarray")
    hooks.fail = OSError("host lost")
    for guard in (box.borrow(), box.borrow_mut()):
        with pytest.raises(OSError, match="host lost"):
            enter(guard)
    assert box._state()["phase"] == "owned"
    assert box._state()["elsewhere"]


def test_a_reference_is_lent_once_instead_of_entered() -> None:
    box = Box([1])
    reading = box.borrow()
    pin = reading._lend()
    assert pin.codec == PICKLE
    with refused("entered_twice", "lent"):
        enter(reading)
    with refused("entered_twice", "lent"):
        reading._lend()
    with refused("borrow_mut"):
        box.borrow_mut()._lend()
    reading._end_lend()
    writing = box.borrow_mut()
    writing._lend()
    assert (writing._access, writing._phase, writing._box) == ("mutable", "lent", box)
    writing._end_lend(outcome="rolled_back")
    assert box._state()["phase"] == "owned"
    with refused("entered_twice"):
        writing._end_lend()


# -- handles received from elsewhere ---------------------------------------------------------------


def test_a_received_value_is_decoded_once_and_again_only_to_be_written(hooks: Hooks) -> None:
    box = Box._from_pin(hooks.pickled([1]), "owned", "list")
    assert "Box[list]" in repr(box)
    with box.borrow() as first:
        pass
    with box.borrow() as second:
        assert second is first
    with box.borrow_mut() as third:
        third.append(2)
    with box.borrow() as fourth:
        assert fourth is third
    assert hooks.calls == ["materialise", "materialise writable"]


def test_a_shared_reference_can_be_read_and_lent_on_but_nothing_else(hooks: Hooks) -> None:
    box = Box._from_pin(hooks.pickled([1]), "shared", "list")
    with box.borrow() as value:
        assert value == [1]
    box._lend_shared()
    box._end_lend(None, False)
    for use in (
        lambda: enter(box.borrow_mut()),
        box._lend_mut,
        lambda: box.replace(1),
        lambda: box.split_mut(2),
    ):
        with refused("read_only", "read, not written"):
            use()
    for use in (box.into_inner, box._transfer):
        with refused("not_owner", "only its owner"):
            use()
    box._give_back()
    with refused("moved"):
        enter(box.borrow())


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("mebibytes", [1, 2])
def test_a_mutable_reference_keeps_the_value_before_up_to_a_size_or_on_request(
    hooks: Hooks, mebibytes: int, undo: bool
) -> None:
    forbidden: list[Any] = []
    _core.set_hooks(**{name: getattr(hooks, name) for name in HOOKS}, forbid_rollback=forbidden.append)
    _, pin, _ = hooks.adopt(np.zeros(mebibytes << 17))
    box = Box._from_pin(pin, "mutable", "ndarray", undo=undo)
    with box.borrow_mut() as a:
        a += 1
    given, _ = box._give_back()
    in_place = mebibytes > 1 and not undo
    assert (given.pointer[0] == pin.pointer[0]) == in_place
    assert forbidden == ([box] if in_place else [])
    assert hooks.array(pin)[0] == (1 if in_place else 0)
    assert hooks.array(given)[0] == 1
    assert hooks.survivors_seen == []
    with refused("moved"):
        enter(box.borrow())


def test_a_mutable_reference_cannot_be_given_away(hooks: Hooks) -> None:
    _, pin, _ = hooks.adopt(np.zeros(4))
    box = Box._from_pin(pin, "mutable", "ndarray")
    for use in (box.into_inner, box._transfer):
        with refused("not_owner"):
            use()
    with pytest.raises(ValueError, match="access"):
        Box._from_pin(pin, "borrowed", "ndarray")


# -- arrays inside live values ---------------------------------------------------------------------


def test_an_array_kept_from_inside_a_decoded_value_never_sees_a_later_write(hooks: Hooks) -> None:
    def decode(box: Any, writable: bool) -> None:
        pin = box._pin.as_writable() if writable else box._pin
        box._install({"x": hooks.array(pin)}, box._pin, False, writable)

    _core.set_hooks(materialise=decode, conflict=hooks.conflict, survivors=hooks.survivors)
    _, pin, _ = hooks.adopt(np.zeros(4))
    box = Box._from_pin(pin, "owned", "dict")
    before = pin.pointer
    del pin
    with box.borrow() as value:
        kept = value["x"]
    del value
    with box.borrow_mut() as value:
        value["x"] += 1
    assert kept.tolist() == [0, 0, 0, 0]
    assert [mode for mode, _ in hooks.survivors_seen] == ["shared"]
    assert box._state()["pointer"] != before
    other = Box._from_pin(hooks.adopt(np.zeros(4))[1], "owned", "dict")
    before = other._state()["pointer"]
    with other.borrow():
        pass
    with other.borrow_mut() as value:
        value["x"] += 1
    assert other._state()["pointer"] == before
    assert [mode for mode, _ in hooks.survivors_seen] == ["shared"]


# -- Pins ------------------------------------------------------------------------------------------


def test_a_pin_lives_as_long_as_any_array_over_it() -> None:
    pin = Pin.private(3, b"meta", [16, 0, 8])
    assert (pin.codec, pin.meta, pin.buffer_count, pin.nbytes, pin.children) == (3, b"meta", 3, 24, ())
    link = weakref.ref(pin)
    array = np.ndarray((4,), "f4", buffer=pin.buffer(0))
    assert pin.references == 1
    del pin
    assert link() is not None
    view = array[1:]
    del array
    assert link() is not None
    del view
    assert link() is None


def test_a_pins_buffers_are_writable_only_through_its_writable_sibling() -> None:
    pin = Pin.private(1, b"", [8])
    assert memoryview(pin.buffer(0)).readonly
    sibling = pin.as_writable()
    assert not memoryview(sibling.buffer(0)).readonly
    link = weakref.ref(pin)
    reader = pin.buffer(0)
    del pin
    memoryview(sibling.buffer(0))[:] = b"12345678"
    assert bytes(reader) == b"12345678"
    del reader
    assert link() is not None
    del sibling
    assert link() is None


def test_a_pin_of_a_block_elsewhere_has_no_bytes() -> None:
    pin = Pin.hold((1 << 40, 1 << 48, 64), _core.RELEASE_FREE_TREE)
    assert pin.pointer == (1 << 40, 1 << 48, 64)
    assert pin.local is None
    assert pin.on_release == _core.RELEASE_FREE_TREE
    pin.disown()
    assert pin.on_release == _core.RELEASE_NOTHING
    for use in (lambda: pin.buffer(0), lambda: pin.meta, pin.as_writable):
        with pytest.raises(ValueError, match="not mapped"):
            use()
    with pytest.raises(IndexError):
        Pin.private(1, b"", [8]).buffer(1)
    with pytest.raises(ValueError, match="RELEASE_"):
        pin.set_release(9)
