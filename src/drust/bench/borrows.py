"""Rows of one process: a borrow beside a lock, a program beside itself without drust, an allocation beside
a copy.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import repeat
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drust import runtime
from drust._core import Box
from drust.bench.rows import Aim, Bench, Row
from drust.bench.stats import Operation, Plan

Floats = NDArray[np.float64]

# Ma et al., OSDI'24, section 7.2: on one node a program was at most 2.42 % slower than without the system.
ONE_SERVER_AIM = 1.0242
_SIDE = 1024  # of the grid: 8 MiB, more than a core's own caches
_ALLOCATION_BYTES = 2**20
_COLD_BOXES_MAX = 256


def borrow_loop(box: "Box[Any]") -> Operation:
    """A shared borrow and its end."""

    def run(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            with box.borrow() as _value:  # taking the value is part of the price
                pass
        return perf_counter() - start

    return Operation(run)


def borrow_mut_loop(box: "Box[Any]") -> Operation:
    """An exclusive borrow and its end."""

    def run(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            with box.borrow_mut() as _value:
                pass
        return perf_counter() - start

    return Operation(run)


def lock_loop(lock: AbstractContextManager[Any]) -> Operation:
    """An uncontended lock, taken and given back."""

    def run(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            with lock:
                pass
        return perf_counter() - start

    return Operation(run)


def borrows(bench: Bench) -> Iterator[Row]:
    """A borrow of what this process owns, beside an uncontended lock."""
    lock = lock_loop(threading.Lock())
    words = Box({"answer": 42})
    numbers = Box(np.zeros(1024))
    name = "with threading.Lock()"
    aim = Aim(kind="ratio", bound=1.5)
    yield bench.compare("borrow-dict", "with box.borrow(), a dict", name, borrow_loop(words), lock, aim)
    yield bench.compare("borrow-array", "with box.borrow(), an ndarray", name, borrow_loop(numbers), lock)
    mutable = "with box.borrow_mut()"
    yield bench.compare("borrow-mut-dict", f"{mutable}, a dict", name, borrow_mut_loop(words), lock)
    yield bench.compare("borrow-mut-array", f"{mutable}, an ndarray", name, borrow_mut_loop(numbers), lock)


def relax(grid: Floats, room: Floats) -> None:
    """One Jacobi step in place: each inner point becomes the mean of its neighbours. Allocates nothing."""
    np.add(grid[:-2, 1:-1], grid[2:, 1:-1], out=room)
    np.add(room, grid[1:-1, :-2], out=room)
    np.add(room, grid[1:-1, 2:], out=room)
    np.multiply(room, 0.25, out=grid[1:-1, 1:-1])


def one_server(bench: Bench) -> Iterator[Row]:
    """A program whose array is in a Box, borrowed once a step, beside the program without drust."""
    start_values = np.random.default_rng(7).random((_SIDE, _SIDE))
    room = np.empty((_SIDE - 2, _SIDE - 2))
    plain = start_values.copy()
    box = Box(start_values)

    def without(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            relax(plain, room)
        return perf_counter() - start

    def within(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            with box.borrow_mut() as grid:
                relax(grid, room)
        return perf_counter() - start

    # One step a sample: the two halves of a pair are then a few milliseconds apart, so noise hits both alike.
    samples = 60 if bench.quick else 600
    plan = Plan(samples=samples, operations=1, budget_s=bench.plan.budget_s * 2)
    yield bench.compare(
        "one-server-program",
        f"a Jacobi step on {_SIDE} x {_SIDE} doubles, one borrow_mut a step",
        "the same program on a plain array",
        Operation(within),
        Operation(without),
        Aim(kind="ratio", bound=ONE_SERVER_AIM),
        plan=plan,
    )


def allocations(bench: Bench) -> Iterator[Row]:
    """A new Box of 1 MiB beside a numpy copy of it, into memory used before and into new memory."""
    source = np.ones(_ALLOCATION_BYTES // 8)

    def warm(make: Callable[[], object]) -> Operation:
        def run(count: int) -> float:
            start = perf_counter()
            for _ in repeat(None, count):
                make()
            return perf_counter() - start

        return Operation(run)

    def cold(make: Callable[[], object], kept: list[object]) -> Operation:
        def run(count: int) -> float:
            start = perf_counter()
            kept.extend(make() for _ in repeat(None, count))
            return perf_counter() - start

        return Operation(run)

    yield bench.compare(
        "allocate-warm",
        "Box(array of 1 MiB), its memory used before",
        "array.copy(), the same",
        warm(lambda: Box(source)),
        warm(source.copy),
        payload_bytes=_ALLOCATION_BYTES,
    )
    operation = "Box(array of 1 MiB), new memory"
    kept: list[object] = []
    usage = runtime.current().usage()
    while runtime.current().usage()["warm_bytes"] >= _ALLOCATION_BYTES and len(kept) < _COLD_BOXES_MAX:
        kept.append(Box(source))
    here = runtime.current().usage()
    if here["quota_bytes"] - here["claimed_bytes"] < 2 * _COLD_BOXES_MAX * _ALLOCATION_BYTES:
        yield Row(name="allocate-cold", operation=operation, skipped="the heap is too small")
        return
    samples = 12 if bench.quick else 48
    plan = Plan(samples=samples, operations=1, budget_s=bench.plan.budget_s)
    yield bench.compare(
        "allocate-cold",
        operation,
        "array.copy(), the same",
        cold(lambda: Box(source), kept),
        cold(source.copy, kept),
        plan=plan,
        payload_bytes=_ALLOCATION_BYTES,
        notes=[f"{usage['warm_bytes'] >> 20} MiB of warm segments were used up first"],
    )
