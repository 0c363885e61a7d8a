"""RwLock: a value that many threads of many processes read at once, or one writes."""

from typing import TYPE_CHECKING, Self, TypeVar

from drust import _core
from drust.sync.guarded import Guarded

T = TypeVar("T")


class RwLock(_core.ReadWriteLock, Guarded[T]):
    """A value that many read at the same time, or one writes.

        prices = RwLock(np.zeros(1000))
        with prices.read() as array:        # as many as come, on any server
            total = array.sum()
        with prices.write() as array:       # nobody else
            array[7] = 1.5

    Who asks to write waits for the readers that are inside; readers that come later wait behind it, so
    neither starves the other. A thread that is inside may not ask again, whatever for: to write what it reads
    it ends its read() block first. A write() block that ends with an exception, or whose process dies, leaves
    the lock poisoned, for readers too; a reader poisons nothing.

    A reader's array is read-only, and one memory for the processes of its home's host. Anything else is
    decoded once a process and version; drust cannot keep that from being changed by who reads it, there.

    Cost: see drust.sync. Unlike that of a Mutex, the value is encoded at the end of each write() block, even
    if nobody else has a handle.

    Args:
        value: what it guards. It may hold no Box.
    """

    __slots__ = ()

    def __new__(cls, value: T) -> Self:
        """A new one, at home on this process's server. The value is encoded at once."""
        return cls._new(_core.KIND_RWLOCK, value)

    def __repr__(self) -> str:
        return f"<RwLock on server {self.server}>"

    if TYPE_CHECKING:  # the C type's, of this value

        def read(self, timeout: float | None = None) -> "_core.LockGuard[T]":
            """`with lock.read() as value:` reads the value, as others may at the same time."""
            ...

        def write(self, timeout: float | None = None) -> "_core.LockGuard[T]":
            """`with lock.write() as value:` has the value alone."""
            ...

        def recover(self, timeout: float | None = None) -> "_core.LockGuard[T]":
            """As write(), of a poisoned lock too, whose value is accepted as it is."""
            ...
