"""`drust bench replication`: what replicas cost where a value is handed over, and how long a loss takes.

Idea: the same program runs in two clusters of three servers, one with replicas and in this process, one
without in a partner process; their samples take turns, so that the ratio is of pairs. Then a Box without a
replica, beside others that have one, against one where there are none. A loss is measured in clusters of its
own: from the `kill -9` to the first value that is read again, and to the end of the copying that makes the
next loss bearable, beside a socket that streams as many bytes.
Rejected: two sessions in one process, one after the other (drift between the two becomes the result).
"""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import monotonic, perf_counter

from drust import config, runtime
from drust._core import Box
from drust.bench import machine_facts, peers
from drust.bench.elsewhere import OTHER, Floats, boxes_there, check
from drust.bench.peers import Peers
from drust.bench.report import Report
from drust.bench.rows import Aim, Bench, Row
from drust.bench.stats import Operation, Plan, summarise
from drust.creation import empty as empty_array
from drust.errors import DrustError
from drust.session import init, shutdown
from drust.tasks import spawn
from drust.units import format_bytes, format_seconds

SIZES_BYTES = (512, 2**20, 64 * 2**20)  # of the value that is handed over
LOSSES_BYTES = (2**20, 64 * 2**20, 256 * 2**20)  # on the server that is lost
HEAP_BYTES_MAX = 2**30
_BOX_BYTES = 2**20
_KEPT_BOXES = 64
_RECOVERY_AIM = Aim(kind="seconds", bound=5.0)
_LONG_S = 60.0
_STREAM_CHUNK_BYTES = 2**20


def add(values: Floats) -> None:
    """A task: changes what it was lent."""
    values += 1.0


class HandOvers:
    """Mutable lends of one value that lives on another server, each changing it there."""

    def __init__(self, nbytes: int) -> None:
        self._box: Box[Floats] = boxes_there(1, nbytes)[0]

    def run(self, count: int) -> float:
        """Seconds for `count` of them."""
        start = perf_counter()
        for _ in range(count):
            spawn(add, self._box.borrow_mut(), server=OTHER).join()
        return perf_counter() - start


