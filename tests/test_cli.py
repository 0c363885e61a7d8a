"""The command line: what each command takes, prints, and ends with."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import drust
from drust import cli
from drust.cli import script as script_module
from drust.cli import sessions
from drust.errors import BorrowMutError, DrustError, InternalError, ServerLostError
from drust.server import joining, messages

Drust = Callable[..., "subprocess.CompletedProcess[str]"]
Write = Callable[[str], str]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "drust", *words]


def drust_command(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def script(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(text)
        return str(path)

    return write


# -- the command itself ----------------------------------------------------------------------------------
def test_help_lists_every_command_and_imports_nothing_slow() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from drust.cli import main;"
        "print(CliRunner().invoke(main, ['--help']).output, *sorted(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    for word in ("bench", "demo", "run", "status"):
        assert f"\n  {word} " in output
    for module in ("numpy", "rich", "polars", "msgspec"):
        assert f" {module} " not in output


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(cli.main, ["--version"]).output == f"drust {drust.__version__}\n"


def test_bench_is_a_command_of_its_own() -> None:
    result = CliRunner().invoke(cli.main, ["bench", "--help"])
    assert result.exit_code == 0
    assert "micro" in result.output


@pytest.mark.parametrize(
    "words", [["fly"], ["run"], ["run", "no-such-script.py"], ["demo", "--servers", "two"]]
)
def test_a_wrong_command_line_ends_with_2(words: list[str]) -> None:
    assert CliRunner().invoke(cli.main, words).exit_code == 2


@pytest.mark.parametrize("error", [ServerLostError(server="server 1"), BorrowMutError(holder="worker 3")])
def test_an_error_of_drust_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: DrustError) -> None:
    monkeypatch.delenv("DRUST_LOG", raising=False)
    monkeypatch.setattr(sessions, "show", raiser(error))
    result = CliRunner().invoke(cli.main, ["status"])
    assert result.exit_code == 1
    assert result.output == f"Error: {error}\n"


def test_with_drust_log_debug_an_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUST_LOG", "debug")
    monkeypatch.setattr(sessions, "show", raiser(ServerLostError()))
    assert isinstance(CliRunner().invoke(cli.main, ["status"]).exception, ServerLostError)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "show", raiser(InternalError()))
    assert isinstance(CliRunner().invoke(cli.main, ["status"]).exception, InternalError)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sessions, "show", raiser(ModuleNotFoundError("No module named 'polars'", name="polars"))
    )
    result = CliRunner().invoke(cli.main, ["status"])
    assert result.exit_code == 1
    assert "polars" in result.output
    assert "pip install 'drust[demo]'" in result.output
    monkeypatch.setattr(sessions, "show", raiser(ModuleNotFoundError("ours", name="drust._core")))
    assert isinstance(CliRunner().invoke(cli.main, ["status"]).exception, ModuleNotFoundError)


def test_interrupting_a_command_ends_it_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "show", raiser(KeyboardInterrupt()))
    result = CliRunner().invoke(cli.main, ["status"])
    assert result.exit_code == 130
    assert result.output == ""


def test_a_demo_on_no_server_says_what_is_possible() -> None:
    result = CliRunner().invoke(cli.main, ["demo", "--servers", "0"])
    assert result.exit_code == 1
    assert "servers= is 0; expected a whole number from 1 to" in result.output


def raiser(error: BaseException) -> Callable[..., None]:
    def show(**options: object) -> None:
        raise error

    return show


# -- run -------------------------------------------------------------------------------------------------
def test_a_script_sees_its_arguments_and_itself_as_main(script: Write) -> None:
    path = script("import sys; print(__name__, sys.argv[1:], sys.modules['__main__'].__dict__ is globals())")
    result = drust_command("run", "--servers", "1", path, "in.csv", "--rate", "2", "-v", "--workers", "1")
    assert result.stdout == "__main__ ['in.csv', '--rate', '2', '-v'] True\n"
    result = drust_command("run", path, "--", "--workers", "9", "--json")
    assert result.stdout == "__main__ ['--workers', '9', '--json'] True\n"


def test_a_script_imports_its_neighbours(script: Write, tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_script.py").write_text("WORD = 'here'")
    result = drust_command("run", script("import neighbour_of_script; print(neighbour_of_script.WORD)"))
    assert result.stdout == "here\n"


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [("None", 0, ""), ("0", 0, ""), ("3", 3, ""), ("True", 1, ""), ("'no'", 1, "no\n")],
)
def test_the_exit_status_is_the_scripts(script: Write, code: str, status: int, text: str) -> None:
    result = drust_command("run", script(f"import sys; sys.exit({code})"))
    assert (result.returncode, result.stderr) == (status, text)


def test_an_uncaught_exception_shows_a_traceback_that_begins_at_the_script(script: Write) -> None:
    path = script("def f():\n    raise ValueError('in the script')\nf()\n")
    result = drust_command("run", path)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f'Traceback (most recent call last):\n  File "{path}", line 3, in <module>\n'
    )
    assert result.stderr.endswith("ValueError: in the script\n")


def test_a_script_that_cannot_be_compiled_shows_where(script: Write) -> None:
    result = drust_command("run", script("x = = 1\n"))
    assert result.returncode == 1
    assert "script.py" in result.stderr
    assert "SyntaxError" in result.stderr
    assert "runpy" not in result.stderr


@pytest.mark.parametrize(
    ("words", "setting"),
    [(("--servers", "0"), "servers= is 0"), (("--heap-bytes", "much"), "heap_bytes= is 'much'")],
)
def test_a_setting_that_cannot_be_used_is_named_and_nothing_starts(
    script: Write, words: tuple[str, str], setting: str
) -> None:
    result = drust_command("run", *words, script("print('started')"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert setting in result.stderr
    assert "Traceback" not in result.stderr


PROGRAM = """
import os, sys, drust
def where(): return os.getppid()
{start}
jobs = [drust.spawn(where, server=server) for server in range(2)]
print(len({{job.join() for job in jobs}}), drust.current_session().config.heap_bytes)
{end}
"""


@pytest.mark.parametrize(
    ("start", "end"),
    [("", ""), ("drust.init()", "drust.shutdown()"), ("session = drust.init()", "sys.exit(0)")],
    ids=["default", "shut down", "left running"],
)
def test_a_script_runs_on_the_cluster_that_was_asked_for(script: Write, start: str, end: str) -> None:
    path = script(PROGRAM.format(start=start, end=end))
    words = ("--servers", "2", "--workers", "1", "--heap-bytes", "64MiB", "--json")
    result = drust_command("run", path, *words)
    assert result.returncode == 0, result.stderr
    own, last = result.stdout.splitlines()
    assert own == f"2 {64 * 2**20}"
    document = json.loads(last)
    assert document["exit_status"] == 0
    (session,) = document["sessions"]
    assert [server["counters"]["tasks_run"] for server in session["servers"]] == [1, 1]


def test_a_script_that_never_starts_drust_has_no_session_in_its_json(script: Write) -> None:
    result = drust_command("run", "--json", script("import sys; sys.exit(4)"))
    assert result.returncode == 4
    assert json.loads(result.stdout)["sessions"] == []


def test_a_server_that_does_not_answer_at_the_end_is_no_failure_of_the_script(script: Write) -> None:
    program = "import os, drust; session = drust.init(); os.kill(session.pids[1], 9)"
    result = drust_command("run", "--servers", "2", "--workers", "1", "--json", script(program))
    assert result.returncode == 0, result.stderr
    home, lost = json.loads(result.stdout)["sessions"][0]["servers"]
    assert "counters" in home
    assert "server 1" in lost["error"]


def test_ctrl_c_ends_a_script_its_servers_and_its_tasks_without_a_word(script: Write) -> None:
    program = (
        "import drust, threading\n"
        "def forever(): threading.Event().wait()\n"
        "session = drust.init(); job = drust.spawn(forever)\n"
        "print(*session.pids, flush=True)\n"
        "job.join()\n"
    )
    words = command("run", "--servers", "2", "--workers", "1", script(program))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == ""
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_json_line_is_printed_after_an_interrupt_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: Write
) -> None:
    monkeypatch.setattr(sys, "argv", ["drust"])
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(script_module.os, "environ", dict(os.environ))
    assert script_module.run_script(script("raise KeyboardInterrupt"), [], {}, as_json=True) == 130
    assert json.loads(capsys.readouterr().out)["exit_status"] == 130


# -- status ----------------------------------------------------------------------------------------------
@pytest.fixture
def session(script: Write) -> "Iterator[tuple[int, list[int]]]":
    """A script that holds a session of two servers: its pid and theirs."""
    program = (
        "import drust, sys\n"
        "with drust.init(servers=2, workers=1) as session:\n"
        "    drust.spawn(sum, [1, 2], server=1).join()\n"
        "    print(*session.pids, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    words = [sys.executable, script(program)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, [int(word) for word in process.stdout.readline().split()]
        process.communicate(timeout=20)


def test_without_a_session_status_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "find_servers", list)
    result = CliRunner().invoke(cli.main, ["status"])
    assert (result.exit_code, result.output) == (0, sessions.NOTHING + "\n")
    result = CliRunner().invoke(cli.main, ["status", "--json"])
    assert json.loads(result.output) == {"sessions": []}


def test_status_shows_every_server_of_a_session(session: tuple[int, list[int]]) -> None:
    driver, pids = session
    result = drust_command("status", "--json")
    assert result.returncode == 0, result.stderr
    found = {each["driver_pid"]: each for each in json.loads(result.stdout)["sessions"]}
    servers = found[driver]["servers"]
    assert [server["status"]["pid"] for server in servers] == pids
    assert [server["status"]["counters"]["tasks_run"] for server in servers] == [0, 1]
    assert "script.py" in found[driver]["script"]
    text = drust_command("status").stdout
    assert f"process {driver}: " in text
    for pid in pids:
        assert f" {pid} " in text
    assert text.count(" 1/1 ") >= 2


def test_status_shows_a_server_that_does_not_answer_as_lost(session: tuple[int, list[int]]) -> None:
    driver, pids = session
    os.kill(pids[1], signal.SIGSTOP)  # one that was killed is started again at once
    try:
        result = drust_command("status", "--json")
        assert result.returncode == 0, result.stderr
        found = {each["driver_pid"]: each for each in json.loads(result.stdout)["sessions"]}
        home, lost = found[driver]["servers"]
        assert home["status"]["pid"] == pids[0]
        assert lost["status"] is None
        assert "server 1" in lost["error"]
        text = drust_command("status").stdout
        assert " lost " in text
        assert "server 1:" in text
    finally:
        os.kill(pids[1], signal.SIGCONT)


def test_a_session_that_ends_while_it_is_asked_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(pid: int) -> tuple[messages.Welcome, int]:
        raise ConnectionRefusedError

    monkeypatch.setattr(joining, "find_servers", lambda: [1])
    monkeypatch.setattr(joining, "join_server", gone)
    assert CliRunner().invoke(cli.main, ["status"]).output == sessions.NOTHING + "\n"


def test_the_command_line_of_a_process_is_shortened_and_empty_once_it_is_gone() -> None:
    words = [sys.executable, "-c", "input(print(flush=True))", "x" * 100]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it is what it was started as
        shown = sessions.command_of(process.pid)
        process.communicate(b"\n")
    assert len(shown) == sessions.COMMAND_MAX
    assert shown.startswith("python")
    assert "..." in shown
    assert shown.endswith("x" * 20)
    assert sessions.command_of(process.pid) == ""
