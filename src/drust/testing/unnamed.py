"""Blocks of a session that no table names, by the look that a loss is followed by: before one there are none.

What the processes of a lost server owned elsewhere is found that way, and freed. So whatever lives must be
named at every moment: a run with kills looks all the time (`Looks`), and fails if it finds any.
"""

import threading
from types import TracebackType
from typing import Self

from drust import runtime
from drust.errors import DrustError
from drust.server import messages, unnamed
from drust.server.unnamed import Block, InconclusiveError
from drust.session import Session

CONFIRM_S = 4.0  # in which a free that is on its way has arrived, and what a dead process had is taken over
_SETTLE_S = 0.3
_BETWEEN_S = 0.5


def find(session: Session, settle_s: float = unnamed.SETTLE_S) -> dict[int, list[Block]]:
    """Of each server that answers, its blocks whose owner is elsewhere, if anywhere, and that nobody names.

    `settle_s`: seconds between the two looks at suspects; what is on its way for longer is found, too.

    Raises:
        InconclusiveError: too much moved meanwhile.
    """
    here = runtime.current()

    def ask(server: int, request: messages.Request) -> messages.Reply:
        return messages.decode_reply(here.control(server, messages.encode(request)))

    living = [server for server in range(session.servers) if here.endpoint(server)[2]]
    return unnamed.find_unnamed(ask, living, threading.Event().wait, settle_s)


def find_lasting(session: Session, ends: threading.Event | None = None) -> set[Block]:
    """Those that stay: not what is being freed just now. Empty if `ends` is set before that is known.

    Raises:
        InconclusiveError: too much moved meanwhile.
    """
    found = _all(find(session, _SETTLE_S))
    if not found or (ends or threading.Event()).wait(CONFIRM_S):
        return set()
    return found & _all(find(session, 0.0))


def _all(found: dict[int, list[Block]]) -> set[Block]:
    return {block for blocks in found.values() for block in blocks}


class Looks:
    """Looks again and again while its block runs, in a thread. For a session that loses no server."""

    def __init__(self, session: Session) -> None:
        self.count = 0
        self.found: set[Block] = set()
        self._session = session
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="drust-looks", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()

    def check(self) -> None:
        """Raises AssertionError if anything that lived had no name."""
        rows = sorted(f"address {block[0]:#x}, colour {block[1]:#x}, {block[2]} B" for block in self.found)
        assert not rows, f"no table named {len(rows)} blocks that stayed: {'; '.join(rows[:20])}"

    def _look_on(self) -> None:
        while not self._ends.wait(_BETWEEN_S):
            try:
                self.found |= find_lasting(self._session, self._ends)
            except (InconclusiveError, DrustError):  # or the session ends
                continue
            self.count += 1
