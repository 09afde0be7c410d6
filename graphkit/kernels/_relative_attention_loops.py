"""Compiled loops of :mod:`graphkit.kernels.relative_attention`; imported at the first call, for numba's sake.

Channels are ordered (channel of a head, head), so a vector holds the heads of one or a few channels: sums
over a head's channels are sums of vectors, and a weight a head multiplies every vector alike. ``first`` is
the pair row that row 0 of a chunk's scratch stands for.
"""

# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"
# Numba infers the types of what it compiles.

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from llvmlite.binding import get_host_cpu_features
from numba import njit

from graphkit.kernels import _relative_attention_vectors as vec
from graphkit.kernels._dropout_loops import HALF, U16, U32, column_bits, row_key
from graphkit.kernels._spmm_loops import FAST

BLOCK = 64  # rows that are added up in single precision

add, load, store, splat, fold = vec.add, vec.load, vec.store, vec.splat, vec.fold


class Loops(NamedTuple):
    """Loops compiled for a number of heads and of lanes."""

    attend: Any
    attend_grad: Any
    scatter: Any
    residual: Any
    residual_grad: Any


@functools.cache
def lanes_for(heads: int, width: int, itemsize: int) -> int:
    """Returns how many numbers to put in a vector: as many as a register has where that fits the heads."""
    room = (64 if get_host_cpu_features().get("avx512f") else 32) // itemsize
    lanes = heads
    while 2 * lanes <= room and width % (2 * lanes) == 0:
        lanes *= 2
    return lanes


@functools.cache
def loops(heads: int, lanes: int) -> Loops:
    """Returns the loops for ``heads`` heads in vectors of ``lanes``, a multiple of ``heads``."""
    return Loops(
        _attend(heads, lanes),
        _attend_grad(heads, lanes),
        _scatter(lanes),
        _residual(lanes),
        _residual_grad(lanes),
    )


def _attend(heads: int, lanes: int) -> Any:
    @njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
    def attend(
        start, stop, first, rowptr, key, q, k, v, bias, weight, floor, bound, seed, drop, rescale,
        both, z, score, value, relation, lse,
    ):  # fmt: skip
        """Writes ``z`` (ehat), and for queries ``start..stop`` both sums and scores' log-sum-exp."""
        real = q.dtype.type
        zero, one = splat(real(0), lanes), splat(real(1), lanes)
        width = q.shape[1]
        for i in range(start, stop):
            a, b = rowptr[i] - first, rowptr[i + 1] - first
            top = splat(real(-np.inf), lanes)
            for r in range(a, b):
                j = key[first + r]
                total = zero
                for c in range(0, width, lanes):
                    t = load(q, i, c, lanes) + load(k, j, c, lanes)
                    t = t * (load(both, r, c, lanes) + load(bias, 0, c, lanes))
                    u = load(both, r, width + c, lanes) + load(bias, 0, width + c, lanes)
                    u = vec.lower_bound(vec.signed_root(t) + u, floor)
                    store(z, r, c, u)
                    total = total + u * load(weight, 0, c, lanes)
                total = vec.clip(fold(total, heads), bound)
                store(score, r, 0, total)
                top = vec.larger(total, top)
            mass = zero
            for r in range(a, b):
                p = vec.exp(load(score, r, 0, lanes) - top)
                store(score, r, 0, p)
                mass = mass + p
            inverse = one / mass
            for c in range(0, width, lanes):
                store(value, i, c, zero)
                store(relation, i, c, zero)
            for r in range(a, b):
                p, j = load(score, r, 0, lanes) * inverse, key[first + r]
                if drop > 0:
                    bits = row_key(seed, first + r)
                    before, between = np.uint32(bits), np.uint32(bits >> U32)
                    p = p * vec.keep_heads(before, between, drop, rescale, heads, lanes)
                for c in range(0, width, lanes):
                    add(value, i, c, p * load(v, j, c, lanes))
                    add(relation, i, c, p * load(z, r, c, lanes))
            if a < b:
                vec.store_heads(lse, i, mass, heads)
                for h in range(heads):
                    lse[i, h] = np.log(lse[i, h])
                vec.store_heads(lse, i, vec.load_heads(lse, i, heads, lanes) + top, heads)
            else:
                vec.store_heads(lse, i, zero, heads)

    return attend


