"""Compiled loops of :mod:`graphkit.kernels.tt_lookup`; imported at the first call, for numba's sake.

A train lies in one flat array. ``meta`` has a row of unsigned integers for each core: digits ``p``, left
rank ``r``, columns ``q``, right rank ``s``, where the core starts, all columns so far (``J = q_1 ... q_k``)
and where its product :math:`X_k` ``[J, s]`` starts in a stack. The last core is stored ``[p, q, r]``: its
blocks are then both what a product is multiplied by and what gradients are added to, along whole vectors.

Sizes and offsets are unsigned throughout, so that no index is tested for being negative.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"
# Numba infers the types of what it compiles, and its intrinsics lose an argument that mypy waits for.

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Sums may be regrouped and fused, but NaN and infinity keep their meaning: the training loop looks for them.
FAST = {"reassoc", "contract", "nsz", "arcp"}

U = np.uint64
ZERO, ONE, TWO, THREE, FOUR = U(0), U(1), U(2), U(3), U(4)
P, R, Q, S, CORE, COLUMNS, STACK = range(7)

RADIX_BITS = 11
AHEAD = 6  # rows between asking for a place in memory and using it


@njit(cache=True, nogil=True)
def sorting_keys(position, meta):
    """Returns what positions are sorted by, so that rows with the same prefix come together.

    These are the positions, but with three cores the second digit counts most: its blocks are by far the
    largest, so all work with one of them is done while it is in cache.
    """
    keys = position.copy()
    if meta.shape[0] == 3:
        p1, p2, p3 = meta[0, P], meta[1, P], meta[2, P]
        for b in range(keys.shape[0]):
            prefix = U(keys[b]) // p3
            first = prefix // p2
            second = prefix - first * p2
            keys[b] += np.int64((second * p1 + first) * p3) - np.int64(prefix * p3)
    return keys


@njit(cache=True, nogil=True)
def radix_sort(keys, bits):
    """Sorts keys in ``[0, 2**bits)`` and returns them and where each came from, stable.

    The argument's memory is used for the result.
    """
    count = keys.shape[0]
    place = np.arange(count)
    sorted_, moved = keys, np.empty_like(place)
    spare = np.empty_like(keys)
    starts = np.empty((1 << RADIX_BITS) + 1, np.int64)
    for shift in range(0, bits, RADIX_BITS):
        starts[:] = 0
        for b in range(count):
            starts[((sorted_[b] >> shift) & ((1 << RADIX_BITS) - 1)) + 1] += 1
        for v in range(1 << RADIX_BITS):
            starts[v + 1] += starts[v]
        for b in range(count):
            v = (sorted_[b] >> shift) & ((1 << RADIX_BITS) - 1)
            at = starts[v]
            starts[v] = at + 1
            spare[at] = sorted_[b]
            moved[at] = place[b]
        sorted_, spare = spare, sorted_
        place, moved = moved, place
    return sorted_, place


def _tile(rows, vectors, size):
    """Makes the loop at the bottom of everything: ``C += A B`` for a few rows and columns, held in registers.

    Numba's own loops over so few columns spend more time on tests of overlap than on sums, so this one is
    written in LLVM's operations.

    Args:
        rows: Rows of A and C.
        vectors: Vectors in a row of B and C.
        size: Bytes of a vector.
    """

    @intrinsic
    def add_tile(typingctx, c, c0, cs, a, a0, am, ak, b, b0, bs, k):
        number = types.uint64

        def generate(context, builder, signature, args):
            c, c0, cs, a, a0, am, ak, b, b0, bs, k = args
            element = context.get_value_type(signature.args[0].dtype)
            bytes_ = context.get_abi_sizeof(element)
            lanes = size // bytes_
            vector = ir.VectorType(element, lanes)
            base_c, base_a, base_b = (
                context.make_array(kind)(context, builder, value=value).data
                for kind, value in ((signature.args[0], c), (signature.args[3], a), (signature.args[7], b))
            )

            def offset(start, index, stride):
                return builder.add(start, builder.mul(index, stride))

            def constant(value):
                return ir.Constant(ir.IntType(64), value)

            def at(base, place, shift):
                pointer = builder.gep(base, [builder.add(place, constant(shift * lanes))])
                return builder.bitcast(pointer, vector.as_pointer())

            cells = [(i, v) for i in range(rows) for v in range(vectors)]
            places = [offset(c0, constant(i), cs) for i in range(rows)]
            sums = {cell: cgutils.alloca_once(builder, vector) for cell in cells}
            for i, v in cells:
                builder.store(builder.load(at(base_c, places[i], v), align=bytes_), sums[i, v])
            with cgutils.for_range(builder, k) as loop:
                row = offset(b0, loop.index, bs)
                right = [builder.load(at(base_b, row, v), align=bytes_) for v in range(vectors)]
                column = offset(a0, loop.index, ak)
                for i in range(rows):
                    value = builder.load(builder.gep(base_a, [offset(column, constant(i), am)]))
                    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, constant(0))
                    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                    left = builder.shuffle_vector(single, single, zeros)
                    for v in range(vectors):
                        product = builder.fmul(left, right[v], flags=("contract",))
                        total = builder.fadd(builder.load(sums[i, v]), product, flags=("contract",))
                        builder.store(total, sums[i, v])
            for i, v in cells:
                builder.store(builder.load(sums[i, v]), at(base_c, places[i], v), align=bytes_)
            return context.get_dummy_value()

        return types.void(c, number, number, a, number, number, number, b, number, number, number), generate

    return add_tile


# Vectors of 32 bytes are what AVX2 has; other instruction sets get them in halves or pairs.
_four_by_two, _four_by_one, _four_by_half = _tile(4, 2, 32), _tile(4, 1, 32), _tile(4, 1, 16)
_one_by_two, _one_by_one, _one_by_half = _tile(1, 2, 32), _tile(1, 1, 32), _tile(1, 1, 16)


@njit(nogil=True, fastmath=FAST)
def _add_product(c, c0, cs, a, a0, am, ak, b, b0, bs, m, k, n):
    """Adds ``A [m, k] @ B [k, n]`` to ``C [m, n]``; rows of B and C are contiguous, A has any strides."""
    half = U(16 // c.itemsize)
    whole, double = TWO * half, FOUR * half
    i = ZERO
    while i < m:
        four = i + FOUR <= m
        at, left = c0 + i * cs, a0 + i * am
        f = ZERO
        while f + double <= n:
            if four:
                _four_by_two(c, at + f, cs, a, left, am, ak, b, b0 + f, bs, k)
            else:
                _one_by_two(c, at + f, cs, a, left, am, ak, b, b0 + f, bs, k)
            f += double
        if f + whole <= n:
            if four:
                _four_by_one(c, at + f, cs, a, left, am, ak, b, b0 + f, bs, k)
            else:
                _one_by_one(c, at + f, cs, a, left, am, ak, b, b0 + f, bs, k)
            f += whole
        if f + half <= n:
            if four:
                _four_by_half(c, at + f, cs, a, left, am, ak, b, b0 + f, bs, k)
            else:
                _one_by_half(c, at + f, cs, a, left, am, ak, b, b0 + f, bs, k)
            f += half
        step = FOUR if four else ONE
        while f < n:
            for e in range(step):
                total = c[at + e * cs + f]
                for t in range(k):
                    total += a[left + e * am + t * ak] * b[b0 + t * bs + f]
                c[at + e * cs + f] = total
            f += ONE
        i += step


@intrinsic
def _prefetch(typingctx, x, start, count):
    """Asks for ``x[start:start + count]`` to be brought into cache.

    Rows stand wherever their ids say; without this, waiting for them takes longer than computing them.
    """

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        per_line = 64 // context.get_abi_sizeof(context.get_value_type(signature.args[0].dtype))
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        step = ir.Constant(ir.IntType(64), per_line)
        with cgutils.for_range_slice(builder, step.type(0), args[2], step, intp=step.type) as (index, _):
            line = builder.bitcast(builder.gep(data, [builder.add(args[1], index)]), cgutils.voidptr_t)
            builder.call(function, [line, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(x, types.uint64, types.uint64), generate


@njit(nogil=True)
def _fill(x, start, count):
    zero = x.dtype.type(0)
    for f in range(count):
        x[start + f] = zero


@njit(nogil=True)
def _transpose(x, x0, xs, m, n, y, y0, ys):
    """Writes the transpose of ``X [m, n]`` as ``Y [n, m]``; ``xs`` and ``ys`` lie between rows."""
    if m == FOUR:
        for j in range(n):
            y[y0 + ys * j] = x[x0 + j]
            y[y0 + ys * j + ONE] = x[x0 + xs + j]
            y[y0 + ys * j + TWO] = x[x0 + TWO * xs + j]
            y[y0 + ys * j + THREE] = x[x0 + THREE * xs + j]
    else:
        for j in range(n):
            for i in range(m):
                y[y0 + j * ys + i] = x[x0 + i * xs + j]


@njit(nogil=True)
def _changed(prefix, digits, meta):
    """Splits a key's prefix into digits, in place, and returns the first core whose digit is another one."""
    inner = meta.shape[0] - 1
    first = inner
    for n in range(inner):
        k = n if inner == 2 else inner - 1 - n  # as sorting_keys puts them, the least significant first
        p = meta[k, P]
        above = prefix // p
        digit = prefix - above * p
        if digit != digits[k]:
            digits[k] = digit
            first = min(first, k)
        prefix = above
    return first


