"""Mutex: a lock that processes share, and the value that it guards.

The C types (native/bind/lock_type.cpp, lock_guard.cpp) take and give back an uncontended lock of this host by
themselves. They call the methods below when it has to be waited for or is elsewhere, and when the value has
to be decoded or written back.
"""

import contextlib
import os
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np

from drust import _core, blocking, codecs, handles, runtime
from drust.errors import (
    BorrowTimeoutError,
    DeadlockError,
    InternalError,
    PoisonedError,
    ServerLostError,
    UnpicklableError,
)
from drust.sync.waits import slice_ms

T = TypeVar("T")

_FRAMES = 5  # of a stack that is told to others
_REMOTE_WAIT_MS = 1000  # a request is answered by then
_WAITING, _LOCKED, _POISONED, _AGAIN = range(4)  # wire::SharedAnswer


class Mutex(_core.Lock, Generic[T]):
    """A value that one thread of one process has at a time.

        counts = Mutex({})
        with counts.lock() as value:
            value["a"] = 1

    Locks are handed over in the order in which they were asked for. What the block leaves in the value is
    what the next holder finds; an int or a str, which cannot change, is replaced by assigning to the guard's
    `value`. An array is shared in place by the processes of its home's host, and was only lent: it is revoked
    when the block ends. A block that ends with an exception, or a process that dies inside one, leaves the
    mutex poisoned.

    Cost: see the table above. Holding it over a wait for another lock can deadlock.

    Args:
        value: what it guards; its Boxes, if it has any, would have two owners: it may hold none.
    """

    __slots__ = ()

    def __new__(cls, value: T) -> Self:
        """A new one, at home on this process's server. An array is copied into the heap at once."""
        runtime.current()
        self = cls._make(_core.KIND_MUTEX, value)
        if _is_array(value):
            self._store()
            self._load()
        return self

    def __repr__(self) -> str:
        return f"<Mutex on server {self.server}>"

    if TYPE_CHECKING:  # the C type's, of this value

        def lock(self, timeout: float | None = None) -> "_core.LockGuard[T]":
            """`with mutex.lock() as value:` has the lock from the start of the block to its end."""
            ...

        def recover(self, timeout: float | None = None) -> "_core.LockGuard[T]":
            """As lock(), of a poisoned mutex too, whose value is accepted as it is."""
            ...

    # -- called by the C types: native/bind/lock_guard.cpp ---------------------------------------------------

    def _refuse_again(self) -> None:
        me = threading.current_thread().name
        raise DeadlockError(
            object=repr(self), cycle=(f"thread {me} of process {os.getpid()} holds it and locks it again",)
        )

    def _refuse_cycle(self) -> None:
        """Raises if those who wait, from this thread to itself, wait for ever."""
        cycle = self._find_cycle()
        if not cycle:
            return
        *others, me = [f"{self._describe(*holder[:2])}, thread {holder[2]}" for holder in cycle]
        sentences = [f"{me} (this one) waits for a lock of {(others or [me])[0]}:\n{_stack()}"]
        for index, other in enumerate(others):
            after = others[index + 1] if index + 1 < len(others) else f"{me} (this one)"
            sentences.append(f"\n{other} waits for a lock of {after}:\n{cycle[index][3]}")
        raise DeadlockError(object=repr(self), cycle=tuple(sentences))

    def _refuse_poisoned(self) -> None:
        raise PoisonedError(object=repr(self), task="a task")

    def _acquire(self, timeout: float | None, recovers: bool) -> None:
        """Waits for the lock, which somebody has or which is elsewhere."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._object is None:
            self._acquire_remote(timeout, deadline, recovers)
            return
        if timeout == 0:
            raise BorrowTimeoutError(object=repr(self), timeout_s=0.0, holder=self._describe_holder())
        note: _core.Pin | None = None
        with blocking.section():
            place = self._queue_up()
            try:
                while place != _core.LOCKED and not self._wait(place, slice_ms(deadline)):
                    if deadline is not None and time.monotonic() >= deadline:
                        raise BorrowTimeoutError(
                            object=repr(self), timeout_s=timeout or 0.0, holder=self._describe_holder()
                        )
                    runtime.check_alive()
                    if place == _core.CROWDED:
                        place = self._queue_up()
                    elif note is None:  # it takes long: others may want to know where this thread waits
                        note = self._note(place, _stack())
                    else:
                        self._refuse_cycle()
            except BaseException:
                if place >= 0 and self._give_up(place):
                    self._unlock()
                raise

    def _acquire_remote(self, timeout: float | None, deadline: float | None, recovers: bool) -> None:
        with blocking.section():
            try:
                while True:
                    wait_ms = 0 if timeout == 0 else min(slice_ms(deadline) + 1, _REMOTE_WAIT_MS)
                    answer, version, body = self._lock_remote(wait_ms, recovers)
                    if answer == _LOCKED:
                        break
                    if answer == _POISONED:
                        self._refuse_poisoned()
                    if answer == _AGAIN:
                        self._refuse_again()
                    if deadline is not None and time.monotonic() >= deadline:
                        raise BorrowTimeoutError(object=repr(self), timeout_s=timeout or 0.0)
            except (PoisonedError, DeadlockError):
                raise
            except BaseException:
                self._abandon_quietly()
                raise
        if body is None and self._has_value:
            return
        try:
            if body is None:
                raise PoisonedError(object=repr(self), task="a task", reason="it left no value")
            self._install_block(self._keep_block(body), version)
        except BaseException:
            self._abandon_quietly()
            raise

    def _abandon_quietly(self) -> None:
        """Whatever came of a request that failed: if the home can be reached, nothing is left there."""
        with contextlib.suppress(ServerLostError):
            self._abandon_remote()

    def _describe_holder(self) -> str:
        holder = self._holder
        return "" if holder is None else self._describe(*holder)

    def _describe(self, server: int, slot: int) -> str:
        here = runtime.current()
        if server == here.server:
            pids = {row["slot"]: row["pid"] for row in here.processes()}
            return f"process {pids.get(slot, 'that has ended')} on server {server}"
        return f"a process on server {server}"

    def _load(self) -> None:
        """Decodes the value: another process has written it."""
        pointer, version = self._current()
        if not pointer[0]:
            raise PoisonedError(object=repr(self), task="a task", reason="it left no value")
        if self._is_array and self._pin is not None and self._pin.pointer == pointer:
            self._install(self._array(), version, self._pin, True)
            return
        self._install_block(runtime.current().open(pointer, False, handles.NOTHING), version)

    def _array(self) -> Any:
        pin = self._block()
        return codecs.arrays.decode_array(pin.meta, pin.as_writable(), True)

    def _block(self) -> _core.Pin:
        pin = self._pin
        if pin is None:
            raise InternalError(detail="A Mutex of an array has no block.")
        return pin

    def _install_block(self, pin: _core.Pin, version: int) -> None:
        if pin.codec == codecs.NDARRAY:
            value = codecs.arrays.decode_array(pin.meta, pin.as_writable(), True)
            self._install(value, version, pin, True)
            return
        value = codecs.decode(handles.PrivateBytes(pin), True)
        self._install(value, version, pin, False)

    def _encode(self) -> _core.Pin:
        encoded = codecs.encode(self._value)
        if encoded.children:
            raise UnpicklableError(
                object=f"the value of {self!r}",
                type_name="Box",
                reason="it would have two owners",
                detail="Keep the Box beside the Mutex.",
            )
        return codecs.write(runtime.current(), encoded)

    def _store(self) -> None:
        """Writes the value back: to the home's partition, where this process is."""
        version = self._put(self._encode(), False)
        self._install(self._value, version, None, False)

    def _replace(self, value: T) -> None:
        """Another value, assigned to the guard; the lock is held."""
        self._install(value, self._version_now(), None, False)
        if _is_array(value) and self._object is not None:
            self._store()
            self._load()

    def _version_now(self) -> int:
        return self._current()[1] if self._object is not None else 0

    def _move_away(self) -> None:
        """Views of the array outlived the block: they keep the bytes they saw, the value gets others."""
        pin = self._block()
        if self._object is None:
            self._install_block(_copy(pin), 0)
            return
        copy = _copy(pin)
        pin.set_release(handles.FREE_TREE)
        self._put(copy, True)
        self._load()

    def _release_remote(self, poisons: bool, writes_back: bool) -> None:
        """Gives the lock back at its home, with the value: 1 round trip."""
        pin: _core.Pin | None = None
        try:
            if writes_back:
                pin = self._pin if self._is_array else self._encode()
        except BaseException:
            self._unlock_remote(True, None)
            raise
        try:
            version = self._unlock_remote(poisons, pin)
        except BaseException:
            self._abandon_quietly()
            raise
        if self._is_array:
            self._install(self._array(), version, self._pin, True)
        else:
            self._install(self._value, version, None, False)

    # -- handles travel --------------------------------------------------------------------------------------

    def _transfer(self) -> tuple[_core.Pin, None]:
        """A hold for whoever gets this handle, and the value where they find it."""
        self._settle()
        given = super()._transfer()
        self._settle()  # whoever had the lock meanwhile may have thought that nobody else sees the value
        return given

    def _publish(self) -> _core.Pin:
        self._settle()
        pin = super()._publish()
        self._settle()
        return pin

    def _settle(self) -> None:
        if not self._is_behind or self._is_held or not self._try_lock():
            return
        try:
            self._store()
        finally:
            self._unlock()


def _stack() -> str:
    """Where this thread is, outside of drust: the last frames, as a traceback prints them."""
    frames = traceback.extract_stack()
    package = os.path.dirname(os.path.dirname(__file__))
    user = [frame for frame in frames if not frame.filename.startswith(package)]
    return "".join(traceback.format_list(user[-_FRAMES:])).rstrip()


def _is_array(value: object) -> bool:
    return type(value) is np.ndarray and codecs.arrays.encode_array(value) is not None


def _copy(pin: _core.Pin) -> _core.Pin:
    here = runtime.current()
    return here.open(here.duplicate(pin.pointer), False, handles.FREE_TREE)
