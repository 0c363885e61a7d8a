"""After the loss of a server: what its processes owned on others is found, as nobody names it, and freed.

    home --Suspects--> all   blocks there whose owner is on another server, if anywhere;
          twice, SETTLE_S apart: what is on its way now is not a suspect both times
    home --Watch-----> all   names that appear are noted from here on
    home --Search----> all   the suspects of all servers that stand in a table there
    home --Reveal----> all   those that were noted since
    home --FreeUnnamed-> ..  the others, each by its own server

Asked by the home server, some seconds after a loss, and given up when servers come or go meanwhile: a name
may have moved to one that was not asked. 4 round trips a server without suspects, and
the look at every block of each: a second for a hundred million. Nothing is asked before a loss.

Why a name that moves is not missed: native/server/unnamed.hpp. Source: docs/protocol.md, "The fence".
"""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from drust.server import messages

QUIET_S = 6.0  # first: a backup has freed by then what a lost server owned itself
SETTLE_S = 5.0  # no name is in a process's hands alone for so long: a worker that is stopped is ended before
SUSPECTS_MAX = 10_000  # of a server, a round
TRIES = 5

Ask = Callable[[int, messages.Request], messages.Reply]
Block = tuple[int, int, int]
Answer = TypeVar("Answer", bound=messages.Message)

_logger = logging.getLogger("drust.server")


class InconclusiveError(Exception):
    """It cannot be said what is unnamed: too much was noted, or a server did not answer."""


def find_unnamed(
    ask: Ask, servers: list[int], settle: Callable[[float], object], settle_s: float = SETTLE_S
) -> dict[int, list[Block]]:
    """Of each server, the blocks that no table of any of them names.

    Args:
        ask: asks a server.
        servers: all that live.
        settle: waits for so many seconds.
        settle_s: between the two looks at suspects.

    Raises:
        InconclusiveError: a server does not answer, or named more than could be noted.
    """
    before = {server: _suspects(ask, server) for server in servers}
    if not any(before.values()):
        return {}
    settle(settle_s)
    suspects = {server: before[server] & _suspects(ask, server) for server in servers if before[server]}
    addresses = [block[0] for blocks in suspects.values() for block in blocks]
    if not addresses:
        return {}
    named: set[int] = set()
    tickets: dict[int, int] = {}
    try:
        for server in servers:
            tickets[server] = _expect(ask(server, messages.Watch()), messages.Watching).ticket
        for server in servers:
            named.update(_expect(ask(server, messages.Search(addresses)), messages.Named).addresses)
    finally:
        revealed = [_reveal(ask, server, addresses, ticket) for server, ticket in tickets.items()]
    for found in revealed:
        if found is None:
            raise InconclusiveError("too much was named meanwhile, or a server is silent")
        named.update(found)
    unnamed = {
        server: sorted(block for block in blocks if block[0] not in named)
        for server, blocks in suspects.items()
    }
    return {server: blocks for server, blocks in unnamed.items() if blocks}


def _suspects(ask: Ask, server: int) -> set[Block]:
    return set(_expect(ask(server, messages.Suspects(SUSPECTS_MAX)), messages.Suspected).blocks)


def _reveal(ask: Ask, server: int, addresses: list[int], ticket: int) -> list[int] | None:
    try:
        reply = ask(server, messages.Reveal(addresses, ticket))
    except Exception:  # noqa: BLE001 - the others are to be asked all the same: their watch ends
        return None
    return reply.addresses if isinstance(reply, messages.Named) and reply.is_complete else None


def _expect(reply: messages.Reply, kind: type[Answer]) -> Answer:
    if not isinstance(reply, kind):
        raise InconclusiveError(str(reply))
    return reply


class Sweeper:
    """Of the home server. The methods are called by its loop; what is asked, in a thread of its own."""

    def __init__(self, ask: Ask, servers: Callable[[], list[int]], closing: threading.Event) -> None:
        """`servers`: all that live; `closing` ends it."""
        self._ask = ask
        self._servers = servers
        self._closing = closing
        self._changes = 0
        self._lock = threading.Lock()
        self._tries = 0  # that are left; protected by _lock, as _runs
        self._runs = False

    def changed(self) -> None:
        """Servers came or went: what was found so far counts no longer."""
        self._changes += 1

    def look(self) -> None:
        """A process or a server was lost: what it owned may be freed, once the cluster has come to rest."""
        with self._lock:
            self._tries = TRIES
            if self._runs:
                return
            self._runs = True
        threading.Thread(target=self._run, name="drust-unnamed", daemon=True).start()

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                if not self._tries:
                    self._runs = False
                    return
                tries = self._tries = self._tries - 1
            found = self._sweep()
            with self._lock:
                if found:  # what it shared with others may be unnamed by now
                    self._tries = TRIES
                elif found == 0 and self._tries == tries:  # nobody was lost meanwhile
                    self._tries = 0
        with self._lock:
            self._runs = False

    def _sweep(self) -> int | None:
        """How many were freed; None: not known, and to be tried again."""
        changes = self._changes
        if self._closing.wait(QUIET_S) or changes != self._changes:
            return None
        try:
            unnamed = find_unnamed(self._ask, self._servers(), self._closing.wait)
            if changes != self._changes or self._closing.is_set():
                return None
            freed = 0
            for server, blocks in unnamed.items():
                reply = _expect(self._ask(server, messages.FreeUnnamed(blocks)), messages.Freed)
                _logger.info("server %d has freed %d blocks of lost owners", server, reply.blocks)
                freed += reply.blocks
            return freed
        except Exception as error:  # noqa: BLE001 - the next try, or the next loss, goes on
            _logger.debug("what lost processes owned elsewhere is not known: %s", error)
            return None
