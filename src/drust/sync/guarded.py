"""What Mutex and RwLock are made of: waiting for a lock, and the value that it guards.

The C types (native/bind/lock_type.cpp, lock_guard.cpp) take and give back an uncontended lock of this host by
themselves. They call the methods below when it has to be waited for or is elsewhere, and when the value has
to be decoded or written back.
"""

import contextlib
import os
import threading
import time
import traceback
from typing import Any, Generic, Self, TypeVar

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
from drust.server.who import place_of
from drust.sync import cycles
from drust.sync.waits import slice_ms

T = TypeVar("T")

_FRAMES = 5  # of a stack that is told to others
_LOOKS_FOR_NOTES = 4  # at a circle, of which somebody has not said where he waits
_REMOTE_WAIT_MS = 1000  # a request is answered by then
_WAITING, _LOCKED, _POISONED, _AGAIN = range(4)  # wire::SharedAnswer


class Guarded(_core.Lock, Generic[T]):
    """A value behind a lock, whatever the lock."""

    __slots__ = ()

    @classmethod
    def _new(cls, kind: int, value: object) -> Self:
        """A new one, at home on this process's server. An array is copied into the heap at once."""
        runtime.current()
        self = cls._make(kind, value)
        if _is_array(value) or kind == _core.KIND_RWLOCK:
            self._store()
            self._load()
        return self

    # -- called by the C types: native/bind/lock_guard.cpp ---------------------------------------------------

    def _refuse_again(self, reads: bool | None, wants_to_read: bool) -> None:
        """This very thread is inside: reading, writing, or as another handle of it knows (None)."""
        me = f"thread {threading.current_thread().name} of process {os.getpid()}"
        if reads is None or self._kind != _core.KIND_RWLOCK:
            sentence = f"{me} holds it and locks it again"
        elif reads and wants_to_read:
            sentence = f"{me} reads it and reads it again: use the value of the block that it is in"
        elif reads:
            sentence = f"{me} reads it and wants to write: end its read() block first, and look again"
        else:
            sentence = f"{me} writes it and locks it again: use the value of the block that it is in"
        raise DeadlockError(object=repr(self), cycle=(sentence,))

    def _refuse_cycle(self, looks: int, search: cycles.Search | None) -> cycles.Search | None:
        """Raises if those who wait, from this thread to itself, wait for ever.

        Args:
            looks: how often it was looked for by now. The first ones pass where somebody has not said yet
                where he waits; later ones ask other servers ever more seldom.
            search: what the last look returned: other servers are being asked.
        """
        this = (runtime.current().who, threading.get_ident())
        cycle = self._find_cycle() if self._object is not None else []
        if search is not None and search.found and not _is_told(cycle):  # all have answered: is it so still?
            links, search = cycles.find_cycle(this), None
            cycle = [(*place_of(link.holder[0]), link.holder[1], link.note) for link in links] or cycle
        if not cycle or (looks < _LOOKS_FOR_NOTES and not _is_told(cycle)):
            is_due = looks <= _LOOKS_FOR_NOTES or looks & (looks - 1) == 0
            if runtime.config().servers > 1 and is_due and (search is None or search.is_over):
                return cycles.Search(this)
            return search
        *others, me = [f"{self._describe(*holder[:2])}, thread {holder[2]}" for holder in cycle]
        sentences = [f"{me} (this one) waits for a lock of {(others or [me])[0]}:\n{_stack()}"]
        for index, other in enumerate(others):
            after = others[index + 1] if index + 1 < len(others) else f"{me} (this one)"
            sentences.append(f"\n{other} waits for a lock of {after}:\n{cycle[index][3]}")
        raise DeadlockError(object=repr(self), cycle=tuple(sentences))

    def _refuse_poisoned(self) -> None:
        raise PoisonedError(object=repr(self), task="a task")

    def _acquire(self, timeout: float | None, recovers: bool, reads: bool = False) -> int:
        """Waits for the lock, which somebody has or which is elsewhere; the slot, of a reader."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._object is None:
            self._acquire_remote(timeout, deadline, recovers, reads)
            return 0
        if timeout == 0:
            raise BorrowTimeoutError(object=repr(self), timeout_s=0.0, holder=self._describe_holder())
        note: _core.Pin | None = None
        looks = 0
        search: cycles.Search | None = None
        with blocking.section():
            place = self._queue_up(reads)
            try:
                while True:
                    if place > _core.INSIDE:
                        place = self._wait(place, slice_ms(deadline), reads)
                    if place <= _core.INSIDE:
                        break
                    if deadline is not None and time.monotonic() >= deadline:
                        raise BorrowTimeoutError(
                            object=repr(self), timeout_s=timeout or 0.0, holder=self._describe_holder()
                        )
                    runtime.check_alive()
                    if place == _core.CROWDED:
                        place = self._queue_up(reads)
                    elif note is None:  # it takes long: others may want to know where this thread waits
                        note = self._note(place, _stack())
                    else:
                        looks += 1
                        search = self._refuse_cycle(looks, search)
            except BaseException:
                if place >= 0 and self._give_up(place, reads):
                    self._unlock()
                raise
        return _core.INSIDE - place

    def _acquire_remote(
        self, timeout: float | None, deadline: float | None, recovers: bool, reads: bool
    ) -> None:
        looks = 0
        search: cycles.Search | None = None
        is_in_line = False
        with blocking.section():
            try:
                while True:
                    wait_ms = 0 if timeout == 0 else min(slice_ms(deadline) + 1, _REMOTE_WAIT_MS)
                    answer, version, body = self._lock_remote(wait_ms, recovers, reads)
                    if answer == _LOCKED:
                        break
                    if answer == _POISONED:
                        self._refuse_poisoned()
                    if answer == _AGAIN:
                        self._refuse_again(None, reads)
                    if deadline is not None and time.monotonic() >= deadline:
                        raise BorrowTimeoutError(object=repr(self), timeout_s=timeout or 0.0)
                    if looks == 0:  # it takes long: others may want to know where this thread waits
                        cycles.tell_note(self._hold, self.server, threading.get_ident(), _stack())
                    looks += 1
                    is_in_line = True
                    search = self._refuse_cycle(looks, search)
                    is_in_line = False
            except (PoisonedError, DeadlockError):
                if is_in_line:
                    self._abandon_quietly()
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
        viewed = self._viewed
        if viewed is not None and viewed.pointer == pointer:
            self._install_block(viewed, version)
            return
        self._install_block(runtime.current().open(pointer, False, handles.NOTHING), version)

    def _load_copy(self) -> None:
        """Views are left of as many blocks as there may be: this process reads a copy of its own."""
        pin = self._block()
        self._install_block(_copy(pin), self._version_now())

    def _leave_block(self) -> None:
        """It is about to be written, and this process has a copy of it, or views of its block are left."""
        pointer, version = self._current()
        if self._block().pointer != pointer:
            self._install_block(runtime.current().open(pointer, False, handles.NOTHING), version)
            if self._is_writable:
                return
        self._put(_copy(self._block()), False)
        self._load()

    def _array(self) -> Any:
        pin = self._block()
        return codecs.arrays.decode_array(pin.meta, pin.as_writable(), True)

    def _block(self) -> _core.Pin:
        pin = self._pin
        if pin is None:
            raise InternalError(detail="A lock of an array has no block.")
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
                detail="Keep the Box beside the lock.",
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


def _is_told(cycle: list[tuple[int, int, int, str]]) -> bool:
    """Whether there is a circle, and all others in it have said where they wait."""
    return bool(cycle) and all(note for *_, note in cycle[:-1])


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
