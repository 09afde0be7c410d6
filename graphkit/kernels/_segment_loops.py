"""Compiled loops of :mod:`graphkit.kernels.segment_softmax`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def bad_ptr(ptr, size):
    """Returns whether segments don't ascend from 0 to ``size``."""
    bad = ptr[0] != 0 or ptr[-1] != size
    for b in range(ptr.shape[0] - 1):
        bad |= ptr[b + 1] < ptr[b]
    return bad


@njit(cache=True, nogil=True)
def softmax(start, stop, ptr, score, mask, out):
    """Writes the softmax of segments ``start..stop``; a NaN makes its whole segment NaN."""
    real = score.dtype.type
    for b in range(start, stop):
        top = real(-np.inf)
        for i in range(ptr[b], ptr[b + 1]):
            if mask[i] and score[i] > top:
                top = score[i]
        if top == -np.inf:
            top = real(0)
        total = real(0)
        for i in range(ptr[b], ptr[b + 1]):
            power = real(np.exp(score[i] - top)) if mask[i] else real(0)
            out[i] = power
            total += power
        if total != 0:
            for i in range(ptr[b], ptr[b + 1]):
                out[i] = out[i] / total if mask[i] else real(0)


@njit(cache=True, nogil=True)
def softmax_grad(start, stop, ptr, grad, p, out):
    """Writes ``p (grad - sum p grad)`` for segments ``start..stop``."""
    for b in range(start, stop):
        total = p.dtype.type(0)
        for i in range(ptr[b], ptr[b + 1]):
            total += p[i] * grad[i]
        for i in range(ptr[b], ptr[b + 1]):
            out[i] = p[i] * (grad[i] - total)
