"""A refused value: the error has the path to the part, its type, and what to do."""

import functools
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from drust.codecs import encode
from drust.errors import UnpicklableError


class Engine:
    def __init__(self, part: Any) -> None:
        self.name = "left"
        self.part = part


class Slotted:
    __slots__ = ("part",)

    def __init__(self, part: Any) -> None:
        self.part = part


class Careful(Engine):
    def __getstate__(self) -> dict[str, Any]:
        return {"kept": self.part}


class Refuses:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("never")


def refusal(value: Any) -> UnpicklableError:
    with pytest.raises(UnpicklableError) as refused:
        encode(value)
    return refused.value


def lock_in(wrap: Any) -> UnpicklableError:
    return refusal(wrap(threading.Lock()))


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda lock: lock, "this value"),
        (lambda lock: [1, (2, lock)], "this value[1][1]"),
        (lambda lock: {"a": 1, "b": {"c": lock}}, "this value['b']['c']"),
        (lambda lock: {lock: 1}, "this value (its key"),
        (lambda lock: {lock}, "this value (its item"),
        (Engine, "this value.part"),
        (lambda lock: [Engine(Engine({"x": lock}))], "this value[0].part.part['x']"),
        (Slotted, "this value.part"),
        (Careful, "this value.kept"),
        (lambda lock: functools.partial(print, lock), "this value (its state)[0]"),
        (lambda lock: lambda: lock, "this value, whose code uses the variable 'lock'"),
        (lambda lock: [lambda: [lock]], "this value[0], whose code uses the variable 'lock'"),
        (lambda lock: Engine(lock).__init__, "this value.__self__.part"),
    ],
)
def test_the_path_leads_to_the_part(wrap: Any, path: str) -> None:
    error = lock_in(wrap)
    assert error.object.startswith(path)
    assert error.type_name == "_thread.lock"
    assert "cannot pickle '_thread.lock' object" in error.reason
    assert "__getstate__" in str(error)
    assert error.__cause__ is not None


def test_healthy_neighbours_are_not_blamed() -> None:
    error = refusal({"a": Engine(1), "b": [1, 2, Refuses()], "c": "x"})
    assert error.object == "this value['b'][2]"
    assert error.type_name.endswith("Refuses")
    assert "TypeError: never" in error.reason
    assert "__getstate__" in str(error)


def test_a_cycle_ends() -> None:
    value: list[Any] = [threading.Lock()]
    value.insert(0, value)
    assert refusal(value).object == "this value[1]"


def test_each_kind_of_thing_has_its_advice(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert "Keep the path" in str(refusal([file]))
    with socket.socket() as plug:
        assert "Keep the address" in str(refusal([plug]))
    assert "Make a list" in str(refusal(x for x in ()))
    assert "keep what it computes" in str(refusal([threading.Thread()]))
    assert "A lock guards one process" in str(refusal(Engine(threading.RLock())))


def test_an_attribute_that_getstate_drops_is_not_looked_at() -> None:
    careful = Careful(3)
    careful.name = threading.Lock()  # type: ignore[assignment]
    encode(careful)
