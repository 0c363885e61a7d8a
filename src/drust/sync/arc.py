"""Arc: a value that many processes read and nobody changes."""

from typing import Any, Final, Generic, TypeVar

from drust import codecs, handles, runtime
from drust.sync.mutex import Mutex

T = TypeVar("T")

_NOTHING: Final = object()


class Arc(Generic[T]):
    """A value that any process may read, at any time, for as long as any of them has a handle.

        table = Arc(load())
        jobs = [drust.spawn(use, table, part) for part in parts]    # each: table.get()

    Arrays are read-only, and one memory for the processes of the home's host. Anything else is a copy for
    each process, decoded when it first asks; drust cannot keep that from being changed, there.

    Cost: the first `get` in a process decodes the value, with 2 round trips elsewhere; later ones are free.

    Args:
        value: an array is copied into the heap at once. It may hold no Box.
    """

    __slots__ = ("_mutex", "_value")

    def __init__(self, value: T) -> None:
        self._mutex: Mutex[T] = Mutex(value)
        self._value: Any = _NOTHING

    def __getstate__(self) -> Mutex[T]:
        return self._mutex

    def __setstate__(self, mutex: Mutex[T]) -> None:
        self._mutex = mutex
        self._value = _NOTHING

    @property
    def server(self) -> int:
        """The number of its home server."""
        return self._mutex.server

    def get(self) -> T:
        """The value."""
        if self._value is _NOTHING:
            self._value = _read(self._mutex)
        value: T = self._value
        return value

    def __repr__(self) -> str:
        return f"<Arc on server {self._mutex.server}>"


def _read(mutex: Mutex[Any]) -> Any:
    """What is in it, for reading alone: the lock only sees to it that it is complete."""
    if mutex._object is None:
        mutex._acquire(None, False)
        try:
            pin = mutex._pin
            if pin is None or not mutex._is_array:
                return mutex._value
            return codecs.arrays.decode_array(pin.meta, pin, False)
        finally:
            mutex._unlock_remote(False, None)
    if not mutex._try_lock():
        mutex._acquire(None, False)
    try:
        if not mutex._has_value:
            mutex._load()
        if not mutex._is_array:
            return mutex._value
        pin = runtime.current().open(mutex._current()[0], False, handles.NOTHING)
        pin.origin = mutex  # its block is there as long as this handle is
        return codecs.arrays.decode_array(pin.meta, pin, False)
    finally:
        mutex._unlock()
