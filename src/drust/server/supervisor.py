"""A server's control plane: one loop that joins the channel to the driver, the workers, and the wire's
questions.

    driver's messages ----+                         +---- workers: pool.py
    driver's death -------+--> loop (this file) <---+---- questions from the wire: control.py, asked in a
    thread joining processes ----+                         +---- warm memory, every few seconds
                                                    +---- where there are others, how busy we are: load.py

The server ends when its driver does: the channel's end of file says so, and the driver's pidfd, because a
child the driver forked may hold the channel open. While nothing happens, nothing runs here but one look at
the warm memory every TRIM_PERIOD_S, and, where there are other servers, one at the load every load_period_s.
"""

import faulthandler
import functools
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from drust.server import joining, messages
from drust.server.channel import Channel
from drust.server.control import Control
from drust.server.giving import Giver
from drust.server.load import Load
from drust.server.loop import Loop
from drust.server.pool import Pool
from drust.server.unnamed import Sweeper

if TYPE_CHECKING:
    from drust._core import ServerPlane

GRACE_S = 0.3  # what workers get to end by themselves when the driver is gone
_STUCK_AFTER_S = 1.2  # a server that cannot end in order within this, beyond the grace, ends without
_REPLY_LEAVES_S = 0.05  # the reply to Shutdown is given this time on its way before the sockets close
_OUTPUT_LEAVES_S = 0.2
_TAKE_TIMEOUT_MS = 60_000
TRIM_PERIOD_S = 5.0
AUDIT_AFTER_S = 0.5
NO_SERVER = 4096  # as native/base/address.hpp: no address names it
_TRIM_TO_NOTHING_BYTES = 4 * 2**20

_logger = logging.getLogger("drust.server")


