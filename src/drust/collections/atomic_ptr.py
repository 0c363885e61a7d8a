"""AtomicPtr: names a value that nobody changes, and is made to name another one in one step."""

import threading
from typing import Any, Generic, TypeVar

from drust import runtime
from drust.collections.shards import ALWAYS, VERSION, Shards, decode, encode
from drust.errors import InternalError

T = TypeVar("T")

_KEY = 0
_A_VALUE = "a value of an AtomicPtr"


class AtomicPtr(Generic[T]):
    """A pointer that processes share, to a value that is not changed but replaced.

        routes = AtomicPtr(load_routes())
        ...
        routes.load()[destination]                      # in any process, at any time
        while not routes.compare_exchange(old := routes.load(), {**old, "x": 7})[0]:
            pass

    As Rust's AtomicPtr it is compared by identity: what `load` of this handle returned is what the pointer
    named then, and no other value is, even if equal (but for values of which Python has only one: None, True,
    small integers, short strings). Values are copies for each process, decoded once for
    each time that the pointer was set; drust cannot keep them from being changed there. Each step is atomic,
    and all processes see one order of them; a process that dies leaves a step done or not done.

    Cost: on its home's host a load is a look at shared memory, without a lock; a change is a block and a
    short lock; elsewhere each is 1 round trip, the value in it. A load copies the value's bytes, also if it
    has not changed.

    Args:
        value: what it names at first. It may hold no Box.
    """

    __slots__ = ("_located", "_lock", "_seen", "_shards")

    def __init__(self, value: T) -> None:
        self._open(Shards.make([runtime.current().server]))
        self.store(value)

    def _open(self, shards: Shards) -> None:
        self._shards = shards
        self._located = shards.locate(_KEY)
        self._lock = threading.RLock()  # of _seen: this process looks at one version after the other
        self._seen: tuple[int, Any] = (0, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._shards,)

    def __repr__(self) -> str:
        return f"<AtomicPtr on server {self.server}>"

    @property
    def server(self) -> int:
        """The number of its home server."""
        return self._shards.all[0].server

    def load(self) -> T:
        """The value."""
        value: T = self._look()[1]
        return value

    def store(self, value: T) -> None:
        """Makes it name another value.

        Raises:
            UnpicklableError: the value cannot travel, or holds Boxes or handles.
        """
        self._shards.all[0]._put(self._located, *encode(value, _A_VALUE), ALWAYS, 0)

    def swap(self, value: T) -> T:
        """Makes it name another value, and returns the one before: 2 round trips elsewhere, or more."""
        while True:
            version, before = self._look()
            if self._replace(version, value):
                old: T = before
                return old

    def compare_exchange(self, expected: T, new: T) -> tuple[bool, T]:
        """Makes it name `new` if it names `expected`, the very object that `load` returned here.

        Returns:
            Whether it did, and what it named before.
        """
        while True:
            version, before = self._look()
            if before is not expected:
                return False, before
            if self._replace(version, new):
                return True, before

    def _look(self) -> tuple[int, Any]:
        """The version, which never comes again, and its value: the same object for the same version."""
        with self._lock:
            entry = self._shards.all[0]._get(self._located)
            if entry is None:
                raise InternalError(detail="An AtomicPtr names nothing.")
            if self._seen[0] != entry[2]:
                self._seen = (entry[2], decode(entry[0], entry[1]))
            return self._seen

    def _replace(self, version: int, value: T) -> bool:
        return self._shards.all[0]._put(self._located, *encode(value, _A_VALUE), VERSION, version)[0]


def _rebuild(shards: Shards) -> AtomicPtr[Any]:
    made: AtomicPtr[Any] = AtomicPtr.__new__(AtomicPtr)
    made._open(shards)
    return made
