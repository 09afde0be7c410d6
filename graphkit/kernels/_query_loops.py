"""Compiled loop of :mod:`graphkit.tasks.relation_queries`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True)
def gather(
    ids, ptr, edge_ptr, path_ptr, edges, kinds, path, ends, edge_index, edge_type, union_ends, node, graph
):
    """Writes the disjoint union of some query graphs; returns its number of nodes."""
    base, e, p = 0, 0, 0
    for q in range(ids.shape[0]):
        g = ids[q]
        union_ends[0, q] = ends[0, g] + base
        union_ends[1, q] = ends[1, g] + base
        for k in range(edge_ptr[g], edge_ptr[g + 1]):
            edge_index[0, e] = edges[0, k] + base
            edge_index[1, e] = edges[1, k] + base
            edge_type[e] = kinds[k]
            e += 1
        for k in range(path_ptr[g], path_ptr[g + 1]):
            node[p] = path[k] + base
            graph[p] = q
            p += 1
        base += ptr[g + 1] - ptr[g]
    return base
