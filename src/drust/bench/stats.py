"""How a ratio is measured: ours and its limit in turns, medians and spread of both and of their pairs.

Idea: on a shared machine the noise of a second hits whatever runs in that second. So one sample of ours is
followed by one sample of the limit (A B A B ...), and the ratio is the median over the *pairs*, which a
slow stretch leaves alone because both halves of a pair are slow. Samples are many and short (`sample_s`,
well below a scheduler's time slice), so that most contain no preemption; an operation that takes longer is
a sample by itself.
Rejected: the ratio of two medians (drift between the two blocks becomes part of the result); minima (they
hide that an operation is only sometimes fast); means (one preemption of 10 ms would be the result);
processor time (it would hide an operation that waits).
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import msgspec


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What `repetitions` samples of `operations` operations each say, in the samples' unit.

    `mad` is the median absolute deviation from the median; 10 % of the samples lie below `p10`, 10 % above
    `p90`.
    """

    median: float
    mad: float
    p10: float
    p90: float
    repetitions: int
    operations: int = 1


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long to measure: `samples` pairs, each half of `operations`, or of what takes about `sample_s`.

    `budget_s` ends the pairs early, but never before three.
    """

    samples: int
    budget_s: float
    sample_s: float = 0.0
    operations: int = 0


QUICK = Plan(samples=151, sample_s=0.0005, budget_s=0.4)
FULL = Plan(samples=1501, sample_s=0.0005, budget_s=5.0)

OPERATIONS_MAX = 1_000_000  # in a sample, whatever the time
_SAMPLES_MIN = 3
_TRIES = 3

Clock: TypeAlias = Callable[[], float]


def _nothing(_count: int) -> None:
    """An operation that needs no preparation."""


@dataclass(frozen=True)
class Operation:
    """One side of a comparison.

    Attributes:
        run: does `count` operations and returns the seconds they took (it may have been told by another
            process).
        prepare: makes ready what `count` operations use up; not timed, its messages not counted.
    """

    run: Callable[[int], float]
    prepare: Callable[[int], None] = _nothing

    def sample(self, count: int) -> float:
        """Seconds for one operation, from one sample of `count`."""
        self.prepare(count)
        with collector_off():
            return self.run(count) / count


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """Ours and its limit, seconds for an operation, and the ratios ours / limit of the pairs."""

    ours: Summary
    limit: Summary
    ratio: Summary


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside, as `timeit` does: its cost belongs to whoever made the garbage before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted values lie, between two of them where it falls there.

    Raises:
        ValueError: there are no values.
    """
    if not ordered:
        raise ValueError("no samples")
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(values: Sequence[float], operations: int = 1) -> Summary:
    """The median and the spread of `values`, each a sample of `operations` operations.

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    median = quantile(ordered, 0.5)
    return Summary(
        median=median,
        mad=quantile(sorted(abs(value - median) for value in ordered), 0.5),
        p10=quantile(ordered, 0.1),
        p90=quantile(ordered, 0.9),
        repetitions=len(ordered),
        operations=operations,
    )


def operations_for(operation: Operation, plan: Plan) -> int:
    """How many operations a sample of about `plan.sample_s` needs. Also warms the operation up.

    The fastest of a few tries decides: a preempted one would make samples so short that they show the clock.
    """
    if plan.operations:
        operation.sample(plan.operations)
        return plan.operations
    count = 1
    while True:
        seconds = min(operation.sample(count) for _ in range(_TRIES)) * count
        if seconds >= plan.sample_s or count >= OPERATIONS_MAX:
            return count
        growth = plan.sample_s / seconds if seconds > 0 else 10.0
        count = min(OPERATIONS_MAX, max(count + 1, int(count * min(growth * 1.1, 10.0))))


def paired(ours: Operation, limit: Operation, plan: Plan, clock: Clock = time.monotonic) -> Paired:
    """Measures the two in turns: A B A B, after one warm-up of each."""
    our_count, limit_count = operations_for(ours, plan), operations_for(limit, plan)
    our_values: list[float] = []
    limit_values: list[float] = []
    end = clock() + plan.budget_s
    while len(our_values) < plan.samples and (len(our_values) < _SAMPLES_MIN or clock() < end):
        our_values.append(ours.sample(our_count))
        limit_values.append(limit.sample(limit_count))
    return from_samples(our_values, limit_values, our_count, limit_count)


def from_samples(
    ours: Sequence[float], limits: Sequence[float], our_operations: int = 1, limit_operations: int = 1
) -> Paired:
    """The summaries of samples taken in turns.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    return Paired(
        ours=summarise(ours, our_operations),
        limit=summarise(limits, limit_operations),
        ratio=summarise([our / limit for our, limit in zip(ours, limits, strict=True)]),
    )


def alone(ours: Operation, plan: Plan, clock: Clock = time.monotonic) -> Summary:
    """Measures an operation that has an aim in seconds and nothing to be compared with."""
    count = operations_for(ours, plan)
    values: list[float] = []
    end = clock() + plan.budget_s
    while len(values) < plan.samples and (len(values) < _SAMPLES_MIN or clock() < end):
        values.append(ours.sample(count))
    return summarise(values, count)
