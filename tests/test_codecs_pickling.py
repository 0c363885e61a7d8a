"""Pickle: large buffers out of band, Boxes as children, `__main__` by value, and clear refusals."""

import dataclasses
import enum
import pickle
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any, Self

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from drust import codecs
from drust.codecs import PICKLE, encode, encode_arguments, picklers, pickling
from drust.codecs.picklers import OUT_OF_BAND_BYTES_MIN
from drust.errors import CodecError, PickledBoxError, UnpicklableError
from fake_pin import FakeBox, opened, pinned, put, round_trip


@dataclasses.dataclass
class Node:
    value: Any = None
    left: Any = None
    right: Any = None


class Colour(enum.Enum):
    RED = 1


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the untyped kind is pickled its own way


@pytest.fixture(autouse=True)
def _boxes_are_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pickling._handles, FakeBox, 0)


@pytest.fixture
def _this_module_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _module())


def _module() -> Any:
    module = type(sys)(__name__)
    module.__dict__.update(globals())
    return module


@pytest.mark.parametrize(
    "value",
    [
        1,
        -(2**80),
        1.5,
        "text",
        "",
        None,
        True,
        1j,
        (),
        (1, "a"),
        [],
        {},
        {"a": [1, {2}]},
        frozenset({1}),
        range(3),
        ...,
    ],
    ids=repr,
)
def test_plain_values_come_back_equal_and_of_the_same_type(value: object) -> None:
    pin = pinned(value)
    assert (pin.codec, pin.meta, pin.buffer_count) == (PICKLE, b"", 1)
    back = opened(pin)
    assert type(back) is type(value)
    assert back == value


def test_large_buffers_lie_in_the_block_and_small_ones_in_the_pickle() -> None:
    large = np.zeros(OUT_OF_BAND_BYTES_MIN, np.uint8)
    small = np.zeros(OUT_OF_BAND_BYTES_MIN - 1, np.uint8)
    pin = pinned({"large": large, "small": small})
    assert pin.buffer_count == 2
    back = opened(pin)
    assert pin.contains(back["large"].ctypes.data)
    assert not pin.contains(back["small"].ctypes.data)
    assert not back["large"].flags.writeable


def test_buffers_are_written_through_under_a_mutable_borrow_only() -> None:
    pin = pinned([np.zeros(1000)])
    shared = opened(pin)[0]
    mutable = opened(pin, writable=True)[0]
    mutable[0] = 4
    assert shared[0] == 4
    with pytest.raises(ValueError, match="read-only"):
        shared[0] = 5


def test_buffers_of_a_pandas_frame_are_shared() -> None:
    frame = pd.DataFrame({"a": np.arange(1000), "b": np.arange(1000.0)})
    pin = pinned(frame)
    back = opened(pin)
    assert back.equals(frame)
    assert pin.contains(back["b"].to_numpy().ctypes.data)


class Tagged(np.ndarray):
    tag: str = ""


def tagged() -> Tagged:
    array = np.arange(1000.0).view(Tagged)
    array.tag = "kept"
    return array


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(2000.0).reshape(2, -1).view(np.matrix),
        lambda: np.rec.array(np.zeros(500, [("a", "i4"), ("b", "f8")])),
        lambda: np.ma.masked_array(np.arange(2000.0), np.arange(2000) % 2 == 0, fill_value=-1),
        lambda: np.ma.masked_array(np.arange(1000.0)),
        lambda: np.ma.masked_array(np.arange(1000.0).reshape(2, -1), hard_mask=True)[:, ::2],
        tagged,
        lambda: np.arange(4000.0)[::2],
        lambda: np.arange(4000.0).reshape(20, 10, 20).transpose(1, 0, 2),
    ],
    ids=["matrix", "record", "masked", "unmasked", "hard", "subclass", "strided", "transposed"],
)
def test_arrays_that_numpy_would_write_into_the_pickle_lie_beside_it(make: Any) -> None:
    value = make()
    pin = pinned([value])
    back = opened(pin)[0]
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert back.tolist() == value.tolist()
    assert len(pin.raw()[0]) < 1000
    assert pin.contains(np.asarray(back).ctypes.data)
    if isinstance(value, np.ma.MaskedArray):
        assert back.fill_value == value.fill_value
        assert back.hardmask == value.hardmask
        assert (back.mask is np.ma.nomask) == (value.mask is np.ma.nomask)
    assert getattr(back, "tag", None) == getattr(value, "tag", None)


