"""What the rows between servers share: values made on another server, and the sizes of drust's messages."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from drust._core import Box
from drust.creation import empty as empty_array
from drust.tasks import spawn

Floats: TypeAlias = NDArray[np.float64]

OTHER = 1  # the server that is not ours; each session of the benchmarks has it
REQUEST_BYTES = 72  # of a read on the wire: frame, pointer, region
REPLY_EXTRA_BYTES = 112  # what a reply carries beside the value

_FILLING = 7.0
_BOXES_A_TASK = 100


def make_boxes(count: int, nbytes: int, replicas: int | None = None) -> "list[Box[Floats]]":
    """A task: boxes whose values stay on the server that runs it."""
    boxes: list[Box[Floats]] = []
    for _ in range(count):
        box: Box[Floats] = empty_array(nbytes // 8, replicas=replicas)
        with box.borrow_mut() as values:
            values.fill(_FILLING)
        boxes.append(box)
    return boxes


def boxes_there(count: int, nbytes: int, replicas: int | None = None) -> "list[Box[Floats]]":
    """Boxes owned here of `count` values of `nbytes` each that lie on the other server."""
    boxes: list[Box[Floats]] = []
    while len(boxes) < count:
        share = min(_BOXES_A_TASK, count - len(boxes))
        boxes += spawn(make_boxes, share, nbytes, replicas, server=OTHER).join()
    return boxes


def check(value: float) -> None:
    """An element that was read is the one that was written there.

    Raises:
        AssertionError: it is not.
    """
    if value != _FILLING:
        raise AssertionError(f"read {value}, not the {_FILLING} that was written")
