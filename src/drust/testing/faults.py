"""Deaths to order: kill points inside the native code, and real signals.

A `Board` is a page of shared memory that servers and workers map when they start (`DRUST_KILL_BOARD` names
it). Every process counts there which kill points it passes; a row says which process shall die at which
passing of which point. Rows and counts outlive the dead, so a test can say where each process died, and that
every point was passed. Points are off, and cost a load and a branch, in processes that map no board.

Rejected: a task that arms its own worker as the only way (it cannot reach a server, nor a worker that waits);
sleeping before a signal (a seeded number of passings is replayed, a delay is not).
"""

import ctypes
import mmap
import os
import resource
import signal
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

from drust import _core

VARIABLE = "DRUST_KILL_BOARD"
POINTS: tuple[str, ...] = tuple(_core.kill_points())
"""The names of all kill points, in the order of their rooms."""

Action = Literal["kill", "stop", "exit", "segfault", "abort"]
Death = Literal["kill", "stop", "exit", "segfault", "abort", "oom"]
ACTIONS: tuple[Action, ...] = ("kill", "stop", "exit", "segfault", "abort")
EXIT_STATUS = 86  # of a process that died by `exit`, as native/base/kill_point.cpp

_ROW = struct.Struct("=IIIIIIII")  # pid, point, left, action, fired, unused
_ROWS_OFFSET = 8 * _core.KILL_POINTS_MAX
_FIRED_OFFSET = 16


class Board:
    """Arms processes, and tells where they died. A context manager around the session that it is for."""

    def __init__(self) -> None:
        """Makes the page: a memfd, which vanishes with this process."""
        self._memfd = os.memfd_create("drust-kill-board", os.MFD_CLOEXEC)
        os.ftruncate(self._memfd, _core.KILL_BOARD_BYTES)
        self._page = mmap.mmap(self._memfd, _core.KILL_BOARD_BYTES)
        self._rows: dict[int, int] = {}  # in use: row, pid
        self._before = os.environ.get(VARIABLE)

    @property
    def path(self) -> str:
        """What DRUST_KILL_BOARD must be in a process that shall map this board, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._memfd}"

    def __enter__(self) -> Self:
        os.environ[VARIABLE] = self.path
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = self._before
        self.close()

    def close(self) -> None:
        """Gives the page back here; processes that map it keep it."""
        self._page.close()
        os.close(self._memfd)

    def arm(self, pid: int, point: str = "", nth: int = 1, action: Action = "kill") -> int:
        """Has process `pid` die at its `nth` passing of `point` from now on; of any point for "".

        Returns:
            The row, to be asked with `fired` and given back with `disarm`.

        Raises:
            ValueError: no such point or action, or all rows are in use.
        """
        index = POINTS.index(point) if point else _core.ANY_KILL_POINT
        wanted = _core.kill_actions().index(action)
        row = next((row for row in range(_core.KILL_ROWS) if row not in self._rows), None)
        if row is None or nth < 1:
            raise ValueError(f"{_core.KILL_ROWS} deaths are armed already" if nth else "nth counts from 1")
        self._rows[row] = pid
        offset = _ROWS_OFFSET + row * _ROW.size
        _ROW.pack_into(self._page, offset, 0, index, nth, wanted, 0, 0, 0, 0)
        struct.pack_into("=I", self._page, offset, pid)  # last: from here on it can happen
        return row

    def fired(self, row: int) -> str | None:
        """The point where the process of this row died (or stopped); None if it has not yet."""
        (fired,) = struct.unpack_from("=I", self._page, _ROWS_OFFSET + row * _ROW.size + _FIRED_OFFSET)
        return POINTS[fired - 1] if fired else None

    def disarm(self, row: int) -> str | None:
        """Takes a row back, and says where it fired, if it did."""
        struct.pack_into("=I", self._page, _ROWS_OFFSET + row * _ROW.size, 0)
        self._rows.pop(row, None)
        return self.fired(row)

    def passed(self) -> dict[str, int]:
        """How often each point was passed, by all processes that ever mapped this board."""
        counts = struct.unpack_from(f"={len(POINTS)}Q", self._page, 0)
        return dict(zip(POINTS, counts, strict=True))


# -- inside a task -----------------------------------------------------------------------------------------


def arm_here(point: str = "", nth: int = 1, action: Action = "kill") -> None:
    """Has the process that calls this die at a kill point. In a task: the worker that runs it."""
    _core.arm_kill_point(point, nth, action)


def die(how: Death) -> NoReturn:
    """Ends the calling process at once, as `how` says; `oom` as the kernel ends one that took too much."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if how == "exit":
        os._exit(EXIT_STATUS)
    if how == "segfault":
        ctypes.memset(8, 0, 1)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGSTOP if how == "stop" else signal.SIGKILL)
    while True:
        signal.pause()


