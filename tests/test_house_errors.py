"""Every error, found by reflection: documented, pickles with all it carries, and says what to do."""

import copy
import inspect
import pickle
import queue
import re
from typing import Any, get_type_hints

import pytest

import drust.errors as module
from drust.errors import BorrowError, BorrowMutError, ClusterError, DrustError, InternalError, OwnershipError

PUBLIC = [
    value
    for name, value in vars(module).items()
    if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
]
ERRORS: list[type[DrustError]] = [kind for kind in PUBLIC if issubclass(kind, DrustError)]


# A gap where an empty part was left out badly, or a field that was not filled in.
MISSPELT = re.compile(r"\s\s|\s[.,;:](?!\w)| \)|\{\w+\}")


def names(kind: type[DrustError]) -> list[str]:
    return list(kind.__dataclass_fields__)


def sample(kind: type[DrustError]) -> dict[str, Any]:
    """A value for each field that differs from every default."""
    hints = get_type_hints(kind)
    samples: dict[Any, Any] = {
        str: "a [b] {c}",
        int: 41,
        float | None: 2.5,
        float: 2.5,
        tuple[str, ...]: ("p", "q"),
    }
    return {name: samples[hints[name]] for name in names(kind)}


def test_reflection_finds_the_errors() -> None:
    assert len(ERRORS) > 20
    assert {OwnershipError, ClusterError, InternalError} < set(ERRORS)


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_class_is_documented_by_itself(kind: type) -> None:
    assert kind.__dict__.get("__doc__")
    assert kind.__doc__ != DrustError.__doc__ or kind is DrustError


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("carry", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_every_error_survives_pickling_with_its_fields_and_notes(kind: type[DrustError], carry: Any) -> None:
    error = kind(**sample(kind))
    error.add_note("while testing")
    twin = carry(error)
    assert type(twin) is kind
    assert twin.__dict__ == error.__dict__
    assert twin.__notes__ == ["while testing"]
    assert str(twin) == str(error)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_message_says_what_happened_and_what_to_do(kind: type[DrustError]) -> None:
    for error in (kind(), kind(**sample(kind))):
        message = str(error)
        assert message.endswith(f" {kind.advice}")
        assert not MISSPELT.search(message.replace("a [b] {c}", "value")), message
    assert kind.advice.endswith(".")


@pytest.mark.parametrize("kind", ERRORS)
def test_every_message_shows_every_field_of_its_template(kind: type[DrustError]) -> None:
    message = str(kind(**sample(kind)))
    shown = set(re.findall(r"\{(\w+)\}", kind.template))
    assert shown <= set(names(kind)), "the template names a field that does not exist"
    assert message.count("a [b] {c}") >= sum(1 for name in shown if sample(kind)[name] == "a [b] {c}")
    assert "a [b] {c}" in message  # detail, at least


@pytest.mark.parametrize("kind", ERRORS)
def test_fields_are_keyword_only(kind: type[DrustError]) -> None:
    with pytest.raises(TypeError):
        kind("text")  # type: ignore[misc]
    with pytest.raises(TypeError):
        kind(no_such_field=1)  # type: ignore[call-arg]


def test_every_error_belongs_to_one_branch() -> None:
    branches = (OwnershipError, ClusterError, InternalError, module.TaskError)
    for kind in ERRORS:
        if kind is not DrustError:
            assert sum(issubclass(kind, branch) for branch in branches) == 1, kind


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        (module.OutOfMemoryError, MemoryError),
        (module.BorrowTimeoutError, TimeoutError),
        (module.ImmutableValueError, TypeError),
        (module.PickledBoxError, pickle.PicklingError),
        (module.ConfigError, ValueError),
        (module.QueueFullError, queue.Full),
    ],
)
def test_an_error_is_also_the_standard_one(kind: type[DrustError], standard: type[Exception]) -> None:
    with pytest.raises(standard):
        raise kind


def test_a_refused_borrow_names_holder_line_and_age() -> None:
    error = BorrowError(object="Box[dict]", holder="worker 3 (pid 47)", location="sim.py:12", age_s=1.25)
    assert str(error).startswith(
        "cannot borrow Box[dict]: it is borrowed mutably by worker 3 (pid 47) since sim.py:12 for 1.25 s. "
    )


def test_a_refused_mutable_borrow_counts_the_readers_and_is_a_borrow_error() -> None:
    error = BorrowMutError(object="Box[dict]", mode="shared", readers=2, detail="Both are tasks.")
    assert isinstance(error, BorrowError)
    assert "it is borrowed shared 2 times. Both are tasks. End" in str(error)


def test_an_out_of_memory_error_lists_sizes_with_units() -> None:
    error = module.OutOfMemoryError(requested_bytes=3 << 30, free_bytes=17, largest=("a 2 GiB", "b 1 GiB"))
    assert "no room for 3 GiB: the heap's quota is reached; 17 B are free; " in str(error)
    assert "the largest objects are a 2 GiB; b 1 GiB." in str(error)


def test_a_remote_traceback_shows_its_text_after_pickling() -> None:
    remote = pickle.loads(pickle.dumps(module.RemoteTraceback("File x, line 3")))
    assert "File x, line 3" in str(remote)
