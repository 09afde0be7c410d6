"""Compiled loops of :mod:`graphkit.kernels.belief`; imported at the first call, for numba's sake.

Facets never meet, so every operation is one on vectors of ``LANES`` facets, which stand last in memory:
state ``[N, n F]`` of rows (coordinate, facet), matrix ``[R, n n F]`` of rows (out, in, facet). Sums over
coordinates are taken four at a time, since each addition waits for the one before.
"""

# mypy: ignore-errors
# Numba types loops at their calls, and its intrinsics lose an argument that mypy waits for.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

from graphkit.kernels import _belief_vectors as vec
from graphkit.kernels._belief_vectors import load, splat, store
from graphkit.kernels._spmm_loops import FAST

LANES = 8
# Options of functions that compiled code alone calls: wrappers for Python would take as long to compile.
INNER = {"cache": True, "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
UNROLLED = (4,)  # numbers of coordinates that loops are compiled for; for all others one form serves
EPS, FACTOR = 1e-18, 1e-18  # what is added to pooled minima, and to every factor of a product


class Plan(NamedTuple):
    """In which order nodes are updated, and from which edges.

    Attributes:
        ptr: ``[N + 1]`` int64; the edges into node v are ``ptr[v] ... ptr[v + 1] - 1``.
        edges: ``[2, E]`` int32, where each comes from, and its relation.
        out_ptr: ``[N + 1]`` int64, the same for edges out of a node.
        out: ``[E]`` int32, where these go.
        order: ``[N]`` int32, all nodes: first those that are updated once, sources of edges before their
            targets, then those that are updated in rounds.
        settled: How many are updated once.
        limit: ``[N]`` int32, in how many rounds a node of the other kind is updated.
        turns: The largest of these.
        degree: The largest number of edges into a node.
    """

    ptr: Any
    edges: Any
    out_ptr: Any
    out: Any
    order: Any
    settled: Any
    limit: Any
    turns: Any
    degree: Any


class Setting(NamedTuple):
    """What stays the same in all rounds of a copy.

    ``fixed`` ``[N]`` marks nodes that keep their beliefs, ``where`` ``[N]`` says in which row the beliefs of
    a node are read, and ``back`` in which their gradient is summed; ``message`` ``[degree, n LANES]`` and
    ``work`` ``[2, n LANES]`` float64 are scratch.
    """

    plan: Any
    matrix: Any
    fixed: Any
    where: Any
    back: Any
    message: Any
    work: Any
    product: Any
    size: Any


def size_of(n: int) -> Any:
    """Returns how ``n`` coordinates are handed to the loops: a tuple's length is known when they compile."""
    return (0,) * n if n in UNROLLED else n


def count(size):
    """Returns the number that :func:`size_of` was given."""
    return len(size) if isinstance(size, tuple) else size


@overload(count)
def _count(size):
    if isinstance(size, types.BaseTuple):
        return lambda size: len(size)
    return lambda size: size


@njit(**INNER, fastmath=FAST)
def pool(message, work, number, y, row, b, product, size):
    """Pools ``number`` >= 1 messages of lanes ``b ...`` and writes them, normalised, to a row of ``y``."""
    n, real = count(size), y.dtype.type
    width, total = y.shape[1] // n, splat(real(0), LANES)
    if not product:
        for p in range(n):
            low = load(message, 0, p * LANES, LANES)
            for k in range(1, number):
                low = vec.smaller(low, load(message, k, p * LANES, LANES))
            low = low + splat(real(EPS), LANES)
            total = total + low
            store(y, row, p * width + b, low)
    else:
        top = splat(-np.inf, LANES)
        for p in range(n):
            x, power = splat(1.0, LANES), splat(0.0, LANES)
            for k in range(number):
                x = x * vec.widen(load(message, k, p * LANES, LANES) + splat(real(FACTOR), LANES))
                power = vec.lowered(x, power)
                x = vec.lift(x)
            top = vec.larger(top, power)
            store(work, 0, p * LANES, x)
            store(work, 1, p * LANES, power)
        most = splat(0.0, LANES)
        for p in range(n):
            x = vec.times_power(load(work, 0, p * LANES, LANES), load(work, 1, p * LANES, LANES) - top)
            most = vec.larger(most, x)
            store(work, 0, p * LANES, x)
        most = splat(1.0, LANES) / most
        for p in range(n):
            x = vec.narrow(load(work, 0, p * LANES, LANES) * most, real(0))
            total = total + x
            store(y, row, p * width + b, x)
    total = splat(real(1), LANES) / total
    for p in range(n):
        store(y, row, p * width + b, load(y, row, p * width + b, LANES) * total)


@njit(**INNER, fastmath=FAST)
def unpool(message, work, number, y, row, grad, at, b, product, size):
    """Replaces messages by their gradients, from that of the pooled row; the first least takes it all."""
    n, real = count(size), y.dtype.type
    width, mean = y.shape[1] // n, splat(real(0), LANES)
    for p in range(n):
        mean = mean + load(grad, at, p * width + b, LANES) * load(y, row, p * width + b, LANES)
    if product:
        for p in range(n):
            g = load(grad, at, p * width + b, LANES) - mean
            g = g * load(y, row, p * width + b, LANES)
            for k in range(number):
                m = load(message, k, p * LANES, LANES) + splat(real(FACTOR), LANES)
                store(message, k, p * LANES, g / m)
        return
    total = splat(real(0), LANES)
    for p in range(n):
        low, place = load(message, 0, p * LANES, LANES), splat(real(0), LANES)
        for k in range(1, number):
            m = load(message, k, p * LANES, LANES)
            place = vec.first_least(low, m, place, real(k))
            low = vec.smaller(low, m)
        total = total + low + splat(real(EPS), LANES)
        store(work, 0, p * LANES, vec.widen(place))
    total = splat(real(1), LANES) / total
    for p in range(n):
        g = (load(grad, at, p * width + b, LANES) - mean) * total
        place = vec.narrow(load(work, 0, p * LANES, LANES), real(0))
        for k in range(number):
            store(message, k, p * LANES, vec.only_equal(place, real(k), g))


@njit(**INNER, fastmath=FAST)
def send(first, last, edges, where, matrix, message, state, b, size):
    """Writes the messages ``matrix[kind] state[where[tail]]`` of edges ``first ... last - 1``."""
    n = count(size)
    width = state.shape[1] // n
    for e in range(first, last):
        u, r, k = where[edges[0, e]], edges[1, e], e - first
        for p in range(0, n - 3, 4):
            at = p * n * width + b
            a = c = d = f = splat(state.dtype.type(0), LANES)
            for i in range(n):
                x, at_i = load(state, u, i * width + b, LANES), at + i * width
                a = a + load(matrix, r, at_i, LANES) * x
                c = c + load(matrix, r, at_i + n * width, LANES) * x
                d = d + load(matrix, r, at_i + 2 * n * width, LANES) * x
                f = f + load(matrix, r, at_i + 3 * n * width, LANES) * x
            store(message, k, p * LANES, a)
            store(message, k, (p + 1) * LANES, c)
            store(message, k, (p + 2) * LANES, d)
            store(message, k, (p + 3) * LANES, f)
        for p in range(n - n % 4, n):
            a = splat(state.dtype.type(0), LANES)
            for i in range(n):
                a = a + load(matrix, r, (p * n + i) * width + b, LANES) * load(state, u, i * width + b, LANES)
            store(message, k, p * LANES, a)


@njit(**INNER, fastmath=FAST)
def send_grad(first, last, edges, where, back, fixed, matrix, message, state, flow, total, row, b, size):
    """Adds what gradients of messages give to their matrices, ``total``, and to sources, ``flow``."""
    n = count(size)
    width = state.shape[1] // n
    for e in range(first, last):
        u, r, k = where[edges[0, e]], edges[1, e], e - first
        for p in range(n):
            g, at = load(message, k, p * LANES, LANES), p * n * width + b
            for i in range(n):
                x = g * load(state, u, i * width + b, LANES)
                store(total, row + r, at + i * width, load(total, row + r, at + i * width, LANES) + x)
        if fixed[edges[0, e]]:
            continue
        u = back[edges[0, e]]
        for i in range(0, n - 3, 4):
            a, c = load(flow, u, i * width + b, LANES), load(flow, u, (i + 1) * width + b, LANES)
            d, f = load(flow, u, (i + 2) * width + b, LANES), load(flow, u, (i + 3) * width + b, LANES)
            for p in range(n):
                g, at = load(message, k, p * LANES, LANES), (p * n + i) * width + b
                a = a + load(matrix, r, at, LANES) * g
                c = c + load(matrix, r, at + width, LANES) * g
                d = d + load(matrix, r, at + 2 * width, LANES) * g
                f = f + load(matrix, r, at + 3 * width, LANES) * g
            store(flow, u, i * width + b, a)
            store(flow, u, (i + 1) * width + b, c)
            store(flow, u, (i + 2) * width + b, d)
            store(flow, u, (i + 3) * width + b, f)
        for i in range(n - n % 4, n):
            a = load(flow, u, i * width + b, LANES)
            for p in range(n):
                a = a + load(matrix, r, (p * n + i) * width + b, LANES) * load(message, k, p * LANES, LANES)
            store(flow, u, i * width + b, a)


@njit(**INNER)
def update(setting, nodes, turn, state, new):
    """Updates nodes for the given round: their beliefs go to rows ``new + v`` of ``state``."""
    plan, matrix, fixed, where, _, message, work, product, size = setting
    ptr, edges, limit = plan.ptr, plan.edges, plan.limit
    for v in nodes:
        if fixed[v] or limit[v] < turn:
            continue
        first, last = ptr[v], ptr[v + 1]
        for b in range(0, state.shape[1] // count(size), LANES):
            send(first, last, edges, where, matrix, message, state, b, size)
            pool(message, work, last - first, state, new + v, b, product, size)


@njit(**INNER)
def update_grad(setting, nodes, turn, state, new, flow, at, total, row):
    """Takes gradients of ``update`` from rows ``at + v`` of ``flow`` to others of it and to ``total``."""
    plan, matrix, fixed, where, back, message, work, product, size = setting
    ptr, edges, limit = plan.ptr, plan.edges, plan.limit
    for i in range(nodes.shape[0] - 1, -1, -1):
        v = nodes[i]
        if fixed[v] or limit[v] < turn or is_zero(flow, at + v):
            continue
        first, last = ptr[v], ptr[v + 1]
        for b in range(0, state.shape[1] // count(size), LANES):
            send(first, last, edges, where, matrix, message, state, b, size)
            unpool(message, work, last - first, state, new + v, flow, at + v, b, product, size)
            send_grad(
                first, last, edges, where, back, fixed, matrix, message, state, flow, total, row, b, size
            )


@njit(cache=True, nogil=True)
def finite(x):
    """Tells whether all numbers of a matrix are finite."""
    some = False
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            some |= not np.isfinite(x[r, c])
    return not some


@njit(**INNER)
def is_zero(x, row):
    """Tells whether a row is zero; NaN isn't."""
    some = False
    for c in range(x.shape[1]):
        some |= x[row, c] != 0
    return not some


@njit(**INNER)
def fill(x, first, last, value):
    """Writes a number to rows ``first ... last - 1``."""
    for v in range(first, last):
        for c in range(x.shape[1]):
            x[v, c] = value


@njit(**INNER)
def copy(x, first, y, to):
    """Copies a row of ``x`` to one of ``y``."""
    for c in range(x.shape[1]):
        y[to, c] = x[first, c]


@njit(**INNER)
def begin(setting, anchors, state, base, everywhere):
    """Writes the beliefs before the first round to ``state`` and marks the nodes that keep them."""
    plan, fixed, n, real = setting.plan, setting.fixed, count(setting.size), state.dtype.type
    for v in range(fixed.shape[0]):
        fixed[v] = plan.ptr[v] == plan.ptr[v + 1]
    if everywhere:
        fill(state, base, base + fixed.shape[0], real(1.0 / n))
    for v in anchors:
        fixed[v] = True
        for c in range(state.shape[1]):
            state[base + v, c] = real(1) if c < state.shape[1] // n else real(0)


@njit(**INNER)
def make_setting(plan, matrix, product, size):
    """Returns a setting with room of its own."""
    nodes, width = plan.order.shape[0], count(size) * LANES
    where, back = np.arange(nodes), np.empty(nodes, np.int64)
    message, work = np.empty((plan.degree, width), matrix.dtype), np.empty((2, width), np.float64)
    return Setting(plan, matrix, np.empty(nodes, np.bool_), where, back, message, work, product, size)


@njit(**INNER)
def once(setting, state, base):
    """Updates the nodes that need it once, rows ``base + v``; where they are read stays as it is here."""
    for v in range(setting.where.shape[0]):
        setting.where[v] = setting.back[v] = base + v
    update(setting, setting.plan.order[: setting.plan.settled], 0, state, base)
