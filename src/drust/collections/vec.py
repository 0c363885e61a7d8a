"""Vec: a sequence that grows at its end, in chunks that may lie on several servers.

Idea: a chunk is a Box of a list, or of a numpy array; all but the last are full, so a place says which chunk
has it. What is appended waits in a list of this process until it fills a chunk, or until the chunks are lent.
Rejected: room at the end of the last chunk. A borrow of it would show what is not there yet.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from drust import runtime, shipping, tasks
from drust._core import Box, Ref, RefMut
from drust.collections import blocks
from drust.errors import ConfigError, PickledBoxError

T = TypeVar("T")

_END = 2**62
_CHUNK_ITEMS = 4096
_CHUNK_BYTES = 2**20  # of items of a dtype


class Vec(Generic[T]):
    """A sequence in chunks: what `list` is, spread over servers, and lent chunk by chunk.

        words = drust.Vec(on=[0, 1])
        words.extend(read_words())
        lengths = words.map_chunks(lambda chunk: [len(word) for word in chunk])

        samples = drust.Vec(dtype="f4")             # numbers: chunks are numpy arrays, shared in place
        for chunk in samples.chunks_mut():
            scope.spawn(normalise, chunk)

    A Vec owns its chunks as a Box owns its value: given to a task (or put into a Box) it moves; lend its
    chunks. Items come and go at its end; those elsewhere in it can be read and set.

    Cost: an append is one to a list; a chunk that is full goes to its server in 1 message. Reading an item
    costs nothing on its chunk's host, elsewhere 1 read of the whole chunk, kept until somebody writes.

    Args:
        items: to begin with.
        dtype: what its items are, as of numpy; any Python values (Boxes too) unless given.
        chunk: how many items a chunk has: 4,096 unless given, or 1 MiB of a dtype.
        on: the servers of its chunks, in turns; this process's own unless given.
        replicas: of each chunk, as of `Box`.

    Raises:
        ConfigError: there is no such server or chunk, or replicas cannot be had.
    """

    __slots__ = ("_chunks", "_in_last", "_pending", "_replicas", "_where", "chunk", "dtype")

    def __init__(
        self,
        items: Iterable[T] = (),
        *,
        dtype: npt.DTypeLike | None = None,
        chunk: int | None = None,
        on: Iterable[int] | None = None,
        replicas: int | None = None,
    ) -> None:
        self.dtype = None if dtype is None else np.dtype(dtype)
        if self.dtype is not None and self.dtype.hasobject:
            raise TypeError(f"items of {self.dtype} are Python objects: leave dtype out")
        if chunk is None:
            chunk = (
                _CHUNK_ITEMS if self.dtype is None else max(1, _CHUNK_BYTES // max(1, self.dtype.itemsize))
            )
        if not isinstance(chunk, int) or chunk < 1:
            raise ConfigError(variable="chunk=", value=repr(chunk), expected="a number of items, at least 1")
        self.chunk = chunk
        self._where = [runtime.current().server] if on is None else blocks.check_servers(on)
        self._replicas = replicas
        self._chunks: list[Box[Any]] = []
        self._in_last = 0  # items of the last chunk
        self._pending: list[T] = []
        self.extend(items)

    def __copy__(self) -> "Vec[T]":
        raise PickledBoxError(
            object=repr(self),
            detail="A copy would own the same chunks: take map_chunks(list), or a list of it.",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        self._flush()
        return _rebuild, (self.dtype, self.chunk, self._where, self._replicas, self._chunks, self._in_last)

    def __repr__(self) -> str:
        return f"<Vec of {len(self)} items, {self.dtype or 'any'}, in {len(self._chunks)} chunks>"

    # -- at its end -----------------------------------------------------------------------------------------

    def append(self, item: T) -> None:
        """Adds one at the end. Each `chunk` items, 1 message if the chunk is for another server.

        Raises:
            TypeError, ValueError, OverflowError: it is none of `dtype`.
            OutOfMemoryError: there is no room for a chunk.
            BorrowMutError: the last chunk was not full when chunks were lent, and somebody uses it.
            Whatever is raised, the Vec is as before.
        """
        if not self._pending:
            self._check_here()
        self._pending.append(item if self.dtype is None else self._as_item(item))
        if len(self._pending) + self._in_last % self.chunk < self.chunk:
            return
        try:
            self._flush()
        except BaseException:
            self._pending.pop()
            raise

    def extend(self, items: Iterable[T]) -> None:
        """Adds many at the end; arrays go chunk by chunk, not item by item.

        Raises:
            As `append`; the items before the one that is refused have been added, of an array (or more than a
            chunk of a list) none or whole chunks.
        """
        is_array = isinstance(items, list | tuple | np.ndarray) and len(items) > self.chunk
        if self.dtype is not None and is_array:
            self._extend_array(self._cast(items))
            return
        for item in items:
            self.append(item)

    def _extend_array(self, items: npt.NDArray[Any]) -> None:
        if items.ndim != 1:
            raise ValueError(f"items of {items.ndim} dimensions do not go into a Vec: it has one")
        first = -(self._in_last + len(self._pending)) % self.chunk
        self._pending.extend(items[:first])
        self._flush()
        whole = first + (len(items) - first) // self.chunk * self.chunk
        for start in range(first, whole, self.chunk):
            self._add(items[start : start + self.chunk])
        self._pending.extend(items[whole:])

    def pop(self) -> T:
        """Takes the last item out. Where its chunk is elsewhere, that comes here: 1 read and a free.

        Raises:
            IndexError: there is none.
            BorrowMutError: somebody uses its chunk.
        """
        if not self._pending:
            self._check_here()
            if not self._chunks:
                raise IndexError("pop from empty Vec")
            values = self._chunks[-1].into_inner()
            self._chunks.pop()
            self._pending = list(values)
            self._in_last = self.chunk if self._chunks else 0
        return self._pending.pop()

    def clear(self) -> None:
        """Removes all. A chunk that is lent goes when that ends."""
        self._chunks.clear()
        self._pending.clear()
        self._in_last = 0

    def _check_here(self) -> None:
        """Raises MovedError if it was given away: the last chunk says so."""
        if self._chunks and self._chunks[-1]._state()["phase"] == "moved":
            self._chunks[-1].into_inner()

    def _as_item(self, item: Any) -> Any:
        made = self._cast(item)
        if made.ndim:
            raise ValueError(f"an array of {made.ndim} dimensions is no item of a Vec of {self.dtype}")
        return made[()]

    def _cast(self, items: Any) -> npt.NDArray[Any]:
        if self.dtype is not None and self.dtype.fields is not None:
            return np.asarray(items, self.dtype)
        made = np.asarray(items)
        if self.dtype is None or made.dtype.kind not in "iu" or self.dtype.kind not in "iu":
            return made.astype(self.dtype, casting="same_kind", copy=False)
        cast = made.astype(self.dtype, copy=False)
        if (cast != made).any():
            raise OverflowError(f"{items!r:.100} is out of bounds for {self.dtype}")
        return cast

    def _flush(self) -> None:
        """What waits goes into chunks; a last chunk that is not full is made again with it."""
        if not self._pending:
            return
        if self._chunks and self._in_last < self.chunk:
            before = list(self._chunks[-1].into_inner())
            self._chunks.pop()
            self._in_last = self.chunk if self._chunks else 0
            self._pending[:0] = before
        while self._pending:  # what could not be put away waits
            self._add(self._pending[: self.chunk])
            del self._pending[: self.chunk]

    def _add(self, items: "Sequence[Any] | npt.NDArray[Any]") -> None:
        server = self._where[len(self._chunks) % len(self._where)]
        if self.dtype is not None:
            self._chunks.append(blocks.put(np.array(items, self.dtype), server, self._replicas))
        elif server == runtime.current().server:
            self._chunks.append(Box(items, replicas=self._replicas))
        else:
            self._chunks.append(tasks.spawn(_keep, Box(items), self._replicas, server=server).join())
        self._in_last = len(items)

    # -- its items ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        full = max(0, len(self._chunks) - 1) * self.chunk
        return full + self._in_last + len(self._pending)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "list[T] | npt.NDArray[Any]": ...
    def __getitem__(self, place: "int | slice") -> "T | list[T] | npt.NDArray[Any]":
        """One item, or a list (of a dtype: an array) of some. It is not to be changed: set it again.

        An item that is, or has, a Box can be used only while its chunk is borrowed (`chunks`) or when it has
        been taken out (`pop`).

        Raises:
            IndexError: there is none.
            BorrowError: somebody writes in its chunk.
        """
        if isinstance(place, slice):
            places = range(len(self))[place]
            low, high = (min(places), max(places) + 1) if places else (0, 0)
            found = list(self._items(low, high))[:: -1 if places.step < 0 else 1][:: abs(places.step)]
            return found if self.dtype is None else np.array(found, self.dtype)
        number, at = self._find(place)
        if number == len(self._chunks):
            return self._pending[at]
        with self._chunks[number].borrow() as values:
            item = _own(values[at : at + 1])[0]
        del values
        return cast(T, item)

    def __setitem__(self, place: int, item: T) -> None:
        """Sets one item: where its chunk is elsewhere, by a task there.

        Raises:
            IndexError: there is none.
            TypeError, ValueError: it is none of `dtype`.
            BorrowMutError: somebody uses its chunk.
        """
        number, at = self._find(place)
        made = item if self.dtype is None else self._as_item(item)
        if number == len(self._chunks):
            self._pending[at] = made
            return
        box = self._chunks[number]
        if box.server == runtime.current().server:
            with box.borrow_mut() as values:
                values[at] = made
            del values
        else:
            tasks.spawn(_set, box.borrow_mut(), at, made, server=box.server).join()

    def _find(self, place: int) -> tuple[int, int]:
        """The chunk of an item, and where in it; behind the last chunk is what waits."""
        length = len(self)
        if not -length <= place < length:
            raise IndexError(f"place {place} of a Vec of {length} items")
        place %= length
        in_chunks = length - len(self._pending)
        if place >= in_chunks:
            return len(self._chunks), place - in_chunks
        return divmod(place, self.chunk)

    def _items(self, low: int, high: int) -> Iterator[T]:
        """Counts places, as a list's iterator does: what waits may go into a chunk meanwhile."""
        at = low
        while at < min(high, len(self)):
            number, inside = self._find(at)
            if number == len(self._chunks):
                found = self._pending[inside : inside + high - at]
            else:
                with self._chunks[number].borrow() as values:
                    found = _own(values[inside : inside + high - at])
                del values
            at += len(found)
            yield from found

    def __iter__(self) -> Iterator[T]:
        """All items, a chunk borrowed at a time: 1 read for each chunk elsewhere."""
        return self._items(0, _END)

    def to_numpy(self) -> npt.NDArray[Any]:
        """A copy of all items in one array: 1 read for each chunk elsewhere.

        Raises:
            TypeError: it has no dtype.
        """
        if self.dtype is None:
            raise TypeError("a Vec of any values is no array: give it a dtype=, or take list(vec)")
        whole = np.empty(len(self), self.dtype)
        for number, box in enumerate(self._chunks):
            with box.borrow() as values:
                whole[number * self.chunk :][: len(values)] = values
            del values
        whole[len(self) - len(self._pending) :] = np.array(self._pending, self.dtype)
        return whole

    # -- its chunks -----------------------------------------------------------------------------------------

    @property
    def servers(self) -> list[int]:
        """Where each chunk lies. No message; what waits lies here and is in none."""
        return [box.server for box in self._chunks]

    def chunks(self) -> "list[Ref[Any]]":
        """A shared borrow of each chunk, in order, for tasks: a list, or an array of a dtype.

        No message, but what waits is put away before: a last chunk that was not full comes here for that.
        """
        self._flush()
        return [box.borrow() for box in self._chunks]

    def chunks_mut(self) -> "list[RefMut[Any]]":
        """An exclusive borrow of each chunk, in order, for tasks, which may not change its length.

        Messages as of `chunks`.
        """
        self._flush()
        return [box.borrow_mut() for box in self._chunks]

    def map_chunks(
        self, function: "Callable[..., Sequence[Any] | npt.NDArray[Any]]", *args: Any, retry: int = 0
    ) -> "Vec[Any]":
        """A new Vec of `function(chunk, *args)` for each chunk: a task a chunk, where it lies and stays.

        Args:
            function: gets a chunk to read, and returns as many items: a list, or an array.
            args: passed on to each.
            retry: how often the task of a chunk is run again if its worker is lost.

        Raises:
            ValueError: a chunk came back with another number of items, or not all as arrays of one dtype.
            BaseException: what the first chunk's task that failed raised.
        """
        lent = self.chunks()
        made = blocks.run_at(
            _map_chunk,
            [(self._replicas, each, *args) for each in lent],
            self.servers,
            function=function,
            retry=retry,
        )
        dtypes = {dtype for _, dtype in made}
        if len(dtypes) > 1:
            raise ValueError(f"chunks of one Vec came back as {sorted(map(str, dtypes))}")
        dtype = dtypes.pop() if dtypes else self.dtype
        return _rebuild(
            dtype, self.chunk, self._where, self._replicas, [box for box, _ in made], self._in_last
        )

    def update_chunks(self, function: Callable[..., object], *args: Any, retry: int = 0) -> None:
        """Runs `function(chunk, *args)` for each chunk, to change it in place: a task a chunk, where it lies.

        Raises:
            ValueError: a chunk has another number of items now. Its items are as before.
            BaseException: what the first chunk's task that failed raised; what it had changed stays.
        """
        lent = self.chunks_mut()
        blocks.run_at(
            _update_chunk, [(each, *args) for each in lent], self.servers, function=function, retry=retry
        )


