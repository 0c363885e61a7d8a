"""What was sent, copied and encoded while a step ran: differences of the summed counters of all servers.

Each process of a host counts what it does in its server's partition; a server's counters are the sum. Frees
and completions are counted a moment after the step that caused them, so a measurement waits until the
counters are calm. Asking another server for its counters is a message too: what that costs is counted here
and taken off, so that a step that sends nothing shows zeros.
Rejected: timing alone. That a write sends nothing is no question of milliseconds.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from drust import runtime
from drust.session import Session

MESSAGES = {
    "reads": "read_requests",
    "writes": "write_requests",
    "frees": "free_messages",
    "submits": "submit_messages",
    "completions": "complete_messages",
}
OTHERS = {"copies": "blocks_copied", "encodes": "encodes"}
WIRE = ("bytes_sent", "bytes_received")
COLUMNS = (*MESSAGES, "wire_bytes", *OTHERS)

CALM_READINGS = 3  # equal ones in a row
PAUSE_S = 0.008  # longer than a free waits for company
CALM_WITHIN_S = 5.0

Counts = dict[str, int]


def summed(servers: list[Mapping[str, int]]) -> Counts:
    """The columns of the demo's table from the raw counters of all servers."""
    counts = {
        name: sum(server[counter] for server in servers) for name, counter in (MESSAGES | OTHERS).items()
    }
    counts["wire_bytes"] = sum(server[name] for server in servers for name in WIRE)
    return counts


class ClusterCounters:
    """Reads the counters of every server of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._own_bytes = 0  # sent and received by the readings themselves

    def __call__(self) -> Counts:
        """The sums since the servers started, without these readings: one round trip to each other server."""
        here = runtime.current()
        here.flush()
        others: list[Mapping[str, int]] = []
        for server in range(self._session.servers):
            if server != here.server:
                before = self._sent_here()
                others.append(self._session.status(server).counters)
                self._own_bytes += self._sent_here() - before
        counts = summed([here.counters(), *others])
        counts["wire_bytes"] -= self._own_bytes
        return counts

    def _sent_here(self) -> int:
        here = runtime.current()
        own = (here.slot, here.generation)
        rows = [row for row in here.processes() if (row["slot"], row["generation"]) == own]
        return sum(row["counters"][name] for row in rows for name in WIRE)


@dataclass
class Row:
    """One step: its name, how long it took, and what was sent meanwhile."""

    step: str
    seconds: float = 0.0
    counts: Counts = field(default_factory=dict)

    @property
    def messages(self) -> int:
        """Messages of all kinds."""
        return sum(self.counts[name] for name in MESSAGES)


class Meter:
    """Measures steps, one after another: what happens between two counts for the second."""

    def __init__(self, counters: Callable[[], Counts], within_s: float = CALM_WITHIN_S) -> None:
        self.rows: list[Row] = []
        self._counters = counters
        self._within_s = within_s
        self._last = self._calm()

    @contextmanager
    def step(self, name: str) -> Iterator[Row]:
        """Measures its block. The row's numbers are there when the block has ended; none if it fails."""
        row = Row(name)
        start = time.perf_counter()
        yield row
        row.seconds = time.perf_counter() - start
        now = self._calm()
        row.counts = {key: now[key] - self._last[key] for key in COLUMNS}
        self._last = now
        self.rows.append(row)

    def _calm(self) -> Counts:
        """The counters, once nothing is on its way any more: they stand still, and every task that was sent
        to another server has sent its completion.
        """
        pause = threading.Event()
        end_s = time.monotonic() + self._within_s
        last = self._counters()
        equal = 1
        while (equal < CALM_READINGS or last["completions"] < last["submits"]) and time.monotonic() < end_s:
            pause.wait(PAUSE_S)
            now = self._counters()
            equal = equal + 1 if now == last else 1
            last = now
        return last
