"""Compiled loops of :mod:`graphkit.kernels.belief_answer`; imported at the first call.

Layouts are those of :mod:`graphkit.kernels._belief_loops`; relations are ``[R, n F]`` of rows (coordinate,
facet), matrices of what composition does from the right come first, then those from the left.
"""

# mypy: ignore-errors
# Numba types loops at their calls, and its intrinsics lose an argument that mypy waits for.

from __future__ import annotations

from numba import njit

from graphkit.kernels._belief_loops import LANES
from graphkit.kernels._belief_vectors import load, splat, store
from graphkit.kernels._spmm_loops import FAST


@njit(cache=True, nogil=True, fastmath=FAST)
def tables(composition, relation, matrix, n):
    """Writes ``sum_j A_pij r_j`` and ``sum_i A_pij r_i`` to rows ``r`` and ``R + r`` of ``matrix``."""
    width, count = relation.shape[1] // n, relation.shape[0]
    for r in range(count):
        for b in range(0, width, LANES):
            for p in range(n):
                for j in range(n):
                    store(matrix, count + r, (p * n + j) * width + b, splat(relation.dtype.type(0), LANES))
                for i in range(n):
                    own, total = load(relation, r, i * width + b, LANES), splat(relation.dtype.type(0), LANES)
                    for j in range(n):
                        a = load(composition, 0, ((p * n + i) * n + j) * width + b, LANES)
                        total = total + a * load(relation, r, j * width + b, LANES)
                        at = (p * n + j) * width + b
                        store(matrix, count + r, at, load(matrix, count + r, at, LANES) + a * own)
                    store(matrix, r, (p * n + i) * width + b, total)


@njit(cache=True, nogil=True, fastmath=FAST)
def tables_grad(composition, relation, grad, total, flow, n):
    """Adds what the gradient of the matrices gives to those of the composition and the relations."""
    width, count = relation.shape[1] // n, relation.shape[0]
    for r in range(count):
        for b in range(0, width, LANES):
            for p in range(n):
                for i in range(n):
                    forward = load(grad, r, (p * n + i) * width + b, LANES)
                    own, back = load(relation, r, i * width + b, LANES), load(flow, r, i * width + b, LANES)
                    for j in range(n):
                        at = ((p * n + i) * n + j) * width + b
                        a, other = load(composition, 0, at, LANES), load(relation, r, j * width + b, LANES)
                        backward = load(grad, count + r, (p * n + j) * width + b, LANES)
                        store(total, 0, at, load(total, 0, at, LANES) + forward * other + backward * own)
                        back = back + a * backward
                    store(flow, r, i * width + b, back)
                    for j in range(n):
                        a = load(composition, 0, ((p * n + i) * n + j) * width + b, LANES)
                        x = load(flow, r, j * width + b, LANES) + a * forward
                        store(flow, r, j * width + b, x)
