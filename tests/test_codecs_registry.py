"""Which codec a value gets, what registration refuses, and that encoding is counted."""

import gc
import subprocess
import sys
from abc import ABC
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from drust import codecs
from drust.codecs import THIRD_PARTY_MAX, THIRD_PARTY_MIN, Encoded, registry
from drust.errors import CodecError, InternalError, OutOfMemoryError, UnpicklableError
from fake_pin import FakePin, FakeRuntime, opened, pinned, round_trip


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    monkeypatch.setattr(registry, "_numbers", dict(registry._numbers))
    monkeypatch.setattr(registry, "_abstract", list(registry._abstract))


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


class Point3(Point):
    pass


class Abstract(ABC):  # noqa: B024 - it is there to be registered with
    pass


class PointCodec:
    def __init__(self, number: int = 1000, name: str = "point", declines: bool = False) -> None:
        self.number = number
        self.name = name
        self.declines = declines

    def encode(self, value: Point) -> Encoded | None:
        return None if self.declines else Encoded(self.number, b"meta", [np.array([value.x])])

    def decode(self, pin: Any, writable: bool, child: Any) -> Point:
        return Point(int(np.frombuffer(pin.buffer(0), np.int64)[0]))


def test_a_registered_codec_gets_its_values() -> None:
    codecs.register(PointCodec(), Point)
    pin = pinned(Point(5))
    assert (pin.codec, pin.meta) == (1000, b"meta")
    assert opened(pin).x == 5
    assert codecs.codec_name(1000) == "point"
    assert not codecs.is_in_place(1000)


def test_the_most_specific_class_wins() -> None:
    codecs.register(PointCodec(1000), Point)
    assert pinned(Point3(1)).codec == 1000
    codecs.register(PointCodec(1001, "point3"), Point3)
    assert pinned(Point3(1)).codec == 1001
    assert pinned(Point(1)).codec == 1000


def test_subclasses_can_be_left_out() -> None:
    codecs.register(PointCodec(), Point, subclasses=False)
    assert pinned(Point(1)).codec == 1000
    assert pinned(Point3(1)).codec == codecs.PICKLE


def test_a_virtual_subclass_comes_after_real_bases_and_before_pickle() -> None:
    codecs.register(PointCodec(1000), Abstract)
    assert pinned(Point(1)).codec == codecs.PICKLE
    Abstract.register(Point)
    assert pinned(Point(1)).codec == 1000
    codecs.register(PointCodec(1001, "real"), Point)
    assert pinned(Point(1)).codec == 1001


def test_a_codec_that_declines_leaves_the_value_to_the_next() -> None:
    codecs.register(PointCodec(1000), Point)
    codecs.register(PointCodec(1001, "picky", declines=True), Point3)
    assert pinned(Point3(1)).codec == 1000


def test_one_codec_can_serve_several_classes() -> None:
    codec = PointCodec()
    codecs.register(codec, Point)
    codecs.register(codec, Abstract)
    codecs.register(codec, Point)
    assert pinned(Point(1)).codec == 1000


def test_a_taken_number_is_refused_and_both_are_named() -> None:
    codecs.register(PointCodec(1000, "first"), Point)
    with pytest.raises(CodecError, match=r"'second'.*number 1000 belongs to the codec 'first'"):
        codecs.register(PointCodec(1000, "second"), Point3)


def test_a_taken_class_is_refused_and_both_are_named() -> None:
    codecs.register(PointCodec(1000, "first"), Point)
    with pytest.raises(CodecError, match=r"Point already has the codec 'first' \(number 1000\)"):
        codecs.register(PointCodec(1001, "second"), Point)
    with pytest.raises(CodecError, match="already has the codec 'numpy'"):
        codecs.register(PointCodec(1001), np.ndarray)
    assert 1001 not in registry._numbers


def test_replace_takes_the_place_of_the_former_codec_everywhere() -> None:
    former = PointCodec(1000, "former")
    codecs.register(former, Point)
    codecs.register(former, Abstract)
    pin = pinned(Point(3))
    codecs.register(PointCodec(1000, "latter"), Point, replace=True)
    assert codecs.codec_name(1000) == "latter"
    assert {entry.codec.name for entry in registry._types.values()} & {"former", "latter"} == {"latter"}
    assert opened(pin).x == 3


@pytest.mark.parametrize("number", [0, 1, 999, -1, THIRD_PARTY_MAX + 1, "1000", 1000.0, True, None])
def test_numbers_outside_the_third_parties_range_are_refused(number: object) -> None:
    with pytest.raises(CodecError, match="its number is"):
        codecs.register(PointCodec(number), Point)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [THIRD_PARTY_MIN, THIRD_PARTY_MAX])
