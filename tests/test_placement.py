"""Placement: the pure function, by its rules; and where tasks of a real cluster go, and why."""

import os
import signal
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import drust
from drust import Box, placement, runtime
from drust.placement import BACKLOG, FOLLOW_BYTES_MIN, Load, choose
from drust.testing import placing


def where() -> int:
    return runtime.current().server


def where_with(*values) -> int:
    return runtime.current().server


def busy(server: int, queued: int = 0, **fields) -> Load:
    return Load(server, 1, 0, queued, 0.1, 0.1)._replace(**fields)


def free(server: int, **fields) -> Load:
    return Load(server, 1, 1, 0, 0.1, 0.1)._replace(**fields)


# -- the function ------------------------------------------------------------------------------------------

loads_of_a_cluster = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 4),
        st.integers(0, 100),
        st.floats(0, 1),
        st.floats(0, 1),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
).map(lambda rows: [Load(server, *row) for server, row in enumerate(rows)])


def some_bytes(servers: int):
    sizes = st.integers(1, 2**30)
    return st.dictionaries(st.integers(0, servers - 1), sizes).map(lambda each: tuple(each.items()))


@given(data=st.data(), loads=loads_of_a_cluster)
def test_every_choice_keeps_the_rules(data, loads):
    here = data.draw(st.integers(0, len(loads) - 1))
    borrowed = data.draw(some_bytes(len(loads)))
    server, rule = choose(here, loads, borrowed)
    chosen = loads[server]
    able = [load for load in loads if load.is_able]
    if all(load.server == here for load in able):
        assert (server, rule) == (here, "only")
        return
    assert chosen.is_able
    if any(not load.is_overloaded for load in able):
        assert not chosen.is_overloaded
    fit = [load for load in able if not load.is_overloaded] or able
    most = max((size for _, size in borrowed), default=0)
    if rule == "data":
        assert dict(borrowed)[server] == most
        assert sum(size for _, size in borrowed) >= FOLLOW_BYTES_MIN
    elif rule == "here":
        assert server == here
        assert not chosen.is_saturated
    else:
        assert rule == "least"
        assert chosen.depth == min(load.depth for load in fit)
        assert not any(load.server == here and not load.is_saturated for load in fit)


@given(data=st.data(), loads=loads_of_a_cluster)
def test_the_same_facts_give_the_same_choice_in_any_order(data, loads):
    borrowed = data.draw(some_bytes(len(loads)))
    shuffled = data.draw(st.permutations(loads))
    assert choose(0, loads, borrowed) == choose(0, shuffled, tuple(reversed(borrowed)))


def test_here_comes_first_and_at_a_tie():
    assert choose(0, [free(0), free(1)], ()) == (0, "here")
    assert choose(1, [free(0), free(1)], ()) == (1, "here")
    assert choose(0, [busy(0), free(1)], ()) == (0, "here")  # nothing waits: it is about to be done
    assert choose(0, [busy(0, 2), busy(1, 2)], ()) == (0, "least")


def test_a_saturated_server_gives_to_the_least_loaded():
    assert choose(0, [busy(0, 3), busy(1, 2), free(2)], ()) == (2, "least")
    assert choose(0, [busy(0, 3), busy(1, 4, workers=4)], ()) == (1, "least")


def test_a_task_follows_its_bytes_unless_they_are_few_or_their_server_is_overloaded():
    much = ((1, FOLLOW_BYTES_MIN),)
    assert choose(0, [free(0), busy(1, BACKLOG)], much) == (1, "data")
    assert choose(0, [free(0), free(1)], ((1, FOLLOW_BYTES_MIN - 1),)) == (0, "here")
    assert choose(0, [free(0), free(1)], ((0, 1), (1, FOLLOW_BYTES_MIN))) == (1, "data")
    for crowded in (busy(1, BACKLOG + 1), free(1, cpu=0.9), free(1, memory=0.9), free(1, is_fresh=False)):
        assert choose(0, [free(0), crowded, free(2)], much) == (0, "here")


@pytest.mark.parametrize("field", ["cpu", "memory"])
def test_a_server_above_ninety_percent_gets_no_new_task_while_another_is_below(field):
    assert choose(0, [free(0, **{field: 0.9}), busy(1, 5)], ()) == (1, "least")
    assert choose(0, [free(0, **{field: 0.89}), busy(1, 5)], ()) == (0, "here")
    everybody = [free(0, **{field: 0.95}), free(1, **{field: 0.99})]
    assert choose(0, everybody, ()) == (0, "here")


def test_nobody_is_sent_to_a_server_without_workers_or_without_news():
    assert choose(0, [busy(0, 9), free(1, workers=0), free(2, is_fresh=False)], ()) == (0, "only")
    assert choose(0, [busy(0, 0, workers=0), busy(1, 9)], ()) == (1, "least")


# -- a cluster ---------------------------------------------------------------------------------------------


@pytest.fixture
def decisions(three_unmeasured):
    for server in range(3):
        placing.pretend(server, idle=1)
    with placing.traced() as kept:
        yield kept


