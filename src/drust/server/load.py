"""How busy every server is: measured by each, gathered by the home server, in every partition.

    server n  --Report(row)-->  home        one control message a period a server,
    server n  <--Loads(rows)--  home        whose reply is the whole table

The home server is the controller: what it is told it keeps, and whoever tells it something takes the table
home with the same message. Each server writes what it hears into its partition, where whoever spawns reads it
without a message (drust.placement). A server that is lost tells nothing any more: its row grows old, and is
not believed from STALE_PERIODS periods on.

The processors are the machine's, whoever uses them. Servers that share a machine share its processors, so the
rows of one machine all say what the busiest reading of it said: else chance would prefer one of them.

While copies of other servers' values fill the partition above HEAP_WATERMARK, the oldest that nobody reads
go, at each look: room for a borrow is there before it is asked for.

A server whose workers have nothing to do asks the one with the most tasks in its queue for some of them
(giving.py); one that is overloaded comes first.

Rejected: each server asks all others (n times as many messages); a push from home (it would have to know who
listens). A cluster of one server measures nothing.
Source: Ma et al., OSDI'24, section 4.2 (the controller polls each server's CPU and memory).
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drust.config import HEAP_WATERMARK
from drust.server import messages

if TYPE_CHECKING:
    from drust._core import ServerPlane

STALE_PERIODS = 5
OVERLOADED = 0.90  # of the machine's processors, or of the partition: a server above gets no new tasks
_EVICT_TO = 0.70  # of the quota, once the heap is above the watermark

_logger = logging.getLogger("drust.server")


def machine_name() -> str:
    """What tells this machine, as it runs now, from any other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def choose_victim(me: int, rows: list[messages.LoadRow], fresh_s: float) -> int | None:
    """Whom an idle server takes tasks over from; None if it is not idle, or nobody has any to spare. Pure.

    Args:
        me: the server that asks.
        rows: what it knows, its own row among it.
        fresh_s: older rows do not count.
    """
    known = {row.server: row for row in rows if row.age_s < fresh_s}
    own = known.pop(me, None)
    if own is None or not own.idle or own.queued or own.memory >= OVERLOADED:
        return None
    spare = [
        row
        for row in known.values()
        if row.queued > row.idle and (own.cpu < OVERLOADED or row.cpu >= OVERLOADED)
    ]
    if not spare:
        return None
    return max(
        spare,
        key=lambda row: (max(row.cpu, row.memory) >= OVERLOADED, row.queued - row.idle, -row.server),
    ).server


class Load:
    """This server's measurements, and the table. A thread measures; the loop's thread enters reports."""

    def __init__(
        self,
        plane: "ServerPlane",
        start: messages.Start,
        workers: Callable[[], int],
    ) -> None:
        """`workers`: how many worker processes there are, or soon will be."""
        self._plane = plane
        self._server = start.server
        self._period_s = start.load_period_s
        self._workers = workers
        self._machine = machine_name()
        self._lock = threading.Lock()  # protects _rows, and that one thread at a time writes the table
        self._rows: dict[int, tuple[float, messages.LoadRow]] = {}  # by server: when it was measured, what
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Measures from now on, every period. May be called again."""
        if self._thread is None and self._period_s > 0:
            self._thread = threading.Thread(target=self._run, name="drust-load", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """No more."""
        self._closing.set()

    def enter(self, row: messages.LoadRow) -> list[messages.LoadRow]:
        """What a server says of itself; at home. Returns the table, each row with its age."""
        with self._lock:
            self._rows[row.server] = (time.monotonic() - row.age_s, row)
            table = self._table()
            self._write(table)
        return table

    def _run(self) -> None:
        import psutil

        psutil.cpu_percent()  # the first only begins the interval
        while not self._closing.wait(self._period_s):
            try:
                self._look(psutil.cpu_percent() / 100)
            except Exception as error:  # noqa: BLE001 - home may be gone, or going; the next look tries again
                _logger.debug("the load of server %d was not told: %s", self._server, error)

    def _look(self, cpu: float) -> None:
        idle, queued, claimed_bytes, quota_bytes = self._plane.measure()
        if claimed_bytes > HEAP_WATERMARK * quota_bytes:
            self._plane.evict(claimed_bytes - int(_EVICT_TO * quota_bytes))
            claimed_bytes = self._plane.measure()[2]
        row = messages.LoadRow(
            server=self._server,
            machine=self._machine,
            age_s=0.0,
            workers=self._workers(),
            idle=idle,
            queued=queued,
            cpu=cpu,
            claimed_bytes=claimed_bytes,
            quota_bytes=quota_bytes,
        )
        if self._server == messages.HOME:
            rows = self.enter(row)
        else:
            reply = self._ask(messages.HOME, messages.Report(row))
            rows = reply.rows if isinstance(reply, messages.Loads) else []
            with self._lock:
                self._write(rows)
        victim = choose_victim(self._server, rows, STALE_PERIODS * self._period_s)
        if victim is not None:
            self._ask(victim, messages.TakeOver(self._server))

    def _ask(self, server: int, request: messages.Request) -> messages.Reply:
        return messages.decode_reply(self._plane.control(server, messages.encode(request)))

    def _table(self) -> list[messages.LoadRow]:
        now_s = time.monotonic()
        fresh_s = now_s - STALE_PERIODS * self._period_s
        busiest: dict[str, float] = {}
        for measured_s, row in self._rows.values():
            if measured_s >= fresh_s:
                busiest[row.machine] = max(row.cpu, busiest.get(row.machine, 0.0))
        return [
            msgspec.structs.replace(row, age_s=now_s - measured_s, cpu=busiest.get(row.machine, row.cpu))
            for measured_s, row in self._rows.values()
        ]

    def _write(self, rows: list[messages.LoadRow]) -> None:
        for row in rows:
            words = (
                int(row.age_s * 1000),
                row.workers,
                row.idle,
                row.queued,
                int(row.cpu * 1000),
                row.claimed_bytes,
                row.quota_bytes,
            )
            self._plane.set_load(row.server, words)
