"""How functions travel to the processes that run them: by name where possible, else once as bytes.

A function of an installed module travels as its name. One of `__main__`, of a notebook, of a test file or of
a module that only this process can import travels by value (cloudpickle), once per version: its bytes are a
block, and the copy table brings that block to each server once. A *version* is the function object together
with what its global names and its closure held at that moment, so that redefining a helper in a notebook
ships it anew.

Rejected: running the script again in each worker as `__mp_main__` (a script without a `__main__` guard would
start everything twice, a notebook has no file); identifying a function by the hash of its bytes
(cloudpickle's are not deterministic).
"""

import contextlib
import importlib
import importlib.machinery
import operator
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import cloudpickle
import msgspec

from drust import _core, runtime
from drust.codecs.own import FUNCTION_CODEC
from drust.errors import CaptureTooLargeError, PickledBoxError, TaskError, UnpicklableError
from drust.runtime import Pointer

_CONSTANTS = (
    int, float, complex, str, bytes, bool, type(None), type, types.BuiltinFunctionType, types.ModuleType
)  # fmt: skip


_RECEIVED_MAX = 1024


class FunctionReference(msgspec.Struct, frozen=True, array_like=True):
    """What a task says of its function: a name to import, or where its bytes are."""

    module: str
    name: str
    pointer: Pointer | None = None


class Shipped(NamedTuple):
    """A function ready to be named by a task; `pin` keeps its bytes for the tasks that name them."""

    reference: FunctionReference
    pin: _core.Pin | None


_importable: dict[str, bool] = {"__main__": False, "__mp_main__": False, "builtins": True}
_shipped: "WeakKeyDictionary[Callable[..., Any], tuple[list[object], Shipped]]" = WeakKeyDictionary()
_received: dict[Pointer, Callable[..., Any]] = {}


def is_importable(module: str) -> bool:
    """Whether another process with this one's `sys.path` finds the same `module` by name."""
    known = _importable.get(module)
    if known is None:
        known = _importable[module] = _look(module)
        if not known and module in sys.modules:
            cloudpickle.register_pickle_by_value(sys.modules[module])
    return known


def _look(module: str) -> bool:
    loaded = sys.modules.get(module)
    if loaded is None:
        return False
    top = module.partition(".")[0]
    if top in sys.builtin_module_names:
        return True
    try:
        spec = importlib.machinery.PathFinder.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    if "." in module:
        return True
    origin = getattr(loaded, "__file__", None)
    return origin is None or spec.origin is None or spec.origin == origin


def ship(function: Callable[..., Any]) -> Shipped:
    """What a task carries to name `function`. The first time for a version: one encoding, no message.

    Raises:
        CaptureTooLargeError: its closure or globals hold more than `capture_bytes_max`.
        PickledBoxError: it captures a Box (pass it as an argument).
        UnpicklableError: it captures something that cannot travel.
    """
    module = getattr(function, "__module__", None) or ""
    name = getattr(function, "__qualname__", "")
    has_name = isinstance(function, types.FunctionType | types.BuiltinFunctionType | type) and "<" not in name
    if has_name and is_importable(module) and _resolves(module, name, function):
        return Shipped(FunctionReference(module, name), None)
    version = _version(function)
    try:
        cached = _shipped.get(function)
    except TypeError:  # no weak references to it, or unhashable
        cached = None
    if cached is not None and version is not None and _same(cached[0], version[1:]):
        return cached[1]
    data = _pickle(function, name or repr(function))
    draft = runtime.current().allocate(FUNCTION_CODEC, b"", [len(data)], [])
    draft.copy_in(0, data)
    pin = draft.publish()
    shipped = Shipped(FunctionReference(module, name, pin.pointer), pin)
    if version is not None:
        del version[0]  # the function itself: the table must not keep its own key alive
        with contextlib.suppress(TypeError):
            _shipped[function] = (version, shipped)
    return shipped


def forget() -> None:
    """Drops what was shipped to, or received through, a runtime that has closed."""
    _shipped.clear()
    _received.clear()


