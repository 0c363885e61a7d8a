"""Boxes that a worker took out of the values they came in: they are its own, and go with it."""

import os
import signal

import numpy as np
import pytest

import drust
from drust import Box

WITHIN_S = 20.0

_kept: list[object] = []  # of a worker


def make() -> Box:
    return Box(np.ones(1000))


def make_nested() -> Box:
    return Box({"inner": make(), "other": 1})


def keep_inner(outer: Box) -> int:
    _kept.append(outer.into_inner()["inner"])
    return os.getpid()


def keep_taken_out(outer: Box) -> int:
    with outer.borrow_mut() as value:
        _kept.append(value.pop("inner"))
    return os.getpid()


def keep_taken_out_and_the_rest(outer: Box) -> int:
    with outer.borrow_mut() as value:
        _kept.append(value.pop("inner"))
    drust.spawn(len, outer.borrow(), server=1 - drust.runtime.current().server).join()
    _kept.append(outer)
    return os.getpid()


def keep_taken_out_of_its_own() -> int:
    outer = make_nested()
    drust.spawn(len, outer.borrow(), server=1 - drust.runtime.current().server).join()
    return keep_taken_out_and_the_rest(outer)


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("function", [keep_inner, keep_taken_out, keep_taken_out_and_the_rest])
def test_a_box_that_a_worker_had_taken_out_of_a_value_goes_with_it(settled, server, home, function):
    outer = drust.spawn(make_nested, server=home).join()
    pid = drust.spawn(function, outer, server=server).join(WITHIN_S)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("server", [0, 1])
def test_a_box_that_a_worker_had_taken_out_of_a_value_of_its_own_goes_with_it(settled, server):
    pid = drust.spawn(keep_taken_out_of_its_own, server=server).join(WITHIN_S)
    os.kill(pid, signal.SIGKILL)
