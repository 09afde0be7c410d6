"""Compiled loops of :mod:`graphkit.kernels.spmm`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

# Sums may be regrouped and fused, but NaN and infinity keep their meaning: the training loop looks for them.
FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True)
def bad_csr(rowptr, col, num_cols):
    """Returns 1 if the row pointers don't fit ``col``, 2 if a column is out of range, else 0."""
    if rowptr[0] != 0 or rowptr[-1] != col.shape[0]:
        return 1
    falls = 0
    for r in range(rowptr.shape[0] - 1):
        falls |= rowptr[r + 1] < rowptr[r]
    if falls:
        return 1
    low, high = np.int32(0), np.int32(-1)
    for e in range(col.shape[0]):
        low = min(low, col[e])
        high = max(high, col[e])
    return 2 if low < 0 or high >= num_cols else 0


@njit(cache=True, nogil=True, fastmath=FAST)
def spmm_rows(start, stop, rowptr, col, value, x, y):
    """Writes ``y[r] = sum_e value[e] * x[col[e]]`` for rows ``start..stop``; no values mean ones."""
    width = x.shape[1]
    weighted = value.shape[0] > 0
    one = x.dtype.type(1)
    # Ids become unsigned (no test for negative indices) and rows are never sliced (no view objects).
    for r in range(start, stop):
        e, end = rowptr[r], rowptr[r + 1]
        for f in range(width):
            y[r, f] = 0
        # Four neighbours at a time: the output row is read and written a quarter as often.
        while e + 4 <= end:
            c0, c1 = np.uint64(col[e]), np.uint64(col[e + 1])
            c2, c3 = np.uint64(col[e + 2]), np.uint64(col[e + 3])
            if weighted:
                v0, v1, v2, v3 = value[e], value[e + 1], value[e + 2], value[e + 3]
                for f in range(width):
                    y[r, f] += (v0 * x[c0, f] + v1 * x[c1, f]) + (v2 * x[c2, f] + v3 * x[c3, f])
            else:
                for f in range(width):
                    y[r, f] += (x[c0, f] + x[c1, f]) + (x[c2, f] + x[c3, f])
            e += 4
        while e < end:
            c0 = np.uint64(col[e])
            v0 = value[e] if weighted else one
            for f in range(width):
                y[r, f] += v0 * x[c0, f]
            e += 1


@njit(cache=True, nogil=True, fastmath=FAST)
def sddmm_rows(start, stop, rowptr, col, left, right, out):
    """Writes ``out[e] = <left[r], right[col[e]]>`` for the entries of rows ``start..stop``."""
    width = left.shape[1]
    for r in range(start, stop):
        for e in range(rowptr[r], rowptr[r + 1]):
            c = np.uint64(col[e])
            total = left.dtype.type(0)
            for f in range(width):
                total += left[r, f] * right[c, f]
            out[e] = total


@njit(cache=True, nogil=True)
def transpose(rowptr, col, rowptr_t, row_t, perm):
    """Counting sort of the entries by column; ``rowptr_t`` is zero, with a place more than columns."""
    num_cols = rowptr_t.shape[0] - 1
    for e in range(col.shape[0]):
        rowptr_t[col[e] + 1] += 1
    for c in range(num_cols):
        rowptr_t[c + 1] += rowptr_t[c]
    # Filling moves every start to its row's end, which is the next row's start; shift back afterwards.
    for r in range(rowptr.shape[0] - 1):
        for e in range(rowptr[r], rowptr[r + 1]):
            at = rowptr_t[col[e]]
            row_t[at] = r
            perm[at] = e
            rowptr_t[col[e]] = at + 1
    for c in range(num_cols, 0, -1):
        rowptr_t[c] = rowptr_t[c - 1]
    rowptr_t[0] = 0
