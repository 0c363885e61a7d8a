"""Why a value cannot be pickled: the path to the part that refuses, as in `value.engines['left'].lock`.

pickle says what refused, never where. We take the value apart as pickle would (its `__reduce_ex__`: state,
items, arguments; captured variables of functions), look for a part that fails on its own, and go on inside
that one. Slow, on a path that ends in an error.
"""

import inspect
import io
import socket
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_DEPTH_MAX = 100
_OBJECTS_MAX = 100_000  # when looking for the places of one object
_PREFIX = "this value"


class Culprit(NamedTuple):
    """The innermost part that fails, and what to tell."""

    path: str
    value: Any
    reason: str
    advice: str


def find_culprit(value: Any, error: BaseException, failure: Callable[[Any], Exception | None]) -> Culprit:
    """The part of `value` that fails on its own while none of its own parts does.

    Args:
        value: what could not be pickled.
        error: what pickle said.
        failure: tries to pickle a part; None if that works.
    """
    path = _PREFIX
    seen = {id(value)}
    kept = []  # ids are compared: nothing made on the way may be freed and its id used again
    for _ in range(_DEPTH_MAX):
        for step, part in _parts(value) if _known(value) is None else ():
            kept.append(part)
            if id(part) in seen:
                continue
            seen.add(id(part))
            found = failure(part)
            if found is not None:
                path, value, error = path + step, part, found
                break
        else:
            break
    return Culprit(path, value, f"{type(error).__name__}: {error}", _advice(value))


def places_of(value: Any, wanted: object) -> list[str]:
    """The paths to all places of one object in a value, nearest first."""
    places = []
    seen: set[int] = set()
    kept = []
    level = [(_PREFIX, value)]
    while level and len(seen) < _OBJECTS_MAX:
        deeper = []
        for path, part in level:
            if part is wanted:
                places.append(path)
            elif id(part) not in seen:
                seen.add(id(part))
                kept.append(part)
                deeper += [(path + step, inner) for step, inner in _parts(part)]
        level = deeper
    return places


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling `value` would pickle next, each with the step that leads there."""
    if isinstance(value, dict) and type(value) is dict:
        for key, item in value.items():
            yield f"[{_short(key)}]", item
        for key in value:
            yield f" (its key {_short(key)})", key
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif type(value) in (set, frozenset):
        for item in value:
            yield f" (its item {_short(item)})", item
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _captured(value)
    elif isinstance(value, type):
        if value.__module__ in ("__main__", "__mp_main__"):
            for name, item in vars(value).items():
                yield f".{name}", item
    elif not isinstance(value, str | bytes | int | float | types.ModuleType | None):
        yield from _reduced(value)


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    try:
        variables = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return
    for name, item in (*variables.nonlocals.items(), *variables.globals.items()):
        yield f", whose code uses the variable {name!r}", item


def _reduced(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced = value.__reduce_ex__(5)
    except Exception:  # noqa: BLE001 - a part that cannot be taken apart is the culprit itself
        return
    if not isinstance(reduced, tuple):
        return
    arguments, state, items, pairs = [*reduced[1:5], None, None, None][:4]
    for state_part in state if isinstance(state, tuple) else (state,):
        if isinstance(state_part, dict):
            for name, item in state_part.items():
                yield f".{name}", item
        elif state_part is not None:
            yield " (its state)", state_part
    for index, item in enumerate(items or ()):
        yield f"[{index}]", item
    for key, item in pairs or ():
        yield f"[{_short(key)}]", item
    for index, item in enumerate(arguments or ()):
        yield f" (argument {index} that makes it)", item


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


_ADVICE: list[tuple[tuple[type, ...], str]] = [
    (
        (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event),
        "A lock guards one process only: leave it out in __getstate__.",
    ),
    ((io.IOBase,), "Keep the path, and open the file where it is used."),
    ((socket.socket,), "Keep the address, and connect where it is used."),
    ((threading.Thread,), "A thread stays in its process: keep what it computes."),
    ((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), "Make a list of what it yields."),
    ((memoryview,), "Make bytes of it, or an array, or put it into a Box of its own."),
    ((types.FrameType, types.TracebackType), "Format it as text where it was caught."),
]


def _known(value: object) -> str | None:
    return next((advice for kinds, advice in _ADVICE if isinstance(value, kinds)), None)


def _advice(value: object) -> str:
    known = _known(value)
    if known is not None:
        return known
    if hasattr(type(value), "__dict__") and type(value).__module__ != "builtins":
        return "Its class can leave out what cannot travel in __getstate__ and make it anew in __setstate__."
    return ""
