"""`drust memory`: the largest objects in every server's heap: how large, whose, where, in which state.

Found and asked as `drust status` does; 1 round trip a server, which looks at the header of every block.
"""

import json
from dataclasses import asdict, dataclass

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drust import codecs, runtime
from drust.cli.sessions import NOTHING, WIDTH_MIN, command_of, each_session
from drust.errors import ClusterError
from drust.server import messages
from drust.units import format_bytes

_OFFSET_BITS = runtime.SERVER_BITS
_GRANULE_BYTES = 16
# What a block is at the moment, by heap::OwnerKind.
_STATES = {
    0: "handed out",  # by its owner on another server, or on its way
    1: "owned",
    2: "inside another",
    3: "on its way",
    4: "copy",
    5: "queued",
    6: "lent, written anew",
    7: "replica",
    8: "shared",  # it lives while a handle of it does
    9: "on its way",  # a message to a receiver elsewhere
}


@dataclass
class ObjectRow:
    """One object, as it is shown."""

    server: int
    place: str
    size_bytes: int
    kind: str
    owner: str
    state: str


@dataclass
class HeapReport:
    """A server's heap; `error` if the server did not answer."""

    server: int
    address: str
    claimed_bytes: int = 0
    quota_bytes: int = 0
    live_objects: int = 0
    objects: list[ObjectRow] | None = None
    error: str = ""


def show(most: int, *, as_json: bool) -> None:
    """Prints the heaps of every session."""
    sessions = each_session(lambda welcome: [_ask(endpoint, most) for endpoint in welcome.endpoints])
    if as_json:
        found = [
            {"driver_pid": pid, "script": command_of(pid), "servers": [asdict(heap) for heap in heaps]}
            for pid, heaps in sessions
        ]
        click.echo(json.dumps({"sessions": found}, indent=2))
    elif not sessions:
        click.echo(NOTHING)
    else:
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, WIDTH_MIN)
        for pid, heaps in sessions:
            console.print(_table(pid, heaps))


def _ask(endpoint: messages.Endpoint, most: int) -> HeapReport:
    report = HeapReport(endpoint.server, f"{endpoint.host}:{endpoint.port}")
    try:
        body = runtime.current().control(endpoint.server, messages.encode(messages.Largest(most)))
        reply = messages.decode_reply(body)
    except (ClusterError, msgspec.DecodeError) as error:
        report.error = str(error)
        return report
    if not isinstance(reply, messages.LargestBlocks):
        report.error = str(reply)
        return report
    report.claimed_bytes = reply.usage["claimed_bytes"]
    report.quota_bytes = reply.usage["quota_bytes"]
    report.live_objects = reply.live_blocks
    report.objects = [row_of(endpoint.server, block) for block in reply.blocks]
    return report


def row_of(server: int, block: messages.BlockRow) -> ObjectRow:
    """A block in words."""
    address, _, size_bytes = block.pointer
    offset = (address & (1 << _OFFSET_BITS) - 1) * _GRANULE_BYTES
    kind = codecs.codec_name(block.codec)
    owner = f"{block.owner_role} (pid {block.owner_pid})" if block.owner_pid else ""
    return ObjectRow(
        server, f"{offset:#x}", size_bytes, kind, owner, _STATES.get(block.owner_kind, "unknown")
    )


def _table(pid: int, heaps: list[HeapReport]) -> Table:
    used = [
        f"server {heap.server} at {heap.address}: "
        + (
            heap.error
            or f"{format_bytes(heap.claimed_bytes)} of {format_bytes(heap.quota_bytes)} in use,"
            f" {heap.live_objects:,} objects"
        )
        for heap in heaps
    ]
    table = Table(
        title=Text(f"process {pid}: {command_of(pid) or 'it has ended'}"),
        title_justify="left",
        caption=Text("\n".join(used)),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("server", "size"):
        table.add_column(name, justify="right")
    for name in ("kind", "owner", "state", "place"):
        table.add_column(name)
    for heap in heaps:
        for row in heap.objects or ():
            table.add_row(
                str(row.server), format_bytes(row.size_bytes), row.kind, row.owner, row.state, row.place
            )
    return table
