"""Compiled loops of :mod:`graphkit.mapped`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

_ODD = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _mark(source, target):
    """Returns a number of an edge; the sum over all edges tells one list of edges from another."""
    z = ((np.uint64(source) << np.uint64(32)) ^ np.uint64(target)) * _ODD
    return (z ^ (z >> np.uint64(29))) * _ODD


@njit(cache=True, nogil=True)
def count_targets(source, target, both, count):
    """Adds the edges of a chunk to ``count[v + 1]``, a place more than nodes, without self loops.

    Returns:
        Whether an id is out of range (nothing is counted then), and the sum of the edges' marks.
    """
    num_nodes = count.shape[0] - 1
    low, high = np.int64(0), np.int64(-1)
    for e in range(source.shape[0]):
        low = min(low, source[e], target[e])
        high = max(high, source[e], target[e])
    total = np.uint64(0)
    if low < 0 or high >= num_nodes:
        return True, total
    for e in range(source.shape[0]):
        s, t = source[e], target[e]
        total += _mark(s, t)
        if s != t:
            count[t + 1] += 1
            if both:
                count[s + 1] += 1
    return False, total


@njit(cache=True, nogil=True)
def scatter(source, target, both, first, last, base, size, place, out):
    """Puts the edges into rows ``first..last`` of a chunk into their places; returns the sum of marks.

    ``place[v]`` is where row ``v`` goes on; ``out[0]`` is place ``base``, and ``size`` places follow. Edges
    that weren't counted may run into a row's neighbours, but never out of ``out``.
    """
    total = np.uint64(0)
    for e in range(source.shape[0]):
        s, t = source[e], target[e]
        total += _mark(s, t)
        if s == t:
            continue
        if first <= t < last and 0 <= place[t] - base < size:
            out[place[t] - base] = s
            place[t] += 1
        if both and first <= s < last and 0 <= place[s] - base < size:
            out[place[s] - base] = t
            place[s] += 1
    return total


@njit(cache=True, nogil=True)
def sort_rows(start, stop, ends, base, out):
    """Sorts the rows ``start..stop``; row ``r`` ends at place ``ends[r]``, where the next one begins."""
    for r in range(start, stop):
        begin = (ends[r - 1] if r > 0 else base) - base
        end = ends[r] - base
        if end - begin > 1:
            out[begin:end].sort()


@njit(cache=True, nogil=True)
def drop_repeats(ends, base, out):
    """Closes up sorted rows without repetitions; ``ends`` becomes the rows' lengths; returns their sum."""
    kept, begin = 0, np.int64(0)
    for r in range(ends.shape[0]):
        end = ends[r] - base
        row = kept
        for e in range(begin, end):
            if e == begin or out[e] != out[e - 1]:
                # Never past e, and never over out[e - 1] before it was compared: kept <= e.
                out[kept] = out[e]
                kept += 1
        begin = end
        ends[r] = kept - row
    return kept


@njit(cache=True, nogil=True)
def lengths_to_pointers(lengths):
    """Turns ``lengths[:-1]`` into row pointers, in place."""
    total = np.int64(0)
    for r in range(lengths.shape[0]):
        length = lengths[r]
        lengths[r] = total
        total += length
