"""Compiled loops of :mod:`graphkit.kernels.pair_product`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._spmm_loops import FAST


@njit(cache=True, nogil=True)
def out_of_range(start, stop, first, second, num_rows):
    """Returns whether any id of the pairs ``start..stop`` lies outside ``[0, num_rows)``."""
    bad = False
    for b in range(start, stop):
        bad |= first[b] < 0 or first[b] >= num_rows or second[b] < 0 or second[b] >= num_rows
    return bad


@njit(cache=True, nogil=True, fastmath=FAST)
def multiply(start, stop, h, first, second, out):
    """Writes ``out[b] = h[first[b]] * h[second[b]]`` for the pairs ``start..stop``."""
    for b in range(start, stop):
        i, j = np.uint64(first[b]), np.uint64(second[b])
        for f in range(h.shape[1]):
            out[b, f] = h[i, f] * h[j, f]


@njit(cache=True, nogil=True, fastmath=FAST)
def scatter_back(start, stop, h, first, second, grad, out):
    """Adds the gradient of :func:`multiply` for the columns ``start..stop``, pair by pair."""
    for b in range(first.shape[0]):
        i, j = np.uint64(first[b]), np.uint64(second[b])
        for f in range(start, stop):
            g = grad[b, f]
            left, right = h[i, f], h[j, f]
            out[i, f] += g * right
            out[j, f] += g * left
