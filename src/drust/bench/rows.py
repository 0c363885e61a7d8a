"""What a benchmark row is: an operation, its limit, the aim, whether it was met; and what rows share.

Idea: a group of rows is a generator of `Row`s over a `Bench`, so that a row that cannot run (too little
memory, a helper program that was not built) says so and the others still run.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from drust import runtime
from drust.bench.peers import Peers
from drust.bench.stats import FULL, QUICK, Operation, Paired, Plan, Summary, alone, paired
from drust.session import Session

_SETTLE_LOOKS = 1000  # of a control round trip each, at a counter that lags by microseconds

MESSAGES = (
    "read_requests",
    "write_requests",
    "free_messages",
    "submit_messages",
    "complete_messages",
    "replica_messages",
    "shared_messages",
)


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What a row should reach.

    Attributes:
        kind: `ratio` is ours / limit in seconds, at most `bound`; `bandwidth` is its inverse, at least
            `bound`; `seconds` is ours, at most `bound`.
        bound: the number.
    """

    kind: Literal["ratio", "bandwidth", "seconds"]
    bound: float

    def met(self, ours: Summary, ratio: Summary | None) -> bool:
        """Whether the medians reach it."""
        if self.kind == "seconds":
            return ours.median <= self.bound
        if ratio is None:
            return False
        return ratio.median <= (self.bound if self.kind == "ratio" else 1 / self.bound)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. All times are seconds for one operation.

    Attributes:
        name: what `--only` takes.
        operation: what was done.
        limit_name: what it is held against; empty where nothing is.
        messages: requests on the wire for one operation, by kind; kinds that did not occur are left out. None
            if not counted.
        notes: what else was seen, as sentences.
        skipped: why it did not run; empty if it did.
        bytes: payload of one operation, for bandwidths; 0 where that says nothing.
    """

    name: str
    operation: str
    limit_name: str = ""
    ours: Summary | None = None
    limit: Summary | None = None
    ratio: Summary | None = None
    aim: Aim | None = None
    messages: dict[str, float] | None = None
    notes: list[str] = []
    skipped: str = ""
    bytes: int = 0

    @property
    def met(self) -> bool | None:
        """Whether the aim was reached; None without an aim or a result."""
        return None if self.aim is None or self.ours is None else self.aim.met(self.ours, self.ratio)


Group: TypeAlias = "Callable[[Bench], Iterable[Row]]"


@dataclass
class Bench:
    """What the rows of one run share. Used by one thread."""

    session: Session
    peers: Peers
    quick: bool  # seconds count more than a narrow spread

    @property
    def plan(self) -> Plan:
        """How long to measure what has no reason to be measured otherwise."""
        return QUICK if self.quick else FULL

    def counters(self) -> dict[str, int]:
        """The counters of every process of every server, added up. 1 control round trip a remote server."""
        here = runtime.current()
        here.flush()
        total = dict(here.counters())
        for server in range(self.session.servers):
            if server != here.server:
                for name, count in self._settled(server).items():
                    total[name] = total.get(name, 0) + count
        return total

    def _settled(self, server: int) -> dict[str, int]:
        """The counters of another server once they hold the completion of every task it ran.

        All its tasks come from here. A worker counts a completion once it was acknowledged, by which time
        the join may have returned.
        """
        counters = self.session.status(server).counters
        looks = 1
        while counters["complete_messages"] < counters["tasks_run"] and looks < _SETTLE_LOOKS:
            counters = self.session.status(server).counters
            looks += 1
        return counters

    def messages(self, ours: Operation, count: int) -> dict[str, float]:
        """Messages for one operation, from a pass of `count` that is not timed: asking would disturb it."""
        ours.prepare(count)
        before = self.counters()
        ours.run(count)
        return messages_between(before, self.counters(), count)

    def compare(
        self,
        name: str,
        operation: str,
        limit_name: str,
        ours: Operation,
        limit: Operation,
        aim: Aim | None = None,
        *,
        plan: Plan | None = None,
        payload_bytes: int = 0,
        notes: Iterable[str] = (),
        elsewhere: bool = False,
    ) -> Row:
        """Measures ours and its limit in turns; counts messages unless ours has servers `elsewhere`."""
        result: Paired = paired(ours, limit, plan or self.plan)
        return Row(
            name=name,
            operation=operation,
            limit_name=limit_name,
            ours=result.ours,
            limit=result.limit,
            ratio=result.ratio,
            aim=aim,
            messages=None if elsewhere else self.messages(ours, min(result.ours.operations, 200)),
            notes=list(notes),
            bytes=payload_bytes,
        )

    def measure(
        self, name: str, operation: str, ours: Operation, aim: Aim | None = None, *, plan: Plan | None = None
    ) -> Row:
        """Measures an operation that has no limit but its aim."""
        summary = alone(ours, plan or self.plan)
        return Row(
            name=name,
            operation=operation,
            ours=summary,
            aim=aim,
            messages=self.messages(ours, min(summary.operations, 200)),
        )


def messages_between(
    before: Mapping[str, int], after: Mapping[str, int], operations: int
) -> dict[str, float]:
    """Requests for one operation, by kind; kinds that did not occur are left out."""
    differences = {kind: after.get(kind, 0) - before.get(kind, 0) for kind in MESSAGES}
    return {kind: difference / operations for kind, difference in differences.items() if difference}
