"""Servers on this machine, whole: they start, are supervised, and end with their driver, whatever happens."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from drust import _core
from drust.config import Config
from drust.engines.local import LocalCluster
from drust.errors import AuthenticationError, ClusterError, ServerLostError, ServerStartError
from drust.runtime import KIND_DRIVER
from drust.server import joining, messages
from looking import wait_until

GONE_WITHIN_S = 2.0
SOON_S = 20.0


def settings(**arguments: Any) -> Config:
    return Config.read({}, **({"servers": 1, "workers": 1, "heap_bytes": 64 << 20} | arguments))


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def family(pids: "tuple[int, ...] | list[int]") -> list[int]:
    return [*pids, *(child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True))]


@contextmanager
def running(events: list[Any] | None = None, **arguments: Any) -> Iterator[LocalCluster]:
    cluster = LocalCluster.start(settings(**arguments), None if events is None else events.append)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def attached(cluster: LocalCluster, token: bytes | None = None) -> Iterator[_core.Runtime]:
    here = _core.Runtime.attach(cluster.detach_memfd(), KIND_DRIVER, token or cluster.token, os.getpid())
    try:
        yield here
    finally:
        here.close()


def ask(here: _core.Runtime, request: messages.Message, server: int = 0) -> Any:
    return messages.decode_reply(here.control(server, messages.encode(request)))


def attached_workers(here: _core.Runtime, count: int) -> list[messages.WorkerStatus]:
    """The workers of server 0, once `count` of them are there."""

    def look() -> list[messages.WorkerStatus] | None:
        workers = [row for row in ask(here, messages.Status()).workers if row.state == "attached"]
        return workers if len(workers) == count else None

    found: list[messages.WorkerStatus] = wait_until(look)
    return found


# -- start and end -------------------------------------------------------------------------------------------


def test_a_closed_cluster_leaves_no_process_no_descriptor_and_no_thread() -> None:
    gc.collect()
    descriptors, threads = os.listdir("/proc/self/fd"), threading.active_count()
    with running(servers=2, workers=2) as cluster:
        assert [row.server for row in cluster.endpoints] == [0, 1]
        assert len({row.port for row in cluster.endpoints}) == 2
        pids = wait_until(lambda: (found := family(cluster.pids)) and len(found) == 6 and found)
    assert not any(lives(pid) for pid in pids)
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert threading.active_count() == threads
    cluster.close()


def test_servers_are_out_of_reach_of_ctrl_c_and_ignore_it() -> None:
    with running() as cluster, attached(cluster) as here:
        workers = attached_workers(here, 1)
        for pid in (*cluster.pids, workers[0].pid):
            assert os.getsid(pid) != os.getsid(0)
            os.kill(pid, signal.SIGINT)
        assert ask(here, messages.Status()).pid == cluster.pids[0]
        assert attached_workers(here, 1)[0].pid == workers[0].pid


def test_two_clusters_on_one_machine_do_not_disturb_each_other() -> None:
    with running() as first, running() as second:
        assert first.token != second.token
        first.close()
        assert not lives(first.pids[0])
        with attached(second) as here:
            assert ask(here, messages.Status()).pid == second.pids[0]


def test_the_token_stands_in_no_argument_list_and_no_environment() -> None:
    with running(token="a secret nobody knows".replace(" ", "-")) as cluster:
        pids = wait_until(lambda: (found := family(cluster.pids)) and len(found) == 2 and found)
        for process in map(psutil.Process, pids):
            seen = " ".join([*process.cmdline(), *process.environ().values()])
            assert "a-secret" not in seen
            assert cluster.token.hex() not in seen


def test_a_host_that_is_not_ours_is_refused_with_the_servers_own_reason() -> None:
    with pytest.raises(ServerStartError, match=r"server 0 could not be started: \w+Error: "):
        LocalCluster.start(settings(host="192.0.2.1"))


def test_the_server_process_imports_neither_handles_nor_cloudpickle() -> None:
    unwanted = {"drust.handles", "cloudpickle"}
    code = f"import sys, drust.server.main, drust._core; print(*{unwanted} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout == b"\n"


# -- questions -----------------------------------------------------------------------------------------------


def test_status_tells_of_the_server_its_workers_and_the_endpoints() -> None:
    with running(servers=2, workers=2) as cluster, attached(cluster) as here:
        attached_workers(here, 2)
        for server in range(2):
            status = ask(here, messages.Status(), server)
            assert (status.server, status.pid, status.driver_pid) == (
                server,
                cluster.pids[server],
                os.getpid(),
            )
            assert status.endpoints == list(cluster.endpoints)
            assert status.usage["quota_bytes"] == 64 << 20
            assert [row.worker for row in status.workers] == [0, 1]
            assert status.rss_bytes > 0
        assert all(row.rss_bytes > 0 and row.cpu_s > 0 for row in ask(here, messages.Status()).workers)


def test_the_largest_blocks_are_listed_first_and_a_bad_question_is_refused() -> None:
    with running(workers=0) as cluster, attached(cluster) as here:
        pins = [here.allocate(7, b"", [size], []).publish() for size in (1 << 20, 3 << 20, 2 << 20)]
        rows = ask(here, messages.Largest(most=2)).blocks
        assert [row.pointer for row in rows] == [pins[1].pointer, pins[2].pointer]
        assert isinstance(messages.decode_reply(here.control(0, b"nonsense")), messages.Refused)
        assert ask(here, messages.Status()).server == 0
        del pins


def test_shutdown_over_the_wire_ends_a_server_and_its_workers() -> None:
    events: list[Any] = []
    with running(events, servers=2) as cluster, attached(cluster) as here:
        pids = wait_until(lambda: (found := family(cluster.pids[1:])) and len(found) == 2 and found)
        assert ask(here, messages.Shutdown(), 1) == messages.ShuttingDown()
        wait_until(lambda: not any(lives(pid) for pid in pids))
        wait_until(lambda: events)
        assert cluster.lost == {1: "exit status 0"}
        assert ask(here, messages.Status()).pid == cluster.pids[0]


def test_a_wrong_token_is_refused_and_the_right_one_accepted() -> None:
    with running(servers=2, workers=0) as cluster:
        copy = os.dup(cluster._memfd)
        with attached(cluster, bytes(32)) as here, pytest.raises(AuthenticationError):
            here.ping(1)
        here = _core.Runtime.attach(copy, KIND_DRIVER, cluster.token, os.getpid())
        here.ping(1)
        here.close()


def test_an_idle_server_uses_no_processor() -> None:
    with running(servers=2, workers=1) as cluster, attached(cluster) as here:
        attached_workers(here, 1)
        servers = [psutil.Process(pid) for pid in cluster.pids]

        def used_s() -> float:
            return float(sum(sum(server.cpu_times()[:2]) for server in servers))

        for server in range(2):
            ask(here, messages.Status(), server)  # what the first question imports
        before_s = used_s()
        threading.Event().wait(1.0)
        assert used_s() - before_s <= 0.05


# -- deaths --------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_reported_and_replaced() -> None:
    events: list[Any] = []
    with running(events, workers=2) as cluster, attached(cluster) as here:
        killed, other = attached_workers(here, 2)
        slots = len(here.processes())
        os.kill(killed.pid, signal.SIGKILL)
        wait_until(lambda: events)
        assert events[0] == messages.WorkerLost(
            server=0, worker=killed.worker, pid=killed.pid, reason="killed by SIGKILL", lost_tasks=0
        )
        wait_until(lambda: killed.pid not in [row.pid for row in attached_workers(here, 2)])
        after = attached_workers(here, 2)
        assert [row.deaths for row in after] == [1 - killed.worker, killed.worker]
        assert other.pid in [row.pid for row in after]
        assert len(here.processes()) == slots  # the dead one's slot was given back


def test_a_killed_server_is_noticed_its_workers_end_and_it_is_started_again() -> None:
    events: list[Any] = []
    with running(events, servers=2) as cluster, attached(cluster) as here:
        pids = wait_until(lambda: (found := family(cluster.pids[1:])) and len(found) == 2 and found)
        killed = cluster.pids[1]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not any(lives(pid) for pid in pids), GONE_WITHIN_S)
        wait_until(lambda: events)
        assert events[0] == messages.ServerLost(server=1, pid=killed, reason="killed by SIGKILL")
        assert cluster.lost == {1: "killed by SIGKILL"}
        here.ping(0)
        replaced = wait_until(
            lambda: [event for event in events if isinstance(event, messages.ServerReplaced)], 30.0
        )
        assert (replaced[0].server, replaced[0].by) == (1, 1)

        def answers() -> bool:
            try:
                here.ping(1)
            except ServerLostError:
                return False
            return True

        wait_until(answers)  # the new endpoint is on its way to this partition's table
        assert cluster.pids[1] != killed


_DRIVER = """
import os, threading, time
from drust.config import Config
from drust.engines.local import LocalCluster
cluster = LocalCluster.start(Config.read({}, servers=2, workers=1, heap_bytes=64 << 20))
print(*cluster.pids, flush=True)
"""


@contextmanager
def driver(then: str) -> "Iterator[tuple[subprocess.Popen[str], list[int]]]":
    """A script with a cluster, that does `then`; and all that the cluster started, once it is there."""
    command = [sys.executable, "-c", _DRIVER + then]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        servers = [int(word) for word in process.stdout.readline().split()]
        pids = wait_until(lambda: (found := family(servers)) and len(found) == 4 and found)
        try:
            yield process, pids
        finally:
            process.kill()


def test_everything_ends_when_the_driver_is_killed() -> None:
    with driver("time.sleep(60)") as (process, pids):
        process.kill()
        wait_until(lambda: not any(lives(pid) for pid in pids), GONE_WITHIN_S)


def test_everything_ends_when_the_driver_is_killed_and_a_child_it_forked_lives_on() -> None:
    with driver("print(os.fork(), flush=True); time.sleep(60)") as (process, pids):
        assert process.stdout
        child = max(
            int(process.stdout.readline()), int(process.stdout.readline())
        )  # the child itself prints 0
        process.kill()
        wait_until(lambda: not any(lives(pid) for pid in pids), GONE_WITHIN_S)
        assert lives(child)
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "end", ["os._exit(5)", "raise SystemExit(5)", "os.execv('/bin/sh', ['sh', '-c', 'exit 5'])"]
)
def test_everything_ends_when_the_driver_ends_without_closing(end: str) -> None:
    with driver(f"os.read(0, 1); {end}") as (process, pids):
        assert process.stdin
        process.stdin.close()
        assert process.wait(SOON_S) == 5
        wait_until(lambda: not any(lives(pid) for pid in pids), GONE_WITHIN_S)


def test_a_forked_child_that_closes_ends_nothing() -> None:
    with running() as cluster, attached(cluster) as here:
        child = os.fork()
        if not child:
            cluster.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert ask(here, messages.Status()).pid == cluster.pids[0]


def test_a_worker_ends_with_its_server_while_its_python_holds_the_lock() -> None:
    script = """
        import ctypes, os, sys
        from drust import _core
        read, write = os.pipe()
        child = os.fork()
        if child:
            os.close(read)
            print(child, flush=True)
            sys.stdin.readline()
            os._exit(0)
        os.close(write)
        _core.exit_on_eof(read)
        ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the interpreter lock
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        child = int(process.stdout.readline())
        assert lives(child)
        process.stdin.close()
        wait_until(lambda: not lives(child), GONE_WITHIN_S)


