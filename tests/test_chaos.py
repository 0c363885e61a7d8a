"""Processes that die in every way there is, anywhere: nothing is lost that the rules do not let go, nothing
is left, and the survivors go on.

Random programs under kills are drust.testing.chaos; here are its runs, and one by one the deaths that it does
not draw: of drivers, of a server of two (of one that is stopped, or killed by the kernel: test_faults.py).
`make soak` plays thousands of deaths, under new seeds: drust.testing.soak.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import drust
from drust import Box, ServerLostError
from drust.testing import account, chaos, faults, load, soak
from looking import shared_memory_files, wait_until

WAIT_S = 5.0  # every wait on what was lost ends within this


def pid() -> int:
    return os.getpid()


def total(rows: Any) -> float:
    return float(rows.sum())


def fill(rows: Any, number: int) -> None:
    rows[:] = number


# -- random programs ---------------------------------------------------------------------------------------


def play(seed: int, kills: int, servers: int, workers: int) -> chaos.Report:
    print(f"chaos: seed {seed}")
    report = chaos.run(seed, kills, servers, workers)
    print(report)
    return report


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("seed", "kills", "servers", "workers"), [(1, 60, 2, 5), (2, 30, 1, 5), (3, 30, 3, 2)]
)
def test_random_programs_survive_the_deaths_of_their_workers(seed, kills, servers, workers):
    report = play(seed, kills, servers, workers)
    assert report.deaths >= kills
    if servers == 2:
        assert report.never == []  # every kill point there is was passed


@pytest.mark.timeout(300)
def test_a_minute_of_random_load_and_deaths_agrees_with_its_model():
    print("load: seed 1")
    report = load.run(1, 60.0)
    print(report)
    assert report.deaths >= 20
    assert report.steps["client"] > report.steps["lost client"] > 0


def test_a_wrong_count_under_load_is_found(monkeypatch):
    monkeypatch.setattr(load, "check", partial(wrong_check, load.check))
    again = r"python -m drust\.testing\.load --seed 3 --seconds 0\.1"
    with pytest.raises(chaos.ChaosError, match=again) as failed:
        load.run(3, 0.1, servers=1, workers=1)
    assert "additions" in str(failed.value)


def wrong_check(check: Any, shared: load.Shared, ended: list[load.Done], lost: int) -> None:
    for done in ended:
        done.added += 1 + load.OPERATIONS * lost
    check(shared, ended, lost)


def test_a_soak_plays_until_enough_have_died_and_says_how_far_it_is(monkeypatch):
    played: list[tuple[int, ...]] = []

    def run(*arguments: int) -> chaos.Report:
        played.append(arguments)
        return chaos.Report(arguments[0], deaths=arguments[1] + 1)

    monkeypatch.setattr(chaos, "run", run)
    said: list[str] = []
    assert soak.run(7, 600, said.append) == 603
    assert [kills for _, kills, _, _ in played] == [250, 250, 100]
    assert len({seed for seed, _, _, _ in played}) == 3
    assert said[0] == "soak: seed 7, 600 kills in 3 plays"
    assert f"play 2 of 3 ({played[1][2]} servers, {played[1][3]} workers each)" in said[2]
    assert "502 of 600 kills so far" in said[2]
    first = list(played)
    soak.run(7, 600, said.append)
    assert played == first * 2


def test_a_soak_goes_on_after_a_failure_and_prints_the_command_that_plays_it_again(monkeypatch):
    played: list[tuple[int, ...]] = []

    def run(*arguments: int) -> chaos.Report:
        played.append(arguments)
        if len(played) == 2:
            raise chaos.ChaosError("it leaks")
        return chaos.Report(arguments[0], deaths=arguments[1])

    monkeypatch.setattr(chaos, "run", run)
    printed = CliRunner().invoke(soak.main, ["--seed", "7", "--kills", "600"])
    assert printed.exit_code == 1
    assert len(played) == 3
    assert "FAILED: play 2 of 3" in printed.output
    assert "it leaks" in printed.output


def test_the_command_that_a_failed_run_prints_plays_that_run(monkeypatch):
    """The words behind `chaos` in the message of tests/test_faults.py, given to the command itself."""
    played: list[tuple[int, ...]] = []
    monkeypatch.setattr(chaos, "run", lambda *arguments: played.append(arguments) or chaos.Report(0))
    words = "--seed 4711 --kills 3 --servers 2 --workers 3 --times 5"
    assert CliRunner().invoke(chaos.main, words.split()).exit_code == 0
    assert played == [(4711, 3, 2, 3)] * 5


# -- the death of a server ---------------------------------------------------------------------------------

SERVER_POINTS = ("server.body.arrived", "server.execute.after", "server.reply.sent", "heap.publish.after")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", SERVER_POINTS)
def test_a_server_that_dies_in_the_middle_of_a_request_is_an_error_and_the_other_goes_on(point):
    with faults.Board() as board, drust.init(servers=2, workers=2, heap_bytes="256MiB") as session:
        chaos.wait_attached(session)
        here = [Box(np.full(40, number)) for number in range(4)]
        there = [drust.spawn(make, 5000, server=1).join() for _ in range(2)]
        before = account.take_at_rest(session)
        row = board.arm(session.pids[1], point, 3)
        started = time.monotonic()
        while board.fired(row) is None:
            assert time.monotonic() - started < 20, f"{point} was not passed"
            for box in here:
                with suppress(ServerLostError):
                    drust.spawn(fill, box.borrow_mut(), 7, server=1).join(timeout=WAIT_S)
        for box in there:
            asked = time.monotonic()
            with pytest.raises(ServerLostError, match="server 1"), box.borrow():
                pass
            assert time.monotonic() - asked < WAIT_S
        for box in here:  # some moved to server 1 with their last writer, and are lost with it
            with suppress(ServerLostError), box.borrow() as rows:
                assert len(set(rows.tolist())) == 1
        assert drust.spawn(total, Box(np.ones(9)).borrow(), server=0).join(timeout=WAIT_S) == 9
        leaked, _ = account.take(session).since(before)
        assert [block for block in leaked if block.server == 0 and block.nbytes > 1000] == []


def make(size: int) -> Box:
    return Box(np.ones(size))


# -- the death of a driver ---------------------------------------------------------------------------------

DRIVER = """
    import os, sys
    import drust
    from drust.testing import faults, chaos, programs
    from random import Random

    session = drust.init(servers=2, workers=1, heap_bytes="64MiB")
    chaos.wait_attached(session)
    workers = [pid for _, pid in chaos.attached(session)]
    print(*session.pids, *workers, flush=True)
    faults.arm_here("", nth=int(sys.argv[1]), action=sys.argv[2])
    random, cells = Random(int(sys.argv[1])), []
    while True:
        pending = [programs.draw(random, cells, number, 2) for number in range(4)]
        for each in pending:
            cells += each.settle()
"""


def names_left(pids: list[int]) -> list[str]:
    """Abstract sockets of these processes."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in lines for each in pids if line.endswith(f"@drust/{os.geteuid()}/{each}")]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("passing", "how"), [(3, "kill"), (500, "segfault"), (900, "exit"), (1300, "abort"), (2000, "kill")]
)
def test_nothing_is_left_of_a_driver_that_dies_at_any_kill_point(tmp_path, passing, how):
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    files = shared_memory_files()
    command = [sys.executable, str(script), str(passing), how]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    pids = [int(word) for word in run.stdout.split()]
    assert len(pids) == 4, run.stderr
    ended = {"kill": -signal.SIGKILL, "segfault": -signal.SIGSEGV, "abort": -signal.SIGABRT}
    assert run.returncode == ended.get(how, faults.EXIT_STATUS), run.stderr
    wait_until(lambda: all(faults.process_state(each) in ("", "Z", "X") for each in pids), WAIT_S)
    assert names_left(pids) == []
    assert shared_memory_files() <= files
