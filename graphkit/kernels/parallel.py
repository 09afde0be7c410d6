"""Runs compiled loops over disjoint ranges on a few threads.

Numba's own threading layer would put a second pool of threads (and, with OpenMP, a second runtime) next
to torch's. The loops here release the interpreter lock, so plain Python threads do; torch's thread count
says how many. A range's result never depends on where the ranges were cut, so neither do the bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch

__all__ = ["even_bounds", "num_parts", "run_ranges", "weighted_bounds"]

# Below this many elementary steps (some 50 microseconds of work) handing out ranges costs more than it saves.
MIN_WORK = 1 << 17

_pool: ThreadPoolExecutor | None = None
_pool_owner = (-1, 0)  # (process id, number of threads)


def num_parts(work: int) -> int:
    """Returns how many ranges to cut ``work`` elementary steps into: 1 for small work or one thread."""
    if work < 2 * MIN_WORK:
        return 1
    return max(1, min(torch.get_num_threads(), work // MIN_WORK))


def even_bounds(total: int, parts: int) -> list[int]:
    """Returns ``parts + 1`` ascending bounds that cut ``range(total)`` into nearly equal ranges."""
    return [total * k // parts for k in range(parts + 1)]


def weighted_bounds(cumulative: np.ndarray, parts: int) -> list[int]:
    """Cuts items into ranges of nearly equal weight.

    Args:
        cumulative: ``[total + 1]`` ascending; item ``k`` weighs ``cumulative[k + 1] - cumulative[k]``.
        parts: Number of ranges.
    """
    total = cumulative.shape[0] - 1
    if parts == 1:
        return [0, total]
    first, last = int(cumulative[0]), int(cumulative[-1])
    wanted = [first + (last - first) * k // parts for k in range(1, parts)]
    cuts = np.searchsorted(cumulative, wanted).clip(0, total).tolist()
    return [0, *cuts, total]


def run_ranges(loop: Callable[..., Any], bounds: list[int], *args: Any) -> list[Any]:
    """Calls ``loop(start, stop, *args)`` for every range between ``bounds``; returns the results in order.

    The first range runs on the calling thread. An exception of any range is raised here.
    """
    if len(bounds) == 2:
        return [loop(bounds[0], bounds[1], *args)]
    pool = _shared_pool(len(bounds) - 2)
    later = [pool.submit(loop, a, b, *args) for a, b in pairwise(bounds[1:])]
    results = [loop(bounds[0], bounds[1], *args)]
    return results + [future.result() for future in later]


def _shared_pool(threads: int) -> ThreadPoolExecutor:
    """Returns a pool of at least ``threads``; a forked child has none of its parent's."""
    global _pool, _pool_owner
    process = os.getpid()
    if _pool is None or _pool_owner[0] != process or _pool_owner[1] < threads:
        # A smaller pool of this process is left to finish what it has; its idle threads end with it.
        if _pool is not None and _pool_owner[0] == process:
            _pool.shutdown(wait=False)
        _pool = ThreadPoolExecutor(threads, thread_name_prefix="graphkit-kernel")
        _pool_owner = (process, threads)
    return _pool
