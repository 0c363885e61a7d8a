"""Array: an n-d array in blocks that lie on several servers.

Idea: a block is a Box of a numpy array, and that is all: whoever works on blocks borrows them, and each rule
of borrows holds for each of them. What is here chooses blocks, and sends the work to where they lie.
Rejected: a block table that servers keep (a directory, which ownership makes unnecessary), and expressions
that are put off until somebody asks (Dask has them, and mutation is what it has not).
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from drust import runtime, shipping
from drust._core import Box
from drust.collections import blocks, halos, reductions
from drust.collections.grid import Grid, Index, Region, Values, cut, even_edges, spans_of
from drust.collections.parts import ArrayMut, ArrayRef, Held, Tile
from drust.errors import ConfigError


class Array:
    """An n-d array of numbers in blocks, each a Box on some server.

        grid = drust.Array.zeros((4096, 4096), chunks=(1024, 1024))     # 16 blocks over all servers
        grid.update_blocks(add_noise)                                   # a task a block, where it lies
        with drust.scope() as tasks:
            for rows in grid.split_mut(4):                              # disjoint, in place, no copy
                tasks.spawn(relax, rows, server=rows.server)
        print(grid.mean(), grid[:4, :4])

    An Array owns its blocks as a Box owns its value: given to a task (or put into a Box) it moves, to lend it
    there are `borrow`, `borrow_mut`, `split_mut` and `tiles`. Its blocks go with it. It has numpy's words
    where it does what numpy does; it is made with `zeros`, `full`, `from_numpy` or `map_blocks`.

    Cost: what is done to blocks is a message for each server (and 256 blocks), and nothing that lies in them
    travels but results. A block that is read from another server is read whole, and kept as a copy until it
    is written.
    """

    __slots__ = ("_boxes", "_grid", "_replicas", "dtype")

    def __init__(
        self,
        grid: Grid,
        dtype: "np.dtype[Any]",
        boxes: "Sequence[Box[Values]]",
        replicas: int | None = None,
    ) -> None:
        """For `zeros` and the others: blocks in the order of `grid.indices()`."""
        self._replicas = replicas
        self._grid = grid
        self._boxes = list(boxes)
        self.dtype = dtype

    # -- making ---------------------------------------------------------------------------------------------

    @classmethod
    def full(
        cls,
        shape: int | Sequence[int],
        fill_value: Any,
        dtype: npt.DTypeLike | None = None,
        *,
        chunks: "int | Sequence[int | None] | None" = None,
        on: Iterable[int] | None = None,
        replicas: int | None = None,
    ) -> "Array":
        """One value everywhere. As `numpy.full`. A task for each other server.

        Args:
            shape: its extent along each axis.
            fill_value: the value.
            dtype: what its items are; that of the value unless given.
            chunks: a block's extent along each axis (None: all of it), or along the first. Unless given, the
                first axis is cut into a block for each worker of these servers.
            on: the servers of its blocks, neighbours together; all of the session unless given.
            replicas: of each block, as of `Box`.

        Raises:
            ConfigError: there are no such chunks, servers or replicas.
            OutOfMemoryError: no heap has room.
            TypeError: the dtype holds Python objects.
        """
        where, grid = _place(shape, chunks, on)
        described = np.asarray(fill_value).dtype if dtype is None else np.dtype(dtype)
        blocks.check_numbers(described)
        if np.ndim(fill_value):
            raise ValueError("fill_value is an array: make the Array with zeros(), then set array[...]")
        shapes = [grid.extents(index) for index in grid.indices()]
        servers = blocks.spread(len(shapes), where)
        return cls(
            grid, described, blocks.make_filled(shapes, servers, fill_value, described, replicas), replicas
        )

    @classmethod
    def zeros(
        cls,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike = float,
        *,
        chunks: "int | Sequence[int | None] | None" = None,
        on: Iterable[int] | None = None,
        replicas: int | None = None,
    ) -> "Array":
        """As `full`, of zeros. As `numpy.zeros`."""
        return cls.full(shape, 0, dtype, chunks=chunks, on=on, replicas=replicas)

    @classmethod
    def from_numpy(
        cls,
        values: npt.ArrayLike,
        *,
        chunks: "int | Sequence[int | None] | None" = None,
        on: Iterable[int] | None = None,
        replicas: int | None = None,
    ) -> "Array":
        """A copy of an array: one request with its bytes for each block elsewhere. The rest as `full`."""
        array = np.asarray(values)
        blocks.check_numbers(array.dtype)
        where, grid = _place(array.shape, chunks, on)
        regions = [grid.region(index) for index in grid.indices()]
        servers = blocks.spread(len(regions), where)
        boxes = [
            blocks.put(np.asarray(array[region]), server, replicas)
            for region, server in zip(regions, servers, strict=True)
        ]
        return cls(grid, array.dtype, boxes, replicas)

    # -- what it is -----------------------------------------------------------------------------------------

    @property
    def shape(self) -> Index:
        """Its extent along each axis."""
        return self._grid.shape

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self._grid.edges)

    @property
    def size(self) -> int:
        """How many items it has."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Of its items."""
        return self.size * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[Index, ...]:
        """For each axis the extents of the blocks along it."""
        return tuple(
            tuple(end - begin for begin, end in itertools.pairwise(edges)) for edges in self._grid.edges
        )

    @property
    def servers(self) -> list[int]:
        """Where each block lies, the last axis fastest. No message."""
        return [box.server for box in self._boxes]

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __repr__(self) -> str:
        counts = " x ".join(map(str, self._grid.counts)) or "1"
        return f"<Array of shape {self.shape}, {self.dtype}, {counts} blocks>"

    # -- its items ------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """A copy of what integers, slices and `...` name. 1 read for each block elsewhere that has some.

        Raises:
            IndexError: it is beyond the array, or of another kind.
            BorrowError: somebody writes in one of these blocks.
        """
        spans = spans_of(key, self.shape)
        whole = np.empty([span.places for span in spans], self.dtype)
        for meeting in self._grid.meetings(spans):
            with self._boxes[meeting.block].borrow() as values:
                whole[meeting.outside] = values[meeting.inside]
            del values
        return whole[tuple(0 if span.is_dropped else span.flip for span in spans)]

    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None:
        """Sets what integers, slices and `...` name; blocks elsewhere are set by tasks there.

        Raises:
            IndexError: it is beyond the array, or of another kind.
            ValueError: the value cannot be brought to that shape. Nothing is set.
            BorrowMutError: somebody uses one of these blocks. Others may have been set.
        """
        spans = spans_of(key, self.shape)
        kept = [axis for axis, span in enumerate(spans) if not span.is_dropped]
        is_typed = hasattr(value, "dtype") or hasattr(value, "__array__")
        made = np.asarray(value) if is_typed else np.asarray(value, self.dtype)  # as numpy checks each
        given = np.broadcast_to(made, [spans[axis].places for axis in kept])
        given = np.asarray(given[tuple(spans[axis].flip for axis in kept)])
        here = runtime.current().server
        away: list[tuple[int, tuple[Any, ...]]] = []
        for meeting in self._grid.meetings(spans):
            part = np.asarray(given[tuple(meeting.outside[axis] for axis in kept)])
            inside = tuple(
                meeting.inside[axis].start if span.is_dropped else meeting.inside[axis]
                for axis, span in enumerate(spans)
            )
            box = self._boxes[meeting.block]
            if box.server == here:
                with box.borrow_mut() as values:
                    values[inside] = part
                del values
            else:
                whole_value = part if part.ndim == 0 or any(part.strides) else part[(slice(1),) * part.ndim]
                away.append((box.server, (box.borrow_mut(), inside, np.array(whole_value))))
        blocks.run_at(_set, [arguments for _, arguments in away], [server for server, _ in away])

    def to_numpy(self) -> Values:
        """A copy of all of it, as `array[...]`."""
        return np.asarray(self[...])

    def __array__(self, dtype: npt.DTypeLike | None = None, *, copy: bool | None = None) -> Values:
        if copy is False:
            raise ValueError("an Array's blocks do not lie together: a copy is necessary")
        return self.to_numpy() if dtype is None else self.to_numpy().astype(dtype)

    def clone(self) -> "Array":
        """A copy of each block, where it lies."""
        return self.map_blocks(np.copy)

    # -- its blocks -----------------------------------------------------------------------------------------

    def blocks(self) -> "Iterator[tuple[Region, Box[Values]]]":
        """Where each block lies in the array, and its Box: the last axis fastest. No message.

        They stay the Array's: borrow them, but do not give them away.
        """
        for index, box in zip(self._grid.indices(), self._boxes, strict=True):
            yield self._grid.region(index), box

    def map_blocks(self, function: Callable[..., npt.ArrayLike], *args: Any, retry: int = 0) -> "Array":
        """A new Array of `function(block, *args)` for each block: a task a block, which stays where it lies.

        Args:
            function: gets a block's values, to read, and returns an array of that shape.
            args: passed on to each. An Array among them that has the same shape and chunks is passed block by
                block, to be read; it may lie on other servers. A Box or a borrow among them goes to the first
                task alone, and is refused for the next: give its value.
            retry: how often the task of a block is run again if its worker is lost.

        Raises:
            ValueError: a result has another shape than its block, or they have different dtypes, or an Array
                among `args` is cut differently.
            BaseException: what the first block's task that failed raised.
        """
        made = blocks.run_at(
            _map_block,
            [(self._replicas, *each) for each in self._with_args(args)],
            self.servers,
            function=function,
            retry=retry,
        )
        dtypes = {dtype for _, dtype in made}
        if len(dtypes) > 1:
            raise ValueError(
                f"{len(dtypes)} dtypes came from blocks of one Array: {sorted(map(str, dtypes))}"
            )
        return Array(self._grid, made[0][1], [box for box, _ in made], self._replicas)

    def update_blocks(self, function: Callable[..., object], *args: Any, retry: int = 0) -> None:
        """Runs `function(block, *args)` for each block, to change it in place: a task a block, where it lies.

        A task that raises keeps what it has changed, as any borrow does; one that is lost leaves its block as
        it was, or poisoned, and the others' blocks changed: docs/failure.md. The rest as `map_blocks`.
        """
        arguments = self._with_args(args, mutable=True)
        blocks.run_at(_update_block, arguments, self.servers, function=function, retry=retry)

    def _with_args(self, args: tuple[Any, ...], *, mutable: bool = False) -> list[tuple[Any, ...]]:
        for other in args:
            if isinstance(other, Array) and other._grid != self._grid:
                raise ValueError(f"{other!r} is not cut as {self!r}: give it the same shape and chunks")

        def of(value: Any, number: int) -> Any:
            return value._boxes[number].borrow() if isinstance(value, Array) else value

        return [
            (box.borrow_mut() if mutable else box.borrow(), *(of(each, number) for each in args))
            for number, box in enumerate(self._boxes)
        ]

    # -- lending it -----------------------------------------------------------------------------------------

    def borrow(self) -> ArrayRef:
        """A shared borrow of all blocks, to be read; in a task the blocks elsewhere are read whole."""
        everything: list[tuple[Region, Held]] = [(where, box.borrow()) for where, box in self.blocks()]
        return ArrayRef(self._all(), self.dtype, everything)

    def borrow_mut(self) -> ArrayMut:
        """An exclusive borrow of all blocks; blocks elsewhere move to who opens it."""
        everything: list[tuple[Region, Held]] = [(where, box.borrow_mut()) for where, box in self.blocks()]
        return ArrayMut(self._all(), self.dtype, everything)

    def split_mut(self, n: int, axis: int = 0) -> list[ArrayMut]:
        """Disjoint exclusive borrows: `n` parts along an axis, in order, in place, no message.

        A part is of whole blocks while there are as many along that axis; else blocks are split, as
        `Box.split_mut` does. Along the axis that the array is cut on, all of a part lies on one server, and
        `spawn(f, part, server=part.server)` runs there; without `server=` small parts may be fetched instead.

        Args:
            n: how many parts; fewer come if the array is shorter than that.
            axis: along which it is cut.

        Raises:
            ConfigError: `n` is less than 1.
            numpy.exceptions.AxisError: there is no such axis.
        """
        if not isinstance(n, int) or n < 1:
            raise ConfigError(variable="n", value=repr(n), expected="a number of parts, at least 1")
        axis = reductions.axes_of(axis, self.ndim)[0]
        count = self._grid.counts[axis]
        if n <= count:
            return [self._rows(axis, first, last) for first, last in itertools.pairwise(even_edges(count, n))]
        parts: list[ArrayMut] = []
        for place, (first, last) in enumerate(itertools.pairwise(even_edges(n, count))):
            parts += self._split_rows(axis, place, last - first)
        return parts

    def _rows(self, axis: int, first: int, last: int) -> ArrayMut:
        """The blocks whose place along `axis` is in that range."""
        edges = self._grid.edges[axis]
        where = (*self._all()[:axis], slice(edges[first], edges[last]), *self._all()[axis + 1 :])
        pieces: list[tuple[Region, Held]] = [
            (self._grid.region(index), self._boxes[self._grid.number(index)].borrow_mut())
            for index in self._grid.indices()
            if first <= index[axis] < last
        ]
        return ArrayMut(where, self.dtype, pieces)

    def _split_rows(self, axis: int, place: int, n: int) -> list[ArrayMut]:
        """The blocks at one place along `axis`, each split into `n`."""
        begin, end = self._grid.edges[axis][place : place + 2]
        indices = [index for index in self._grid.indices() if index[axis] == place]
        split = [
            self._boxes[self._grid.number(index)].split_mut(min(n, max(1, end - begin)), axis)
            for index in indices
        ]
        parts: list[ArrayMut] = []
        for guards in zip(*split, strict=True):
            start, stop = guards[0]._part[:2] if guards[0]._part else (0, end - begin)
            along = slice(begin + start, begin + stop)
            pieces: list[tuple[Region, Held]] = [
                ((*region[:axis], along, *region[axis + 1 :]), guard)
                for region, guard in zip(map(self._grid.region, indices), guards, strict=True)
            ]
            where = (*self._all()[:axis], along, *self._all()[axis + 1 :])
            parts.append(ArrayMut(where, self.dtype, pieces))
        return parts

    def tiles(
        self, halo: int | Sequence[int] = 1, *, mode: str = "edge", fill_value: Any = 0, retry: int = 0
    ) -> list[Tile]:
        """An exclusive borrow of each block, with a copy of what lies around it now: for stencils.

        Args:
            halo: how many items around a block, along each axis or along all.
            mode: what lies beyond the array's border: "edge", "wrap", "reflect", "symmetric" or "constant",
                as `numpy.pad` has them.
            fill_value: of "constant".
            retry: as of `map_blocks`.

        Returns:
            The tiles in the order of `blocks()`. Each holds its block from when it is opened or lent.

        Raises:
            ConfigError: there is no such halo, or a block is narrower than it; no such mode.

        Cost: a task a block copies its edges where it lies, so a message for each server; then each tile's
            task reads the edges of blocks on other servers, 1 read each (diagonal neighbours too).
        """
        if mode not in halos.MODES:
            raise ConfigError(variable="mode=", value=repr(mode), expected=f"one of {', '.join(halos.MODES)}")
        wraps = mode == "wrap"
        widths = halos.halo_of(halo, self._grid, wraps=wraps)
        plan = halos.plan_edges(self._grid, widths, wraps=wraps)
        givers = [number for number, cuts in enumerate(plan.cuts) if cuts]
        given = blocks.run_at(
            _cut_edges,
            [(self._boxes[number].borrow(), plan.cuts[number]) for number in givers],
            [self._boxes[number].server for number in givers],
            retry=retry,
        )
        strips = dict(zip(givers, given, strict=True))

        def edges_of(number: int) -> dict[Index, Held]:
            return {
                strip.direction: strips[strip.giver][strip.number].borrow() for strip in plan.strips[number]
            }

        return [
            Tile(
                index, self._grid.region(index), widths, mode, fill_value, box.borrow_mut(), edges_of(number)
            )
            for number, (index, box) in enumerate(zip(self._grid.indices(), self._boxes, strict=True))
        ]

    def update_tiles(
        self,
        function: Callable[..., object],
        *args: Any,
        halo: int | Sequence[int] = 1,
        mode: str = "edge",
        fill_value: Any = 0,
    ) -> None:
        """Runs `function(tile, *args)` for each of `tiles(halo, ...)`, where its block lies; waits for all.

        Every tile sees the others as they were before.
        """
        made = self.tiles(halo, mode=mode, fill_value=fill_value)
        blocks.run_at(_update_tile, [(tile, *args) for tile in made], self.servers, function=function)

    def _all(self) -> Region:
        return tuple(slice(0, extent) for extent in self.shape)

    # -- reducing it ----------------------------------------------------------------------------------------

    def _reduce(
        self, name: str, axis: "int | Sequence[int] | None", dtype: "np.dtype[Any] | None" = None
    ) -> Any:
        axes = reductions.axes_of(axis, self.ndim)
        arguments = [(box.borrow(), name, axes, dtype) for box in self._boxes]
        return reductions.combine(
            self._grid, blocks.run_at(reductions.reduce_block, arguments, self.servers), name, axes
        )

    def sum(self, axis: "int | Sequence[int] | None" = None) -> Any:
        """As `numpy.sum`: a task a block, where it lies; what is left of each travels."""
        return self._reduce("sum", axis)

    def prod(self, axis: "int | Sequence[int] | None" = None) -> Any:
        """As `numpy.prod`; costs as `sum`."""
        return self._reduce("prod", axis)

    def min(self, axis: "int | Sequence[int] | None" = None) -> Any:
        """As `numpy.min`; costs as `sum`."""
        return self._reduce("min", axis)

    def max(self, axis: "int | Sequence[int] | None" = None) -> Any:
        """As `numpy.max`; costs as `sum`."""
        return self._reduce("max", axis)

    def any(self, axis: "int | Sequence[int] | None" = None) -> Any:
        """As `numpy.any`; costs as `sum`."""
        return self._reduce("any", axis)

    def all(self, axis: "int | Sequence[int] | None" = None) -> Any:
        """As `numpy.all`; costs as `sum`."""
        return self._reduce("all", axis)

    def mean(self, axis: "int | Sequence[int] | None" = None) -> Any:
        """As `numpy.mean`; costs as `sum`."""
        kinds = {"i": np.dtype(float), "u": np.dtype(float), "b": np.dtype(float)}
        is_half = self.dtype == np.float16  # which numpy sums as float32
        summed = self._reduce("sum", axis, np.dtype(np.float32) if is_half else kinds.get(self.dtype.kind))
        count = math.prod(self.shape[each] for each in reductions.axes_of(axis, self.ndim))
        mean = np.true_divide(summed, count, dtype=None if summed.dtype.kind == "m" else summed.dtype)
        return mean.astype(self.dtype)[()] if is_half else mean


# -- tasks --------------------------------------------------------------------------------------------------


def _map_block(
    reference: shipping.FunctionReference, replicas: int | None, values: Values, *args: Any
) -> "tuple[Box[Values], np.dtype[Any]]":
    made = np.asarray(shipping.resolve(reference)(values, *args))
    if made.shape != values.shape:
        raise ValueError(f"map_blocks got an array of shape {made.shape} for a block of shape {values.shape}")
    blocks.check_numbers(made.dtype)
    return Box(made, replicas=replicas), made.dtype


def _update_block(reference: shipping.FunctionReference, values: Values, *args: Any) -> None:
    shipping.resolve(reference)(values, *args)


def _update_tile(reference: shipping.FunctionReference, tile: Tile, *args: Any) -> None:
    shipping.resolve(reference)(tile, *args)


def _set(values: Values, inside: Any, part: Values) -> None:
    values[inside] = part


def _cut_edges(values: Values, cuts: list[Region]) -> "list[Box[Values]]":
    return [Box(np.ascontiguousarray(values[cut])) for cut in cuts]


def _place(
    shape: int | Sequence[int], chunks: "int | Sequence[int | None] | None", on: Iterable[int] | None
) -> tuple[list[int], Grid]:
    where = blocks.check_servers(on)
    extents = tuple(map(operator.index, shape if isinstance(shape, Iterable) else (shape,)))
    if any(extent < 0 for extent in extents):
        raise ValueError(f"negative dimensions are not allowed: {extents}")
    grid = cut(extents, chunks, len(where) * max(1, runtime.config().workers))
    return where, grid
