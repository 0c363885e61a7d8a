"""`drust bench tasks`: what a task costs, alone and in a stream, beside what others need for the same.

Alone: spawned and joined, one after the other; held against a futex round trip with pickling, the least that
two processes can do. In a stream: many spawned, then all joined; the driver and one worker are two busy
processes, so two cores. Beside it the standard library's process pool, and Ray and Dask where they are
installed, with one worker process each, in the same run.
Rejected: peers with more workers than ours (a stream of empty tasks measures the sender, who is one).
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any

from drust import arrivals
from drust.bench import machine_facts, micro, spawns
from drust.bench.peers import Peers, empty
from drust.bench.report import Report
from drust.bench.rows import Aim, Bench, Group, Row
from drust.bench.stats import Operation, Plan
from drust.executor import Executor
from drust.parallel import map as drust_map
from drust.session import init
from drust.tasks import spawn, start_many

HERE = 0  # bound to it: else the other server takes some of a stream over, in messages
_STREAM = 2000  # tasks of one sample
_STREAM_AIM = Aim(kind="seconds", bound=1 / 20_000)
_MAP_ITEMS = 20_000


def _timed(body: Callable[[int], object]) -> Operation:
    def run(count: int) -> float:
        start = perf_counter()
        body(count)
        return perf_counter() - start

    return Operation(run)


def _stream(server: int) -> Operation:
    def body(count: int) -> None:
        for job in [spawn(empty, server=server) for _ in range(count)]:
            job.join()

    return _timed(body)


def _stream_of(submit: Callable[[], Any], result: Callable[[Any], object]) -> Operation:
    def body(count: int) -> None:
        for job in [submit() for _ in range(count)]:
            result(job)

    return _timed(body)


def _many(server: int) -> Operation:
    def body(count: int) -> None:
        for job in start_many(empty, [()] * count, server=server):
            job.join()

    return _timed(body)


def _each_of(submit: Callable[[], Any], result: Callable[[Any], object]) -> Operation:
    def body(count: int) -> None:
        for _ in range(count):
            result(submit())

    return _timed(body)


def streams(bench: Bench) -> Iterator[Row]:
    """Many empty tasks, spawned and then joined."""
    plan = Plan(samples=5 if bench.quick else 31, operations=_STREAM, budget_s=2 if bench.quick else 20)
    operation = f"an empty task, of {_STREAM:,} spawned and then joined"
    pool = bench.peers.pool
    limit = _stream_of(lambda: pool.submit(empty), lambda job: job.result())
    name = "ProcessPoolExecutor, in the same way"
    yield bench.compare("stream", operation, name, _stream(HERE), limit, _STREAM_AIM, plan=plan)
    yield bench.compare(
        "stream-remote", f"{operation}, on another server", name, _stream(1), limit, plan=plan
    )
    for server, where in ((HERE, ""), (1, ", on another server")):
        row = "stream-many-remote" if server else "stream-many"
        many = _many(server)
        yield bench.compare(row, f"{operation}, sent by start_many{where}", name, many, limit, plan=plan)
    with Executor() as executor:
        ours = _stream_of(lambda: executor.submit(empty), lambda job: job.result())
        yield bench.compare(
            "stream-executor", f"{operation}, by drust.Executor", name, ours, limit, plan=plan
        )

    def as_they_end(count: int) -> None:
        for job in arrivals.as_ended([spawn(empty, server=HERE) for _ in range(count)]):
            job.join()

    yield bench.compare(
        "stream-unordered", f"{operation} as they end", name, _timed(as_they_end), limit, plan=plan
    )


def maps(bench: Bench) -> Iterator[Row]:
    """A function that does next to nothing over many items."""
    plan = Plan(samples=5 if bench.quick else 15, operations=_MAP_ITEMS, budget_s=2 if bench.quick else 10)
    pool = bench.peers.pool

    def ours(count: int) -> None:
        drust_map(abs, range(count))

    def theirs(count: int) -> None:
        chunk = -(-count // 8)
        for _ in pool.map(abs, range(count), chunksize=chunk):
            pass

    yield bench.compare(
        "map",
        f"an item, of {_MAP_ITEMS:,} given to drust.map(abs)",
        "ProcessPoolExecutor.map in as many chunks",
        _timed(ours),
        _timed(theirs),
        plan=plan,
    )


def _ray(open_: ExitStack) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    ray = importlib.import_module("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    open_.callback(ray.shutdown)
    task = ray.remote(empty)
    return task.remote, ray.get


def _dask(open_: ExitStack) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    distributed = importlib.import_module("distributed")
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
    open_.callback(cluster.close)
    client = distributed.Client(cluster)
    open_.callback(client.close)
    return (lambda: client.submit(empty, pure=False)), (lambda job: job.result())


_FRAMEWORKS = {"Ray": ("ray", _ray), "Dask": ("distributed", _dask)}


def frameworks(bench: Bench) -> Iterator[Row]:
    """The same tasks in Ray and Dask, where they are installed."""
    samples = 3 if bench.quick else 9
    alone = Plan(samples=samples * 3, operations=20, budget_s=2 if bench.quick else 10)
    stream = Plan(samples=samples, operations=_STREAM // 4, budget_s=2 if bench.quick else 20)
    for title, (module, start) in _FRAMEWORKS.items():
        name = title.lower()
        try:
            importlib.import_module(module)
        except ImportError:
            yield Row(name=name, operation=f"empty tasks in {title}", skipped=f"{title} is not installed")
            continue
        with ExitStack() as open_:
            submit, result = start(open_)
            result(submit())
            yield bench.compare(
                f"spawn-{name}",
                "spawn + join of an empty task",
                title,
                spawns.spawn_and_join(),
                _each_of(submit, result),
                plan=alone,
            )
            yield bench.compare(
                f"stream-{name}",
                "an empty task in a stream",
                title,
                _stream(HERE),
                _stream_of(submit, result),
                plan=stream,
            )


GROUPS: dict[str, Group] = {
    "spawn": spawns.spawns,
    "stream": streams,
    "map": maps,
    "frameworks": frameworks,
}
"""What `--only` takes, and what it runs."""


def run(
    *, quick: bool = False, only: Sequence[str] = (), progress: Callable[[str], None] = lambda _name: None
) -> Report:
    """Runs the rows on two servers of one worker each, on this machine.

    Cost: up to 30 s if `quick`, else up to 3 min. Starts and ends its own session.

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
    with init(servers=2, workers=1, heap_bytes=micro.heap_bytes()) as session, Peers() as partners:
        bench = Bench(session, partners, quick)
        for name in only or GROUPS:
            progress(name)
            rows += micro.run_group(name, GROUPS[name], bench)
    return Report(machine=facts, quick=quick, seconds=perf_counter() - start, rows=rows)
