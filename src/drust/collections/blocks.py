"""Boxes of arrays on the servers that they are meant for, and tasks that run where a block lies."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from drust import codecs, creation, runtime, shipping, tasks
from drust._core import Box
from drust.codecs import arrays
from drust.collections.grid import Values
from drust.errors import ConfigError

T = TypeVar("T")


def check_servers(on: "Iterable[int] | None") -> list[int]:
    """The servers that blocks go to: all of the session unless given.

    Raises:
        ConfigError: there is no such server.
    """
    config = runtime.config()
    here = runtime.current().server
    if on is None:
        return list(range(config.servers)) if config.workers > 0 else [here]
    where = list(on)
    if not where or not all(isinstance(each, int) and 0 <= each < config.servers for each in where):
        raise ConfigError(
            variable="on=", value=repr(where), expected=f"numbers of servers, each below {config.servers}"
        )
    return where


def spread(count: int, where: Sequence[int]) -> list[int]:
    """The server of each of `count` blocks: neighbours together, as many on each as on any other."""
    return [where[number * len(where) // count] for number in range(count)]


def check_numbers(dtype: "np.dtype[Any]") -> None:
    """Raises TypeError for a dtype of Python objects, which no other process could see in place."""
    if dtype.hasobject:
        raise TypeError(
            f"items of {dtype} are Python objects: an Array has numbers; put such values into a Vec"
        )


def put(values: Values, server: int, replicas: int | None) -> "Box[Values]":
    """A Box of a copy of `values` on that server: elsewhere, 1 request with its bytes."""
    here = runtime.current()
    if server == here.server:
        return Box(values, replicas=replicas)
    excepted = replicas is not None and creation.choose_replicas(replicas)
    parts = arrays.encode_array(np.asarray(values, order="C"))
    if parts is None:
        raise TypeError(f"an array of {values.dtype} cannot lie in a block: it is not plain memory")
    pin = creation.put_at(server, codecs.Encoded(codecs.NDARRAY, parts[0], [parts[1]]))
    return Box._from_pin(pin, "owned", np.ndarray, excepted=excepted)


def make_filled(
    shapes: Sequence[tuple[int, ...]],
    servers: Sequence[int],
    value: Any,
    dtype: "np.dtype[Any]",
    replicas: int | None,
) -> "list[Box[Values]]":
    """A Box of that value a shape, on its server: a task for each other server, which makes them all."""
    here = runtime.current().server
    made: list[Box[Values] | None] = [None] * len(shapes)
    away: dict[int, list[int]] = {}
    for number, server in enumerate(servers):
        away.setdefault(server, []).append(number)
    jobs = {
        server: tasks.spawn(_fill, [shapes[each] for each in numbers], value, dtype, replicas, server=server)
        for server, numbers in away.items()
        if server != here
    }
    for server, numbers in away.items():
        ours = [shapes[each] for each in numbers]
        boxes = jobs[server].join() if server in jobs else _fill(ours, value, dtype, replicas)
        for number, box in zip(numbers, boxes, strict=True):
            made[number] = box
    return [box for box in made if box is not None]


def _fill(
    shapes: Sequence[tuple[int, ...]], value: Any, dtype: "np.dtype[Any]", replicas: int | None
) -> "list[Box[Values]]":
    return [creation.full(shape, value, dtype, replicas=replicas) for shape in shapes]


def run_at(
    runner: Callable[..., T],
    arguments: Sequence[tuple[Any, ...]],
    servers: Sequence[int],
    *,
    function: "Callable[..., Any] | None" = None,
    retry: int = 0,
) -> list[T]:
    """Runs `runner` for each of `arguments` on its server, and waits until all have ended.

    Args:
        runner: what runs, importable.
        arguments: of each task; a borrow is lent until its task ends.
        servers: where each runs.
        function: the caller's, which travels once; `shipping.resolve(first argument)` is it.
        retry: as of `spawn`.

    Returns:
        The results in the order of `arguments`.

    Raises:
        BaseException: what the first task that failed raised, when all have ended.

    Cost: a message for each server and 256 tasks.
    """
    shipped = None if function is None else shipping.ship(function)
    first = () if shipped is None else (shipped.reference,)
    jobs: list[tuple[int, tasks.JoinHandle[T]]] = []
    try:
        for server in dict.fromkeys(servers):
            numbers = [number for number, each in enumerate(servers) if each == server]
            started = tasks.start_many(
                runner, [(*first, *arguments[number]) for number in numbers], server=server, retry=retry
            )
            if shipped is not None:
                for job in started:
                    job.keep(shipped)
            jobs += zip(numbers, started, strict=True)
    finally:
        failures = {number: error for number, job in jobs if (error := job.exception()) is not None}
    if not failures:
        return [job.join() for _, job in sorted(jobs, key=lambda each: each[0])]
    try:
        raise failures[min(failures)]
    finally:  # its traceback has this frame: no circle keeps what it was about
        del failures, jobs, arguments
