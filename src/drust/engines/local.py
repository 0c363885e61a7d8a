"""Servers on this machine, started by the script that uses them and ended with it: `drust.init()`'s default.

Each server is a child process in a session of its own (Ctrl-C reaches only the script), joined by a socket
pair: it brings the server what to do, token included, and takes back its port, the home partition's memfd,
and what workers print. The pair's end of file tells each side of the other's death, so `kill -9` of the
script ends everything.

    driver --Start--> server        all at once, then
    driver <--Ready-- server        port, memfd
    driver --Endpoints--> server    the whole table
    driver <--Joined-- server       in its partition; the server starts its workers, `start` returns

A server that is lost is replaced by its backup, or, where that has no replicas, started again: recovery.py.
"""

import atexit
import contextlib
import logging
import os
import select
import site
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from drust import machine
from drust.config import Config
from drust.engines.recovery import Recovery
from drust.engines.ring import Ring
from drust.errors import ServerStartError
from drust.server import log, messages, process
from drust.server.channel import Channel, channel_pair
from drust.server.loop import Loop
from drust.server.secret import choose_token, token_bytes

STOP_WITHIN_S = 2.0
GRACE_S = 0.3  # what workers get of it to end by themselves
RESTARTS_MAX = 3  # of one server within RESTARTS_WINDOW_S: what keeps ending is not started for ever
RESTARTS_WINDOW_S = 30.0
_SERVE_THREADS = 2
_NOT_FOR_WORKERS = frozenset({"DRUST_TOKEN", "DRUST_ADDRESS"})

Answer = TypeVar("Answer", bound=messages.Message)

_logger = logging.getLogger("drust.launch")
_clusters: "weakref.WeakSet[LocalCluster]" = weakref.WeakSet()  # for forked children; under the GIL


class _Server:
    """One server process, as its driver holds it."""

    def __init__(
        self, number: int, child: "subprocess.Popen[bytes]", channel: Channel[messages.ToDriver]
    ) -> None:
        self.number = number
        self.child = child
        self.channel = channel
        self.is_gone = False  # written by the thread that receives
        self.is_listening = True  # false while it is being started again; likewise