# -- tasks --------------------------------------------------------------------------------------------------


def _rebuild(
    dtype: "np.dtype[Any] | None",
    chunk: int,
    where: list[int],
    replicas: int | None,
    chunks: list[Box[Any]],
    in_last: int,
) -> Vec[Any]:
    made: Vec[Any] = Vec.__new__(Vec)
    made.dtype = dtype
    made.chunk = chunk
    made._where = where
    made._replicas = replicas
    made._chunks = chunks
    made._pending = []
    made._in_last = in_last
    return made


def _own(values: Any) -> list[Any]:
    """Items that are no views of their chunk."""
    return list(values.copy() if isinstance(values, np.ndarray) else values)


def _keep(box: Box[Any], replicas: int | None) -> Box[Any]:
    """The value, which comes to this server."""
    return Box(box.into_inner(), replicas=replicas)


def _set(values: Any, at: int, item: Any) -> None:
    values[at] = item


def _map_chunk(
    reference: shipping.FunctionReference, replicas: int | None, values: Any, *args: Any
) -> "tuple[Box[Any], np.dtype[Any] | None]":
    made = shipping.resolve(reference)(values, *args)
    _check_length(len(made), len(values))
    if not isinstance(made, np.ndarray):
        return Box(list(made), replicas=replicas), None
    if made.ndim != 1 or made.dtype.hasobject:
        raise ValueError(
            f"a chunk came back as {made.ndim}-d {made.dtype}: expected numbers, one for each item"
        )
    return Box(made, replicas=replicas), made.dtype


def _update_chunk(reference: shipping.FunctionReference, values: Any, *args: Any) -> None:
    if isinstance(values, np.ndarray):
        shipping.resolve(reference)(values, *args)
        return
    before = list(values)
    try:
        shipping.resolve(reference)(values, *args)
    finally:
        changed = len(values)
        if changed != len(before):
            values[:] = before
    _check_length(changed, len(before))


def _check_length(is_now: int, was: int) -> None:
    if is_now != was:
        raise ValueError(f"a chunk of {was} items came back with {is_now}: only a Vec's end moves")
