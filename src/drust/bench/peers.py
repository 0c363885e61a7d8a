"""What drust is measured against and needs another process: socket programs, a futex partner, a process pool.

Idea: each partner does the least that two processes must do to get the same done. The socket programs are
built from `native/bench` and run once a sample, so that they and our samples take turns. The futex partner
and the pool live as long as the run and sleep in the kernel between requests.
Rejected: `multiprocessing.Pipe` as the partner (its locks and its framing are slower than a semaphore and a
page).
"""

import json
import multiprocessing
import pickle
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

HELPER_TIMEOUT_S = 60.0
_PAGE_BYTES = 4096
_LOOK_S = 1.0  # between looks of a partner at whether its parent lives

_spawn = multiprocessing.get_context("spawn")  # a fork would inherit threads and mappings of the heap


class Unavailable(Exception):  # noqa: N818  it says why a row cannot run, which is no failure of the row
    """A row cannot run here; the text says why."""


class HelperResult(msgspec.Struct, frozen=True):
    """What a native helper prints; times for one operation."""

    median_ns: float
    p10_ns: float
    p90_ns: float


def find_helper(name: str, module: Path = Path(__file__)) -> Path:
    """The program of that name: beside the installed package, or in the build folder that holds this tree.

    Raises:
        Unavailable: it was not built.
    """
    folders = [module.parent / "bin", *(folder / "bench" for folder in module.parents[3:4])]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise Unavailable(f"the program {name} is in none of {', '.join(map(str, folders))}")


def run_helper(name: str, *arguments: object) -> HelperResult:
    """Runs a native helper to its end: one sample.

    Raises:
        Unavailable: it was not built, failed, or took longer than `HELPER_TIMEOUT_S`.
    """
    command = [str(find_helper(name)), *map(str, arguments)]
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=HELPER_TIMEOUT_S
        )
        return msgspec.convert(json.loads(finished.stdout), HelperResult, strict=False)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{name} failed: {error.stderr.strip() or error}") from None
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise Unavailable(f"{name}: {error}") from None


def round_trip(request_bytes: int, reply_bytes: int, count: int) -> float:
    """Seconds of a request and its reply over a blocking socket, the median of `count`."""
    result = run_helper("reference_sockets", "round_trip", request_bytes, reply_bytes, count)
    return result.median_ns / 1e9


def stream(mebibytes: int, chunk_bytes: int, count: int, *, keep: bool) -> float:
    """Seconds to stream `mebibytes` over a socket, the median of `count`.

    Args:
        mebibytes: how much.
        chunk_bytes: the size of one send and of one receive.
        count: how often.
        keep: into one buffer that holds all of it, as a program that needs the bytes must, not over one
            chunk.
    """
    whole = ["whole"] if keep else []
    return run_helper("reference_sockets", "stream", mebibytes, chunk_bytes, count, *whole).median_ns / 1e9


def native_read(block_bytes: int, count: int) -> float:
    """Seconds of a remote read of drust's native half, without Python: the median of `count`."""
    return run_helper("native_read", block_bytes, count).median_ns / 1e9


def empty() -> None:
    """The task that does nothing."""


class FutexPartner:
    """A process that runs pickled calls left in a shared page; both sides wait on a semaphore: a futex."""

    def __init__(self) -> None:
        self._request: Semaphore = _spawn.Semaphore(0)
        self._reply: Semaphore = _spawn.Semaphore(0)
        self._page: Any = RawArray("c", _PAGE_BYTES)
        self._process: BaseProcess = _spawn.Process(
            target=_serve_calls, args=(self._request, self._reply, self._page), daemon=True
        )
        self._process.start()
        self.call(empty)  # returns when the partner is up

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs `function(*arguments)` there and returns its result.

        Raises:
            Unavailable: the partner has ended.
            ValueError: the pickled call or result does not fit the page.
        """
        _put(self._page, pickle.dumps((function, arguments), protocol=5))
        self._request.release()
        while not self._reply.acquire(timeout=_LOOK_S):
            if not self._process.is_alive():
                raise Unavailable("the futex partner has ended")
        return pickle.loads(self._page)

    def close(self) -> None:
        """Ends the partner."""
        self._process.terminate()
        self._process.join()


def _put(page: Any, content: bytes) -> None:
    if len(content) > _PAGE_BYTES:
        raise ValueError(f"{len(content)} bytes do not fit a page")
    memoryview(page).cast("B")[: len(content)] = content


def _serve_calls(request: Semaphore, reply: Semaphore, page: Any) -> None:
    parent = multiprocessing.parent_process()
    while True:
        while not request.acquire(timeout=_LOOK_S):
            if parent is None or not parent.is_alive():
                return
        function, arguments = pickle.loads(page)
        _put(page, pickle.dumps(function(*arguments), protocol=5))
        reply.release()


class Peers:
    """The partner processes of one run, each started by the first row that asks. Used by one thread."""

    def __init__(self) -> None:
        self._open = ExitStack()

    @cached_property
    def futex_partner(self) -> FutexPartner:
        """A process that runs calls, reached through a futex."""
        partner = FutexPartner()
        self._open.callback(partner.close)
        return partner

    @cached_property
    def pool(self) -> ProcessPoolExecutor:
        """A process pool of one worker, warmed up."""
        executor = ProcessPoolExecutor(1, mp_context=_spawn)
        self._open.callback(executor.shutdown)
        executor.submit(empty).result()
        return executor

    def close(self) -> None:
        """Ends every partner that was started."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
