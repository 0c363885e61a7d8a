"""The public names of drust, as `import drust` offers them. Loaded at the first use of any of them."""

from drust._core import Box, Ref, RefMut
from drust.codecs import register
from drust.codecs.tied import Tied
from drust.errors import (
    BorrowError,
    BorrowMutError,
    BorrowTimeoutError,
    CancelledError,
    ClosedError,
    ClusterError,
    DrustError,
    MovedError,
    OutOfMemoryError,
    OwnershipError,
    PoisonedError,
    RevokedError,
    ServerLostError,
    StaleViewWarning,
    TaskError,
    WorkerLostError,
)
from drust.executor import Executor
from drust.handles import empty, full, zeros
from drust.parallel import map, spawn_many  # noqa: A004
from drust.runtime import statistics
from drust.scope import Scope, scope
from drust.session import Session, current_session, init, shutdown
from drust.tasks import JoinHandle, spawn, spawn_to

__all__ = [
    "BorrowError",
    "BorrowMutError",
    "BorrowTimeoutError",
    "Box",
    "CancelledError",
    "ClosedError",
    "ClusterError",
    "DrustError",
    "Executor",
    "JoinHandle",
    "MovedError",
    "OutOfMemoryError",
    "OwnershipError",
    "PoisonedError",
    "Ref",
    "RefMut",
    "RevokedError",
    "Scope",
    "ServerLostError",
    "Session",
    "StaleViewWarning",
    "TaskError",
    "Tied",
    "WorkerLostError",
    "current_session",
    "empty",
    "full",
    "init",
    "map",
    "register",
    "scope",
    "shutdown",
    "spawn",
    "spawn_many",
    "spawn_to",
    "statistics",
    "zeros",
]
