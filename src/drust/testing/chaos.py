"""Random programs under kills: `python -m drust.testing.chaos --seed N --kills K` plays a run again.

Each round spawns some steps (programs.py) that touch disjoint Boxes, kills some workers while they run, in
every way there is, joins all and compares with the model. When enough have died the session comes to rest,
and must hold what it held before, to the byte, and keep the nine invariants. The seed decides programs,
victims, kill points and delays; what the kernel makes of the delays it does not, so a run that failed is
played again more than once (`--times`). Thousands of deaths, in many sessions: soak.py.
"""

import gc
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

import click

import drust
from drust.errors import WorkerLostError
from drust.session import Session
from drust.testing import account, faults, invariants, programs, unnamed

# Shared objects are killed at in native tests (test_sync_kills, test_channel, test_dict): here are none.
_NOT_HERE = "shared."
WORKER_POINTS = tuple(point for point in faults.POINTS if not point.startswith(("server.", _NOT_HERE)))
NTH_ANY_MAX = 400  # passings of any point until a death: a task passes some dozen
ATTACH_S = 60.0
SIGNAL_WITHIN_S = 0.04
_HISTORY = 12
_FIRST_POINTS = ("heap.take.after", "heap.publish.before")
_TRIES = 100
_CELLS_MAX = 12
_ACTIONS: tuple[faults.Action, ...] = ("kill", "kill", "exit", "segfault", "abort")


class ChaosError(AssertionError):
    """A run went wrong. The message has the seed, what was killed last, and how to play it again."""


@dataclass
class Report:
    """What a run did."""

    seed: int
    rounds: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    ways: Counter[str] = field(default_factory=Counter)  # how they were asked for, where known
    fired: Counter[str] = field(default_factory=Counter)  # kill points that killed
    never: list[str] = field(default_factory=list)  # kill points that no process passed
    looks: int = 0  # for blocks that nobody names: unnamed.py
    seconds: float = 0.0

    def __str__(self) -> str:
        ways = ", ".join(f"{count} {way}" for way, count in self.ways.most_common())
        return (
            f"seed {self.seed}: {self.deaths} workers died in {self.rounds} rounds of"
            f" {self.steps.total()} steps ({ways}; {len(self.fired)} kill points fired),"
            f" {self.looks} looks for what nobody names, {self.seconds:.1f} s"
        )


