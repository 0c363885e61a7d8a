"""Waiting for any of many tasks: who has ended, in the order in which they did.

Completions of this process's tasks are told in a ring of the partition (native/tasks/arrivals.hpp). Two
readers of it are here: `as_ended` for whoever waits for tasks of his own in his own thread, and one *watcher*
a process, a thread that calls back for those who cannot wait (an event loop, an Executor). The watcher starts
with the first callback and sleeps in one futex whatever the number of tasks.

Rejected: a thread a task; asking every handle at every completion (10,000 tasks would cost 10^8 looks).
"""

import atexit
import os
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from drust import _core, blocking, runtime
from drust.errors import DrustError

if TYPE_CHECKING:
    from drust.tasks import JoinHandle

_LOOK_MS = 500  # between looks at whether the servers that run the tasks are alive


def as_ended(handles: "Iterable[JoinHandle[Any]]") -> "Iterator[JoinHandle[Any]]":
    """Each of `handles` once its task has ended, whatever became of it. No message.

    A worker that waits here runs those that nobody has begun, one after the other, and then other tasks.
    """
    reader = _core.Arrivals(runtime.current())  # before the first look: it tells what ends afterwards
    waiting: dict[int, JoinHandle[Any]] = {}
    for handle in handles:
        if handle.poll():
            yield handle
        else:
            waiting[handle.key] = handle
    not_tried = iter(list(waiting))
    while waiting:
        news: list[int] | None
        helped = next((key for key in not_tried if key in waiting and waiting[key].help()), None)
        if helped is not None:
            yield waiting.pop(helped)
            news = reader.wait(0)  # others may have failed meanwhile
        else:
            with blocking.section():
                news = reader.wait(_LOOK_MS)
            if news == []:
                _look(waiting)
        if news is None or (not news and helped is None):
            ended = [key for key, handle in waiting.items() if handle.poll()]
        else:
            # A cancelled task may be told twice: when its record ends, and when its handle has taken that in.
            ended = [key for key in dict.fromkeys(news) if key in waiting and waiting[key].poll()]
        for key in ended:
            yield waiting.pop(key)


def _look(waiting: "dict[int, JoinHandle[Any]]") -> None:
    """Whether the servers live that run these tasks: 1 ping for each that is not this process's."""
    seen: dict[int, JoinHandle[Any]] = {}
    for handle in waiting.values():
        if handle.is_unsure:
            handle.look()
        else:
            seen.setdefault(handle.server, handle)
    for handle in seen.values():
        handle.look()
        if handle.done():  # its server is lost: each of the others finds that for itself
            for other in waiting.values():
                if other.server == handle.server:
                    other.look()


class _Watcher:
    """The thread that calls back."""

    def __init__(self, here: _core.Runtime) -> None:
        self.here = here
        self._reader = _core.Arrivals(here)
        # By record. An address is used again as soon as its record is free, before the callbacks of its task
        # are called: so nobody is taken out by address alone. Protected by _lock.
        self._waiting: dict[int, JoinHandle[Any]] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="drust-arrivals", daemon=True)
        self._thread.start()

    def add(self, handle: "JoinHandle[Any]") -> None:
        with self._lock:
            self._waiting[handle.key] = handle
        self._take_in(handle)  # it may have ended before the watcher knew it

    def _take_in(self, handle: "JoinHandle[Any]") -> None:
        if handle.poll():
            with self._lock:
                if self._waiting.get(handle.key) is handle:
                    del self._waiting[handle.key]

    def stop(self) -> None:
        self._reader.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                news = self._reader.wait(_LOOK_MS)
                with self._lock:
                    waiting = dict(self._waiting) if not news else self._waiting
                    handles = [waiting[key] for key in news or waiting if key in waiting]
                if news == []:
                    _look(waiting)
                for handle in handles:
                    self._take_in(handle)
        except DrustError as error:  # closed: whoever waits hears why
            for handle in list(self._waiting.values()):
                handle.abandon(error)


_lock = threading.Lock()
_watcher: _Watcher | None = None  # of this process and its session; protected by _lock


def watch(handle: "JoinHandle[Any]") -> None:
    """Has the watcher take in the task's completion, and so call back, whoever else waits for it."""
    global _watcher
    with _lock:
        here = runtime.current()
        if _watcher is None or _watcher.here is not here:
            _watcher = _Watcher(here)
    _watcher.add(handle)


def stop() -> None:
    """Ends the watcher: its session ends, or this process."""
    global _watcher
    with _lock:
        ending, _watcher = _watcher, None
    if ending is not None:
        ending.stop()


def _forget_in_child() -> None:
    global _lock, _watcher
    _lock, _watcher = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_in_child)
# A thread that comes back from native code while the interpreter ends would end the process.
atexit.register(stop)
