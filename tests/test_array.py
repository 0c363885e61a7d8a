"""Array: as numpy, in blocks on two servers, and what becomes of it when a worker dies."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import drust
from drust import Array, ArrayMut, ArrayRef, Box, Session, Tile, WorkerLostError
from drust.errors import AccessError, BorrowError, BorrowMutError, ConfigError, MovedError, ServerLostError

WITHIN_S = 20.0
MODES = ("constant", "edge", "reflect", "symmetric", "wrap")
QUICK = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=float).reshape(shape)


def add(values: np.ndarray, more: float) -> None:
    values += more


def add_rows(part: ArrayMut) -> int:
    for where, values in part:
        values += np.arange(where[0].start, where[0].stop)[:, None]
    return os.getpid()


def total(array: ArrayRef) -> float:
    return float(sum(values.sum() for _, values in array))


# -- what is asked for ---------------------------------------------------------------------------------------


@st.composite
def keys(draw, shape):
    parts = []
    for extent in shape:
        if draw(st.booleans()) and extent:
            parts.append(draw(st.integers(-extent, extent - 1)))
        else:
            parts.append(draw(st.slices(extent)))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(parts)))
        dropped = draw(st.integers(0, len(parts) - at))
        parts[at : at + dropped] = [...]
    return tuple(parts) if len(parts) != 1 or draw(st.booleans()) else parts[0]


@st.composite
def cuts(draw):
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    chunks = draw(st.none() | st.lists(st.none() | st.integers(1, 10), max_size=len(shape)).map(tuple))
    return shape, chunks


@QUICK
@given(data=st.data())
def test_what_an_index_names_is_what_it_names_in_numpy(two_servers, data):
    shape, chunks = data.draw(cuts())
    plain = numbered(*shape)
    array = Array.from_numpy(plain, chunks=chunks)
    key = data.draw(keys(shape))
    np.testing.assert_array_equal(array[key], plain[key], strict=True)
    value = -np.arange(plain[key].size, dtype=float).reshape(plain[key].shape)
    array[key] = value
    plain[key] = value
    np.testing.assert_array_equal(array.to_numpy(), plain, strict=True)
    array[key] = 7
    plain[key] = 7
    np.testing.assert_array_equal(np.asarray(array), plain, strict=True)
    assert (array.shape, array.ndim, array.size, array.nbytes) == (
        shape,
        len(shape),
        plain.size,
        plain.nbytes,
    )


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ((0, 0, 0), "too many indices"),
        (10, "out of bounds"),
        ((..., ...), "single ellipsis"),
        ([1, 2], "map_blocks"),
        (np.array([True] * 10), "map_blocks"),
        (True, "map_blocks"),
        (None, "map_blocks"),
        ("a", "map_blocks"),
    ],
)
def test_an_index_it_does_not_have_is_refused_with_what_to_do(two_servers, key, match):
    array = Array.zeros((10, 4))
    with pytest.raises(IndexError, match=match):
        array[key]
    with pytest.raises(IndexError, match=match):
        array[key] = 1
    assert not array.any()


def test_a_value_of_another_shape_is_refused_and_nothing_is_set(two_servers):
    array = Array.zeros((10, 4), chunks=3)
    with pytest.raises(ValueError, match="broadcast"):
        array[2:5] = np.ones((2, 4))
    assert not array.any()


# -- where it lies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "value", "error"), [
    ("u1", 300, OverflowError), ("u1", -1, OverflowError), ("i8", 1j, TypeError),
    ("i8", float("nan"), ValueError), ("f8", object(), TypeError), ("f8", "x", ValueError),
])  # fmt: skip
def test_values_are_taken_or_refused_as_numpy_does_wherever_the_block_lies(two_servers, dtype, value, error):
    for server in (0, 1):
        array = Array.zeros(3, dtype, on=[server])
        with pytest.raises(error):
            np.zeros(3, dtype)[0] = value
        for key in (0, slice(0, 2)):
            with pytest.raises(error):
                array[key] = value
        assert not array.any()


def test_items_of_several_fields_are_set_and_read(two_servers):
    for server in (0, 1):
        array = Array.zeros(3, [("a", "i4"), ("b", "f8")], on=[server])
        array[1] = (1, 2.5)
        assert array[1].tolist() == (1, 2.5)
        assert array[0].tolist() == (0, 0)


def test_what_is_open_or_has_ended_cannot_be_lent_on(settled):
    array = Array.from_numpy(numbered(20), chunks=5)
    with array.borrow_mut() as opened, pytest.raises(AccessError, match="it is open"):
        drust.spawn(total, opened)
    with pytest.raises(AccessError, match="has ended"):
        drust.spawn(total, opened)
    with array.tiles()[0] as tile, pytest.raises(AccessError, match="it is open"):
        drust.spawn(total, tile)
    del opened, tile


def fail() -> None:
    array = Array.from_numpy(numbered(20), chunks=5)
    with pytest.raises(ZeroDivisionError):
        array.map_blocks(divide)


def test_a_failed_map_keeps_nothing_until_garbage_is_collected(settled):
    fail()
    gc.collect()
    here = drust.runtime.current()
    before = here.live_blocks()
    gc.disable()
    try:
        fail()
        deadline_s = time.monotonic() + WITHIN_S
        while here.live_blocks() > before and time.monotonic() < deadline_s:
            here.flush()
        assert here.live_blocks() <= before
    finally:
        gc.enable()


def divide(values: np.ndarray) -> np.ndarray:
    return values + 1 // int(values[0])


def test_replicas_are_those_of_the_array_that_was_mapped(two_servers):
    array = Array.zeros(8, chunks=4, replicas=1)
    assert [box._excepted for _, box in array.clone().blocks()] == [True, True]
    assert [box._excepted for _, box in Array.zeros(8, chunks=4).clone().blocks()] == [False, False]


def test_many_blocks_come_in_one_result(two_servers):
    assert Array.zeros(3000, chunks=1, on=[1]).sum() == 0


def test_its_blocks_lie_over_all_servers_neighbours_together(settled):
    array = Array.zeros((40, 4), chunks=(10, None))
    assert array.servers == [0, 0, 1, 1]
    assert array.chunks == ((10, 10, 10, 10), (4,))
    assert Array.zeros((40,), on=[1]).servers == [1]
    assert Array.from_numpy(np.ones(7), chunks=2, on=[1, 0]).servers == [1, 1, 0, 0]
    assert Array.zeros((5, 5)).servers == [0, 1], "a block for each worker"
    assert repr(array) == "<Array of shape (40, 4), float64, 4 x 1 blocks>"


def test_making_one_costs_a_request_for_each_other_server_or_block(two_servers: Session, counting):
    Array.zeros((80, 4), chunks=10)  # functions have travelled
    counters = counting(two_servers)
    array = Array.zeros((80, 4), chunks=10)
    since = counters.since()
    assert (since["submit_messages"], since["read_requests"], since["write_requests"]) == (1, 0, 0)
    counters = counting(two_servers)
    other = Array.from_numpy(numbered(80, 4), chunks=10)
    since = counters.since()
    assert (since["submit_messages"], since["write_requests"]) == (0, 4)
    del array, other


def test_work_on_blocks_is_a_message_a_server_and_leaves_them_where_they_lie(two_servers: Session, counting):
    array = Array.from_numpy(numbered(80, 100), chunks=10)
    array.update_blocks(add, 0.0)
    array.sum()
    before = array.servers
    counters = counting(two_servers)
    array.update_blocks(add, 1.0)
    since = counters.since()
    assert (since["submit_messages"], since["read_requests"]) == (1, 0)
    counters = counting(two_servers)
    array.sum()
    since = counters.since()
    assert (since["submit_messages"], since["read_requests"]) == (1, 0)
    assert since["bytes_received"] < 100 * 80 * 8 // 2, "sums travel, blocks do not"
    array[:] = 3.0
    assert array.servers == before


def test_servers_that_there_are_not_are_refused(settled):
    with pytest.raises(ConfigError, match="on="):
        Array.zeros(4, on=[2])
    with pytest.raises(ConfigError, match="on="):
        Array.zeros(4, on=[])


@pytest.mark.parametrize("chunks", [0, -1, (1, 2, 3), "a", (1.5,)])
def test_chunks_that_are_none_are_refused(two_servers, chunks):
    with pytest.raises(ConfigError, match="chunks="):
        Array.zeros((4, 4), chunks=chunks)


def test_shapes_and_dtypes_that_are_none_are_refused(two_servers):
    with pytest.raises(ValueError, match="negative"):
        Array.zeros((4, -1))
    with pytest.raises(TypeError, match="Python objects"):
        Array.zeros(4, dtype=object)
    with pytest.raises(TypeError):
        Array.from_numpy([object(), object()], chunks=1)
    with pytest.raises(TypeError, match="unsized"):
        len(Array.zeros(()))
    with pytest.raises(ValueError, match="copy"):
        np.array(Array.zeros(3), copy=False)


# -- its blocks ----------------------------------------------------------------------------------------------


def test_blocks_are_mapped_and_updated_with_those_of_other_arrays(settled):
    plain = numbered(35, 23)
    array = Array.from_numpy(plain, chunks=(10, 7))
    other = Array.from_numpy(plain * 2, chunks=(10, 7), on=[1, 0])
    made = array.map_blocks(lambda a, b, c: a * b + c, other, 3)
    np.testing.assert_array_equal(made.to_numpy(), plain * plain * 2 + 3)
    assert made.servers == array.servers
    array.update_blocks(np.copyto, other)
    np.testing.assert_array_equal(array.to_numpy(), plain * 2)
    assert array.map_blocks(lambda a: a > 3).dtype == bool
    clone = array.clone()
    array[:] = 0
    np.testing.assert_array_equal(clone.to_numpy(), plain * 2)
    assert [box.server for _, box in clone.blocks()] == array.servers


def test_results_that_make_no_array_are_refused_and_freed(settled):
    array = Array.from_numpy(numbered(20), chunks=5)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        array.map_blocks(lambda a: a[:2])
    with pytest.raises(ValueError, match="dtypes"):
        array.map_blocks(lambda a: a > 3 if a[0] else a)
    with pytest.raises(ValueError, match="not cut as"):
        array.map_blocks(np.add, Array.zeros(20, chunks=4))
    with pytest.raises(ZeroDivisionError):
        array.map_blocks(lambda a: 1 // int(a[0]) + a)
    np.testing.assert_array_equal(array.to_numpy(), numbered(20))


@pytest.mark.parametrize("dtype", ["f8", "f4", "i2", "?", "c16"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), ()])
def test_reductions_are_those_of_numpy(two_servers, dtype, axis):
    plain = (numbered(7, 5, 3) % 7 - 1).astype(dtype)
    array = Array.from_numpy(plain, chunks=(3, 2))
    for name in ("sum", "prod", "min", "max", "any", "all", "mean"):
        expected = getattr(np, name)(plain, axis=axis)
        found = getattr(array, name)(axis)
        assert np.asarray(found).dtype == expected.dtype, name
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_means_of_halves_and_of_times_are_those_of_numpy(two_servers):
    assert Array.full(100_000, 1, "f2").mean() == 1
    times = np.arange(8).astype("m8[s]")
    assert Array.from_numpy(times, chunks=3).mean() == times.mean()


def test_reductions_of_nothing_are_those_of_numpy(two_servers):
    array = Array.zeros((0, 3))
    assert array.sum() == 0
    np.testing.assert_array_equal(array.sum(0), np.zeros(3))
    with pytest.raises(ValueError, match="zero-size"):
        array.max()
    with pytest.raises(np.exceptions.AxisError):
        array.sum(2)


# -- what it lends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 40])
def test_parts_of_a_split_are_disjoint_whole_and_written_in_place(settled, n):
    array = Array.from_numpy(np.zeros((35, 23)), chunks=(10, 7))
    parts = array.split_mut(n)
    assert len(parts) == min(n, 35)
    edges = [part.where[0] for part in parts]
    assert [each.start for each in edges] == [0, *(each.stop for each in edges[:-1])]
    with drust.scope() as tasks:
        for part in parts:
            tasks.spawn(add_rows, part)
    del parts, part
    np.testing.assert_array_equal(array.to_numpy(), np.arange(35.0)[:, None] + np.zeros(23))


def test_a_split_along_another_axis(settled):
    array = Array.from_numpy(np.zeros((9, 8)), chunks=(4, 4))
    parts = array.split_mut(4, axis=-1)
    assert [part.where for part in parts] == [(slice(0, 9), slice(at, at + 2)) for at in (0, 2, 4, 6)]
    assert [part.shape for part in parts] == [(9, 2)] * 4
    for number, part in enumerate(parts):
        with part as opened:
            opened.fill(number)
            assert opened.to_numpy().shape == (9, 2)
    del parts, part, opened
    np.testing.assert_array_equal(array.to_numpy(), np.repeat([0.0, 1, 2, 3], 2) + np.zeros((9, 1)))


def test_a_part_on_one_server_is_worked_on_where_it_lies(two_servers: Session, counting):
    array = Array.zeros((80, 100), chunks=10)
    workers = {drust.spawn(os.getpid, server=server).join(): server for server in (0, 1)}
    jobs = [drust.spawn(add_rows, part, server=part.server) for part in array.split_mut(2)]
    assert [workers[job.join()] for job in jobs] == [0, 1]
    assert array.servers == [0] * 4 + [1] * 4
    with pytest.raises(ConfigError, match="parts"):
        array.split_mut(0)
    with pytest.raises(np.exceptions.AxisError):
        array.split_mut(2, axis=2)


def test_what_is_lent_is_refused_to_others(settled):
    array = Array.from_numpy(numbered(20), chunks=5)
    with array.borrow() as one, array.borrow() as two:
        assert total(one) == total(two) == 190
        with pytest.raises(BorrowMutError):
            array[3] = 1
    with array.borrow_mut() as opened:
        opened.fill(2)
        with pytest.raises(BorrowError):
            array[3]
    first, second = array.split_mut(2)
    with first as left, second as right:
        left.fill(1)
        right.fill(3)
    assert array.sum() == 10 + 30
    del one, two, opened, first, second, left, right


def test_a_borrow_that_cannot_be_had_holds_nothing(settled):
    array = Array.from_numpy(numbered(20), chunks=5)
    boxes = [box for _, box in array.blocks()]
    with boxes[2].borrow(), pytest.raises(BorrowMutError), array.borrow_mut():
        pass
    with boxes[0].borrow_mut() as values:
        values[0] = 5
    assert array[0] == 5
    del boxes, values


def test_what_is_not_open_says_how_to_open_it(settled):
    array = Array.zeros(20, chunks=5)
    with pytest.raises(AccessError, match="with part as opened"):
        list(array.borrow())
    with pytest.raises(ValueError, match="iterate"):
        _ = array.borrow().values
    with pytest.raises(AccessError, match="with part as opened"):
        array.tiles()[0].padded()
    with array.borrow() as opened, pytest.raises(AccessError, match="has been opened"):
        _ = opened.server
    with pytest.raises(AccessError, match="has ended"):
        opened.to_numpy()


def test_a_borrow_lent_to_a_task_is_read_there(settled):
    array = Array.from_numpy(numbered(20), chunks=5)
    assert [drust.spawn(total, array.borrow(), server=server).join(WITHIN_S) for server in (0, 1)] == [
        190,
        190,
    ]


def take(array: Array) -> tuple[float, Array]:
    array[0] = 100
    return float(array.sum()), array


def test_it_moves_into_a_task_and_back_and_lies_where_it_lay(settled):
    array = Array.from_numpy(numbered(20), chunks=5)
    summed, back = drust.spawn(take, array, server=1).join(WITHIN_S)
    assert summed == 290
    with pytest.raises(MovedError):
        array.to_numpy()
    assert back.servers == [0, 0, 1, 1]
    assert back[0] == 100
    kept = Box({"grid": back})
    with kept.borrow() as inside:
        assert inside["grid"].sum() == 290
    del array, back, kept, inside


# -- tiles ---------------------------------------------------------------------------------------------------


def smooth(tile: Tile, calls: float) -> None:
    around = tile.padded()
    tile.values[...] = sum_around(around, tile.halo) + calls


def sum_around(padded: np.ndarray, halo: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros([extent - 2 * width for extent, width in zip(padded.shape, halo, strict=True)])
    for shift in np.ndindex(*(2 * width + 1 for width in halo)):
        where = tuple(slice(at, at + extent) for at, extent in zip(shift, whole.shape, strict=True))
        whole += padded[where] * (1 + sum(shift))
    return whole


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "chunks", "halo"),
    [
        ((23,), 5, 2),
        ((12, 11), (4, 5), 1),
        ((12, 11), (4, 5), (2, 0)),
        ((12, 12), (3, 3), (3, 1)),
        ((6, 6), None, 2),
        ((5, 4, 6), (2, 2, 3), 1),
    ],
)
def test_a_stencil_by_tiles_is_that_of_numpy(settled, shape, chunks, halo, mode):
    plain = numbered(*shape) % 13
    array = Array.from_numpy(plain, chunks=chunks)
    widths = (halo,) * len(shape) if isinstance(halo, int) else halo
    before = array.servers
    for step in range(2):
        more = {"constant_values": 5} if mode == "constant" else {}
        plain = sum_around(np.pad(plain, [(width, width) for width in widths], mode, **more), widths) + step
        array.update_tiles(smooth, step, halo=halo, mode=mode, fill_value=5)
        np.testing.assert_allclose(array.to_numpy(), plain)
    assert array.servers == before


def test_a_tile_is_opened_here_too_and_knows_where_it_is(settled):
    array = Array.from_numpy(numbered(6, 6), chunks=(3, 3))
    tiles = array.tiles()
    assert [tile.index for tile in tiles] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    array[0, 0] = 50  # they hold nothing yet; their edges are of before
    with tiles[3] as tile:
        assert tile.where == (slice(3, 6), slice(3, 6))
        np.testing.assert_array_equal(tile.padded(), np.pad(numbered(6, 6), 1, "edge")[3:8, 3:8])
        tile.values[...] = 0
    assert array[3:, 3:].sum() == 0
    del tiles, tile


def test_edges_are_a_message_a_server_and_a_read_for_each_one_elsewhere(two_servers: Session, counting):
    array = Array.zeros((80, 100), chunks=10)
    array.update_tiles(smooth, 0.0)
    counters = counting(two_servers)
    array.update_tiles(smooth, 0.0)
    since = counters.since()
    assert since["submit_messages"] == 2
    assert since["read_requests"] == 2, "one edge each way between the servers"
    assert since["bytes_received"] < 80 * 100 * 8 // 2


@pytest.mark.parametrize("halo", [-1, (1, 2, 3), 11, (0, 6), "a", 0.5])
def test_a_halo_that_there_cannot_be_is_refused(two_servers, halo):
    array = Array.zeros((20, 10), chunks=(10, 5))
    with pytest.raises(ConfigError, match="halo="):
        array.tiles(halo)


def test_a_mode_that_there_is_not_is_refused(two_servers):
    with pytest.raises(ConfigError, match="mode="):
        Array.zeros(20).tiles(mode="median")


def test_heat_spreads_as_numpy_computes_it_and_only_edges_travel():
    script = Path(__file__).parent.parent / "examples" / "heat.py"
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "as numpy computes it: yes" in ran.stdout


# -- deaths --------------------------------------------------------------------------------------------------


def add_and_die_at(values: np.ndarray, flag: str) -> None:
    is_it = values[0] == 10
    values += 1
    if is_it and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_leaves_its_block_as_it_was_and_the_others_changed(settled, tmp_path):
    array = Array.from_numpy(numbered(20), chunks=5)
    with pytest.raises(WorkerLostError, match="_update_block"):
        array.update_blocks(add_and_die_at, str(tmp_path / "flag"))
    expected = numbered(20) + 1
    expected[10:15] -= 1
    np.testing.assert_array_equal(array.to_numpy(), expected)


def test_a_block_whose_worker_dies_is_tried_again(settled, tmp_path):
    array = Array.from_numpy(numbered(20), chunks=5)
    array.update_blocks(add_and_die_at, str(tmp_path / "flag"), retry=1)
    np.testing.assert_array_equal(array.to_numpy(), numbered(20) + 1)


def hold_and_die(parts: list[ArrayMut]) -> None:
    for part in parts:
        part._pieces[0][1][...] = 9
    os.kill(os.getpid(), signal.SIGKILL)


def test_parts_that_a_dead_worker_was_lent_are_as_they_were(settled):
    array = Array.from_numpy(numbered(20), chunks=5)
    with pytest.raises(WorkerLostError):
        drust.spawn(hold_and_die, array.split_mut(4), server=1).join(WITHIN_S)
    np.testing.assert_array_equal(array.to_numpy(), numbered(20))


def test_what_was_on_a_lost_server_is_lost_by_name_and_the_rest_is_there():
    with drust.init(servers=2, workers=1, heap_bytes="64MiB") as session:
        array = Array.from_numpy(numbered(20), chunks=5)
        os.kill(session.status(1).pid, signal.SIGKILL)
        with pytest.raises(ServerLostError, match="server 1"):
            array.to_numpy()
        np.testing.assert_array_equal(array[:10], numbered(10))
