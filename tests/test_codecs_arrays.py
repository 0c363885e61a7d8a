"""numpy arrays: every dtype, shape, order and stride comes back, without pickle and with one copy."""

import gc
import sys
import tracemalloc
import weakref

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from drust.codecs import NDARRAY, PICKLE, encode, write
from drust.codecs.arrays import pack_layout, unpack_layout
from drust.codecs.dtypes import describe, restore
from drust.errors import CodecError
from fake_pin import FakePin, FakeRuntime, opened, pinned, put, round_trip

SCALARS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64, 128)),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(min_len=1),
)
DTYPES = st.one_of(SCALARS, hnp.nested_dtypes(SCALARS, max_leaves=5, max_itemsize=400))


def text(array: np.ndarray) -> str:
    return repr(array.tolist())  # repr, for NaN and NaT are not equal to themselves


def check(array: np.ndarray) -> np.ndarray:
    pin = pinned(array)
    assert pin.codec == NDARRAY
    back = opened(pin)
    assert type(back) is np.ndarray
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert text(back) == text(array)
    assert not back.flags.writeable
    return back


@st.composite
def views(draw: st.DrawFn) -> np.ndarray:
    dtype = draw(DTYPES)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = draw(hnp.arrays(dtype, shape))
    if draw(st.booleans()):
        array = array.transpose(draw(st.permutations(range(array.ndim))))
    if array.ndim and draw(st.booleans()):
        array = array[draw(hnp.basic_indices(array.shape, allow_newaxis=True, allow_ellipsis=True))]
    array = np.asarray(array, dtype)
    if draw(st.booleans()) and array.ndim < 5:
        array = np.broadcast_to(array, (2, *array.shape))
    return array


@given(views())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_array_of_any_strides_comes_back(array: np.ndarray) -> None:
    if array.dtype.itemsize == 0:
        return
    back = check(array)
    if array.flags.c_contiguous or array.flags.f_contiguous:
        assert back.flags.c_contiguous == array.flags.c_contiguous
        assert back.flags.f_contiguous == array.flags.f_contiguous
    else:
        assert back.flags.c_contiguous


@given(DTYPES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_described_dtype_restores_to_itself_through_msgpack(dtype: np.dtype) -> None:
    description = describe(dtype)
    if dtype.itemsize == 0:
        assert description is None
        return
    restored = restore(msgspec.msgpack.decode(msgspec.msgpack.encode(description)))
    assert restored == dtype
    assert restored.itemsize == dtype.itemsize
    assert restored.isalignedstruct == dtype.isalignedstruct


@pytest.mark.parametrize(
    "dtype",
    [
        "float16", "longdouble", "clongdouble", ">i4", ">U3", "S5", "U7", "V9", "M8[25s]", "m8", "M8[ns]",
        "?",
        [("a", "i4"), ("b", ">f8", (2, 3)), ("c", [("x", "U2"), ("y", "M8[us]")])],
        [(("a title", "a"), "i4"), ("b", "f8")],
        np.dtype([("a", "i1"), ("b", "f8")], align=True),
        {"names": ["x", "y"], "formats": ["i4", "i4"], "offsets": [4, 2], "itemsize": 16},
        np.dtype((np.record, [("a", "i4"), ("b", "f8")])),
    ],
    ids=str,
)  # fmt: skip
def test_dtypes_keep_byte_order_units_titles_alignment_and_offsets(dtype: object) -> None:
    array = np.zeros((3, 2), np.dtype(dtype))
    back = check(array)
    assert back.dtype.type is array.dtype.type
    assert back.dtype.fields == array.dtype.fields
    assert back.dtype.isalignedstruct == array.dtype.isalignedstruct


@pytest.mark.parametrize(
    "array",
    [
        np.array(5.0),
        np.zeros((0, 3)),
        np.zeros((3, 0), order="F"),
        np.arange(12).reshape(3, 4)[::-1, ::-2],
        np.broadcast_to(np.arange(3), (4, 3)),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        np.array(["2020-01-01", "NaT"], "M8[D]")[::-1],
    ],
    ids=str,
)
def test_shapes_orders_and_strides(array: np.ndarray) -> None:
    check(array)


def test_fortran_order_is_kept_without_a_rearrangement() -> None:
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    pin = pinned(array)
    assert pin.raw() == [array.tobytes(order="F")]
    assert opened(pin).flags.f_contiguous


def test_the_gaps_of_a_strided_structure_are_written_too() -> None:
    dtype = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 24})
    array = np.ndarray((6,), dtype, buffer=bytearray(range(6 * 24)))[::2]
    pin = pinned(array)
    assert pin.raw() == [b"".join(bytes(range(start, start + 24)) for start in (0, 48, 96))]


