"""Compiled loops of :mod:`graphkit.datasets.algebra`; imported at the first call, for numba's sake."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def compose(rows, full, left, right):
    """Returns the union of ``rows[a, right]`` over the relations a in ``left``."""
    found = 0
    a = 0
    while left:
        if left & 1:
            found |= rows[a, right]
            if found == full:
                break
        left >>= 1
        a += 1
    return found


@njit(cache=True, nogil=True)
def close(matrix, n, rows, converse, full, skip, queue, waiting):
    """Makes ``matrix[:n, :n]`` path consistent; returns the pair ``i * n + j`` that is left empty, or -1.

    Each pair that has narrowed is composed with all others that share a node with it, until none narrows.

    Args:
        matrix: Masks, the converse of each pair in the mirrored place, identities on the diagonal.
        n: Number of nodes.
        rows: ``[R, 2**R]`` masks: a relation composed with a set of relations.
        converse: ``[2**R]`` masks.
        full: The mask of all relations.
        skip: A mask that, composed with any set, gives all relations; -1 if there is none.
        queue: Scratch for pairs, ``n * n`` or more.
        waiting: Likewise, all false, and so again at the end.
    """
    first = size = 0
    room = n * n
    for i in range(n):
        for j in range(i + 1, n):
            if matrix[i, j] == 0:
                return i * n + j
            if matrix[i, j] != full:
                queue[size] = i * n + j
                waiting[i * n + j] = True
                size += 1
    while size:
        pair = queue[first]
        first = first + 1 if first + 1 < room else 0
        size -= 1
        waiting[pair] = False
        i, j = pair // n, pair % n
        for turn in range(2):
            if turn:
                i, j = j, i
            between = np.int64(matrix[i, j])
            for k in range(n):
                if k in (i, j) or matrix[j, k] == skip:
                    continue
                old = np.int64(matrix[i, k])
                new = old & compose(rows, full, between, np.int64(matrix[j, k]))
                if new == old:
                    continue
                matrix[i, k] = new
                matrix[k, i] = converse[new]
                low, high = min(i, k), max(i, k)
                if new == 0:
                    waiting[:room] = False
                    return low * n + high
                changed = low * n + high
                if not waiting[changed]:
                    last = first + size
                    queue[last - room if last >= room else last] = changed
                    waiting[changed] = True
                    size += 1
    return -1


@njit(cache=True, nogil=True)
def start(matrix, n, edges, types, first, last, converse, full, identity):
    """Fills ``matrix[:n, :n]`` with what the edges ``first`` to ``last - 1`` say; ``types`` are masks."""
    matrix[:n, :n] = full
    for i in range(n):
        matrix[i, i] = identity
    for e in range(first, last):
        u, v = edges[0, e], edges[1, e]
        matrix[u, v] &= types[e]
        if u != v:
            matrix[v, u] = converse[matrix[u, v]]


@njit(cache=True, nogil=True)
def count_bits(mask):
    """Returns the number of relations in a mask."""
    bits = 0
    while mask:
        bits += mask & 1
        mask >>= 1
    return bits


@njit(cache=True, nogil=True)
def eliminate(matrix, n, source, target, rows, converse, full, degree, stack):
    """Takes out nodes that have at most two neighbours, one by one; returns what is left for the query.

    A node's two edges are put together to one between its neighbours, which narrows what the graph says of
    them. Closure may narrow the result further, never widen it. ``matrix`` is used up; ``degree`` ``[n]`` and
    ``stack`` ``[3 * n]`` are scratch.
    """
    size = 0
    for v in range(n):
        degree[v] = 0
        for u in range(n):
            degree[v] += u != v and matrix[v, u] != full
        if degree[v] <= 2 and v != source and v != target:
            stack[size] = v
            size += 1
    while size:
        size -= 1
        v = stack[size]
        found, i, j = 0, -1, -1
        for u in range(n):
            if u != v and matrix[v, u] != full:
                i, j = u, i
                found += 1
        if found == 2:
            old = np.int64(matrix[i, j])
            new = old & compose(rows, full, np.int64(matrix[i, v]), np.int64(matrix[v, j]))
            if new == 0:
                return 0
            matrix[i, j], matrix[j, i] = new, converse[new]
            if old == full and new != full:
                degree[i] += 1
                degree[j] += 1
        for u in (i, j):
            if u >= 0:
                matrix[u, v] = matrix[v, u] = full
                degree[u] -= 1
                if degree[u] <= 2 and u != source and u != target:
                    stack[size] = u  # if it is there already, it has no neighbours the second time
                    size += 1
    return matrix[source, target]


@njit(cache=True, nogil=True)
def answers(edges, types, ptr, edge_ptr, source, target, rows, converse, full, skip, identity, found):
    """Writes to ``found[g]`` what the closure of graph g says of its source and target; 0 if contradictory.

    ``types`` are masks. Where eliminating nodes leaves one relation, closure has nothing to add.
    """
    largest = 1
    for g in range(len(ptr) - 1):
        largest = max(largest, ptr[g + 1] - ptr[g])
    matrix = np.empty((largest, largest), dtype=np.uint16)
    queue = np.empty(largest * largest, dtype=np.int64)
    waiting = np.zeros(largest * largest, dtype=np.bool_)
    degree, stack = np.empty(largest, dtype=np.int64), np.empty(3 * largest, dtype=np.int64)
    for g in range(len(ptr) - 1):
        n, s, t = ptr[g + 1] - ptr[g], source[g], target[g]
        start(matrix, n, edges, types, edge_ptr[g], edge_ptr[g + 1], converse, full, identity)
        empty = False
        for i in range(n):
            empty |= matrix[i, i] == 0
        found[g] = 0
        if empty:
            continue
        mask = eliminate(matrix, n, s, t, rows, converse, full, degree, stack)
        if count_bits(mask) > 1:
            start(matrix, n, edges, types, edge_ptr[g], edge_ptr[g + 1], converse, full, identity)
            bad = close(matrix, n, rows, converse, full, skip, queue, waiting)
            mask = matrix[s, t] if bad < 0 else 0
        found[g] = mask


@njit(cache=True, nogil=True)
def path_answer(edges, types, first, last, n, source, target, columns, identity, scratch):
    """Returns the smallest set of relations that one directed walk from source to target entails.

    Every set that a walk gives at some node is found once. Of equally small sets it is the one with the least
    mask; 0 if there is no walk.

    Args:
        edges: ``[2, E]`` ids within the graph.
        types: ``[E]`` relations.
        first: The graph's first edge.
        last: The one after its last.
        n: Its number of nodes.
        source: Where walks begin.
        target: Where they end.
        columns: ``[2**R, R]`` masks: a set composed with a relation.
        identity: The mask of the identity.
        scratch: ``seen`` ``[n, 2**R]`` bool, all false, and so again at the end; ``stack`` ``[n * 2**R]``;
            ``head`` ``[n]`` and ``link`` ``[E]``, the lists of a node's edges.
    """
    seen, stack, head, link = scratch
    sets = columns.shape[0]
    for v in range(n):
        head[v] = -1
    for e in range(first, last):
        link[e - first] = head[edges[0, e]]
        head[edges[0, e]] = e - first
    best, best_size = 0, 99
    stack[0] = source * sets + identity
    seen[source, identity] = True
    at, size = 0, 1
    while at < size:
        u, mask = stack[at] // sets, stack[at] % sets
        at += 1
        if u == target:
            bits = count_bits(mask)
            if bits < best_size or (bits == best_size and mask < best):
                best, best_size = mask, bits
        e = head[u]
        while e >= 0:
            v = edges[1, first + e]
            new = np.int64(columns[mask, types[first + e]])
            if not seen[v, new]:
                seen[v, new] = True
                stack[size] = v * sets + new
                size += 1
            e = link[e]
    for at in range(size):
        seen[stack[at] // sets, stack[at] % sets] = False
    return best


@njit(cache=True, nogil=True)
def path_scratch(nodes, edges, sets):
    """Returns what :func:`path_answer` needs for graphs of that many nodes and edges."""
    return (
        np.zeros((nodes, sets), dtype=np.bool_),
        np.empty(nodes * sets, dtype=np.int64),
        np.empty(nodes, dtype=np.int64),
        np.empty(max(edges, 1), dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def path_answers(edges, types, ptr, edge_ptr, source, target, columns, identity, found):
    """Writes :func:`path_answer` of each graph to ``found``."""
    nodes = links = 1
    for g in range(len(ptr) - 1):
        nodes = max(nodes, ptr[g + 1] - ptr[g])
        links = max(links, edge_ptr[g + 1] - edge_ptr[g])
    scratch = path_scratch(nodes, links, columns.shape[0])
    for g in range(len(ptr) - 1):
        found[g] = path_answer(
            edges,
            types,
            edge_ptr[g],
            edge_ptr[g + 1],
            ptr[g + 1] - ptr[g],
            source[g],
            target[g],
            columns,
            identity,
            scratch,
        )
