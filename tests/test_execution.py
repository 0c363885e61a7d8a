"""The worker's loop: what it does when nothing comes, and when its server has declared it lost."""

from types import SimpleNamespace
from typing import Any

import pytest

from drust import execution
from drust.errors import ClosedError, WorkerLostError


class Ended(BaseException):
    """What os._exit is in these tests."""


class Here:
    """A runtime whose queue brings what it is told, and then closes."""

    server = 0

    def __init__(self, *taken: Any) -> None:
        self._taken = list(taken)
        self.given_home: list[Any] = []

    def take_task(self, timeout_ms: int) -> Any:
        if not self._taken:
            raise ClosedError
        return self._taken.pop(0)

    def returned(self, entry: Any, completion: Any) -> None:
        raise WorkerLostError(task="fill", worker="this one", server="server 0", reason="fenced", outcome="")

    def give_home(self, entry: Any, completion: Any) -> bool:
        self.given_home.append(completion)
        return True

    def count(self, counter: int) -> None:
        pass


def test_a_worker_that_is_brought_nothing_takes_the_next_task(monkeypatch):
    ran: list[Any] = []
    monkeypatch.setattr(execution, "run_task", lambda here, entry: ran.append(entry))
    pool = execution._Pool(Here(None, "a task", None))
    pool.run()
    assert ran == ["a task"]
    pool.wait_closed()


def test_a_worker_that_was_declared_lost_ends_before_anybody_hears_of_its_task(monkeypatch):
    def end(status: int) -> None:
        raise Ended

    here = Here()
    completion = SimpleNamespace(pointer=(1, 2, 3), disown=lambda: None)
    call = SimpleNamespace(pin=SimpleNamespace(children=[]))
    monkeypatch.setattr(execution.incoming, "open_call", lambda here, task: call)
    monkeypatch.setattr(execution._Run, "call", lambda run: (None, None))
    monkeypatch.setattr(execution._Run, "_write", lambda run, result, error: completion)
    monkeypatch.setattr(execution.os, "_exit", end)
    with pytest.raises(Ended):
        execution.run_task(here, SimpleNamespace(record=(0, 0, 0), task=(0, 0, 0), id=1))
    assert here.given_home == []