def test_a_task_runs_where_it_was_decided_and_the_handle_says_why(decisions):
    job = drust.spawn(where)
    assert job.join() == 0
    assert decisions[-1].rule == "here"
    assert "a worker here is free for it" in job.explain()
    assert "server 2: 1 of 1 workers idle, 0 tasks waiting, processors 0%, memory 0%" in job.explain()
    assert "it was told to run there" in drust.spawn(where, server=1).explain()
    assert [each.rule for each in decisions] == ["here", "told"]


def test_a_task_goes_where_most_of_what_it_borrows_lies(decisions):
    here = Box(np.zeros(10_000))
    far = drust.spawn(lambda: Box(np.zeros(50_000)), server=2).join()
    assert drust.spawn(where_with, here.borrow(), far.borrow()).join() == 2
    assert decisions[-1].rule == "data"
    assert [server for server, _ in decisions[-1].borrowed] == [2, 0]
    assert drust.spawn(where_with, [1, {"inner": far.borrow()}]).join() == 2
    job = drust.spawn(where_with, far.borrow_mut())
    assert job.join() == 2
    assert "server 2 has 400," in job.explain()
    placing.pretend(2, idle=1, cpu=0.95)
    assert drust.spawn(where_with, far.borrow()).join() == 0
    assert drust.spawn_to(far, where).join() == 2
    assert drust.spawn(where_with, far).join() == 0  # moved: weighed as well, but the server is overloaded


def test_a_part_weighs_as_much_as_it_is(decisions):
    box = Box(np.zeros((4, 100_000)))
    parts = box.split_mut(4)
    drust.spawn(where_with, parts[0]).join()
    assert decisions[-1].borrowed == ((0, 800_000),)
    for part in parts[1:]:
        drust.spawn(where_with, part).join()


def test_a_server_above_ninety_percent_gets_nothing_that_was_not_told_to_go_there(decisions):
    placing.pretend(0, idle=1, memory=0.93)
    placing.pretend(1, idle=1, cpu=0.97)
    assert drust.spawn(where).join() == 2
    assert drust.spawn(where, server=1).join() == 1


def test_a_burst_is_spread_over_all_servers_though_the_table_stands_still(decisions, tmp_path):
    gate = tmp_path / "gate"
    jobs = [drust.spawn(wait_for, str(gate)) for _ in range(30)]
    counts = [sum(each.server == server for each in decisions) for server in range(3)]
    gate.touch()
    assert sum(counts) == 30
    assert min(counts) >= 8, counts
    assert sorted({job.join() for job in jobs}) == [0, 1, 2]


def wait_for(path: str) -> int:
    pause = threading.Event()
    while not os.path.exists(path):
        pause.wait(0.005)
    return where()


def until(condition) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to be within 20 s")


def known(server: int) -> placement.Load:
    with placing.traced() as decisions:
        drust.spawn(where).join()
    return decisions[-1].loads[server]


def test_servers_measure_themselves_and_all_know_it(two_servers):
    until(lambda: known(1).is_fresh and known(1).workers == 1 and known(1).idle == 1)
    before = known(1).memory
    box = drust.spawn(lambda: Box(np.zeros(30_000_000, dtype=np.int8)), server=1).join()
    until(lambda: known(1).memory > before + 0.02)
    del box
    until(lambda: known(1).memory < before + 0.02)
    seen = drust.spawn(lambda: [row[1:4] for row in runtime.current().loads(2)], server=1).join()
    assert seen[0][0] < 1000  # ms ago: server 1 has it from home
    assert seen[0][1] == 1
    assert seen[1][1:] == (1, 0)  # its only worker is busy, with this very task


def test_reading_the_loads_sends_no_message(two_servers, counting):
    until(lambda: known(1).is_fresh)
    with placing.traced() as decisions:
        counted = counting(two_servers)
        drust.spawn(where).join()
        assert counted.messages() == 0
    assert len(decisions[-1].loads) == 2


def test_what_servers_tell_each_other_all_the_time_counts_as_nobody_s_message(two_servers):
    until(lambda: known(1).is_fresh)
    counters = two_servers.status(1).counters  # of its own processes: only they have told home
    assert counters["control_messages"] == 0


def test_a_lost_server_is_sent_nothing_more():
    with drust.init(servers=3, workers=1, heap_bytes="64MiB", replicas=1, load_period_s=0.05) as session:
        until(lambda: known(2).is_fresh)
        os.kill(session.pids[2], signal.SIGKILL)
        until(lambda: not known(2).is_fresh)
        with placing.traced() as decisions:
            jobs = [drust.spawn(where) for _ in range(20)]
            assert {job.join() for job in jobs} <= {0, 1}
        assert all(each.server != 2 for each in decisions)


def test_one_server_decides_nothing_and_measures_nothing(one_server):
    job = drust.spawn(where)
    assert job.join() == 0
    assert "no other server takes tasks" in job.explain()
    assert runtime.current().loads(1)[0][1] >= 2**63


@pytest.mark.parametrize("given", ["-1", "often", True])
def test_a_period_that_is_none_is_refused(given):
    with pytest.raises(drust.errors.ConfigError, match="load_period_s"):
        drust.config.Config.read({}, load_period_s=given)
    assert drust.config.Config.read({"DRUST_LOAD_PERIOD_S": "0"}).load_period_s == 0
