"""Hypothesis: a Dict used from two servers, whose workers die within steps, agrees with a plain dict."""

import hypothesis.strategies as st
from hypothesis.stateful import initialize, invariant, rule

import drust
from drust import Dict
from drust.testing import chaos, faults
from dying_machine import WITHIN_S, Machine, run

NOTHING = "nothing"

servers = st.integers(0, 1)
keys = st.sampled_from([0, 1.0, True, "a", b"a", ("a", 1), 2**80])
values = st.integers(0, 3) | st.text(max_size=3) | st.sampled_from([b"x" * 700, ["list"], None, 1.0])
points = st.sampled_from([point for point in faults.POINTS if point.startswith("shared.dict.")])


def do(d: Dict, step: str, *arguments: object) -> object:
    """One step of a Dict, or of a plain dict; what it answers."""
    plain = d if isinstance(d, dict) else None
    key, *rest = arguments
    match step, plain:
        case "put", None:
            d[key] = rest[0]
            return None
        case "pop", _:
            return d.pop(key, NOTHING)
        case "insert", None:
            return d.insert(key, *rest)
        case "compare_and_set", None:
            return d.compare_and_set(key, *rest)
        case "modify", None:
            return d.modify(key, lambda value: (value,), NOTHING)
        case "update", _:
            d.update({key: rest[0], "other": rest[0]})
            return None
    if step == "modify":
        plain[key] = (plain.get(key, NOTHING),)
        return plain[key]
    is_done = step == "put" or (
        key not in plain if step == "insert" else key in plain and plain[key] == rest[0]
    )
    if is_done:
        plain[key] = rest[-1]
    return None if step == "put" else is_done


steps = st.one_of(
    st.tuples(st.just("put"), keys, values),
    st.tuples(st.just("pop"), keys),
    st.tuples(st.just("insert"), keys, values),
    st.tuples(st.just("compare_and_set"), keys, values, values),
    st.tuples(st.just("modify"), keys),
    st.tuples(st.just("update"), keys, values),
)


class DictMachine(Machine):
    @initialize(on=st.sampled_from([[0], [1], [0, 1], [0, 1, 0]]))
    def start(self, on: list[int]) -> None:
        chaos.wait_attached(self.session)
        self.ours, self.plain = Dict(on=on), {}

    @rule(step=steps)
    def here(self, step: tuple) -> None:
        assert do(self.ours, *step) == do(self.plain, *step)

    @rule(step=steps, server=servers)
    def in_a_task(self, step: tuple, server: int) -> None:
        answer = drust.spawn(do, self.ours, *step, server=server).join(WITHIN_S)
        assert answer == do(self.plain, *step)

    @rule(step=steps, server=servers, point=points, nth=st.integers(1, 3))
    def in_a_task_that_dies(self, step: tuple, server: int, point: str, nth: int) -> None:
        is_dead, _ = self.run_until_dead(point, nth, server, do, self.ours, *step)
        before = dict(self.plain)
        do(self.plain, *step)
        if is_dead:  # what it had begun is done or not, each key by itself
            left = dict(self.ours.items())
            for key in before.keys() | self.plain.keys():
                chosen = self.plain if left.get(key, NOTHING) == self.plain.get(key, NOTHING) else before
                assert left.get(key, NOTHING) == chosen.get(key, NOTHING)
            self.plain = left

    @invariant()
    def they_agree(self) -> None:
        assert dict(self.ours.items()) == self.plain
        assert len(self.ours) == len(self.plain)
        for key in (0, 1, "a", "none"):
            assert self.ours.get(key, NOTHING) == self.plain.get(key, NOTHING)
            assert (key in self.ours) == (key in self.plain)


def test_a_dict_whose_users_die_agrees_with_a_plain_dict() -> None:
    run(DictMachine, 12)
