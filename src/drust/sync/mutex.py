"""Mutex: a lock that processes share, and the value that it guards."""

from typing import TYPE_CHECKING, Self, TypeVar

from drust import _core
from drust.sync.guarded import Guarded

T = TypeVar("T")


class Mutex(_core.MutexLock, Guarded[T]):
    """A value that one thread of one process has at a time.

        counts = Mutex({})
        with counts.lock() as value:
            value["a"] = 1

    Locks are handed over in the order in which they were asked for. What the block leaves in the value is
    what the next holder finds; an int or a str, which cannot change, is replaced by assigning to the guard's
    `value`. An array is shared in place by the processes of its home's host, and was only lent: it is revoked
    when the block ends. A block that ends with an exception, or a process that dies inside one, leaves the
    mutex poisoned.

    Cost: see drust.sync. Holding it over a wait for another lock can deadlock.

    Args:
        value: what it guards; its Boxes, if it has any, would have two owners: it may hold none.
    """

    __slots__ = ()

    def __new__(cls, value: T) -> Self:
        """A new one, at home on this process's server. An array is copied into the heap at once."""
        return cls._new(_core.KIND_MUTEX, value)

    def __repr__(self) -> str:
        return f"<Mutex on server {self.server}>"

    if TYPE_CHECKING:  # the C type's, of this value

        def lock(self, timeout: float | None = None) -> "_core.LockGuard[T]":
            """`with mutex.lock() as value:` has the lock from the start of the block to its end."""
            ...

        def recover(self, timeout: float | None = None) -> "_core.LockGuard[T]":
            """As lock(), of a poisoned mutex too, whose value is accepted as it is."""
            ...