def _resolves(module: str, name: str, function: object) -> bool:
    return _named(sys.modules.get(module), name) is function


def _named(module: object, name: str) -> Any:
    """What a module has under a dotted name; None if there is no such thing."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _version(function: object) -> list[object] | None:
    """All that a pickle of `function` holds, to compare by identity; None if some may change in place."""
    parts: list[object] = []
    return parts if _collect(function, parts, set()) else None


def _collect(value: object, parts: list[object], seen: set[int]) -> bool:
    parts.append(value)
    if id(value) in seen:
        return True
    seen.add(id(value))
    if isinstance(value, tuple):
        return all(_collect(item, parts, seen) for item in value)
    if isinstance(value, _CONSTANTS):
        return True
    if not isinstance(value, types.FunctionType):
        return False
    if value.__qualname__ and is_importable(value.__module__ or "") and "<" not in value.__qualname__:
        return True
    parts += [value.__code__, value.__defaults__, value.__kwdefaults__]
    try:
        held = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # a cell that is not filled yet
        return False
    held += [value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__]
    held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return all(_collect(item, parts, seen) for item in held)


def _names(code: types.CodeType) -> set[str]:
    """The global names that code may read, in comprehensions and inner functions too."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _same(one: list[object], other: list[object]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _pickle(function: Callable[..., Any], name: str) -> bytes:
    try:
        data: bytes = cloudpickle.dumps(function, protocol=pickle.HIGHEST_PROTOCOL)
    except PickledBoxError as error:
        raise PickledBoxError(object=error.object, via=f"{name}, which captures it") from None
    except UnpicklableError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, PickledBoxError):
            raise PickledBoxError(via=f"{name}, which captures it") from None
        raise UnpicklableError(object=f"the function {name}", reason=str(error)) from error
    limit = runtime.config().capture_bytes_max
    if len(data) > limit:
        variable, size = _largest_capture(function)
        raise CaptureTooLargeError(
            function=name, variable=variable, size_bytes=size or len(data), limit_bytes=limit
        )
    return data


def _largest_capture(function: object) -> tuple[str, int]:
    if not isinstance(function, types.FunctionType):
        return "", 0
    names = {
        name: function.__globals__[name]
        for name in function.__code__.co_names
        if name in function.__globals__
    }
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        names[name] = cell.cell_contents
    sizes = {}
    for name, value in names.items():
        if isinstance(value, types.ModuleType):
            continue
        sizes[name] = len(cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
    return max(sizes.items(), key=lambda item: item[1], default=("", 0))


def resolve(reference: FunctionReference) -> Callable[..., Any]:
    """The function behind a reference, on the worker's side: at most 1 read a server, once per version.

    Raises:
        TaskError: the module cannot be imported here.
    """
    if reference.pointer is None:
        try:
            found = _named(sys.modules.get(reference.module), reference.name)
            if found is None:  # not imported, or another thread is in the middle of that
                found = _named(importlib.import_module(reference.module), reference.name)
            if found is None:
                raise AttributeError(f"module {reference.module!r} has no {reference.name!r}")
        except (ImportError, AttributeError) as error:
            raise TaskError(task=f"{reference.module}.{reference.name}", error=str(error)) from error
        function: Callable[..., Any] = found
        return function
    known = _received.get(reference.pointer)
    if known is None:
        pin = open_anywhere(reference.pointer)
        known = pickle.loads(pin.buffer(0))
        if len(_received) >= _RECEIVED_MAX:  # a program that ships ever new lambdas: forget the oldest
            del _received[next(iter(_received))]
        _received[reference.pointer] = known
    return known


def open_anywhere(pointer: Pointer) -> _core.Pin:
    """A shared hold on a version wherever it is: 0 messages if it or a copy is on this host, else 1 read."""
    here = runtime.current()
    if runtime.server_of(pointer) == here.server:
        return here.open(pointer, False, 0)
    return here.fetch(pointer)
