"""Dict: as a plain dict, on this host and over the wire, with processes that die in the middle."""

import gc
import os
import random
import signal
import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import drust
from drust import Box, Dict, Mutex, WorkerLostError
from drust.errors import (
    ClosedError,
    ConfigError,
    OutOfMemoryError,
    PickledBoxError,
    ServerLostError,
    UnpicklableError,
)
from drust.testing import account, faults, history
from drust.testing.history import Map, Recorder

WITHIN_S = 60.0
BOTH = pytest.mark.parametrize("home", [0, 1], ids=["here", "elsewhere"])


def put_all(d: Dict, items: dict) -> Dict:
    for key, value in items.items():
        d[key] = value
    return d


# -- as a dict ---------------------------------------------------------------------------------------------


@BOTH
def test_it_does_what_a_dict_does(settled, home):
    d = Dict({"a": 1}, on=[home])
    assert d["a"] == 1
    assert d.get("b") is None
    assert d.get("b", 5) == 5
    assert "a" in d
    assert "b" not in d
    assert len(d) == 1
    d["b"] = [1, {"two": 2}]
    assert d["b"] == [1, {"two": 2}]
    assert d["b"] is not d["b"]
    assert d.pop("b") == [1, {"two": 2}]
    assert d.pop("b", 7) == 7
    with pytest.raises(KeyError, match="'b'"):
        d.pop("b")
    with pytest.raises(KeyError, match="'b'"):
        d["b"]
    with pytest.raises(KeyError):
        del d["b"]
    assert d.setdefault("c", 3) == 3
    assert d.setdefault("c", 4) == 3
    d.update({number: str(number) for number in range(100)})
    d.update([("z", None)])
    assert dict(d.items()) == {"a": 1, "c": 3, "z": None, **{n: str(n) for n in range(100)}}
    assert set(d) == set(d.keys()) == set(dict(d.items()))
    assert len(list(d.values())) == len(d) == 103
    d.clear()
    assert len(d) == 0
    assert list(d) == []


@BOTH
def test_a_change_that_depends_on_the_value_is_made_only_on_that_value(settled, home):
    d = Dict(on=[home])
    assert d.insert("a", 1)
    assert not d.insert("a", 2)
    assert d.compare_and_set("a", 1.0, 3)
    assert not d.compare_and_set("a", 1, 4)
    assert d["a"] == 3
    assert not d.compare_and_set("none", None, 1)
    assert "none" not in d
    d["list"] = [1, {"two": 2.0}]
    assert d.compare_and_set("list", [1, {"two": 2}], "short")
    assert d.compare_and_set("list", "short", b"bytes")
    assert not d.compare_and_set("list", "bytes", 1)
    assert d.pop("list") == b"bytes"
    entry = d.entry("a")
    assert entry is not None
    assert entry.value == 3
    assert d.entry("none") is None
    version = d.put("a", 3)
    assert not d.replace("a", 5, entry.version)
    assert d.replace("a", 5, version)
    assert d["a"] == 5
    assert not d.replace("a", 5, 0)
    assert d.replace("new", 6, 0)
    assert d["new"] == 6
    assert d.modify("a", lambda number: number + 1) == 6 == d["a"]
    assert d.modify("b", lambda number: number + 1, 0) == 1 == d["b"]
    with pytest.raises(KeyError, match="'c'"):
        d.modify("c", lambda number: number)


def add_one(d: Dict, times: int) -> None:
    for index in range(times):
        d.modify(index % 3, lambda number: number + 1, 0)


def test_modifications_by_many_processes_are_all_made(settled):
    d = Dict()
    jobs = [drust.spawn(add_one, d, 200, server=server) for server in (0, 1)]
    add_one(d, 200)
    for job in jobs:
        job.join(WITHIN_S)
    assert sum(d.values()) == 600


