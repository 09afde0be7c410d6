"""Compiled loops of :mod:`graphkit.ppr`; imported at the first call, for numba's sake."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba import njit

DENSE = 8  # from one in so many entities on, all are read rather than some written to


@njit(cache=True, nogil=True)
def _push(rowptr, col, share, now, later, active, coming):
    """Carries ``share`` of the mass on the active entities to their neighbours, and clears ``now``.

    Returns:
        How many entities ``coming`` lists, those with mass in ``later``, and how much that is in all.
    """
    ahead, mass = 0, 0.0
    for e in active:
        degree = rowptr[e + 1] - rowptr[e]
        part = share * now[e] / max(degree, 1)
        now[e] = 0.0
        if part == 0.0:
            continue
        mass += part * degree
        for k in range(rowptr[e], rowptr[e + 1]):
            v = col[k]
            if later[v] == 0.0:
                coming[ahead] = v
                ahead += 1
            later[v] += part
    return ahead, mass


@njit(cache=True, nogil=True)
def _pull(rowptr, col, share, now, later, active, coming):
    """As :func:`_push`; every entity gathers from its neighbours, which are those that it would give to."""
    ahead, mass = 0, 0.0
    for e in active:
        now[e] *= share / max(rowptr[e + 1] - rowptr[e], 1)
    for v in range(rowptr.shape[0] - 1):
        got = 0.0
        for k in range(rowptr[v], rowptr[v + 1]):
            got += now[col[k]]
        if got > 0.0:
            later[v] = got
            mass += got
            coming[ahead] = v
            ahead += 1
    for e in active:
        now[e] = 0.0
    return ahead, mass


@njit(cache=True, nogil=True)
def choose(start, stop, seed, seed_ptr, rowptr, col, settings, entity, score, size, count, out_ptr, out_tail):
    """Scores the entities around the seeds of queries ``start`` to ``stop - 1`` and keeps the best of them.

    Mass that lies on few entities is carried from those alone, so that a query costs what it reaches.
    ``seed`` ``[S]`` int64 lists the seeds, ``rowptr`` and ``col`` the neighbours of each entity in either
    direction, ``out_ptr`` and ``out_tail`` the tails of each head's facts; ``settings`` are restart,
    tolerance, smallest score, steps and the most that are kept. Filled are ``entity`` ``[Q, n]`` int32
    (seeds, then the others in some order), ``score`` ``[Q, n]`` float64, ``size`` ``[Q]`` and ``count``
    ``[Q]`` int64, the entities kept and the facts among them.
    """
    nodes = rowptr.shape[0] - 1
    restart, tolerance, least, steps, most = settings
    total, now, later = np.zeros(nodes), np.zeros(nodes), np.zeros(nodes)
    reached, active, coming = (
        np.empty(nodes, np.int32),
        np.empty(nodes, np.int32),
        np.empty(nodes, np.int32),
    )
    kept = np.zeros(nodes, np.bool_)
    for q in range(start, stop):
        seeds = seed[seed_ptr[q] : seed_ptr[q + 1]]
        found, front = 0, 0
        for e in seeds:
            now[e] = restart / seeds.shape[0]
            active[front] = e
            front += 1
        for step in range(steps + 1):
            for at in range(front):
                e = active[at]
                if total[e] == 0.0:
                    reached[found] = e
                    found += 1
                total[e] += now[e]
            if step == steps:
                break
            step_args = (rowptr, col, 1.0 - restart, now, later, active[:front], coming)
            front, mass = _pull(*step_args) if front * DENSE > nodes else _push(*step_args)
            now, later = later, now
            active, coming = coming, active
            if mass < tolerance:
                for at in range(front):
                    e = active[at]
                    if total[e] == 0.0:
                        reached[found] = e
                        found += 1
                    total[e] += now[e]
                break
        for at in range(front):
            now[active[at]] = 0.0
        n = 0
        for e in seeds:
            entity[q, n], score[q, n] = e, total[e]
            kept[e] = True
            n += 1
        n = _take(reached[:found], total, least, kept, entity[q, : max(n, most)], score[q], n)
        facts = 0
        for at in range(n):
            e = entity[q, at]
            for k in range(out_ptr[e], out_ptr[e + 1]):
                facts += kept[out_tail[k]]
        size[q], count[q] = n, facts
        for at in range(found):
            total[reached[at]] = 0.0
        for at in range(n):
            kept[entity[q, at]] = False


@njit(cache=True, nogil=True)
def _largest(values, rank):
    """Returns the value with the given rank, 1 the largest, in linear time however many are equal."""
    while True:
        n = values.shape[0]
        a, b, c = values[0], values[n // 2], values[n - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        above = values[values > pivot]
        if rank <= above.shape[0]:
            values = above
            continue
        below = values[values < pivot]
        if rank <= n - below.shape[0]:
            return pivot
        rank -= n - below.shape[0]
        values = below


@njit(cache=True, nogil=True)
def _take(reached, total, least, kept, entity, score, n):
    """Appends the best entities not kept yet, the smaller id first among equals; returns how many are."""
    found = 0
    values = np.empty(reached.shape[0])
    ids = np.empty(reached.shape[0], np.int32)
    for e in reached:
        if not kept[e] and total[e] >= least:
            values[found], ids[found] = total[e], e
            found += 1
    room = min(found, entity.shape[0] - n)
    if room <= 0:
        return n
    bar, last = least, total.shape[0]
    if room < found:
        bar = _largest(values[:found], room)
        above, level, equal = 0, np.empty(found), 0
        for at in range(found):
            if values[at] > bar:
                above += 1
            elif values[at] == bar:
                level[equal] = -ids[at]
                equal += 1
        last = -_largest(level[:equal], room - above)
    for at in range(found):
        if values[at] > bar or (values[at] == bar and ids[at] <= last):
            entity[n], score[n] = ids[at], values[at]
            kept[ids[at]] = True
            n += 1
    return n


@njit(cache=True, nogil=True)
def induce(start, stop, entity, size, out_ptr, out_tail, out_relation, fact_ptr, head, tail, relation):
    """Writes the facts among the entities of each query from ``start`` on in local ids, head by head."""
    local = np.full(out_ptr.shape[0] - 1, -1, np.int32)
    for q in range(start, stop):
        for at in range(size[q]):
            local[entity[q, at]] = at
        f = fact_ptr[q]
        for at in range(size[q]):
            e = entity[q, at]
            for k in range(out_ptr[e], out_ptr[e + 1]):
                if local[out_tail[k]] >= 0:
                    head[f], tail[f], relation[f] = at, local[out_tail[k]], out_relation[k]
                    f += 1
        for at in range(size[q]):
            local[entity[q, at]] = -1
