"""torch tensors: with torch where it is installed, else with a stand-in that has what the codec touches."""

import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import drust
from drust.codecs import PICKLE, TORCH, is_in_place, registry
from fake_pin import opened, pinned


class StandInTensor:
    """An array of numpy that answers as a tensor does."""

    layout = "strided"
    requires_grad = False

    def __init__(self, array: np.ndarray, dtype: str = "", device: str = "cpu") -> None:
        self._array = array
        self.dtype = dtype or f"torch.{array.dtype.name}"
        self.device = types.SimpleNamespace(type=device)

    def is_conj(self) -> bool:
        return False

    def is_neg(self) -> bool:
        return False

    def numpy(self) -> np.ndarray:
        if self.dtype in ("torch.quint8", "torch.bfloat16"):
            raise TypeError("Got unsupported ScalarType")
        return self._array

    def view(self, dtype: str) -> "StandInTensor":
        return type(self)(self._array, dtype)

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def tolist(self) -> list[Any]:
        return self._array.tolist()

    def __setitem__(self, index: Any, value: Any) -> None:
        self._array[index] = value


def stand_in() -> types.ModuleType:
    torch = types.ModuleType("torch")
    tensor = type("Tensor", (StandInTensor,), {"__module__": "torch"})

    def from_numpy(array: np.ndarray) -> Any:
        if not array.flags.writeable:
            raise UserWarning("The given NumPy array is not writable")
        return tensor(array)

    vars(torch).update(
        Tensor=tensor,
        strided="strided",
        int16="torch.int16",
        bfloat16="torch.bfloat16",
        from_numpy=from_numpy,
    )
    return torch


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if importlib.util.find_spec("torch") is not None:
        yield importlib.import_module("torch")
        return
    module = stand_in()
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    monkeypatch.setattr(registry, "_numbers", dict(registry._numbers))
    yield module
    sys.modules.pop("drust.codecs.tensors", None)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.array(5),
        np.arange(10, dtype=np.int8)[::2],
        np.zeros((0, 3), np.complex64),
    ],
    ids=str,
)
def test_a_dense_tensor_shares_the_block(torch: Any, array: np.ndarray) -> None:
    pin = pinned(torch.from_numpy(array))
    assert pin.codec == TORCH
    back = opened(pin)
    assert type(back) is torch.Tensor
    assert back.tolist() == array.tolist()
    assert str(back.dtype) == f"torch.{array.dtype}"
    assert array.size == 0 or pin.contains(back.data_ptr())


def test_a_mutable_borrow_writes_the_block(torch: Any) -> None:
    pin = pinned(torch.from_numpy(np.zeros(4)))
    opened(pin, writable=True)[1] = 3
    assert opened(pin).tolist() == [0, 3, 0, 0]
    assert is_in_place(TORCH)


def test_a_tensor_keeps_the_block(torch: Any) -> None:
    back = opened(pinned(torch.from_numpy(np.arange(1000))))
    assert back.tolist() == list(range(1000))


def test_bfloat16_travels_as_integers_of_its_size(torch: Any) -> None:
    value = torch.from_numpy(np.array([16256, 16384], np.int16)).view(torch.bfloat16)
    pin = pinned(value)
    assert pin.codec == TORCH
    back = opened(pin)
    assert str(back.dtype) == "torch.bfloat16"
    assert back.view(torch.int16).tolist() == [16256, 16384]


@pytest.fixture
def imitation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, wherever torch is installed or not: kinds of tensors that are hard to come by."""
    module = stand_in()
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.delitem(sys.modules, "drust.codecs.tensors", raising=False)
    monkeypatch.setattr(registry, "_types", dict(registry._types))
    others = {number: codec for number, codec in registry._numbers.items() if number != TORCH}
    monkeypatch.setattr(registry, "_numbers", others)
    yield module
    sys.modules.pop("drust.codecs.tensors", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"device": types.SimpleNamespace(type="cuda")},
        {"layout": "sparse"},
        {"requires_grad": True},
        {"dtype": "torch.quint8"},
        {"is_conj": lambda: True},
        {"is_neg": lambda: True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_not_plain_memory_is_left_to_pickle(imitation: Any, changes: dict[str, Any]) -> None:
    tensor = imitation.Tensor(np.zeros(3))
    codec, pickle_codec = registry._candidates(type(tensor))
    assert (codec.number, pickle_codec.number) == (TORCH, PICKLE)
    assert codec.encode(tensor) is not None
    vars(tensor).update(changes)
    assert codec.encode(tensor) is None


# -- with torch itself -------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Any:
    """torch, where it is installed: it is no dependency of the tests."""
    return pytest.importorskip("torch")


@pytest.mark.parametrize(
    "name",
    ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "uint16", "uint64", "bool", "complex64", "int8"],
)
def test_every_dense_type_shares_the_block(real: Any, name: str) -> None:
    dtype = getattr(real, name)
    value = real.tensor([1, 0, 2, 1]).to(dtype)
    pin = pinned(value)
    back = opened(pin, writable=True)
    assert (pin.codec, back.dtype) == (TORCH, dtype)
    assert pin.contains(back.data_ptr())
    assert real.equal(back.view(real.uint8), value.view(real.uint8))
    back[0] = 0
    assert opened(pin)[0].to(real.float32 if name != "complex64" else real.complex64) == 0


def test_views_without_a_stride_of_one_come_back_equal(real: Any) -> None:
    grid = real.arange(12.0).reshape(3, 4)
    halves = grid.to(real.bfloat16).t()
    for value in (grid.t(), grid[:, ::2], grid[1:, 1:], real.ones(3).expand(4, 3), halves):
        back = opened(pinned(value))
        assert real.equal(back, value)
        assert back.shape == value.shape


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own, in some versions
def test_gradients_parameters_and_sparse_tensors_are_pickled_and_stay_what_they_are(real: Any) -> None:
    for value in (real.ones(3, requires_grad=True), real.nn.Parameter(real.ones(3)), real.eye(3).to_sparse()):
        pin = pinned(value)
        back = opened(pin)
        assert pin.codec == PICKLE
        assert type(back) is type(value)
        assert back.requires_grad == value.requires_grad
        assert real.equal(back.detach().to_dense(), value.detach().to_dense())


def test_reading_a_tensor_warns_of_nothing(real: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(pinned(real.ones(4))).sum() == 4


def fill(tensor: Any) -> None:
    tensor.fill_(7)


def test_a_task_writes_a_tensor_where_it_lies(real: Any, one_server: Any) -> None:
    box = drust.Box(real.zeros(300_000))
    drust.spawn(fill, box.borrow_mut()).join()
    with box.borrow() as tensor:
        assert (tensor == 7).all()
