"""Compiled loops of :mod:`graphkit.kernels.fact_sum`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._dropout_loops import HALF, U16, U32, column_bits, row_key
from graphkit.kernels._spmm_loops import FAST


@njit(cache=True, nogil=True, inline="always")
def draw(bits, r, seed):
    """Writes the random bits of row ``r``: 16 for each of two elements that are half a row apart."""
    key = row_key(seed, r)
    before, between = np.uint32(key), np.uint32(key >> U32)
    for c in range(bits.shape[0]):
        bits[c] = column_bits(before, between, np.uint32(c))  # type: ignore[call-arg]


@njit(cache=True, nogil=True, fastmath=FAST)
def entry_values(first, last, begin, source, weight, p):
    """Returns what the entries ``first..last`` multiply their lines by: sums over their facts."""
    values = np.empty(last - first, p.dtype)
    one, weighted, told = p.dtype.type(1), weight.shape[0] > 0, p.shape[0] > 0
    for k in range(first, last):
        total = p.dtype.type(0)
        for e in range(begin[k], begin[k + 1]):
            v = weight[e] if weighted else one
            total += v * p[np.uint64(source[e])] if told else v
        values[k - first] = total
    return values


@njit(cache=True, nogil=True, fastmath=FAST)
def sum_rows(start, stop, rowptr, col, begin, source, weight, p, table, seed, threshold, scale, y):
    """Writes rows ``start..stop`` of the sums, dropped where the threshold isn't 0."""
    width = table.shape[1]
    half = (width + 1) // 2
    zero = table.dtype.type(0)
    first = rowptr[start]
    value = entry_values(first, rowptr[stop], begin, source, weight, p)
    bits = np.empty(half, np.uint32)
    # Bits have a place of their own, ids are unsigned and rows never sliced: so that loops run in vectors.
    for r in range(start, stop):
        e, end = rowptr[r], rowptr[r + 1]
        for f in range(width):
            y[r, f] = 0
        if e == end:
            continue
        while e + 4 <= end:
            c0, c1 = np.uint64(col[e]), np.uint64(col[e + 1])
            c2, c3 = np.uint64(col[e + 2]), np.uint64(col[e + 3])
            v0, v1 = value[e - first], value[e - first + 1]
            v2, v3 = value[e - first + 2], value[e - first + 3]
            for f in range(width):
                y[r, f] += (v0 * table[c0, f] + v1 * table[c1, f]) + (v2 * table[c2, f] + v3 * table[c3, f])
            e += 4
        while e < end:
            c0, v0 = np.uint64(col[e]), value[e - first]
            for f in range(width):
                y[r, f] += v0 * table[c0, f]
            e += 1
        if threshold > 0:
            draw(bits, r, seed)
            for c in range(half):
                scaled = y[r, c] * scale
                y[r, c] = scaled if (bits[c] & HALF) >= threshold else zero
            for c in range(width - half):
                scaled = y[r, half + c] * scale
                y[r, half + c] = scaled if (bits[c] >> U16) >= threshold else zero


@njit(cache=True, nogil=True, fastmath=FAST)
def grad_rows(
    start,
    stop,
    grad,
    rowptr,
    col,
    begin,
    source,
    weight,
    p,
    table,
    seed,
    threshold,
    scale,
    grad_p,
    grad_table,
):
    """Adds what rows ``start..stop`` give to the gradients, that of ``p`` where it has a place."""
    width = table.shape[1]
    half = (width + 1) // 2
    zero, one = table.dtype.type(0), table.dtype.type(1)
    first, last = rowptr[start], rowptr[stop]
    value = entry_values(first, last, begin, source, weight, p)
    wants = grad_p.shape[0] > 0
    g, bits = np.empty(width, table.dtype), np.empty(half, np.uint32)
    for r in range(start, stop):
        if rowptr[r] == rowptr[r + 1]:
            continue
        if threshold > 0:
            draw(bits, r, seed)
            for c in range(half):
                scaled = grad[r, c] * scale
                g[c] = scaled if (bits[c] & HALF) >= threshold else zero
            for c in range(width - half):
                scaled = grad[r, half + c] * scale
                g[half + c] = scaled if (bits[c] >> U16) >= threshold else zero
        else:
            for f in range(width):
                g[f] = grad[r, f]
        for e in range(rowptr[r], rowptr[r + 1]):
            line, v = np.uint64(col[e]), value[e - first]
            if wants:
                total = zero
                for f in range(width):
                    total += g[f] * table[line, f]
                value[e - first] = total
            for f in range(width):
                grad_table[line, f] += v * g[f]
    if wants:
        for k in range(first, last):
            for e in range(begin[k], begin[k + 1]):
                v = weight[e] if weight.shape[0] > 0 else one
                grad_p[np.uint64(source[e])] += value[k - first] * v
