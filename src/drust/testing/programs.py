"""The steps of random programs: what each does to a session, and what its model then allows.

A `Cell` is a Box with what it must hold. A step takes cells that no other step of its round touches, spawns
something that lends, moves, splits or re-lends them, and after the join says which values the outcome allows:

    the task ended           the new value, and no other
    its worker was lost      the old value, whole; or, where it wrote in place, a poisoned one
    parts lost               each part as its own task left it, or the whole poisoned
    a moved Box's task lost  nothing: its value went with the task
    several lends lost       all old or all poisoned, never a mixture

Arrays carry one number everywhere, so a torn value cannot be mistaken for a whole one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

import drust
from drust import Box
from drust.errors import PoisonedError, ServerLostError, WorkerLostError

SMALL, LARGE = 40, 200_000  # numbers of 8 bytes: with a pre-image, and written in place where they lie
POISONED = "poisoned"
JOIN_S = 15.0  # far above the bound of every wait: a join that takes longer hangs


class ModelError(AssertionError):
    """The program saw what no order of deaths allows."""


# -- tasks ---------------------------------------------------------------------------------------------------


def fill(rows: Any, number: int) -> int:
    """Writes one number everywhere."""
    rows[:] = number
    return number


def total(rows: Any) -> tuple[int, int]:
    """The smallest and the largest of what is there."""
    return int(rows.min()), int(rows.max())


def fill_two(first: Any, second: Any, number: int) -> None:
    """Two lends of one task: one outcome."""
    first[:] = number
    second[:] = number


def make(size: int, number: int) -> "Box[Any]":
    """A new value, owned by whoever joins."""
    return Box(np.full(size, number))


def same(box: "Box[Any]") -> "Box[Any]":
    """A value moved through a task."""
    return box


def consume(box: "Box[Any]") -> None:
    """A value moved into a task, and dropped there."""


def large_result(size: int, number: int) -> Any:
    """A result too large for the completion's own block."""
    return np.full(size, number)


def throw_out() -> None:
    """Frees the copies that nobody holds, and sends the frees that wait."""
    here = drust.runtime.current()
    here.evict(2**40)
    here.flush()


def change_parent(value: dict[str, Any], number: int) -> None:
    """Writes a value and a Box inside of it."""
    with value["child"].borrow_mut() as child:
        child[:] = number
    value["stamp"] = number


def lend_on(value: dict[str, Any], number: int, server: int) -> None:
    """Lends a Box inside of a lent value to a task of its own, then writes beside it."""
    drust.spawn(fill, value["child"].borrow_mut(), number, server=server).join()
    value["stamp"] = number


# -- what a Box holds ----------------------------------------------------------------------------------------


@dataclass
class Cell:
    """A Box, and the number it holds everywhere: `(stamp, child)` for a parent, POISONED if it is."""

    box: "Box[Any]"
    size: int
    holds: Any
    history: list[str] = field(default_factory=list)

    @property
    def is_parent(self) -> bool:
        """Whether a Box lies inside."""
        return self.size == 0


def seen(box: "Box[Any]") -> Any:
    """What a cell's Box shows now, in the terms of `Cell.holds`.

    Raises:
        ModelError: an array holds two numbers.
    """
    try:
        with box.borrow() as value:
            if isinstance(value, dict):
                return value["stamp"], seen(value["child"])
            low, high = int(value.min()), int(value.max())
    except PoisonedError:
        return POISONED
    except ServerLostError as error:
        raise ModelError(f"the value of a Box is gone, though no server is: {error}") from error
    if low != high:
        raise ModelError(f"an array is torn: it holds {low} and {high}")
    return low


def expect(cell: Cell, allowed: list[Any], why: str) -> None:
    """Looks at a cell; takes over which of the allowed values it holds.

    Raises:
        ModelError: it holds another.
    """
    history = " < ".join(reversed(cell.history[-6:]))
    try:
        found = seen(cell.box)
    except ModelError as error:
        raise ModelError(f"{why}: {error} (history: {history})") from error
    if found not in allowed:
        raise ModelError(f"{why}: a Box holds {found}, allowed {allowed} (history: {history})")
    cell.holds = found
    cell.history.append(f"{why}={found}")


def heal(cell: Cell, number: int) -> None:
    """Gives a poisoned cell a value again, as its error advises."""
    if cell.is_parent:
        cell.box.replace({"stamp": number, "child": Box(np.full(SMALL, number))})
        cell.holds = (number, number)
    else:
        cell.box.replace(np.full(cell.size, number))
        cell.holds = number


# -- steps ---------------------------------------------------------------------------------------------------


@dataclass
class Pending:
    """Something spawned: `settle` joins it and checks its cells; it returns the cells that live on."""

    name: str
    settle: Callable[[], list[Cell]]
    cells: list[Cell]


