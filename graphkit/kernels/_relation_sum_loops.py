"""Compiled loops of :mod:`graphkit.kernels.relation_sum`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

# Sums may be regrouped and fused, but NaN and infinity keep their meaning: the training loop looks for them.
FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True)
def bad_entries(rowptr, col, kind, num_cols, num_kinds):
    """Returns 1 if the row pointers don't fit ``col``, 2 or 3 if a column or kind is out of range, else 0."""
    if rowptr[0] != 0 or rowptr[-1] != col.shape[0]:
        return 1
    for r in range(rowptr.shape[0] - 1):
        if rowptr[r + 1] < rowptr[r]:
            return 1
    for e in range(col.shape[0]):
        if col[e] < 0 or col[e] >= num_cols:
            return 2
        if kind[e] < 0 or kind[e] >= num_kinds:
            return 3
    return 0


@njit(cache=True, nogil=True, fastmath=FAST)
def sum_rows(start, stop, rowptr, col, kind, x, weight, y):
    """Writes ``y[v] = sum_e x[col[e]] * weight[kind[e]]`` for rows ``start..stop``."""
    width = x.shape[1]
    for v in range(start, stop):
        for c in range(width):
            y[v, c] = 0
        for e in range(rowptr[v], rowptr[v + 1]):
            u, r = np.uint64(col[e]), np.uint64(kind[e])
            for c in range(width):
                y[v, c] += x[u, c] * weight[r, c]


@njit(cache=True, nogil=True, fastmath=FAST)
def pull_back(start, stop, rowptr, col, kind, x, weight, grad, grad_x, grad_weight):
    """Adds the gradients of channels ``start..stop`` to both results, which hold zeros.

    Ranges of channels, not of rows, so that threads never write to one place.
    """
    for v in range(rowptr.shape[0] - 1):
        for e in range(rowptr[v], rowptr[v + 1]):
            u, r = np.uint64(col[e]), np.uint64(kind[e])
            for c in range(start, stop):
                grad_x[u, c] += grad[v, c] * weight[r, c]
                grad_weight[r, c] += np.float64(x[u, c] * grad[v, c])
