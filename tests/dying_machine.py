"""What Hypothesis machines whose users die have in common: a session, kill points, and a profile."""

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

import drust
from drust import Session, WorkerLostError
from drust.testing import chaos, faults

WITHIN_S = 30.0


def pid_of_worker() -> int:
    return os.getpid()


class Machine(RuleBasedStateMachine):
    """On two servers with a worker each. Run by `run`, which gives it its session."""

    session: Session
    board: faults.Board
    deaths = 0

    def run_until_dead(self, point: str, nth: int, server: int, *call: object) -> tuple[bool, object]:
        """Runs a task whose worker dies at a point, if it comes by: whether it did, and what came back."""
        worker = drust.spawn(pid_of_worker, server=server).join(WITHIN_S)
        row = self.board.arm(worker, point, nth)
        job = drust.spawn(*call, server=server)
        answer, is_dead = None, False
        try:
            answer = job.join(WITHIN_S)
        except WorkerLostError:
            is_dead = True
        Machine.deaths += self.board.disarm(row) is not None
        return is_dead, answer


def run(machine: type[Machine], examples: int) -> None:
    """Fails if the machine does, or if nobody died in ten times as many examples: some draws kill nobody."""
    profile = settings(
        max_examples=examples,
        stateful_step_count=16,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=(Phase.explicit, Phase.generate),
        database=None,
    )
    Machine.deaths = 0
    with faults.Board() as board, drust.init(servers=2, workers=1, heap_bytes="256MiB") as session:
        Machine.board, Machine.session = board, session
        chaos.wait_attached(session)
        for _ in range(10):
            run_state_machine_as_test(machine, settings=profile)
            if Machine.deaths:
                break
    assert Machine.deaths, "nobody died: the test tests nothing"
