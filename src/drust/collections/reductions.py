"""Sums and the like of an Array: each block is reduced where it lies, and what is left travels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from drust.collections.grid import Grid, Values

UFUNCS: dict[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "any": np.logical_or,
    "all": np.logical_and,
}


def axes_of(axis: "int | Sequence[int] | None", ndim: int) -> tuple[int, ...]:
    """The axes to reduce, as numpy understands `axis`.

    Raises:
        numpy.exceptions.AxisError: there is no such axis.
        ValueError: one is named twice.
    """
    if axis is None:
        return tuple(range(ndim))
    return np.lib.array_utils.normalize_axis_tuple(axis, ndim)


def reduce_block(values: Values, name: str, axes: tuple[int, ...], dtype: "np.dtype[Any] | None") -> Values:
    """What is left of one block, with as many axes as it had: a task."""
    return np.asarray(UFUNCS[name].reduce(values, axis=axes, dtype=dtype, keepdims=True))


def combine(grid: Grid, parts: Sequence[Values], name: str, axes: tuple[int, ...]) -> Any:
    """The whole array's, of what is left of its blocks."""
    shape = [
        count if axis in axes else extent
        for axis, (count, extent) in enumerate(zip(grid.counts, grid.shape, strict=True))
    ]
    left = np.empty(shape, parts[0].dtype)
    for index, part in zip(grid.indices(), parts, strict=True):
        region = grid.region(index)
        left[
            tuple(
                slice(index[axis], index[axis] + 1) if axis in axes else region[axis]
                for axis in range(len(shape))
            )
        ] = part
    return UFUNCS[name].reduce(left, axis=axes)