@njit(nogil=True)
def _push(first, digits, meta, data, stack):
    """Computes the products ``X_k`` from core ``first`` on."""
    for k in range(first, meta.shape[0] - 1):
        r, width, x = meta[k, R], meta[k, Q] * meta[k, S], meta[k, STACK]
        block = meta[k, CORE] + digits[k] * r * width
        if k == 0:
            for f in range(width):
                stack[x + f] = data[block + f]
        else:
            rows = meta[k - 1, COLUMNS]
            _fill(stack, x, rows * width)
            left = meta[k - 1, STACK]
            _add_product(stack, x, width, stack, left, r, ONE, data, block, width, rows, r, width)


@njit(nogil=True)
def _pull(first, digits, meta, turned, stack, slopes, grads):
    """Moves gradients of the products from the last one down to core ``first`` into cores and products below.

    ``turned`` holds the inner cores' blocks transposed, ``[p, q s, r]``.
    """
    k = meta.shape[0] - 1
    while k > first:
        k -= 1
        r, width, x = meta[k, R], meta[k, Q] * meta[k, S], meta[k, STACK]
        block = meta[k, CORE] + digits[k] * r * width
        if k == 0:
            for f in range(width):
                grads[block + f] += slopes[x + f]
            _fill(slopes, x, width)
        else:
            rows, left = meta[k - 1, COLUMNS], meta[k - 1, STACK]
            _add_product(grads, block, width, stack, left, ONE, r, slopes, x, width, r, rows, width)
            _add_product(slopes, left, r, slopes, x, width, ONE, turned, block, r, rows, width, r)
            _fill(slopes, x, rows * width)


