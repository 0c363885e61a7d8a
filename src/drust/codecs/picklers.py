"""The picklers: pickle protocol 5 in four strengths, chosen by what a value turns out to hold.

    PlainPickler        what imports by name, no Box: the common case, at the speed of C
    BoxPickler          the same with Boxes, which become children of the block
    CloudPickler        classes and functions of `__main__` and other places nobody can import from, by value
    CloudBoxPickler     both

Each stops with `NeedsCloudpickle` or `MetHandle` when it meets what only a stronger one can do, and the
value is pickled again with that. Measured against pickle.dumps: `persistent_id`, asked for each object,
makes a list of integers nine times slower; cloudpickle's look-ups make a list of instances three times
slower; the plain pickler takes 1.3 times as long on both at most. All classes and functions pass through
`reducer_override`, so none can slip through by reference.

Arrays that numpy would write into the pickle (subclasses, masked, strided ones) are taken apart here, so that
their data too stays out of it.
"""

import copyreg
import operator
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from typing import IO, Any

import cloudpickle
import numpy as np

from drust import _core
from drust.codecs.base import Array
from drust.codecs.tied import Tied

OUT_OF_BAND_BYTES_MIN = 1024  # smaller buffers are cheaper inside the pickle than with a place of their own


class NeedsCloudpickle(Exception):  # noqa: N818 - a signal, never seen outside
    """The value holds something that travels by value."""


class MetHandle(Exception):  # noqa: N818 - a signal, never seen outside
    """The value holds a Box, or something tied to it."""


class SharedHandle(Exception):  # noqa: N818 - turned into the error that names the places
    """The value holds the same Box, or the same tied value, twice."""

    def __init__(self, handle: object) -> None:
        super().__init__()
        self.handle = handle


def _outside_main(module: str) -> bool:
    return module not in ("__main__", "__mp_main__")


is_importable: Callable[[str], bool] = _outside_main
"""Whether other processes can import a module by this name; `set_importable` of pickling.py replaces it."""

# Types whose instances only cloudpickle can pickle, or pickles better: modules, cells, type variables.
_CLOUDPICKLE_TYPES = frozenset(cloudpickle.Pickler.dispatch_table) - frozenset(copyreg.dispatch_table)


def _goes_by_name(found: Any) -> bool:
    """Whether a class or function is what its name gives in a module that others can import, too."""
    module = getattr(found, "__module__", None)
    if module is None or not is_importable(module):
        return False
    by_value = cloudpickle.list_registry_pickle_by_value()
    if any(module == name or module.startswith(f"{name}.") for name in by_value):
        return False
    try:
        return operator.attrgetter(found.__qualname__)(sys.modules[module]) is found
    except (AttributeError, KeyError):
        return False


class _Options:
    """What the picklers share: set before `dump`, used by one thread."""

    handles: Mapping[type, int]
    children: list[tuple[Any, int]]
    seen: set[int]  # of the children and what is tied, by id: a call may have thousands
    tied: list[Any] | None  # the value and all that is tied to it, a pickle each; None: they stand inside it

    def add_child(self, handle: object) -> int:
        flags = self.handles[type(handle)]
        # A shared object may be held any number of times.
        if id(handle) in self.seen and not flags & _core.HOLD:
            raise SharedHandle(handle)
        self.seen.add(id(handle))
        self.children.append((handle, flags))
        return len(self.children) - 1

    def add_tied(self, tied: Tied[Any], found: list[Any]) -> int:
        if id(tied) in self.seen:
            raise SharedHandle(tied)
        self.seen.add(id(tied))
        found.append(tied)
        return 1 - len(found)  # the first is the value itself; children count upwards

    def find_id(self, value: object) -> int | None:
        """A number for what does not stand in this pickle: from 0 up for a child, below for what is tied."""
        if type(value) in self.handles:
            return self.add_child(value)
        if type(value) is Tied and self.tied is not None:
            return self.add_tied(value, self.tied)
        return None


