"""joblib's own usage on drust's workers."""

import os
from math import sqrt

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

import drust
import drust.joblib
from drust import Box


def fail_at(n: int, at: int) -> int:
    if n == at:
        raise ValueError(f"at {n}")
    return n


def scale(a: np.ndarray, factor: float) -> float:
    return float(a.sum() * factor)


def nested(n: int) -> list[int]:
    return Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(n))


def test_a_parallel_loop_gives_its_results_in_order(one_server):
    with parallel_config(backend="drust"):
        assert Parallel()(delayed(sqrt)(i**2) for i in range(200)) == [float(i) for i in range(200)]
        pids = set(Parallel(n_jobs=2, batch_size=1)(delayed(os.getpid)() for _ in range(50)))
    assert os.getpid() not in pids
    assert pids <= {worker.pid for worker in one_server.status(0).workers}


def test_the_backend_can_be_named_where_it_is_used_and_told_a_server(two_servers):
    pids = {worker.pid for worker in two_servers.status(1).workers}
    with parallel_config(backend="drust", server=1, n_jobs=2):
        assert set(Parallel()(delayed(os.getpid)() for _ in range(5))) == pids
    assert Parallel(backend="drust", n_jobs=2)(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_a_generator_and_unordered_results_work(one_server):
    with parallel_config(backend="drust", n_jobs=2):
        assert list(Parallel(return_as="generator")(delayed(abs)(-i) for i in range(30))) == list(range(30))
        unordered = Parallel(return_as="generator_unordered")(delayed(abs)(-i) for i in range(30))
        assert sorted(unordered) == list(range(30))


def test_a_failed_job_is_raised_and_the_backend_goes_on(one_server):
    with parallel_config(backend="drust", n_jobs=2):
        with pytest.raises(ValueError, match="at 3"):
            Parallel(batch_size=1)(delayed(fail_at)(i, 3) for i in range(500))
        with Parallel() as parallel:
            with pytest.raises(ValueError, match="at 1"):
                parallel(delayed(fail_at)(i, 1) for i in range(5))
            assert parallel(delayed(abs)(-i) for i in range(5)) == list(range(5))
    with drust.scope() as s:
        assert s.spawn(abs, -1).join() == 1


def test_arrays_and_borrows_pass_and_loops_nest(one_server):
    array = np.ones(50_000)
    box = Box(array)
    with parallel_config(backend="drust", n_jobs=2):
        assert Parallel()(delayed(scale)(array, i) for i in range(4)) == [50_000.0 * i for i in range(4)]
        assert Parallel(batch_size=1)(delayed(scale)(box.borrow(), i) for i in range(4)) == [
            50_000.0 * i for i in range(4)
        ]
        assert Parallel()(delayed(nested)(n) for n in range(4)) == [list(range(n)) for n in range(4)]
    with box.borrow_mut() as a:
        a += 1


def test_no_jobs_at_all_is_refused(one_server):
    with pytest.raises(ValueError, match="n_jobs"):
        Parallel(backend="drust", n_jobs=0)(delayed(abs)(1) for _ in range(2))