def _attend_grad(heads: int, lanes: int) -> Any:
    @njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
    def attend_grad(
        start, stop, first, origin, rowptr, key, q, k, v, bias, weight, floor, bound, least,
        seed, drop, rescale, value, relation, lse, grad_value, grad_relation,
        both, z, alpha, moved, outer, grad_q, sums,
    ):  # fmt: skip
        """Writes gradients of pairs for queries ``start..stop``, and sums of them over each query's pairs.

        Writes ``z`` (ehat), ``alpha`` (dropped out) and, over ``both``, its gradient. ``moved``, the gradient
        of ``q_i + k_j``, may hold the gradient of ehat through ``z`` (if ``outer``). ``sums`` of query i, in
        row ``i - origin``: gradients of ``bias``, then of ``weight``.
        """
        real = q.dtype.type
        zero = splat(real(0), lanes)
        width = q.shape[1]
        slope = np.empty((1, width), q.dtype)
        for i in range(start, stop):
            a, b = rowptr[i] - first, rowptr[i + 1] - first
            o = i - origin
            mean = zero
            for c in range(0, width, lanes):
                mean = mean + load(grad_value, i, c, lanes) * load(value, i, c, lanes)
                mean = mean + load(grad_relation, i, c, lanes) * load(relation, i, c, lanes)
                store(grad_q, i, c, zero)
                store(sums, o, c, zero)
                store(sums, o, width + c, zero)
                store(sums, o, 2 * width + c, zero)
            mean = fold(mean, heads)
            shift = vec.load_heads(lse, i, heads, lanes)
            for r in range(a, b):
                j = key[first + r]
                total, dot = zero, zero
                for c in range(0, width, lanes):
                    t = load(q, i, c, lanes) + load(k, j, c, lanes)
                    t = t * (load(both, r, c, lanes) + load(bias, 0, c, lanes))
                    u = load(both, r, width + c, lanes) + load(bias, 0, width + c, lanes)
                    root = vec.signed_root(t)
                    u = vec.lower_bound(root + u, floor)
                    store(z, r, c, u)
                    store(slope, 0, c, vec.inverse_size(root, least))
                    total = total + u * load(weight, 0, c, lanes)
                    dot = dot + u * load(grad_relation, i, c, lanes)
                    dot = dot + load(grad_value, i, c, lanes) * load(v, j, c, lanes)
                total, dot = fold(total, heads), fold(dot, heads)
                p = vec.exp(vec.clip(total, bound) - shift)
                kept = p
                if drop > 0:
                    bits = row_key(seed, first + r)
                    before, between = np.uint32(bits), np.uint32(bits >> U32)
                    mask = vec.keep_heads(before, between, drop, rescale, heads, lanes)
                    kept, dot = p * mask, dot * mask
                store(alpha, r, 0, kept)
                steep = vec.only_within(total, bound, p * (dot - mean))
                for c in range(0, width, lanes):
                    u = load(z, r, c, lanes)
                    g = kept * load(grad_relation, i, c, lanes) + steep * load(weight, 0, c, lanes)
                    if outer:
                        g = g + load(moved, r, c, lanes)
                    add(sums, o, 2 * width + c, steep * u)
                    g = vec.only_above(u, floor, g)
                    add(sums, o, width + c, g)
                    gain = load(both, r, c, lanes) + load(bias, 0, c, lanes)
                    t = g * load(slope, 0, c, lanes)
                    back, own = t * gain, t * (load(q, i, c, lanes) + load(k, j, c, lanes))
                    add(sums, o, c, own)
                    add(grad_q, i, c, back)
                    store(both, r, c, own)
                    store(both, r, width + c, g)
                    store(moved, r, c, back)

    return attend_grad


def _scatter(lanes: int) -> Any:
    @njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
    def scatter(start, stop, low, high, first, rowptr, key, alpha, moved, grad_value, grad_k, grad_v):
        """Adds the pairs of queries ``low..high`` to the gradients of their keys.

        ``start..stop`` are columns, in vectors.
        """
        for i in range(low, high):
            for p in range(rowptr[i], rowptr[i + 1]):
                r, j = p - first, key[p]
                for c in range(start * lanes, stop * lanes, lanes):
                    add(grad_k, j, c, load(moved, r, c, lanes))
                    add(grad_v, j, c, load(alpha, r, 0, lanes) * load(grad_value, i, c, lanes))

    return scatter


