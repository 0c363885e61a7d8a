"""Tied: what is copied, moved and freed with its owner, in one block; and the paper's listings."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import drust
from drust import Box, Tied
from drust.codecs import tied as tied_parts
from drust.errors import AccessError, UnpicklableError

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NODES = 1000


class Node:
    def __init__(self, value, rest=None) -> None:
        self.value = value
        self.next = None if rest is None else Tied(rest)


def chain(count: int, make=lambda number: number) -> Node:
    node = None
    for number in reversed(range(count)):
        node = Node(make(number), node)
    assert node is not None
    return node


def values(node: Node) -> list:
    found = [node.value]
    while node.next is not None:
        node = node.next.value
        found.append(node.value)
    return found


def make_chain(count: int) -> Box:
    return Box(chain(count))


def make_arrays(count: int) -> Box:
    return Box(chain(count, lambda number: np.full(1000, number)))


def add_to_all(node: Node, amount: int) -> int:
    count = 0
    while True:
        node.value += amount
        count += 1
        if node.next is None:
            return count
        node = node.next.value


def put(node: Node, value: object) -> None:
    node.next.value = value


# -- alone ---------------------------------------------------------------------------------------------------


def test_a_tied_value_is_the_very_object_in_the_process_of_its_owner(one_server):
    inner = {"a": 1}
    box = Box([Tied(inner)])
    with box.borrow_mut() as value:
        assert value[0].value is inner
        value[0].value = [2]
    with box.borrow() as value:
        assert value[0].value == [2]


@pytest.mark.parametrize("count", [1, 2, NODES, 20_000])
def test_a_chain_of_any_length_comes_back_as_it_was(one_server, count):
    box = drust.spawn(make_chain, count).join()
    with box.borrow() as node:
        assert values(node) == list(range(count))


def test_what_a_task_writes_into_tied_values_is_seen_by_all(two_servers):
    box = Box(chain(50))
    for server in (0, 1, 0):
        assert drust.spawn(add_to_all, box.borrow_mut(), 1, server=server).join() == 50
    with box.borrow() as node:
        assert values(node) == list(range(3, 53))
    drust.spawn(put, box.borrow_mut(), Node("last"), server=1).join()
    with box.borrow() as node:
        assert values(node) == [3, "last"]


def test_large_arrays_in_tied_values_are_not_copied_by_readers(one_server):
    box = drust.spawn(make_arrays, 5).join()
    with box.borrow() as node:
        second = node.next.value.value
        assert second.sum() == 1000
        assert not second.flags.writeable
        assert not second.flags.owndata
        del second


def test_a_reader_decodes_only_what_it_looks_at(two_servers, monkeypatch):
    box = drust.spawn(make_chain, NODES, server=1).join()
    loaded = []
    load = tied_parts.Parts.load

    def counted(self, index):
        loaded.append(index)
        return load(self, index)

    monkeypatch.setattr(tied_parts.Parts, "load", counted)
    with box.borrow() as node:
        assert loaded == [0]
        assert "not read yet" in repr(node.next)
        assert node.next.value.next.value.value == 2
        assert node.next.value.value == 1
    assert loaded == [0, 1, 2]


def test_a_shared_borrow_cannot_replace_a_tied_value(one_server):
    box = drust.spawn(make_chain, 3).join()
    with box.borrow() as node, pytest.raises(AccessError, match="borrowed shared"):
        node.next.value = Node(7)
    with box.borrow_mut() as node:
        node.next.value = Node(7)
        assert values(node) == [0, 7]


def test_a_value_that_is_tied_twice_is_refused(one_server):
    both = Tied([1])
    box = Box([both, both])
    with pytest.raises(UnpicklableError, match=r"\[0\].*\[1\].*one owner.*Tie a copy"):
        drust.spawn(len, box.borrow()).join()


def test_tied_values_in_arguments_and_results_travel_with_them(two_servers):
    assert values(drust.spawn(chain, 5, server=1).join()) == list(range(5))
    assert drust.spawn(values, chain(5), server=1).join() == list(range(5))
    assert values(pickle.loads(pickle.dumps(Node(1)))) == [1]


def hold_boxes() -> Box:
    return Box({"tied": Tied({"inner": Box(np.arange(5))}), "own": Box([1])})


def count_inner(value: dict) -> tuple[int, int]:
    with value["tied"].value["inner"].borrow() as array, value["own"].borrow() as own:
        return int(array.sum()), own[0]


def grow_inner(value: dict) -> None:
    with value["tied"].value["inner"].borrow_mut() as array:
        array += 1


@pytest.mark.parametrize("server", [0, 1])
def test_boxes_inside_tied_values_are_boxes_of_the_owner(two_servers, server):
    box = drust.spawn(hold_boxes, server=server).join()
    with box.borrow() as value:
        assert count_inner(value) == (10, 1)
    drust.spawn(grow_inner, box.borrow_mut(), server=1 - server).join()
    assert drust.spawn(count_inner, box.borrow(), server=1).join() == (15, 1)


def test_a_tied_owner_that_is_dropped_leaves_nothing(two_servers):
    from drust.testing import account

    before = account.take_at_rest(two_servers)
    box = drust.spawn(make_arrays, 20, server=1).join()
    with box.borrow() as node:
        assert node.next.value.value[0] == 1
    drust.spawn(add_to_all, box.borrow_mut(), 1, server=0).join()
    del box, node
    account.check_settled(two_servers, before)


# -- what it costs -------------------------------------------------------------------------------------------


def test_a_list_of_n_nodes_is_one_fetch(two_servers, counting):
    box = drust.spawn(make_chain, NODES, server=1).join()
    counted = counting(two_servers)
    with box.borrow() as node:
        assert sum(values(node)) == sum(range(NODES))
    assert counted.since()["read_requests"] == 1
    assert counted.messages() == 1


def test_a_list_of_n_nodes_moves_with_one_fetch_and_one_free(two_servers, counting):
    box = drust.spawn(make_chain, NODES, server=1).join()
    counted = counting(two_servers)
    with box.borrow_mut() as node:
        add_to_all(node, 1)
    assert counted.since()["read_requests"] == 1
    assert counted.since()["frees_sent"] == 1


# -- the listings --------------------------------------------------------------------------------------------


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_listing_2_the_accumulator(two_servers):
    assert example("accumulator").main() == [15, 35, 65, 65, 65, 65]


def test_listing_3_the_tied_list_is_one_fetch(two_servers, counting):
    listing = example("tied_list")
    numbers = drust.spawn(listing.make, range(1000), server=1).join()
    counted = counting(two_servers)
    with numbers.borrow() as head:
        assert listing.total(head) == sum(range(1000))
    assert counted.since()["read_requests"] == 1
    assert listing.main(server=1) == sum(range(1000))


@pytest.mark.parametrize(
    ("name", "shown"),
    [("accumulator", "15 35 65 65 65 65"), ("tied_list", "499500"), ("spawn_to", "499999500000.0")],
)
def test_a_listing_runs_as_a_script(name, shown):
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, shown), ran.stderr
