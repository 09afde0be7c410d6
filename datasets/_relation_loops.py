"""Compiled loop of :mod:`graphkit.datasets.relation_graphs`; imported at the first call, for numba's sake."""

from __future__ import annotations

import numpy as np
from numba import njit

_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)
MOST_ROUNDS = 32


@njit(cache=True, nogil=True)
def mix(value):
    """Returns a hash of 64 bits, every bit of which depends on every bit of ``value``."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def graph_key(edges, types, first, last, n, source, target, colour, gathered):
    """Returns a number that is the same for graphs that differ in the numbering of nodes and edges alone.

    Colours of nodes are refined by the colours around them, as Weisfeiler and Leman do, with source and
    target marked at the start. ``colour`` and ``gathered`` are scratch, ``[n]`` uint64.
    """
    for v in range(n):
        colour[v] = _STEP
    colour[source] = mix(_ONE)
    colour[target] = mix(_TWO)
    for _ in range(min(n, MOST_ROUNDS)):
        for v in range(n):
            gathered[v] = np.uint64(0)
        for e in range(first, last):
            u, v = edges[0, e], edges[1, e]
            label = np.uint64(types[e] + 1) * _STEP
            gathered[v] += mix(colour[u] * _THREE + label)
            gathered[u] += mix((colour[v] ^ _FIRST) + label)
        for v in range(n):
            colour[v] = mix(colour[v] * _THREE + gathered[v])
    total = np.uint64(n) * _STEP + np.uint64(last - first)
    for v in range(n):
        total += mix(colour[v])
    return np.int64(mix(total))


@njit(cache=True, nogil=True)
def graph_keys(edges, types, ptr, edge_ptr, source, target, found):
    """Writes :func:`graph_key` of each graph to ``found``."""
    largest = 1
    for g in range(len(ptr) - 1):
        largest = max(largest, ptr[g + 1] - ptr[g])
    colour, gathered = np.empty(largest, dtype=np.uint64), np.empty(largest, dtype=np.uint64)
    for g in range(len(ptr) - 1):
        found[g] = graph_key(
            edges,
            types,
            edge_ptr[g],
            edge_ptr[g + 1],
            ptr[g + 1] - ptr[g],
            source[g],
            target[g],
            colour,
            gathered,
        )
