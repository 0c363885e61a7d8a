"""Whether what processes saw of a shared object could have come from one that does one operation at a time.

A history is a list of operations, each with the times at which it was called and at which it returned, what
was asked and what came back. It is *linearizable* if they can be put in an order that keeps those times (an
operation that had returned before another was called comes first) and in which a sequential model gives every
answer that was seen. An operation whose process died has no return: it may have happened, at any time after
its call, or not at all.

The search is that of Wing and Gong (1993) with Lowe's (2017) memory of the states that it has been in: which
operations are done, and what the model's state is then. It is exponential only where many operations overlap.

    operations = history.merged(recorders)
    order = history.linearize(operations, history.Counter())
"""

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol


@dataclass(frozen=True)
class Operation:
    """One operation of one process. Times are of one clock that all processes of a host share."""

    name: str
    arguments: tuple[Any, ...]
    result: Any
    called: float
    returned: float = inf  # it never did: its process died
    process: Any = None

    def __str__(self) -> str:
        arguments = ", ".join(map(repr, self.arguments))
        return f"{self.process}: {self.name}({arguments}) -> {self.result!r}"


class Model(Protocol):
    """A sequential object: its first state, and what an operation does to one."""

    def first(self) -> Hashable:
        """The state before any operation."""
        ...

    def step(self, state: Any, operation: Operation) -> tuple[Any, Hashable]:
        """(what it answers, the state after it)."""
        ...


class NotLinearizable(AssertionError):  # noqa: N818 - what a test wants to read
    """No order of the operations explains what was seen."""


def linearize(operations: Iterable[Operation], model: Model) -> list[Operation]:
    """An order of the operations that explains the history; those that may not have happened can be missing.

    Raises:
        NotLinearizable: there is none. The message has the longest order that was found, and what came next.
    """
    pending = sorted(operations, key=lambda operation: operation.called)
    must = frozenset(index for index, each in enumerate(pending) if each.returned < inf)
    seen: set[tuple[frozenset[int], Hashable]] = set()
    longest: list[int] = []
    stack: list[tuple[frozenset[int], Any, list[int]]] = [(frozenset(), model.first(), [])]
    while stack:
        done, state, order = stack.pop()
        if must <= done:
            return [pending[index] for index in order]
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(order) > len(longest):
            longest = order
        for index in reversed(_next(pending, done)):
            operation = pending[index]
            answer, after = model.step(state, operation)
            if operation.returned == inf or answer == operation.result:
                stack.append((done | {index}, after, [*order, index]))
    explained = "\n".join(f"    {pending[index]}" for index in longest)
    rest = "\n".join(f"    {each}" for index, each in enumerate(pending) if index not in longest)
    raise NotLinearizable(f"no order explains this; the longest that does:\n{explained}\n  and not:\n{rest}")


def _next(pending: Sequence[Operation], done: frozenset[int]) -> list[int]:
    """Which may come next: those called before any other that is not done has returned."""
    first_return = min((each.returned for i, each in enumerate(pending) if i not in done), default=inf)
    return [i for i, each in enumerate(pending) if i not in done and each.called <= first_return]


@dataclass
class Recorder:
    """What one process did: passed to a task, returned by it."""

    process: Any
    operations: list[Operation] = field(default_factory=list)

    @contextmanager
    def calling(self, name: str, *arguments: Any) -> Iterator[list[Any]]:
        """Around one operation; append its result to the list. One that raises has not happened."""
        got: list[Any] = []
        called = time.monotonic()
        yield got
        returned = time.monotonic()
        result = got[0] if got else None
        self.operations.append(Operation(name, arguments, result, called, returned, self.process))


def merged(recorders: Iterable[Recorder]) -> list[Operation]:
    """The history of all of them."""
    return [operation for recorder in recorders for operation in recorder.operations]


# -- models ------------------------------------------------------------------------------------------------


class Atomic:
    """An AtomicInt."""

    def __init__(self, value: int = 0) -> None:
        self._value = value

    def first(self) -> int:
        """What it was made with."""
        return self._value

    def step(self, state: int, operation: Operation) -> tuple[Any, int]:
        """As the method of that name."""
        match operation.name, operation.arguments:
            case "load", ():
                return state, state
            case "store", (value,):
                return None, value
            case "exchange", (value,):
                return state, value
            case "fetch_add", (amount,):
                return state, state + amount
            case "compare_exchange", (expected, value):
                met = state == expected
                return (met, state), value if met else state
        raise ValueError(f"an atomic has no {operation}")


class Queue:
    """A channel: `send(value)`, and `recv()` whose result is the value, or None when it was empty."""

    def __init__(self, capacity: float = inf) -> None:
        self._capacity = capacity

    def first(self) -> tuple[Any, ...]:
        """Empty."""
        return ()

    def step(self, state: tuple[Any, ...], operation: Operation) -> tuple[Any, tuple[Any, ...]]:
        """A send to a full channel answers False."""
        match operation.name, operation.arguments:
            case "send", (value,):
                return (True, (*state, value)) if len(state) < self._capacity else (False, state)
            case "recv", ():
                return (state[0], state[1:]) if state else (None, state)
        raise ValueError(f"a channel has no {operation}")


class Map:
    """A Dict: `get(key)`, None for nothing, `put(key, value)`, `pop(key)`, `insert(key, value)`,
    `compare_and_set(key, expected, value)`.
    """

    def first(self) -> frozenset[tuple[Any, Any]]:
        """Empty."""
        return frozenset()

    def step(self, state: Any, operation: Operation) -> tuple[Any, Hashable]:
        """As the method of that name."""
        now = dict(state)
        match operation.name, operation.arguments:
            case "get", (key,):
                return now.get(key), state
            case "put", (key, value):
                return None, frozenset({**now, key: value}.items())
            case "pop", (key,):
                found = now.pop(key, None)
                return found, frozenset(now.items())
            case "insert", (key, value):
                return (False, state) if key in now else (True, frozenset({**now, key: value}.items()))
            case "compare_and_set", (key, expected, value):
                met = key in now and now[key] == expected
                return met, frozenset({**now, key: value}.items()) if met else state
        raise ValueError(f"a map has no {operation}")


class Register:
    """A value behind a Mutex: `read()`, `write(value)`, `append(item)`, which answers what was there."""

    def __init__(self, value: Hashable = ()) -> None:
        self._value = value

    def first(self) -> Hashable:
        """What it was made with."""
        return self._value

    def step(self, state: Any, operation: Operation) -> tuple[Any, Hashable]:
        """`append` is of tuples."""
        match operation.name, operation.arguments:
            case "read", ():
                return state, state
            case "write", (value,):
                return None, value
            case "append", (item,):
                return state, (*state, item)
        raise ValueError(f"a register has no {operation}")
