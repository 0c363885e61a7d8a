"""Rows between servers: a value read over TCP for the first time, and again.

Each remote read needs a version this host has not seen, so boxes are made on the other server before a
sample, and dropped after it. Both sides of a pair move the same bytes: requests and replies of the reference
have drust's sizes.
"""

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np

from drust import runtime
from drust._core import Box
from drust.bench import peers
from drust.bench.borrows import borrow_loop
from drust.bench.elsewhere import REPLY_EXTRA_BYTES, REQUEST_BYTES, Floats, boxes_there, check
from drust.bench.rows import Aim, Bench, Row
from drust.bench.stats import Operation, Plan, quantile
from drust.units import format_bytes

SMALL_BYTES = 512
LARGE_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
_SMALL_AIM = Aim(kind="ratio", bound=1.3)
_LARGE_AIM = Aim(kind="bandwidth", bound=0.85)
_CACHED_AIM = Aim(kind="ratio", bound=1.5)


class FreshReads:
    """Borrows values on another server, each for the first time."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._boxes: list[Box[Floats]] = []

    def prepare(self, count: int) -> None:
        """Makes `count` boxes over there; those of the last sample, and the copies of them here, go."""
        self._boxes.clear()
        runtime.current().evict(count * self._nbytes)
        self._boxes += boxes_there(count, self._nbytes)
        runtime.current().flush()

    def run(self, count: int) -> float:
        """Reads one element of each. Seconds: `count` times the median, as the reference tells its median."""
        times = []
        for box in self._boxes[:count]:
            start = perf_counter()
            with box.borrow() as values:
                value = values[-1]
            times.append(perf_counter() - start)
            check(value)
        return count * quantile(sorted(times), 0.5)

    def operation(self) -> Operation:
        """The reads, as something to be measured."""
        return Operation(self.run, self.prepare)


def small_reads(bench: Bench) -> Iterator[Row]:
    """512 bytes: drust's native half alone, then through a borrow in Python."""
    each = 100 if bench.quick else 400
    reply_bytes = SMALL_BYTES + REPLY_EXTRA_BYTES
    plan = Plan(samples=5 if bench.quick else 21, operations=each, budget_s=bench.plan.budget_s * 1.5)
    limit_name = f"a request and its reply over a blocking socket, {REQUEST_BYTES} and {reply_bytes} bytes"
    limit = Operation(lambda count: count * peers.round_trip(REQUEST_BYTES, reply_bytes, each * 10))
    native = Operation(lambda count: count * peers.native_read(SMALL_BYTES, each * 10))
    yield bench.compare(
        "remote-read-512-native",
        "remote read of 512 B, native half",
        limit_name,
        native,
        limit,
        _SMALL_AIM,
        plan=plan,
        elsewhere=True,
    )
    yield bench.compare(
        "remote-read-512",
        "remote read of 512 B: with box.borrow(), an ndarray",
        limit_name,
        FreshReads(SMALL_BYTES).operation(),
        limit,
        _SMALL_AIM,
        plan=plan,
    )


def large_reads(bench: Bench) -> Iterator[Row]:
    """64 MiB: drust's native half alone, then through a borrow, beside the same bytes streamed and kept."""
    name = "remote-read-64m"
    operation = f"remote read of {format_bytes(LARGE_BYTES)}: with box.borrow(), an ndarray"
    usage = runtime.current().usage()
    if usage["quota_bytes"] - usage["claimed_bytes"] < 3 * LARGE_BYTES:
        yield Row(name=name, operation=operation, aim=_LARGE_AIM, skipped="the heap is too small")
        return
    plan = Plan(samples=3 if bench.quick else 15, operations=1, budget_s=bench.plan.budget_s * 2)
    mebibytes = LARGE_BYTES >> 20
    repetitions = 1 if bench.quick else 4
    limit_name = f"a socket streaming {format_bytes(LARGE_BYTES)} into one buffer"
    limit = Operation(lambda count: count * peers.stream(mebibytes, _CHUNK_BYTES, repetitions, keep=True))
    native = Operation(lambda count: count * peers.native_read(LARGE_BYTES, repetitions))
    yield bench.compare(
        "remote-read-64m-native",
        f"remote read of {format_bytes(LARGE_BYTES)}, native half",
        limit_name,
        native,
        limit,
        _LARGE_AIM,
        plan=plan,
        elsewhere=True,
        payload_bytes=LARGE_BYTES,
    )
    notes = []
    if not bench.quick:
        fastest = LARGE_BYTES / peers.stream(mebibytes, _CHUNK_BYTES // 4, repetitions, keep=False)
        notes = [f"a socket streaming over one chunk that stays in the cache: {format_bytes(int(fastest))}/s"]
    yield bench.compare(
        name,
        operation,
        limit_name,
        FreshReads(LARGE_BYTES).operation(),
        limit,
        _LARGE_AIM,
        plan=plan,
        payload_bytes=LARGE_BYTES,
        notes=notes,
    )


def cached_reads(bench: Bench) -> Iterator[Row]:
    """A remote value that is here already, beside an equal one that is owned here."""
    (remote,) = boxes_there(1, SMALL_BYTES)
    local: Box[Any] = Box(np.full(SMALL_BYTES // 8, 7.0))
    yield bench.compare(
        "cached-remote-read",
        "with box.borrow() of a remote ndarray, read before",
        "with box.borrow() of an equal local one",
        borrow_loop(remote),
        borrow_loop(local),
        _CACHED_AIM,
    )
