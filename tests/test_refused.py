"""A task returns to a server that has no room for it: the join ends, and nothing is left behind."""

import os
from pathlib import Path

import numpy as np
import pytest

import drust
from drust import Box, OutOfMemoryError, _core, codecs, runtime
from drust.errors import PoisonedError, ResultRefusedError
from drust.testing import account

LARGE = 200_000
WITHIN_S = 20.0


@pytest.fixture
def small():
    """Two servers; home is soon full."""
    with drust.init(servers=2, workers=1, heap_bytes="32MiB") as session:
        drust.spawn(len, "", server=1).join(WITHIN_S)
        yield session


def fill_home() -> list[_core.Pin]:
    """Until no block of any size finds room here. (A Box of an array would go to another server then.)"""
    held = []
    size = 1 << 20
    while size:
        try:
            held.append(runtime.current().allocate(codecs.BYTES, b"", [size], []).publish())
        except OutOfMemoryError:
            size //= 2
    return held


def give(gate: str, *lent: np.ndarray) -> bytes:
    for a in lent:
        a[:] = 7
    with open(gate) as fifo:
        fifo.read()
    return b"x" * 20_000


def make(n: int) -> Box:
    return Box(np.zeros(n))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_join_ends_when_the_joiner_s_server_has_no_room_for_the_result(small, tmp_path, in_place):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    before = account.take_at_rest(small)
    first = Box(np.zeros(10))
    second = drust.spawn(make, LARGE if in_place else 10, server=1).join(WITHIN_S)
    job = drust.spawn(give, str(gate), first.borrow_mut(), second.borrow_mut(), server=1)
    held = fill_home()
    Path(gate).write_text("x")
    with pytest.raises(ResultRefusedError, match="give.*poisoned" if in_place else "give.*rolled back"):
        job.join(WITHIN_S)
    del held[:]
    if in_place:
        for box in (first, second):
            with pytest.raises(PoisonedError), box.borrow():
                pass
        with second.recover() as a:
            assert (a == 7).all()
        with first.recover() as a:
            assert not a.any()
        del a, box
    else:
        with first.borrow() as a, second.borrow() as b:
            assert not a.any()
            assert not b.any()
        del a, b
    del first, second, job
    account.check_settled(small, before)
