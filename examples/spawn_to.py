"""A task sent to where its data lies (Ma et al., OSDI'24, listing 4): the data does not travel, its sum does."""

import numpy as np

import drust
from drust import Box, spawn, spawn_to


def make(n: int) -> Box:
    return Box(np.arange(n, dtype=float))


def total(values: np.ndarray) -> float:
    return float(values.sum())


def main() -> float:
    with drust.init(servers=2, workers=1):
        values = spawn(make, 1_000_000, server=1).join()
        return spawn_to(values, total, values.borrow()).join()


if __name__ == "__main__":
    print(main())
