"""What a borrow hands out ends with its block: arrays are revoked, escaped views never see a write."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import BuiltinMethodType
from typing import Any

import numpy as np
import pytest

from drust import _core
from drust._core import Box, Pin
from fake_hooks import Hooks, Stale, refused


@pytest.fixture(autouse=True)
def hooks() -> Iterator[Hooks]:
    with Hooks().installed() as fakes:
        yield fakes


def address_of(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def revoked_array() -> Any:
    with Box(np.arange(12.0).reshape(3, 4)).borrow() as a:
        pass
    return a


USES: dict[str, Callable[[Any], object]] = {
    "getattr": lambda x: x.shape,
    "setattr": lambda x: setattr(x, "shape", (12,)),
    "getitem": lambda x: x[0],
    "setitem": lambda x: x.__class__ and exec("x[0] = 1", {"x": x}),
    "len": len,
    "iter": iter,
    "list": list,
    "contains": lambda x: 3 in x,
    "bool": bool,
    "int": int,
    "float": float,
    "hash": hash,
    "equality": lambda x: x == x,
    "less": lambda x: x < 3,
    "add": lambda x: x + 1,
    "reflected add": lambda x: 1 + x,
    "numpy scalar add": lambda x: np.float64(1) + x,
    "array add": lambda x: np.ones(3) + x,
    "power": lambda x: x**2,
    "matmul": lambda x: x @ np.ones(4),
    "negative": lambda x: -x,
    "in place": lambda x: exec("x += 1", {"x": x}),
    "np.add": lambda x: np.add(x, 1),
    "np.add out": lambda x: np.add(1, 1, out=x),
    "np.sum": np.sum,
    "np.copyto": lambda x: np.copyto(np.zeros((3, 4)), x),
    "np.concatenate": lambda x: np.concatenate([x, x]),
    "np.asarray": np.asarray,
    "np.array": np.array,
    "np.array nested": lambda x: np.array([x, x]),
    "np.frombuffer": np.frombuffer,
    "assign into": lambda x: np.zeros((3, 4)).__setitem__(slice(None), x),
    "memoryview": memoryview,
    "bytes": bytes,
    "write": lambda x: io.BytesIO().write(x),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "pickle 5": lambda x: pickle.dumps(x, protocol=5),
    "method": lambda x: x.sum(),
    "unbound fill": lambda x: x.fill(0),
}


@pytest.mark.parametrize("use", list(USES), ids=lambda name: name.replace(" ", "_"))
def test_every_use_of_a_revoked_array_raises(use: str) -> None:
    array = revoked_array()
    with refused("revoked"):
        USES[use](array)


@pytest.mark.parametrize("call", [np.ndarray.fill, np.ndarray.sum, np.ndarray.view, np.ndarray.__getitem__])
def test_ndarray_methods_do_not_accept_a_revoked_array(call: Any) -> None:
    with pytest.raises(TypeError):
        call(revoked_array(), 0)


def test_a_revoked_array_says_so_and_where() -> None:
    with Box(np.zeros(3)).borrow() as a:
        line = sys._getframe().f_lineno - 1
    assert "revoked" in repr(a)
    assert f"test_revoke.py:{line}" in repr(a)
    assert "revoked" in str(a)
    assert "revoked" in f"{a}"
    assert not isinstance(a, np.ndarray)
    with refused("revoked") as caught:
        a.sum()
    assert f"test_revoke.py:{line}" in str(caught.value)
    assert caught.value.fields["line"] == line
    assert "copy()" in str(caught.value)


def test_a_shared_borrow_is_read_only_and_page_protected() -> None:
    box = Box(np.zeros(3))
    with box.borrow() as a:
        assert not a.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            a.flags.writeable = True
    script = (
        "import ctypes, numpy as np\nfrom drust import _core\n"
        "pin = _core.Pin.private(1, b'', [64])\n"
        "a = np.ndarray((8,), 'u8', buffer=pin.buffer(0))\n"
        "assert a[0] == 0\n"
        "print('reached', flush=True)\n"
        "ctypes.memset(a.ctypes.data, 1, 8)\n"
        "print('written', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "reached\n"
    assert done.returncode != 0


def test_a_mutable_borrow_writes_in_place() -> None:
    box = Box(np.zeros(4))
    before = box._state()["pointer"]
    with box.borrow_mut() as a:
        a += 2
    with box.borrow() as b:
        assert b.tolist() == [2, 2, 2, 2]
    assert box._state()["pointer"] == before
    with refused("revoked"):
        a += 1


def test_aliases_of_the_array_are_revoked_with_it(hooks: Hooks) -> None:
    box = Box(np.zeros(4))
    with box.borrow_mut() as a:
        b = a
        inside = lambda: a  # noqa: E731
    for alias in (a, b, inside()):
        with refused("revoked"):
            alias[0] = 1
    with box.borrow_mut() as c:
        c[0] = 1
    assert hooks.survivors_seen == []


def test_iterating_rows_costs_no_copy_no_warning_no_error(hooks: Hooks) -> None:
    box = Box(np.arange(12.0).reshape(3, 4))
    before = box._state()["pointer"]
    for _ in range(5):
        total = 0.0
        with box.borrow() as a:
            for row in a:
                total += row.sum()
        assert total == 66
        with refused("revoked"):
            row.sum()
        with box.borrow_mut() as a:
            for row in a:
                row += 0
                if row[0] > 3:
                    break
        with refused("revoked"):
            row += 1
    assert hooks.survivors_seen == []
    assert box._state()["pointer"] == before


def test_derived_names_in_the_block_are_revoked(hooks: Hooks) -> None:
    box = Box(np.arange(12.0).reshape(3, 4))
    with box.borrow_mut() as a:
        part, turned, flat, typed = a[1:], a.T, a.reshape(-1), a.view("u1")
        inner = lambda: part  # noqa: E731
    for view in (part, turned, flat, typed, inner()):
        with refused("revoked"):
            view[0]
    assert hooks.survivors_seen == []


def test_module_level_names_are_found() -> None:
    box = Box(np.arange(6.0).reshape(2, 3))
    seen: list[Any] = []
    before = _core.set_hooks(survivors=lambda *a: seen.append(a))
    try:
        space: dict[str, Any] = {"box": box}
        exec("with box.borrow_mut() as a:\n    row = a[0]\n    b = a\n", space)
        assert type(space["a"]).__name__ == type(space["row"]).__name__ == "RevokedArray"
        assert space["a"] is space["b"]
        assert seen == []
    finally:
        _core.set_hooks(**before)


class Sub(np.ndarray):
    pass


KEPT: dict[str, Callable[[Any], Any]] = {
    "slice in a list": lambda a: [a[1:3]],
    "memoryview": memoryview,
    "memoryview of a slice": lambda a: memoryview(a[1:]),
    "flat": lambda a: a.flat,
    "subclass view": lambda a: a.view(Sub),
    "hidden parent": lambda a: [a.base],
    "pin buffer": lambda a: memoryview(a.base.base),
    "closure": lambda a: lambda kept=a[1:]: kept,
    "iterator": lambda a: iter([a[0:]]),
    "array in a list": lambda a: [a],
    "closure over the array": lambda a: lambda kept=a: kept,
    "flat of a slice": lambda a: a[0:].flat,
    "bound fill": lambda a: a.fill,
}


def open_kept(kept: Any) -> Any:
    """The array (or flat iterator) behind whatever keeps it."""
    if isinstance(kept, memoryview):
        return np.frombuffer(kept)
    if isinstance(kept, np.ndarray | np.flatiter):
        return kept
    if isinstance(kept, BuiltinMethodType):
        return kept.__self__
    if callable(kept):
        return kept()
    return next(copy.copy(kept)) if hasattr(kept, "__next__") else kept[0]


@pytest.mark.parametrize("how", list(KEPT), ids=lambda name: name.replace(" ", "_"))
def test_a_view_kept_from_a_shared_borrow_keeps_the_version_it_saw(how: str, hooks: Hooks) -> None:
    box = Box(np.array([7.0, 7.0, 7.0, 7.0]))
    with box.borrow() as a:
        line = sys._getframe().f_lineno - 1
        kept = KEPT[how](a)
    assert box._state()["pinned"]
    assert hooks.survivors_seen == []
    with box.borrow() as a:
        assert a[1] == 7
    assert open_kept(kept)[1] == 7
    before = box._state()["pointer"]
    with box.borrow_mut() as a:
        a[:] = 9
    assert open_kept(kept)[1] == 7
    assert box._state()["pointer"] != before
    assert not box._state()["pinned"]
    [(mode, locations)] = hooks.survivors_seen
    assert mode == "shared"
    assert len(locations) == 1
    assert locations[0].endswith(f"test_revoke.py:{line}")
    with box.borrow_mut() as a:
        assert a[1] == 9
    assert len(hooks.survivors_seen) == 1


@pytest.mark.parametrize("how", list(KEPT), ids=lambda name: name.replace(" ", "_"))
def test_a_view_kept_from_a_mutable_borrow_never_reaches_the_live_version(how: str, hooks: Hooks) -> None:
    box = Box(np.array([0.0, 7.0, 7.0, 7.0]))
    with box.borrow_mut() as a:
        a[0] = 1
        kept = KEPT[how](a)
    [(mode, _)] = hooks.survivors_seen
    assert mode == "mutable"
    writable = open_kept(kept)
    writable[...] = 5
    with box.borrow() as a:
        assert a.tolist() == [1, 7, 7, 7]


def test_a_view_that_died_before_the_write_costs_nothing(hooks: Hooks) -> None:
    box = Box(np.zeros(4))
    before = box._state()["pointer"]
    with box.borrow() as a:
        kept = [a[1:], memoryview(a)]
    assert box._state()["pinned"]
    del kept
    with box.borrow_mut() as a:
        a += 1
    assert hooks.survivors_seen == []
    assert box._state()["pointer"] == before
    assert not box._state()["pinned"]


def test_strict_mode_refuses_the_write_under_a_view(hooks: Hooks) -> None:
    box = Box(np.zeros(4))
    with box.borrow() as a:
        kept = [a[1:]]
    hooks.strict = True
    with pytest.raises(Stale, match="shared"), box.borrow_mut() as a:
        pass
    assert box._state()["phase"] == "owned"
    with box.borrow() as a:
        assert a.tolist() == [0, 0, 0, 0]
    del kept
    with box.borrow_mut() as a:
        a += 1


def test_strict_mode_reports_a_writable_survivor_and_still_ends_the_borrow(hooks: Hooks) -> None:
    box = Box(np.zeros(4))
    hooks.strict = True
    with pytest.raises(Stale, match="mutable"), box.borrow_mut() as a:
        kept = [a[1:]]
    kept[0][:] = 5
    with box.borrow() as a:
        assert a.tolist() == [0, 0, 0, 0]


def helper_that_fails(array: Any) -> None:
    local = array[1:]
    alias = array
    raise ValueError(len(local) + len(alias))


def test_an_exception_in_the_block_revokes_too(hooks: Hooks) -> None:
    box = Box(np.zeros(4))
    before = box._state()["pointer"]
    caught: list[BaseException] = []
    for borrow in (box.borrow, box.borrow_mut):
        try:
            with borrow() as a:
                row = a[0:2]
                helper_that_fails(a)
        except ValueError as error:
            caught.append(error)
        for view in (a, row):
            with refused("revoked"):
                view.sum()
        inner = caught[-1].__traceback__.tb_next.tb_frame.f_locals["local"]  # type: ignore[union-attr]
        with refused("revoked"):
            inner.sum()
    assert hooks.survivors_seen == []
    assert box._state()["pointer"] == before


def test_a_context_exception_that_holds_frames_is_searched(hooks: Hooks) -> None:
    box = Box(np.zeros(4))

    def fail_twice() -> None:
        with box.borrow_mut() as a:
            try:
                helper_that_fails(a)
            except ValueError:
                raise KeyError("second") from None

    with pytest.raises(KeyError) as caught:
        fail_twice()
    assert caught.value.__context__ is not None
    assert hooks.survivors_seen == []


def test_exit_stack_and_generator_managers_are_searched(hooks: Hooks) -> None:
    box = Box(np.zeros(4))

    @contextmanager
    def reading() -> Iterator[Any]:
        with box.borrow_mut() as inner:
            yield inner

    with reading() as outer:
        row = outer[1:]
    with ExitStack() as stack:
        stacked = stack.enter_context(box.borrow_mut())
        part = stacked[1:]
    for view in (outer, row, stacked, part):
        with refused("revoked"):
            view.sum()
    assert hooks.survivors_seen == []


def test_views_of_one_borrow_survive_the_end_of_another(hooks: Hooks) -> None:
    box = Box(np.arange(4.0))
    with box.borrow() as a:
        with box.borrow() as b:
            mine = a[1:]
            theirs = b[1:]
        assert mine.tolist() == [1, 2, 3]
        assert a[0] == 0
        for view in (b, theirs):
            with refused("revoked"):
                view.sum()
    with refused("revoked"):
        mine.sum()
    assert hooks.survivors_seen == []


def test_threads_reading_together_do_not_disturb_each_other(hooks: Hooks) -> None:
    box = Box(np.arange(1000.0))
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(300):
                with box.borrow() as a:
                    rows = a.reshape(10, 100)
                    assert sum(float(row.sum()) for row in rows) == 499500
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert box._state()["phase"] == "owned"
    with box.borrow_mut() as a:
        a += 1
    assert hooks.survivors_seen == []


def test_a_loop_of_borrows_reuses_its_views() -> None:
    box = Box(np.zeros(4))
    identities = set()
    for _ in range(20):
        with box.borrow() as a:
            identities.add(id(a))
            assert a.sum() == 0
    assert len(identities) <= 3


def test_a_view_whose_shape_was_assigned_is_not_handed_out_again() -> None:
    box = Box(np.zeros((2, 3)))
    for _ in range(4):
        with box.borrow_mut() as a:
            assert a.shape == (2, 3)
            assert a.flags.writeable
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                a.shape = (6,)
            a.flags.writeable = False
        del a


def test_a_weak_reference_does_not_resurrect_a_view() -> None:
    box = Box(np.zeros(4))
    with box.borrow() as a:
        link = weakref.ref(a)
    assert link() is a
    del a
    with box.borrow() as a:
        assert link() is not a


def test_a_borrow_nobody_bound_is_reused_without_revoking() -> None:
    box = Box(np.zeros(4))
    for _ in range(5):
        with box.borrow():
            pass
        with box.borrow_mut():
            pass
    assert box._state()["phase"] == "owned"


def test_revoked_arrays_die_without_a_trace() -> None:
    pin_links = []
    for _ in range(3):
        box = Box(np.zeros(1000))
        pin_links.append(weakref.ref(box._pin))
        with box.borrow_mut() as a:
            row = a[1:]
        del box
        assert pin_links[-1]() is not None  # the names hold the bytes: a thread may be inside a kernel
        del a, row
        assert pin_links[-1]() is None
    gc.collect()


def test_into_inner_gives_a_writable_array_of_its_own(hooks: Hooks) -> None:
    box = Box(np.arange(4.0))
    with box.borrow() as a:
        kept = [a[1:]]
    inner = box.into_inner()
    inner += 1
    assert inner.tolist() == [1, 2, 3, 4]
    assert kept[0].tolist() == [1, 2, 3]
    with refused("moved"):
        box.borrow().__enter__()
    fresh = Box(np.arange(4.0))
    address = 0
    with fresh.borrow_mut() as a:
        address = address_of(a)
    assert address_of(fresh.into_inner()) == address


def test_a_clone_of_an_array_is_another_block() -> None:
    box = Box(np.arange(4.0).reshape(2, 2))
    other = box.clone()
    with other.borrow_mut() as a:
        a += 1
    with box.borrow() as a, other.borrow() as b:
        assert a.tolist() == [[0, 1], [2, 3]]
        assert b.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", "i2", "U3", [("x", "f4"), ("y", "i8")]])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 3), (2, 3, 4)])
def test_shapes_types_and_orders_survive_a_borrow(shape: tuple[int, ...], dtype: Any, order: Any) -> None:
    value = np.zeros(shape, dtype=dtype, order=order)
    box = Box(value)
    with box.borrow_mut() as a:
        assert a.shape == shape
        assert a.dtype == value.dtype
        assert a.flags.c_contiguous == value.flags.c_contiguous
        assert a.flags.f_contiguous == value.flags.f_contiguous
        a[...] = np.ones(shape, dtype=dtype)
    with box.borrow() as a:
        assert (a == np.ones(shape, dtype=dtype)).all()


def test_an_array_that_lies_on_no_pin_is_refused() -> None:
    box = Box({"a": 1})
    pin = Pin.private(1, b"", [8])
    with pytest.raises(TypeError, match="buffer of its Pin"):
        box._install(np.zeros(1), pin, True, False)
    writable = pin.as_writable()
    with pytest.raises(TypeError, match="read-only mapping"):
        box._install(np.ndarray((1,), buffer=writable.buffer(0)), writable, True, False)
