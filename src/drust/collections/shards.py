"""Shards: where keys and values lie that processes of a cluster share (native/sync/dict.hpp).

Dict, KeyLocks and AtomicPtr are made of them.

Where a key is, its hash says, with a secret that the handles have in common. A value travels as bytes with a
number that says what they are.
"""

import os
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

from drust import _core, calls, codecs, handles, runtime, tasks
from drust.codecs.pickling import pickle_alone
from drust.errors import ConfigError

ALWAYS, ABSENT, VERSION = range(3)  # sync::Shard::When
_PICKLE, _BYTES, _STR = range(3)  # kinds of values; _STR is native/bind/dict_type.cpp's kStr
_FIRST = bytes(16)  # the place where a scan begins
_SHARDS_MAX = 1024


class Shard(_core.DictShard):
    """What is on one server."""

    __slots__ = ()


class Shards:
    """Some shards, and the secret that keys are hashed with."""

    __slots__ = ("all", "secret")

    def __init__(self, every: tuple[Shard, ...], secret: bytes) -> None:
        self.all = every
        self.secret = secret

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.secret, *self.all)

    @classmethod
    def make(cls, on: Iterable[int] | None) -> "Shards":
        """New ones: one for each of `on`, or of all servers. 1 round trip, a task, for each other one.

        Raises:
            ConfigError: there are no such servers, or none.
        """
        here = runtime.current().server
        where = _all_servers(here) if on is None else list(on)
        if not 1 <= len(where) <= _SHARDS_MAX:
            raise ConfigError(
                variable="on=", value=repr(where), expected=f"the numbers of 1 to {_SHARDS_MAX} servers"
            )
        away = [tasks.spawn(_make_shard, server=server) for server in where if server != here]
        made = iter([job.join() for job in away])
        shards = tuple(_make_shard() if server == here else next(made) for server in where)
        return cls(shards, os.urandom(16))

    def locate(self, key: Any) -> bytes:
        """The key as shards know it.

        Raises:
            TypeError: it is none that all processes would agree on.
        """
        return _core.locate_key(self.secret, key)

    def index_of(self, located: bytes) -> int:
        """Which shard has it: by bits that the shard itself looks at last."""
        return int.from_bytes(located[8:12], "little") % len(self.all)

    def of(self, located: bytes) -> Shard:
        """The shard that has it."""
        return self.all[0] if len(self.all) == 1 else self.all[self.index_of(located)]

    def scan(self) -> Iterator[tuple[Any, int, bytes | str]]:
        """All keys with their values: 1 round trip for each MiB of a shard elsewhere."""
        for shard in self.all:
            place: bytes | None = _FIRST
            while place is not None:
                place, items = shard._scan(place)
                yield from items


def encode(value: Any, what: str) -> tuple[int, bytes]:
    """The bytes of a value, and what they are.

    Raises:
        UnpicklableError: it cannot travel, or holds Boxes or handles; the message says `what` it was to be.
    """
    if type(value) is bytes:
        return _BYTES, value
    if type(value) is str:
        return _STR, value.encode("utf-8", "surrogatepass")
    return _PICKLE, pickle_alone(value, what)


def decode(kind: int, data: bytes | str) -> Any:
    """The value, new."""
    return pickle.loads(data) if kind == _PICKLE else data  # type: ignore[arg-type]


def _make_shard() -> Shard:
    runtime.current()
    return Shard._make()


def _rebuild(secret: bytes, *shards: Shard) -> Shards:
    return Shards(shards, secret)


def _all_servers(here: int) -> list[int]:
    config = runtime.config()
    return list(range(config.servers)) if config.workers > 0 else [here]


_flags = _core.HOLD | _core.KIND_SHARD << _core.HOLD_KIND_SHIFT
codecs.register_handle(Shard, _flags)
calls.pass_by_hold(Shard, _flags)
handles.open_holds_as({_core.KIND_SHARD: Shard})
