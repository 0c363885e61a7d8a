"""What the processes of a lost server owned on others is found, as nobody names it, and freed."""

import os
import signal
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

import drust
from drust import Array, Box, Dict, Mutex, ServerLostError, Session, Vec, WorkerLostError, _core
from drust.server import messages, unnamed
from drust.testing import account, chaos, faults
from drust.testing import unnamed as looks
from looking import wait_until

WITHIN_S = 20.0
FREED_WITHIN_S = unnamed.TRIES * (unnamed.QUIET_S + unnamed.SETTLE_S)
SERVERS = 3
N = 1000


def make() -> Box:
    return Box(np.ones(N))


def make_nested() -> Box:
    return Box({"inner": make(), "other": 1})


def keep(*values: object) -> None:
    sys.modules["drust"].__dict__.setdefault("_kept", []).append(values)


def keep_taken_out(outer: Box) -> None:
    with outer.borrow_mut() as value:
        keep(value.pop("inner"))
    drust.spawn(len, outer.borrow(), server=0).join()
    keep(outer)


def keep_inner(outer: Box) -> None:
    keep(outer.into_inner()["inner"])


def keep_made_elsewhere() -> None:
    made = [drust.spawn(make_nested, server=server).join() for server in range(SERVERS)]
    keep(*made, *(drust.spawn(make, server=server) for server in range(SERVERS)))  # some not joined


def keep_lent(box: Box) -> None:
    """What comes back from tasks that wrote it elsewhere."""
    drust.spawn(fill, box.borrow_mut(), server=0).join()
    keep(box)


def fill(a: np.ndarray) -> None:
    a += 1


def keep_put_in(box: Box) -> None:
    around = Box([box, Box({"deeper": drust.spawn(make, server=2).join()})])
    drust.spawn(len, around.borrow(), server=0).join()
    keep(around)


def make_shared() -> tuple[object, ...]:
    table = Dict[str, int]()
    table["a"] = 1
    return Mutex([1]), drust.channel(), table


def keep_messages() -> None:
    sender, receiver = drust.channel()
    sender.send(Box(np.ones(N)))
    sender.send(drust.spawn(make, server=2).join())
    keep(sender, receiver, receiver.recv())


WAYS = {
    "moved": lambda: drust.spawn(keep, make(), make_nested(), drust.spawn(make, server=2).join(), server=1),
    "in a list": lambda: drust.spawn(keep, [make(), {"a": drust.spawn(make, server=2).join()}], server=1),
    "taken out": lambda: drust.spawn(keep_taken_out, make_nested(), server=1),
    "inner": lambda: drust.spawn(keep_inner, drust.spawn(make_nested, server=2).join(), server=1),
    "made elsewhere": lambda: drust.spawn(keep_made_elsewhere, server=1),
    "lent": lambda: drust.spawn(keep_lent, drust.spawn(make, server=2).join(), server=1),
    "put in": lambda: drust.spawn(keep_put_in, make(), server=1),
    "shared objects": lambda: drust.spawn(keep, *make_shared(), Box({"mutex": Mutex(1)}), server=1),
    "messages": lambda: drust.spawn(keep_messages, server=1),
    "collections": lambda: drust.spawn(keep, Vec(range(9)), Array.zeros((90, 9), chunks=(30, 9)), server=1),
    "tables": lambda: drust.spawn(keep, Box(pa.table({"a": [1, 2], "b": ["x", None]})), server=1),
}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with drust.init(servers=SERVERS, workers=1, heap_bytes="256MiB") as session:
        chaos.wait_attached(session)
        yield session


@pytest.mark.parametrize("way", WAYS)
def test_what_lives_is_named_wherever_it_is_kept(session, way):
    job = WAYS[way]()
    job.join(WITHIN_S)
    mine = [make_nested(), drust.spawn(make_nested, server=2).join(), *make_shared()]
    assert looks.find_lasting(session) == set()
    del mine


