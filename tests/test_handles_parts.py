"""Boxes inside a Box, and the parts of a split array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from drust import _core
from drust._core import Box
from fake_hooks import Hooks, Unraisable, enter, leave, refused


@pytest.fixture(autouse=True)
def hooks() -> Iterator[Hooks]:
    with Hooks().installed() as fakes:
        yield fakes


# -- Boxes inside a Box ----------------------------------------------------------------------------


def test_a_box_inside_is_reached_only_through_a_borrow_of_the_outer_one() -> None:
    inner = Box([1])
    outer = Box({"inner": inner})
    with refused("parent_not_borrowed", r"inside a Box\[dict\]"):
        enter(inner.borrow())
    with outer.borrow() as value:
        with value["inner"].borrow() as read:
            assert read == [1]
        for use in (
            lambda: enter(inner.borrow_mut()),
            inner.into_inner,
            inner._transfer,
            lambda: inner.replace([2]),
            inner._lend_mut,
        ):
            with refused("parent_not_borrowed", "at least as strongly"):
                use()
    with outer.borrow_mut(), inner.borrow_mut() as written:
        written.append(2)
    with refused("parent_not_borrowed"):
        enter(inner.borrow())


def test_a_borrowed_box_cannot_be_put_into_another() -> None:
    inner = Box([1])
    with inner.borrow(), refused("borrow_mut", "move it into another Box"):
        Box([inner])
    other = Box([inner])
    with refused("parent_not_borrowed"):
        Box([inner])
    with pytest.raises(ValueError, match="inside itself"):
        other._set_parent(other)
    with pytest.raises(ValueError, match="inside itself"):
        other._set_parent(inner)


def test_a_box_taken_out_of_its_parent_stands_on_its_own() -> None:
    inner = Box([1])
    outer = Box({"inner": inner})
    with outer.borrow_mut() as value:
        taken = value.pop("inner")
        assert taken is inner
    with inner.borrow_mut() as value:
        value.append(2)
    assert inner._state()["parent"] is None
    again = Box([inner])
    del again
    with inner.borrow():
        pass


def test_a_parents_borrow_ends_after_its_childs() -> None:
    inner = Box([1])
    outer = Box({"inner": inner})
    with refused("child_borrowed", "a Box inside it is borrowed"), outer.borrow():
        guard = inner.borrow()
        enter(guard)
    assert outer._state()["phase"] == "shared"
    with refused("borrow_mut", "until the borrows of Boxes inside it end"):
        enter(outer.borrow_mut())
    leave(guard)
    assert outer._state()["phase"] == "owned"
    with outer.borrow_mut():
        pass


def test_a_guard_dying_with_a_child_borrowed_waits_for_it_too() -> None:
    inner = Box([1])
    outer = Box({"inner": inner})
    holder = outer.borrow_mut()
    enter(holder)
    guard = inner.borrow_mut()
    enter(guard)
    with Unraisable() as seen:
        del holder
    assert len(seen) == 1
    assert outer._state()["phase"] == "modified"
    leave(guard)
    assert outer._state()["phase"] == "owned"


def test_a_received_child_may_do_what_its_parents_borrow_allows(hooks: Hooks) -> None:
    block = hooks.pickled([1])
    parent = Box._from_pin(block, "shared", "list")
    child = Box._from_pin(hooks.pickled([2]), "owned", "list", parent)
    with refused("parent_not_borrowed"):
        enter(child.borrow())
    with parent.borrow():
        with child.borrow() as value:
            assert value == [2]
        with refused("parent_not_borrowed"):
            enter(child.borrow_mut())


def test_children_of_a_dead_parent_stand_on_their_own() -> None:
    inner = Box([1])
    outer = Box([inner])
    del outer
    with inner.borrow_mut():
        pass


class Slotted:
    __slots__ = ("item",)


class Plain:
    pass


def test_boxes_are_found_wherever_containers_hold_them() -> None:
    boxes = [Box(i) for i in range(8)]
    slotted, plain = Slotted(), Plain()
    slotted.item, plain.item = boxes[0], boxes[1]
    cyclic: list[Any] = [boxes[2]]
    cyclic.append(cyclic)
    objects = np.array([boxes[3], None], dtype=object)
    value = {
        "a": slotted,
        "b": (plain, {boxes[4]}),
        "c": cyclic,
        "d": objects,
        "e": np.zeros(10),
        boxes[5]: [boxes[5]],
    }
    assert set(_core.find_boxes(value, 1000)) == set(boxes[:6])
    assert _core.find_boxes(boxes[6], 10) == [boxes[6]]
    assert _core.find_boxes([1, "x", len, np, Plain], 10) == []
    assert _core.find_boxes([boxes[6], *range(100)], 50) == []
    assert len(_core.find_boxes([[b] for b in boxes[6:]], 2)) <= 1


def test_the_boxes_inside_a_box_are_its_own_business() -> None:
    inner = Box([1])
    outer = Box([inner])
    assert _core.find_boxes({"x": outer}, 100) == [outer]


# -- split_mut -------------------------------------------------------------------------------------


def test_parts_are_disjoint_views_of_one_array() -> None:
    box = Box(np.zeros((7, 3)))
    before = box._state()["pointer"]
    parts = box.split_mut(3)
    assert [part._part for part in parts] == [(0, 3, 0), (3, 5, 0), (5, 7, 0)]
    with parts[0] as a, parts[1] as b, parts[2] as c:
        assert (a.shape, b.shape, c.shape) == ((3, 3), (2, 3), (2, 3))
        a[:], b[:], c[:] = 1, 2, 3
    with box.borrow() as whole:
        assert whole[:, 0].tolist() == [1, 1, 1, 2, 2, 3, 3]
    assert box._state()["pointer"] == before


def test_a_split_box_is_borrowed_until_the_last_part_ended_or_died() -> None:
    box = Box(np.zeros(4))
    parts = box.split_mut(4)
    with refused("borrow", "split, and 4 of its parts are out"):
        enter(box.borrow())
    with parts[0] as part:
        part += 1
    with refused("entered_twice"):
        enter(parts[0])
    del parts[1]
    with refused("borrow_mut", "2 of its parts are out"):
        enter(box.borrow_mut())
    parts[1].__enter__()
    del parts[1:]
    with box.borrow_mut() as whole:
        assert whole.tolist() == [1, 0, 0, 0]


def test_a_split_cuts_along_any_axis_and_never_into_empty_parts() -> None:
    box = Box(np.arange(12.0).reshape(3, 4))
    for axis in (1, -1):
        parts = box.split_mut(8, axis=axis)
        assert len(parts) == 4
        with parts[1] as column:
            assert column.shape == (3, 1)
            assert column[:, 0].tolist() == [1, 5, 9]
        del parts
    assert Box(np.zeros((0, 3))).split_mut(2) == []


@pytest.mark.parametrize(("n", "axis"), [(0, 0), (-1, 0), (2, 2), (2, -3)])
def test_a_split_that_makes_no_sense_is_refused(n: int, axis: int) -> None:
    box = Box(np.zeros((2, 2)))
    with pytest.raises(ValueError):
        box.split_mut(n, axis)
    with box.borrow_mut():
        pass


def test_only_arrays_are_split_and_only_unborrowed_ones() -> None:
    with pytest.raises(TypeError, match=r"Box\[list\]: split_mut needs an array"):
        Box([1, 2]).split_mut(2)
    with pytest.raises(ValueError, match="axis"):
        Box(np.array(1.0)).split_mut(1)
    box = Box(np.zeros(4))
    with box.borrow(), refused("borrow_mut", "cannot split it"):
        box.split_mut(2)


def test_a_view_kept_from_a_part_never_reaches_the_joined_array(hooks: Hooks) -> None:
    box = Box(np.zeros(4))
    parts = box.split_mut(2)
    with parts[0] as a:
        kept = [a[:1]]
        row = a[1:]
    with refused("revoked"):
        row.sum()
    assert hooks.survivors_seen == []
    with parts[1] as b:
        b += 1
    assert [mode for mode, _ in hooks.survivors_seen] == ["mutable"]
    kept[0][:] = 9
    with box.borrow() as whole:
        assert whole.tolist() == [0, 0, 1, 1]


def test_lent_parts_come_back_and_a_failed_one_poisons_the_whole() -> None:
    box = Box(np.zeros(4))
    first, second = box.split_mut(2)
    pin = first._lend()
    assert pin.pointer == box._state()["pointer"]
    with second as rows:
        rows += 1
    first._end_lend()
    with box.borrow() as whole:
        assert whole.tolist() == [0, 0, 1, 1]
    first, second = box.split_mut(2)
    first._lend()
    del second
    first._end_lend(outcome="poisoned")
    with refused("poisoned"):
        enter(box.borrow())


def test_a_lent_part_that_dies_counts_as_failed() -> None:
    box = Box(np.zeros(4))
    parts = box.split_mut(2)
    parts[0]._lend()
    del parts
    with refused("poisoned"):
        enter(box.borrow())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(6,), (4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_the_region_of_a_part_names_exactly_its_bytes(shape: tuple[int, ...], order: Any) -> None:
    value = np.arange(np.prod(shape), dtype="i4").reshape(shape).copy(order=order)
    raw = value.tobytes(order)
    for axis in range(len(shape)):
        box = Box(value)
        for part in box.split_mut(2, axis):
            offset, chunk, count, stride = part._region()
            start, stop, _ = part._part
            gathered = b"".join(raw[offset + i * stride : offset + i * stride + chunk] for i in range(count))
            mine = value[(slice(None),) * axis + (slice(start, stop),)]
            assert gathered == mine.tobytes(order)
    with pytest.raises(ValueError, match="part"):
        Box(value).borrow_mut()._region()
