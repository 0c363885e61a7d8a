"""Random programs on real servers, with crashes among their steps, agree with plain Python objects.

As test_machine.py, which has no crashes: here any step may order the death of a worker before it, at a kill
point or by a signal, and the model says which values that death allows (drust.testing.programs). A failing
program is printed, and not shrunk: it would run a hundred times more, and real processes do not die twice at
the same moment.
"""

import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import drust
from drust import Box, Session
from drust.testing import account, chaos, faults, programs

servers = st.integers(0, 1)
numbers = st.integers(1, 1000)
points = st.sampled_from(chaos.WORKER_POINTS)
actions = st.sampled_from([action for action in faults.ACTIONS if action != "stop"])


class Crashes(RuleBasedStateMachine):
    """`cells` are the names of Boxes; one whose value went with a dead task is not in `live` any more."""

    cells = Bundle("cells")
    session: Session
    board: faults.Board
    deaths = 0

    @initialize()
    def start(self) -> None:
        chaos.wait_attached(self.session)
        self.before = account.take_at_rest(self.session)
        self.rows: list[int] = []
        self.live: dict[int, programs.Cell] = {}
        self.count = 0

    def add(self, cell: programs.Cell) -> int:
        self.count += 1
        self.live[self.count] = cell
        return self.count

    def ready(self, name: int, number: int) -> programs.Cell | None:
        """The cell, healed if it was poisoned; none if it is gone."""
        cell = self.live.get(name)
        if cell is not None and cell.holds == programs.POISONED:
            programs.heal(cell, number)
        return cell

    # -- deaths --------------------------------------------------------------------------------------------

    @rule(victim=st.integers(0, 3), point=points, nth=st.integers(1, 3), action=actions)
    def order_a_death_at_a_point(self, victim: int, point: str, nth: int, action: faults.Action) -> None:
        workers = chaos.attached(self.session)
        if workers and len(self.rows) < 4:
            self.rows.append(self.board.arm(workers[victim % len(workers)][1], point, nth, action))

    @rule(victim=st.integers(0, 3))
    def kill_a_worker(self, victim: int) -> None:
        workers = chaos.attached(self.session)
        if workers and faults.send(workers[victim % len(workers)][1], signal.SIGKILL):
            Crashes.deaths += 1

    @rule(how=st.sampled_from(["exit", "segfault", "abort", "oom"]), server=servers)
    def spawn_a_task_that_dies(self, how: faults.Death, server: int) -> None:
        _, lost = programs.outcome(drust.spawn(faults.die, how, server=server))
        assert lost is not None
        Crashes.deaths += 1

    # -- programs ------------------------------------------------------------------------------------------

    @rule(target=cells, size=st.sampled_from([programs.SMALL, programs.LARGE]), number=numbers)
    def make_array(self, size: int, number: int) -> int:
        return self.add(programs.Cell(Box(np.full(size, number)), size, number))

    @rule(target=cells, number=numbers)
    def make_parent(self, number: int) -> int:
        cell = programs.Cell(Box(0), 0, (0, 0))
        programs.heal(cell, number)
        return self.add(cell)

    @rule(name=cells, number=numbers, server=servers)
    def write(self, name: int, number: int, server: int) -> None:
        cell = self.ready(name, number)
        if cell is not None and cell.is_parent:
            programs.parent(cell, number, server, None).settle()
        elif cell is not None:
            programs.write(cell, number, server).settle()

    @rule(name=cells, number=numbers, server=servers, sub_server=servers)
    def lend_on(self, name: int, number: int, server: int, sub_server: int) -> None:
        cell = self.ready(name, number)
        if cell is not None and cell.is_parent:
            programs.parent(cell, number, server, sub_server).settle()

    @rule(name=cells, server=servers, tasks=st.integers(1, 3))
    def read(self, name: int, server: int, tasks: int) -> None:
        cell = self.ready(name, 1)
        if cell is not None and not cell.is_parent:
            programs.read(cell, server, tasks).settle()

    @rule(name=cells, number=numbers, where=st.lists(servers, min_size=2, max_size=4))
    def write_parts(self, name: int, number: int, where: list[int]) -> None:
        cell = self.ready(name, number)
        if cell is not None and not cell.is_parent:
            programs.split(cell, number, where).settle()

    @rule(name=cells, other=cells, number=numbers, server=servers)
    def write_two(self, name: int, other: int, number: int, server: int) -> None:
        first, second = self.ready(name, number), self.ready(other, number)
        if first is None or second is None or name == other or first.is_parent or second.is_parent:
            return
        programs.write_two(first, second, number, server).settle()

    @rule(name=cells, server=servers, back=st.booleans())
    def move(self, name: int, server: int, back: bool) -> None:
        if self.ready(name, 1) is None:
            return
        for moved in programs.move(self.live.pop(name), server, back=back).settle():
            self.live[name] = moved

    @rule(
        target=cells, size=st.sampled_from([programs.SMALL, programs.LARGE]), number=numbers, server=servers
    )
    def make_in_a_task(self, size: int, number: int, server: int) -> int:
        for cell in programs.create(size, number, server).settle():
            return self.add(cell)
        return 0  # nobody's name

    @invariant()
    def every_cell_holds_what_it_must(self) -> None:
        for cell in getattr(self, "live", {}).values():
            if cell.holds != programs.POISONED:
                programs.expect(cell, [cell.holds], "look")

    def teardown(self) -> None:
        if not hasattr(self, "before"):
            return
        for row in self.rows:
            Crashes.deaths += self.board.disarm(row) is not None
        self.live.clear()
        chaos.wait_attached(self.session)
        account.check_settled(self.session, self.before)


def run(max_examples: int, steps: int) -> None:
    profile = settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=(Phase.explicit, Phase.generate),
        database=None,
        report_multiple_bugs=False,
    )
    Crashes.deaths = 0
    with faults.Board() as board, drust.init(servers=2, workers=2, heap_bytes="256MiB") as session:
        Crashes.board, Crashes.session = board, session
        run_state_machine_as_test(Crashes, settings=profile)
    assert Crashes.deaths, "nobody died: the test tests nothing"
    print(f"{Crashes.deaths} workers died")


def test_programs_with_crashes_agree_with_plain_python() -> None:
    run(6, 20)


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
def test_many_programs_with_crashes_agree_with_plain_python() -> None:
    run(300, 40)
