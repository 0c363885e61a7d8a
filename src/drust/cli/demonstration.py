"""`drust demo`: the run with its progress on stderr, the report on stdout."""

import json
from collections.abc import Callable

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from drust import demo


class ProgressBars:
    """A bar a step, one advance a task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def start(self, step: str, total: int) -> Callable[[], None]:
        """A new bar; the function advances it by one."""
        bar = self._progress.add_task(step, total=total)
        return lambda: self._progress.advance(bar)


def show(servers: int, workers: int, *, as_json: bool) -> bool:
    """Runs the demo, shows what it found, and returns whether all of it is as it should be."""
    if as_json:
        report = demo.run(servers, workers)
        click.echo(json.dumps(report.document(), indent=2))
        return report.ok
    errors = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        report = demo.run(servers, workers, ProgressBars(progress))
    report.print(Console())
    return report.ok
