"""Arc: read by many, wherever they are, and freed with the last."""

import gc

import numpy as np
import pytest

import drust
from drust import Arc

WITHIN_S = 30.0


def total(arc: Arc) -> float:
    return float(sum(arc.get()))


def write(arc: Arc) -> None:
    arc.get()[0] = 1


def keep_a_view(value) -> list:
    return [Arc(value).get()[1:]]


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("value", [[1, 2, 3], np.arange(4.0)], ids=["list", "array"])
def test_every_process_reads_the_value(settled, home, value):
    arc = drust.spawn(Arc, value, server=home).join(WITHIN_S)
    jobs = [drust.spawn(total, arc, server=server) for server in (0, 1, 0, 1)]
    assert total(arc) == 6.0
    assert [job.join(WITHIN_S) for job in jobs] == [6.0] * 4


def test_a_second_look_sends_no_message(two_servers, counting):
    arc = drust.spawn(Arc, [1, 2], server=1).join(WITHIN_S)
    arc.get()
    count = counting(two_servers)
    assert arc.get() is arc.get()
    assert count.since()["shared_messages"] == 0


@pytest.mark.parametrize("server", [0, 1])
def test_an_array_cannot_be_written(two_servers, server):
    arc = Arc(np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        drust.spawn(write, arc, server=server).join(WITHIN_S)
    with pytest.raises(ValueError, match="read-only"):
        write(arc)


def test_a_view_keeps_the_value_when_the_last_handle_is_gone(settled):
    kept = keep_a_view(np.arange(1000.0))
    gc.collect()
    drust.spawn(total, Arc(np.zeros(1000))).join(WITHIN_S)
    assert kept[0][:3].tolist() == [1.0, 2.0, 3.0]
