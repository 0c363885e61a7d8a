"""empty, full, zeros: arrays that are made in the heap, here or where there is room.

As numpy's creation routines: nothing is copied into the heap afterwards. Beside them what every Box asks when
it is made: whether its `replicas=` can be had.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from drust import _core, codecs, runtime
from drust.codecs import arrays
from drust.config import REPLICAS_MAX
from drust.errors import ConfigError, OutOfMemoryError, ServerLostError


def put_elsewhere(encoded: codecs.Encoded, error: OutOfMemoryError) -> _core.Pin:
    """An array on the most vacant server, where this one has no room: 1 request with its bytes.

    Raises:
        OutOfMemoryError: `error`, if nobody has room.
    """
    for server, free_bytes in runtime.vacant_servers(runtime.current()):
        if free_bytes < codecs.base.part_bytes(encoded.buffers[0]):
            break
        try:
            return put_at(server, encoded)
        except (OutOfMemoryError, ServerLostError):
            continue
    raise error


def put_at(server: int, encoded: codecs.Encoded) -> _core.Pin:
    """An array on another server: 1 request with its bytes. A small block here frees it if this process dies.

    Raises:
        OutOfMemoryError: no room there, or here for that block.
        ServerLostError: it is lost.
    """
    here = runtime.current()
    (part,) = encoded.buffers
    data: Any = codecs.base.raw_bytes(np.ascontiguousarray(part))
    return here.put_value(server, encoded.codec, encoded.meta, data)


def choose_replicas(replicas: object) -> bool:
    """Whether a Box's `replicas=` is another choice than its session's. Starts the default session.

    Raises:
        ConfigError: it is neither 0 nor 1; or 1 where no other server could keep a replica.
    """
    runtime.current()
    settings = runtime.config()
    if isinstance(replicas, bool) or not isinstance(replicas, int) or not 0 <= replicas <= REPLICAS_MAX:
        raise ConfigError(
            variable="replicas=",
            value=repr(replicas),
            expected=f"a whole number from 0 to {REPLICAS_MAX}, or None for the session's setting",
        )
    if replicas and settings.servers < 2:
        raise ConfigError(
            variable="replicas=",
            value=str(replicas),
            expected="0 in a session of one server; for 1, another server to keep it: drust.init(servers=2)",
        )
    return replicas != settings.replicas


def empty(
    shape: int | Sequence[int],
    dtype: npt.DTypeLike = float,
    *,
    order: Literal["C", "F"] = "C",
    replicas: int | None = None,
) -> "_core.Box[npt.NDArray[Any]]":
    """A Box of an array made in the heap, its contents undefined: no copy. As `numpy.empty`.

    Where this server has no room, it is made on the most vacant one: 1 request with its bytes.

    Args:
        shape: its extent along each axis.
        dtype: what its items are.
        order: which axis is contiguous: the last one (C) or the first one (F).
        replicas: as of `Box`.

    Raises:
        OutOfMemoryError: no heap has room.
        TypeError: the dtype holds Python objects.
        ConfigError: `replicas` cannot be had.
    """
    excepted = replicas is not None and choose_replicas(replicas)
    try:
        return _empty_here(shape, dtype, order, excepted=excepted)
    except OutOfMemoryError as error:
        array = np.zeros(shape, dtype, order=order)
        parts = arrays.encode_array(array)
        if parts is None:
            raise
        pin = put_elsewhere(codecs.Encoded(codecs.NDARRAY, parts[0], [parts[1]]), error)
        return _core.Box._from_pin(pin, "owned", np.ndarray, excepted=excepted)


def _empty_here(
    shape: int | Sequence[int], dtype: npt.DTypeLike, order: Literal["C", "F"], *, excepted: bool
) -> "_core.Box[npt.NDArray[Any]]":
    described = np.dtype(dtype)
    extents = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    meta = arrays.pack_layout(extents, described, order)
    if meta is None:
        raise TypeError(f"an array of {described} holds Python objects: use Box(numpy.empty(...))")
    nbytes = described.itemsize
    for extent in extents:
        if extent < 0:
            raise ValueError(f"negative dimensions are not allowed: {extents}")
        nbytes *= extent
    pin = runtime.current().allocate(codecs.NDARRAY, meta, [nbytes], []).publish()
    return _core.Box._from_pin(pin, "owned", np.ndarray, excepted=excepted)


def full(
    shape: int | Sequence[int],
    fill_value: object,
    dtype: npt.DTypeLike | None = None,
    *,
    order: Literal["C", "F"] = "C",
    replicas: int | None = None,
) -> "_core.Box[npt.NDArray[Any]]":
    """As `empty`, filled with one value. As `numpy.full`."""
    excepted = replicas is not None and choose_replicas(replicas)
    described = np.asarray(fill_value).dtype if dtype is None else dtype
    try:
        box = _empty_here(shape, described, order, excepted=excepted)
    except OutOfMemoryError:  # it is filled before it goes to where there is room
        return _core.Box(np.full(shape, fill_value, described, order=order), replicas=replicas)
    with box.borrow_mut() as array:
        array.fill(fill_value)
    return box


def zeros(
    shape: int | Sequence[int],
    dtype: npt.DTypeLike = float,
    *,
    order: Literal["C", "F"] = "C",
    replicas: int | None = None,
) -> "_core.Box[npt.NDArray[Any]]":
    """As `empty`, filled with zeros. As `numpy.zeros`."""
    return full(shape, 0, dtype, order=order, replicas=replicas)
