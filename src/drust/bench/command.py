"""The command line of the benchmarks: `drust bench micro`, also as `python -m drust.bench micro`."""

from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

from drust.bench import micro as runner
from drust.bench import replication as replication_runner
from drust.bench import report
from drust.bench import sync as sync_runner
from drust.bench import tasks as task_runner
from drust.bench.report import Report


def _run(measure: Callable[..., Report], as_json: bool, **options: Any) -> None:
    """Measures, saying on standard error what, and prints the report."""
    with Console(stderr=True).status("starting servers") as status:
        result = measure(progress=lambda name: status.update(f"measuring {name}"), **options)
    if as_json:
        click.echo(report.to_json(result))
    else:
        report.show(result, report.console_for())


@click.group(name="bench", invoke_without_command=True)
@click.pass_context
def bench(context: click.Context) -> None:
    """Benchmarks. Without a further word: micro."""
    if context.invoked_subcommand is None:
        context.invoke(micro)


@bench.command(name="micro")
@click.option("--quick", is_flag=True, help="Fewer and shorter samples: below 20 s instead of 3 min.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option(
    "--only", multiple=True, type=click.Choice(list(runner.GROUPS)), help="Only these rows; may be repeated."
)
def micro(quick: bool = False, as_json: bool = False, only: tuple[str, ...] = ()) -> None:
    """What each operation costs, as a ratio against its physical limit measured in the same run.

    The exit status is 0 whether or not the aims are met: a benchmark is no test.
    """
    _run(runner.run, as_json, quick=quick, only=only)


@bench.command(name="sync")
@click.option("--quick", is_flag=True, help="Fewer and shorter samples: below 20 s instead of 2 min.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(sync_runner.GROUPS)),
    help="Only these rows; may be repeated.",
)
def sync(quick: bool = False, as_json: bool = False, only: tuple[str, ...] = ()) -> None:
    """What locks, atomics and channels cost, beside threading, multiprocessing and a raw socket."""
    _run(sync_runner.run, as_json, quick=quick, only=only)


@bench.command(name="tasks")
@click.option("--quick", is_flag=True, help="Fewer and shorter samples: below 30 s instead of 3 min.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(task_runner.GROUPS)),
    help="Only these rows; may be repeated.",
)
def tasks(quick: bool = False, as_json: bool = False, only: tuple[str, ...] = ()) -> None:
    """What a task costs, alone and in a stream, beside a futex round trip, a process pool, Ray and Dask."""
    _run(task_runner.run, as_json, quick=quick, only=only)


@bench.command(name="replication")
@click.option("--quick", is_flag=True, help="Fewer and shorter samples: below 40 s instead of 3 min.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def replication(quick: bool = False, as_json: bool = False) -> None:
    """What replicas=1 costs over replicas=0, and how long the loss of a server takes, by what it held."""
    _run(replication_runner.run, as_json, quick=quick)
