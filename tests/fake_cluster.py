"""An engine's recovery without servers: what each would be sent, and timers that fire at will."""

from collections.abc import Callable
from typing import cast

from drust.engines.recovery import Recovery
from drust.engines.ring import Ring
from drust.server import messages
from drust.server.loop import Loop


class FakeLoop:
    """Timers that fire when a test says so."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], object]] = []

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> None:
        self.timers.append(callback)

    def fire(self) -> None:
        due, self.timers = self.timers, []
        for callback in due:
            callback()


class FakeCluster:
    """Servers that say nothing: what each was sent last, and what the script was told."""

    def __init__(self, servers: int) -> None:
        self.living = list(range(servers))
        self.sent: dict[int, messages.Message] = {}
        self.told: list[messages.Event] = []
        self.started: list[tuple[int, int]] = []

    def send(self, server: int, message: messages.Message) -> None:
        if not isinstance(message, messages.Fence | messages.Settle):  # tests/test_fence.py
            self.sent[server] = message

    def restart(self, server: int, incarnation: int) -> bool:
        self.started.append((server, incarnation))
        return True

    def tell(self, event: messages.Event) -> None:
        self.told.append(event)


def recovery_of(servers: int, *, restarts: bool = False) -> tuple[Recovery, FakeLoop, FakeCluster, Ring]:
    loop, cluster = FakeLoop(), FakeCluster(servers)
    ring = Ring([("host", 1000 + number) for number in range(servers)], 0)
    return Recovery(cast(Loop, loop), ring, cluster, restarts=restarts), loop, cluster, ring