@pytest.mark.slow
def test_what_the_processes_of_a_lost_server_owned_on_others_is_freed_and_nothing_else(session):
    for way in WAYS.values():  # functions travel, and stay
        way().join(WITHIN_S)
    lose(session)
    wait_until(lambda: not looks.find(session, settle_s=0.1), FREED_WITHIN_S)
    before = account.take_at_rest(session)
    mine = [make(), make_nested(), drust.spawn(make_nested, server=2).join(), *make_shared()]
    kept = elsewhere(account.take_at_rest(session))
    for way in WAYS.values():
        way().join(WITHIN_S)
    lose(session)
    assert elsewhere(account.take_at_rest(session)) != kept
    wait_until(lambda: elsewhere(account.take_at_rest(session)) == kept, FREED_WITHIN_S)
    for box in mine[:3]:
        with box.borrow() as value:
            assert len(value) in (2, N)
    del mine, box, value
    assert elsewhere(account.take_at_rest(session)) == elsewhere(before)


def elsewhere(held: account.Account) -> list[account.Block]:
    """What is not on the server that is lost."""
    return sorted((block for block in held.blocks if block.server != 1), key=str)


def lose(session: Session) -> None:
    """Server 1 is killed, and started again."""
    before = session.pids[1]
    os.kill(before, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return session.pids[1] != before and drust.spawn(os.getpid, server=1).join(WITHIN_S) > 0
        except ServerLostError:
            return False

    wait_until(is_back)


@pytest.mark.parametrize("home", range(SERVERS))
@pytest.mark.parametrize("make_value", [make, make_nested])
@pytest.mark.parametrize("kept_in", ["a Box", "a value"])
def test_what_was_not_handed_over_after_all_is_named(session, home, make_value, kept_in):
    box = drust.spawn(make_value, server=home).join(WITHIN_S)
    if kept_in == "a value":
        around = Box([box])
        drust.spawn(len, around.borrow(), server=0).join(WITHIN_S)
        with around.borrow_mut() as value:
            box = value.pop()
    sender, _ = drust.channel(1)
    sender.send(1)
    with pytest.raises(drust.errors.UnpicklableError):
        drust.spawn(keep, box, threading.Lock(), server=2)
    with pytest.raises(drust.errors.QueueFullError):
        sender.try_send(box)
    assert looks.find_lasting(session) == set()
    with box.borrow() as value:
        assert len(value) in (2, N)


def pass_on_and_die(mutex: Mutex[list[int]]) -> None:
    faults.arm_here("shared.answer.hold")
    drust.spawn(keep, mutex, server=2)


@pytest.mark.slow
def test_what_a_worker_was_only_just_getting_when_it_died_is_freed(session):
    """A hold of an object elsewhere: its home has made it, and nobody has heard of it."""
    before = by_pointer(session)
    with pytest.raises(WorkerLostError, match="pass_on_and_die"):
        drust.spawn(pass_on_and_die, Mutex([1]), server=1).join(WITHIN_S)
    chaos.wait_attached(session)
    account.take_at_rest(session)
    left = {pointer: codec for pointer, codec in by_pointer(session).items() if pointer not in before}
    assert {_core.SHARED_CODEC, _core.HOLD_CODEC} <= set(left.values())
    wait_until(lambda: not left.keys() & by_pointer(session).keys(), FREED_WITHIN_S)


def by_pointer(session: Session) -> dict[tuple[int, int, int], int]:
    """The codec of each live block: another that looks the same is another."""
    return {block.pointer: block.codec for block in account.take(session).blocks}


# -- the steps ---------------------------------------------------------------------------------------------

A, B, C = (0x10, 0x7 << 48 | 1, 64), (0x20, 0x7 << 48 | 2, 64), (0x30, 0x7 << 48 | 3, 64)


class Servers:
    """What is asked of them, and what they say: of each, its suspects at each look, and what it names."""

    def __init__(self, **suspects: list[list[unnamed.Block]]) -> None:
        self.suspects = {int(name[1:]): looks for name, looks in suspects.items()}
        self.named: dict[int, list[int]] = {}
        self.noted: dict[int, list[int] | None] = {}
        self.silent: set[type] = set()
        self.asked: list[tuple[int, str]] = []
        self.freed: list[tuple[int, list[unnamed.Block]]] = []
        self.on_search = lambda: None

    def ask(self, server: int, request: messages.Request) -> messages.Reply:
        self.asked.append((server, type(request).__name__))
        if type(request) in self.silent and server == 1:
            raise ConnectionError("silent")
        match request:
            case messages.Suspects():
                looks = self.suspects[server]
                return messages.Suspected(looks.pop(0) if len(looks) > 1 else looks[0])
            case messages.Watch():
                return messages.Watching(server + 100)
            case messages.Search(addresses=addresses):
                self.on_search()
                return messages.Named([each for each in addresses if each in self.named.get(server, [])])
            case messages.Reveal(ticket=ticket):
                assert ticket == server + 100
                noted = self.noted.get(server, [])
                return messages.Named(noted or [], is_complete=noted is not None)
            case messages.FreeUnnamed(blocks=blocks):
                self.freed.append((server, blocks))
                self.suspects[server] = [[]]
                return messages.Freed(len(blocks))
        return messages.Refused("what?")

    def find(self) -> dict[int, list[unnamed.Block]]:
        return unnamed.find_unnamed(self.ask, sorted(self.suspects), lambda seconds: None)


def test_where_nothing_is_suspected_nobody_is_asked_further():
    servers = Servers(s0=[[]], s1=[[]])
    assert servers.find() == {}
    assert {kind for _, kind in servers.asked} == {"Suspects"}


def test_what_is_named_on_any_server_or_was_noted_meanwhile_is_not_unnamed():
    servers = Servers(s0=[[A, B]], s1=[[C]])
    assert servers.find() == {0: [A, B], 1: [C]}
    servers.named = {1: [A[0]]}
    servers.noted = {0: [C[0]]}
    assert servers.find() == {0: [B]}


def test_what_is_a_suspect_once_or_under_another_colour_later_is_none():
    changed = (B[0], B[1] + 1, B[2])
    servers = Servers(s0=[[A, B], [B, C]], s1=[[]])
    assert servers.find() == {0: [B]}
    servers = Servers(s0=[[B], [changed]], s1=[[]])
    assert servers.find() == {}


@pytest.mark.parametrize("silent", [messages.Watch, messages.Search, messages.Reveal])
def test_nothing_is_said_while_a_server_is_silent_and_every_watch_is_ended(silent):
    servers = Servers(s0=[[A]], s1=[[]], s2=[[]])
    servers.silent = {silent}
    with pytest.raises((unnamed.InconclusiveError, ConnectionError)):
        servers.find()
    watched = {server for server, kind in servers.asked if kind == "Watch"}
    if silent is messages.Watch:
        watched.remove(1)
    assert {server for server, kind in servers.asked if kind == "Reveal"} == watched


def test_nothing_is_said_if_more_was_named_than_could_be_noted_or_a_server_refuses():
    servers = Servers(s0=[[A]], s1=[[]])
    servers.noted = {1: None}
    with pytest.raises(unnamed.InconclusiveError):
        servers.find()
    with pytest.raises(unnamed.InconclusiveError, match="what"):
        unnamed.find_unnamed(lambda server, request: messages.Refused("what?"), [0], lambda seconds: None)


class Passing(threading.Event):
    """Not set, and waits for nothing."""

    def wait(self, timeout: float | None = None) -> bool:
        return False


def test_a_sweep_frees_where_it_lies_what_is_unnamed_and_ends_when_nothing_is():
    servers = Servers(s0=[[A]], s1=[[C]])
    sweeper = unnamed.Sweeper(servers.ask, lambda: [0, 1], Passing())
    sweeper.look()
    wait_until(lambda: not sweeper._runs)
    assert sorted(servers.freed) == [(0, [A]), (1, [C])]


def test_a_sweep_frees_nothing_if_servers_came_or_went_meanwhile():
    servers = Servers(s0=[[A]], s1=[[]])
    sweeper = unnamed.Sweeper(servers.ask, lambda: [0, 1], Passing())
    servers.on_search = sweeper.changed
    sweeper.look()
    wait_until(lambda: not sweeper._runs)
    assert servers.freed == []
    assert [kind for _, kind in servers.asked].count("Watch") == 2 * unnamed.TRIES


def test_a_sweep_tries_again_after_an_error_and_ends_with_the_server():
    servers = Servers(s0=[[A]], s1=[[]])
    servers.silent = {messages.Search}
    servers.on_search = lambda: servers.silent.clear()
    sweeper = unnamed.Sweeper(servers.ask, lambda: [0, 1], Passing())
    sweeper.look()
    wait_until(lambda: not sweeper._runs)
    assert servers.freed == [(0, [A])]
    closing = threading.Event()
    closing.set()
    servers = Servers(s0=[[A]])
    sweeper = unnamed.Sweeper(servers.ask, lambda: [0], closing)
    sweeper.look()
    wait_until(lambda: not sweeper._runs)
    assert servers.asked == []
