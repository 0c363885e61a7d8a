"""The parts of launching and supervising, each alone: channel, loop, output, token, the pool's policy."""

import functools
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from drust.config import Config
from drust.engines import local
from drust.errors import ConfigError, ServerStartError
from drust.server import log, messages, pool, process
from drust.server.channel import Channel, channel_pair
from drust.server.loop import Loop
from drust.server.output import LineForwarder
from drust.server.secret import choose_token, read_token_file, token_bytes

START = messages.Start(
    server=3,
    incarnation=1,
    heap_bytes=1,
    replicates_all=False,
    host="127.0.0.1",
    threads=1,
    workers=2,
    worker_threads=7,
    worker_environment={"DRUST_STRICT": "1"},
    token=bytes(32),
    driver_pid=os.getpid(),
    path=sys.path,
    directory=os.getcwd(),
    python_path=None,
    log_level="WARNING",
)


# -- channel -------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[Channel[messages.ToDriver], Channel[messages.ToServer]]]:
    driver, server_socket = channel_pair()
    server = Channel(server_socket, msgspec.msgpack.Decoder(messages.ToServer))
    yield driver, server
    driver.close()
    server.close()


def test_a_channel_carries_messages_and_descriptors(ends: Any) -> None:
    driver, server = ends
    with open(os.devnull, "rb") as file:
        assert server.send(messages.Ready(pid=1, port=2), [file.fileno()])
        message, descriptors = driver.receive()
        assert message == messages.Ready(pid=1, port=2)
        assert os.fstat(descriptors[0]).st_rdev == os.fstat(file.fileno()).st_rdev
        assert not os.get_inheritable(descriptors[0])
    os.close(descriptors[0])


def test_the_end_of_one_side_is_told_to_the_other_after_its_last_message(ends: Any) -> None:
    driver, server = ends
    server.send(messages.Joined())
    server.close()
    assert driver.receive() == (messages.Joined(), [])
    assert driver.receive() is None
    assert not driver.send(messages.Stop(grace_s=0.0))


def test_a_message_of_the_other_direction_is_refused(ends: Any) -> None:
    driver, server = ends
    driver.send(messages.Joined())
    with pytest.raises(msgspec.ValidationError):
        server.receive()


def test_a_full_channel_refuses_rather_than_waits(ends: Any) -> None:
    driver, server = ends
    server.set_blocking(False)
    text = "x" * 30_000
    with pytest.raises(BlockingIOError):
        all(server.send(messages.Output(stream=1, text=text)) for _ in range(1000))
    assert driver.receive()[0].text == text


def test_a_control_body_that_is_no_request_is_refused() -> None:
    assert messages.decode_request(messages.encode(messages.Largest(most=3))) == messages.Largest(most=3)
    for body in (
        b"",
        b"\xff\x00",
        messages.encode(START),
        msgspec.msgpack.encode({"type": "Largest", "most": "x"}),
    ):
        with pytest.raises(msgspec.DecodeError):
            messages.decode_request(body)


# -- loop ----------------------------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_the_loop_runs_timers_in_order_and_not_the_cancelled_ones(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.02, loop.stop)
    loop.call_later(0.01, lambda: seen.append("second"))
    loop.call_later(0.0, lambda: seen.append("first"))
    loop.call_later(0.005, lambda: seen.append("never")).cancel()
    loop.run()
    assert seen == ["first", "second"]


def test_a_call_from_another_thread_wakes_the_loop(loop: Loop) -> None:
    threads: list[str] = []

    def arrive() -> None:
        threads.append(threading.current_thread().name)
        loop.stop()

    other = threading.Thread(target=lambda: loop.post(arrive))
    other.start()
    loop.run()
    other.join()
    assert threads == [threading.current_thread().name]


def test_a_watch_ended_by_an_earlier_callback_of_the_round_is_not_called(loop: Loop) -> None:
    first, second = socket.socketpair()
    called: list[int] = []

    def look(end: socket.socket, other: socket.socket) -> None:
        called.append(end.fileno())
        loop.unwatch(other.fileno())
        loop.stop()

    for end, other in ((first, second), (second, first)):
        end.send(b"x")
        loop.watch(end.fileno(), functools.partial(look, end, other))
    loop.run()
    first.close()
    second.close()
    assert len(called) == 1


