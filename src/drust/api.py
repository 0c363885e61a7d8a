"""The public names of drust, as `import drust` offers them. Loaded at the first use of any of them."""

from drust._core import Box, Ref, RefMut
from drust.codecs import register
from drust.codecs.tied import Tied
from drust.creation import empty, full, zeros
from drust.errors import (
    BorrowError,
    BorrowMutError,
    BorrowTimeoutError,
    CancelledError,
    ChannelClosedError,
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
from drust.parallel import map, spawn_many  # noqa: A004
from drust.runtime import statistics
from drust.scope import Scope, scope
from drust.session import Session, current_session, init, shutdown
from drust.sync import (
    Arc,
    AtomicBool,
    AtomicInt,
    Barrier,
    Condvar,
    Mutex,
    Once,
    Receiver,
    Semaphore,
    Sender,
    channel,
)
from drust.tasks import JoinHandle, spawn, spawn_to

__all__ = [
    "Arc",
    "AtomicBool",
    "AtomicInt",
    "Barrier",
    "BorrowError",
    "BorrowMutError",
    "BorrowTimeoutError",
    "Box",
    "CancelledError",
    "ChannelClosedError",
    "ClosedError",
    "ClusterError",
    "Condvar",
    "DrustError",
    "Executor",
    "JoinHandle",
    "MovedError",
    "Mutex",
    "Once",
    "OutOfMemoryError",
    "OwnershipError",
    "PoisonedError",
    "Receiver",
    "Ref",
    "RefMut",
    "RevokedError",
    "Scope",
    "Semaphore",
    "Sender",
    "ServerLostError",
    "Session",
    "StaleViewWarning",
    "TaskError",
    "Tied",
    "WorkerLostError",
    "channel",
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
