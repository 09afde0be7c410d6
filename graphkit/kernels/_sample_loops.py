"""Compiled loops of :mod:`graphkit.neighbors`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
UNSET = np.int32(2**31 - 1)


@njit(cache=True, nogil=True)
def count_draws(rowptr, num_entries, nodes, first, last, fanout, degree, starts):
    """Writes the degrees of ``nodes[first:last]`` and where their draws begin; returns whether a row is bad.

    ``starts[first]`` is given; a negative fan-out takes whole rows.
    """
    bad = False
    for r in range(first, last):
        v = np.uint64(nodes[r])
        begin, end = rowptr[v], rowptr[v + np.uint64(1)]
        bad |= begin < 0 or end < begin or end > num_entries
        size = end - begin
        degree[r] = size
        starts[r + 1] = starts[r] + (size if fanout < 0 or size < fanout else fanout)
    return bad


@njit(cache=True, nogil=True)
def degrees(rowptr, nodes, first, last, degree):
    """Writes the row lengths of ``nodes[first:last]``."""
    for r in range(first, last):
        v = np.uint64(nodes[r])
        degree[r] = rowptr[v + np.uint64(1)] - rowptr[v]


@njit(cache=True, nogil=True)
def draw(rowptr, nodes, first, last, fanout, key, starts, entries):
    """Writes the drawn entries of the rows ``nodes[first:last]``, row by row from ``entries[0]`` on."""
    origin = starts[first]
    for r in range(first, last):
        v = np.uint64(nodes[r])
        begin, size = rowptr[v], rowptr[v + np.uint64(1)] - rowptr[v]
        at, taken = starts[r] - origin, starts[r + 1] - starts[r]
        if taken == size:
            for i in range(taken):
                entries[at + i] = begin + i
            continue
        for i in range(taken):
            z = key + ((v << np.uint64(32)) + np.uint64(i + 1)) * GOLDEN
            z = (z ^ (z >> np.uint64(30))) * FIRST
            z = (z ^ (z >> np.uint64(27))) * SECOND
            z ^= z >> np.uint64(31)
            last_one = size - fanout + i
            pick = begin + np.int64(np.float64(z >> np.uint64(11)) * 2.0**-53 * np.float64(last_one + 1))
            for other in range(at, at + i):
                if entries[other] == pick:
                    pick = begin + last_one
                    break
            entries[at + i] = pick


@njit(cache=True, nogil=True)
def relabel(col, entries, local_of, nodes, known, local):
    """Turns drawn entries into local ids, numbering new nodes as they come.

    Args:
        col: Source of every entry of the graph.
        entries: ``[e]`` entries drawn.
        local_of: ``[N]`` local id of each node, ``UNSET`` where it has none.
        nodes: Global ids; those of new nodes are written from ``known`` on, with one place to spare.
        known: Number of nodes before.
        local: ``[e]`` output.

    Returns:
        The number of nodes, or -1 for a source outside ``[0, N)``.
    """
    low, high = np.int32(0), np.int32(-1)
    for e in range(entries.shape[0]):  # by itself: these reads miss the cache and needn't wait for another
        c = col[np.uint64(entries[e])]
        local[e] = c
        low, high = min(low, c), max(high, c)
    if low < 0 or high >= local_of.shape[0]:
        return -1
    for e in range(entries.shape[0]):  # without a branch: which node is new can't be predicted
        c = np.uint64(local[e])
        old = local_of[c]
        new = old == UNSET
        here = np.int32(known) if new else old
        nodes[known] = np.int64(c)
        local_of[c] = here
        local[e] = here
        known += new
    return known


@njit(cache=True, nogil=True)
def enter(seeds, local_of):
    """Numbers the seeds; returns 1 if one is out of range (nothing is written), 2 if one repeats, else 0."""
    for b in range(seeds.shape[0]):
        if seeds[b] < 0 or seeds[b] >= local_of.shape[0]:
            return 1
    for b in range(seeds.shape[0]):
        if local_of[seeds[b]] != UNSET:
            return 2
        local_of[seeds[b]] = b
    return 0


@njit(cache=True, nogil=True)
def forget(nodes, count, local_of):
    """Undoes what the loops above wrote into ``local_of``."""
    for i in range(count):
        local_of[np.uint64(nodes[i])] = UNSET
