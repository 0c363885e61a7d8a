"""Heat that spreads over a plate: a stencil over blocks on two servers, the same as numpy computes in one process.

Each step copies the edges of all blocks where they lie, then each block is changed in place by a task on its server.
What travels is edges: the table at the end says how much.
"""

import numpy as np

import drust
from drust import Array, Tile

STEPS = 20
SIDE = 512
CUTS = 4


def spread(tile: Tile) -> None:
    tile.values[...] = one_step(tile.padded())


def one_step(around: np.ndarray) -> np.ndarray:
    middle = around[1:-1, 1:-1]
    beside = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    return middle + 0.2 * (beside - 4 * middle)


def plate() -> np.ndarray:
    values = np.zeros((SIDE, SIDE))
    values[SIDE // 4 : SIDE // 2, SIDE // 3 : SIDE // 2] = 100.0
    return values


def by_numpy() -> np.ndarray:
    values = plate()
    for _ in range(STEPS):
        values = one_step(np.pad(values, 1, "edge"))
    return values


def counted(session: drust.Session) -> dict[str, int]:
    totals: dict[str, int] = {}
    for server in range(session.servers):
        for name, count in session.status(server).counters.items():
            totals[name] = totals.get(name, 0) + count
    return totals


def main() -> bool:
    with drust.init(servers=2, workers=1) as session:
        array = Array.from_numpy(plate(), chunks=(SIDE // CUTS, SIDE // CUTS))
        before = counted(session)
        for _ in range(STEPS):
            array.update_tiles(spread, halo=1, mode="edge")
        after = counted(session)
        is_same = bool(np.allclose(array.to_numpy(), by_numpy(), rtol=0, atol=1e-12))
    plate_bytes = SIDE * SIDE * 8
    received = (after["bytes_received"] - before["bytes_received"]) / STEPS
    print(f"a step on {array.shape} in {CUTS * CUTS} blocks on 2 servers, in mean of {STEPS}:")
    for name in ("submit_messages", "complete_messages", "read_requests"):
        print(f"  {name.replace('_', ' '):20}{(after[name] - before[name]) / STEPS:10.1f}")
    print(f"  {'bytes between them':20}{received:10,.0f}   {received / plate_bytes:.1%} of the plate")
    print(f"as numpy computes it: {'yes' if is_same else 'no'}")
    return is_same


if __name__ == "__main__":
    main()
