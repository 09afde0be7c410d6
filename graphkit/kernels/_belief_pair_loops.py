"""Compiled loops of the read-out in :mod:`graphkit.kernels.belief`; imported at the first call.

Layouts are those of :mod:`graphkit.kernels._belief_loops`.
"""

# mypy: ignore-errors
# Numba types loops at their calls, and its intrinsics lose an argument that mypy waits for.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._belief_loops import INNER, LANES, count, fill, pool, unpool
from graphkit.kernels._belief_vectors import load, splat, store
from graphkit.kernels._spmm_loops import FAST


@njit(**INNER, fastmath=FAST)
def compose(composition, state, x, y, b, size, message, k):
    """Writes the composition of rows ``x`` and ``y`` of ``state`` as message ``k``."""
    n = count(size)
    width, zero = state.shape[1] // n, splat(state.dtype.type(0), LANES)
    step = n * width
    for p in range(n):
        z = zero
        for i in range(0, n - 3, 4):
            q = r = s = t = zero
            for j in range(n):
                at, v = ((p * n + i) * n + j) * width + b, load(state, y, j * width + b, LANES)
                q = q + load(composition, 0, at, LANES) * v
                r = r + load(composition, 0, at + step, LANES) * v
                s = s + load(composition, 0, at + 2 * step, LANES) * v
                t = t + load(composition, 0, at + 3 * step, LANES) * v
            z = z + q * load(state, x, i * width + b, LANES) + r * load(state, x, (i + 1) * width + b, LANES)
            z = z + s * load(state, x, (i + 2) * width + b, LANES)
            z = z + t * load(state, x, (i + 3) * width + b, LANES)
        for i in range(n - n % 4, n):
            t = zero
            for j in range(n):
                c = load(composition, 0, ((p * n + i) * n + j) * width + b, LANES)
                t = t + c * load(state, y, j * width + b, LANES)
            z = z + t * load(state, x, i * width + b, LANES)
        store(message, k, p * LANES, z)


@njit(**INNER, fastmath=FAST)
def compose_grad(composition, state, x, y, b, size, message, k, total, flow):
    """Adds what the gradient of message ``k`` gives to ``total`` and to rows of ``flow``."""
    n = count(size)
    width = state.shape[1] // n
    for p in range(n):
        g = load(message, k, p * LANES, LANES)
        for i in range(n):
            h = g * load(state, x, i * width + b, LANES)
            t = load(flow, x, i * width + b, LANES)
            for j in range(n):
                at = ((p * n + i) * n + j) * width + b
                z = load(state, y, j * width + b, LANES)
                store(total, 0, at, load(total, 0, at, LANES) + h * z)
                t = t + g * load(composition, 0, at, LANES) * z
            store(flow, x, i * width + b, t)
            for j in range(n):
                c = load(composition, 0, ((p * n + i) * n + j) * width + b, LANES)
                store(flow, y, j * width + b, load(flow, y, j * width + b, LANES) + h * c)


@njit(**INNER)
def most(ptr):
    """Returns the size of the largest group, at least 1."""
    size = 1
    for g in range(ptr.shape[0] - 1):
        size = max(size, ptr[g + 1] - ptr[g])
    return size


@njit(cache=True, nogil=True)
def pairs(start, stop, ptr, pair, left, right, composition, state, out, product, size):
    """Pools compositions of pairs ``pair[ptr[g]] ...`` to row g of ``out``, ``g`` in ``start ... stop - 1``.

    Where there are no pairs the row is uniform.
    """
    n = count(size)
    message, work = np.empty((most(ptr), n * LANES), out.dtype), np.empty((2, n * LANES), np.float64)
    for g in range(start, stop):
        first, number = ptr[g], ptr[g + 1] - ptr[g]
        if number == 0:
            fill(out, g, g + 1, out.dtype.type(1.0 / n))
            continue
        for b in range(0, out.shape[1] // n, LANES):
            for k in range(number):
                x, y = left[pair[first + k]], right[pair[first + k]]
                compose(composition, state, x, y, b, size, message, k)
            pool(message, work, number, out, g, b, product, size)


@njit(cache=True, nogil=True)
def pairs_grad(
    start, stop, ptr, pair, left, right, composition, state, out, grad, total, flow, product, size
):
    """Adds gradients of the composition to ``total``, of the beliefs to ``flow``; all groups at once."""
    n = count(size)
    message, work = np.empty((most(ptr), n * LANES), out.dtype), np.empty((2, n * LANES), np.float64)
    for g in range(start, stop):
        first, number = ptr[g], ptr[g + 1] - ptr[g]
        if number == 0:
            continue
        for b in range(0, out.shape[1] // n, LANES):
            for k in range(number):
                x, y = left[pair[first + k]], right[pair[first + k]]
                compose(composition, state, x, y, b, size, message, k)
            unpool(message, work, number, out, g, grad, g, b, product, size)
            for k in range(number):
                x, y = left[pair[first + k]], right[pair[first + k]]
                compose_grad(composition, state, x, y, b, size, message, k, total, flow)
