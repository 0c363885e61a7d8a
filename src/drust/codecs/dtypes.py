"""numpy dtypes as plain data, safe to decode: nothing is evaluated, imported or unpickled.

    simple      "<f8", "|S5", "<M8[25s]"
    sub-array   [dtype, shape]
    structure   [item size, flags, names, dtypes, offsets, titles]       flags: 1 aligned, 2 numpy.record

This describes every dtype that is its own description: `describe` compares and answers None for the others
(Python objects anywhere, variable-width strings, types that libraries add, dtypes with metadata), which go to
pickle.

Rejected: `dtype.descr`, as in .npy files, for it loses alignment, titles and overlapping fields, and has to
be evaluated as Python.
"""

import functools
import re
from typing import Any, TypeAlias

import numpy as np

Description: TypeAlias = Any  # str | list, nested

_SIMPLE = re.compile(r"[<>|=][?biufcmMSUV]\d{1,18}(\[\d{0,18}[A-Za-zμ]{1,7}(/\d{1,18})?\])?", re.ASCII)
_ALIGNED = 1
_RECORD = 2


def describe(dtype: np.dtype[Any]) -> Description:
    """The description of a dtype, or None if it is none of ours."""
    if dtype.hasobject or dtype.itemsize == 0 or dtype.metadata:
        return None
    simple = dtype.names is None and dtype.subdtype is None
    return _describe_simple(dtype) if simple else _describe_exactly(dtype)


def _describe_exactly(dtype: np.dtype[Any]) -> Description:
    description = _describe(dtype)
    if description is None:
        return None
    same = restore(description)
    return description if same == dtype and same.type is dtype.type else None


# Equal dtypes without fields are alike in all that matters here; equal structures can differ in their type.
_describe_simple = functools.lru_cache(maxsize=256)(_describe_exactly)


def _describe(dtype: np.dtype[Any]) -> Description:
    if dtype.metadata:
        return None
    if dtype.subdtype is not None:
        base = _describe(dtype.subdtype[0])
        return None if base is None else [base, list(dtype.subdtype[1])]
    if dtype.names is None or dtype.fields is None:
        return dtype.str if _SIMPLE.fullmatch(dtype.str) else None
    places: Any = dtype.fields  # numpy's stub wants literal names
    fields = [places[name] for name in dtype.names]
    formats = [_describe(field[0]) for field in fields]
    titles = [field[2] if len(field) > 2 else None for field in fields]
    if None in formats or not all(title is None or isinstance(title, str) for title in titles):
        return None
    flags = _ALIGNED * dtype.isalignedstruct + _RECORD * (dtype.type is np.record)
    return [dtype.itemsize, flags, list(dtype.names), formats, [field[1] for field in fields], titles]


def restore(description: Any) -> np.dtype[Any]:
    """The dtype of a description.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(description, str):
        return _restore_simple(description)
    if not isinstance(description, list):
        raise TypeError(f"a dtype cannot be a {type(description).__name__}")
    if len(description) == 2:
        base, shape = description
        return _dtype((restore(base), tuple(shape)))
    itemsize, flags, names, formats, offsets, titles = description
    fields: dict[str, Any] = {
        "names": names,
        "formats": [restore(format_) for format_ in formats],
        "offsets": offsets,
        "itemsize": itemsize,
    }
    if any(title is not None for title in titles):
        fields["titles"] = titles
    dtype = _dtype(fields, align=bool(flags & _ALIGNED))
    return _dtype((np.record, dtype)) if flags & _RECORD else dtype


@functools.lru_cache(maxsize=256)
def _restore_simple(description: str) -> np.dtype[Any]:
    if not _SIMPLE.fullmatch(description):
        raise ValueError(f"{description!r} is no dtype")
    return np.dtype(description)


def _dtype(arguments: Any, align: bool = False) -> np.dtype[Any]:
    """`numpy.dtype`, whose overloads know none of these forms when they are built at run time."""
    dtype: np.dtype[Any] = np.dtype(arguments, align=align)
    return dtype