class LocalBorrows:
    """Mutable borrows of a value of this server that no other one was told of."""

    def __init__(self, nbytes: int) -> None:
        self._box: Box[Floats] = empty_array(nbytes // 8)

    def run(self, count: int) -> float:
        """Seconds for `count` of them."""
        box = self._box
        start = perf_counter()
        for _ in range(count):
            with box.borrow_mut():
                pass
        return perf_counter() - start


_KINDS: "dict[str, Callable[[int], HandOvers | LocalBorrows]]" = {
    "hand-over": HandOvers,
    "local": LocalBorrows,
}
_made: "dict[tuple[str, int], HandOvers | LocalBorrows]" = {}  # of this process; used by its main thread


def sample(kind: str, nbytes: int, count: int) -> float:
    """Seconds for `count` operations of a kind in this process's cluster."""
    if (kind, nbytes) not in _made:
        _made.clear()
        _made[kind, nbytes] = _KINDS[kind](nbytes)
    return _made[kind, nbytes].run(count)


def start_partner() -> None:
    """In the partner's process: a cluster without replicas."""
    init(servers=3, workers=1, heap_bytes=heap_bytes(), replicas=0)


def heap_bytes() -> int:
    """The heap of each of the six servers: what the rows need, less where memory is short."""
    return min(config.default_heap_bytes(6), HEAP_BYTES_MAX)


def hand_overs(bench: Bench, partner: ProcessPoolExecutor) -> Iterator[Row]:
    """What one costs with replicas, over what it costs without."""

    def both(kind: str, nbytes: int) -> tuple[Operation, Operation]:
        def there(count: int) -> float:
            return partner.submit(sample, kind, nbytes, count).result(_LONG_S)

        return Operation(lambda count: sample(kind, nbytes, count)), Operation(there)

    ours, limit = both("local", _BOX_BYTES)
    yield bench.compare(
        "borrow-local",
        "mutable borrow that stays on its server",
        "the same with replicas=0",
        ours,
        limit,
        Aim(kind="ratio", bound=1.1),
    )
    for nbytes in SIZES_BYTES:
        plan = bench.plan
        if nbytes >= SIZES_BYTES[-1]:
            plan = Plan(samples=plan.samples, budget_s=4 * plan.budget_s, operations=1)
        ours, limit = both("hand-over", nbytes)
        row = bench.compare(
            f"hand-over-{format_bytes(nbytes).replace(' ', '')}",
            f"task on another server changes {format_bytes(nbytes)} there and hands it back",
            "the same with replicas=0",
            ours,
            limit,
            plan=plan,
        )
        if nbytes >= _STREAM_CHUNK_BYTES and row.ours and row.limit:
            stream_s = peers.stream(nbytes // 2**20, _STREAM_CHUNK_BYTES, 3, keep=True)
            added = format_seconds(max(0.0, row.ours.median - row.limit.median))
            row.notes.append(f"{added} more; a socket streams as many bytes in {format_seconds(stream_s)}")
        yield row


def choices(bench: Bench, partner: ProcessPoolExecutor) -> Iterator[Row]:
    """What a Box that asked for no replica costs beside some that did, over what it costs where none did."""
    kept = boxes_there(_KEPT_BOXES, _BOX_BYTES // _KEPT_BOXES, 1)
    for nbytes in SIZES_BYTES[:2]:

        def here(count: int, nbytes: int = nbytes) -> float:
            return sample("hand-over", nbytes, count)

        def there(count: int, nbytes: int = nbytes) -> float:
            return partner.submit(sample, "hand-over", nbytes, count).result(_LONG_S)

        size = format_bytes(nbytes)
        yield bench.compare(
            f"plain-beside-kept-{size.replace(' ', '')}",
            f"task changes {size} of a Box without a replica, where {len(kept)} others have one",
            "the same where no Box has one",
            Operation(here),
            Operation(there),
            Aim(kind="ratio", bound=1.05),
        )


def losses(quick: bool) -> Iterator[Row]:
    """Time from a kill to the first read, and to the end of re-replication, by the size of the partition."""
    for nbytes in LOSSES_BYTES[: 2 if quick else None]:
        reads: list[float] = []
        repairs: list[float] = []
        for _ in range(2 if quick else 5):
            read_s, repair_s = _lose(nbytes)
            reads.append(read_s)
            repairs.append(repair_s)
        size = format_bytes(nbytes)
        name = size.replace(" ", "")
        yield Row(
            name=f"loss-read-{name}",
            operation=f"from the kill of a server with {size} to the first of its values read again",
            ours=summarise(reads),
            aim=_RECOVERY_AIM,
        )
        mebibytes = nbytes // 2**20
        stream_s = [peers.stream(mebibytes, _STREAM_CHUNK_BYTES, 3, keep=True) for _ in repairs]
        yield Row(
            name=f"loss-repair-{name}",
            operation=f"its successor puts the {size} on a backup of its own",
            limit_name="a socket that streams as many bytes",
            ours=summarise(repairs),
            limit=summarise(stream_s),
            ratio=summarise([ours / limit for ours, limit in zip(repairs, stream_s, strict=True)]),
            bytes=nbytes,
        )


def _lose(nbytes: int) -> tuple[float, float]:
    """One loss in a cluster of its own: seconds to the first read, and those that copying took."""
    repairs: list[float] = []

    def heard(event: object) -> None:
        if getattr(event, "servers", None) == [OTHER]:
            repairs.append(getattr(event, "seconds", 0.0))

    with init(servers=3, workers=1, heap_bytes=heap_bytes(), replicas=1, on_event=heard) as session:
        boxes = boxes_there(nbytes // _BOX_BYTES, _BOX_BYTES)
        start = perf_counter()
        os.kill(session.pids[OTHER], signal.SIGKILL)
        with boxes[-1].borrow() as values:
            check(values[-1])
        read_s = perf_counter() - start
        deadline_s = monotonic() + _LONG_S
        while not repairs and monotonic() < deadline_s:
            runtime.current().ping(0)
        if not repairs:
            raise AssertionError("the loss was not repaired")
        return read_s, repairs[0]


def run(*, quick: bool = False, progress: Callable[[str], None] = lambda _name: None) -> Report:
    """Runs all rows; each session starts three servers on this machine, two such clusters at once.

    Cost: up to 40 s if `quick`, else up to 3 min.

    Args:
        quick: fewer and shorter samples.
        progress: told what is measured next.

    Raises:
        ConfigError: a session is running already.
    """
    start = perf_counter()
    facts = machine_facts.gather()
    rows: list[Row] = []
    progress("hand-overs")
    try:
        with (
            Peers() as partners,
            ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start_partner) as partner,
        ):
            for replicas, measure in ((1, hand_overs), (0, choices)):
                with init(servers=3, workers=1, heap_bytes=heap_bytes(), replicas=replicas) as session:
                    rows += measure(Bench(session, partners, quick), partner)
                    _made.clear()
            partner.submit(shutdown).result(_LONG_S)
        progress("losses")
        rows += losses(quick)
    except (peers.Unavailable, DrustError, OSError, AssertionError) as error:
        rows.append(Row(name="replication", operation="the rest", skipped=f"{type(error).__name__}: {error}"))
    return Report(machine=facts, quick=quick, seconds=perf_counter() - start, rows=rows)