class Supervisor:
    """Runs a server until its driver is gone or says so."""

    def __init__(
        self, plane: "ServerPlane", channel: Channel[messages.ToServer], start: messages.Start
    ) -> None:
        self._plane = plane
        self._channel = channel
        self._start = start
        self._loop = Loop()
        self._pool = Pool(self._loop, plane, start, self._send)
        self._load = Load(plane, start, lambda: self._pool.capacity)
        self._control = Control(plane, self._pool, start, self._load, Giver(plane), self._shut_down_soon)
        self._outbox: deque[messages.Message] = deque()
        self._is_driver_gone = False
        self._hall: joining.Hall | None = None
        self._claimed_bytes = 0
        self._closing = threading.Event()  # set once, by the loop; read by the thread that takes questions
        self._sweeper = Sweeper(self._ask, self._living, self._closing)

    def run(self) -> None:
        """Returns once the workers are gone and the sockets are closed."""
        self._channel.set_blocking(False)
        self._loop.watch(self._channel.fileno(), self._receive)
        self._watch_death(self._start.driver_pid, self._driver_gone)
        signal.signal(signal.SIGTERM, lambda *_: self._loop.post(lambda: self._stop(GRACE_S, "SIGTERM")))
        signal.signal(signal.SIGCHLD, lambda *_: self._loop.post(self._pool.look_for_stopped))
        self._loop.call_later(TRIM_PERIOD_S, self._trim)
        threading.Thread(target=self._take_questions, name="drust-control", daemon=True).start()
        self._loop.run()

    # -- the driver ------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            received = self._channel.receive()
        except BlockingIOError:
            return
        if received is None:
            self._driver_gone()
            return
        match received[0]:
            case messages.Endpoints(endpoints=endpoints):
                self._join(endpoints)
            case messages.FreeOrphans(server=server):
                _logger.info(
                    "%d values of server %d had no owner left", self._plane.free_orphans(server), server
                )
            case messages.Fence(turn=turn):
                self._pool.fence(lambda: self._send(messages.Fenced(turn)))
            case messages.Settle():
                _logger.debug("%d tasks of lost servers have ended", self._plane.settle_records())
                if self._start.server == messages.HOME:
                    self._sweeper.look()
            case messages.LookForUnnamed():
                self._sweeper.look()
            case messages.Stop(grace_s=grace_s):
                self._stop(grace_s, "asked to")
            case messages.Start():
                _logger.warning("a second Start was ignored")

    def _join(self, endpoints: list[messages.Endpoint]) -> None:
        before = {row.server: row for row in self._control.endpoints}
        for row in endpoints:
            self._enter(row, before.get(row.server))
        self._control.endpoints = endpoints
        self._sweeper.changed()
        mine = [row for row in endpoints if not row.port and row.backup == self._start.server]
        keeps = [row.server for row in mine if self._plane.close_replicas(row.server, row.incarnation)[0]]
        if self._start.server == messages.HOME and self._hall is None:
            self._hall = joining.Hall(self._loop, self._plane.memfd, self._guest_arrived)
        if self._hall:
            self._hall.open(
                messages.Welcome(
                    token=self._start.token, driver_pid=self._start.driver_pid, endpoints=endpoints
                )
            )
        self._send(messages.Joined(keeps))  # last: the driver goes on, and others may look for the session
        self._pool.fill()
        if len(endpoints) > 1:
            self._load.begin()

    def _enter(self, row: messages.Endpoint, before: messages.Endpoint | None) -> None:
        """Writes a row of the table into the partition, and does what its change asks of this server."""
        me = self._start.server
        takes_over = row.by == me and (before is None or before.by != me)
        if takes_over:  # before anybody is sent here
            versions, nbytes = self._plane.promote(row.server)
            _logger.info("answers for server %d: %d values, %d bytes", row.server, versions, nbytes)
        self._plane.set_endpoint(
            row.server,
            row.epoch,
            row.host,
            row.port,
            NO_SERVER if row.by is None else row.by,
            NO_SERVER if row.backup is None else row.backup,
        )
        if before is None:
            return
        if before.port and (not row.port or row.incarnation != before.incarnation):
            self._plane.fail_records(row.server, before.incarnation)
            self._pool.lose(row.server, before.incarnation)
        is_mine = row.by == me or (row.by is None and row.server == me)
        if is_mine and row.port and row.backup is not None and (takes_over or row.backup != before.backup):
            self._protect(row.backup, row.server)

    def _protect(self, backup: int, server: int) -> None:
        """Puts on `backup` what it does not have: of this server, or of one in whose place it answers."""

        def protect() -> None:
            began_s = time.monotonic()
            versions, nbytes, error = 0, 0, ""
            try:
                versions, nbytes = self._plane.protect(backup, server)
            except Exception as failure:  # noqa: BLE001 - the driver is told
                error = str(failure)
            done = messages.Protected(
                self._start.server, backup, [server], versions, nbytes, time.monotonic() - began_s, error
            )
            self._loop.post(lambda: self._send(done))

        threading.Thread(target=protect, name="drust-protect", daemon=True).start()

    def _audit(self) -> None:
        """A worker was killed, perhaps before it could say which replicas are of no use any more.

        What it had sent last has arrived by now. 1 round trip, and none where nothing was ever replicated.
        """
        rows = [row for row in self._control.endpoints if row.server == self._start.server]
        backup = rows[0].backup if rows else None
        if backup is None or self._closing.is_set() or not self._plane.has_replicated:
            return

        def audit() -> None:
            try:
                question = messages.encode(messages.ReplicasOf(self._start.server))
                reply = messages.decode_reply(self._plane.control(backup, question))
                if isinstance(reply, messages.KeptReplicas):
                    self._plane.drop_unused_replicas(reply.replicas)
            except Exception as error:  # noqa: BLE001 - it is for tidiness, and the next death tries again
                _logger.debug("replicas on server %d were not audited: %s", backup, error)

        threading.Thread(target=audit, name="drust-audit", daemon=True).start()

    def _send(self, message: messages.Message) -> None:
        """Never waits: what the driver does not take now is kept in order, and workers wait."""
        if isinstance(message, messages.WorkerLost):
            self._loop.call_later(AUDIT_AFTER_S, self._audit)
        self._outbox.append(message)
        self._flush()

    def _flush(self) -> None:
        while self._outbox:
            try:
                alive = self._channel.send(self._outbox[0])
            except BlockingIOError:
                break
            if not alive:
                self._driver_gone()
                return
            self._outbox.popleft()
        waiting = bool(self._outbox)
        self._pool.pause_output(waiting)
        if not self._is_driver_gone:
            self._loop.watch(self._channel.fileno(), self._receive, self._flush if waiting else None)

    def _driver_gone(self) -> None:
        self._is_driver_gone = True
        self._outbox.clear()
        self._loop.unwatch(self._channel.fileno())
        self._stop(GRACE_S, "the driver has ended")

    # -- other processes -------------------------------------------------------------------------------------

    def _watch_death(self, pid: int, died: Callable[[], None]) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            died()
            return

        def ended() -> None:
            self._loop.unwatch(pidfd)
            os.close(pidfd)
            died()

        self._loop.watch(pidfd, ended)

    def _guest_arrived(self, pid: int) -> None:
        """A process that is not our child may attach now: what it holds is given back when it ends."""
        self._watch_death(pid, lambda: self._pool.reap(pid, "it left", lambda _: self._sweeper.look()))

    def _take_questions(self) -> None:
        while not self._closing.is_set():
            question = self._plane.take_control(_TAKE_TIMEOUT_MS)
            if question is not None:
                self._loop.post(functools.partial(self._reply, *question))

    def _reply(self, number: int, body: bytes) -> None:
        if not self._closing.is_set():
            self._plane.reply_control(number, self._control.answer(body))

    def _ask(self, server: int, request: messages.Request) -> messages.Reply:
        body = messages.encode(request)
        here = server == self._start.server
        return messages.decode_reply(
            self._control.answer(body) if here else self._plane.control(server, body)
        )

    def _living(self) -> list[int]:
        return [row.server for row in self._control.endpoints if row.port and row.by is None]

    # -- memory ----------------------------------------------------------------------------------------------

    def _trim(self) -> None:
        """While the heap is at rest, half of its warm memory goes back to the system at each look."""
        usage = self._plane.usage()
        warm, claimed = usage["warm_bytes"], usage["claimed_bytes"]
        if warm and claimed == self._claimed_bytes:
            self._plane.trim(warm // 2 if warm > _TRIM_TO_NOTHING_BYTES else 0)
        self._claimed_bytes = claimed
        self._loop.call_later(TRIM_PERIOD_S, self._trim)

    # -- the end ---------------------------------------------------------------------------------------------

    def _shut_down_soon(self) -> None:
        self._loop.call_later(_REPLY_LEAVES_S, lambda: self._stop(GRACE_S, "Shutdown"))

    def _stop(self, grace_s: float, reason: str) -> None:
        if self._closing.is_set():
            return
        _logger.debug("server %d ends: %s", self._start.server, reason)
        self._closing.set()
        self._load.stop()
        faulthandler.dump_traceback_later(grace_s + _STUCK_AFTER_S, exit=True)  # needs no GIL
        if self._hall:
            self._hall.close()
        left = {"workers", "plane"}

        def gone(part: str) -> None:
            left.discard(part)
            if not left:  # what the workers printed last may still be on its way
                self._loop.call_later(_OUTPUT_LEAVES_S if self._outbox else 0.0, self._loop.stop)

        def close_plane() -> None:
            self._plane.close()  # ends every wait in the partition: idle workers leave by themselves
            self._loop.post(lambda: gone("plane"))

        threading.Thread(target=close_plane, name="drust-close", daemon=True).start()
        self._pool.stop(grace_s, lambda: gone("workers"))
