"""Clusters for the tests that need one, kept while the next test asks for the same: one costs 0.5 s."""

import fcntl
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import drust
from drust import Session
from drust.testing import account

# fixture: what its cluster is started with
_SHAPES: dict[str, dict[str, float]] = {
    "one_server": {"servers": 1, "workers": 2},
    "two_servers": {"servers": 2, "workers": 1},
    "three_unmeasured": {"servers": 3, "workers": 1, "load_period_s": 0},
}
_running: dict[str, Session] = {}


def _only(wanted: str | None) -> Session | None:
    """Ends a running cluster of another shape; starts one of this shape if there is none."""
    for shape, session in list(_running.items()):
        if shape != wanted:
            del _running[shape]
            session.close()
    if wanted is None:
        return None
    if wanted not in _running:
        _running[wanted] = drust.init(heap_bytes="1GiB", **_SHAPES[wanted])  # type: ignore[arg-type]
    return _running[wanted]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that names no cluster finds none running; it or its fixtures may start their own."""
    if _running and not any(name in _SHAPES for name in getattr(item, "fixturenames", ())):
        _only(None)


@pytest.fixture(scope="session", autouse=True)
def _last_cluster() -> Iterator[None]:
    """Ends the last one."""
    yield
    _only(None)


@pytest.fixture
def one_server() -> Session:
    """One server with two workers."""
    session = _only("one_server")
    assert session is not None
    return session


@pytest.fixture
def two_servers() -> Session:
    """Two servers with a worker each: bytes between them cross TCP."""
    session = _only("two_servers")
    assert session is not None
    return session


@pytest.fixture
def settled(two_servers: Session) -> Iterator[Session]:
    """Two servers that hold after the test, to the byte, what they held before."""
    before = account.take_at_rest(two_servers)
    yield two_servers
    gc.collect()
    account.check_settled(two_servers, before)


@pytest.fixture
def three_unmeasured() -> Session:
    """Three servers with a worker each that do not measure their load: they are as busy as a test says."""
    session = _only("three_unmeasured")
    assert session is not None
    return session


KINDS = ("read_requests", "write_requests", "free_messages", "submit_messages", "complete_messages")


class Counters:
    """Differences of what all servers count, so that a test can say "no message"."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before = self.total()
        for _ in range(100):  # a message is counted before it goes, its bytes when its reply has come
            again = self.total()
            settled = all(again[kind] == self._before[kind] for kind in KINDS)
            self._before = again
            if settled:
                break

    def total(self) -> dict[str, int]:
        """Sums over all servers, pending frees sent first, without control messages: asking is one."""
        drust.runtime.current().flush()
        sums: dict[str, int] = {}
        for server in range(self._session.servers):
            for name, value in self._session.status(server).counters.items():
                sums[name] = sums.get(name, 0) + value
        return sums

    def since(self) -> dict[str, int]:
        """What has been counted since this was made."""
        after = self.total()
        return {name: after[name] - self._before[name] for name in after}

    def messages(self) -> int:
        """Messages of the data plane since this was made."""
        since = self.since()
        return sum(since[kind] for kind in KINDS)


@pytest.fixture
def counting():
    """Makes a Counters for a session."""
    return Counters


class Gate:
    """Holds up tasks that lock its file (shared) until it opens; those that come later pass."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")
        self._file = open(self.path, "w")  # noqa: SIM115 - closed when the gate opens
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self, text: str = "") -> None:
        if self._file.closed:
            return
        self._file.write(text)
        self._file.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """One that opens at the end of the test at the latest."""
    made = Gate(tmp_path)
    yield made
    made.open()
