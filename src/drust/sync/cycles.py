"""Deadlocks among locks of several servers: who waits for whom, asked of each home, one thread at a time.

Idea: where a thread waits stands in the line of the lock that it waits for (native/sync/deadlock.hpp), so a
walk from this thread over the holder of its lock, over the holder of what that one waits for, and so on,
comes back to this thread if and only if they wait in a circle. It is walked twice: threads in a circle do not
move. As Chandy, Misra and Haas (1983), with questions in the place of probes: nobody has to answer for
anybody else.
Rejected: a table of who waits for whom at one server, which every wait would have to tell.
"""

import contextlib
import threading
from typing import NamedTuple, TypeAlias

from drust import runtime
from drust.errors import DrustError, ServerLostError
from drust.server import messages

Thread: TypeAlias = tuple[int, int]
"""A process as shared objects name it, and a thread of it."""

_LINKS_MAX = 64


class Link(NamedTuple):
    """A lock that is waited for."""

    lock: tuple[int, int]
    """Its server and address."""
    holder: Thread
    note: str
    """Where its holder waits, as that said itself."""


class Wait(NamedTuple):
    """What one thread waits for."""

    lock: tuple[int, int]
    note: str
    by: list[Thread]


def find_cycle(me: Thread) -> list[Link]:
    """The circle that this waiting thread is in; its last link is held by itself. Empty if it is in none.

    Cost: 2 round trips to each other server for each thread on the way.
    """
    cycle = _walk(me)
    if not cycle or [each[:2] for each in cycle] != [each[:2] for each in _walk(me)]:
        return []
    return cycle


class Search:
    """find_cycle() in a thread of its own: who waits gets his lock meanwhile, whatever server is silent."""

    def __init__(self, me: Thread) -> None:
        self._found: list[Link] = []
        self._thread = threading.Thread(target=self._run, args=(me,), name="drust-cycles", daemon=True)
        self._thread.start()

    def _run(self, me: Thread) -> None:
        with contextlib.suppress(DrustError):  # the session ends: nobody waits any more
            self._found = find_cycle(me)

    @property
    def is_over(self) -> bool:
        """Whether `found` is all there will be."""
        return not self._thread.is_alive()

    @property
    def found(self) -> list[Link]:
        """The circle, as it was when the search ended."""
        return self._found if self.is_over else []


def _walk(me: Thread) -> list[Link]:
    asked: dict[Thread, Wait | None] = {}

    def wait_of(thread: Thread) -> Wait | None:
        if thread not in asked:
            asked[thread] = _ask(thread)
        return asked[thread]

    def walk(thread: Thread, links: list[Link]) -> list[Link]:
        wait = wait_of(thread)
        if wait is None or len(links) == _LINKS_MAX:
            return []
        for holder in wait.by:
            if holder == me:
                return [*links, Link(wait.lock, holder, "")]
            if holder in asked:
                continue  # it leads nowhere, or to a circle without this thread
            next_wait = wait_of(holder)
            if next_wait is not None and (
                found := walk(holder, [*links, Link(wait.lock, holder, next_wait.note)])
            ):
                return found
        return []

    return walk(me, [])


def _ask(thread: Thread) -> Wait | None:
    """What that thread waits for, wherever the lock is."""
    here = runtime.current()
    found = here.find_wait(*thread)
    if found is not None and found[1]:
        return Wait((here.server, found[0]), found[1].decode(errors="replace"), found[2])
    others = [server for server in range(runtime.config().servers) if server != here.server]
    for server in others if found is None else [here.server]:  # a thread of another server has told this one
        try:
            reply = _control(server, messages.WaitOf(*thread))
        except ServerLostError:
            continue  # nobody waits there any more
        if isinstance(reply, messages.Waiting) and reply.address:
            return Wait((server, reply.address), reply.note, reply.by)
    return None if found is None else Wait((here.server, found[0]), "", found[2])


def tell_note(hold: tuple[int, int, int], home: int, token: int, text: str) -> None:
    """Where this thread waits, for those who look for a circle: 1 round trip to the lock's home."""
    here = runtime.current()
    _control(home, messages.WaitNote(here.who, token, hold, text[: messages.NOTE_CHARACTERS_MAX]))


def _control(server: int, request: messages.Request) -> messages.Reply:
    return messages.decode_reply(runtime.current().control(server, messages.encode(request)))