def test_a_shared_decode_is_read_only_and_a_mutable_one_writes_the_block() -> None:
    pin = pinned(np.zeros(4))
    shared = opened(pin)
    with pytest.raises(ValueError, match="read-only"):
        shared[0] = 1
    mutable = opened(pin, writable=True)
    mutable[1] = 7
    assert shared[1] == 7
    assert pin.contains(mutable.ctypes.data)


def test_a_writable_block_is_still_read_only_to_a_shared_borrow() -> None:
    pin = pinned(np.zeros(4))
    pin.writable = True
    from drust.codecs import decode

    assert not decode(pin, writable=False).flags.writeable


def test_a_read_only_array_comes_back_writable_for_a_mutable_borrow() -> None:
    array = np.zeros(4)
    array.flags.writeable = False
    assert round_trip(array, writable=True).flags.writeable


def test_a_view_of_a_decoded_array_keeps_the_block_and_dropping_it_lets_go() -> None:
    pin = pinned(np.arange(1000))
    watch = weakref.ref(pin)
    view = opened(pin)[10:20]
    del pin
    gc.collect()
    assert watch() is not None
    assert view[0] == 10
    del view
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("step", [1, 2, -1])
def test_writing_makes_no_temporary_copy(step: int) -> None:
    array = np.ones((2048, 1024))[::step, ::step]

    class Prepared(FakeRuntime):
        def allocate(self, *arguments: object) -> object:
            return draft

    encoded = encode(array)
    draft = FakeRuntime().allocate(encoded.codec, encoded.meta, [array.nbytes], [])
    tracemalloc.start()
    try:
        write(Prepared(), encoded)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_metadata_is_compact() -> None:
    assert len(encode(np.zeros((8192, 8192))).meta) < 20


def test_a_layout_made_without_an_array_decodes_to_one() -> None:
    meta = pack_layout((2, 3), np.dtype("f4"), "F")
    assert meta is not None
    pin = FakePin(NDARRAY, meta, [24], [])
    array = opened(pin, writable=True)
    assert array.shape == (2, 3)
    assert array.flags.f_contiguous
    assert unpack_layout(meta) == ((2, 3), np.dtype("f4"), "F")


class Doubled(np.ndarray):
    pass


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], object),
        np.array([(1, [2])], [("a", "i4"), ("b", object)]),
        np.array(["a", "bcd"], np.dtypes.StringDType()),
        np.zeros(2, np.dtype("i4", metadata={"unit": "m"})),
        np.zeros(2, np.dtype([("a", np.dtype("i4", metadata={"unit": "m"}))])),
        np.ndarray((3,), "S0", buffer=b""),
        np.array([[1, 2], [3, 4]]).view(np.matrix),
        np.ma.masked_array([1, 2, 3], [0, 1, 0]),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.arange(3).view(Doubled),
        np.float64(3.5),
        np.datetime64("2020-01-01"),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}",
)
def test_what_is_no_plain_data_goes_to_pickle_and_keeps_its_class(array: np.ndarray) -> None:
    pin = pinned(array)
    assert pin.codec == PICKLE
    back = opened(pin)
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    assert text(back) == text(array)


@pytest.mark.parametrize(
    "meta",
    [
        b"", b"\xc1", msgspec.msgpack.encode("x"), msgspec.msgpack.encode(([1], "<f8")),
        msgspec.msgpack.encode(([-1], "<f8", False)),
        msgspec.msgpack.encode(([1.5], "<f8", False)),
        msgspec.msgpack.encode((["1"], "<f8", False)),
        msgspec.msgpack.encode(([2**70 // 2**8], "<f8", False)),
        msgspec.msgpack.encode(([1], "|O8", False)),
        msgspec.msgpack.encode(([1], "O", False)),
        msgspec.msgpack.encode(([1], "i4,O", False)),
        msgspec.msgpack.encode(([1], "__import__('os')", False)),
        msgspec.msgpack.encode(([1], "<f7", False)),
        msgspec.msgpack.encode(([1], 7, False)),
        msgspec.msgpack.encode(([1], [8, 0, ["a"], ["<f8"], [4], [None]], False)),
        msgspec.msgpack.encode(([100], "<f8", False)),
    ],
    ids=range(16),
)  # fmt: skip
def test_metadata_that_describes_no_array_of_this_size_is_refused(meta: bytes) -> None:
    with pytest.raises(CodecError):
        opened(FakePin(NDARRAY, meta, [8], []))


def test_arrays_need_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "dumps", None)
    check(np.zeros(3, [("a", "i4"), ("b", "U3")]))


def test_encoding_holds_the_values_own_memory() -> None:
    array = np.zeros(1000)
    before = sys.getrefcount(array)
    encoded = encode(array)
    assert sys.getrefcount(array) > before
    array[0] = 5
    assert opened(put(encoded))[0] == 5