keys = st.recursive(
    st.text(max_size=5) | st.binary(max_size=5) | st.integers() | st.floats(allow_nan=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
some_keys = st.lists(
    keys | st.sampled_from([0, 0.0, -0.0, False, 1, 1.0, True, 2**70, 2.0**70, "1", b"1", (1,)])
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_keys)
def test_keys_that_are_equal_in_python_are_one_key(one_server, chosen):
    d, plain = Dict(), {}
    for number, key in enumerate(chosen):
        d[key] = plain[key] = number
    assert dict(d.items()) == plain
    assert all(d[key] == value for key, value in plain.items())


@pytest.mark.parametrize(
    "key", ["\ud800", "\0", "", b"", (), ((),), -(2**63), 2**64, float("inf"), "ä" * 9999]
)
def test_a_key_comes_back_as_it_was(one_server, key):
    d = Dict({key: 1})
    assert list(d) == [key]
    assert type(next(iter(d))) is type(key)


class Name(str):
    __slots__ = ()


@BOTH
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "a NoneType is no key of a Dict"),
        ([1], "a list is no key"),
        (("a", {1}), "a set is no key"),
        (np.float64(1), "a numpy.float64 is no key .* Make one of it"),
        (Name("a"), "a Name is no key"),
    ],
)
def test_another_key_is_refused_by_every_step(two_servers, home, key, message):
    d = Dict({"a": 1}, on=[home])
    for step in (
        lambda: d.get(key),
        lambda: d.put(key, 1),
        lambda: d.pop(key),
        lambda: key in d,
        lambda: d.update([("b", 1), (key, 1)]),
    ):
        with pytest.raises(TypeError, match=message):
            step()
    assert dict(d.items()) == {"a": 1}


def test_a_nan_is_no_key(one_server):
    with pytest.raises(ValueError, match="not equal to itself"):
        Dict({(1, float("nan")): 1})


def test_a_value_that_cannot_be_kept_is_refused_and_nothing_is_put(settled):
    d = Dict({"a": 1})
    for value in (Box(1), [Mutex(1)], d):
        with pytest.raises(UnpicklableError, match=r"a value of a Dict cannot be sent .*could not own it"):
            d["a"] = value
    with pytest.raises(UnpicklableError):
        d.update({"b": 1, "a": threading.Lock()})
    assert dict(d.items()) == {"a": 1}


def test_values_of_what_only_this_process_knows_arrive_by_value(two_servers):
    local = type("Local", (), {"number": 5})
    d = Dict({"function": lambda number: number + 1, "array": np.arange(5)})
    d["class"] = local
    assert d["function"](1) == 2
    assert d["class"]().number == 5
    assert np.array_equal(d["array"], np.arange(5))


@BOTH
def test_large_values_and_many_of_them_come_whole(settled, home):
    d = Dict(on=[home])
    values = {size: bytes([size % 251]) * size for size in (0, 1, 511, 513, 70_000, 2**20, 5 * 2**20)}
    d.update(values)
    assert {size: d[size] for size in values} == values == dict(d.items())
    assert all(d.pop(size) == value for size, value in values.items())


def test_a_dict_needs_servers_that_are_there(two_servers):
    with pytest.raises(ConfigError, match="on="):
        Dict(on=[])
    with pytest.raises(ConfigError, match="from 0 to 1"):
        Dict(on=[0, 7])
    assert Dict(on=[1, 0, 1]).servers == [1, 0, 1]
    assert Dict().servers == [0, 1]


# -- handles -----------------------------------------------------------------------------------------------


def test_what_a_task_puts_is_seen_by_everybody(settled):
    d = put_all(Dict(), {"here": 1})
    back = drust.spawn(put_all, d, {"there": 2, "here": 3}, server=1).join(WITHIN_S)
    assert dict(d.items()) == dict(back.items()) == {"there": 2, "here": 3}
    boxed = Box(d)
    with boxed.borrow() as again:
        assert again["there"] == 2


def test_a_dict_is_freed_with_its_last_handle_to_the_byte(settled):
    d = drust.spawn(put_all, Dict(), {n: bytes(n) for n in range(2000)}, server=1).join(WITHIN_S)
    assert len(d) == 2000  # and `settled` finds nothing left