def outcome(handle: "drust.JoinHandle[Any]") -> tuple[Any, WorkerLostError | None]:
    """(result, None), or (None, what was lost).

    Raises:
        ModelError: the join takes longer than any wait may, a value is gone though no server is, or the error
            does not say what was lost.
    """
    try:
        return handle.join(timeout=JOIN_S), None
    except WorkerLostError as error:
        if handle.name != error.task and handle.name != lend_on.__qualname__:
            raise ModelError(f"the error of {handle.name} does not name it: {error}") from error
        return None, error
    except ServerLostError as error:
        raise ModelError(
            f"{handle.name} on server {handle.server} met a value that is gone: {error}"
        ) from error
    except drust.BorrowTimeoutError as error:
        raise ModelError(f"{handle.name} on server {handle.server}: its join never ends ({error})") from error


def _lost_values(cell: Cell, server: int) -> list[Any]:
    """What a cell may hold after the only task that wrote it was lost."""
    in_place = cell.size == LARGE and cell.box.server == server
    return [cell.holds, POISONED] if in_place else [cell.holds]


def write(cell: Cell, number: int, server: int) -> Pending:
    """Lends a cell to a task that fills it."""
    allowed = _lost_values(cell, server)
    handle = drust.spawn(fill, cell.box.borrow_mut(), number, server=server)

    def settle() -> list[Cell]:
        _, lost = outcome(handle)
        expect(cell, allowed if lost else [number], f"write({server}){' lost' if lost else ''}")
        return [cell]

    return Pending("write", settle, [cell])


def read(cell: Cell, server: int, tasks: int) -> Pending:
    """Several readers at once, who share one fetch where the value is elsewhere."""
    handles = [drust.spawn(total, cell.box.borrow(), server=server) for _ in range(tasks)]

    def settle() -> list[Cell]:
        for handle in handles:
            result, lost = outcome(handle)
            if not lost and result != (cell.holds, cell.holds):
                raise ModelError(f"a reader on server {server} saw {result}, not {cell.holds}")
        expect(cell, [cell.holds], "read")
        return [cell]

    return Pending("read", settle, [cell])


def write_two(first: Cell, second: Cell, number: int, server: int) -> Pending:
    """One task that writes two cells: both change, both are as before, or both are poisoned."""
    before = (first.holds, second.holds)
    may_poison = POISONED in _lost_values(first, server) + _lost_values(second, server)
    handle = drust.spawn(fill_two, first.box.borrow_mut(), second.box.borrow_mut(), number, server=server)

    def settle() -> list[Cell]:
        _, lost = outcome(handle)
        why = f"write_two({server})"
        if lost is None:
            expect(first, [number], why)
            expect(second, [number], why)
            return [first, second]
        pair = (seen(first.box), seen(second.box))
        if pair != before and not (may_poison and pair == (POISONED, POISONED)):
            raise ModelError(f"{why} lost: two lends of one task end as {pair}, before {before}")
        first.holds, second.holds = pair
        return [first, second]

    return Pending("write_two", settle, [first, second])


def split(cell: Cell, number: int, servers: list[int]) -> Pending:
    """Lends the parts of a cell to tasks on several servers."""
    old = cell.holds
    parts = list(cell.box.split_mut(len(servers)))
    places = [part._part for part in parts]
    handles = [
        drust.spawn(fill, part, number, server=server) for part, server in zip(parts, servers, strict=False)
    ]
    parts.clear()

    def settle() -> list[Cell]:
        losses = [outcome(handle)[1] for handle in handles]
        if not any(losses):
            expect(cell, [number], "split")
            return [cell]
        try:
            with cell.box.borrow() as rows:
                for place, lost in zip(places, losses, strict=True):
                    start, stop, _ = place or (0, len(rows), 0)
                    wanted = old if lost else number  # a part that travelled is put in place whole, or not
                    if not (rows[start:stop] == wanted).all():
                        raise ModelError(
                            f"part {start}:{stop} of a split holds {rows[start:stop]}, not {wanted}"
                        )
        except PoisonedError:
            cell.holds = POISONED
        else:
            heal(cell, number)
        return [cell]

    return Pending("split", settle, [cell])


def move(cell: Cell, server: int, *, back: bool) -> Pending:
    """Moves a cell's Box into a task, which hands it back or drops it."""
    handle: drust.JoinHandle[Any] = drust.spawn(same if back else consume, cell.box, server=server)

    def settle() -> list[Cell]:
        result, lost = outcome(handle)
        if lost or not back:
            return []
        moved = Cell(result, cell.size, cell.holds, [*cell.history, f"moved through {server}"])
        expect(moved, [cell.holds], "move")
        return [moved]

    return Pending("move", settle, [cell])


