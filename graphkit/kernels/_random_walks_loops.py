"""Compiled loops of :mod:`graphkit.kernels.random_walks`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._spmm_loops import FAST

LANES = 16  # walks that are carried on together, from as many nodes: one or two vector registers


@njit(cache=True, nogil=True)
def transitions(source, target, weight, ptr, overwrite, rowptr, col, value):
    """Sorts edges by target and turns their weights into probabilities to be walked along.

    ``rowptr`` ``[n + 1]`` comes as zeros, ``col`` and ``value`` ``[E]`` uninitialised; no weights mean ones.

    Returns:
        0, or 1 if an edge leaves its graph or the range of nodes, or 2 if ``ptr`` doesn't ascend from 0.
    """
    nodes = rowptr.shape[0] - 1
    weighted = weight.shape[0] > 0
    zero, one = value.dtype.type(0), value.dtype.type(1)
    graph = np.empty(nodes, np.int32)
    if ptr[0] != 0 or ptr[-1] != nodes:
        return 2
    for g in range(ptr.shape[0] - 1):
        if ptr[g] > ptr[g + 1] or ptr[g + 1] > nodes:
            return 2
        graph[ptr[g] : ptr[g + 1]] = g
    degree = np.zeros(nodes, value.dtype)
    for e in range(source.shape[0]):
        u, v = source[e], target[e]
        if u < 0 or v < 0 or u >= nodes or v >= nodes or graph[u] != graph[v]:
            return 1
        degree[u] += weight[e] if weighted else one
        rowptr[v + 1] += 1
    for u in range(nodes):
        degree[u] = one / degree[u] if degree[u] != zero else zero
        rowptr[u + 1] += rowptr[u]
    # Filling moves every start to its row's end, which is the next row's start; shift back afterwards.
    for e in range(source.shape[0]):
        u, at = source[e], rowptr[target[e]]
        col[at] = u
        value[at] = (weight[e] if weighted else one) * degree[u]
        rowptr[target[e]] = at + 1
    for v in range(nodes, 0, -1):
        rowptr[v] = rowptr[v - 1]
    rowptr[0] = 0
    if overwrite:
        last = np.full(nodes, -1, np.int64)
        for v in range(nodes):
            for e in range(rowptr[v], rowptr[v + 1]):
                if last[col[e]] >= rowptr[v]:
                    value[last[col[e]]] = zero
                last[col[e]] = e
    return 0


@njit(cache=True, nogil=True, fastmath=FAST)
def walk(begin, first, size, steps, rowptr, col, value, state):
    """Writes ``state[v, k, b]``: the probability that ``k`` steps from node ``begin + b`` end in ``v``.

    Nodes are counted within a graph of ``size`` nodes, the first of which is node ``first`` of the batch.
    """
    for v in range(size):
        for b in range(LANES):
            state[v, 0, b] = 0
    for b in range(min(LANES, size - begin)):
        state[begin + b, 0, b] = 1
    for k in range(1, steps):
        for v in range(size):
            e, end = rowptr[first + v], rowptr[first + v + 1]
            if e == end:
                for b in range(LANES):
                    state[v, k, b] = 0
                continue
            u, w = np.uint64(col[e] - first), value[e]
            for b in range(LANES):
                state[v, k, b] = w * state[u, k - 1, b]
            for more in range(e + 1, end):
                u, w = np.uint64(col[more] - first), value[more]
                for b in range(LANES):
                    state[v, k, b] += w * state[u, k - 1, b]


@njit(cache=True, nogil=True)
def all_pairs(start, stop, ptr, pair_ptr, rowptr, col, value, out):
    """Writes all pairs' probabilities ``[P, K]`` of graphs ``start..stop``."""
    steps = out.shape[1]
    room = 0
    for g in range(start, stop):
        room = max(room, ptr[g + 1] - ptr[g])
    state = np.empty((room, steps, LANES), value.dtype)
    for g in range(start, stop):
        first, size = ptr[g], ptr[g + 1] - ptr[g]
        for begin in range(0, size, LANES):
            walk(begin, first, size, steps, rowptr, col, value, state)
            for b in range(min(LANES, size - begin)):
                row = pair_ptr[g] + (begin + b) * size
                for v in range(size):
                    at = np.uint64(row + v)
                    for k in range(steps):
                        out[at, k] = state[v, k, b]


@njit(cache=True, nogil=True)
def returns(start, stop, ptr, rowptr, col, value, out):
    """Writes the probabilities to be back after each number of steps, ``[n, K]``, as :func:`all_pairs`."""
    steps = out.shape[1]
    room = 0
    for g in range(start, stop):
        room = max(room, ptr[g + 1] - ptr[g])
    state = np.empty((room, steps, LANES), value.dtype)
    for g in range(start, stop):
        first, size = ptr[g], ptr[g + 1] - ptr[g]
        for begin in range(0, size, LANES):
            walk(begin, first, size, steps, rowptr, col, value, state)
            for b in range(min(LANES, size - begin)):
                for k in range(steps):
                    out[first + begin + b, k] = state[begin + b, k, b]
