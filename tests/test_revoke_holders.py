"""Arrays that something beside a plain name still holds when their borrow ends: left alone, on their version.

Swapping the type of such an array would crash numpy's C code, which trusts the type of what it holds.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from drust._core import Box
from fake_hooks import Hooks, refused


@pytest.fixture(autouse=True)
def hooks() -> Iterator[Hooks]:
    with Hooks().installed() as fakes:
        yield fakes


class Sub(np.ndarray):
    """A subclass, whose views hold the array itself."""


def test_a_kernel_running_in_another_thread_reads_the_version_it_saw(hooks: Hooks) -> None:
    box = Box(np.ones(2_000_000))
    started, written = threading.Event(), threading.Event()
    results: list[float] = []

    def compute(array: Any) -> None:
        started.set()
        while not written.is_set():
            results.append(float(np.add.reduce(array)))
        results.append(float(np.add.reduce(array)))

    with box.borrow() as a:
        thread = threading.Thread(target=compute, args=(a,))
        thread.start()
        started.wait()
    with box.borrow_mut() as b:
        b[:] = 2
    written.set()
    thread.join()
    assert set(results) == {2_000_000}
    assert len(hooks.survivors_seen) == 1
    with box.borrow() as b:
        assert b[0] == 2


USES_AFTER_THE_BLOCK: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], Any]] = {
    "flat slice": (lambda a: a.flat, lambda f: f[1:3].tolist(), [2, 1]),
    "flat item": (lambda a: a.flat, lambda f: f[1], 2),
    "flat list of items": (lambda a: a.flat, lambda f: f[[0, 3]].tolist(), [3, 0]),
    "flat copy": (lambda a: a.flat, lambda f: f.copy().tolist(), [3, 2, 1, 0]),
    "flat as an array": (lambda a: a.flat, lambda f: np.asarray(f).tolist(), [3, 2, 1, 0]),
    "flat of a slice": (lambda a: a[1:].flat, lambda f: f[0:2].tolist(), [2, 1]),
    "broadcast": (lambda a: np.broadcast(a, a), lambda f: [int(x) for x, _ in f], [3, 2, 1, 0]),
    "broadcast iters": (lambda a: np.broadcast(a, 1).iters[0], lambda f: f[1:3].tolist(), [2, 1]),
    "nditer": (lambda a: np.nditer(a), lambda f: f.operands[0].tolist(), [3, 2, 1, 0]),
    "astype": (lambda a: a.astype, lambda f: f("i4").tolist(), [3, 2, 1, 0]),
    "copy": (lambda a: a.copy, lambda f: f().tolist(), [3, 2, 1, 0]),
    "flatten": (lambda a: a.flatten, lambda f: f().tolist(), [3, 2, 1, 0]),
    "argsort": (lambda a: a.argsort, lambda f: f().tolist(), [3, 2, 1, 0]),
    "reshape": (lambda a: a.reshape, lambda f: f(2, 2).tolist(), [[3, 2], [1, 0]]),
    "view": (lambda a: a.view, lambda f: f("i8").shape, (4,)),
    "ravel": (lambda a: a.ravel, lambda f: f().tolist(), [3, 2, 1, 0]),
    "transpose": (lambda a: a.transpose, lambda f: f().tolist(), [3, 2, 1, 0]),
    "reduce": (lambda a: a.__reduce__, lambda f: len(f()), 3),
    "getitem": (lambda a: a.__getitem__, lambda f: f(slice(1, 3)).tolist(), [2, 1]),
    "subclass view": (lambda a: a.view(Sub), lambda f: f.base[1:3].tolist(), [2, 1]),
}


@pytest.mark.parametrize("mode", ["borrow", "borrow_mut"])
@pytest.mark.parametrize("how", list(USES_AFTER_THE_BLOCK), ids=lambda name: name.replace(" ", "_"))
def test_what_numpy_made_of_an_array_works_on_its_version_after_the_block(
    how: str, mode: str, hooks: Hooks
) -> None:
    make, use, expected = USES_AFTER_THE_BLOCK[how]
    box = Box(np.array([3.0, 2.0, 1.0, 0.0]))
    with getattr(box, mode)() as a:
        kept = make(a)
    with box.borrow_mut() as b:
        b[:] = 9
    assert use(kept) == expected
    assert len(hooks.survivors_seen) == 1
    with box.borrow() as b:
        assert b.tolist() == [9, 9, 9, 9]


def test_a_hidden_holder_keeps_the_names_of_its_array_readable() -> None:
    box = Box(np.zeros(4))
    with box.borrow() as a:
        flat = a.flat
        row = a[1:]
    assert a.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        flat[0] = 1
    with refused("revoked"):  # names are all that holds this one
        row.sum()


def test_names_left_when_the_hidden_holder_died_are_revoked_by_the_next_write(hooks: Hooks) -> None:
    box = Box(np.arange(4.0))
    before = box._state()["pointer"]
    with box.borrow() as a:
        line = sys._getframe().f_lineno - 1
        row = a[1:]
        kept = [a.flat, row.flat]
    del kept
    assert (a[1], row[0]) == (1, 1)
    with box.borrow_mut() as b:
        b += 1
    for view in (a, row):
        with refused("revoked") as caught:
            view.sum()
        assert f"test_revoke_holders.py:{line}" in str(caught.value)
    assert hooks.survivors_seen == []
    assert box._state()["pointer"] == before


def test_writes_through_what_a_mutable_borrow_left_do_not_reach_the_live_version() -> None:
    box = Box(np.zeros(4))
    with box.borrow_mut() as a:
        a[:] = 1
        fill, flat = a.fill, a.flat
    fill(5)
    flat[1:3] = 6
    a[3] = 7
    assert a.tolist() == [5, 6, 6, 7]
    with box.borrow() as b:
        assert b.tolist() == [1, 1, 1, 1]
