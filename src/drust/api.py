"""The public names of drust, as `import drust` offers them. Loaded at the first use of any of them."""

from drust._core import Box, Ref, RefMut
from drust.codecs import register
from drust.errors import (
    BorrowError,
    BorrowMutError,
    BorrowTimeoutError,
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
from drust.handles import empty, full, zeros
from drust.runtime import statistics
from drust.session import Session, current_session, init, shutdown
from drust.sync import AtomicBool, AtomicInt, Mutex, Receiver, Sender, channel
from drust.tasks import JoinHandle, Scope, scope, spawn, spawn_to

__all__ = [
    "AtomicBool",
    "AtomicInt",
    "BorrowError",
    "BorrowMutError",
    "BorrowTimeoutError",
    "Box",
    "ChannelClosedError",
    "ClosedError",
    "ClusterError",
    "DrustError",
    "JoinHandle",
    "MovedError",
    "Mutex",
    "OutOfMemoryError",
    "OwnershipError",
    "PoisonedError",
    "Receiver",
    "Ref",
    "RefMut",
    "RevokedError",
    "Scope",
    "Sender",
    "ServerLostError",
    "Session",
    "StaleViewWarning",
    "TaskError",
    "WorkerLostError",
    "channel",
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