def test_a_memory_map_comes_back_without_its_file(tmp_path: Path) -> None:
    value = np.memmap(tmp_path / "map", np.float64, "w+", shape=(500,))
    value[:] = 3
    back = round_trip(value)
    assert type(back) is np.memmap
    assert back.tolist() == [3.0] * 500


def test_a_subclass_with_a_reduce_of_its_own_is_left_to_it() -> None:
    back = round_trip([Own(np.arange(1000.0))])[0]
    assert type(back) is Own
    assert back.how == "mine"


class Own(np.ndarray):
    how: str

    def __new__(cls, data: Any) -> Self:
        made = np.asarray(data).view(cls)
        made.how = "mine"
        return made

    def __reduce__(self) -> Any:
        return Own, (np.asarray(self),)


def test_one_object_in_two_places_stays_one_object() -> None:
    array = np.zeros(1000)
    pin = pinned({"a": array, "b": array})
    assert pin.buffer_count == 2
    back = opened(pin)
    assert back["a"] is back["b"]


@pytest.mark.usefixtures("_this_module_is_importable")
@pytest.mark.parametrize(
    "value", [Node(1), [Node(np.zeros(500))], Colour.RED, Pair(1, 2), Node, Node.__init__, len]
)
def test_what_can_be_imported_never_meets_the_slow_pickler(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picklers, "CloudPickler", None)
    round_trip(value)


def test_boxes_become_children_in_the_order_in_which_they_appear() -> None:
    pin = pinned({"x": FakeBox(7), "y": [FakeBox(9), 1]})
    assert pin.children == ((7, 1, 64, 0), (9, 1, 64, 0))
    back = opened(pin)
    assert type(back["x"]) is FakeBox
    assert (back["x"].number, back["y"][0].number) == (7, 9)


def test_boxes_and_large_buffers_and_local_classes_go_together() -> None:
    class Local:
        def __init__(self) -> None:
            self.box = FakeBox(3)
            self.array = np.ones(1000)

    pin = pinned(Local())
    assert (len(pin.children), pin.buffer_count) == (1, 2)
    back = opened(pin)
    assert back.box.number == 3
    assert pin.contains(back.array.ctypes.data)


def test_a_box_alone_and_in_an_object_array_is_a_child() -> None:
    assert opened(pinned(FakeBox(5))).number == 5
    back = round_trip(np.array([FakeBox(1), FakeBox(2)], object))
    assert [box.number for box in back] == [1, 2]


def test_the_same_box_twice_is_refused_and_both_places_are_named() -> None:
    box = FakeBox(1)
    with pytest.raises(UnpicklableError) as refused:
        encode({"a": box, "n": Node(left=[box])})
    message = str(refused.value)
    assert "this value['a']" in message
    assert "this value['n'].left[0]" in message
    assert "only one owner" in message
    encode({"a": FakeBox(1), "n": FakeBox(1)})


def test_arguments_may_hold_borrows_and_values_may_not() -> None:
    class Borrow:
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise PickledBoxError(object="a borrow")

    kinds = {FakeBox: 0, Borrow: 2}
    before = codecs.statistics()["encodes"]
    encoded = encode_arguments(((FakeBox(1), Borrow()), {}), kinds)
    assert [flags for _, flags in encoded.children] == [0, 2]
    assert codecs.statistics()["encodes"] == before + 1
    with pytest.raises(PickledBoxError, match="a borrow"):
        encode([Borrow()])
    with pytest.raises(AssertionError, match="never pickled itself"):
        raise encode_failure(FakeBox(1))


def encode_failure(value: Any) -> BaseException:
    with pytest.raises(UnpicklableError) as refused:
        encode_arguments(value, {})
    assert refused.value.__cause__ is not None
    return refused.value.__cause__


def test_a_tied_box_keeps_its_flag() -> None:
    class Tied(FakeBox):
        pass

    codecs.register_handle(Tied, 1)
    try:
        assert put(encode([Tied(4)])).children == ((4, 1, 64, 1),)
    finally:
        del pickling._handles[Tied]