# -- output --------------------------------------------------------------------------------------------------


def test_only_whole_lines_are_passed_on_each_with_its_prefix() -> None:
    texts: list[str] = []
    forwarder = LineForwarder("[w] ", texts.append)
    forwarder.feed(b"on")
    assert texts == []
    forwarder.feed(b"e\ntwo\nthr")
    assert texts == ["[w] one\n[w] two\n"]
    forwarder.finish()
    assert texts[1:] == ["[w] thr\n"]
    forwarder.finish()
    assert len(texts) == 2


def test_long_lines_are_cut_and_fit_the_channel_and_foreign_bytes_are_shown() -> None:
    texts: list[str] = []
    forwarder = LineForwarder("", texts.append)
    forwarder.feed(b"\xff" * 200_000 + b"\n" + b"a\n" * 100_000)
    assert "".join(texts).replace("\n", "") == "\ufffd" * 200_000 + "a" * 100_000
    for text in texts:
        assert len(messages.encode(messages.Output(stream=1, text=text))) < 128 * 1024


# -- token, log, words ---------------------------------------------------------------------------------------


def test_a_token_file_only_its_owner_can_read_is_accepted_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("open sesame\n")
    path.chmod(0o600)
    assert choose_token(None, {"DRUST_TOKEN_FILE": str(path)}) == "open sesame"
    for mode in (stat.S_IRGRP, stat.S_IROTH, stat.S_IWOTH):
        path.chmod(0o600 | mode)
        with pytest.raises(ConfigError, match="DRUST_TOKEN_FILE"):
            read_token_file(path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(ConfigError):
        read_token_file(path)
    with pytest.raises(ConfigError):
        read_token_file(tmp_path / "absent")


def test_a_token_is_32_bytes_of_its_text_and_never_the_same_by_chance() -> None:
    assert choose_token("given", {}) == "given"
    assert choose_token(None, {}) != choose_token(None, {})
    assert len(token_bytes("given")) == 32
    assert token_bytes("given") == token_bytes("given") != token_bytes("Given")


def test_the_log_level_is_warning_unless_drust_log_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRUST_LOG", raising=False)
    assert log.level_name() == "WARNING"
    monkeypatch.setenv("DRUST_LOG", "debug")
    assert log.level_name() == "DEBUG"
    monkeypatch.setenv("DRUST_LOG", "nonsense")
    assert log.level_name() == "WARNING"


def test_how_a_process_ended_is_said_in_words() -> None:
    assert process.describe_exit(3) == "exit status 3"
    assert process.describe_exit(-9) == "killed by SIGKILL"
    assert process.describe_exit(-64) == "killed by signal 64" or "SIG" in process.describe_exit(-64)


def test_workers_share_the_processors_unless_told_and_never_get_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DRUST_TOKEN", "secret secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("POLARS_MAX_THREADS", raising=False)
    environment = process.worker_environment(START)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["POLARS_MAX_THREADS"] == "7"
    assert environment["DRUST_STRICT"] == "1"
    assert "secret secret" not in environment.values()


# -- the pool's policy, with programs that are no workers ----------------------------------------------------


class _Plane:
    """What the pool asks of a ServerPlane."""

    def __init__(self) -> None:
        self.memfd = os.memfd_create("partition")
        self.tasks_run = 0
        self.lost_tasks = 0
        self.reaped: list[tuple[int, int]] = []
        self.running: Callable[[], int] = lambda: 0

    def processes(self) -> list[dict[str, int]]:
        return [{"slot": 7, "generation": 9, "pid": self.running()}, {"slot": 8, "generation": 1, "pid": 1}]

    def reap(self, slot: int, generation: int, pid: int, reason: str) -> int:
        self.reaped.append((slot, generation))
        return self.lost_tasks

    def tend(self) -> int:
        return 0

    def counters(self) -> dict[str, int]:
        return {"tasks_run": self.tasks_run}


@pytest.fixture
def staged(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a pool whose workers are shell scripts, until `until(report)` is true of some report."""
    plane = _Plane()

    def run(script: str, until: Callable[[Any], bool], workers: int = 1) -> SimpleNamespace:
        monkeypatch.setattr(process, "python_command", lambda: ["/bin/sh", "-c", script])
        reports: list[Any] = []

        def report(message: messages.Message) -> None:
            reports.append(message)
            if until(message):
                loop.stop()

        start = msgspec.structs.replace(START, workers=workers)
        staff = pool.Pool(loop, plane, start, report)
        plane.running = lambda: staff.places[0].process.pid if staff.places[0].process else 0
        staff.fill()
        limit = loop.call_later(20, loop.stop)
        loop.run()
        assert limit.callback, "nothing of the kind was reported"
        loop._stopped = False
        return SimpleNamespace(pool=staff, reports=reports, plane=plane)

    before = set(os.listdir("/proc/self/fd"))
    yield run
    os.close(plane.memfd)
    assert len(os.listdir("/proc/self/fd")) <= len(before), "a worker's descriptors were left open"


def _stop(stage: SimpleNamespace, loop: Loop) -> None:
    stage.pool.stop(0.0, loop.stop)
    loop.run()


def test_what_workers_print_is_reported_by_stream_with_server_and_worker(staged: Any, loop: Loop) -> None:
    seen: list[int] = []

    def is_enough(message: messages.Output) -> bool:
        seen.append(message.stream)
        return len(seen) == 2

    stage = staged("echo out; echo err >&2; exec sleep 60", is_enough)
    by_stream = {report.stream: report.text for report in stage.reports}
    assert by_stream == {1: "[server 3 worker 0] out\n", 2: "[server 3 worker 0] err\n"}
    _stop(stage, loop)


def test_what_a_worker_printed_last_arrives_before_its_loss(staged: Any, loop: Loop) -> None:
    stage = staged("printf last; kill -11 $$", lambda message: isinstance(message, messages.WorkerLost))
    output, lost = stage.reports[:2]
    assert output.text.endswith("last\n")
    assert lost.reason == "killed by SIGSEGV"
    _stop(stage, loop)


def test_a_dead_worker_is_reaped_and_replaced(staged: Any, loop: Loop) -> None:
    outputs: list[str] = []

    def is_enough(message: messages.Message) -> bool:
        if isinstance(message, messages.Output):
            outputs.append(message.text)
        return len(outputs) == 2

    stage = staged("echo $$; exec sleep 0.05", is_enough)
    assert outputs[0] != outputs[1]
    assert stage.plane.reaped == [(7, 9)]  # its slot, and not the other process's
    assert stage.pool.places[0].deaths == 1
    _stop(stage, loop)


def test_the_reaper_is_told_how_a_worker_ended(staged: Any, loop: Loop) -> None:
    told: list[str] = []

    def reap(self: _Plane, slot: int, generation: int, pid: int, reason: str) -> int:
        told.append(reason)
        return 0

    original = _Plane.reap
    try:
        _Plane.reap = reap  # type: ignore[method-assign]
        stage = staged("kill -6 $$", lambda message: isinstance(message, messages.WorkerLost))
    finally:
        _Plane.reap = original  # type: ignore[method-assign]
    assert told == ["killed by SIGABRT"]
    assert stage.reports[-1].reason == "killed by SIGABRT"
    _stop(stage, loop)


def test_a_reaper_that_fails_once_goes_on_with_the_next(staged: Any, loop: Loop) -> None:
    deaths: list[Any] = []

    def is_enough(message: messages.Message) -> bool:
        deaths.append(message)
        return len(deaths) == 2

    def reap(self: _Plane, slot: int, generation: int, pid: int, reason: str) -> int:
        self.reaped.append((slot, generation))
        if len(self.reaped) == 1:
            raise RuntimeError("a peer sent nonsense")
        return 1

    original = _Plane.reap
    try:
        _Plane.reap = reap  # type: ignore[method-assign]
        stage = staged("exit 3", is_enough)
    finally:
        _Plane.reap = original  # type: ignore[method-assign]
    assert [death.lost_tasks for death in deaths] == [0, 1]
    _stop(stage, loop)


@pytest.mark.parametrize("continued", [False, True])
def test_a_stopped_worker_is_ended_after_a_while_unless_it_is_continued(
    staged: Any, loop: Loop, monkeypatch: pytest.MonkeyPatch, continued: bool
) -> None:
    monkeypatch.setattr(pool, "STOPPED_MAX_S", 0.3)
    staff: list[pool.Pool] = []
    original = pool.Pool.fill

    def fill(each: pool.Pool) -> None:
        staff.append(each)
        original(each)

    monkeypatch.setattr(pool.Pool, "fill", fill)
    before = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, lambda *_: loop.post(lambda: staff[0].look_for_stopped()))
    go_on = "(sleep 0.1; kill -CONT $$) & " if continued else ""
    try:
        stage = staged(
            f"{go_on}kill -STOP $$; sleep 0.5; echo going on; exec sleep 60",
            lambda message: isinstance(message, messages.Output | messages.WorkerLost),
        )
    finally:
        signal.signal(signal.SIGCHLD, before)
    if continued:
        assert "going on" in stage.reports[-1].text
    else:
        assert stage.reports[-1].reason == "stopped for 0.3 s, then killed by SIGKILL"
    _stop(stage, loop)


def test_workers_that_die_without_a_task_are_given_up_after_a_few(staged: Any) -> None:
    stage = staged("exit 3", lambda message: isinstance(message, messages.WorkersGivenUp))
    given_up = stage.reports[-1]
    assert "exit status 3" in given_up.reason
    assert given_up.running == 0
    assert sum(isinstance(report, messages.WorkerLost) for report in stage.reports) == pool.DEATHS_MAX
    assert stage.pool.places[0].state == "given up"


def test_workers_that_die_of_their_tasks_are_always_replaced(staged: Any, loop: Loop) -> None:
    deaths: list[Any] = []

    def is_enough(message: messages.Message) -> bool:
        assert not isinstance(message, messages.WorkersGivenUp)
        deaths.append(message)
        return len(deaths) == pool.DEATHS_MAX + 3

    before = time.monotonic()
    stage = SimpleNamespace()
    original = _Plane.reap
    try:
        _Plane.reap = lambda self, *_: 1  # type: ignore[method-assign]
        stage = staged("exit 3", is_enough)
    finally:
        _Plane.reap = original  # type: ignore[method-assign]
    assert all(death.lost_tasks == 1 for death in deaths)
    assert time.monotonic() - before < 10
    _stop(stage, loop)


def test_a_worker_that_does_not_end_by_itself_is_ended_with_what_it_started(staged: Any, loop: Loop) -> None:
    stage = staged(
        "sleep 61 & echo $!; trap '' TERM; wait", lambda message: isinstance(message, messages.Output)
    )
    child = int(stage.reports[0].text.split()[-1])
    assert Path(f"/proc/{child}").exists()
    _stop(stage, loop)
    assert not stage.pool.places[0].process
    state = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().rpartition(") ")[2][0] not in "ZX":
        assert time.monotonic() < deadline
        os.sched_yield()


# -- starting that fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "reason"), [("exit 7", "exit status 7"), ("exec sleep 60", "did not answer within 0.3 s")]
)
def test_a_server_that_does_not_come_up_is_an_error_and_leaves_nothing(
    script: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "python_command", lambda: ["/bin/sh", "-c", script])
    spawned: list[Any] = []

    def spawn(number: int, original: Callable[[int], Any] = local._spawn) -> Any:
        spawned.append(original(number))
        return spawned[-1]

    monkeypatch.setattr(local, "_spawn", spawn)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ServerStartError, match=reason):
        local.LocalCluster.start(Config.read({}, servers=2, start_timeout_s=0.3))
    assert len(spawned) == 2
    assert all(server.child.returncode is not None for server in spawned)
    assert len(os.listdir("/proc/self/fd")) == len(before)
