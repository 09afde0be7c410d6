"""Compiled loops of :mod:`graphkit.kernels.overlap`; imported at the first call, for numba's sake.

A target is a pair of nodes. In each, one end is the *hub*, whose neighbours may be marked in a bit mask,
and the other is *probed*: its neighbours are looked up. Targets are taken in the order of their hubs, from
sorted keys ``hub << 32 | target``. The innermost loops count in unsigned numbers throughout: signed indices
are tested for Python's counting from the end, and a mixture of both would become floating point.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._spmm_loops import FAST

BIT = np.uint32(1)
FIVE = np.uint32(5)
LOW = np.uint32(31)
ONE = np.uint64(1)

COUNT, FILL, PACK = 0, 1, 2
SEARCH_RATIO = 16  # from here on, searching the longer list beats reading it


@njit(cache=True, nogil=True)
def plan(rowptr, first, second, seen, key, probe):
    """Chooses every target's hub; returns the longest probed list, or -1 if an id is out of range.

    Looking up a list costs its length, marking one twice its length, shared by all targets of the hub; the
    cheaper choice wins, so a node that occurs often becomes a hub even where its partners have longer lists.

    Args:
        rowptr: ``[N + 1]`` int64.
        first: ``[B]`` int64.
        second: ``[B]`` int64.
        seen: ``[N]`` int32 zeros, becomes the number of targets a node occurs in.
        key: ``[B]`` int64, filled with ``hub << 32 | target``.
        probe: ``[B]`` int32, filled with the other end.
    """
    nodes = rowptr.shape[0] - 1
    for b in range(first.shape[0]):
        i, j = first[b], second[b]
        if i < 0 or j < 0 or i >= nodes or j >= nodes:
            return -1
        seen[i] += 1
        seen[j] += 1
    widest = 0
    for b in range(first.shape[0]):
        i, j = first[b], second[b]
        size_i, size_j = rowptr[i + 1] - rowptr[i], rowptr[j + 1] - rowptr[j]
        if size_j + 2 * size_i / seen[i] > size_i + 2 * size_j / seen[j]:
            i, j, size_j = j, i, size_i
        key[b] = (i << 32) | b
        probe[b] = j
        widest = max(widest, size_j)
    return widest


@njit(cache=True, nogil=True)
def arrange(key, probe, rowptr, begin, work):
    """Follows the chain of ids once, many targets at a time: the search then reads what lies in order.

    Args:
        key: ``[B]`` int64, sorted.
        probe: ``[B]`` int32, by target.
        rowptr: ``[N + 1]`` int64.
        begin: ``[B]`` int64, filled: where the probed list starts, by place in ``key``.
        work: ``[B + 1]`` int64, filled: running sum of the probed lengths.
    """
    work[0] = 0
    for t in range(key.shape[0]):
        p = probe[key[t] & 0xFFFFFFFF]
        begin[t] = rowptr[p]
        work[t + 1] = rowptr[p + 1] - rowptr[p]
    for t in range(key.shape[0]):
        work[t + 1] += work[t]


@njit(cache=True, nogil=True)
def _mark(col, e, end, mask):
    while e < end:
        c = np.uint32(col[e])
        mask[c >> FIVE] |= np.uint32(BIT << (c & LOW))
        e += ONE


@njit(cache=True, nogil=True)
def _unmark(col, e, end, mask):
    while e < end:
        mask[np.uint32(col[e]) >> FIVE] = np.uint32(0)
        e += ONE


@njit(cache=True, nogil=True)
def _count_marked(col, e, end, mask):
    """Returns how many ids of a range have their bit set; the form that LLVM turns into vector gathers."""
    total = np.uint32(0)
    first = np.int64(e)
    for k in range(np.int64(end) - first):
        c = np.uint32(col[np.uint64(first + k)])
        total = np.uint32(total + ((mask[np.uint64(c >> FIVE)] >> (c & LOW)) & BIT))
    return np.int64(total)


@njit(cache=True, nogil=True)
def _list_marked(col, e, end, mask, out, used, limit):
    """Writes the ids of a range whose bit is set to ``out[used:limit]``; returns the end of what was written.

    Every id is written, and kept by moving on: no branch depends on the data until the last place is filled.
    """
    while e < end and used < limit:
        c = np.uint32(col[e])
        out[used] = col[e]
        used += np.uint64((mask[c >> FIVE] >> (c & LOW)) & BIT)
        e += ONE
    return used


@njit(cache=True, nogil=True)
def _merge(col, a, a_end, b, b_end, out, used, limit):
    """Writes the ids that both sorted ranges hold, as :func:`_list_marked` does."""
    while a < a_end and b < b_end and used < limit:
        x, y = col[a], col[b]
        out[used] = x
        used += np.uint64(x == y)
        a += np.uint64(x <= y)
        b += np.uint64(y <= x)
    return used


@njit(cache=True, nogil=True)
def _gallop(col, a, a_end, b, b_end, out, used, limit):
    """As :func:`_merge`, for a much shorter first range: doubling steps, then bisection, in the other."""
    while a < a_end and b < b_end and used < limit:
        x = col[a]
        low, step = b, ONE
        while b + step < b_end and col[b + step] < x:
            low = b + step
            step += step
        high = min(b + step, b_end)
        while low < high:
            middle = (low + high) >> ONE
            if col[middle] < x:
                low = middle + ONE
            else:
                high = middle
        b = low
        if b < b_end and col[b] == x:
            out[used] = x
            used += ONE
        a += ONE
    return used


@njit(cache=True, nogil=True)
def _intersect_lists(col, a, a_end, b, b_end, out, used, limit):
    """Chooses between merging and searching."""
    if (b_end - b) > SEARCH_RATIO * (a_end - a):
        return _gallop(col, a, a_end, b, b_end, out, used, limit)
    if (a_end - a) > SEARCH_RATIO * (b_end - b):
        return _gallop(col, b, b_end, a, a_end, out, used, limit)
    return _merge(col, a, a_end, b, b_end, out, used, limit)


@njit(cache=True, nogil=True)
def _marks_pay(t, stop, key, work, size):
    """Returns the end of the targets that share a hub with ``t`` and whether to mark that hub."""
    node = key[t] >> 32
    alone, masked = 0, 2 * size
    while t < stop and key[t] >> 32 == node:
        count = work[t + 1] - work[t]
        less, more = min(count, size), max(count, size)
        # A step of a merge mispredicts and costs about two look-ups; a search about a dozen.
        alone += 2 * min(less + more, 12 * less)
        masked += count
        t += 1
    return t, masked < alone


@njit(cache=True, nogil=True)
def intersect(mode, t, stop, key, begin, work, rowptr, col, mask, length, ptr, out):
    """Finds the common neighbours of targets ``t``, ``t + 1``, ... in the order of ``key``.

    Args:
        mode: COUNT fills ``length`` only; FILL writes target ``b`` to ``out[ptr[b]:]``, knowing ``length``;
            PACK fills ``length`` and writes lists one after the other until ``out`` may not hold the next.
        t: First target, a place in ``key``.
        stop: End of the targets.
        key: ``[B]`` int64, sorted.
        begin: ``[B]`` int64, from :func:`arrange`.
        work: ``[B + 1]`` int64, from :func:`arrange`.
        rowptr: ``[N + 1]`` int64.
        col: ``[E]`` int32.
        mask: ``[ceil(N / 32)]`` uint32, all zero before and after.
        length: ``[B]`` int64, by the target's number.
        ptr: ``[B + 1]`` int64, read by FILL.
        out: int32; COUNT and PACK want at least one place more than the longest probed list.

    Returns:
        The first target that was not done (or ``stop``).
    """
    used = 0
    while t < stop:
        node = key[t] >> 32
        h, h_end = np.uint64(rowptr[node]), np.uint64(rowptr[node + 1])
        group, marks = _marks_pay(t, stop, key, work, rowptr[node + 1] - rowptr[node])
        if marks:
            _mark(col, h, h_end, mask)
        room = True
        while t < group:
            b = key[t] & 0xFFFFFFFF
            p = np.uint64(begin[t])
            p_end = p + np.uint64(work[t + 1] - work[t])
            at, limit = np.uint64(used), np.uint64(used) + (p_end - p)
            if mode == PACK and limit >= np.uint64(out.shape[0]):
                room = False
                break
            if mode == FILL:
                at = np.uint64(ptr[b])
                limit = at + np.uint64(length[b])
            if mode == COUNT and marks:
                length[b] = _count_marked(col, p, p_end, mask)
            elif marks:
                end = _list_marked(col, p, p_end, mask, out, at, limit)
                length[b] = np.int64(end - at)
            else:
                end = _intersect_lists(col, p, p_end, h, h_end, out, at, limit)
                length[b] = np.int64(end - at)
            if mode == PACK:
                used += length[b]
            t += 1
        if marks:
            _unmark(col, h, h_end, mask)
        if not room:
            break
    return t


@njit(cache=True, nogil=True)
def count_range(start, stop, key, begin, work, rowptr, col, length, widest):
    """Fills ``length`` for a range of targets."""
    mask = np.zeros((rowptr.shape[0] + 30) // 32, np.uint32)
    scratch = np.empty(widest + 1, np.int32)
    intersect(COUNT, start, stop, key, begin, work, rowptr, col, mask, length, length, scratch)


@njit(cache=True, nogil=True)
def fill_range(start, stop, key, begin, work, rowptr, col, length, ptr, cn):
    """Writes the lists of a range of targets to their places in ``cn``."""
    mask = np.zeros((rowptr.shape[0] + 30) // 32, np.uint32)
    intersect(FILL, start, stop, key, begin, work, rowptr, col, mask, length, ptr, cn)


@njit(cache=True, nogil=True)
def pool_range(start, stop, key, begin, work, rowptr, col, length, widest, x, z):
    """Sums ``x`` over the common neighbours of a range of targets, a cache-sized block of lists at a time."""
    mask = np.zeros((rowptr.shape[0] + 30) // 32, np.uint32)
    scratch = np.empty(16384 + 2 * widest, np.int32)
    t = start
    while t < stop:
        done = intersect(PACK, t, stop, key, begin, work, rowptr, col, mask, length, length, scratch)
        _pool_lists(t, done, key, length, scratch, x, z)
        t = done


@njit(cache=True, nogil=True, fastmath=FAST)
def _pool_lists(t, stop, key, length, ids, x, z):
    """Writes the sums of lists that lie one after the other in ``ids``."""
    width = x.shape[1]
    k = 0
    while t < stop:
        b = np.uint64(key[t] & 0xFFFFFFFF)
        end = k + length[b]
        for f in range(width):
            z[b, f] = 0
        while k + 4 <= end:
            c0, c1 = np.uint64(ids[k]), np.uint64(ids[k + 1])
            c2, c3 = np.uint64(ids[k + 2]), np.uint64(ids[k + 3])
            for f in range(width):
                z[b, f] += (x[c0, f] + x[c1, f]) + (x[c2, f] + x[c3, f])
            k += 4
        while k < end:
            c0 = np.uint64(ids[k])
            for f in range(width):
                z[b, f] += x[c0, f]
            k += 1
        t += 1


@njit(cache=True, nogil=True)
def complement(start, stop, nodes, rowptr, col, cn_ptr, cn, ptr, out):
    """Writes the neighbours of ``nodes[b]`` that aren't in list ``b`` of ``cn``, a sorted subset of them."""
    for b in range(start, stop):
        e, end = np.uint64(rowptr[nodes[b]]), np.uint64(rowptr[nodes[b] + 1])
        at = np.uint64(ptr[b])
        for k in range(cn_ptr[b], cn_ptr[b + 1]):
            while col[e] != cn[k]:
                out[at] = col[e]
                at += ONE
                e += ONE
            e += ONE
        while e < end:
            out[at] = col[e]
            at += ONE
            e += ONE