class Run:
    """One seeded run on a session whose servers map a board."""

    def __init__(self, session: Session, board: faults.Board, seed: int) -> None:
        self.report = Report(seed)
        self._session = session
        self._board = board
        self._random = Random(seed)
        self._cells: list[programs.Cell] = []
        self._history: list[str] = []
        self._rows: dict[int, str] = {}  # armed in this round: who
        self._number = 0
        self._command = ""  # that plays it again; empty: this module's

    def play(self, kills: int) -> Report:
        """Rounds until `kills` workers have died; then account and invariants.

        Raises:
            ChaosError: anything was not as it must be.
        """
        started_s = time.monotonic()
        try:
            self._warm_up()
            before = account.take_at_rest(self._session)
            dead = self._deaths()
            with unnamed.Looks(self._session) as looks:
                for point in _FIRST_POINTS:
                    self._die_at(point)
                while not self._is_over(kills):
                    self._round()
                    self.report.deaths = self._deaths() - dead
            looks.check()
            self.report.looks = looks.count
            self._cells.clear()
            gc.collect()
            wait_attached(self._session)
            account.check_settled(self._session, before)
            invariants.check(self._session)
        except Exception as error:
            raise ChaosError(self._explain(error, kills)) from error
        finally:
            self._cells.clear()
        self.report.seconds = time.monotonic() - started_s
        return self.report

    def _is_over(self, kills: int) -> bool:
        return self.report.deaths >= kills

    def _explain(self, error: Exception, kills: int) -> str:
        self._take_rows()
        last = "".join(f"\n    {line}" for line in self._history[-_HISTORY:])
        session = self._session.config
        command = self._command or f"python -m drust.testing.chaos --seed {self.report.seed} --kills {kills}"
        again = "" if self._command else " --times 5"
        where = "".join(traceback.format_tb(error.__traceback__)[-4:])
        return (
            f"{type(error).__name__}: {error}\n{where}"
            f"  after {self.report.deaths} deaths in {self.report.rounds} rounds; killed last:{last}\n"
            f"  play it again: {command} --servers {session.servers} --workers {session.workers}{again}"
        )

    def _warm_up(self) -> None:
        """Functions travel and caches fill before the account is taken: every kind of step a few times."""
        wait_attached(self._session)
        random = Random(0)
        cells: list[programs.Cell] = []
        for _ in range(8):
            pending = [self._draw(random, cells) for _ in range(8)]
            for each in pending:
                cells += each.settle()
        servers = range(self._session.servers)
        for server in servers:  # what the draw may have missed
            for other in servers:
                programs.parent(programs.fresh_parent(1), 2, server, other).settle()
            programs.move(programs.fresh_parent(1), server, back=False).settle()
            programs.evict(server).settle()

    def _die_at(self, point: str) -> None:
        """One worker dies there for sure: its half-made block is for the server to take over."""
        server, pid = self._random.choice(attached(self._session))
        row = self._board.arm(pid, point)
        self._rows[row] = f"pid {pid} of server {server} by kill"
        for _ in range(_TRIES):
            if self._board.fired(row):
                break
            self._number += 1
            pending = [programs.create(programs.SMALL, self._number, server) for _ in range(4)]
            for each in pending:
                self._cells += each.settle()
        self._take_rows()
        del self._cells[_CELLS_MAX:]

    def _draw(self, random: Random, cells: list[programs.Cell]) -> programs.Pending:
        self._number += 1
        return programs.draw(random, cells, self._number, self._session.servers)

    def _deaths(self) -> int:
        return sum(
            worker.deaths
            for server in range(self._session.servers)
            for worker in self._session.status(server).workers
        )

    def _round(self) -> None:
        random = self._random
        self.report.rounds += 1
        signals: list[tuple[float, int, int]] = []
        suicides: list[drust.JoinHandle[None]] = []
        victims = attached(self._session)
        random.shuffle(victims)
        for server, pid in victims[: random.randint(1, max(1, len(victims) // 2))]:
            self._plan_death(server, pid, signals, suicides)
        sender = faults.Signals(signals)
        sender.start()
        pending = []
        for _ in range(random.randint(4, 10)):
            pending.append(self._draw(random, self._cells))
            self.report.steps[pending[-1].name] += 1
        random.shuffle(pending)
        for each in pending:
            self._cells += each.settle()
        for handle in suicides:
            try:
                handle.join(timeout=programs.JOIN_S)
            except WorkerLostError:
                self.report.ways["by its task"] += 1
        for pid, number in sender.finish():
            if number == signal.SIGKILL:
                self.report.ways["by a signal"] += 1
                self._history.append(f"pid {pid} by SIGKILL from outside")
        self._take_rows()
        while len(self._cells) > _CELLS_MAX:
            self._cells.pop(random.randrange(len(self._cells)))

    def _take_rows(self) -> None:
        """Disarms what has not fired, and notes what has."""
        for row, what in self._rows.items():
            point = self._board.disarm(row)
            if point is not None:
                self.report.ways["at a kill point"] += 1
                self.report.fired[point] += 1
                self._history.append(f"{what} at {point}")
        self._rows.clear()

    def _plan_death(
        self,
        server: int,
        pid: int,
        signals: list[tuple[float, int, int]],
        suicides: list["drust.JoinHandle[None]"],
    ) -> None:
        random = self._random
        way = random.choice(("point", "point", "any point", "signal", "task", "stop"))
        action: faults.Action = random.choice(_ACTIONS)
        match way:
            case "point":
                point = random.choice(WORKER_POINTS)
                row = self._board.arm(pid, point, random.randint(1, 3), action)
                self._rows[row] = f"pid {pid} of server {server} by {action}"
            case "any point":
                row = self._board.arm(pid, "", random.randint(1, NTH_ANY_MAX), action)
                self._rows[row] = f"pid {pid} of server {server} by {action}"
            case "signal":
                signals.append((random.uniform(0, SIGNAL_WITHIN_S), pid, signal.SIGKILL))
            case "stop":  # and goes on: nobody may be hurt
                at_s = random.uniform(0, SIGNAL_WITHIN_S)
                signals.append((at_s, pid, signal.SIGSTOP))
                signals.append((at_s + SIGNAL_WITHIN_S, pid, signal.SIGCONT))
            case _:
                how: faults.Death = random.choice(("kill", "exit", "segfault", "abort", "oom"))
                suicides.append(drust.spawn(faults.die, how, server=server))


def attached(session: Session) -> list[tuple[int, int]]:
    """(server, pid) of every worker that takes tasks now. One round trip a server."""
    return [
        (server, worker.pid)
        for server in range(session.servers)
        for worker in session.status(server).workers
        if worker.state == "attached"
    ]


def wait_attached(session: Session) -> None:
    """Waits until every place of every server has a worker that takes tasks.

    Raises:
        TimeoutError: a worker was not replaced within ATTACH_S.
    """
    deadline = time.monotonic() + ATTACH_S
    pause = faults.Pause()
    while len(attached(session)) < session.servers * session.config.workers:
        if time.monotonic() > deadline:
            states = [
                f"server {server}: {[(each.worker, each.state, each.deaths) for each in status.workers]}"
                for server in range(session.servers)
                for status in [session.status(server)]
            ]
            raise TimeoutError(f"workers are missing after {ATTACH_S:g} s: {'; '.join(states)}")
        pause.wait()


def run(
    seed: int,
    kills: int,
    servers: int = 2,
    workers: int = 4,
) -> Report:
    """A run on a session of its own.

    Args:
        seed: decides everything but time.
        kills: how many workers must have died.
        servers: of the session.
        workers: of each server.

    Raises:
        ChaosError: anything was not as it must be; its message has the seed.
    """
    with ExitStack() as stack:
        board = stack.enter_context(faults.Board())
        session = stack.enter_context(drust.init(servers=servers, workers=workers, heap_bytes="256MiB"))
        report = Run(session, board, seed).play(kills)
        report.never = [
            point for point, count in board.passed().items() if not count and not point.startswith(_NOT_HERE)
        ]
    return report


@click.command()
@click.option("--seed", type=int, default=None, help="Plays this run; a new one unless given.")
@click.option("--kills", type=int, default=50, show_default=True, help="How many workers must die.")
@click.option("--servers", type=int, default=2, show_default=True)
@click.option("--workers", type=int, default=4, show_default=True, help="Of each server.")
@click.option("--times", type=int, default=1, show_default=True, help="How often: the kernel's part differs.")
def main(seed: int | None, kills: int, servers: int, workers: int, times: int) -> None:
    """Random programs under kills, against a model. Fails with the seed that plays the run again."""
    number = seed if seed is not None else Random().randrange(10**6)
    for _ in range(times):
        click.echo(f"seed {number}")
        try:
            report = run(number, kills, servers, workers)
            click.echo(f"{report}\nkill points never passed: {', '.join(report.never) or 'none'}")
        except ChaosError as error:
            click.echo(str(error), err=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
