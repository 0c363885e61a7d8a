"""An accumulator that tasks add to, wherever they run (Ma et al., OSDI'24, listing 2).

The class and its methods are those of a program for one process: a task that is lent the accumulator gets the
object itself. The value in it has a Box of its own, so that it can lie elsewhere than the accumulator.
"""

from drust import Box, scope


class Accumulator:
    def __init__(self, value: int) -> None:
        self.value = Box([value])

    def add(self, delta: int) -> int:
        with self.value.borrow_mut() as value:
            value[0] += delta
            return value[0]

    def get(self) -> int:
        with self.value.borrow() as value:
            return value[0]


def main() -> list[int]:
    accumulator = Box(Accumulator(5))
    seen = []
    for delta in (10, 20, 30):
        with scope() as tasks:
            job = tasks.spawn(Accumulator.add, accumulator.borrow_mut(), delta)
        seen.append(job.result())
    with scope() as tasks:
        readers = [tasks.spawn(Accumulator.get, accumulator.borrow()) for _ in range(3)]
    return seen + [job.result() for job in readers]


if __name__ == "__main__":
    print(*main())
