"""Compiled loops of the kernels over edges with features; imported at the first call, for numba's sake.

Edges lie in rows by target. ``kind[e]`` says which row of ``edge`` belongs to edge ``e``; where ``kind`` is
empty, row ``e`` does.
"""

# mypy: ignore-errors
# Numba infers the types of what it compiles, and its intrinsics lose an argument that mypy waits for.

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from graphkit.kernels._spmm_loops import FAST


@njit(cache=True, nogil=True)
def bad_kinds(kind, size):
    """Returns whether an entry lies outside ``[0, size)``."""
    bad = False
    for e in range(kind.shape[0]):
        bad |= kind[e] < 0 or kind[e] >= size
    return bad


# --- Sums of relu(x_j + e_ij) ------------------------------------------------------------------------------


@njit(cache=True, nogil=True, fastmath=FAST)
def relu_rows(start, stop, rowptr, col, kind, weight, own, loop, loop_weight, x, edge, y):
    """Writes ``y[r] = sum_e weight[e] * relu(x[col[e]] + edge[kind[e]]) + s_r`` for rows ``start..stop``.

    ``s_r`` is ``own * x[r]``, ``loop_weight[r] * relu(x[r] + loop)``, or nothing: what isn't empty.
    """
    width = x.shape[1]
    shared, weighted = kind.shape[0] > 0, weight.shape[0] > 0
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for r in range(start, stop):
        e, end = rowptr[r], rowptr[r + 1]
        if own.shape[0] > 0:
            w0 = own[0]
            for f in range(width):
                y[r, f] = w0 * x[r, f]
        elif loop.shape[0] > 0:
            w0 = loop_weight[r]
            for f in range(width):
                a = x[r, f] + loop[f]
                y[r, f] = w0 * (zero if a <= zero else a)  # NaN stays NaN
        else:
            for f in range(width):
                y[r, f] = zero
        while e + 2 <= end:  # two at a time: the row of the result is read and written half as often
            c0, c1 = np.uint64(col[e]), np.uint64(col[e + 1])
            k0, k1 = np.uint64(e), np.uint64(e + 1)
            if shared:
                k0, k1 = np.uint64(kind[e]), np.uint64(kind[e + 1])
            if weighted:
                w0, w1 = weight[e], weight[e + 1]
                for f in range(width):
                    a, b = x[c0, f] + edge[k0, f], x[c1, f] + edge[k1, f]
                    a, b = zero if a <= zero else a, zero if b <= zero else b
                    y[r, f] += w0 * a + w1 * b
            else:
                for f in range(width):
                    a, b = x[c0, f] + edge[k0, f], x[c1, f] + edge[k1, f]
                    a, b = zero if a <= zero else a, zero if b <= zero else b
                    y[r, f] += a + b
            e += 2
        if e < end:
            c0 = np.uint64(col[e])
            k0 = np.uint64(kind[e]) if shared else np.uint64(e)
            w0 = weight[e] if weighted else one
            for f in range(width):
                a = x[c0, f] + edge[k0, f]
                y[r, f] += w0 * (zero if a <= zero else a)


@njit(cache=True, nogil=True, fastmath=FAST)
def relu_rows_back(
    start,
    stop,
    rowptr,
    col,
    kind,
    weight,
    own,
    loop,
    loop_weight,
    x,
    edge,
    grad,
    grad_x,
    grad_edge,
    grad_own,
):
    """Adds the gradients of :func:`relu_rows` for the columns ``start..stop``, edge by edge.

    Without kinds each row of ``grad_edge`` is written once and may hold anything before. ``grad_own`` gets
    that of ``loop``, or that of ``own`` column by column.
    """
    shared, weighted = kind.shape[0] > 0, weight.shape[0] > 0
    zero, one = x.dtype.type(0), x.dtype.type(1)
    # A loop that writes to two arrays isn't run in vectors, nor is one whose index might be negative.
    size, first = stop - start, np.uint64(start)
    message = np.empty(size, x.dtype)
    for r in range(rowptr.shape[0] - 1):
        if own.shape[0] > 0:
            w = own[0]
            for i in range(size):
                grad_x[r, first + np.uint64(i)] += w * grad[r, first + np.uint64(i)]
            for i in range(size):
                f = first + np.uint64(i)
                grad_own[f] += grad[r, f] * x[r, f]
        elif loop.shape[0] > 0:
            w = loop_weight[r]
            for i in range(size):
                f = first + np.uint64(i)
                g = w * grad[r, f]
                message[i] = zero if x[r, f] + loop[f] <= zero else g
            for i in range(size):
                grad_x[r, first + np.uint64(i)] += message[i]
            for i in range(size):
                grad_own[first + np.uint64(i)] += message[i]
        for e in range(rowptr[r], rowptr[r + 1]):
            c = np.uint64(col[e])
            k = np.uint64(kind[e]) if shared else np.uint64(e)
            w = weight[e] if weighted else one
            for i in range(size):
                f = first + np.uint64(i)
                g = w * grad[r, f]
                message[i] = zero if x[c, f] + edge[k, f] <= zero else g
            for i in range(size):
                grad_x[c, first + np.uint64(i)] += message[i]
            if shared:
                for i in range(size):
                    grad_edge[k, first + np.uint64(i)] += message[i]
            else:
                for i in range(size):
                    grad_edge[k, first + np.uint64(i)] = message[i]