def _residual(lanes: int) -> Any:
    @njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
    def residual(start, stop, low, high, pair, affine, y, moments):
        """Adds ``pair * scale + shift`` to rows ``low..high`` of ``y``; adds up their moments in float64.

        ``start..stop`` are columns, in vectors; ``affine`` holds scale and shift.
        """
        for r in range(low, high):
            for c in range(start * lanes, stop * lanes, lanes):
                e = load(pair, r, c, lanes) * load(affine, 0, c, lanes) + load(affine, 1, c, lanes)
                u = load(y, r, c, lanes) + e
                store(y, r, c, u)
                wide = vec.widen(u)
                add(moments, 0, c, wide)
                add(moments, 1, c, wide * wide)

    return residual


def _residual_grad(lanes: int) -> Any:
    @njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
    def residual_grad(
        start, stop, low, high, grad, y, slopes, pair, affine, given, measured, outer, grad_pair, sums
    ):
        """Writes the gradient of rows ``low..high`` of the result, and what is left of it for ``pair``.

        It is ``grad`` (if ``given``) and, through moments (if ``measured``), ``slopes[0] + y slopes[1]``;
        scratch ``outer`` gets it, ``grad_pair`` that times ``scale``. ``sums`` (float64): those of it, and of
        its products with ``pair``. ``start..stop`` are columns, in vectors.
        """
        zero = splat(grad_pair.dtype.type(0), lanes)
        some = np.zeros((2, pair.shape[1]), pair.dtype)
        for top in range(low, high, BLOCK):
            for r in range(top, min(top + BLOCK, high)):
                for c in range(start * lanes, stop * lanes, lanes):
                    g = zero
                    if given:
                        g = load(grad, r, c, lanes)
                    if measured:
                        slope = load(slopes, 1, c, lanes)
                        g = g + (load(slopes, 0, c, lanes) + slope * load(y, r, c, lanes))
                    store(outer, r - low, c, g)
                    store(grad_pair, r, c, g * load(affine, 0, c, lanes))
                    add(some, 0, c, g)
                    add(some, 1, c, g * load(pair, r, c, lanes))
            for row in range(2):
                for c in range(start * lanes, stop * lanes, lanes):
                    add(sums, row, c, vec.widen(load(some, row, c, lanes)))
                    store(some, row, c, zero)

    return residual_grad


@njit(cache=True, nogil=True)
def cut(rowptr, rows):
    """Cuts queries into chunks of ``rows`` pairs, or of one query with more.

    Returns the queries at which chunks begin (and the end), and the most queries and pairs of a chunk.
    """
    bounds = [0]
    queries, pairs, last = 0, 0, rowptr.shape[0] - 1
    for i in range(1, last + 1):
        start = bounds[-1]
        if i == last or rowptr[i + 1] - rowptr[start] > rows:
            bounds.append(i)
            queries = max(queries, i - start)
            pairs = max(pairs, rowptr[i] - rowptr[start])
    return np.array(bounds), queries, pairs


@njit(cache=True, nogil=True)
def reorder(start, stop, x, outer, out):
    """Writes rows with their columns, in the order (outer, inner), in the order (inner, outer)."""
    inner = x.shape[1] // outer
    for r in range(start, stop):
        for b in range(inner):
            for a in range(outer):
                out[r, b * outer + a] = x[r, a * inner + b]


@njit(cache=True, nogil=True)
def add_rows(rows, count, total):
    """Adds the first rows to ``total`` (float64)."""
    for r in range(count):
        for c in range(total.shape[0]):
            total[c] += rows[r, c]


@njit(cache=True, nogil=True)
def drop_rows(start, stop, first, x, seed, threshold, scale):
    """Multiplies rows of ``x`` (row 0 is pair row ``first``) by their dropout factors."""
    width = x.shape[1]
    half = (width + 1) // 2
    zero = x.dtype.type(0)
    for r in range(start, stop):
        key = row_key(seed, first + r)
        before, between = np.uint32(key), np.uint32(key >> U32)
        a, b = x[r, :half], x[r, half:]
        for c in range(half):
            a[c] *= scale if (column_bits(before, between, np.uint32(c)) & HALF) >= threshold else zero
        for c in range(width - half):
            b[c] *= scale if (column_bits(before, between, np.uint32(c)) >> U16) >= threshold else zero
