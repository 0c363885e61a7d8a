"""Every kind of step, killed at every kill point it passes: `python -m drust.testing.sweep`.

Where chaos draws, this enumerates: a step (a small array written on the other server, a Box lent on from
there to here, ...), a point, a passing. Every worker is armed with that death; the step runs, and must end as
the model allows; then the session must hold what it held. What fails is a line of step, point and passing,
and is played again with those three. A passing that the step does not reach kills nobody, and ends the row.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import click
import numpy as np

import drust
from drust import Box
from drust.errors import DrustError
from drust.session import Session
from drust.testing import account, chaos, faults, programs

Cells = list[programs.Cell]


@dataclass(frozen=True)
class Step:
    """A kind of step: what makes its cells before anybody is armed, and what then happens to them."""

    name: str
    cells: Callable[[], Cells]
    start: Callable[[Cells], programs.Pending]


def _array(size: int, at: int, replicas: int | None = None) -> Cells:
    """A cell of the driver; moved to that server by a writer there."""
    cell = programs.Cell(Box(np.full(size, 1), replicas=replicas), size, 1)
    return programs.write(cell, 1, at).settle() if at else [cell]


def _two_arrays() -> Cells:
    return _array(programs.SMALL, 0) + _array(programs.LARGE, 0)


def _parent(at: int) -> Cells:
    cell = programs.fresh_parent(1)
    return programs.parent(cell, 1, at, None).settle() if at else [cell]


def _nothing() -> Cells:
    return []


def steps() -> Iterator[Step]:
    """All kinds, on two servers."""
    for at, to in ((0, 0), (0, 1), (1, 0), (1, 1)):
        small, parent = partial(_array, programs.SMALL, at), partial(_parent, at)
        yield Step(f"write small at {at} on {to}", small, partial(_write, to))
        yield Step(f"write large at {at} on {to}", partial(_array, programs.LARGE, at), partial(_write, to))
        yield Step(f"read at {at} on {to}", small, partial(_read, to))
        yield Step(f"move there and back at {at} on {to}", small, partial(_move, to, True))
        yield Step(f"move away at {at} on {to}", small, partial(_move, to, False))
        yield Step(f"write parent at {at} on {to}", parent, partial(_write_parent, to, None))
        for sub in (0, 1):
            name = f"lend on parent at {at} on {to} to {sub}"
            yield Step(name, parent, partial(_write_parent, to, sub))
    for size, name in ((programs.SMALL, "small"), (programs.LARGE, "large")):
        kept = partial(_array, size, 1, 1)
        yield Step(f"write replicated {name} at 1 on 1", kept, partial(_write, 1))
        yield Step(f"move replicated {name} there and back at 1 on 0", kept, partial(_move, 0, True))
    for to in (0, 1):
        small = partial(_array, programs.SMALL, 0)
        yield Step(f"write two on {to}", _two_arrays, partial(_write_two, to))
        yield Step(f"split on 0 and {to}", small, partial(_split, to))
        yield Step(f"forget on {to}", small, partial(_forget, to))
        yield Step(f"create on {to}", _nothing, partial(_create, to))
        yield Step(f"compute on {to}", _nothing, partial(_compute, to))


def _write(to: int, cells: Cells) -> programs.Pending:
    return programs.write(cells[0], 2, to)


def _read(to: int, cells: Cells) -> programs.Pending:
    return programs.read(cells[0], to, 2)


def _move(to: int, back: bool, cells: Cells) -> programs.Pending:
    return programs.move(cells[0], to, back=back)


def _write_parent(to: int, sub: int | None, cells: Cells) -> programs.Pending:
    return programs.parent(cells[0], 2, to, sub)


def _write_two(to: int, cells: Cells) -> programs.Pending:
    return programs.write_two(cells[0], cells[1], 2, to)


def _split(to: int, cells: Cells) -> programs.Pending:
    return programs.split(cells[0], 2, [0, to])


def _forget(to: int, cells: Cells) -> programs.Pending:
    return programs.forget(cells[0], to)


def _create(to: int, cells: Cells) -> programs.Pending:
    return programs.create(programs.LARGE, 2, to)


def _compute(to: int, cells: Cells) -> programs.Pending:
    return programs.compute(programs.LARGE, 2, to)


@dataclass
class Finding:
    """A death that a step does not survive as it must."""

    step: str
    point: str
    nth: int
    what: str

    def __str__(self) -> str:
        return f"{self.step} | {self.point} | {self.nth} | {self.what.splitlines()[0]}"


class Sweep:
    """Deaths by step, point and passing, in one session after another."""

    def __init__(self, session: Session, board: faults.Board) -> None:
        self._session = session
        self._board = board
        self.deaths = 0

    def die(self, step: Step, point: str, nth: int) -> tuple[bool, str]:
        """(whether somebody died, what went wrong)."""
        chaos.wait_attached(self._session)
        before = account.take_at_rest(self._session)
        cells = step.cells()
        rows = [self._board.arm(pid, point, nth) for _, pid in chaos.attached(self._session)]
        wrong = ""
        try:
            for cell in step.start(cells).settle():
                programs.expect(cell, [cell.holds], step.name)
                del cell
        except (programs.ModelError, DrustError) as error:
            wrong = f"{type(error).__name__}: {error}"
        dead = [where for where in map(self._board.disarm, rows) if where]
        self.deaths += len(dead)
        cells.clear()
        gc.collect()
        chaos.wait_attached(self._session)
        if not wrong and dead:
            try:
                account.check_settled(self._session, before, within_s=3.0)
            except account.LeakError as error:
                wrong = "LeakError: " + " ".join(str(error).split("\n")[1:3])
        return bool(dead), wrong


def run(names: str = "", points: str = "", nth_max: int = 3, every: int = 1, first: int = 0) -> list[Finding]:
    """Enumerates; returns what went wrong.

    Args:
        names: only steps whose name has this in it.
        points: only points whose name has this in it.
        nth_max: passings of each point.
        every: only one of so many (step, point) pairs, for a sample; from `first` on.
        first: see `every`.
    """
    findings: list[Finding] = []
    pairs = [
        (step, point)
        for step in steps()
        for point in chaos.WORKER_POINTS
        if names in step.name and points in point
    ]
    pairs = pairs[first::every]
    deaths, started_s = 0, time.monotonic()
    while pairs:
        with faults.Board() as board, drust.init(servers=2, workers=2, heap_bytes="128MiB") as session:
            sweep = Sweep(session, board)
            for step in steps():
                step.start(step.cells()).settle()  # functions travel
            healthy = True
            while pairs and healthy:
                step, point = pairs.pop(0)
                for nth in range(1, nth_max + 1):
                    died, wrong = sweep.die(step, point, nth)
                    if wrong:
                        findings.append(Finding(step.name, point, nth, wrong))
                        click.echo(str(findings[-1]))
                        healthy = False
                        break
                    if not died:
                        break
            deaths += sweep.deaths
    click.echo(f"{deaths} deaths, {len(findings)} findings, {time.monotonic() - started_s:.0f} s")
    return findings


@click.command()
@click.option("--steps", "names", default="", help="Only steps whose name has this in it.")
@click.option("--points", default="", help="Only points whose name has this in it.")
@click.option("--nth-max", default=3, show_default=True, help="Passings of each point.")
@click.option("--every", default=1, show_default=True, help="One of so many (step, point) pairs.")
@click.option("--first", default=0, show_default=True, help="The first of them.")
def main(names: str, points: str, nth_max: int, every: int, first: int) -> None:
    """Kills every kind of step at every kill point. Prints step | point | passing of each that goes wrong."""
    sys.exit(1 if run(names, points, nth_max, every, first) else 0)


if __name__ == "__main__":
    main()
