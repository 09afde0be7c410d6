"""Compiled loops of :mod:`graphkit.nn.paths`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def bad_ids(ids, num_nodes):
    """Tells whether an id lies outside [0, num_nodes)."""
    bad = False
    for k in range(ids.shape[0]):
        bad |= ids[k] < 0 or ids[k] >= num_nodes
    return bad


@njit(cache=True, nogil=True)
def neighbours(tail, head, num_nodes, outgoing, incoming):
    """Returns row pointers and neighbours of every node, in the order of the edges that lead there."""
    rowptr = np.zeros(num_nodes + 1, np.int64)
    for e in range(tail.shape[0]):
        if outgoing:
            rowptr[tail[e] + 1] += 1
        if incoming:
            rowptr[head[e] + 1] += 1
    for v in range(num_nodes):
        rowptr[v + 1] += rowptr[v]
    at, col = rowptr[:-1].copy(), np.empty(rowptr[-1], np.int64)
    for e in range(tail.shape[0]):
        u, v = tail[e], head[e]
        if outgoing:
            col[at[u]] = v
            at[u] += 1
        if incoming:
            col[at[v]] = u
            at[v] += 1
    return rowptr, col


@njit(cache=True, nogil=True)
def spread(start, stop, mark, rowptr, col, seen, distance, queue):
    """Searches from ``start`` until ``stop`` is found (never, if negative); returns how many nodes it saw.

    They stand in ``queue``, nearest first; ``seen`` holds ``mark`` for them and ``distance`` their distances.
    """
    seen[start], distance[start], queue[0] = mark, 0, start
    first, last = 0, 1
    while first < last:
        u = queue[first]
        first += 1
        if u == stop:
            break
        for e in range(rowptr[u], rowptr[u + 1]):
            v = col[e]
            if seen[v] != mark:
                seen[v], distance[v], queue[last] = mark, distance[u] + 1, v
                last += 1
    return last


@njit(cache=True, nogil=True)
def shortest(s, t, mark, rowptr, col, seen, distance, queue, found):
    """Writes the nodes of one shortest path to ``found``; returns its length, -1 if there is none.

    Of several the one whose edges come first: it doesn't depend on the numbers of nodes.
    """
    spread(t, s, mark, rowptr, col, seen, distance, queue)
    found[0] = s
    if seen[s] != mark:
        found[1] = t
        return -1
    u = s
    for k in range(distance[s]):
        for e in range(rowptr[u], rowptr[u + 1]):
            v = col[e]
            if seen[v] == mark and distance[v] == distance[s] - k - 1:
                u = v
                break
        found[k + 1] = u
    return distance[s]


@njit(cache=True, nogil=True)
def search(tail, head, source, target, num_nodes, every, length):
    """Returns the nodes of each query's path and the query of each; writes the paths' lengths.

    With ``every``, the nodes of all directed walks from source to target, ascending, where there is one.
    """
    rowptr, col = neighbours(tail, head, num_nodes, True, True)
    after_ptr = before_ptr = after = before = np.zeros(1, np.int64)
    if every:
        after_ptr, after = neighbours(tail, head, num_nodes, True, False)
        before_ptr, before = neighbours(tail, head, num_nodes, False, True)
    seen, reached = np.full(num_nodes, -1, np.int64), np.full(num_nodes, -1, np.int64)
    distance, queue = np.empty(num_nodes, np.int64), np.empty(num_nodes, np.int64)
    found = np.empty(num_nodes + 1, np.int64)
    node, graph = np.empty(8 * source.shape[0], np.int64), np.empty(8 * source.shape[0], np.int64)
    total = 0
    for b in range(source.shape[0]):
        s, t = source[b], target[b]
        length[b] = shortest(s, t, b, rowptr, col, seen, distance, queue, found)
        count = length[b] + 1 if length[b] >= 0 else 2
        if every:
            spread(s, -1, b, after_ptr, after, reached, distance, queue)
            if reached[t] == b:
                back = spread(t, -1, b + source.shape[0], before_ptr, before, seen, distance, queue)
                count = 0
                for k in range(back):
                    if reached[queue[k]] == b:
                        found[count] = queue[k]
                        count += 1
                found[:count].sort()
        while total + count > node.shape[0]:
            node = np.concatenate((node, np.empty(node.shape[0] + count, np.int64)))
            graph = np.concatenate((graph, np.empty(node.shape[0] - graph.shape[0], np.int64)))
        node[total : total + count] = found[:count]
        graph[total : total + count] = b
        total += count
    return node[:total].copy(), graph[:total].copy()
