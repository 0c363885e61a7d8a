"""`drust status`: the sessions of this user on this host, found by their servers' abstract unix sockets.

For each the process joins for a moment, asks every server, and leaves; it starts nothing. A server that does
not answer is a line of the answer, not the end of the command.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drust import runtime
from drust.config import Config
from drust.errors import ClusterError
from drust.server import joining, messages
from drust.units import format_bytes, format_seconds

Seen = TypeVar("Seen")

COMMAND_MAX = 100  # characters
NOTHING = "No drust session of this user is running on this host."
WIDTH_MIN = 110  # of what is not a terminal


@dataclass
class ServerReport:
    """A server and what it answered; `error` if it did not."""

    server: int
    address: str
    status: messages.ServerStatus | None = None
    error: str = ""


@dataclass
class SessionReport:
    """A session: the script that started it, and its servers."""

    driver_pid: int
    script: str
    servers: list[ServerReport]


def show(*, as_json: bool) -> None:
    """Prints every session. 1 round trip a server."""
    sessions = [report for pid in joining.find_servers() if (report := ask(pid)) is not None]
    if as_json:
        click.echo(json.dumps({"sessions": msgspec.to_builtins(sessions)}, indent=2))
    elif not sessions:
        click.echo(NOTHING)
    else:
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, WIDTH_MIN)
        for each in sessions:
            console.print(table_of(each))


def ask(pid: int) -> SessionReport | None:
    """The session whose home server has this pid; None if it has ended meanwhile."""
    found = visit(pid, lambda welcome: [_ask_server(endpoint) for endpoint in welcome.endpoints])
    return None if found is None else SessionReport(found[0], command_of(found[0]), found[1])


def visit(pid: int, look: Callable[[messages.Welcome], Seen]) -> tuple[int, Seen] | None:
    """The driver's pid, and what `look` sees while this process has joined; None if the session has ended."""
    try:
        welcome, memfd = joining.join_server(pid)
    except OSError:
        return None
    try:
        runtime.attach(memfd, welcome.token, Config.read(), worker=False)
    except ClusterError:
        return None
    try:
        return welcome.driver_pid, look(welcome)
    finally:
        runtime.detach()


def each_session(look: Callable[[messages.Welcome], Seen]) -> list[tuple[int, Seen]]:
    """`visit` to every session of this user on this host."""
    return [found for pid in joining.find_servers() if (found := visit(pid, look)) is not None]


def _ask_server(endpoint: messages.Endpoint) -> ServerReport:
    report = ServerReport(endpoint.server, f"{endpoint.host}:{endpoint.port}")
    try:
        body = runtime.current().control(endpoint.server, messages.encode(messages.Status()))
        reply = messages.decode_reply(body)
    except (ClusterError, msgspec.DecodeError) as error:
        report.error = str(error)
        return report
    if isinstance(reply, messages.ServerStatus):
        report.status = reply
    else:
        report.error = str(reply)
    return report


def command_of(pid: int) -> str:
    """The command line of a process, its middle left out if it is long; empty if it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    program, *arguments = words
    shown = " ".join(os.fsdecode(word) for word in (os.path.basename(program), *arguments) if word)
    return shown if len(shown) <= COMMAND_MAX else f"{shown[:40]}...{shown[43 - COMMAND_MAX :]}"


MESSAGES = (
    "read_requests",
    "write_requests",
    "free_messages",
    "submit_messages",
    "complete_messages",
    "control_messages",
)


# Folded, so that the table fits a terminal of 80 columns.
COLUMNS = (
    *("server", "pid", "up", "work-\ners", "tasks\nrun", "tasks\nat hand"),
    *("heap\nused", "heap\nquota", "memory\nresident", "mess-\nages", "on the\nwire"),
)


def table_of(session: SessionReport) -> Table:
    """A session as a table, a line a server; below it why a server did not answer."""
    title = Text(f"process {session.driver_pid}: {session.script or 'it has ended'}")
    lost = [f"server {each.server} at {each.address}: {each.error}" for each in session.servers if each.error]
    table = Table(
        title=title,
        title_justify="left",
        caption=Text("\n".join(lost), "red") if lost else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for each in session.servers:
        table.add_row(str(each.server), *_cells(each))
    return table


def _cells(report: ServerReport) -> list[str]:
    status = report.status
    if status is None:
        return ["lost"]
    attached = sum(worker.state == "attached" for worker in status.workers)
    resident = status.rss_bytes + sum(worker.rss_bytes for worker in status.workers)
    counters = status.counters
    return [
        str(status.pid),
        format_seconds(status.uptime_s),
        f"{attached}/{len(status.workers)}",
        f"{counters['tasks_run']:,}",
        f"{status.queued_tasks + status.running_tasks:,}",
        format_bytes(status.usage["claimed_bytes"]),
        format_bytes(status.usage["quota_bytes"]),
        format_bytes(resident),
        f"{sum(counters[name] for name in MESSAGES):,}",
        format_bytes(counters["bytes_sent"] + counters["bytes_received"]),
    ]