def test_the_ends_of_the_range_are_allowed(number: int) -> None:
    codecs.register(PointCodec(number), Point)
    assert pinned(Point(1)).codec == number


def test_object_non_classes_and_incomplete_codecs_are_refused() -> None:
    with pytest.raises(CodecError, match="object belongs to pickle"):
        codecs.register(PointCodec(), object)
    with pytest.raises(CodecError, match="is not a class"):
        codecs.register(PointCodec(), Point(1))  # type: ignore[arg-type]

    class Half:
        number = 1000
        name = "half"

        def encode(self, value: object) -> None: ...

    with pytest.raises(CodecError, match=r"'half'.*it has no decode"):
        codecs.register(Half(), Point)  # type: ignore[arg-type]


def test_the_numbers_of_the_format_have_not_moved() -> None:
    names = {number: codecs.codec_name(number) for number in range(1, 11)}
    assert names == {
        1: "pickle", 2: "numpy", 3: "bytes", 4: "bytearray", 5: "memoryview", 6: "array",
        7: "arrow", 8: "polars", 9: "torch", 10: "column",
    }  # fmt: skip
    assert (codecs.PICKLE, codecs.NDARRAY, codecs.BYTES, codecs.BYTEARRAY, codecs.MEMORYVIEW) == (
        1,
        2,
        3,
        4,
        5,
    )
    assert (codecs.ARRAY, codecs.ARROW, codecs.POLARS, codecs.TORCH, codecs.THIRD_PARTY_MIN) == (
        6,
        7,
        8,
        9,
        1000,
    )


def test_a_block_of_an_unknown_codec_says_what_is_missing() -> None:
    with pytest.raises(CodecError, match=r"codec 4711 failed.*import the module that does"):
        opened(FakePin(4711, b"", [], []))


def test_errors_of_a_codec_are_codec_errors_with_their_cause() -> None:
    class Broken(PointCodec):
        def encode(self, value: Point) -> Encoded:
            raise ZeroDivisionError("no")

        def decode(self, pin: Any, writable: bool, child: Any) -> Point:
            raise ImportError

    codecs.register(Broken(1000, "broken"), Point)
    with pytest.raises(CodecError, match=r"'broken'.*Point.*ZeroDivisionError: no") as failed:
        pinned(Point(1))
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    with pytest.raises(CodecError, match=r"'broken' failed on a block .ImportError"):
        opened(FakePin(1000, b"", [], []))


def test_running_out_of_memory_is_no_fault_of_the_codec() -> None:
    class Full(FakeRuntime):
        def allocate(self, *arguments: object) -> Any:
            raise OutOfMemoryError(requested_bytes=8)

    with pytest.raises(OutOfMemoryError):
        codecs.write(Full(), codecs.encode(np.zeros(1)))

    class Hungry(PointCodec):
        def encode(self, value: Point) -> Encoded:
            raise MemoryError

    codecs.register(Hungry(), Point)
    with pytest.raises(MemoryError) as failed:
        codecs.encode(Point(1))
    assert type(failed.value) is MemoryError


def test_an_unfinished_draft_is_dropped_when_a_buffer_cannot_be_written() -> None:
    def explode(target: Any) -> None:
        raise OSError("disk")

    runtime = FakeRuntime()
    with pytest.raises(OSError, match="disk"):
        codecs.write(runtime, Encoded(1, b"", [codecs.Deferred(8, explode)]))
    gc.collect()
    assert [draft() for draft in runtime.drafts] == [None]


def test_decoding_for_writing_over_read_only_memory_is_our_bug() -> None:
    with pytest.raises(InternalError):
        codecs.decode(pinned(np.zeros(1)), writable=True)


def test_only_a_borrow_that_has_handles_may_decode_children() -> None:
    with pytest.raises(InternalError, match="Child 3"):
        registry._no_children(3)


def test_every_encoding_is_counted_and_a_refused_one_is_not() -> None:
    before = codecs.statistics()
    pin = pinned(np.zeros(100))
    opened(pin)
    with pytest.raises(UnpicklableError):
        codecs.encode(x for x in ())
    after = codecs.statistics()
    assert after["encodes"] - before["encodes"] == 1
    assert after["encoded_bytes"] - before["encoded_bytes"] == 800
    assert after["decodes"] - before["decodes"] == 1


def test_subclasses_of_builtins_are_pickled() -> None:
    value = OrderedDict(a=1)
    assert type(round_trip(value)) is OrderedDict


def test_importing_the_codecs_imports_none_of_the_optional_libraries() -> None:
    code = (
        "import sys\n"
        "from drust import codecs\n"
        "import numpy as np\n"
        "codecs.encode(np.zeros(3)); codecs.encode({'a': 1}); codecs.encode(b'')\n"
        "print([name for name in ('pyarrow', 'polars', 'torch', 'pandas') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
