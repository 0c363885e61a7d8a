"""`drust bench sync`: shared state beside what a person would use without drust.

On this host beside `threading.Lock` and the primitives of `multiprocessing`, which are semaphores and pipes
of the kernel; of another server beside round trips of a raw socket with as many bytes. Dict: dicts.py.
"""

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from time import perf_counter
from typing import Any

import numpy as np

from drust.bench import borrows, machine_facts, micro
from drust.bench.dicts import dicts
from drust.bench.peers import Peers, round_trip
from drust.bench.report import Report
from drust.bench.rows import Aim, Bench, Group, Row
from drust.bench.stats import Operation
from drust.collections import AtomicPtr, KeyLocks
from drust.session import init
from drust.sync import AtomicBool, AtomicInt, Mutex, RwLock, channel
from drust.tasks import spawn

_HEAP_BYTES = 256 * 2**20
_REQUEST_BYTES = 72
_REPLY_BYTES = 40
_ELSEWHERE = 1
_ROUND_TRIPS = 500  # of the raw socket, a sample


def timed(step: Callable[[], object]) -> Operation:
    """A step that Python calls once an operation."""

    def run(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            step()
        return perf_counter() - start

    return Operation(run)


def lock_loop(mutex: "Mutex[Any]") -> Operation:
    """A lock and its end."""

    def run(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            with mutex.lock() as _value:
                pass
        return perf_counter() - start

    return Operation(run)


def see(handle: object) -> None:
    """A task: now another process has had the handle."""


def locks(bench: Bench) -> Iterator[Row]:
    """A Mutex that nobody else wants, alone and shared, beside locks without a value."""
    alone = Mutex({"answer": 42})
    numbers = Mutex(np.zeros(1024))
    shared = Mutex(np.zeros(1024))
    written = Mutex({"answer": 42})
    for mutex in (shared, written):
        spawn(see, mutex).join()
    thread, process = "with threading.Lock()", "with multiprocessing.Lock()"
    aim = Aim(kind="ratio", bound=3.0)
    lock = borrows.lock_loop(threading.Lock())
    yield bench.compare(
        "mutex-dict", "with mutex.lock(), a dict of ours", thread, lock_loop(alone), lock, aim
    )
    yield bench.compare(
        "mutex-array", "with mutex.lock(), an array of ours", thread, lock_loop(numbers), lock
    )
    other = borrows.lock_loop(multiprocessing.Lock())
    yield bench.compare(
        "mutex-shared-array", "the same, others have it too", process, lock_loop(shared), other
    )
    yield bench.compare(
        "mutex-shared-dict", "a dict that is written back", process, lock_loop(written), other
    )


def read_loop(lock: "RwLock[Any]") -> Operation:
    """A look and its end."""

    def run(count: int) -> float:
        start = perf_counter()
        for _ in repeat(None, count):
            with lock.read() as _value:
                pass
        return perf_counter() - start

    return Operation(run)


def readers(bench: Bench) -> Iterator[Row]:
    """Reading what others read too, and the lock of one key, beside locks without a value."""
    alone, shared = RwLock({"answer": 42}), RwLock(np.zeros(1024))
    spawn(see, shared).join()
    thread, process = "with threading.Lock()", "with multiprocessing.Lock()"
    lock, other = borrows.lock_loop(threading.Lock()), borrows.lock_loop(multiprocessing.Lock())
    yield bench.compare("rwlock-read", "with rwlock.read(), a dict of ours", thread, read_loop(alone), lock)
    yield bench.compare(
        "rwlock-read-shared", "an array that others have too", process, read_loop(shared), other
    )
    keys: KeyLocks[str] = KeyLocks(on=[0])

    def of_a_key() -> None:
        with keys.lock("a"):
            pass

    yield bench.compare("key-lock", 'with keys.lock("a")', process, timed(of_a_key), other)
    pointer = AtomicPtr({"answer": 42})
    yield bench.compare("atomic-ptr", "AtomicPtr.load() of a small dict", thread, timed(pointer.load), lock)


def contend(mutex: "Mutex[Any]", stops: AtomicBool) -> None:
    """A task: locks it again and again."""
    while not stops.load():
        with mutex.lock():
            pass


def contend_for(lock: Any, goes: Any, stops: Any) -> None:
    """A process: locks it again and again between `goes` and `stops`."""
    while goes.wait():
        while not stops.is_set():
            with lock:
                pass
        goes.clear()
        stops.clear()


def contended(bench: Bench) -> Iterator[Row]:
    """A lock that another process wants all the time. A Mutex is handed over in order, a semaphore is not."""
    context = multiprocessing.get_context("spawn")
    lock, goes, stops = context.Lock(), context.Event(), context.Event()
    other = context.Process(target=contend_for, args=(lock, goes, stops), daemon=True)
    other.start()
    mutex, ends = Mutex(np.zeros(1)), AtomicBool()
    loops = lock_loop(mutex), borrows.lock_loop(lock)

    def ours(count: int) -> float:
        ends.store(False)
        job = spawn(contend, mutex, ends)
        took = loops[0].run(count)
        ends.store(True)
        job.join()
        return took

    def theirs(count: int) -> float:
        goes.set()
        took = loops[1].run(count)
        stops.set()
        while stops.is_set():
            pass
        return took

    try:
        yield bench.compare(
            "mutex-contended",
            "with mutex.lock(), which another process wants too",
            "with multiprocessing.Lock(), likewise",
            Operation(ours),
            Operation(theirs),
        )
    finally:
        other.kill()
        other.join()


def atomics(bench: Bench) -> Iterator[Row]:
    """A step of an atomic beside a shared value of `multiprocessing` under its lock."""
    atomic = AtomicInt()
    value = multiprocessing.Value("q", 0)

    def add() -> None:
        with value.get_lock():
            value.value += 1

    name = "multiprocessing.Value, += 1 under its lock"
    yield bench.compare("atomic-add", "atomic.fetch_add()", name, timed(atomic.fetch_add), timed(add))


def channels(bench: Bench) -> Iterator[Row]:
    """A small value sent and received by one process, beside a pipe."""
    sender, receiver = channel()
    queue: multiprocessing.SimpleQueue[Any] = multiprocessing.SimpleQueue()
    value = {"name": "x", "number": 1}

    def ours() -> None:
        sender.send(value)
        receiver.recv()

    def theirs() -> None:
        queue.put(value)
        queue.get()

    name = "multiprocessing.SimpleQueue, put and get"
    yield bench.compare("channel", "send() and recv() of a small dict", name, timed(ours), timed(theirs))
    queue.close()


def make_mutex() -> "Mutex[dict[str, int]]":
    """A task: a Mutex whose home is the server that runs it."""
    return Mutex({"answer": 42})


def remote(bench: Bench) -> Iterator[Row]:
    """Steps at objects of another server, beside round trips of a raw socket."""
    atomic = spawn(AtomicInt, server=_ELSEWHERE).join()
    mutex = spawn(make_mutex, server=_ELSEWHERE).join()

    def raw(times: int) -> Operation:
        return Operation(lambda count: times * count * round_trip(_REQUEST_BYTES, _REPLY_BYTES, _ROUND_TRIPS))

    name = "a raw socket, the same bytes"
    aim = Aim(kind="ratio", bound=1.3)
    yield bench.compare("remote-atomic", "fetch_add() elsewhere", name, timed(atomic.fetch_add), raw(1), aim)
    yield bench.compare(
        "remote-mutex",
        "with mutex.lock() elsewhere, a small dict",
        f"{name}, 2 round trips",
        lock_loop(mutex),
        raw(2),
    )


GROUPS: dict[str, Group] = {
    "locks": locks,
    "readers": readers,
    "contended": contended,
    "atomics": atomics,
    "channels": channels,
    "remote": remote,
    "dicts": dicts,
}
"""What `--only` takes, and what it runs."""


def run(
    *, quick: bool = False, only: Sequence[str] = (), progress: Callable[[str], None] = lambda _name: None
) -> Report:
    """Runs the rows on two servers of one worker each, on this machine. Starts and ends its own session.

    Args:
        quick: fewer and shorter samples.
        only: names of `GROUPS`; all unless given.
        progress: told the name of each group as it begins.
    """
    start = perf_counter()
    facts = machine_facts.gather()
    rows: list[Row] = []
    with init(servers=2, workers=1, heap_bytes=_HEAP_BYTES) as session, Peers() as partners:
        bench = Bench(session, partners, quick)
        for name in only or GROUPS:
            progress(name)
            rows += micro.run_group(name, GROUPS[name], bench)
    return Report(machine=facts, quick=quick, seconds=perf_counter() - start, rows=rows)
