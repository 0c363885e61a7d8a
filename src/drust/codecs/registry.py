"""Which codec a value gets, and the way from a value to a block and back.

The most specific codec wins: the one of the exact type, then those of its bases in the order Python looks up
methods, then those of abstract classes it is a virtual subclass of, and pickle, the codec of `object`, at the
end. A codec may decline a value (an array of Python objects), which leaves it to the next.

Libraries we support and do not depend on are named here and imported at the first sight of a value of theirs.
"""

import contextlib
import importlib
import threading
from abc import ABCMeta
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from drust.codecs import own
from drust.codecs.base import (
    ARROW,
    COLUMN,
    POLARS,
    THIRD_PARTY_MAX,
    THIRD_PARTY_MIN,
    TORCH,
    ChildPointer,
    Codec,
    Encoded,
    PinLike,
    RuntimeLike,
    fill_some,
    part_bytes,
    type_name,
)
from drust.errors import CodecError, DrustError, InternalError

_P = TypeVar("_P")

_OPTIONAL_MODULES = {"pyarrow": "arrow", "polars": "frames", "torch": "tensors"}
_OPTIONAL_NUMBERS = {ARROW: "arrow", COLUMN: "arrow", POLARS: "frames", TORCH: "tensors"}
_OPTIONAL_NAMES = {ARROW: "arrow", COLUMN: "column", POLARS: "polars", TORCH: "torch"}


class _Entry(NamedTuple):
    codec: Codec
    subclasses: bool


@dataclass
class _Statistics:
    encodes: int = 0
    encoded_bytes: int = 0
    decodes: int = 0


# _lock protects the statistics and the writers of the three tables. Readers need none: one look-up each.
_lock = threading.RLock()
_types: dict[type, _Entry] = {}
_numbers: dict[int, Codec] = {}
_abstract: list[type] = []  # registered types with a say of their own in isinstance()
_statistics = _Statistics()
_observer: Callable[[str, int], None] | None = None  # set once at import


def register(codec: Codec, kind: type, *, subclasses: bool = True, replace: bool = False) -> None:
    """Makes `codec` the one for values of the class `kind`, in this process.

    Every process that meets such a value needs it: call this where the class is defined, when its module is
    imported. Register it for several classes one by one.

    Args:
        codec: has a `number` from 1000 up that no other codec uses, a `name`, `encode` and `decode`.
        kind: the class of the values.
        subclasses: also for subclasses that have no codec of their own.
        replace: take the place of the codec with the same number or class (for notebooks: cells run twice).

    Raises:
        CodecError: the number is taken or not allowed, the class has another codec, or a part is missing.
    """
    number = getattr(codec, "number", None)
    missing = [part for part in ("name", "encode", "decode") if not getattr(codec, part, None)]
    if not isinstance(number, int) or isinstance(number, bool):
        raise _refused(codec, f"its number is {number!r}, not an int")
    if not THIRD_PARTY_MIN <= number <= THIRD_PARTY_MAX:
        raise _refused(codec, f"its number is {number}, not from {THIRD_PARTY_MIN} to {THIRD_PARTY_MAX}")
    if missing:
        raise _refused(codec, f"it has no {' and no '.join(missing)}")
    if not isinstance(kind, type):
        raise _refused(codec, f"{kind!r} is not a class")
    if kind is object:
        raise _refused(codec, "object belongs to pickle; name a class")
    install(codec, kind, subclasses=subclasses, replace=replace)


def install(codec: Codec, *kinds: type, subclasses: bool = False, replace: bool = False) -> None:
    """`register` for drust's own codecs: any number."""
    with _lock:
        before = _numbers.get(codec.number)
        if before is not None and before is not codec and not replace:
            raise _refused(codec, f"number {codec.number} belongs to the codec {before.name!r}")
        for kind in kinds:
            entry = _types.get(kind)
            if entry is not None and entry.codec is not codec and not replace:
                other = f"{entry.codec.name!r} (number {entry.codec.number})"
                raise _refused(codec, f"{type_name(kind)} already has the codec {other}")
        for kind, entry in list(_types.items()):
            if entry.codec is before:
                _types[kind] = _Entry(codec, entry.subclasses)
        _numbers[codec.number] = codec
        for kind in kinds:
            _types[kind] = _Entry(codec, subclasses)
            if subclasses and isinstance(kind, ABCMeta) and kind not in _abstract:
                _abstract.append(kind)


def _refused(codec: Codec, reason: str) -> CodecError:
    name = getattr(codec, "name", None) or type_name(type(codec))
    return CodecError(codec=f"the codec {name!r}", object="its registration", reason=reason)


def _candidates(kind: type) -> Iterator[Codec]:
    """The codecs to ask for a value of exactly this type, most specific first; the last is pickle."""
    optional = _OPTIONAL_MODULES.get(kind.__module__.partition(".")[0])
    if optional is not None:
        with contextlib.suppress(ImportError):  # polars without pyarrow: pickle does it
            importlib.import_module(f"drust.codecs.{optional}")
    for base in kind.__mro__[:-1]:
        entry = _types.get(base)
        if entry is not None and (entry.subclasses or base is kind):
            yield entry.codec
    for abstract in _abstract:
        if abstract not in kind.__mro__ and issubclass(kind, abstract):
            yield _types[abstract].codec
    yield _types[object].codec