@njit(cache=True, nogil=True)
def lookup(start, stop, meta, data, keys, place, out):
    """Writes the rows of ascending ``keys[start:stop]`` of :func:`sorting_keys` to ``out[place[b] * D:]``."""
    d = meta.shape[0]
    p, r, q, core = meta[d - 1, P], meta[d - 1, R], meta[d - 1, Q], meta[d - 1, CORE]
    rows, x = meta[d - 2, COLUMNS], meta[d - 2, STACK]
    padded = (rows + U(7)) // U(8) * U(8)  # whole vectors
    stack = np.empty(x + rows * r, data.dtype)
    product = np.zeros(r * padded, data.dtype)  # the last one, transposed: [r, J]
    columns = np.zeros(q * padded, data.dtype)  # a row of the table, [q_d, J]
    digits = np.full(d, ~ZERO)
    last = ~ZERO
    for b in range(start, stop):
        if b + AHEAD < stop:
            _prefetch(out, U(place[b + AHEAD]) * q * rows, q * rows)
        key = U(keys[b])
        prefix = key // p
        if prefix != last:
            last = prefix
            _push(_changed(prefix, digits, meta), digits, meta, data, stack)
            _transpose(stack, x, r, rows, r, product, ZERO, padded)
        block = core + (key - prefix * p) * q * r
        _fill(columns, ZERO, q * padded)
        _add_product(columns, ZERO, padded, data, block, r, ONE, product, ZERO, padded, q, r, padded)
        _transpose(columns, ZERO, padded, q, rows, out, U(place[b]) * q * rows, q)


@njit(cache=True, nogil=True)
def lookup_backward(first, stop, bounds, meta, data, turned, keys, place, grad, grads):
    """Adds gradients of the rows of each segment ``bounds[n]:bounds[n + 1]`` to ``grads[n]``.

    Segments are cut by sizes alone, so that sums are the same for any number of threads.
    """
    d = meta.shape[0]
    p, r, q, core = meta[d - 1, P], meta[d - 1, R], meta[d - 1, Q], meta[d - 1, CORE]
    rows, x = meta[d - 2, COLUMNS], meta[d - 2, STACK]
    stack = np.empty(x + rows * r, data.dtype)
    slopes = np.zeros(x + rows * r, data.dtype)
    total = np.empty(rows * q, data.dtype)
    digits, before = np.empty(d, np.uint64), np.empty(d, np.uint64)
    for n in range(first, stop):
        digits[:] = ~ZERO
        last = ~ZERO
        own = grads[n]
        b, end = bounds[n], bounds[n + 1]
        while b < end:
            if b + AHEAD < end:
                _prefetch(grad, U(place[b + AHEAD]) * q * rows, q * rows)
            key = U(keys[b])
            prefix = key // p
            if prefix != last:
                before[:] = digits
                changed = _changed(prefix, digits, meta)
                if last != ~ZERO:
                    _pull(changed, before, meta, turned, stack, slopes, own)
                last = prefix
                _push(changed, digits, meta, data, stack)
            source, at = grad, U(place[b]) * q * rows
            b += 1
            if b < end and U(keys[b]) == key:
                for f in range(rows * q):
                    total[f] = source[at + f]
                while b < end and U(keys[b]) == key:
                    at = U(place[b]) * q * rows
                    for f in range(rows * q):
                        total[f] += grad[at + f]
                    b += 1
                source, at = total, ZERO
            block = core + (key - prefix * p) * q * r
            _add_product(slopes, x, r, source, at, q, ONE, data, block, r, rows, q, r)
            _add_product(own, block, r, source, at, ONE, q, stack, x, r, q, rows, r)
        if last != ~ZERO:
            _pull(0, digits, meta, turned, stack, slopes, own)
