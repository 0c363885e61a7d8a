"""What the demo found: tables for people, one document for programs.

The exit status says whether all of it is as it should be: a demo that shows a wrong number must not look
well.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from drust.demo.meter import COLUMNS, Row
from drust.units import format_bytes, format_seconds

WIDTH_MIN = 110  # of what is not a terminal
# Folded, so that the table fits a terminal of 80 columns.
_TITLES = {
    "submits": "sub-\nmits",
    "completions": "comple-\ntions",
    "wire_bytes": "sent",
    "encodes": "en-\ncodes",
}
_SINGULARS = {"copies": "copy"}


@dataclass
class Check:
    """A result beside what polars says. `difference` is empty where they match."""

    name: str
    difference: str = ""


@dataclass
class Claim:
    """A promise, and whether the counters of a step bear it out."""

    text: str
    holds: bool
    measured: str


@dataclass
class Loss:
    """A worker that a step killed on purpose, as the task's `WorkerLostError` tells of it."""

    step: str
    task: str
    worker: str
    reason: str
    outcome: str  # of what the task had borrowed mutably

    def __str__(self) -> str:
        killed = f"{self.worker}, {self.reason}" if self.reason else self.worker
        return f"{killed}, while it ran {self.task}(); its mutable borrows {self.outcome}"


@dataclass
class Report:
    """All a run found. `latest`: carriers and destinations with the greatest mean delays, in minutes."""

    servers: int
    workers: int
    flights: int
    rows: list[Row]
    checks: list[Check] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    latest: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every result matches, every promise was kept."""
        matches = not any(check.difference for check in self.checks)
        return matches and all(claim.holds for claim in self.claims)

    def check(self, name: str, found: Any, expected: Any, tolerance: float = 0.0) -> bool:
        """Notes whether a result matches; `tolerance` is relative. Two NaN in the same place match."""
        difference = _difference(found, expected, tolerance)
        self.checks.append(Check(name, difference))
        return not difference

    def claim(self, text: str, holds: bool, row: Row) -> None:
        """Notes a promise and what was counted in its step."""
        self.claims.append(Claim(text, holds, describe(row)))

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            "ok": self.ok,
            "servers": self.servers,
            "workers": self.workers,
            "flights": self.flights,
            "steps": [{"step": row.step, "seconds": row.seconds, **row.counts} for row in self.rows],
            "claims": [vars(claim) for claim in self.claims],
            "checks": [
                {"name": check.name, "matches": not check.difference, "difference": check.difference}
                for check in self.checks
            ],
            "losses": [vars(loss) for loss in self.losses],
            "latest": {
                kind: [{"name": name, "mean_arrival_delay_minutes": minutes} for name, minutes in rows]
                for kind, rows in self.latest.items()
            },
        }

    def print(self, console: Console) -> None:
        """The tables."""
        if not console.is_terminal:
            console.width = max(console.width, WIDTH_MIN)
        console.print(
            Group(*self._renderables(("✓", "✗") if console.encoding.startswith("utf") else ("+", "!")))
        )

    def _renderables(self, marks: tuple[str, str]) -> list[RenderableType]:
        yes, no = marks
        matching = [check for check in self.checks if not check.difference]
        lines = [_marked(yes, no, claim.holds, claim.text, claim.measured) for claim in self.claims]
        lines.append(
            _marked(
                yes,
                no,
                len(matching) == len(self.checks),
                f"{len(matching)} of {len(self.checks)} results are what polars computes in one process",
                "",
            )
        )
        lines += [
            Text(f"    {check.name}: {check.difference}", "red") for check in self.checks if check.difference
        ]
        sentences = [f"killed on purpose, as the log tells too: {loss}" for loss in self.losses]
        sentences += [
            f"latest {kind}, corrected mean minutes at arrival: "
            + ", ".join(f"{name} {mean:.1f}" for name, mean in rows)
            for kind, rows in self.latest.items()
        ]
        return [self._table(), *lines, Text(), *map(Text, sentences)]

    def _table(self) -> Table:
        title = (
            f"{self.flights:,} flights, {_many(self.servers, 'server')} of {_many(self.workers, 'worker')}"
        )
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
        table.add_column("step")
        for name in ("time", *COLUMNS):
            table.add_column(_TITLES.get(name, name), justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.step, format_seconds(row.seconds), *(_cell(name, row.counts[name]) for name in COLUMNS)
            )
        return table


def _many(count: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def describe(row: Row) -> str:
    """The counts of a step that are not zero: `2 reads, 1 submit, 336 B`."""
    shown = [
        format_bytes(count) if name == "wire_bytes" else _many(count, _SINGULARS.get(name, name[:-1]))
        for name, count in row.counts.items()
        if count
    ]
    return ", ".join(shown) or "nothing counted"


def _cell(name: str, count: int) -> Text:
    text = format_bytes(count) if name == "wire_bytes" and count else f"{count:,}"
    return Text(text, "" if count else "dim")


def _marked(yes: str, no: str, holds: bool, text: str, measured: str) -> Text:
    line = Text.assemble((yes if holds else no, "bold green" if holds else "bold red"), " ", text)
    return line if holds or not measured else line.append(f" (counted: {measured})", "red")


def _difference(found: Any, expected: Any, tolerance: float) -> str:
    """Where two results differ, in words; empty if they do not."""
    left, right = np.asarray(found), np.asarray(expected)
    if left.shape != right.shape:
        return f"shape {left.shape}, expected {right.shape}"
    differs = ~np.isclose(left, right, rtol=tolerance, atol=0.0, equal_nan=True)
    if not differs.any():
        return ""
    place = np.unravel_index(int(np.argmax(differs)), left.shape)
    where = f" at {tuple(int(index) for index in place)}" if place else ""
    return f"{differs.sum()} of {left.size} differ; found {left[place]}{where}, expected {right[place]}"