def test_a_value_with_boxes_cannot_be_written_without_pointers() -> None:
    with pytest.raises(codecs.registry.InternalError):
        codecs.write(None, encode([FakeBox(1)]))  # type: ignore[arg-type]


SCRIPT = """
import dataclasses, enum, pickle, sys
import numpy as np
from drust import codecs

class Base:
    def who(self): return "base"
class Mine(Base):
    def __init__(self): self.data = np.arange(1000)
    def total(self): return helper(int(self.data.sum()))
    @property
    def later(self): return Late
class Late(enum.Enum):
    A = 1
def helper(x): return x + OFFSET
OFFSET = 5
@dataclasses.dataclass
class Data:
    inner: object
Tuple = __import__("collections").namedtuple("Tuple", "x")

values = [Mine(), Data([Mine()]), {"f": helper}, [lambda: OFFSET], Mine().total]
values += [Late.A, Tuple(1), Mine, helper]
parts = [codecs.encode(value) for value in values]
pickle.dump([[bytes(memoryview(b)) for b in p.buffers] for p in parts], sys.stdout.buffer)
"""


def test_classes_and_functions_of_main_travel_by_value() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    values = [pickle.loads(parts[0], buffers=parts[1:]) for parts in pickle.loads(ran.stdout)]
    total = sum(range(1000)) + 5
    mine, data, functions, lambdas, method, late, made, kind, function = values
    assert not hasattr(sys.modules["__main__"], "Mine")
    assert (mine.total(), mine.who(), data.inner[0].total()) == (total, "base", total)
    assert (functions["f"](1), lambdas[0](), method(), function(2)) == (6, 5, total, 7)
    assert (late.name, made.x, kind().total()) == ("A", 1, total)


def test_no_name_of_main_is_ever_in_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Node", Node, raising=False)
    for value in (Node(1), [Node(1)], Node, {"k": (Node,)}, np.array([Node(2)], object)):
        stream = bytes(encode(value).buffers[0])
        with pytest.raises((AttributeError, pickle.UnpicklingError)):
            _Refusing(stream).load()


class _Refusing(pickle._Unpickler):
    """Refuses the reference `__main__.Node`, and cannot build what a by-value pickle builds."""

    def __init__(self, stream: bytes) -> None:
        import io

        super().__init__(io.BytesIO(stream))

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) != ("__main__", "Node")
        if module.startswith("cloudpickle"):
            raise pickle.UnpicklingError("travels by value, as it should")
        return super().find_class(module, name)


def test_modules_registered_with_cloudpickle_travel_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picklers, "is_importable", lambda module: True)  # the runtime looks for a file
    module = type(sys)("drust_test_by_value")
    exec("def double(x): return 2 * x", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    pin = pinned([module.double])
    cloudpickle.register_pickle_by_value(module)
    try:
        by_value = pinned([module.double])
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, module.__name__)
    assert opened(by_value)[0](4) == 8
    with pytest.raises(CodecError, match=r"'pickle' failed on a block .ModuleNotFoundError"):
        opened(pin)


def test_another_rule_can_say_what_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(picklers, "is_importable", picklers.is_importable)
    codecs.set_importable(lambda module: asked.append(module) or True)
    encode([threading.Thread.run, pd.DataFrame])
    assert {"threading", "pandas"} <= set(asked)


def test_what_cloudpickle_alone_can_do_is_done() -> None:
    def outer() -> Any:
        count = 3
        return lambda: count

    back = round_trip({"cell": outer(), "module": sys, "view": {1: 2}.keys()})
    assert back["cell"]() == 3
    assert back["module"] is sys
    assert list(back["view"]) == [1]


def test_a_deeply_nested_value_is_refused_with_advice() -> None:
    value: Any = None
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UnpicklableError, match=r"nested too deeply.*flat list"):
        encode(value)


def test_running_out_of_memory_while_pickling_stays_a_memory_error() -> None:
    class Hungry:
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        encode([Hungry()])


def test_broken_pickles_are_codec_errors() -> None:
    pin = pinned([1, 2])
    pin._buffers[0][:2] = b"\x00\x00"
    with pytest.raises(CodecError):
        opened(pin)
