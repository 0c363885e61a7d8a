"""bytes, bytearray, array.array and memoryview."""

import gc
import weakref
from array import array

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from drust.codecs import ARRAY, BYTEARRAY, BYTES, MEMORYVIEW, PICKLE, is_in_place
from drust.errors import CodecError
from fake_pin import opened, pinned, round_trip


@given(st.binary())
def test_bytes_and_bytearrays_come_back_as_what_they_were(data: bytes) -> None:
    for value, codec in ((data, BYTES), (bytearray(data), BYTEARRAY)):
        pin = pinned(value)
        assert pin.codec == codec
        assert pin.raw() == [data]
        back = opened(pin)
        assert type(back) is type(value)
        assert back == value


def test_a_mutable_bytearray_is_private_until_it_is_encoded_anew() -> None:
    pin = pinned(bytearray(b"abc"))
    value = opened(pin, writable=True)
    value.extend(b"def")
    assert pin.raw() == [b"abc"]
    assert not is_in_place(BYTEARRAY)
    assert round_trip(value) == b"abcdef"


@pytest.mark.parametrize("typecode", "bBuhHiIlLqQfd")
def test_arrays_of_the_standard_library_keep_their_type(typecode: str) -> None:
    value = array(typecode, "abc" if typecode == "u" else [1, 2, 3])
    pin = pinned(value)
    assert pin.codec == ARRAY
    back = opened(pin)
    assert type(back) is array
    assert back.typecode == typecode
    assert back == value
    back.append(back[0])
    assert len(opened(pin)) == 3


def test_an_empty_array_comes_back() -> None:
    assert round_trip(array("d")) == array("d")


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abcdef"),
        memoryview(b"abcdef")[::2],
        memoryview(b"abcdef")[::-1],
        memoryview(b""),
        memoryview(b"abcdefgh").cast("i"),
        memoryview(b"abcdefgh").cast("c"),
        memoryview(b"abcdefgh").cast("q", ()),
        memoryview(bytes(range(48))).cast("B").cast("i", (3, 4)),
        memoryview(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
        memoryview(np.arange(24).reshape(2, 3, 4)[:, ::2]),
        memoryview(np.zeros((0, 3))),
        memoryview(bytes(16)).cast("n"),
        memoryview(bytes(32)).cast("n")[::2],
    ],
    ids=lambda view: f"{view.format}-{view.shape}-{view.strides}",
)
def test_memoryviews_keep_format_and_shape(view: memoryview) -> None:
    pin = pinned(view)
    assert pin.codec == MEMORYVIEW
    back = opened(pin)
    assert type(back) is memoryview
    assert (back.format, back.shape) == (view.format, view.shape)
    assert back.tolist() == view.tolist()
    assert back.readonly


@pytest.mark.parametrize(
    "value", [np.array([1, 2], ">i4"), np.zeros(2, [("a", "i4"), ("b", ">f8")])], ids=str
)
def test_memoryviews_of_other_formats_go_by_way_of_numpy(value: np.ndarray) -> None:
    back = round_trip(memoryview(value))
    assert type(back) is memoryview
    assert np.asarray(back).tolist() == value.tolist()
    assert np.asarray(back).dtype == value.dtype


def test_a_memoryview_is_zero_copy_and_writes_through() -> None:
    pin = pinned(memoryview(bytes(8)))
    shared = opened(pin)
    opened(pin, writable=True)[3] = 9
    assert shared[3] == 9
    assert is_in_place(MEMORYVIEW)
    watch = weakref.ref(pin)
    del pin
    gc.collect()
    assert watch() is not None
    del shared
    gc.collect()
    assert watch() is None


def test_a_memoryview_of_python_objects_is_refused_with_a_way_out() -> None:
    with pytest.raises(CodecError, match=r"format 'O'.*pass the object behind it"):
        pinned(memoryview(np.array([None, 1], object)))


class Blob(bytes):
    pass


def test_a_subclass_of_bytes_keeps_its_class_through_pickle() -> None:
    pin = pinned(Blob(b"abc"))
    assert pin.codec == PICKLE
    assert type(opened(pin)) is Blob
