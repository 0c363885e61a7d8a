"""When the lends into a lost server end: once no task anywhere holds what was lent on through it.

    lost(1)   begin(1)                        answered(0, 1)   answered(2, 1)
    ----------+--Endpoints, Fence(1)--> all   ----------------+---------------Settle--> all

A task on server 1 that had something on loan may have lent it on to server 2, which nobody else knows of.
So whoever joins it is told of the loss only when every server has said that it runs no such task: before,
what was lent would have two writers. One turn at a time for all losses: a task below one lost server may
have lent on to a second one that is lost too, so all are settled together, when the last is fenced.

Rejected: a time limit. A server that is stopped goes on when it is continued, and writes.
Source: docs/protocol.md, "A server is lost".
"""

from typing import Protocol

from drust.server import messages


class Cluster(Protocol):
    """What a fence asks of the engine."""

    @property
    def living(self) -> list[int]:
        """The servers whose channel is open."""
        ...

    def send(self, server: int, message: messages.Message) -> None:
        """Sends a message on a server's channel; nothing happens if it is gone."""
        ...


class Fence:
    """Everything runs in the engine's thread."""

    def __init__(self, cluster: Cluster) -> None:
        """Nothing is lost yet."""
        self._cluster = cluster
        self._turn = 0
        self._untold: set[int] = set()  # lost, and the others have not been told
        self._open: set[int] = set()  # who has not answered this turn
        self._is_settled = True

    def lost(self, server: int) -> None:
        """A server has ended: it will answer nothing, and nothing is settled before `begin`."""
        self._untold.add(server)
        self._open.discard(server)
        self._is_settled = False

    def begin(self, server: int) -> None:
        """The others have been sent the table that says so: a new turn."""
        self._untold.discard(server)
        self._turn += 1
        self._open = set(self._cluster.living)
        for each in self._open:
            self._cluster.send(each, messages.Fence(self._turn))
        self._settle_if_closed()

    def answered(self, server: int, turn: int) -> None:
        """A server runs no task of a server lost before that turn."""
        if turn == self._turn:
            self._open.discard(server)
            self._settle_if_closed()

    def _settle_if_closed(self) -> None:
        if self._is_settled or self._untold or self._open:
            return
        self._is_settled = True
        for each in self._cluster.living:
            self._cluster.send(each, messages.Settle())
