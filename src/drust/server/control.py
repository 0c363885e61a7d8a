"""Answers to the wire's `control` operation: a request's bytes in, a reply's bytes out. Runs in the server's
loop.

psutil is imported at the first question, not at the server's start.
"""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from drust.server import messages
from drust.server.giving import Giver
from drust.server.load import Load
from drust.server.notes import Notes
from drust.server.pool import Place, Pool
from drust.server.who import is_among

if TYPE_CHECKING:
    from drust._core import ServerPlane

LARGEST_MAX = 1000
_ROLES = {1: "server", 2: "driver", 3: "worker"}  # as heap::ProcessKind
_OWNED = (1, 3, 6)  # of heap::OwnerKind, those that name a process: process, in transit, borrower
REPLICAS_LISTED_MAX = 100_000  # a reply stays below the wire's bound for control bodies


class Control:
    """What a server can be asked. `endpoints` is the table last received."""

    def __init__(
        self,
        plane: "ServerPlane",
        pool: Pool,
        start: messages.Start,
        load: Load,
        giver: Giver,
        shut_down: Callable[[], None],
    ) -> None:
        """`shut_down` is called before Shutdown is answered: it must not end the server at once."""
        self.endpoints: list[messages.Endpoint] = []
        self._plane = plane
        self._pool = pool
        self._start = start
        self._load = load
        self._giver = giver
        self._shut_down = shut_down
        self._notes = Notes(plane.find_wait, plane.find_held)
        self._started_s = time.monotonic()

    def answer(self, body: bytes) -> bytes:
        """The reply to one request; `Refused` for what is none. Never raises."""
        reply: messages.Reply
        try:
            reply = self._answer(messages.decode_request(body))
        except msgspec.DecodeError as error:
            reply = messages.Refused(reason=f"not a request: {error}")
        except Exception as error:  # noqa: BLE001 - whoever asks gets the reason, the server goes on
            reply = messages.Refused(reason=f"{type(error).__name__}: {error}")
        return messages.encode(reply)

    def _answer(self, request: messages.Request) -> messages.Reply:
        match request:
            case messages.Status():
                return self._status()
            case messages.Largest(most=most):
                return self._largest(max(0, min(most, LARGEST_MAX)))
            case messages.ReplicasOf(server=server, most=most):
                kept = self._plane.replicas_of(server, max(0, min(most, REPLICAS_LISTED_MAX)))
                return messages.KeptReplicas(kept)
            case messages.Report(row=row):
                return messages.Loads(self._load.enter(row))
            case messages.TakeOver(server=server):
                self._giver.give(server)
                return messages.Giving()
            case messages.WaitOf():
                return self._notes.of(request)
            case messages.WaitNote():
                return self._notes.keep(request)
            case messages.IsAlive(who=who):
                return messages.Alive(is_alive=is_among(who, self._plane.processes()))
            case messages.Suspects(most=most):
                return messages.Suspected(self._plane.suspects(most))
            case messages.Watch():
                return messages.Watching(self._plane.watch())
            case messages.Search(addresses=addresses):
                return messages.Named(self._plane.search(addresses))
            case messages.Reveal(addresses=addresses, ticket=ticket):
                noted = self._plane.reveal(addresses, ticket)
                return messages.Named(noted or [], is_complete=noted is not None)
            case messages.FreeUnnamed(blocks=blocks):
                return messages.Freed(self._plane.free_unnamed(blocks))
            case messages.Shutdown():
                self._shut_down()
                return messages.ShuttingDown()

    def _largest(self, most: int) -> messages.LargestBlocks:
        rows = msgspec.convert(self._plane.largest_blocks(most), list[messages.BlockRow])
        owners = {row["slot"]: (row["pid"], _ROLES.get(row["kind"], "")) for row in self._plane.processes()}
        blocks = []
        for row in rows:
            pid, role = owners.get(row.owner_slot, (0, "")) if row.owner_kind in _OWNED else (0, "")
            blocks.append(msgspec.structs.replace(row, owner_pid=pid, owner_role=role))
        return messages.LargestBlocks(blocks, self._plane.live_blocks(), self._plane.usage())

    def _status(self) -> messages.ServerStatus:
        tasks_run = {row["pid"]: row["counters"]["tasks_run"] for row in self._plane.processes()}
        cpu_s, rss_bytes = _load(os.getpid())
        queued, running = self._plane.queued()
        replica_versions, replica_bytes = self._plane.replicas()
        return messages.ServerStatus(
            server=self._start.server,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started_s,
            driver_pid=self._start.driver_pid,
            cpu_s=cpu_s,
            rss_bytes=rss_bytes,
            queued_tasks=queued,
            running_tasks=running,
            usage=self._plane.usage(),
            counters=self._plane.counters(),
            endpoints=self.endpoints,
            workers=[_worker_status(place, tasks_run) for place in self._pool.places],
            replica_versions=replica_versions,
            replica_bytes=replica_bytes,
        )


def _worker_status(place: Place, tasks_run: dict[int, int]) -> messages.WorkerStatus:
    worker = place.process
    if worker is None:
        return messages.WorkerStatus(
            worker=place.index,
            state=place.state,
            pid=0,
            uptime_s=0,
            cpu_s=0,
            rss_bytes=0,
            deaths=place.deaths,
            tasks_run=0,
        )
    cpu_s, rss_bytes = _load(worker.pid)
    return messages.WorkerStatus(
        worker=place.index,
        state="attached" if worker.pid in tasks_run else "starting",
        pid=worker.pid,
        uptime_s=time.monotonic() - worker.started_s,
        cpu_s=cpu_s,
        rss_bytes=rss_bytes,
        deaths=place.deaths,
        tasks_run=tasks_run.get(worker.pid, 0),
    )


def _load(pid: int) -> tuple[float, int]:
    """Processor seconds and resident bytes of a process; zeros where it is gone. A few small files read."""
    import psutil

    try:
        about = psutil.Process(pid)
        times = about.cpu_times()
        return times.user + times.system, about.memory_info().rss
    except psutil.Error:
        return 0.0, 0
