"""Queued tasks that other servers ask for, when they have nothing to do: native/server/takeovers.hpp.

A thread of its own, which exists from the first request on: handing over waits for the one who asked.
"""

import logging
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drust._core import ServerPlane

GIVEN_MAX = 64  # tasks at a time: the others may have become free meanwhile
_TEND_S = 0.05  # between looks at tasks whose receiver does not answer

_logger = logging.getLogger("drust.server")


class Giver:
    """Hands tasks of this server's queue over to whoever asks."""

    def __init__(self, plane: "ServerPlane") -> None:
        self._plane = plane
        self._asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._waiting: set[int] = set()  # who is in the queue; each end is atomic under the interpreter lock
        self._thread: threading.Thread | None = None

    def give(self, thief: int) -> None:
        """Soon. In the loop's thread; one request of a server waits at a time."""
        if thief in self._waiting:
            return
        self._waiting.add(thief)
        self._asked.put(thief)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="drust-give", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        is_open = False
        while True:
            try:
                thief = self._asked.get(timeout=_TEND_S if is_open else None)
                self._waiting.discard(thief)
                given = self._plane.give(thief, GIVEN_MAX)
                _logger.debug("%d queued tasks went to server %d", given, thief)
            except queue.Empty:
                pass
            except Exception:  # else nobody would be given anything any more
                _logger.exception("queued tasks could not be handed over")
            try:
                is_open = self._plane.tend_given() > 0
            except Exception:
                _logger.exception("tasks whose receiver does not answer could not be looked at")
                is_open = True