def parent(cell: Cell, number: int, server: int, sub_server: int | None) -> Pending:
    """Writes a value with a Box inside; with `sub_server`, by lending the inner one on."""
    if sub_server is None:
        handle = drust.spawn(change_parent, cell.box.borrow_mut(), number, server=server)
    else:
        handle = drust.spawn(lend_on, cell.box.borrow_mut(), number, sub_server, server=server)
    old = cell.holds

    def settle() -> list[Cell]:
        _, lost = outcome(handle)
        why = f"parent({server}, {sub_server})"
        if lost is None:
            expect(cell, [(number, number)], why)
            return [cell]
        allowed = [old, POISONED]
        if lost.task != handle.name:
            # The task itself lived, and raised what its own join told: what it had done stays.
            allowed = [old, (old[0], POISONED)]
        expect(cell, allowed, f"{why} lost")
        if cell.holds != POISONED and POISONED in cell.holds:
            heal(cell, number)
        return [cell]

    return Pending("parent", settle, [cell])


def create(size: int, number: int, server: int) -> Pending:
    """A Box made by a task."""
    handle = drust.spawn(make, size, number, server=server)

    def settle() -> list[Cell]:
        result, lost = outcome(handle)
        if lost:
            return []
        made = Cell(result, size, number, [f"made on {server}"])
        expect(made, [number], "create")
        return [made]

    return Pending("create", settle, [])


def compute(size: int, number: int, server: int) -> Pending:
    """A large result."""
    handle = drust.spawn(large_result, size, number, server=server)

    def settle() -> list[Cell]:
        result, lost = outcome(handle)
        if not lost and not (len(result) == size and (result == number).all()):
            raise ModelError(f"a result of server {server} is not what its task returned")
        return []

    return Pending("compute", settle, [])


def evict(server: int) -> Pending:
    """Throws out the copies of a server that nobody holds, while others fetch."""
    handle = drust.spawn(throw_out, server=server)

    def settle() -> list[Cell]:
        outcome(handle)
        return []

    return Pending("evict", settle, [])


def forget(cell: Cell, server: int) -> Pending:
    """A task whose handle is dropped before it ends."""
    handle: drust.JoinHandle[Any] | None = drust.spawn(total, cell.box.borrow(), server=server)
    del handle

    def settle() -> list[Cell]:
        try:
            with cell.box.borrow_mut(timeout=JOIN_S):  # the lend ends with its task, though nobody joins it
                pass
        except drust.BorrowTimeoutError as error:
            raise ModelError(f"a lend to a task that nobody joins never ends: {error}") from error
        expect(cell, [cell.holds], "forget")
        return [cell]

    return Pending("forget", settle, [cell])


def fresh(random: Random, number: int, servers: int) -> Cell:
    """A cell made by the driver; one in three has replicas, where another server can keep them."""
    kind = random.random()
    replicas = 1 if servers > 1 and random.random() < 0.3 else None
    if kind < 0.3:
        return fresh_parent(number, replicas)
    size = LARGE if kind < 0.5 else SMALL
    return Cell(Box(np.full(size, number), replicas=replicas), size, number)


def fresh_parent(number: int, replicas: int | None = None) -> Cell:
    """A cell with a Box inside."""
    value = {"stamp": number, "child": Box(np.full(SMALL, number))}
    return Cell(Box(value, replicas=replicas), 0, (number, number))


def draw(random: Random, cells: list[Cell], number: int, servers: int) -> Pending:
    """The next step of a program: takes its cells out of `cells`, spawns, and says how it must end."""

    def somewhere() -> int:
        return random.randrange(servers)

    while len(cells) < 2:
        cells.append(fresh(random, number, servers))
    if random.random() < 0.2 and not any(cell.is_parent for cell in cells):
        cells.append(fresh_parent(number))
    cell = cells.pop(random.randrange(len(cells)))
    if cell.holds == POISONED:
        heal(cell, number)
    if cell.is_parent:
        choice = random.random()
        if choice < 0.2:
            return move(cell, somewhere(), back=random.random() < 0.8)
        return parent(cell, number, somewhere(), None if choice < 0.6 else somewhere())
    match random.choice(
        ("write", "write", "read", "two", "split", "move", "create", "compute", "evict", "forget")
    ):
        case "write":
            return write(cell, number, somewhere())
        case "read":
            return read(cell, somewhere(), random.randint(1, 3))
        case "two":
            other = next((each for each in cells if not each.is_parent and each.holds != POISONED), None)
            if other is not None:
                cells.remove(other)
                return write_two(cell, other, number, somewhere())
            return write(cell, number, somewhere())
        case "split":
            return split(cell, number, [somewhere() for _ in range(random.randint(2, 4))])
        case "move":
            return move(cell, somewhere(), back=random.random() < 0.8)
        case "create":
            cells.append(cell)
            return create(random.choice((SMALL, LARGE)), number, somewhere())
        case "compute":
            cells.append(cell)
            return compute(random.choice((SMALL, LARGE)), number, somewhere())
        case "evict":
            cells.append(cell)
            return evict(somewhere())
        case _:
            return forget(cell, somewhere())
