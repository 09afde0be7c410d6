from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from graphkit.kernels import parallel


def test_bounds_cover_everything_once() -> None:
    assert parallel.even_bounds(10, 3) == [0, 3, 6, 10]
    assert parallel.even_bounds(0, 2) == [0, 0, 0]
    weights = np.array([0, 0, 90, 1, 1, 1, 90])
    bounds = parallel.weighted_bounds(np.concatenate([[0], weights.cumsum()]), 3)
    assert bounds[0] == 0
    assert bounds[-1] == 7
    assert bounds == sorted(bounds)
    assert parallel.weighted_bounds(np.zeros(1, np.int64), 2) == [0, 0, 0]


def test_small_work_and_one_thread_are_not_shared_out(threads: None) -> None:
    torch.set_num_threads(2)
    assert parallel.num_parts(1000) == 1
    assert parallel.num_parts(1 << 30) == 2
    torch.set_num_threads(1)
    assert parallel.num_parts(1 << 30) == 1


def test_results_come_in_order_and_errors_are_raised() -> None:
    def work(start: int, stop: int, power: int) -> tuple[int, int]:
        return start**power, stop**power

    assert parallel.run_ranges(work, [0, 2, 5, 9], 2) == [(0, 4), (4, 25), (25, 81)]

    def fail(start: int, stop: int) -> None:
        if start:
            raise RuntimeError("told to")

    with pytest.raises(RuntimeError, match="told to"):
        parallel.run_ranges(fail, [0, 1, 2])


def test_ranges_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=20)
    parallel.run_ranges(lambda start, stop: meeting.wait(), [0, 1, 2, 3])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_its_own_threads() -> None:
    parallel.run_ranges(lambda start, stop: start, [0, 1, 2])
    child = os.fork()
    if child == 0:  # without its own pool the child would wait for threads that it doesn't have
        answer = parallel.run_ranges(lambda start, stop: start, [0, 1, 2])
        os._exit(0 if answer == [0, 1] else 1)
    assert os.waitpid(child, 0)[1] == 0