def test_a_handle_is_pickled_only_on_its_way_to_a_task(two_servers):
    import pickle

    with pytest.raises(PickledBoxError):
        pickle.dumps(Dict())


def test_a_step_after_the_end_of_the_session_says_so():
    with drust.init(servers=1, workers=0, heap_bytes="64MiB"):
        d = Dict({"a": 1})
        assert d.servers == [0]
    for step in (lambda: d["a"], lambda: d.put("a", 1), lambda: len(d), lambda: list(d), lambda: d.pop("a")):
        with pytest.raises(ClosedError):
            step()


def served(counter) -> int:
    """Requests at shared objects since; frees of what others had before may come at any time."""
    return counter.since()["shared_messages"]


def test_a_step_costs_no_message_here_and_one_round_trip_elsewhere(two_servers, counting):
    here, there = Dict(on=[0]), Dict(on=[1])
    counter = counting(two_servers)
    here["a"] = 1
    assert (here["a"], here.pop("a"), here.insert("b", 1), len(here), list(here)) == (1, 1, True, 1, ["b"])
    assert served(counter) == 0
    for step in (
        lambda: there.put("a", 1),
        lambda: there["a"],
        lambda: there.get("none"),
        lambda: there.insert("b", 2),
        lambda: there.replace("b", 3, 5),
        lambda: there.compare_and_set("b", 2, 3),
        lambda: there.compare_and_set("b", 2, 4),
        lambda: there.compare_and_set("none", 2, 4),
        lambda: there.pop("a"),
        lambda: there.update({number: number for number in range(1000)}),
        lambda: list(there.items()),
        lambda: len(there),
    ):
        counter = counting(two_servers)
        step()
        assert served(counter) == 1


# -- at the same time, and deaths ----------------------------------------------------------------------------


def use_map(d: Dict, process: int, seed: int) -> Recorder:
    chosen, recorder = random.Random(seed), Recorder(process)
    for number in range(14):
        key, value = chosen.randrange(2), (process, number)
        match chosen.randrange(5):
            case 0:
                with recorder.calling("get", key) as got:
                    got.append(d.get(key))
            case 1:
                with recorder.calling("put", key, value):
                    d.put(key, value)
            case 2:
                with recorder.calling("pop", key) as got:
                    got.append(d.pop(key, None))
            case 3:
                with recorder.calling("insert", key, value) as got:
                    got.append(d.insert(key, value))
            case _:
                expected = d.get(key)
                with recorder.calling("compare_and_set", key, expected, value) as got:
                    got.append(d.compare_and_set(key, expected, value))
    return recorder


@pytest.mark.parametrize("seed", range(4))
def test_histories_of_a_dict_are_linearizable(two_servers, seed):
    d = Dict()
    jobs = [drust.spawn(use_map, d, server, seed * 10 + server, server=server) for server in (0, 1)]
    mine = use_map(d, 2, seed * 10 + 2)
    history.linearize(history.merged([mine, *(job.join(WITHIN_S) for job in jobs)]), Map())


def come_and_go(d: Dict, seed: int, times: int) -> None:
    chosen = random.Random(seed)
    for _ in range(times):
        key = f"goes {chosen.randrange(50)}"
        if chosen.randrange(2):
            d[key] = "x" * chosen.randrange(500)
        else:
            d.pop(key, None)


def test_an_iteration_meets_what_stays_once_while_others_come_and_go(two_servers):
    d = Dict({f"stays {number}": number for number in range(200)})
    jobs = [drust.spawn(come_and_go, d, server, 2000, server=server) for server in (0, 1)]
    while True:
        are_over = all(job.done() for job in jobs)
        met = [key for key in d if key.startswith("stays")]
        assert len(met) == 200
        assert len(set(met)) == 200
        if are_over:
            break
    for job in jobs:
        job.join(WITHIN_S)
    assert len(d) == len(list(d))


