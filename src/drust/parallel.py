"""map: a function over many items, a task for each run of items, results in order.

One task a *chunk*: a task costs tens of microseconds, so items that take less would be mostly overhead one by
one. The function travels once however many chunks name it.
"""

import builtins
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import iscoroutine
from typing import Any, TypeVar

from drust import arrivals, runtime, shipping
from drust.errors import CancelledError, ConfigError
from drust.tasks import JoinHandle, start_many

T = TypeVar("T")

_CHUNKS_PER_WORKER = 8  # enough that one slow chunk does not leave the other workers idle for long

Tick = Callable[[int, int], object]
"""Told (items done, items in all)."""


def map(  # noqa: A001 - it is what the builtin of that name does
    function: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    chunk: int | None = None,
    progress: "bool | str | Tick" = False,
    server: int | None = None,
) -> list[T]:
    """Calls `function` with each item (of several iterables: with one item of each) in the workers.

    Items may be anything that can be passed to `spawn`: a Box moves, a borrow is lent until its chunk ends.

    Args:
        function: anything callable; it travels once. The items of an `async def` function run side by side in
            the event loop of the worker that has their chunk.
        iterables: as for the builtin `map`, which stops with the shortest.
        chunk: how many items a task takes; default as many as give each worker eight tasks.
        progress: True or a title for a progress bar on stderr, shown if that is a terminal; or a function
            that is called with (items done, items in all) when a chunk has ended.
        server: where to run it; this process's own server unless given.

    Returns:
        The results, in the order of the items.

    Raises:
        BaseException: what `function` raised for the first item that failed, with a note that says which.
            Tasks that no worker had begun by then are taken back.

    Cost: of a task, for each chunk.
    """
    items = list(zip(*iterables, strict=False))
    results: list[list[T]] = []
    with _shown(progress, len(items)) as tick:
        handles = start_chunks(function, items, chunk=chunk, server=server)
        done = 0
        is_failed = False
        for handle in arrivals.as_ended(handles):
            if handle.has_failed and not is_failed:
                is_failed = True
                for other in handles:
                    if not other.done():
                        other.cancel()
            if not is_failed:
                done += len(handle.join())
                tick(done, len(items))
        failures = [handle.exception() for handle in handles]
        for failure in failures:
            if failure is not None and not isinstance(failure, CancelledError):
                raise failure
        results = [handle.join() for handle in handles]
    return list(itertools.chain.from_iterable(results))


def start_chunks(
    function: Callable[..., T],
    items: list[tuple[Any, ...]],
    *,
    chunk: int | None = None,
    server: int | None = None,
    retry: int = 0,
) -> list[JoinHandle[list[T]]]:
    """A task for each run of `chunk` items. If one cannot be sent, those that were are taken back."""
    if chunk is None:
        workers = max(1, runtime.config().workers or 1)
        chunk = max(1, -(-len(items) // (workers * _CHUNKS_PER_WORKER)))
    if not isinstance(chunk, int) or chunk < 1:
        raise ConfigError(variable="chunk=", value=repr(chunk), expected="a number of items, at least 1")
    shipped = shipping.ship(function)
    arguments = [(shipped.reference, items[at : at + chunk], at) for at in range(0, len(items), chunk)]
    handles: list[JoinHandle[list[T]]] = start_many(call_each, arguments, server=server, retry=retry)
    for handle in handles:
        handle.keep(shipped)
    return handles


def spawn_many(
    function: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    server: int | None = None,
    retry: int = 0,
) -> list[JoinHandle[T]]:
    """A task for each item, as `spawn(function, item)`, sent in messages of up to 256 tasks.

    Args:
        function: anything callable; it travels once.
        iterables: as for the builtin `map`, which stops with the shortest.
        server: as for `spawn`.
        retry: as for `spawn`.

    Returns:
        The handles, in the order of the items. If one cannot be sent, those that were are taken back.

    Cost: 0 messages on this server, 1 round trip elsewhere for each 256 tasks.
    """
    return start_many(function, list(zip(*iterables, strict=False)), server=server, retry=retry)


def call_each(reference: shipping.FunctionReference, items: list[tuple[Any, ...]], first: int) -> Any:
    """What the task of a chunk runs. An `async def` function's items run side by side: then a coroutine."""
    function = shipping.resolve(reference)
    results: list[Any] = []
    for number, item in enumerate(items, first):
        try:
            results.append(function(*item))
        except BaseException as error:
            _note(error, number)
            for coroutine in filter(iscoroutine, results):
                coroutine.close()
            raise
    return _await_each(results, first) if any(builtins.map(iscoroutine, results)) else results


async def _await_each(results: list[Any], first: int) -> list[Any]:
    """The results, once all that are awaited are there; what the first item that failed raised."""
    import asyncio

    async def end(result: Any, number: int) -> tuple[Any, BaseException | None]:
        try:
            return (await result if iscoroutine(result) else result), None
        except BaseException as error:  # noqa: BLE001 - SystemExit too ends the item, not the loop
            _note(error, number)
            return None, error

    ended = await asyncio.gather(*builtins.map(end, results, itertools.count(first)))
    for _, error in ended:
        if error is not None:
            raise error
    return [result for result, _ in ended]


def _note(error: BaseException, number: int) -> None:
    error.add_note(f"for item {number} of those given to map")


@contextmanager
def _shown(progress: "bool | str | Tick", total: int) -> Iterator[Tick]:
    if callable(progress):
        yield progress
    elif progress and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            row = bar.add_task(progress if isinstance(progress, str) else "drust.map", total=total)
            yield lambda done, _: bar.update(row, completed=done)
    else:
        yield lambda done, total: None
