"""drust: mutable objects shared between processes and machines, by ownership.

    import drust
    from drust import Box

A value has one owner (`Box`), and at any time one writer (`borrow_mut`) or many readers (`borrow`). The names
are those of `drust.api`, loaded at the first use: a server process imports this package too, and needs none
of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drust.api import (
        Arc,
        Array,
        ArrayMut,
        ArrayRef,
        AtomicBool,
        AtomicInt,
        AtomicPtr,
        Barrier,
        BorrowError,
        BorrowMutError,
        BorrowTimeoutError,
        Box,
        CancelledError,
        ChannelClosedError,
        ClosedError,
        ClusterError,
        Condvar,
        Dict,
        DrustError,
        Executor,
        JoinHandle,
        KeyLocks,
        MovedError,
        Mutex,
        Once,
        OutOfMemoryError,
        OwnershipError,
        PoisonedError,
        Receiver,
        Ref,
        RefMut,
        RevokedError,
        RwLock,
        Scope,
        Semaphore,
        Sender,
        ServerLostError,
        Session,
        StaleViewWarning,
        TaskError,
        Tied,
        Tile,
        Vec,
        WorkerLostError,
        channel,
        current_session,
        empty,
        full,
        init,
        map,  # noqa: A004
        register,
        scope,
        shutdown,
        spawn,
        spawn_many,
        spawn_to,
        statistics,
        zeros,
    )

__version__ = "0.1.0"

__all__ = [
    "Arc",
    "Array",
    "ArrayMut",
    "ArrayRef",
    "AtomicBool",
    "AtomicInt",
    "AtomicPtr",
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
    "Dict",
    "DrustError",
    "Executor",
    "JoinHandle",
    "KeyLocks",
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
    "RwLock",
    "Scope",
    "Semaphore",
    "Sender",
    "ServerLostError",
    "Session",
    "StaleViewWarning",
    "TaskError",
    "Tied",
    "Tile",
    "Vec",
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


def __getattr__(name: str) -> Any:
    """Loads `drust.api` when one of its names is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'drust' has no attribute {name!r}")
    from importlib import import_module

    api = import_module("drust.api")
    globals().update({each: getattr(api, each) for each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