def encode(value: Any) -> Encoded:
    """The parts of a value. It is counted: nothing is to be encoded while only its owner's process can see
    it.

    Cost: no message; copies no buffer of 1 KiB and more.

    Raises:
        UnpicklableError: it holds something that cannot leave this process; the message has the path to it.
        CodecError: its codec failed.
    """
    for codec in _candidates(type(value)):
        try:
            encoded = codec.encode(value)
        except (DrustError, MemoryError):
            raise
        except Exception as error:
            raise _failed(codec, f"a {type_name(type(value))}", error) from error
        if encoded is not None:
            count_encode(encoded)
            return encoded
    raise InternalError(detail="The pickle codec declined a value.")


def count_encode(encoded: Encoded) -> None:
    """Adds one encoding to the statistics."""
    nbytes = sum(map(part_bytes, encoded.buffers))
    with _lock:
        _statistics.encodes += 1
        _statistics.encoded_bytes += nbytes
    if _observer is not None:
        _observer("encodes", nbytes)


def observe(observer: Callable[[str, int], None]) -> None:
    """Has `observer("encodes", bytes)` and `observer("decodes", 0)` called as they are counted here: the heap
    has counters that other processes can read.
    """
    global _observer
    _observer = observer


def write(
    runtime: RuntimeLike[_P], encoded: Encoded, pointer_of: Callable[[Any, int], ChildPointer] | None = None
) -> _P:
    """Puts the parts into a new block of this process's own partition: one copy of every buffer, no message.

    Args:
        runtime: allocates the block.
        encoded: from `encode`; the value must not change in between.
        pointer_of: gives the child pointer for a handle and its flags. Needed only if the value has children;
        it may
            write blocks itself. The children belong to the new block once this returned.

    Returns:
        The pin of the new block.

    Raises:
        OutOfMemoryError: the partition is full; nothing stays allocated.
    """
    children: list[ChildPointer] = []
    if encoded.children:
        if pointer_of is None:
            raise InternalError(detail="A value with Boxes in it was written without a way to point to them.")
        children = [pointer_of(handle, flags) for handle, flags in encoded.children]
    sizes = [part_bytes(part) for part in encoded.buffers]
    draft = runtime.allocate(encoded.codec, encoded.meta, sizes, children)
    for index, part in enumerate(encoded.buffers):
        if sizes[index]:
            fill_some(draft, index, part)
    return draft.publish()


def _no_children(index: int) -> Any:
    raise InternalError(detail=f"Child {index} of a block was asked for where none was expected.")


def decode(pin: PinLike, writable: bool = False, child: Callable[[int], Any] = _no_children) -> Any:
    """The value in a block, sharing its memory where the codec can. No message.

    Raises:
        CodecError: nobody registered the block's codec here, or it failed (a class that cannot be imported).
    """
    if writable and not pin.writable:
        raise InternalError(detail="A value was to be decoded for writing over memory that is read-only.")
    codec = _by_number(pin.codec)
    try:
        value = codec.decode(pin, writable, child)
    except (DrustError, MemoryError):
        raise
    except Exception as error:
        raise _failed(codec, "a block", error) from error
    with _lock:
        _statistics.decodes += 1
    if _observer is not None:
        _observer("decodes", 0)
    return value


def _by_number(number: int) -> Codec:
    codec = _numbers.get(number)
    if codec is None and number in _OPTIONAL_NUMBERS:
        try:
            importlib.import_module(f"drust.codecs.{_OPTIONAL_NUMBERS[number]}")
        except ImportError as error:
            raise CodecError(codec=f"codec {number}", object="a block", reason=_said(error)) from error
        codec = _numbers.get(number)
    if codec is None:
        raise CodecError(
            codec=f"codec {number}",
            object="a block",
            reason="nobody registered it in this process; import the module that does",
        )
    return codec


def is_in_place(number: int) -> bool:
    """Whether a writable decode by this codec is the block's own memory, so that changes need no encoding."""
    return bool(getattr(_by_number(number), "in_place", False))


def codec_name(number: int) -> str:
    """The name of a codec, for people; `codec 1234` if it is unknown here. Imports nothing."""
    codec = _numbers.get(number)
    if codec is not None:
        return codec.name
    return own.NAMES.get(number) or _OPTIONAL_NAMES.get(number, f"codec {number}")


def statistics() -> dict[str, int]:
    """`encodes`, `encoded_bytes` and `decodes` of this process since it started."""
    with _lock:
        return dict(vars(_statistics))


def _failed(codec: Codec, object_: str, error: Exception) -> CodecError:
    return CodecError(codec=f"the codec {codec.name!r}", object=object_, reason=_said(error))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
