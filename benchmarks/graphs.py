"""Random graphs with hubs, for measurements."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["rmat_chunks", "rmat_edges"]


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


def rmat_chunks(
    num_nodes: int,
    num_edges: int,
    *,
    size: int = 1 << 22,
    a: float = 0.57,
    b: float = 0.19,
    c: float = 0.19,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Draws the directed edges of a large R-MAT graph piece by piece, the same at each call.

    As in :func:`rmat_edges`, but nothing is remembered, so edges repeat, the more the closer ``num_edges`` is
    to the number of likely ones. Memory is 8 bytes a node and a piece.

    Yields:
        ``[2, k]`` int64 with ``k <= size``; self loops are drawn again.
    """
    shuffled = np.random.default_rng(seed).permutation(num_nodes)
    draw, levels = _compiled_rmat(), max(int(num_nodes - 1).bit_length(), 1)
    # 16 bits decide a quadrant, so a 64-bit random number is enough for four levels.
    bounds = np.round(65536 * np.cumsum([a, b, c])).astype(np.int64)
    for start in range(0, num_edges, size):
        out = np.empty((2, min(size, num_edges - start)), np.int64)
        draw(np.uint64(seed), start, levels, bounds, shuffled, out)
        yield out


@functools.cache
def _compiled_rmat() -> Callable[..., None]:
    """Compiles the loop of :func:`rmat_chunks`."""
    from numba import njit

    @njit(nogil=True)
    def mix(z):  # type: ignore[no-untyped-def]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    @njit(nogil=True)
    def draw(seed, start, levels, bounds, shuffled, out):  # type: ignore[no-untyped-def]
        golden = np.uint64(0x9E3779B97F4A7C15)
        first, second, third = bounds
        for e in range(out.shape[1]):
            state = mix(mix(seed + golden) + np.uint64(start + e))
            row, col = np.int64(0), np.int64(0)
            while row == col or row >= shuffled.size or col >= shuffled.size:
                row, col = np.int64(0), np.int64(0)
                bits = np.uint64(0)
                for level in range(levels):
                    if level % 4 == 0:
                        state += golden
                        bits = mix(state)
                    part = np.int64(bits & np.uint64(0xFFFF))
                    bits >>= np.uint64(16)
                    row = 2 * row + (part >= second)
                    col = 2 * col + (part >= third or (first <= part < second))
            out[0, e], out[1, e] = shuffled[row], shuffled[col]

    return draw