class PlainPickler(pickle.Pickler, _Options):
    """By name only, no Boxes."""

    def reducer_override(self, value: Any) -> Any:
        """Called by pickle for all but built-in atoms and containers; also for classes and functions."""
        kind = type(value)
        if kind in self.handles or (kind is Tied and self.tied is not None):
            raise MetHandle
        if kind is types.FunctionType or issubclass(kind, type):
            if _goes_by_name(value):
                return NotImplemented
            raise NeedsCloudpickle
        if kind in _CLOUDPICKLE_TYPES:
            raise NeedsCloudpickle
        return _reduce_array(value, kind) if issubclass(kind, np.ndarray) else NotImplemented


class BoxPickler(PlainPickler):
    """By name only, Boxes as children, tied values as pickles of their own."""

    def persistent_id(self, value: object) -> int | None:
        """Called by pickle for every object."""
        return self.find_id(value)


class CloudPickler(cloudpickle.Pickler, _Options):  # type: ignore[misc]
    """By value where nobody can import it, no Boxes."""

    def reducer_override(self, obj: Any) -> Any:
        """As PlainPickler's; classes and functions are cloudpickle's."""
        kind = type(obj)
        if kind in self.handles or (kind is Tied and self.tied is not None):
            raise MetHandle
        if issubclass(kind, np.ndarray):
            return _reduce_array(obj, kind)
        if kind is types.FunctionType or issubclass(kind, type):
            is_importable(getattr(obj, "__module__", None) or "")  # tells cloudpickle, if it says no
        return super().reducer_override(obj)


class CloudBoxPickler(CloudPickler):
    """By value where nobody can import it, Boxes as children."""

    def persistent_id(self, value: object) -> int | None:
        """Called by pickle for every object."""
        return self.find_id(value)


class ChildUnpickler(pickle.Unpickler):
    """Reads what the Box picklers wrote."""

    def __init__(
        self,
        file: IO[bytes],
        buffers: list[Any],
        child: Callable[[int], Any],
        tied: Callable[[int], Any] | None = None,
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._child = child
        self._tied = tied

    def persistent_load(self, pid: int) -> Any:
        """The handle, or the tied value, that stood here."""
        return self._child(pid) if pid >= 0 or self._tied is None else self._tied(-pid)


def _reduce_array(value: Array, kind: type) -> Any:
    """How an array is pickled if numpy's own way would copy its data into the pickle; else NotImplemented."""
    if value.nbytes < OUT_OF_BAND_BYTES_MIN or value.dtype.hasobject or value.dtype.itemsize == 0:
        return NotImplemented
    if kind is np.ndarray:
        return NotImplemented if value.flags.forc else np.ascontiguousarray(value).__reduce_ex__(5)
    if kind is np.ma.MaskedArray and isinstance(value, np.ma.MaskedArray):
        if type(value.data) is not np.ndarray or getattr(value, "_optinfo", None):
            return NotImplemented
        mask = None if value.mask is np.ma.nomask else value.mask
        return restore_masked, (value.data, mask, value.fill_value, value.hardmask)
    methods = ("__reduce__", "__reduce_ex__", "__setstate__")
    if any(getattr(kind, name) is not getattr(np.ndarray, name) for name in methods):
        return NotImplemented  # the class knows better
    attributes = {} if issubclass(kind, np.memmap) else dict(getattr(value, "__dict__", {}))
    return restore_subclass, (kind, np.ndarray.view(value, np.ndarray), attributes)


def restore_masked(data: Array, mask: Array | None, fill_value: Any, hard_mask: bool) -> Any:
    """A masked array over the memory of its parts. Pickles name this function: it stays here."""
    kept = np.ma.nomask if mask is None else mask
    return np.ma.MaskedArray(data, kept, copy=False, fill_value=fill_value, hard_mask=hard_mask, shrink=False)


def restore_subclass(kind: type[Array], data: Array, attributes: dict[str, Any]) -> Any:
    """An array of class `kind` over the memory of `data`. Pickles name this function, too."""
    value = data.view(kind)
    if attributes:
        value.__dict__.update(attributes)
    return value
