"""What is done when a server is lost, step by step: driven by the engine's loop, one loss after the other.

    everyone <--Endpoints--  the row has no port: nobody sends there, records of its tasks are settled as
    everyone --Joined-->     lost, and who owns which of its values has been told to its backup; that says
                             whether it has replicas
    everyone <--Fence--      tasks that had lent something with them are lost later: fence.py
    backup   <--Endpoints--  it takes the place
    backup   --Joined-->
    everyone <--Endpoints--  whoever waits goes on, there
    ... some seconds later, its backup frees what the lost server's own processes owned

Where no Box had a replica there, in a session that keeps them for those alone that ask, the second half is a
new process, empty, under a new incarnation:

    everyone <--Endpoints--  the row has no backup: whoever waits gets an error
    server   --Ready-->
    everyone <--Endpoints--  the row has a new port

Rejected: the new process beside the backup that answers for the old one's addresses (docs/replication.md).

A server that does not answer within ANSWER_WITHIN_S is not waited for: those who wait for the lost one have
5 s in all.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from drust.engines.fence import Fence
from drust.engines.ring import Ring
from drust.server import messages
from drust.server.loop import Loop

ANSWER_WITHIN_S = 1.0
ORPHANS_AFTER_S = 5.0

_logger = logging.getLogger("drust.launch")


class Cluster(Protocol):
    """What a recovery asks of the engine."""

    @property
    def living(self) -> list[int]:
        """The servers whose channel is open."""
        ...

    def send(self, server: int, message: messages.Message) -> None:
        """Sends a message on a server's channel; nothing happens if it is gone."""
        ...

    def restart(self, server: int, incarnation: int) -> bool:
        """Starts a process that will report Ready. False if there is to be none."""
        ...

    def tell(self, event: messages.Event) -> None:
        """Tells the script's runtime."""
        ...


class Recovery:
    """The losses of one cluster. Everything runs in the engine's thread."""

    def __init__(self, loop: Loop, ring: Ring, cluster: Cluster, *, restarts: bool) -> None:
        """`restarts`: a lost server that has no replicas is started again, not replaced by its backup."""
        self._loop = loop
        self._ring = ring
        self._cluster = cluster
        self._restarts = restarts
        self._waiting: deque[int] = deque()
        self._steps: Iterator[set[int]] | None = None
        self._pending: set[int] = set()
        self._kept: dict[int, list[int]] = {}  # of this loss, by who answered: of whom it has replicas
        self._turn = 0  # so that a timer of an earlier step does nothing
        self._noticed_s: dict[int, float] = {}
        self._fence = Fence(cluster)

    def lost(self, server: int) -> None:
        """A server has ended."""
        self._noticed_s[server] = time.monotonic()
        self._fence.lost(server)
        self._waiting.append(server)
        if self._steps is None:
            self._next_loss()
        else:
            self.joined(server)  # nobody waits for it

    def joined(self, server: int, keeps: list[int] | None = None) -> None:
        """A server has taken in the table, and has replicas of those lost ones; None: it is lost itself."""
        if self._steps is None:
            return
        if keeps is not None:
            self._kept[server] = keeps
        self._pending.discard(server)
        if not self._pending:
            self._advance()

    def fenced(self, server: int, turn: int) -> None:
        """A server has ended what it ran for lost ones."""
        self._fence.answered(server, turn)

    def ready(self, server: int, host: str, port: int) -> None:
        """A server that was started again listens."""
        self._ring.restart(server, host, port)
        self._send_table(self._cluster.living)
        self._report(server, server)

    def protected(self, done: messages.Protected) -> None:
        """A backup has been given what it lacked, or has not."""
        if done.error:
            _logger.error(
                "server %d could not put replicas on server %d: %s", done.server, done.backup, done.error
            )
            return
        for server in done.servers:
            self._ring.protected(server, done.backup)
        if done.versions or not self._restarts:
            self._cluster.tell(done)

    def _next_loss(self) -> None:
        self._steps = None
        if self._waiting:
            self._steps = self._recover(self._waiting.popleft())
            self._advance()

    def _advance(self) -> None:
        if self._steps is None:
            return
        self._turn += 1
        turn = self._turn
        try:
            self._pending = next(self._steps) & set(self._cluster.living)
        except StopIteration:
            self._next_loss()
            return
        if not self._pending:
            self._advance()
            return
        self._loop.call_later(ANSWER_WITHIN_S, lambda: self._overdue(turn))

    def _overdue(self, turn: int) -> None:
        if turn == self._turn and self._steps is not None:
            _logger.warning("no answer from server %s: going on without", sorted(self._pending))
            self._advance()

    def _recover(self, server: int) -> Iterator[set[int]]:
        """The steps; each yields the servers whose answer it needs."""
        answered_for = self._ring.answered_by(server)
        gone = self._ring.lose(server)
        if gone and not self._restarts:
            others = [number for number in gone if number != server]
            if others:
                _logger.error("the only replicas of server %s are lost with server %d", others, server)
            else:
                _logger.error("server %d had no backup: what it held is gone", server)
        self._kept.clear()
        joining = self._send_table(self._cluster.living)
        self._fence.begin(server)
        yield joining
        if self._restarts:
            empty = answered_for if self._has_no_replicas(server) else gone
            self._ring.give_up(empty)
            if empty:
                self._send_table(self._cluster.living)
            for number in empty:
                self._cluster.restart(number, self._ring.next_incarnation(number))
            if server in empty:
                return
        if (successor := self._ring.replace(server)) is not None:
            yield self._send_table([successor])
            yield self._send_table([each for each in self._cluster.living if each != successor])
            for number in answered_for:
                self._report(number, successor)
            self._loop.call_later(ORPHANS_AFTER_S, lambda: self._free_orphans(answered_for))
            if self._ring.table[successor].backup is None:
                _logger.warning("no server is left to keep replicas of what server %d holds", successor)

    def _has_no_replicas(self, server: int) -> bool:
        """Whether the backup of a lost server says so. A silent one takes the place: it may have some."""
        successor = self._ring.successor(server)
        return successor is None or self._kept.get(successor) == []

    def _free_orphans(self, servers: list[int]) -> None:
        for row in self._ring.table:
            if row.server in servers and row.by is not None:
                self._cluster.send(row.by, messages.FreeOrphans(row.server))

    def _send_table(self, servers: list[int]) -> set[int]:
        for server in servers:
            self._cluster.send(server, messages.Endpoints(self._ring.table))
        return set(servers)

    def _report(self, server: int, by: int) -> None:
        seconds = time.monotonic() - self._noticed_s.get(server, time.monotonic())
        _logger.info("server %d answers for server %d after %.3f s", by, server, seconds)
        self._cluster.tell(messages.ServerReplaced(server, by, seconds))
