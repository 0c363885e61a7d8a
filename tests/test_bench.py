"""The benchmarks: their statistics and their report are right, and a run of them is complete and ends."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from drust.bench import machine_facts, micro, peers, report, rows, stats
from drust.bench.machine_facts import MachineFacts
from drust.bench.report import Report
from drust.bench.rows import Aim, Row
from drust.bench.stats import Operation, Plan
from drust.errors import OutOfMemoryError

FACTS = MachineFacts(
    processor="a processor",
    cores=2,
    memory_available_bytes=2**34,
    kernel="6.1",
    python="3.11.7",
    numpy="2.4",
    commit="0123456789ab",
    date="2026-01-01T00:00:00+00:00",
    load=0.1,
)


def steady(seconds: float, seen: list[int] | None = None) -> Operation:
    """An operation that always takes as long."""

    def run(count: int) -> float:
        if seen is not None:
            seen.append(count)
        return seconds * count

    return Operation(run)


def summary(median: float) -> stats.Summary:
    return stats.summarise([median])


# -- statistics ----------------------------------------------------------------------------------------


def test_summary_of_known_values() -> None:
    found = stats.summarise([5.0, 1.0, 3.0, 2.0, 100.0], operations=7)
    assert found.median == 3.0
    assert found.mad == 2.0  # of 2, 2, 0, 1, 97
    assert found.p10 == pytest.approx(1.4)
    assert found.p90 == pytest.approx(62.0)
    assert (found.repetitions, found.operations) == (5, 7)


def test_median_of_an_even_count_lies_between_the_middle_two() -> None:
    assert stats.summarise([4.0, 1.0, 2.0, 8.0]).median == 3.0


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        stats.summarise([])


def test_samples_are_taken_in_turns_after_one_warm_up_of_each() -> None:
    order: list[str] = []

    def named(name: str) -> Operation:
        return Operation(lambda _count: order.append(name) or 1.0)

    stats.paired(named("A"), named("B"), Plan(samples=4, operations=1, budget_s=60))
    assert "".join(order) == "AB" + "ABABABAB"


def test_the_ratio_is_of_pairs_so_noise_that_hits_both_halves_cancels() -> None:
    slowness = [1.0, 1.0, 9.0, 9.0, 9.0, 2.0, 5.0]
    found = stats.from_samples([3 * slow for slow in slowness], [2 * slow for slow in slowness])
    assert found.ratio.median == found.ratio.p10 == found.ratio.p90 == 1.5
    assert found.ours.mad > 0


def test_unequal_numbers_of_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        stats.from_samples([1.0, 2.0], [1.0])


def test_a_sample_runs_an_operation_until_it_lasts_long_enough() -> None:
    plan = Plan(samples=3, sample_s=0.01, budget_s=60)
    assert 10_000 <= stats.operations_for(steady(1e-6), plan) <= 12_000
    assert stats.operations_for(steady(0.5), plan) == 1


def test_an_operation_that_takes_no_time_ends_the_search_at_its_limit() -> None:
    assert (
        stats.operations_for(steady(0.0), Plan(samples=3, sample_s=1.0, budget_s=60)) == stats.OPERATIONS_MAX
    )


def test_a_fixed_number_of_operations_is_kept() -> None:
    seen: list[int] = []
    stats.alone(steady(1.0, seen), Plan(samples=3, operations=5, budget_s=60))
    assert seen == [5] * 4  # one of them warms up


@pytest.mark.parametrize(("budget_s", "samples"), [(0.0, 3), (2.5, 3), (4.5, 5), (60.0, 10)])
def test_budget_ends_the_samples_but_never_before_three(budget_s: float, samples: int) -> None:
    halves: list[int] = []  # each lasts half a second
    plan = Plan(samples=10, operations=1, budget_s=budget_s)
    operation = steady(0.5, halves)
    found = stats.paired(operation, operation, plan, clock=lambda: 0.5 * len(halves))
    assert found.ours.repetitions == samples


def test_a_sample_prepares_before_and_does_not_time_it() -> None:
    events: list[str] = []

    def run(_count: int) -> float:
        events.append("run")
        return 4.0

    operation = Operation(run, prepare=lambda count: events.append(f"prepare {count}"))
    assert operation.sample(2) == 2.0
    assert events == ["prepare 2", "run"]


def test_the_collector_is_off_in_a_sample_and_as_before_afterwards() -> None:
    inside: list[bool] = []
    operation = Operation(lambda _count: inside.append(gc.isenabled()) or 1.0)
    operation.sample(1)
    assert inside == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        operation.sample(1)
        assert not gc.isenabled()
    finally:
        gc.enable()


# -- aims and rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aim", "ours", "ratio", "met"),
    [
        (Aim(kind="ratio", bound=1.5), 9.0, 1.5, True),
        (Aim(kind="ratio", bound=1.5), 9.0, 1.51, False),
        (Aim(kind="ratio", bound=1.5), 9.0, None, False),
        (Aim(kind="bandwidth", bound=0.8), 9.0, 1.25, True),  # 1.25 times as long: 0.8 of the bandwidth
        (Aim(kind="bandwidth", bound=0.8), 9.0, 1.26, False),
        (Aim(kind="seconds", bound=1e-4), 1e-4, 50.0, True),
        (Aim(kind="seconds", bound=1e-4), 1.1e-4, 0.5, False),
    ],
)
def test_an_aim_is_met_at_its_bound_and_not_beyond(
    aim: Aim, ours: float, ratio: float | None, met: bool
) -> None:
    ratio_summary = None if ratio is None else summary(ratio)
    assert aim.met(summary(ours), ratio_summary) is met


def test_a_row_without_an_aim_or_a_result_has_no_verdict() -> None:
    aim = Aim(kind="seconds", bound=1.0)
    assert Row(name="x", operation="x", ours=summary(1.0)).met is None
    assert Row(name="x", operation="x", aim=aim, skipped="no memory").met is None
    assert Row(name="x", operation="x", ours=summary(1.0), aim=aim).met is True


def test_messages_of_an_operation_are_differences_of_the_request_counters_alone() -> None:
    before = {"read_requests": 10, "free_messages": 1, "control_messages": 5, "messages_served": 7}
    after = {
        "read_requests": 30,
        "free_messages": 2,
        "control_messages": 9,
        "messages_served": 99,
        "decodes": 4,
    }
    assert rows.messages_between(before, after, 20) == {"read_requests": 1.0, "free_messages": 0.05}
    assert rows.messages_between(before, before, 20) == {}


@pytest.mark.parametrize(
    "error", [peers.Unavailable("not built"), OutOfMemoryError(detail="full"), OSError("gone")]
)
def test_a_group_that_ends_early_keeps_its_rows_and_says_why(error: Exception) -> None:
    def group(_bench: rows.Bench) -> Iterator[Row]:
        yield Row(name="first", operation="first", ours=summary(1.0))
        raise error

    found = micro.run_group("some", group, None)  # type: ignore[arg-type]
    assert [row.name for row in found] == ["first", "some"]
    assert type(error).__name__ in found[1].skipped


def test_a_mistake_in_a_group_is_not_hidden() -> None:
    def group(_bench: rows.Bench) -> Iterator[Row]:
        yield Row(name="first", operation="first")
        raise KeyError("a typing error")

    with pytest.raises(KeyError):
        micro.run_group("some", group, None)  # type: ignore[arg-type]


# -- the report ----------------------------------------------------------------------------------------


def shown(*lines: Row) -> str:
    console = Console(width=report.WIDTH_MIN, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    report.show(Report(machine=FACTS, quick=True, seconds=1.5, rows=list(lines)), console)
    console.file.close()
    return console.export_text()


def test_table_shows_ours_limit_ratio_aim_verdict_and_messages() -> None:
    pair = stats.from_samples([3e-6] * 5, [2e-6] * 5)
    text = shown(
        Row(
            name="a-row",
            operation="an operation",
            limit_name="a limit",
            ours=pair.ours,
            limit=pair.limit,
            ratio=pair.ratio,
            aim=Aim(kind="ratio", bound=1.3),
            messages={"read_requests": 1.0, "free_messages": 0.02},
            notes=["seen once"],
        )
    )
    wanted = ("an operation", "/ a limit", "a-row", "3 us", "2 us", "x5", "1.50x", "<= 1.3x", "no", "1 read")
    for part in (
        *wanted,
        "0.02 free",
        "a-row: seen once",
        "a processor",
        "2 cores",
        "0123456789ab",
        "2026-01-01",
    ):
        assert part in text, part


def test_bandwidth_rows_show_bandwidths_and_their_ratio_the_other_way_round() -> None:
    pair = stats.from_samples([0.02] * 3, [0.016] * 3)
    row = Row(
        name="stream",
        operation="stream",
        ours=pair.ours,
        limit=pair.limit,
        ratio=pair.ratio,
        aim=Aim(kind="bandwidth", bound=0.75),
        bytes=2**26,
    )
    text = shown(row)
    for part in ("3.125 GiB/s", "3.906 GiB/s", "0.800x", ">= 0.75x", "yes"):
        assert part in text, part


def test_a_row_that_did_not_run_is_shown_with_its_reason() -> None:
    text = shown(
        Row(name="big", operation="read 1 GiB", aim=Aim(kind="seconds", bound=1e-4), skipped="heap too small")
    )
    assert "read 1 GiB" in text
    assert "heap too small" in text


def test_json_holds_every_field_and_the_verdict() -> None:
    row = Row(name="a", operation="a", ours=summary(2.0), aim=Aim(kind="seconds", bound=1.0), messages={})
    skipped = Row(name="b", operation="b", skipped="no")
    document = json.loads(
        report.to_json(Report(machine=FACTS, quick=False, seconds=1.0, rows=[row, skipped]))
    )
    assert [entry["met"] for entry in document["rows"]] == [False, None]
    assert document["rows"][0]["ours"] == {
        "median": 2.0, "mad": 0.0, "p10": 2.0, "p90": 2.0, "repetitions": 1, "operations": 1,
    }  # fmt: skip
    assert document["machine"]["commit"] == FACTS.commit
    assert document["rows"][1]["skipped"] == "no"


@pytest.mark.parametrize(
    ("messages", "text"),
    [(None, ""), ({}, "0"), ({"submit_messages": 1.0, "complete_messages": 1.0}, "1 submit\n1 complete")],
)
def test_uncounted_messages_are_not_shown_as_none_sent(messages: dict[str, float] | None, text: str) -> None:
    assert report.messages_text(messages) == text


# -- where it ran, and partners ------------------------------------------------------------------------


def test_processor_name_is_read_from_the_kernel_and_else_is_the_architecture(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert machine_facts.processor_name(tmp_path) == os.uname().machine
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert machine_facts.processor_name(tmp_path) == "Some CPU @ 2 GHz"


def test_commit_is_named_inside_a_checkout_with_a_mark_when_changed_and_empty_outside(tmp_path: Path) -> None:
    assert machine_facts.commit_of(tmp_path) == ""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    commit = machine_facts.commit_of(tmp_path)
    assert len(commit) == 12
    (tmp_path / "file").write_text("two")
    assert machine_facts.commit_of(tmp_path) == commit + "+"


def test_a_helper_is_found_beside_the_package_or_in_the_build_folder_and_else_named(tmp_path: Path) -> None:
    module = tmp_path / "python/drust/bench/peers.py"
    with pytest.raises(peers.Unavailable, match="native_read"):
        peers.find_helper("native_read", module)
    built = tmp_path / "bench/native_read"
    built.parent.mkdir()
    built.touch()
    assert peers.find_helper("native_read", module) == built
    installed = module.parent / "bin/native_read"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert peers.find_helper("native_read", module) == installed


def test_a_helper_that_fails_says_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "helper"
    good = '[ "$1" = ok ] && { echo \'{"median_ns": 5, "p10_ns": 4, "p90_ns": 6}\'; exit 0; }'
    helper.write_text(f"#!/bin/sh\n{good}\necho broken pipe >&2\nexit 1\n")
    helper.chmod(0o755)
    monkeypatch.setattr(peers, "find_helper", lambda name: tmp_path / name)
    assert peers.run_helper("helper", "ok") == peers.HelperResult(median_ns=5.0, p10_ns=4.0, p90_ns=6.0)
    with pytest.raises(peers.Unavailable, match="broken pipe"):
        peers.run_helper("helper")


def test_the_futex_partner_runs_calls_in_another_process_and_ends() -> None:
    partner = peers.FutexPartner()
    try:
        other = partner.call(os.getpid)
        assert other != os.getpid()
        assert partner.call(pow, 2, 10) == 1024
        with pytest.raises(ValueError, match="fit"):
            partner.call(len, b"x" * 5000)
    finally:
        partner.close()
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


# -- whole runs ----------------------------------------------------------------------------------------


def run_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "drust.bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def whole_run() -> dict[str, Any]:
    """The rows of a quick run of everything, by name."""
    finished = run_command("micro", "--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    return {row["name"]: row for row in document["rows"]}


@pytest.mark.slow
def test_a_quick_run_measures_every_operation_of_the_cost_model(whole_run: dict[str, Any]) -> None:
    assert {name: row["skipped"] for name, row in whole_run.items() if row["skipped"]} == {}
    assert {
        "borrow-dict", "borrow-array", "borrow-mut-dict", "borrow-mut-array", "same-host-read-1mib",
        "same-host-read-64mib", "same-host-read-1gib", "remote-read-512-native", "remote-read-512",
        "remote-read-64m-native", "remote-read-64m", "cached-remote-read", "spawn", "spawn-pool",
        "spawn-remote", "spawn-lend", "spawn-lend-pickle", "spawn-lend-mut", "spawn-lend-mut-pickle",
        "lend-record",
        "one-server-program", "allocate-warm", "allocate-cold",
        *(f"frame-{what}-{width}" for what in ("borrow", "encode", "column") for width in (10, 100, 1000)),
        *(f"frame-borrow-{width}-direct" for width in (10, 100, 1000)),
    } == set(whole_run)  # fmt: skip


@pytest.mark.slow
def test_message_counts_are_those_of_the_protocol(whole_run: dict[str, Any]) -> None:
    """One's own partition: none. A first remote read: one. A remote task: a submit and a completion."""
    silent = (
        "borrow-dict",
        "borrow-mut-array",
        "same-host-read-1mib",
        "cached-remote-read",
        "spawn",
        "spawn-lend",
        "spawn-lend-mut",
        "lend-record",
        "allocate-warm",
    )
    assert {name: whole_run[name]["messages"] for name in silent} == {name: {} for name in silent}
    assert whole_run["remote-read-512"]["messages"] == {"read_requests": 1.0}
    remote = whole_run["spawn-remote"]["messages"]
    assert (remote["submit_messages"], remote["complete_messages"]) == (1.0, 1.0)


