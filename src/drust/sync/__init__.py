"""Shared state, as in Rust's std::sync, for the processes of a cluster.

    atomics    AtomicInt, AtomicBool: one word, and waiting for it to change
    mutex      Mutex: a value that one thread of one process has at a time
    rwlock     RwLock: a value that many read at once, or one writes
    guarded    what these two are made of
    channels   channel(): a queue of values between processes
    condvar    Condvar: waiting until the value of a Mutex is as wanted
    arc        Arc: a value that many read and nobody changes
    barrier, semaphore, once     made of atomics and a Mutex
    waits      how a wait is cut into slices

An object has a home, the server of the process that made it, and handles: pass one to a task, return it, put
it into a Box or a channel. It lives as long as a handle does, anywhere; what a dead process held is given
back by its server (native/heap/shared.hpp). A handle is a C type with what processes of the home's host do to
its words (native/sync), and here a class for what waits, encodes or travels.

| | same host as its home | elsewhere |
|---|---|---|
| a step of an atomic, an uncontended lock | a few atomics, no message | 1 round trip |
| a lock that somebody has | a futex | 1 round trip, answered when its turn comes; 1 more a second |
| the value of a Mutex | arrays in place; else decoded once a version | in the same round trips |
| a message | a block, no message | 1 round trip with the value in it |

A value is encoded only when somebody else ever had a handle. Source: Ma et al., OSDI'24, section 4.1.2.
"""

from drust import _core, calls, codecs, handles
from drust.sync.arc import Arc
from drust.sync.atomics import AtomicBool, AtomicInt
from drust.sync.barrier import Barrier
from drust.sync.channels import Receiver, Sender, channel
from drust.sync.condvar import Condvar
from drust.sync.mutex import Mutex
from drust.sync.once import Once
from drust.sync.rwlock import RwLock
from drust.sync.semaphore import Semaphore

__all__ = [
    "Arc",
    "AtomicBool",
    "AtomicInt",
    "Barrier",
    "Condvar",
    "Mutex",
    "Once",
    "Receiver",
    "RwLock",
    "Semaphore",
    "Sender",
    "channel",
]

_KINDS: dict[int, type[_core.Shared]] = {
    _core.KIND_INTEGER: AtomicInt,
    _core.KIND_BOOLEAN: AtomicBool,
    _core.KIND_MUTEX: Mutex,
    _core.KIND_RWLOCK: RwLock,
    _core.KIND_CHANNEL: Sender,
    _core.KIND_CHANNEL | _core.OTHER_END: Receiver,
}
"""What a child pointer says of a hold, and the class of its handle."""

for _number, _class in _KINDS.items():
    _flags = _core.HOLD | _number << _core.HOLD_KIND_SHIFT
    codecs.register_handle(_class, _flags)
    calls.pass_by_hold(_class, _flags)
handles.open_holds_as(_KINDS)