# -- joining -------------------------------------------------------------------------------------------------


def test_a_process_of_the_same_user_finds_and_joins_a_session_until_it_ends() -> None:
    with running(servers=2, workers=0) as cluster:
        assert cluster.pids[0] in joining.find_servers()
        assert cluster.pids[1] not in joining.find_servers()
        welcome, memfd = joining.join_server(cluster.pids[0])
        assert (welcome.token, welcome.endpoints) == (cluster.token, list(cluster.endpoints))
        assert not os.get_inheritable(memfd)
        here = _core.Runtime.attach(memfd, KIND_DRIVER, welcome.token, os.getpid())
        assert ask(here, messages.Status(), 1).pid == cluster.pids[1]
        here.close()
    assert cluster.pids[0] not in joining.find_servers()
    with pytest.raises(ConnectionError):
        joining.join_server(cluster.pids[0])


def test_what_a_joined_process_held_is_given_back_when_it_is_killed() -> None:
    script = """
        import os, sys
        from drust import _core
        from drust.server import joining
        welcome, memfd = joining.join_server(int(sys.argv[1]))
        here = _core.Runtime.attach(memfd, 2, welcome.token, os.getpid())
        print("here", flush=True)
        sys.stdin.read()
    """
    with running(workers=0) as cluster, attached(cluster) as here:
        before = len(here.processes())
        command = [sys.executable, "-c", textwrap.dedent(script), str(cluster.pids[0])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guest:
            assert guest.stdout
            assert guest.stdout.readline() == "here\n"
            assert len(here.processes()) == before + 1
            guest.kill()
            wait_until(lambda: len(here.processes()) == before)


def test_a_cluster_error_is_what_every_failure_to_start_is() -> None:
    assert issubclass(ServerStartError, ClusterError)
