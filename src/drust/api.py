"""The public names of drust, as `import drust` offers them. Loaded at the first use of any of them."""

from drust._core import Box, Ref, RefMut
from drust.codecs import register
from drust.codecs.tied import Tied
from drust.errors import (
    BorrowError,
    BorrowMutError,
    BorrowTimeoutError,
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
from drust.handles import empty, full, zeros
from drust.runtime import statistics
from drust.session import Session, current_session, init, shutdown
from drust.tasks import JoinHandle, Scope, scope, spawn, spawn_to

__all__ = [
    "BorrowError",
    "BorrowMutError",
    "BorrowTimeoutError",
    "Box",
    "ClosedError",
    "ClusterError",
    "DrustError",
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
    "register",
    "scope",
    "shutdown",
    "spawn",
    "spawn_to",
    "statistics",
    "zeros",
]
