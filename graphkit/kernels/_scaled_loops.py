"""Compiled loops of :mod:`graphkit.kernels.scaled`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._spmm_loops import FAST


@njit(cache=True, nogil=True, fastmath=FAST)
def scaled_rows(start, stop, rowptr, col, source, row_scale, own_scale, first, x, y):
    """Writes ``y[r] = n[r] * sum_e s[col[e]] * x[col[e]] + w[r] * x[first + r]`` for rows ``start..stop``.

    Empty ``source`` and ``row_scale`` mean ones, empty ``own_scale`` zeros.
    """
    width = x.shape[1]
    scaled, rescaled, owned = source.shape[0] > 0, row_scale.shape[0] > 0, own_scale.shape[0] > 0
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for r in range(start, stop):
        e, end = rowptr[r], rowptr[r + 1]
        for f in range(width):
            y[r, f] = zero
        while e + 4 <= end:
            c0, c1 = np.uint64(col[e]), np.uint64(col[e + 1])
            c2, c3 = np.uint64(col[e + 2]), np.uint64(col[e + 3])
            if scaled:
                v0, v1, v2, v3 = source[c0], source[c1], source[c2], source[c3]
                for f in range(width):
                    y[r, f] += (v0 * x[c0, f] + v1 * x[c1, f]) + (v2 * x[c2, f] + v3 * x[c3, f])
            else:
                for f in range(width):
                    y[r, f] += (x[c0, f] + x[c1, f]) + (x[c2, f] + x[c3, f])
            e += 4
        while e < end:
            c0 = np.uint64(col[e])
            v0 = source[c0] if scaled else one
            for f in range(width):
                y[r, f] += v0 * x[c0, f]
            e += 1
        n = row_scale[r] if rescaled else one
        if owned:
            w, o = own_scale[r], np.uint64(first + r)
            for f in range(width):
                y[r, f] = n * y[r, f] + w * x[o, f]
        elif rescaled:
            for f in range(width):
                y[r, f] *= n
