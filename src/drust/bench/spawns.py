"""Rows of tasks: one that does nothing, one that is lent a Box, one that gets the same value by pickling.

What a lend costs in time has three parts: the record in the spawner's partition that says what was lent, the
borrow in the worker, the end of both. The first alone is what a crash is undone from, paid though nothing
crashes; so it has a row and an aim of its own, as a share of a spawn.
"""

from collections.abc import Callable, Iterator
from itertools import repeat
from time import perf_counter
from typing import Any

import numpy as np

from drust import calls, runtime
from drust._core import Box
from drust.bench.elsewhere import OTHER, REPLY_EXTRA_BYTES, REQUEST_BYTES, Floats
from drust.bench.peers import Unavailable, empty, round_trip
from drust.bench.rows import Aim, Bench, Row
from drust.bench.stats import Operation, Plan
from drust.tasks import spawn

LENT_BYTES = 8 * 1024  # of the value that is lent or pickled
_SPAWN_AIM = Aim(kind="seconds", bound=100e-6)
_RECORD_AIM = Aim(kind="ratio", bound=0.1)
_PICKLED_TASK_BYTES = 64
_ROUND_TRIPS = 1000  # over a socket; the aim of a task elsewhere is two of them and what one costs here
_RECORDS = 20  # a sample: few, as each is a spawn on the other side of the pair


def take(_values: Floats) -> None:
    """A task that does nothing with what it gets."""


def spawn_and_join(
    task: Callable[..., None] = empty, server: int | None = None, argument: Callable[[], Any] | None = None
) -> Operation:
    """`argument` makes what each task gets: a borrow can be lent once."""

    def run(count: int) -> float:
        start = perf_counter()
        if argument is None:
            for _ in repeat(None, count):
                spawn(task, server=server).join()
        else:
            for _ in repeat(None, count):
                spawn(task, argument(), server=server).join()
        return perf_counter() - start

    return Operation(run)


def spawns(bench: Bench) -> Iterator[Row]:
    """A task spawned and joined: here and on another server, with nothing and with a value."""
    ours = spawn_and_join()
    partner = bench.peers.futex_partner

    def futex(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            partner.call(empty)
        return perf_counter() - start

    executor = bench.peers.pool

    def pool(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            executor.submit(empty).result()
        return perf_counter() - start

    limit = "a futex round trip plus pickling"
    operation = "spawn + join of an empty task"
    yield bench.compare("spawn", operation, limit, ours, Operation(futex), _SPAWN_AIM)
    yield bench.compare(
        "spawn-pool", operation, "ProcessPoolExecutor.submit().result()", ours, Operation(pool)
    )

    message = REQUEST_BYTES + _PICKLED_TASK_BYTES

    def futex_and_socket(count: int) -> float:
        return futex(count) + count * 2 * round_trip(message, REPLY_EXTRA_BYTES, max(count, 20))

    there = spawn_and_join(server=OTHER)
    try:
        aim = Aim(
            kind="seconds", bound=_SPAWN_AIM.bound + 2 * round_trip(message, REPLY_EXTRA_BYTES, _ROUND_TRIPS)
        )
        yield bench.compare(
            "spawn-remote",
            f"{operation} on another server",
            "the same futex round trip, and two over a socket",
            there,
            Operation(futex_and_socket),
            aim,
        )
    except Unavailable:
        yield bench.measure("spawn-remote", f"{operation} on another server", there)
    yield from _lends(bench, ours)


def _lends(bench: Bench, nothing: Operation) -> Iterator[Row]:
    """A task that is lent a Box, beside one that gets nothing and one that gets the value."""
    values = np.ones(LENT_BYTES // 8)
    box: Box[Floats] = Box(values)
    pickled = spawn_and_join(take, argument=lambda: values)
    shared, mutable = (spawn_and_join(take, argument=borrow) for borrow in (box.borrow, box.borrow_mut))
    size = f"an array of {LENT_BYTES // 1024} KiB"
    for name, how, lent in (("spawn-lend", "borrow", shared), ("spawn-lend-mut", "borrow_mut", mutable)):
        operation = f"spawn + join of a task that gets box.{how}(), {size}"
        yield bench.compare(name, operation, "spawn + join of an empty task", lent, nothing)
        yield bench.compare(f"{name}-pickle", operation, "the same with the array, pickled", lent, pickled)
    yield bench.compare(
        "lend-record",
        "what a mutable lend adds to the record of its task",
        "spawn + join of an empty task",
        _record_of_a_lend(box),
        nothing,
        _RECORD_AIM,
        plan=Plan(samples=bench.plan.samples, operations=_RECORDS, budget_s=bench.plan.budget_s),
    )


def _record_of_a_lend(box: "Box[Any]") -> Operation:
    """Making and freeing a record that names one lend, less the same of one that names none."""
    here = runtime.current()
    lend = (*box._publish().pointer, calls.LENT_MUTABLE)

    def records(count: int, lends: list[calls.Child]) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            here.free(here.make_record(here.server, lends), shallow=True)
        return perf_counter() - start

    return Operation(lambda count: records(count, [lend]) - records(count, []))