def test_only_the_rows_asked_for_are_run_and_a_missed_aim_is_no_failure() -> None:
    finished = run_command("micro", "--quick", "--only", "borrow")
    assert finished.returncode == 0, finished.stderr
    assert "borrow-dict" in finished.stdout
    assert "spawn" not in finished.stdout


def test_a_row_that_does_not_exist_is_refused_with_the_ones_that_do() -> None:
    finished = run_command("micro", "--only", "borow")
    assert finished.returncode == 2
    assert "cached-remote-read" in finished.stderr


@pytest.mark.slow
def test_a_quick_run_of_the_tasks_measures_streams_and_names_what_is_not_installed() -> None:
    finished = run_command("tasks", "--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    rows = {row["name"]: row for row in json.loads(finished.stdout)["rows"]}
    alone = {"spawn", "spawn-pool", "spawn-remote"}
    streams = {"stream", "stream-remote", "stream-executor", "stream-unordered", "map"}
    streams |= {"stream-many", "stream-many-remote"}
    assert alone | streams <= set(rows)
    for name, row in rows.items():
        assert (not row["skipped"]) or (name in ("ray", "dask") and "not installed" in row["skipped"])
    assert rows["stream"]["messages"] == {}
    assert rows["stream-remote"]["messages"]["submit_messages"] == 1.0
    assert rows["stream-many-remote"]["messages"]["submit_messages"] <= 1 / 100
