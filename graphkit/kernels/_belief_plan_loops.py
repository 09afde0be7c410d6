"""The order in which :mod:`graphkit.kernels.belief` updates nodes; imported at the first call."""

# mypy: ignore-errors
# Numba types loops at their calls, and its intrinsics lose an argument that mypy waits for.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._belief_loops import INNER, Plan


@njit(cache=True, nogil=True)
def bad_edges(edges, kind, anchor, num_nodes, num_kinds):
    """Returns 1 if an edge, 2 if a relation, 3 if an anchor is out of range, else 0."""
    bad = False
    for row in range(2):
        for e in range(edges.shape[1]):
            bad |= edges[row, e] < 0 or edges[row, e] >= num_nodes
    if bad:
        return 1
    for e in range(kind.shape[0]):
        bad |= kind[e] < 0 or kind[e] >= num_kinds
    if bad:
        return 2
    for s in range(anchor.shape[0]):
        for k in range(anchor.shape[1]):
            bad |= anchor[s, k] < 0 or anchor[s, k] >= num_nodes
    return 3 if bad else 0


@njit(cache=True, nogil=True)
def sort_by(key, rows):
    """Returns row pointers and the stable order of items by their row."""
    ptr = np.zeros(rows + 1, np.int64)
    for e in range(key.shape[0]):
        ptr[key[e] + 1] += 1
    for v in range(rows):
        ptr[v + 1] += ptr[v]
    at, item = ptr[:-1].copy(), np.empty(key.shape[0], np.int64)
    for e in range(key.shape[0]):
        item[at[key[e]]] = e
        at[key[e]] += 1
    return ptr, item


@njit(**INNER)
def into(tail, head, kind, dropped):
    """Sorts the edges by their target, without those into dropped nodes."""
    nodes = dropped.shape[0]
    ptr = np.zeros(nodes + 1, np.int64)
    for e in range(tail.shape[0]):
        if not dropped[head[e]]:
            ptr[head[e] + 1] += 1
    degree = 1
    for v in range(nodes):
        degree = max(degree, ptr[v + 1])
        ptr[v + 1] += ptr[v]
    at = ptr[:-1].copy()
    edges = np.empty((2, ptr[-1]), np.int32)
    for e in range(tail.shape[0]):
        v = head[e]
        if not dropped[v]:
            edges[0, at[v]], edges[1, at[v]] = tail[e], kind[e]
            at[v] += 1
    return ptr, edges, degree


@njit(**INNER)
def out_of(tail, head, dropped):
    """Sorts the edges by their source, without those into dropped nodes; returns their targets."""
    nodes = dropped.shape[0]
    ptr = np.zeros(nodes + 1, np.int64)
    for e in range(tail.shape[0]):
        if not dropped[head[e]]:
            ptr[tail[e] + 1] += 1
    for v in range(nodes):
        ptr[v + 1] += ptr[v]
    at, target = ptr[:-1].copy(), np.empty(ptr[-1], np.int32)
    for e in range(tail.shape[0]):
        if not dropped[head[e]]:
            target[at[tail[e]]] = head[e]
            at[tail[e]] += 1
    return ptr, target


@njit(**INNER)
def levels(ptr, out_ptr, out):
    """Returns nodes that no cycle leads to, sources first, how many they are, and all nodes' levels.

    A level is the length of the longest path that ends in a node; -1 behind a cycle.
    """
    nodes = ptr.shape[0] - 1
    missing, level = ptr[1:] - ptr[:-1], np.full(nodes, -1, np.int32)
    order, last = np.empty(nodes, np.int32), 0
    for v in range(nodes):
        if missing[v] == 0:
            order[last], level[v] = v, 0
            last += 1
    first = 0
    while first < last:
        u = order[first]
        first += 1
        for k in range(out_ptr[u], out_ptr[u + 1]):
            v = out[k]
            missing[v] -= 1
            if missing[v] == 0:  # its last source is that of the highest level
                order[last], level[v] = v, level[u] + 1
                last += 1
    return order, last, level


@njit(**INNER)
def root(parent, v):
    """Returns the representative of a node's component, and shortens the way there."""
    while parent[v] != v:
        parent[v] = parent[parent[v]]
        v = parent[v]
    return v


@njit(cache=True, nogil=True)
def make_plan(edges, kind, anchor, turns, rounds, num_nodes):
    """Returns the :class:`Plan` of a graph.

    Components without cycles, and no deeper than ``rounds`` unless that is 0, are updated once. The others
    are so in ``rounds`` rounds, or if that is 0 in as many as the largest of ``turns`` of their anchors.
    """
    tail, head, dropped = edges[0], edges[1], np.zeros(num_nodes, np.bool_)
    if anchor.shape[0] == 1:  # an anchor's belief is put back after each round
        for v in anchor[0]:
            dropped[v] = True
    ptr, incoming, degree = into(tail, head, kind, dropped)
    out_ptr, out = out_of(tail, head, dropped)
    order, settled, level = levels(ptr, out_ptr, out)
    limit = np.zeros(num_nodes, np.int32)
    if settled == num_nodes and (rounds == 0 or settled == 0 or level[order[settled - 1]] <= rounds):
        return Plan(ptr, incoming, out_ptr, out, order, settled, limit, 0, degree)
    parent, late = np.arange(num_nodes), np.zeros(num_nodes, np.bool_)
    for e in range(tail.shape[0]):
        u, v = root(parent, tail[e]), root(parent, head[e])
        parent[max(u, v)] = min(u, v)
    for v in range(num_nodes):
        if level[v] < 0 or (rounds > 0 and level[v] > rounds):
            late[root(parent, v)] = True
    most = np.zeros(num_nodes, np.int32)
    for s in range(anchor.shape[0]):
        for k in range(anchor.shape[1]):
            v = root(parent, anchor[s, k])
            most[v] = max(most[v], turns[k])
    kept, last = np.empty(num_nodes, np.int32), 0
    for k in range(settled):
        if not late[root(parent, order[k])]:
            kept[last] = order[k]
            last += 1
    settled, largest = last, 0
    for v in range(num_nodes):
        if late[root(parent, v)]:
            kept[last] = v
            last += 1
            limit[v] = rounds if rounds > 0 else most[root(parent, v)]
            largest = max(largest, limit[v])
    return Plan(ptr, incoming, out_ptr, out, kept, settled, limit, largest, degree)
