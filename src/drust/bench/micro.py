"""`drust bench micro`: every operation of the cost model as a ratio against its limit, in one run.

The table's order is the order in which a reader asks: a borrow, a read on this host, over the wire, a task, a
program, an allocation. A row that cannot run is in the table with the reason.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

from drust import config
from drust.bench import borrows, frames, machine_facts, remote, same_host, spawns
from drust.bench.peers import Peers, Unavailable
from drust.bench.report import Report
from drust.bench.rows import Bench, Group, Row
from drust.errors import DrustError
from drust.session import init

HEAP_BYTES_MAX = 3 * 2**29  # of each server: 1 GiB to be read by others, and room for the rest

GROUPS: dict[str, Group] = {
    "borrow": borrows.borrows,
    "same-host-read": same_host.same_host_reads,
    "remote-read-512": remote.small_reads,
    "remote-read-64m": remote.large_reads,
    "cached-remote-read": remote.cached_reads,
    "spawn": spawns.spawns,
    "one-server-program": borrows.one_server,
    "allocate": borrows.allocations,
    "frames": frames.frames,
}
"""What `--only` takes, and what it runs."""


def heap_bytes() -> int:
    """The heap of each of the two servers: what the rows need, less where memory is short."""
    return min(config.default_heap_bytes(2), HEAP_BYTES_MAX)


def run(
    *, quick: bool = False, only: Sequence[str] = (), progress: Callable[[str], None] = lambda _name: None
) -> Report:
    """Runs the rows on two servers of one worker each, on this machine.

    Cost: up to 20 s if `quick`, else up to 3 min; up to 3 GiB of memory. Starts and ends its own session.

    Args:
        quick: fewer and shorter samples.
        only: names of `GROUPS`; all unless given.
        progress: told the name of each group as it begins.

    Raises:
        ConfigError: a session is running already.
    """
    start = perf_counter()
    facts = machine_facts.gather()
    rows: list[Row] = []
    with init(servers=2, workers=1, heap_bytes=heap_bytes()) as session, Peers() as partners:
        bench = Bench(session, partners, quick)
        for name in only or GROUPS:
            progress(name)
            rows += run_group(name, GROUPS[name], bench)
    return Report(machine=facts, quick=quick, seconds=perf_counter() - start, rows=rows)


def run_group(name: str, group: Group, bench: Bench) -> list[Row]:
    """The rows of a group; one that ends early adds a row that says why."""
    rows: list[Row] = []
    try:
        for row in group(bench):
            rows.append(row)  # noqa: PERF402 - those before an error stay
    except (Unavailable, DrustError, OSError, ArithmeticError, AssertionError) as error:
        rows.append(Row(name=name, operation=name, skipped=f"{type(error).__name__}: {error}"))
    return rows
