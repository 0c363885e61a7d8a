"""init and shutdown: a script's cluster, from its start to its end.

A script that never calls `init()` gets the default servers on first use. A session ends with its `with`
block, with `shutdown()`, or with the process, however that ends.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from drust import arrivals, runtime, shipping
from drust.config import Config
from drust.engines.local import LocalCluster
from drust.errors import ConfigError, ServerLostError
from drust.server import messages


class Session:
    """A running cluster that this script started. Made by `init()`; a context manager that ends it.

    Attributes:
        config: the settings it runs under.
    """

    def __init__(self, config: Config, cluster: LocalCluster) -> None:
        """Attaches this process to the cluster's home partition."""
        self.config = config
        self._cluster = cluster
        memfd = cluster.detach_memfd()
        try:
            runtime.attach(memfd, cluster.token, config, worker=False)
        except BaseException:
            cluster.close()
            raise
        runtime.watch(self._check)

    @property
    def servers(self) -> int:
        """How many servers there are."""
        return self.config.servers

    @property
    def pids(self) -> tuple[int, ...]:
        """The server processes, by number."""
        return self._cluster.pids

    def status(self, server: int) -> messages.ServerStatus:
        """How a server and its workers are: one round trip.

        Raises:
            ServerLostError: it does not answer.
        """
        reply = messages.decode_reply(runtime.current().control(server, messages.encode(messages.Status())))
        if not isinstance(reply, messages.ServerStatus):
            raise ServerLostError(server=f"server {server}", reason=str(reply))
        return reply

    def _check(self) -> None:
        reason = self._cluster.lost.get(self._cluster.home)
        if reason is not None:
            raise ServerLostError(
                object="this process's heap", server=f"server {self._cluster.home}", reason=reason
            )

    def close(self) -> None:
        """Ends the servers, their workers and all in their heaps. Handles become inert. At most 2 s."""
        global _session
        if _session is self:
            for look in _before_close:
                look(self)
            _session = None
        arrivals.stop()
        shipping.forget()
        runtime.detach()
        self._cluster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_session: Session | None = None  # this script's; protected by the interpreter lock
_before_close: list[Callable[[Session], None]] = []  # protected by the interpreter lock


def init(
    servers: int | None = None,
    workers: int | None = None,
    heap_bytes: int | str | None = None,
    replicas: int | None = None,
    on_event: Callable[[messages.Event], None] | None = None,
    **settings: Any,
) -> Session:
    """Starts servers on this machine, joined by this process; below a second.

    Args:
        servers: how many; each is a partition of its own, and bytes between them cross TCP. Default 1.
        workers: worker processes of each server; default one a core. 0 for none.
        heap_bytes: each server's quota, as a number or as "4GiB"; default three quarters of the memory left,
            shared between them.
        replicas: 1 keeps what other servers could have seen of each server's values on one more server, which
            takes its place if it is lost. Cost: one round trip with the bytes, once a version, where it is
            handed to another server; nothing anywhere else. Default 0: a lost server's values are lost, but
            for those whose Box has `replicas=1`.
        on_event: told of each worker or server that is lost, replaced or protected again, in a thread of the
            engine.
        settings: other fields of `drust.config.Config`, as `strict=True`. All can be DRUST_ variables too.

    Returns:
        The session: use it in a `with` statement, or call `drust.shutdown()`, or let the script end.

    Raises:
        ConfigError: a setting cannot be used, or a session is running already.
        ServerStartError: a server did not come up; it says why.
    """
    global _session
    if runtime.in_worker():
        raise ConfigError(
            variable="init()", value="a call inside a task", expected="a call in the script that spawns"
        )
    if _session is not None and runtime.attached() is not None:
        raise ConfigError(
            variable="init()", value="a second call", expected="one session at a time: drust.shutdown() first"
        )
    config = Config.read(
        servers=servers, workers=workers, heap_bytes=heap_bytes, replicas=replicas, **settings
    )
    runtime.reopen()
    _session = Session(config, LocalCluster.start(config, on_event))
    return _session


def before_close(look: Callable[[Session], None]) -> None:
    """Has `look` called with each session that ends, while its servers still answer. It must not raise."""
    _before_close.append(look)


def shutdown() -> None:
    """Ends the session of this script, if there is one. `init()` may be called again afterwards."""
    if _session is not None:
        _session.close()


def current_session() -> Session:
    """The running session; starts the default one if there is none."""
    runtime.current()
    if _session is None:
        raise ConfigError(
            variable="session", value="none", expected="a script that called init(), not a worker"
        )
    return _session


def _start_default() -> None:
    init()


runtime.on_demand(_start_default)
