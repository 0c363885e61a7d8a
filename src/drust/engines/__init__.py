"""Who starts servers on hosts: one file an engine. All give what `Cluster` names; the rest knows none."""

from collections.abc import Sequence
from typing import Protocol

from drust.server.messages import Endpoint


class Cluster(Protocol):
    """Servers that run for this driver."""

    @property
    def token(self) -> bytes:
        """The cluster's secret, 32 bytes."""
        ...

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Where the servers listen, by number."""
        ...

    def detach_memfd(self) -> int:
        """The home partition's memfd, the caller's from now on. Once."""
        ...

    def close(self) -> None:
        """Ends the servers and all they started, within bounded time. May be called again."""
        ...
