"""Compiled sweeps of :mod:`graphkit.kernels.belief` over a graph; imported at the first call.

Where a graph has cycles, ``history`` holds the beliefs of all rounds: N rows a round of the copy at hand.
Several copies agree on what their anchors haven't reached yet: N more rows a round hold the beliefs without
any anchor, computed once, and a copy computes what its anchors reach, round by round.
"""

# mypy: ignore-errors
# Numba types loops at their calls, and its intrinsics lose an argument that mypy waits for.

from __future__ import annotations

import numpy as np
from numba import njit

from graphkit.kernels._belief_loops import (
    INNER,
    begin,
    copy,
    fill,
    is_zero,
    make_setting,
    once,
    update,
    update_grad,
)


@njit(**INNER)
def reach(plan, anchors, distance, queue, ends):
    """Finds the nodes that anchors reach within each number of rounds.

    Node ``queue[k]`` with ``k < ends[t]`` is at most t edges away; ``distance`` is -1 beyond the last round.
    """
    distance[:] = -1
    last, first = 0, 0
    for v in anchors:
        if distance[v] < 0:
            distance[v], queue[last] = 0, v
            last += 1
    ends[0] = last
    for turn in range(1, plan.turns + 1):
        stop = last
        while first < stop:
            u = queue[first]
            first += 1
            for k in range(plan.out_ptr[u], plan.out_ptr[u + 1]):
                v = plan.out[k]
                if distance[v] < 0:
                    distance[v], queue[last] = turn, v
                    last += 1
        ends[turn] = last


@njit(**INNER)
def place(v, turn, fixed, distance, nodes, shared):
    """Returns the row of ``history`` that has the beliefs of a node after a round."""
    row = v if fixed[v] else turn * nodes + v
    return row if 0 <= distance[v] <= turn else shared + row


@njit(**INNER)
def point(setting, turn, distance, shared, to):
    """Notes where beliefs after a round are read and their gradients summed, ``to`` being the copy's rows."""
    fixed, where, back = setting.fixed, setting.where, setting.back
    nodes = fixed.shape[0]
    for v in range(nodes):
        where[v] = place(v, turn, fixed, distance, nodes, shared)
        back[v] = to + v if 0 <= distance[v] <= turn else (2 + turn) * nodes + v


@njit(**INNER)
def make_history(setting, anchor, like, distance, queue, ends):
    """Returns rows for the beliefs of all rounds, those without anchor computed; and where these begin."""
    plan, nodes = setting.plan, setting.fixed.shape[0]
    rest, several = plan.order[plan.settled :], anchor.shape[0] > 1
    rows = (plan.turns + 1) * nodes if rest.shape[0] else 0
    history = np.empty((2 * rows if several else rows, like.shape[1]), like.dtype)
    if several and rows:
        begin(setting, anchor[0, :0], history, rows, True)
        distance[:] = -1
        for turn in range(1, plan.turns + 1):
            point(setting, turn - 1, distance, rows, 0)
            update(setting, rest, turn, history, rows + turn * nodes)
    elif rows:
        distance[:] = 0
        queue[: rest.shape[0]] = rest
        ends[:] = rest.shape[0]
    return history, rows


@njit(**INNER)
def run(setting, anchors, several, history, shared, distance, queue, ends):
    """Computes all rounds of a copy."""
    plan, nodes = setting.plan, setting.fixed.shape[0]
    begin(setting, anchors, history, 0, not several)
    if several:
        reach(plan, anchors, distance, queue, ends)
    for turn in range(1, plan.turns + 1):
        point(setting, turn - 1, distance, shared, 0)
        update(setting, queue[: ends[turn]], turn, history, turn * nodes)


@njit(cache=True, nogil=True)
def sweep(start, stop, plan, anchor, matrix, state, product, size):
    """Writes the beliefs of copies ``start ... stop - 1``, rows ``s N + v`` of ``state``."""
    nodes, setting = plan.order.shape[0], make_setting(plan, matrix, product, size)
    distance, queue = np.empty(nodes, np.int32), np.empty(nodes, np.int32)
    ends, several = np.empty(plan.turns + 1, np.int64), anchor.shape[0] > 1
    history, shared = make_history(setting, anchor, state, distance, queue, ends)
    for s in range(start, stop):
        base = s * nodes
        begin(setting, anchor[s], state, base, True)
        once(setting, state, base)
        if plan.settled == nodes:
            continue
        run(setting, anchor[s], several, history, shared, distance, queue, ends)
        for k in range(plan.settled, nodes):
            v = plan.order[k]
            copy(history, place(v, plan.limit[v], setting.fixed, distance, nodes, shared), state, base + v)


@njit(cache=True, nogil=True)
def sweep_grad(start, stop, chunks, plan, anchor, matrix, state, grad, total, product, size):
    """Adds each chunk of copies to its rows of ``total``, ``[chunks R, n n F]``; overwrites ``grad``.

    The rounds are computed again, one copy at a time, so that nobody has to keep them.
    """
    nodes, setting = plan.order.shape[0], make_setting(plan, matrix, product, size)
    distance, queue = np.empty(nodes, np.int32), np.empty(nodes, np.int32)
    ends, several = np.empty(plan.turns + 1, np.int64), anchor.shape[0] > 1
    history, shared = make_history(setting, anchor, state, distance, queue, ends)
    unused = np.empty((nodes, state.shape[1]), state.dtype)
    # two rounds of the copy at hand, then all rounds without anchor
    rows = 2 * nodes + (shared if several else 0)
    flow = np.empty((rows if shared else 0, state.shape[1]), state.dtype)
    zero, rest = state.dtype.type(0), plan.order[plan.settled :]
    for chunk in range(start, stop):
        row = chunk * matrix.shape[0]
        fill(flow, min(2 * nodes, flow.shape[0]), flow.shape[0], zero)
        for s in range(anchor.shape[0] * chunk // chunks, anchor.shape[0] * (chunk + 1) // chunks):
            base = s * nodes
            begin(setting, anchor[s], unused, 0, False)
            for v in range(nodes):
                setting.where[v] = setting.back[v] = base + v
            update_grad(setting, plan.order[: plan.settled], 0, state, base, grad, base, total, row)
            if plan.settled == nodes:
                continue
            run(setting, anchor[s], several, history, shared, distance, queue, ends)
            fill(flow, 0, 2 * nodes, zero)
            for turn in range(plan.turns, 0, -1):
                at, to = turn % 2 * nodes, (turn - 1) % 2 * nodes
                for v in rest:
                    if plan.limit[v] == turn and not is_zero(grad, base + v):
                        if 0 <= distance[v] <= turn:
                            copy(grad, base + v, flow, at + v)
                        else:
                            add(grad, base + v, flow, (2 + turn) * nodes + v)
                for k in range(ends[turn - 1]):
                    fill(flow, to + queue[k], to + queue[k] + 1, zero)
                point(setting, turn - 1, distance, shared, to)
                update_grad(setting, queue[: ends[turn]], turn, history, turn * nodes, flow, at, total, row)
        if not several or plan.settled == nodes:
            continue
        begin(setting, anchor[0, :0], unused, 0, False)
        distance[:] = -1
        for turn in range(plan.turns, 0, -1):
            point(setting, turn - 1, distance, shared, 0)
            new, at = shared + turn * nodes, (2 + turn) * nodes
            update_grad(setting, rest, turn, history, new, flow, at, total, row)


@njit(**INNER)
def add(x, first, y, to):
    """Adds a row of ``x`` to one of ``y``."""
    for c in range(x.shape[1]):
        y[to, c] += x[first, c]
