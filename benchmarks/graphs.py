"""Random graphs with hubs, for measurements."""

from __future__ import annotations

import numpy as np

__all__ = ["rmat_edges"]


def rmat_edges(
    num_nodes: int,
    num_edges: int,
    *,
    a: float = 0.57,
    b: float = 0.19,
    c: float = 0.19,
    seed: int = 0,
) -> np.ndarray:
    """Draws distinct undirected edges of a recursive-matrix (R-MAT) graph.

    Every edge descends a quadtree over the adjacency matrix, taking the four quadrants with probability
    ``a, b, c, 1 - a - b - c``; ids from ``num_nodes`` on, self loops and repeats are drawn again. Ids are
    shuffled, so that they say nothing about degrees. Source: Chakrabarti, Zhan and Faloutsos, "R-MAT: a
    recursive model for graph mining", SDM 2004.

    Returns:
        ``[2, num_edges]`` int64, smaller end first, in random order.
    """
    rng = np.random.default_rng(seed)
    levels = max(int(num_nodes - 1).bit_length(), 1)
    known = np.empty(0, np.int64)
    while known.size < num_edges:
        draws = int(1.3 * (num_edges - known.size)) + 1024
        row, col = np.zeros(draws, np.int64), np.zeros(draws, np.int64)
        for _ in range(levels):
            quadrant = np.searchsorted(np.cumsum([a, b, c]), rng.random(draws), side="right")
            row = 2 * row + (quadrant >> 1)
            col = 2 * col + (quadrant & 1)
        keep = (row < num_nodes) & (col < num_nodes) & (row != col)
        low, high = np.minimum(row, col)[keep], np.maximum(row, col)[keep]
        known = np.unique(np.concatenate([known, low * num_nodes + high]))
    known = rng.permutation(known)[:num_edges]
    ends = rng.permutation(num_nodes)[np.stack([known // num_nodes, known % num_nodes])]
    return np.sort(ends, axis=0)
