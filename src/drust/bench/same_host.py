"""Rows of one host: a big array read by another worker.

What a worker measures it measures inside the task: the Box moves there, is borrowed for the first time, one
element is read, and the Box moves home with the answer.
"""

import os
from collections.abc import Iterator
from itertools import count as counting
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from drust import runtime
from drust._core import Box
from drust.bench.elsewhere import Floats
from drust.bench.rows import Aim, Bench, Row
from drust.bench.stats import Operation, Plan
from drust.creation import zeros
from drust.tasks import spawn
from drust.units import format_bytes

SIZES = (2**20, 64 * 2**20, 2**30)
_READ_AIM = Aim(kind="seconds", bound=100e-6)
_PAGE_ELEMENTS = 512  # doubles in a page
_LEFT_FREE_BYTES = 128 * 2**20  # of the heap, for everybody else


class Memory(NamedTuple):
    """What a process and its server's heap hold, in bytes."""

    private_bytes: int
    heap_bytes: int


def memory_of_this_process() -> Memory:
    """This process's own memory (not what it maps of the heap), and what backs the heap."""
    private = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            private = int(line.split()[1]) * 1024
    return Memory(private, _heap_backing_bytes())


def _heap_backing_bytes() -> int:
    """The memory behind the partition: the blocks of the memory file this process holds."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:"):
                return os.stat(int(descriptor)).st_blocks * 512
        except OSError:
            continue  # the descriptor of the listing itself
    return 0


class Reading(NamedTuple):
    """What a reader measured: the borrow and one element, and what memory it cost."""

    seconds: float
    private_bytes: int
    heap_bytes: int


def read_element(box: "Box[Floats]", index: int, weigh: bool) -> "tuple[Box[Floats], float, Reading]":
    """A task: borrows a Box this process sees for the first time, reads one element, gives the Box back."""
    before = memory_of_this_process() if weigh else Memory(0, 0)
    start = perf_counter()
    with box.borrow() as values:
        value = float(values[index])
    seconds = perf_counter() - start
    after = memory_of_this_process() if weigh else Memory(0, 0)
    grown = Reading(seconds, after.private_bytes - before.private_bytes, after.heap_bytes - before.heap_bytes)
    return box, value, grown


class Reader:
    """Sends one array to a worker and back, once an operation; each reading touches another page."""

    def __init__(self, nbytes: int) -> None:
        self._elements = nbytes // 8
        self._box: Box[Floats] = zeros(self._elements)
        self._places = counting(1)

    def read(self, weigh: bool = False) -> Reading:
        """One reading by the worker."""
        index = next(self._places) * 97 * _PAGE_ELEMENTS % self._elements
        self._box, value, reading = spawn(read_element, self._box, index, weigh).join()
        if value != 0.0:
            raise AssertionError(f"element {index} is {value}, not what was written")
        return reading

    def operation(self) -> Operation:
        """The readings, as something to be measured."""
        return Operation(lambda count: sum(self.read().seconds for _ in range(count)))


def same_host_reads(bench: Bench) -> Iterator[Row]:
    """The first element of an array read by another worker, for sizes a thousand times apart."""
    samples = 15 if bench.quick else 60
    plan = Plan(samples=samples, operations=1, budget_s=bench.plan.budget_s)
    smallest = Reader(SIZES[0])
    for size in SIZES:
        name = f"same-host-read-{format_bytes(size).replace(' ', '').lower()}"
        operation = f"first read of {format_bytes(size)} by another worker"
        usage = runtime.current().usage()
        if usage["quota_bytes"] - usage["claimed_bytes"] < size + _LEFT_FREE_BYTES:
            left = format_bytes(usage["quota_bytes"] - usage["claimed_bytes"])
            yield Row(name=name, operation=operation, aim=_READ_AIM, skipped=f"the heap has {left} left")
            continue
        reader = smallest if size == SIZES[0] else Reader(size)
        reader.read()  # the worker imports this module
        if reader is smallest:
            row = bench.measure(name, operation, reader.operation(), _READ_AIM, plan=plan)
        else:
            row = bench.compare(
                name,
                operation,
                f"the same of {format_bytes(SIZES[0])}: nothing is copied",
                reader.operation(),
                smallest.operation(),
                _READ_AIM,
                plan=plan,
            )
        weighed = [reader.read(weigh=True) for _ in range(3)]
        private = sorted(reading.private_bytes for reading in weighed)[1]
        heap = sorted(reading.heap_bytes for reading in weighed)[1]
        row.notes.append(
            f"new memory: {format_bytes(private)} private to the worker, {format_bytes(heap)} behind the heap"
        )
        yield row
        del reader