def put_until_killed(d: Dict, name: str, after_s: float) -> None:
    threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    number = 0
    while True:
        d[name, number % 300] = (number, "x" * (number % 700))
        if number % 3 == 0:
            d.pop((name, (number * 7) % 300), None)
        number += 1


@pytest.mark.parametrize("seed", range(3))
def test_a_process_that_is_killed_leaves_whole_values_and_a_dict_that_works(settled, seed):
    chosen = random.Random(seed)
    d = Dict()
    jobs = [
        drust.spawn(put_until_killed, d, f"of {server}", chosen.uniform(0.01, 0.1), server=server)
        for server in (0, 1)
    ]
    for job in jobs:
        with pytest.raises(WorkerLostError):
            job.join(WITHIN_S)
    left = dict(d.items())
    assert left
    assert len(left) == len(d)
    assert all(value == "x" * (number % 700) for number, value in left.values())
    for key, value in left.items():
        assert d.pop(key) == value
    assert len(d) == 0
    add_one(d, 30)
    assert dict(d.items()) == {0: 10, 1: 10, 2: 10}


def put_and_pop(d: Dict) -> None:
    for number in range(1000):
        d["of the dead", number] = number
        d.pop(("of the dead", number - 5), None)


def pid_of_worker() -> int:
    return os.getpid()


def put_there(d: Dict, key: str) -> str:
    d[key] = key
    return d[key]


def test_a_writer_that_dies_at_any_step_is_finished_for_by_its_server_and_others_go_on():
    with faults.Board() as board, drust.init(servers=2, workers=1, heap_bytes="256MiB") as session:
        before = account.take_at_rest(session)
        d = Dict(on=[0])
        for point in (point for point in faults.POINTS if point.startswith("shared.dict.")):
            worker = drust.spawn(pid_of_worker, server=0).join(WITHIN_S)
            row = board.arm(worker, point, 8)
            job = drust.spawn(put_and_pop, d, server=0)
            while board.fired(row) is None:
                pass
            elsewhere = drust.spawn(put_there, d, point, server=1)  # the dead one may have the lock still
            assert put_there(d, "here") == "here"
            assert elsewhere.join(WITHIN_S) == point
            with pytest.raises(WorkerLostError):
                job.join(WITHIN_S)
            board.disarm(row)
            left = dict(d.items())
            assert len(d) == len(left)
            assert {left.pop("here"), left.pop(point)} == {"here", point}
            assert left
            assert all(key == ("of the dead", value) for key, value in left.items())
            d.clear()
        del d, elsewhere, job
        gc.collect()
        account.check_settled(session, before)


def test_a_full_heap_is_an_error_and_what_is_there_stays():
    with drust.init(servers=1, workers=0, heap_bytes="64MiB"):
        d, size = Dict(), 2**20
        with pytest.raises(OutOfMemoryError):
            for number in range(100):
                d[number] = bytes(size)
        count = len(d)
        assert 30 < count < 64
        with pytest.raises(OutOfMemoryError):
            d.update({0: bytes(64 * size)})
        assert [len(value) for value in d.values()] == [size] * count == [len(d[n]) for n in range(count)]
        d.clear()
        d["again"] = bytes(size)


def test_what_is_on_a_lost_server_is_lost_and_the_rest_stays():
    with drust.init(servers=2, workers=1, heap_bytes="256MiB") as session:
        d = Dict({number: number for number in range(50)})
        here = [number for number in range(50) if d._shards.index_of(d._shards.locate(number)) == 0]
        os.kill(session.pids[1], signal.SIGKILL)
        assert [d[number] for number in here] == here
        for number in sorted(set(range(50)) - set(here))[:2]:
            for step in (d.__getitem__, d.pop, lambda number: d.put(number, 1)):
                with pytest.raises(ServerLostError):
                    step(number)
        with pytest.raises(ServerLostError):
            list(d)
        with pytest.raises(ServerLostError):
            len(d)
