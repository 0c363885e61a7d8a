"""The command line: `drust demo`, `run`, `status`, `memory`, `bench`.

Only what each command is called and takes; what it does is imported when it runs, so that `drust --help`
needs neither numpy nor rich. The exit status: 0 for success, 1 where something failed or does not match, 2
for a wrong command line, 130 after Ctrl-C; `drust run` passes on its script's.
"""

import os
from typing import Any

import click

import drust

SERVERS_HELP = "Servers to start on this machine, each with a heap of its own."
WORKERS_HELP = "Worker processes of each server."

INTERRUPTED = 130  # what shells call a process that SIGINT ended

_BENCH_HELP = "Benchmarks: each operation as a ratio against its physical limit."


class _Commands(click.Group):
    """Shows what drust itself reports as a sentence; a traceback is for bugs, tasks, and DRUST_LOG=debug."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "bench"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "bench":
            return super().get_command(ctx, cmd_name)
        from drust.bench.command import bench

        return bench

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, without importing `bench` for its line."""
        helps = {name: command.get_short_help_str(90) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted((helps | {"bench": _BENCH_HELP}).items()))

    def invoke(self, ctx: click.Context) -> Any:
        from drust.errors import ClusterError, OwnershipError

        try:
            return super().invoke(ctx)
        except (ClusterError, OwnershipError) as error:
            if is_debugging():
                raise
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            if is_debugging() or (error.name or "").startswith("drust"):
                raise
            raise click.ClickException(
                f"{error}\nThe demo's packages come with: pip install 'drust[demo]'"
            ) from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def is_debugging() -> bool:
    """Whether DRUST_LOG asks for everything."""
    return os.environ.get("DRUST_LOG", "").lower() == "debug"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(drust.__version__, message="drust %(version)s")
def main() -> None:
    """Mutable objects shared between processes and machines, by ownership."""


@main.command()
@click.option("--servers", default=2, show_default=True, help=SERVERS_HELP)
@click.option("--workers", default=1, show_default=True, help=WORKERS_HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.pass_context
def demo(ctx: click.Context, servers: int, workers: int, as_json: bool) -> None:
    """336,776 flights shared, corrected in place and reduced; checked against polars.

    The exit status is 1 if a result differs or a promise was not kept.
    """
    from drust.cli.demonstration import show

    ctx.exit(0 if show(servers, workers, as_json=as_json) else 1)


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--servers", type=int, help=SERVERS_HELP)
@click.option("--workers", type=int, help=WORKERS_HELP)
@click.option("--heap-bytes", metavar="SIZE", help="Each server's heap, as 4GiB. Default: from what is free.")
@click.option("--json", "as_json", is_flag=True, help="At the end, one line of JSON with what was counted.")
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    script: str,
    arguments: tuple[str, ...],
    servers: int | None,
    workers: int | None,
    heap_bytes: str | None,
    as_json: bool,
) -> None:
    """Runs a script on a cluster of your choice, as `python SCRIPT ARGUMENTS...` does.

    A drust.init() without arguments, or the first use of drust, takes these settings. What stands after `--`
    is the script's, even if it is called as an option here.
    """
    from drust.cli.script import run_script

    settings = {"servers": servers, "workers": workers, "heap_bytes": heap_bytes}
    ctx.exit(run_script(script, arguments, settings, as_json=as_json))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def status(as_json: bool) -> None:
    """This user's sessions on this host: servers, workers, memory, messages."""
    from drust.cli.sessions import show

    show(as_json=as_json)


@main.command()
@click.option("--most", default=20, show_default=True, help="Objects of each server, largest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def memory(most: int, as_json: bool) -> None:
    """What lies in the heaps of this user's sessions: objects by size, owner, place, state."""
    from drust.cli.memory import show

    show(most, as_json=as_json)