class LocalCluster:
    """Running servers. Made by `start`; `close` ends them, and so does the end of this process, however it
    comes.

    Attributes:
        token: the cluster's secret, 32 bytes.
        token_text: the same as text, for DRUST_TOKEN of whoever shall join.
        endpoints: where the servers listen, by number.
        home: the number of the server whose partition this process maps.
    """

    home = messages.HOME

    def __init__(self, config: Config, on_event: Callable[[messages.Event], None] | None) -> None:
        """Starts nothing: see `start`."""
        self.token_text = choose_token(config.token)
        self.token = token_bytes(self.token_text)
        self.endpoints: tuple[messages.Endpoint, ...] = ()
        self._config = config
        self._on_event = on_event
        self._owner_pid = os.getpid()
        self._servers: list[_Server] = []
        self._memfd = -1
        self._lost: dict[int, str] = {}
        self._restarted_s: deque[tuple[int, float]] = deque()
        self._ring: Ring | None = None
        self._recovery: Recovery | None = None
        self._servers_lock = threading.Lock()  # while a server is started again, and when closing begins
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._closing = False  # set once, under _close_lock; read by the thread
        self._closed = False  # under _close_lock
        self._close_lock = threading.Lock()

    @classmethod
    def start(
        cls, config: Config, on_event: Callable[[messages.Event], None] | None = None
    ) -> "LocalCluster":
        """Starts `config.servers` servers; returns when all listen and know each other. Workers start
        meanwhile.

        Cost: one process a server, all at once; four messages each on a socket pair.

        Args:
            config: servers, workers, heap_bytes, host, token, start_timeout_s.
            on_event: told of each worker or server lost, in a thread of this cluster. It must not call
            `close`.

        Raises:
            ServerStartError: a server could not start or took too long. Nothing is left running.
            ConfigError: the token file cannot be used.
        """
        log.configure_driver()
        cluster = cls(config, on_event)
        try:
            cluster._start_servers()
        except BaseException:
            cluster._kill_all()
            raise
        _clusters.add(cluster)
        atexit.register(cluster.close)
        return cluster

    @property
    def lost(self) -> dict[int, str]:
        """The servers that ended without being asked to, and how."""
        return dict(self._lost)

    @property
    def unprotected(self) -> list[int]:
        """The servers but home of whose values, though they have replicas, the next loss could take some."""
        return self._ring.unprotected if self._ring else []

    @property
    def pids(self) -> tuple[int, ...]:
        """The server processes, by number."""
        return tuple(server.child.pid for server in self._servers)

    def detach_memfd(self) -> int:
        """The home partition's memfd, the caller's to attach and close from now on. Once."""
        memfd, self._memfd = self._memfd, -1
        return memfd

    # -- starting --------------------------------------------------------------------------------------------

    def _start_servers(self) -> None:
        deadline_s = time.monotonic() + self._config.start_timeout_s
        for number in range(self._config.servers):
            self._servers.append(_spawn(number))
        for server in self._servers:
            server.channel.send(self._start_message(server.number))
        listening = [self._ready(server, deadline_s) for server in self._servers]
        self._ring = Ring(listening, self.home)
        self.endpoints = tuple(self._ring.table)
        for server in self._servers:
            server.channel.send(messages.Endpoints(endpoints=list(self.endpoints)))
        for server in self._servers:
            self._expect(server, messages.Joined, deadline_s)
        self._loop = Loop()
        restarts = self._config.replicas == 0
        self._recovery = Recovery(self._loop, self._ring, self, restarts=restarts)
        for server in self._servers:
            server.channel.set_blocking(False)
            self._watch(self._loop, server)
        self._thread = threading.Thread(target=self._loop.run, name="drust-launch", daemon=True)
        self._thread.start()

    def _start_message(self, number: int, incarnation: int = 1) -> messages.Start:
        config = self._config
        workers = config.workers * config.servers
        environment = config.environment()
        return messages.Start(
            server=number,
            incarnation=incarnation,
            heap_bytes=config.heap_bytes,
            replicates_all=config.replicas > 0,
            host=config.host,
            threads=_SERVE_THREADS,
            workers=config.workers,
            worker_threads=max(1, machine.cpu_count() // max(1, workers)),
            worker_environment={
                name: value for name, value in environment.items() if name not in _NOT_FOR_WORKERS
            },
            token=self.token,
            driver_pid=self._owner_pid,
            path=[entry or os.getcwd() for entry in sys.path],
            directory=os.getcwd(),
            python_path=os.environ.get("PYTHONPATH"),
            log_level=log.level_name(),
            load_period_s=config.load_period_s,
        )

    def _ready(self, server: _Server, deadline_s: float) -> tuple[str, int]:
        ready, descriptors = self._expect(server, messages.Ready, deadline_s)
        if descriptors:
            self._memfd = descriptors[0]
        return _reachable(self._config.host), ready.port

    def _expect(self, server: _Server, kind: type[Answer], deadline_s: float) -> tuple[Answer, list[int]]:
        """The server's next message, which must be of `kind`; waits until `deadline_s`."""
        poll = select.poll()
        poll.register(server.channel.fileno(), select.POLLIN)
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            raise _start_error(server.number, f"it did not answer within {self._config.start_timeout_s:g} s")
        received = server.channel.receive()
        if received is None:
            server.child.kill()
            raise _start_error(server.number, process.describe_exit(server.child.wait()))
        answer, descriptors = received
        if isinstance(answer, messages.Failed):
            raise _start_error(server.number, answer.reason)
        if not isinstance(answer, kind):
            raise _start_error(server.number, f"it answered {type(answer).__name__}, not {kind.__name__}")
        return answer, descriptors

    # -- running: in the thread ------------------------------------------------------------------------------

    def _watch(self, loop: Loop, server: _Server) -> None:
        loop.watch(server.channel.fileno(), lambda: self._receive(loop, server))

    def _receive(self, loop: Loop, server: _Server) -> None:
        try:
            received = server.channel.receive()
        except BlockingIOError:
            return
        if received is None:
            loop.unwatch(server.channel.fileno())
            self._server_gone(server)
            if all(each.is_gone for each in self._servers):
                loop.stop()
            return
        match received[0]:
            case messages.Output(stream=stream, text=text):
                _write(stream, text)
            case messages.WorkerLost() as event:
                _logger.warning(
                    "worker %d of server %d (pid %d) has ended: %s; tasks lost: %d",
                    event.worker, event.server, event.pid, event.reason, event.lost_tasks,
                )  # fmt: skip
                self._tell(event)
                self.send(self.home, messages.LookForUnnamed())
            case messages.Joined(keeps=keeps):
                if self._recovery:
                    self._recovery.joined(server.number, keeps)
            case messages.Fenced(turn=turn):
                if self._recovery:
                    self._recovery.fenced(server.number, turn)
            case messages.Protected() as done:
                if self._recovery:
                    self._recovery.protected(done)
            case messages.Ready(port=port):
                server.is_listening = True
                if self._recovery:
                    self._recovery.ready(server.number, _reachable(self._config.host), port)
            case messages.Failed(reason=reason):
                _logger.error("server %d could not be started again: %s", server.number, reason)
            case messages.WorkersGivenUp() as event:
                _logger.error(
                    "server %d starts no more workers (%d left): %s",
                    event.server,
                    event.running,
                    event.reason,
                )
                self._tell(event)
            case other:
                _logger.error("server %d sent an unexpected %s", server.number, type(other).__name__)

    def _server_gone(self, server: _Server) -> None:
        server.is_gone = True
        if self._closing:
            return
        server.child.kill()  # it closed its channel; there is no way back
        reason = process.describe_exit(server.child.wait())
        self._lost[server.number] = reason
        _logger.error("server %d (pid %d) is lost: %s", server.number, server.child.pid, reason)
        self.tell(messages.ServerLost(server=server.number, pid=server.child.pid, reason=reason))
        if self._recovery and server.number != self.home and server.is_listening:
            self._recovery.lost(server.number)

    # -- what the recovery asks of us: recovery.Cluster ------------------------------------------------------

    @property
    def living(self) -> list[int]:
        """The servers that answer."""
        return [server.number for server in self._servers if not server.is_gone and server.is_listening]

    def send(self, server: int, message: messages.Message) -> None:
        """One message to a server; a stuck one gets none."""
        with contextlib.suppress(BlockingIOError, OSError):
            self._servers[server].channel.send(message)

    def restart(self, server: int, incarnation: int) -> bool:
        """A new process for a lost server. False when closing, or after too many."""
        now_s = time.monotonic()
        while self._restarted_s and self._restarted_s[0][1] < now_s - RESTARTS_WINDOW_S:
            self._restarted_s.popleft()
        if sum(number == server for number, _ in self._restarted_s) >= RESTARTS_MAX:
            _logger.error("server %d ends as fast as it starts: it is not started again", server)
            return False
        self._restarted_s.append((server, now_s))
        with self._servers_lock:
            if self._closing or self._loop is None:
                return False
            try:
                started = _spawn(server)
            except ServerStartError as error:
                _logger.error("%s", error)
                return False
            started.is_listening = False
            started.channel.send(self._start_message(server, incarnation))
            started.channel.set_blocking(False)
            self._servers[server].channel.close()
            self._servers[server] = started
        self._watch(self._loop, started)
        return True

    def tell(self, event: messages.Event) -> None:
        """Tells the script's runtime of an event."""
        self._tell(event)

    def _tell(self, event: messages.Event) -> None:
        if self._on_event and not self._closing:
            try:
                self._on_event(event)
            except Exception:
                _logger.exception("a handler of cluster events failed")

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the servers, their workers and what these started; at most STOP_WITHIN_S, then they are
        killed.

        May be called again, from any thread but the one that tells events. In a forked child it only lets go.
        """
        with self._close_lock:
            if self._closed:
                return
            with self._servers_lock:
                self._closed = self._closing = True
            atexit.unregister(self.close)
            if os.getpid() == self._owner_pid:
                self._stop_all()
            self._kill_all()

    def _stop_all(self) -> None:
        for server in self._servers:
            if not server.is_gone:
                with contextlib.suppress(BlockingIOError):  # stuck, with a full socket: it is killed below
                    server.channel.send(messages.Stop(grace_s=GRACE_S))
        if self._thread:
            self._thread.join(STOP_WITHIN_S)  # it ends once every server has closed its channel

    def _kill_all(self) -> None:
        if os.getpid() == self._owner_pid:
            for server in self._servers:
                if not server.is_gone:
                    server.child.kill()  # its workers notice within milliseconds
            for server in self._servers:
                server.child.wait()
            if self._thread:
                self._thread.join()
        for server in self._servers:
            server.channel.close()
        if self._loop:
            self._loop.close()
        if self._memfd >= 0:
            os.close(self.detach_memfd())

    def _let_go_after_fork(self) -> None:
        """In a forked child: closes what would keep the servers from seeing the driver's end."""
        self._closed = self._closing = True
        self._close_lock = threading.Lock()  # another thread may have held it, or this one
        self._servers_lock = threading.Lock()
        self._kill_all()


def _forked() -> None:
    for cluster in list(_clusters):
        if not cluster._closed:
            cluster._let_go_after_fork()


os.register_at_fork(after_in_child=_forked)


def _spawn(number: int) -> _Server:
    channel, server_side = channel_pair()
    try:
        child = subprocess.Popen(
            [*process.python_command(), "-m", "drust.server", str(server_side.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[server_side.fileno()],
            start_new_session=True,
            env=_server_environment(),
        )
    except BaseException as error:
        channel.close()
        if isinstance(error, OSError):
            raise _start_error(number, str(error)) from error
        raise
    finally:
        server_side.close()
    return _Server(number, child, channel)


def _start_error(number: int, reason: str) -> ServerStartError:
    return ServerStartError(server=f"server {number}", reason=reason)


def _server_environment() -> dict[str, str]:
    """Ours without the token, and with a PYTHONPATH that finds this package if nothing else does."""
    environment = dict(os.environ)
    environment.pop("DRUST_TOKEN", None)
    root = str(Path(__file__).parents[2])
    if root in sys.path and root not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return environment


def _reachable(host: str) -> str:
    """The numeric address at which processes of this host reach a server listening at `host`."""
    address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def _write(stream: int, text: str) -> None:
    """Prints workers' lines where the script's own go, notebooks and capturing tests included."""
    target = sys.stdout if stream == 1 else sys.stderr
    with contextlib.suppress(AttributeError, OSError, ValueError):  # None or closed: nobody reads it
        target.write(text)
        target.flush()
