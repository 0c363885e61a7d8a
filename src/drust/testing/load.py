"""Random load under kills: `python -m drust.testing.load --seconds 600 --seed N`.

Rounds of a chaos run (chaos.py: tasks that lend, move and split Boxes; deaths in every way there is), and
beside them in each round *clients*, tasks on all servers that share one set of objects for the round: an
AtomicInt, a Mutex and a channel at home on each server, and a Dict over all. A client says what it did when
it returns. One that is killed has done some of it: so a count is at least what was said, and at most that and
all that the killed ones might have done; a message is received once, and is missing only if a killed client
may have had it.

At the end the session is at rest, to the byte, as after any chaos run.
"""

import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import click

import drust
from drust import AtomicInt, Dict, Mutex
from drust.errors import BorrowTimeoutError, PoisonedError, QueueFullError, WorkerLostError
from drust.session import Session
from drust.testing import chaos, faults, programs

CLIENTS = 6  # a round
OPERATIONS = 60  # of a client
KEYS = 5  # of the Dict: few, so that clients meet
LOCK_S = 10.0  # a holder that died is noticed within 1 s


@dataclass
class Shared:
    """What the clients of a round share: of each server, and the Dict over all."""

    counters: list[AtomicInt]
    mutexes: list[Mutex[dict[str, int]]]
    channels: list[tuple[Any, Any]]
    table: Dict[int, int]


@dataclass
class Done:
    """What a client did."""

    added: int = 0
    locked: int = 0
    modified: int = 0
    sent: list[tuple[int, int]] = field(default_factory=list)
    received: list[tuple[int, int]] = field(default_factory=list)


def make_here() -> tuple[AtomicInt, Mutex[dict[str, int]], tuple[Any, Any]]:
    """One of each, at home on the server that runs this."""
    return AtomicInt(0), Mutex({"count": 0}), drust.channel()


def locked(mutex: Mutex[dict[str, int]]) -> Any:
    """Its guard, whether or not the last holder died: a value is written back whole or not at all."""
    try:
        with mutex.lock(timeout=LOCK_S) as value:
            value["count"] += 1
    except PoisonedError:
        with mutex.recover(timeout=LOCK_S) as value:
            value["count"] += 1


def client(shared: Shared, seed: int, number: int) -> Done:
    """OPERATIONS random steps at the shared objects."""
    random, done = Random(seed), Done()
    for step in range(OPERATIONS):
        at = random.randrange(len(shared.counters))
        match random.choice(("add", "lock", "send", "receive", "modify")):
            case "add":
                shared.counters[at].fetch_add(1)
                done.added += 1
            case "lock":
                locked(shared.mutexes[at])
                done.locked += 1
            case "send":
                shared.channels[at][0].send((number, step))
                done.sent.append((number, step))
            case "receive":
                with suppress(QueueFullError, BorrowTimeoutError):
                    done.received.append(shared.channels[at][1].recv(timeout=0.001))
            case _:
                shared.table.modify(random.randrange(KEYS), plus_one, 0)
                done.modified += 1
    return done


def plus_one(value: int) -> int:
    """What a client does to a value of the Dict."""
    return value + 1


def check(shared: Shared, ended: list[Done], lost: int) -> None:
    """Compares what is there with what was said.

    Raises:
        ModelError: they cannot both be.
    """
    open_steps = lost * OPERATIONS
    mutexes = 0
    for mutex in shared.mutexes:
        with mutex.recover(timeout=LOCK_S) as value:
            mutexes += value["count"]
    for what, said, found in (
        ("additions", sum(done.added for done in ended), sum(each.load() for each in shared.counters)),
        ("blocks under a lock", sum(done.locked for done in ended), mutexes),
        ("changes of a Dict", sum(done.modified for done in ended), sum(shared.table.values())),
    ):
        if not said <= found <= said + open_steps:
            raise programs.ModelError(
                f"{found} {what}; {said} were said, {open_steps} more may have been done"
            )
    received = Counter(message for done in ended for message in done.received)
    for _, receiver in shared.channels:
        with suppress(BorrowTimeoutError):
            while True:
                received[receiver.recv(timeout=0)] += 1
    twice = [message for message, times in received.items() if times > 1]
    missing = [message for done in ended for message in done.sent if message not in received]
    if twice or len(missing) > open_steps:
        raise programs.ModelError(
            f"messages received twice: {twice}, never: {missing}; {lost} clients were lost"
        )


class Run(chaos.Run):
    """A chaos run with clients, for a time."""

    def __init__(self, session: Session, board: faults.Board, seed: int, seconds: float) -> None:
        super().__init__(session, board, seed)
        self._ends_s = time.monotonic() + seconds
        self._command = f"python -m drust.testing.load --seed {seed} --seconds {seconds:g}"

    def _is_over(self, kills: int) -> bool:
        return time.monotonic() > self._ends_s

    def _warm_up(self) -> None:
        super()._warm_up()
        servers = range(self._session.servers)
        shared = self._share()
        ended = [drust.spawn(client, shared, 0, server, server=server).join() for server in servers]
        check(shared, ended, 0)

    def _share(self) -> Shared:
        made: list[tuple[AtomicInt, Mutex[dict[str, int]], tuple[Any, Any]]] = [
            drust.spawn(make_here, server=server, retry=100).join(timeout=programs.JOIN_S)
            for server in range(self._session.servers)
        ]
        return Shared([a for a, _, _ in made], [m for _, m, _ in made], [c for _, _, c in made], Dict())

    def _round(self) -> None:
        shared = self._share()
        clients = [
            drust.spawn(
                client,
                shared,
                self._random.randrange(10**9),
                number,
                server=self._random.randrange(self._session.servers),
            )
            for number in range(CLIENTS)
        ]
        super()._round()
        ended: list[Done] = []
        for each in clients:
            with suppress(WorkerLostError):
                ended.append(each.join(timeout=2 * LOCK_S))
        self.report.steps["client"] += CLIENTS
        self.report.steps["lost client"] += CLIENTS - len(ended)
        check(shared, ended, CLIENTS - len(ended))


def run(seed: int, seconds: float, servers: int = 3, workers: int = 2) -> chaos.Report:
    """A run on a session of its own.

    Args:
        seed: decides everything but time.
        seconds: for which it goes on; the last round ends.
        servers: of the session.
        workers: of each server.

    Raises:
        ChaosError: anything was not as it must be; its message has the seed.
    """
    with ExitStack() as stack:
        board = stack.enter_context(faults.Board())
        session = stack.enter_context(drust.init(servers=servers, workers=workers, heap_bytes="256MiB"))
        return Run(session, board, seed, seconds).play(0)


@click.command()
@click.option("--seed", type=int, default=None, help="Plays this run; a new one unless given.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long it goes on.")
@click.option("--servers", type=int, default=3, show_default=True)
@click.option("--workers", type=int, default=2, show_default=True, help="Of each server.")
def main(seed: int | None, seconds: float, servers: int, workers: int) -> None:
    """Random load under kills, against a model. Fails with the seed that plays the run again."""
    number = seed if seed is not None else Random().randrange(10**6)
    click.echo(f"seed {number}")
    try:
        click.echo(str(run(number, seconds, servers, workers)))
    except chaos.ChaosError as error:
        click.echo(str(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
