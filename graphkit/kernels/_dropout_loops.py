"""Compiled loops of :mod:`graphkit.kernels.dropout`; imported at the first call, for numba's sake.

Random numbers are a hash of (seed, row, column): no state, so any thread can do any row. One 32-bit hash
serves two elements, half a row apart so that both are read and written in vectors; 16 bits decide each.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from graphkit.kernels._spmm_loops import FAST

LINE = 1024  # elements that share a row key where x has no rows of its own
BLOCK = 64  # rows whose weight gradients are added up together, whichever thread does them
HALF = np.uint32(0xFFFF)
U16 = np.uint32(16)
U1, U27, U30, U31, U32 = np.uint64(1), np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
STEP = np.uint64(0x9E3779B97F4A7C15)
MIX_A, MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@njit(cache=True, nogil=True, inline="always")
def row_key(seed, row):
    """Returns 64 well mixed bits of ``(seed, row)``: output ``row`` of splitmix64 (Steele et al., 2014)."""
    z = seed + (np.uint64(row) + U1) * STEP
    z = (z ^ (z >> U30)) * MIX_A
    z = (z ^ (z >> U27)) * MIX_B
    return z ^ (z >> U31)


@intrinsic
def column_bits(typingctx, before, between, column):
    """Returns 32 bits for two elements of a row: the mixer "lowbias32" of C. Wellons, keyed twice.

    All arguments are uint32. Written in LLVM's operations since Numba widens them to 64 bits, whose products
    take several times as long in vectors.
    """
    word = types.uint32

    def generate(context, builder, signature, args):
        def constant(value):
            return ir.Constant(ir.IntType(32), value)

        def fold(h, by):
            return builder.xor(h, builder.lshr(h, constant(by)))

        before, between, column = args
        h = builder.mul(fold(builder.xor(column, before), 16), constant(0x7FEB352D))
        h = builder.mul(builder.add(fold(h, 15), between), constant(0x846CA68B))
        return fold(h, 16)

    return word(word, word, word), generate


@njit(cache=True, nogil=True)
def dropout_lines(start, stop, x, seed, threshold, scale, floor, y):
    """Writes ``max(keep * scale * x, floor)`` for lines ``start..stop`` of flat arrays; NaN stays NaN."""
    half = LINE // 2
    zero = x.dtype.type(0)
    # Bits have a place of their own and products precede the choice: so that all three loops run in vectors.
    bits = np.empty(half, np.uint32)
    for line in range(start, stop):
        key = row_key(seed, line)
        before, between = np.uint32(key), np.uint32(key >> U32)
        for c in range(half):
            bits[c] = column_bits(before, between, np.uint32(c))
        a, out = x[line * LINE : line * LINE + half], y[line * LINE : line * LINE + half]
        for c in range(a.shape[0]):
            scaled = a[c] * scale
            v = scaled if (bits[c] & HALF) >= threshold else zero
            out[c] = floor if v <= floor else v
        a, out = x[line * LINE + half : (line + 1) * LINE], y[line * LINE + half : (line + 1) * LINE]
        for c in range(a.shape[0]):
            scaled = a[c] * scale
            v = scaled if (bits[c] >> U16) >= threshold else zero
            out[c] = floor if v <= floor else v


@njit(cache=True, nogil=True)
def relu_grad(start, stop, grad, y, scale, out):
    """Writes ``scale * grad`` where ``y`` is positive (or NaN), else 0, for elements ``start..stop``."""
    zero = grad.dtype.type(0)
    for k in range(start, stop):
        g = grad[k] * scale
        out[k] = zero if y[k] <= 0 else g


@njit(cache=True, nogil=True, fastmath=FAST)
def norm_rows(start, stop, x, weight, bias, eps, seed, threshold, scale, y, mean, rstd):
    """Writes ``relu(keep * scale * layer_norm(x))`` and each row's mean and inverse deviation."""
    width = x.shape[1]
    half = (width + 1) // 2
    zero = x.dtype.type(0)
    size = x.dtype.type(width)
    for r in range(start, stop):
        total = zero
        for c in range(width):
            total += x[r, c]
        center = total / size
        total = zero
        for c in range(width):
            d = x[r, c] - center
            total += d * d
        inverse = x.dtype.type(1) / np.sqrt(total / size + eps)
        mean[r], rstd[r] = center, inverse
        key = row_key(seed, r)
        before, between = np.uint32(key), np.uint32(key >> U32)
        a, b, out_a, out_b = x[r, :half], x[r, half:], y[r, :half], y[r, half:]
        for c in range(width - half):
            h = column_bits(before, between, np.uint32(c))
            v = (a[c] - center) * inverse * weight[c] + bias[c]
            w = (b[c] - center) * inverse * weight[c + half] + bias[c + half]
            v = v * scale if (h & HALF) >= threshold else zero
            w = w * scale if (h >> U16) >= threshold else zero
            out_a[c] = zero if v <= zero else v
            out_b[c] = zero if w <= zero else w
        if 2 * half > width:
            c = half - 1
            h = column_bits(before, between, np.uint32(c))
            v = (a[c] - center) * inverse * weight[c] + bias[c]
            v = v * scale if (h & HALF) >= threshold else zero
            out_a[c] = zero if v <= zero else v


@njit(cache=True, nogil=True, fastmath=FAST)
def norm_grad_blocks(start, stop, grad, x, weight, y, mean, rstd, scale, grad_x, partial):
    """Writes the gradient of ``x`` and, a line for each block of rows, those of weight and bias."""
    rows, width = x.shape
    zero = x.dtype.type(0)
    size = x.dtype.type(width)
    for block in range(start, stop):
        for c in range(width):
            partial[block, 0, c] = zero
            partial[block, 1, c] = zero
        for r in range(block * BLOCK, min((block + 1) * BLOCK, rows)):
            center, inverse = mean[r], rstd[r]
            sum_g, sum_gx = zero, zero
            for c in range(width):
                g = zero if y[r, c] <= zero else grad[r, c] * scale
                hat = (x[r, c] - center) * inverse
                partial[block, 0, c] += g * hat
                partial[block, 1, c] += g
                g *= weight[c]
                grad_x[r, c] = g
                sum_g += g
                sum_gx += g * hat
            sum_g /= size
            sum_gx /= size
            for c in range(width):
                hat = (x[r, c] - center) * inverse
                grad_x[r, c] = (grad_x[r, c] - sum_g - hat * sum_gx) * inverse
