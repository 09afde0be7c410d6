"""Compiled loops of :mod:`graphkit.datasets.problems`; imported at the first call, for numba's sake.

``tables`` is what :func:`graphkit.datasets.problems.chain_tables` makes: pairs of labels whose composition
contains a relation, and chains of 2, 3 and 4 labels whose composition is one relation alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.datasets._relation_loops import mix

_STEP = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_TARGET, _END = -1, -2  # nodes that have no number yet: the graph's last, and the last of a bundle


@njit(cache=True, nogil=True)
def below(state, n):
    """Returns the next number from 0 to n - 1 of the stream ``state`` ``[1]`` uint64."""
    state[0] += _STEP
    return np.int64(((mix(state[0]) >> _HALF) * np.uint64(n)) >> _HALF)


@njit(cache=True, nogil=True)
def draw_chains(relation, chains, length, full, tables, state, out):
    """Writes to ``out[:chains, :length]`` chains that entail ``relation`` together.

    Pairs of labels are drawn until the intersection of what they entail is the relation alone; then each is
    lengthened by putting a chain of the same meaning in the place of a random label.
    """
    pair_ptr, pair_label, pair_mask, chain_ptr, chain_label = tables
    first, count = pair_ptr[relation], pair_ptr[relation + 1] - pair_ptr[relation]
    wanted = 1 << relation
    found = 0
    while found != wanted:
        found = full
        for c in range(chains):
            p = first + below(state, count)
            out[c, 0], out[c, 1] = pair_label[p, 0], pair_label[p, 1]
            found &= pair_mask[p]
    for c in range(chains):
        size = 2
        while size < length:
            at = below(state, size)
            m = 2 + below(state, min(3, length - size))
            begin, end = chain_ptr[m - 2, out[c, at]], chain_ptr[m - 2, out[c, at] + 1]
            p = begin + below(state, end - begin)
            for i in range(size - 1, at, -1):
                out[c, i + m - 1] = out[c, i]
            for i in range(m):
                out[c, at + i] = chain_label[m - 2, p, i]
            size += m - 1


@njit(cache=True, nogil=True)
def draw_bundles(length, begun, state, bundle):
    """Chooses labels of a chain of ``begun`` to become bundles, so that paths get ``length`` edges.

    Writes branches and their length to ``bundle[i]``, zeros where a label stays.
    """
    bundle[:begun] = 0
    size = begun
    while size < length:
        at = below(state, begun)
        if bundle[at, 0]:
            continue
        bundle[at, 0] = 2 + below(state, 4)
        bundle[at, 1] = 2 + below(state, min(length - 2, length - size + 1) - 1)
        size += bundle[at, 1] - 1


@njit(cache=True, nogil=True)
def draw_graph(relation, k, b, full, tables, state, scratch, edges, types):
    """Writes a problem to ``edges`` ``[2, ...]`` and ``types``; returns its numbers of nodes and edges.

    Nodes are numbered branch by branch, a bundle's end after what is in it; 0 is the source, the highest
    number the target.
    """
    chains, inner, bundle = scratch
    nested = k >= 5
    begun = k // 2 + 1 if nested else k
    draw_chains(relation, b, begun, full, tables, state, chains)
    node, edge = 0, 0
    for c in range(b):
        if nested:
            draw_bundles(k, begun, state, bundle)
        at = 0
        for i in range(begun):
            last = i == begun - 1
            if not nested or bundle[i, 0] == 0:
                edges[0, edge], types[edge] = at, chains[c, i]
                if not last:
                    node += 1
                at = _TARGET if last else node
                edges[1, edge] = at
                edge += 1
                continue
            branches, length, begin = bundle[i, 0], bundle[i, 1], edge
            draw_chains(chains[c, i], branches, length, full, tables, state, inner)
            for d in range(branches):
                here = at
                for j in range(length):
                    edges[0, edge], types[edge] = here, inner[d, j]
                    if j < length - 1:
                        node += 1
                    here = node if j < length - 1 else _END
                    edges[1, edge] = here
                    edge += 1
            if not last:
                node += 1
            at = _TARGET if last else node
            for e in range(begin, edge):
                if edges[1, e] == _END:
                    edges[1, e] = at
    node += 1
    for e in range(edge):
        if edges[1, e] == _TARGET:
            edges[1, e] = node
    return node + 1, edge


@njit(cache=True, nogil=True)
def draw_graphs(relation, k, b, rows, full, tables, state):
    """Draws problems of one relation.

    Args:
        relation: The answer.
        k: Length of all paths.
        b: Branches.
        rows: How many are wanted.
        full: The mask of all relations.
        tables: See above.
        state: ``[1]`` uint64, the stream of random numbers.

    Returns:
        Nodes and edges of each graph, ``[rows]``; ``[2, E]`` edges and ``[E]`` labels.
    """
    # Of a branch at most k labels stay; bundles of up to 5 chains hold less than k edges of each chain.
    room = b * 6 * k
    edges, types = np.empty((2, room), dtype=np.int64), np.empty(room, dtype=np.int64)
    scratch = (
        np.empty((b, k), dtype=np.int64),
        np.empty((5, k), dtype=np.int64),
        np.zeros((k, 2), dtype=np.int64),
    )
    all_edges, all_types = np.empty((2, 64), dtype=np.int16), np.empty(64, dtype=np.int8)
    nodes, counts = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.int64)
    total = 0
    for row in range(rows):
        n, size = draw_graph(relation, k, b, full, tables, state, scratch, edges, types)
        while total + size > len(all_types):
            more_edges = np.empty((2, 2 * len(all_types)), dtype=np.int16)
            more_types = np.empty(2 * len(all_types), dtype=np.int8)
            more_edges[:, :total], more_types[:total] = all_edges[:, :total], all_types[:total]
            all_edges, all_types = more_edges, more_types
        for e in range(size):
            all_edges[0, total + e], all_edges[1, total + e] = edges[0, e], edges[1, e]
            all_types[total + e] = types[e]
        total += size
        nodes[row], counts[row] = n, size
    return nodes, counts, all_edges[:, :total].copy(), all_types[:total].copy()
