"""Dict: a map that all processes of a cluster share, spread over its servers.

Where a key is, its hash says (shards.py): a shard is a shared object of one server (native/sync/dict.hpp),
and each step is one C call (native/bind/dict_type.cpp): at a shard of this host in place, at another one
request to its server.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from drust.collections.key_locks import KeyGuard, KeyLocks
from drust.collections.shards import ABSENT, ALWAYS, VERSION, Shards, decode, encode
from drust.errors import ConfigError

K = TypeVar("K")
V = TypeVar("V")

_BATCH_BYTES = 2**20  # of values in one message of update()
_MISSING: Any = object()
_A_VALUE = "a value of a Dict"


class Entry(NamedTuple, Generic[V]):
    """What a key had at one moment."""

    value: V
    version: int
    """Never the same for two entries; for `replace`."""


class Dict(Generic[K, V]):
    """A map from keys to values that processes of all servers share.

        counts = Dict()
        counts["a"] = 1
        drust.spawn(work, counts)           # a handle: what the task puts is seen here
        counts.modify("a", lambda n: n + 1)

    Keys are str, bytes, int, bool, float and tuples of them; keys that are equal in Python are one key, and
    come back as int where they can (1 for 1.0 and True). Values are copies: what `get` returns is the
    caller's own, and to change it there, put it again or use `modify`. They hold no Boxes and no handles of
    shared objects.

    Each step at a key is atomic, and all processes see one order of them. A process that dies leaves a step
    done or not done. What is on a server that is lost is lost: ServerLostError.

    Cost: where the key's shard is on this host, a read is a look at shared memory without a lock and without
    a message, and a write a block and a short lock; elsewhere 1 round trip each, the value in it.

    Args:
        items: a mapping, or pairs, to begin with.
        on: numbers of the servers of its shards, one each; a number that is there twice has two. All servers
            unless given: 1 round trip, a task, for each other one.
        locks: whether it has locks of single keys, `locked(key)`: a shard more on each server.
    """

    __slots__ = ("_locks", "_shards")

    def __init__(
        self,
        items: "Mapping[K, V] | Iterable[tuple[K, V]] | None" = None,
        *,
        on: Iterable[int] | None = None,
        locks: bool = False,
    ) -> None:
        where = None if on is None else list(on)
        self._shards = Shards.make(where)
        self._locks: KeyLocks[K] | None = KeyLocks(on=where) if locks else None
        if items is not None:
            self.update(items)

    def __repr__(self) -> str:
        return f"<Dict on servers {', '.join(map(str, self.servers))}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._shards, self._locks)

    @property
    def servers(self) -> list[int]:
        """The home of each shard."""
        return [shard.server for shard in self._shards.all]

    # -- one key --------------------------------------------------------------------------------------------

    def get(self, key: K, default: Any = None) -> Any:
        """The value of a key, or `default`. 0 messages on its host, elsewhere 1 round trip."""
        located = self._shards.locate(key)
        item = self._shards.of(located)._get(located)
        return default if item is None else decode(item[0], item[1])

    def entry(self, key: K) -> Entry[V] | None:
        """The value of a key with its version, for `replace`; None if there is none. As `get`."""
        located = self._shards.locate(key)
        item = self._shards.of(located)._get(located)
        return None if item is None else Entry(decode(item[0], item[1]), item[2])

    def __getitem__(self, key: K) -> V:
        value: V = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __contains__(self, key: K) -> bool:
        located = self._shards.locate(key)
        return self._shards.of(located)._get(located) is not None

    def put(self, key: K, value: V) -> int:
        """Sets the value of a key; `d[key] = value`. Returns its version. Elsewhere 1 round trip.

        Raises:
            TypeError: the key is none that all processes would agree on.
            UnpicklableError: the value cannot travel, or holds Boxes or handles.
        """
        return self._put(key, value, ALWAYS, 0)[1]

    def __setitem__(self, key: K, value: V) -> None:
        self._put(key, value, ALWAYS, 0)

    def insert(self, key: K, value: V) -> bool:
        """Sets the value of a key that has none. Returns whether it did. Elsewhere 1 round trip."""
        return self._put(key, value, ABSENT, 0)[0]

    def replace(self, key: K, value: V, version: int) -> bool:
        """Sets the value if the key's version is still that one (0: it has none). Elsewhere 1 round trip.

        Returns:
            Whether it did. If not, somebody has put another value since, or removed it.
        """
        return self._put(key, value, VERSION, version)[0]

    def setdefault(self, key: K, default: V) -> V:
        """The value of the key, which is `default` if it had none. Elsewhere 1 or 2 round trips."""
        while True:
            if (value := self.get(key, _MISSING)) is not _MISSING:
                found: V = value
                return found
            if self.insert(key, default):
                return default

    def compare_and_set(self, key: K, expected: V, value: V) -> bool:
        """Sets the value if the present one `== expected`. Elsewhere 1 round trip.

        The home compares the bytes of the values. Where these differ, it is compared here, with what came in
        the reply; where equal values have different bytes (1 and 1.0), it takes 1 round trip more.

        Returns:
            Whether it did. A key without a value is equal to nothing: `insert`.
        """
        located = self._shards.locate(key)
        first, second = encode(expected, _A_VALUE), encode(value, _A_VALUE)
        while True:
            is_done, version, there = self._shards.of(located)._compare_and_set(located, first, second)
            if is_done or there is None or decode(there[0], there[1]) != expected:
                return is_done
            if self._shards.of(located)._put(located, *second, VERSION, version)[0]:
                return True

    def modify(self, key: K, function: "Callable[[V], V]", default: V = _MISSING) -> V:
        """Sets the value to `function(value)`, as one step. Elsewhere 2 round trips.

        Args:
            key: of the value.
            function: called again with the new value if somebody else put one meanwhile.
            default: what it is called with where the key has no value.

        Returns:
            The new value.

        Raises:
            KeyError: the key has no value, and there is no default.
        """
        while True:
            entry = self.entry(key)
            if entry is None and default is _MISSING:
                raise KeyError(key)
            value = function(default if entry is None else entry.value)
            if self.replace(key, value, 0 if entry is None else entry.version):
                return value

    def pop(self, key: K, default: Any = _MISSING) -> Any:
        """Removes a key, and returns its value, or `default`. Elsewhere 1 round trip.

        Raises:
            KeyError: there is none, and no default.
        """
        located = self._shards.locate(key)
        item = self._shards.of(located)._remove(located, ALWAYS, 0)[2]
        if item is not None:
            return decode(item[0], item[1])
        if default is _MISSING:
            raise KeyError(key)
        return default

    def __delitem__(self, key: K) -> None:
        self.pop(key)

    def locked(self, key: K, timeout: float | None = None) -> KeyGuard:
        """`with d.locked(key):` has the lock of that key, whether it has a value or not: see `KeyLocks.lock`.

        It keeps out who asks for the lock, not who puts a value without it.

        Raises:
            ConfigError: the Dict was made without `locks=True`.
        """
        if self._locks is None:
            raise ConfigError(
                variable="locks=", value="False", expected="a Dict that has locks: Dict(..., locks=True)"
            )
        return self._locks.lock(key, timeout=timeout)

    # -- many keys ------------------------------------------------------------------------------------------

    def update(self, items: "Mapping[K, V] | Iterable[tuple[K, V]]") -> None:
        """Puts many. Elsewhere 1 round trip for each MiB of a shard. Each put by itself is atomic.

        Raises:
            TypeError, UnpicklableError: as `put`; of a list or a mapping nothing is put then.
        """
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        batches: list[list[tuple[bytes, int, bytes]]] = [[] for _ in self._shards.all]
        for key, value in pairs:
            located = self._shards.locate(key)
            batches[self._shards.index_of(located)].append((located, *encode(value, _A_VALUE)))
        for shard, batch in zip(self._shards.all, batches, strict=True):
            start = size = 0
            for end, (_, _, data) in enumerate(batch):
                size += len(data)
                if size >= _BATCH_BYTES:
                    shard._put_many(batch[start : end + 1])
                    start, size = end + 1, 0
            shard._put_many(batch[start:])

    def __len__(self) -> int:
        """How many keys there are. 1 round trip a shard elsewhere; of each at another moment."""
        return sum(shard._count() for shard in self._shards.all)

    def items(self) -> Iterator[tuple[K, V]]:
        """Keys with their values, in no order. 1 round trip a MiB of a shard elsewhere.

        A key that is there from the first step to the last is met once, with a value that it had meanwhile;
        one that comes or goes meanwhile is met once or not at all.
        """
        for key, kind, data in self._shards.scan():
            yield key, decode(kind, data)

    def keys(self) -> Iterator[K]:
        """As `items`, and costs as much."""
        for key, _, _ in self._shards.scan():
            yield key

    def values(self) -> Iterator[V]:
        """As `items`."""
        for _, kind, data in self._shards.scan():
            yield decode(kind, data)

    def __iter__(self) -> Iterator[K]:
        return self.keys()

    def clear(self) -> None:
        """Removes the keys that are there, one after the other: elsewhere 1 round trip each."""
        for key in self.keys():
            self.pop(key, None)

    # ------------------------------------------------------------------------------------------------------

    def _put(self, key: K, value: V, when: int, version: int) -> tuple[bool, int]:
        located = self._shards.locate(key)
        kind, data = encode(value, _A_VALUE)
        return self._shards.of(located)._put(located, kind, data, when, version)


def _rebuild(shards: Shards, locks: "KeyLocks[Any] | None") -> Dict[Any, Any]:
    made: Dict[Any, Any] = Dict.__new__(Dict)
    made._shards = shards
    made._locks = locks
    return made
