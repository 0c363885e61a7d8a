"""The rows of `drust bench sync` about Dict: gets and puts of keys that are drawn as in a cache.

Keys are drawn with Zipf's law, exponent 0.99, as YCSB does (Cooper et al., SoCC'10). On this host beside a
Redis server on this host: a raw socket sends commands that were made before, and does not read what the
replies say, so its client costs as little as one can. Elsewhere beside round trips of a raw socket.
"""

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from time import monotonic, perf_counter, sleep

import numpy as np

from drust.bench.elsewhere import OTHER
from drust.bench.peers import Unavailable, round_trip
from drust.bench.rows import Aim, Bench, Row
from drust.bench.stats import Operation
from drust.collections import Dict

_KEYS = 10_000
_DRAWS = 20_000
_VALUE = "v" * 100
_ZIPF = 0.99
_ROUND_TRIPS = 500  # of the raw socket, a sample
_REQUEST_BYTES = 72
_REPLY_HEAD_BYTES = 40
_ITEM_BYTES = 152  # as sync::Item: 40, the key, the value, padded
_START_S = 10.0
_SERVER = "redis-server"


def draw_keys() -> list[str]:
    """The same each time: keys in the order in which they are used."""
    weights = np.arange(1, _KEYS + 1) ** -_ZIPF
    numbers = np.random.default_rng(7).choice(_KEYS, _DRAWS, p=weights / weights.sum())
    return [f"key:{number}" for number in numbers]


def for_each(keys: Sequence[str], step: Callable[[str], object]) -> Operation:
    """A step at each key in turn, from the first again when all are used."""
    following = cycle(keys)

    def run(count: int) -> float:
        chosen = list(islice(following, count))
        start = perf_counter()
        for key in chosen:
            step(key)
        return perf_counter() - start

    return Operation(run)


def command(*words: str) -> bytes:
    """A command as Redis reads it."""
    parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{parts}".encode()


class Redis:
    """One connection to a Redis server of this host; keeps commands by key."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._gets = {key: command("GET", key) for key in set(draw_keys())}
        self._puts = {key: command("SET", key, _VALUE) for key in self._gets}
        for key in self._gets:
            self.put(key)

    def get(self, key: str) -> None:
        """Waits for the whole reply: `$100`, the value."""
        self._ask(self._gets[key], len(_VALUE) + 8)

    def put(self, key: str) -> None:
        """Waits for `+OK`."""
        self._ask(self._puts[key], 5)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def _ask(self, request: bytes, reply_bytes: int) -> None:
        self._socket.sendall(request)
        while reply_bytes > 0:
            part = self._socket.recv(4096)
            if not part:
                raise ConnectionError(f"{_SERVER} has closed the connection")
            reply_bytes -= len(part)


@contextmanager
def redis() -> Iterator[Redis]:
    """A Redis server of our own on loopback, in memory alone.

    Raises:
        Unavailable: there is none to start.
    """
    program = shutil.which(_SERVER)
    if program is None:
        raise Unavailable(f"{_SERVER} is not installed (Debian: apt install {_SERVER})")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = _connect(port, process)
        try:
            yield client
        finally:
            client.close()
    finally:
        process.terminate()
        process.wait()


def _connect(port: int, process: "subprocess.Popen[bytes]") -> Redis:
    deadline = monotonic() + _START_S
    while True:
        try:
            return Redis(port)
        except ConnectionRefusedError:
            if process.poll() is not None or monotonic() > deadline:
                raise Unavailable(f"{_SERVER} did not start") from None
            sleep(0.01)


def dicts(bench: Bench) -> Iterator[Row]:
    """Gets and puts here and elsewhere."""
    keys = draw_keys()
    items = dict.fromkeys(keys, _VALUE)
    here, there = Dict(items, on=[0]), Dict(items, on=[OTHER])
    yield from _beside_redis(bench, keys, here)

    def raw(request_bytes: int, reply_bytes: int) -> Operation:
        return Operation(lambda count: count * round_trip(request_bytes, reply_bytes, _ROUND_TRIPS))

    name, aim = "a raw socket, the same bytes", Aim(kind="ratio", bound=1.3)
    yield bench.compare(
        "dict-get-remote",
        "d[key] elsewhere, 100 bytes, zipf 0.99",
        name,
        for_each(keys, there.__getitem__),
        raw(_REQUEST_BYTES, _REPLY_HEAD_BYTES + _ITEM_BYTES),
        aim,
    )
    yield bench.compare(
        "dict-put-remote",
        "d[key] = value elsewhere, the same",
        name,
        for_each(keys, lambda key: there.put(key, _VALUE)),
        raw(_REQUEST_BYTES + 64 + _ITEM_BYTES, _REPLY_HEAD_BYTES),
        aim,
    )


def _beside_redis(bench: Bench, keys: list[str], d: "Dict[str, str]") -> Iterator[Row]:
    get, put = "d[key] here, 100 bytes, zipf 0.99", "d[key] = value here, the same"
    ours = (for_each(keys, d.__getitem__), for_each(keys, lambda key: d.put(key, _VALUE)))
    try:
        with redis() as client:
            name, aim = "Redis on this host, a raw socket as client", Aim(kind="ratio", bound=1 / 20)
            yield bench.compare("dict-get", get, name, ours[0], for_each(keys, client.get), aim)
            yield bench.compare("dict-put", put, name, ours[1], for_each(keys, client.put))
    except Unavailable as why:
        note = f"beside nothing: {why}"
        for row_name, operation, step in (("dict-get", get, ours[0]), ("dict-put", put, ours[1])):
            row = bench.measure(row_name, operation, step)
            yield Row(
                name=row.name, operation=row.operation, ours=row.ours, messages=row.messages, notes=[note]
            )