# -- real signals at random times --------------------------------------------------------------------------


class Signals(threading.Thread):
    """Sends signals to processes, each after its own delay, while the program goes on.

    The delays are the caller's, drawn from a seed; that a process has ended before its signal is no error.
    """

    def __init__(self, planned: Sequence[tuple[float, int, int]]) -> None:
        """`planned`: (seconds from start, pid, signal)."""
        super().__init__(name="drust-signals", daemon=True)
        self._planned = sorted(planned)
        self._cancelled = threading.Event()
        self.sent: list[tuple[int, int]] = []  # (pid, signal) that reached a process; read after `finish`

    def run(self) -> None:
        """Waits for each time and sends."""
        spent_s = 0.0
        for at_s, pid, number in self._planned:
            if self._cancelled.wait(max(0.0, at_s - spent_s)):
                return
            spent_s = at_s
            if send(pid, number):
                self.sent.append((pid, number))

    def finish(self, *, cancel: bool = False) -> list[tuple[int, int]]:
        """Waits until all were sent, or drops the rest. Returns what was."""
        if cancel:
            self._cancelled.set()
        self.join()
        return self.sent


def send(pid: int, number: int) -> bool:
    """Sends a signal; false if there is no such process any more (a zombie counts as none)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if _has_ended(pid):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _has_ended(pid: int) -> bool:
    state = process_state(pid)
    return state in ("", "Z", "X")


def process_state(pid: int) -> str:
    """The letter the kernel gives a process: R, S, D, T (stopped), Z; empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Pause:
    """Between two looks at something that has no event to wait for: a short wait, growing to its longest."""

    def __init__(self, first_s: float = 0.002, most_s: float = 0.1) -> None:
        self._next_s = first_s
        self._most_s = most_s
        self._never = threading.Event()

    def wait(self) -> None:
        """Waits, longer each time."""
        self._never.wait(self._next_s)
        self._next_s = min(self._most_s, self._next_s * 1.5)


# -- memory that runs out ----------------------------------------------------------------------------------

_GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path | None]:
    """A control group of its own with that memory limit, below nobody's: the kernel kills who exceeds it.

    Yields:
        The group, for `exhaust_memory`; None where this process may not make one (then SIGKILL, which is what
        the kernel sends, must do).
    """
    made: Path | None = None
    for root, limit in ((_GROUPS / "memory", "memory.limit_in_bytes"), (_GROUPS, "memory.max")):
        group = root / f"drust-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(limit_bytes))
        except OSError:
            group.rmdir()
            continue
        made = group
        break
    try:
        yield made
    finally:
        if made is not None:
            pause = Pause()
            while (made / "cgroup.procs").read_text().split():  # whoever is left is being killed
                pause.wait()
            made.rmdir()


def exhaust_memory(group: str) -> NoReturn:
    """Enters a `memory_group` and takes memory until the kernel's out-of-memory killer comes."""
    (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    taken = []
    while True:
        taken.append(b"x" * 2**20)