# --- Gated means -------------------------------------------------------------------------------------------


@intrinsic
def _power_of_two(typingctx, k):
    """Returns 2 to the power of a whole float32 from -126 to 126, by way of its exponent's bits."""
    if k != types.float32:
        return None

    def generate(context, builder, signature, args):
        real, word = ir.FloatType(), ir.IntType(32)
        # 1.5 * 2**23 + k has k in its lowest bits, which move to where the exponent is
        bits = builder.bitcast(builder.fadd(args[0], ir.Constant(real, 12582912.0)), word)
        bits = builder.add(builder.shl(bits, ir.Constant(word, 23)), ir.Constant(word, 127 << 23))
        return builder.bitcast(bits, real)

    return types.float32(types.float32), generate


def sigmoid(v):
    """Returns ``1 / (1 + exp(-v))``: in float32 operations that run in vectors, off by 1e-7 at most."""
    return 1.0 / (1.0 + math.exp(-v))


@overload(sigmoid, inline="always")
def _sigmoid(v):
    if v != types.float32:
        return sigmoid
    # 2^f on [-1/2, 1/2]: the series of exp(f ln 2), whose first term left out is below 2e-7
    one, log2e, low, high = np.float32(1), np.float32(-math.log2(math.e)), np.float32(-126), np.float32(126)
    half = np.float32(0.5)
    c1, c2, c3, c4, c5, c6 = (np.float32(math.log(2) ** k / math.factorial(k)) for k in range(1, 7))

    def single(v):
        t = v * log2e
        t = high if t > high else t
        t = low if t < low else t
        k = np.floor(t + half)
        f = t - k
        power = one + f * (c1 + f * (c2 + f * (c3 + f * (c4 + f * (c5 + f * c6)))))
        return one / (one + power * _power_of_two(k))

    return single


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def gate_rows(start, stop, rowptr, col, kind, nodes, edge, eps, y, z, mean, inverse):
    """Writes gates, their sums and the gated means for the rows ``start..stop``.

    ``nodes`` holds ``A x, B x, D x, E x`` side by side, each as wide as ``y``.
    """
    width = y.shape[1]
    two, three = np.uint64(2 * width), np.uint64(3 * width)
    shared = kind.shape[0] > 0
    zero, one = y.dtype.type(0), y.dtype.type(1)
    gate = np.empty(width, y.dtype)
    for r in range(start, stop):
        for f in range(width):
            mean[r, f] = zero
            inverse[r, f] = eps
        for e in range(rowptr[r], rowptr[r + 1]):
            c = np.uint64(col[e])
            k = np.uint64(kind[e]) if shared else np.uint64(e)
            for f in range(width):
                z[e, f] = edge[k, f] + (nodes[r, two + np.uint64(f)] + nodes[c, three + np.uint64(f)])
            for f in range(width):
                gate[f] = sigmoid(z[e, f])
            for f in range(width):
                inverse[r, f] += gate[f]
            for f in range(width):
                mean[r, f] += gate[f] * nodes[c, width + f]
        for f in range(width):
            i = one / inverse[r, f]
            m = mean[r, f] * i
            inverse[r, f] = i
            mean[r, f] = m
            y[r, f] = nodes[r, f] + m


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def gate_rows_back(
    start,
    stop,
    rowptr,
    col,
    kind,
    nodes,
    z,
    mean,
    inverse,
    grad_y,
    grad_z,
    grad_nodes,
    grad_edge,
):
    """Adds the gradients of :func:`gate_rows` for the columns ``start..stop``, edge by edge.

    An empty ``grad_z`` means zeros. Without kinds each row of ``grad_edge`` is written once.
    """
    width = mean.shape[1]
    shared, more = kind.shape[0] > 0, grad_z.shape[0] > 0
    one = mean.dtype.type(1)
    size, first = stop - start, np.uint64(start)  # as in relu_rows_back
    second, third, fourth = (
        first + np.uint64(width),
        first + np.uint64(2 * width),
        first + np.uint64(3 * width),
    )
    value, message = np.empty(size, mean.dtype), np.empty(size, mean.dtype)
    for r in range(rowptr.shape[0] - 1):
        for i in range(size):
            grad_nodes[r, first + np.uint64(i)] = grad_y[r, first + np.uint64(i)]
        for e in range(rowptr[r], rowptr[r + 1]):
            c = np.uint64(col[e])
            k = np.uint64(kind[e]) if shared else np.uint64(e)
            for i in range(size):
                f = first + np.uint64(i)
                gate = sigmoid(z[e, f])
                g = grad_y[r, f] * inverse[r, f] * gate
                value[i] = g
                message[i] = (one - gate) * (nodes[c, second + np.uint64(i)] - mean[r, f])
            for i in range(size):
                message[i] *= value[i]
            if more:
                for i in range(size):
                    message[i] += grad_z[e, first + np.uint64(i)]
            for i in range(size):
                grad_nodes[c, second + np.uint64(i)] += value[i]
            for i in range(size):
                grad_nodes[r, third + np.uint64(i)] += message[i]
            for i in range(size):
                grad_nodes[c, fourth + np.uint64(i)] += message[i]
            if shared:
                for i in range(size):
                    grad_edge[k, first + np.uint64(i)] += message[i]
            else:
                for i in range(size):
                    grad_edge[k, first + np.uint64(i)] = message[i]
