"""Compiled loops of :mod:`graphkit.kernels.text_pool`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._spmm_loops import FAST

BLOCK = 32  # texts whose gradients are added up together, whichever thread does them


@njit(cache=True, nogil=True, fastmath=FAST)
def pool(start, stop, hidden, mask, text, v, y, attention):
    """Writes the pooled states and the attention of texts ``start..stop`` of those that are asked for."""
    length, width = hidden.shape[1], hidden.shape[2]
    real = v.dtype.type
    for u in range(start, stop):
        i = np.uint64(text[u])
        top, count = real(-np.inf), 0
        for j in range(length):
            attention[u, j] = 0
            if mask[i, j]:
                score = real(0)
                for f in range(width):
                    score += hidden[i, j, f] * v[f]
                attention[u, j] = score
                top = score if score > top else top
                count += 1
        total = real(0)
        for j in range(length):
            if count == 0:
                attention[u, j] = 1
            elif mask[i, j]:
                attention[u, j] = np.exp(attention[u, j] - top)
            total += attention[u, j]
        for f in range(width):
            y[u, f] = 0
        for j in range(length):
            attention[u, j] /= total
            a = attention[u, j]
            if count == 0 or mask[i, j]:
                for f in range(width):
                    y[u, f] += a * hidden[i, j, f]


@njit(cache=True, nogil=True, fastmath=FAST)
def pool_grad(start, stop, grad, hidden, mask, text, y, attention, partial):
    """Adds the gradients of ``v`` of each of the blocks ``start..stop`` of texts."""
    length, width = hidden.shape[1], hidden.shape[2]
    real = y.dtype.type
    for block in range(start, stop):
        for u in range(block * BLOCK, min((block + 1) * BLOCK, text.shape[0])):
            i = np.uint64(text[u])
            mean = real(0)
            for f in range(width):
                mean += grad[u, f] * y[u, f]
            for j in range(length):
                if mask[i, j]:
                    flow = real(0)
                    for f in range(width):
                        flow += grad[u, f] * hidden[i, j, f]
                    flow = (flow - mean) * attention[u, j]
                    for f in range(width):
                        partial[block, f] += flow * hidden[i, j, f]
