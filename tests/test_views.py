"""What a `with` block hands out ends with the block, and what was derived from it stays harmless."""

import warnings
import weakref

import numpy as np
import pytest

import drust
from drust import Box, RevokedError, StaleViewWarning
from drust.errors import StaleViewError


def total(a: np.ndarray) -> float:
    return float(a.sum())


def double(a: np.ndarray) -> None:
    a *= 2


def test_an_array_is_revoked_at_the_end_of_its_block(one_server):
    box = Box(np.arange(10))
    with box.borrow() as a:
        alias = a
        assert alias[3] == 3
    ended = r"borrow ended at .*test_views\.py:\d+"
    for use in (lambda: a[0], lambda: alias.sum(), lambda: a + 1):
        with pytest.raises(RevokedError, match=ended):
            use()
    for ask in (np.asarray, memoryview, len, list):
        with pytest.raises(RevokedError, match=ended):
            ask(a)


def test_a_shared_array_is_read_only(one_server):
    box = Box(np.arange(10))
    with box.borrow() as a:
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            a.flags.writeable = True


def test_a_loop_over_rows_costs_no_copy_and_no_warning(one_server, counting):
    box = Box(np.ones((4, 4)))
    counters = counting(one_server)
    with box.borrow() as a:
        for row in a:
            assert row.sum() == 4
    with box.borrow_mut() as a:
        for row in a:
            row += 1
    with box.borrow_mut() as a:
        a += 1
    assert counters.since()["blocks_copied"] == 0
    with pytest.raises(RevokedError):
        row[0]


def test_a_kept_view_reads_the_version_it_saw(one_server):
    box = Box(np.zeros(10))
    kept = []
    with box.borrow() as a:
        kept.append(a[2:5])
    with pytest.warns(StaleViewWarning, match=r"test_views\.py"), box.borrow_mut() as a:
        a += 1
    assert kept[0].tolist() == [0, 0, 0]
    with box.borrow() as a:
        assert a.sum() == 10


def test_a_write_through_a_stale_view_never_reaches_the_live_version(one_server):
    box = Box(np.zeros(10))
    kept = []
    with pytest.warns(StaleViewWarning), box.borrow_mut() as a:
        kept.append(a[2:5])
        a[0] = 1
    kept[0][:] = 99
    with box.borrow() as a:
        assert a.tolist() == [1] + [0] * 9


def test_a_kept_view_is_left_behind_by_a_mutable_lend(one_server):
    box = Box(np.ones(10))
    kept = []
    with box.borrow() as a:
        kept.append(memoryview(a))
    with pytest.warns(StaleViewWarning):
        drust.spawn(double, box.borrow_mut()).join()
    assert list(kept[0]) == [1.0] * 10
    with box.borrow() as a:
        assert a.sum() == 20


def test_a_view_that_died_in_time_costs_nothing(one_server, counting):
    box = Box(np.ones(10))
    counters = counting(one_server)
    kept = []
    with box.borrow() as a:
        kept.append(a[1:])
    kept.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with box.borrow_mut() as a:
            a += 1
    assert counters.since()["blocks_copied"] == 0


def test_a_script_that_raises_inside_a_borrow_ends_it(one_server):
    box = Box(np.ones(10))
    with pytest.raises(ZeroDivisionError), box.borrow_mut() as a:
        a[0] = 5
        raise ZeroDivisionError
    with box.borrow_mut() as b:
        assert b[0] == 5
    with pytest.raises(RevokedError):
        a[0]


def test_into_inner_gives_an_array_of_ones_own(one_server):
    box = Box(np.ones(10))
    array = box.into_inner()
    array += 1
    assert array.sum() == 20
    with pytest.raises(drust.MovedError, match="into_inner"), box.borrow():
        pass


def test_in_strict_mode_a_stale_view_is_an_error_and_nothing_is_written():
    with drust.init(workers=0, heap_bytes="64MiB", strict=True):
        box = Box(np.zeros(4))
        kept = []
        with box.borrow() as a:
            kept.append(a[1:])
        with pytest.raises(StaleViewError, match=r"test_views\.py"), box.borrow_mut():
            pass
        kept.clear()
        with box.borrow_mut() as a:
            a += 1
        with box.borrow() as a:
            assert a.sum() == 4


def test_a_weak_reference_does_not_outlive_the_block(one_server):
    box = Box(np.zeros(4))
    with box.borrow_mut() as a:
        weak = weakref.ref(a)
        del a
    assert weak() is None
    with box.borrow_mut() as a:
        weak = weakref.ref(a)
    with pytest.raises(RevokedError):
        weak()[0] = 1


_kept: list[np.ndarray] = []


def keep(a: np.ndarray) -> None:
    _kept.append(a[1:])


def let_go() -> None:
    _kept.clear()


def test_a_task_that_keeps_a_view_of_a_part_in_place_fails(two_servers):
    box = Box(np.zeros(400_000))  # each half is above what a lend keeps a pre-image of
    first, second = box.split_mut(2)
    with pytest.raises(StaleViewError, match="a part of a split array"):
        drust.spawn(keep, first, server=0).join(timeout=20)
    drust.spawn(let_go, server=0).join(timeout=20)
    drust.spawn(double, second, server=0).join(timeout=20)
    with box.borrow() as a:
        assert not a.any()
