"""KeyLocks: a lock for each key that somebody holds, and nothing for all others.

Idea: who holds a key's lock has an entry under that key, with his name, in shards of its own (shards.py): to
take the lock is to insert it, to give it back is to remove it, one step each. Who has to wait marks the
entry, and sleeps until a marked one is removed, which is counted in an AtomicInt at the same server. If the
holder has died, its entry is taken over.
Rejected: a Mutex for each key (somebody has to own it when nobody holds it), and a fixed number of Mutexes
that keys share (two keys of one thread may meet in one of them: a deadlock that no program has written).
"""

import struct
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from drust import blocking, runtime, tasks
from drust.collections.shards import ABSENT, ALWAYS, VERSION, Shards, decode, encode
from drust.errors import AccessError, BorrowTimeoutError, DeadlockError, ServerLostError
from drust.server import messages
from drust.server.who import is_among, place_of
from drust.sync.atomics import AtomicInt

K = TypeVar("K")

_HOLDER = struct.Struct("<QQ?")  # process as shared objects name it, thread, whether somebody waits
_LOOK_S = 0.5  # a waiter looks whether the holder is alive


class KeyLocks(Generic[K]):
    """Locks by key, for all processes.

        locks = drust.KeyLocks()
        with locks.lock("account 7", "account 9"):      # both, or neither
            ...

    Keys are those of a Dict. A lock is not poisoned by an exception; of one whose holder died, the next one
    is told: `guard.was_abandoned`. It is not fair: of those who wait, whoever comes first has it next. Blocks
    inside each other that take keys crosswise wait for ever, and nobody reports it: take all keys in one
    block, or give a `timeout`.

    Cost: to take a lock and to give it back is 1 step of a Dict each: on the host of the key's shard no
    message, elsewhere 1 round trip. Who waits marks the lock (1 more), and sleeps; each lock that is given
    back while somebody waits for it wakes all who wait for any key of that server. The holder's death is
    noticed within 1 s.

    Args:
        on: the servers of its shards, as of `Dict`.
    """

    __slots__ = ("_freed", "_shards")

    def __init__(self, *, on: Iterable[int] | None = None) -> None:
        self._shards = Shards.make(on)
        here = runtime.current().server
        homes = dict.fromkeys(shard.server for shard in self._shards.all)
        away = {home: tasks.spawn(AtomicInt, server=home) for home in homes if home != here}
        counters = {home: away[home].join() if home in away else AtomicInt() for home in homes}
        self._freed = tuple(counters[shard.server] for shard in self._shards.all)

    def __repr__(self) -> str:
        return f"<KeyLocks on servers {', '.join(str(shard.server) for shard in self._shards.all)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._shards, self._freed)

    def lock(self, *keys: Any, timeout: float | None = None) -> "KeyGuard":
        """For a `with` block: has the locks of these keys from its start to its end.

        Several are taken in one order that all processes have, so that two such blocks never wait for each
        other.

        Args:
            keys: of a Dict's kinds; equal ones are one.
            timeout: seconds to wait for all of them; None waits as long as their holders live.

        Raises:
            TypeError: a key is none that all processes would agree on.

        The block's start raises DeadlockError if this thread holds one of them already, BorrowTimeoutError
        after `timeout`, ServerLostError where a lock's shard is lost; then it has none of them.
        """
        located = sorted({self._shards.locate(key) for key in keys})
        return KeyGuard(self, located, timeout)

    # ------------------------------------------------------------------------------------------------------

    def _take(self, located: bytes, deadline: float | None, timeout: float | None) -> bool:
        """Waits for one lock; whether its holder before has died."""
        shard, freed = self._shards.of(located), self._freed[self._shards.index_of(located)]
        me = (runtime.current().who, threading.get_ident())
        mine = encode(_HOLDER.pack(*me, False), "")
        if shard._put(located, *mine, ABSENT, 0)[0]:
            return False
        is_late = False
        with blocking.section():
            while True:
                seen = freed.load()  # before the entry: no removal is missed
                entry = shard._get(located)
                if entry is None:
                    if shard._put(located, *mine, ABSENT, 0)[0]:
                        return False
                    continue
                who, thread, is_marked = _HOLDER.unpack(decode(entry[0], entry[1]))
                if (who, thread) == me:
                    raise DeadlockError(
                        object=repr(self), cycle=("this thread holds that key's lock already",)
                    )
                is_over = deadline is not None and time.monotonic() >= deadline
                if (is_late or is_over) and not _is_alive(who):
                    marked = encode(_HOLDER.pack(*me, True), "")  # others may wait
                    if shard._put(located, *marked, VERSION, entry[2])[0]:
                        return True
                    continue
                if not is_marked:
                    marked = encode(_HOLDER.pack(who, thread, True), "")
                    if not shard._put(located, *marked, VERSION, entry[2])[0]:
                        continue
                if is_over:
                    raise BorrowTimeoutError(
                        object=f"a key's lock of {self!r}", timeout_s=timeout or 0.0, holder=_name(who)
                    )
                is_late = not _wait_freed(freed, seen, deadline)

    def _give_back(self, located: bytes) -> None:
        entry = self._shards.of(located)._remove(located, ALWAYS, 0)[2]
        if entry is not None and _HOLDER.unpack(decode(entry[0], entry[1]))[2]:
            freed = self._freed[self._shards.index_of(located)]
            freed.fetch_add(1)
            freed.notify_all()


class KeyGuard:
    """The locks of some keys, for one `with` block."""

    __slots__ = ("_held", "_located", "_locks", "_timeout", "was_abandoned")

    def __init__(self, locks: KeyLocks[Any], located: list[bytes], timeout: float | None) -> None:
        self._locks = locks
        self._located = located
        self._timeout = timeout
        self._held: list[bytes] | None = None
        self.was_abandoned = False
        """Whether a process died that held one of them: what it was doing may be half done."""

    def __enter__(self) -> Self:
        if self._held is not None:
            raise AccessError(object=repr(self._locks), reason="this guard is in use: ask for another one")
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        self._held = []
        self.was_abandoned = False
        try:
            for located in self._located:
                self.was_abandoned |= self._locks._take(located, deadline, self._timeout)
                self._held.append(located)
        except BaseException:
            with suppress(ServerLostError):
                self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held, self._held = self._held or [], None
        with ExitStack() as stack:  # all are given back, whatever one of them raises
            for located in held:
                stack.callback(self._locks._give_back, located)


def _rebuild(shards: Shards, freed: tuple[AtomicInt, ...]) -> KeyLocks[Any]:
    made: KeyLocks[Any] = KeyLocks.__new__(KeyLocks)
    made._shards = shards
    made._freed = freed
    return made


def _wait_freed(freed: AtomicInt, seen: int, deadline: float | None) -> bool:
    left_s = _LOOK_S if deadline is None else min(_LOOK_S, max(0.0, deadline - time.monotonic()))
    try:
        freed.wait(seen, left_s)
    except BorrowTimeoutError:
        return False
    return True


def _is_alive(who: int) -> bool:
    """Whether that process is there: 1 round trip if its server is another one."""
    here = runtime.current()
    server = place_of(who)[0]
    if server == here.server:
        return is_among(who, here.processes())
    try:
        reply = messages.decode_reply(here.control(server, messages.encode(messages.IsAlive(who))))
    except ServerLostError:
        return False
    return not isinstance(reply, messages.Alive) or reply.is_alive


def _name(who: int) -> str:
    return f"a process on server {place_of(who)[0]}"
