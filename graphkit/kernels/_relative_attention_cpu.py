"""The operations of :mod:`graphkit.kernels.relative_attention` on CPU: matrix products and compiled loops.

A chunk is so many queries that its scratch stays in cache; it runs through projection, attention, last
linear map and residual before the next one starts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels import _relative_attention_loops as compiled
from graphkit.kernels._relative_attention_layout import Gradients, Inputs, Options, Outcome, zero_gradients
from graphkit.kernels._relative_attention_torch import PAIR_KEY, scale_of
from graphkit.kernels._spmm_loops import bad_csr
from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges, weighted_bounds
from graphkit.kernels.spmm import check_ids, to_numpy

__all__ = ["attend", "attend_grad", "reorder"]

MASK = (1 << 64) - 1


class Plan:
    """Arrays and numbers as the compiled loops take them, and where the chunks begin and end."""

    def __init__(self, inputs: Inputs, options: Options) -> None:
        q, self.heads = inputs.q, inputs.score_weight.size(1)
        self.nodes, self.width = q.shape
        self.rowptr, self.key, self.pair = (to_numpy(x) for x in (inputs.rowptr, inputs.key, inputs.pair))
        self.real = real = self.pair.dtype.type
        self.lanes = compiled.lanes_for(self.heads, self.width, self.pair.itemsize)
        self.loops = compiled.loops(self.heads, self.lanes)
        self.units = self.width // self.lanes
        self.arrays = (
            *(self.rowptr, to_numpy(inputs.key), *(to_numpy(x) for x in inputs[:3])),
            to_numpy(inputs.pair_bias)[None],
            to_numpy(inputs.score_weight).reshape(1, -1),
            real(0 if options.rectify else -np.inf),
            real(options.bound),
        )
        seed = 0 if inputs.seed is None else int(inputs.seed) & MASK
        self.drop = (np.uint64(seed), np.uint32(options.drop), real(scale_of(options.drop)))
        pair_drop = (np.uint32(options.pair_drop), real(scale_of(options.pair_drop)))
        self.pair_drop = (np.uint64(seed ^ PAIR_KEY), *pair_drop) if options.pair_drop else None
        affine = inputs.q.new_zeros(2, self.width)
        affine[0] = 1 if inputs.scale is None else inputs.scale
        if inputs.shift is not None:
            affine[1] = inputs.shift
        self.affine = affine.numpy()
        cuts, self.longest, self.most = compiled.cut(self.rowptr, options.rows)
        self.cuts, self.ends = cuts.tolist(), self.rowptr[cuts].tolist()

    def chunks(self) -> Iterator[tuple[int, int, int, int]]:
        """Yields first query, last query + 1, first pair, last pair + 1."""
        for place in range(len(self.cuts) - 1):
            yield *self.cuts[place : place + 2], *self.ends[place : place + 2]

    def queries(self, a: int, b: int, pairs: int, steps: int) -> list[int]:
        """Cuts queries ``a..b`` for the threads; a pair takes ``steps`` steps a channel."""
        parts = num_parts(pairs * self.width * steps)
        return [a, b] if parts == 1 else [a + k for k in weighted_bounds(self.rowptr[a : b + 1], parts)]

    def columns(self, pairs: int) -> list[int]:
        """Cuts columns, in vectors."""
        return even_bounds(self.units, min(self.units, num_parts(pairs * self.width)))

    def drop_rows(self, first: int, x: np.ndarray, rows: int) -> None:
        """Applies the dropout of pairs to the first rows of ``x``."""
        if self.pair_drop is not None:
            bounds = even_bounds(rows, num_parts(rows * self.width))
            run_ranges(compiled.drop_rows, bounds, first, x, *self.pair_drop)


def reorder(x: Tensor, heads: int, back: bool) -> Tensor:
    """As :func:`graphkit.kernels._relative_attention_torch.reorder`."""
    out = x.new_empty(x.shape)
    outer = x.size(1) // heads if back else heads
    bounds = even_bounds(x.size(0), num_parts(x.numel()))
    run_ranges(compiled.reorder, bounds, to_numpy(x), outer, out.numpy())
    return out


def attend(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As :func:`graphkit.kernels._relative_attention_torch.attend`."""
    check_ids(bad_csr(to_numpy(inputs.rowptr), to_numpy(inputs.key), inputs.q.size(0)), inputs.q.size(0))
    plan = Plan(inputs, options)
    q, pair, width = inputs.q, inputs.pair.contiguous(), plan.width
    value, relation = q.new_empty(q.shape), q.new_empty(q.shape)
    lse = q.new_empty(plan.nodes, plan.heads)
    updated = q.new_empty(pair.shape if options.update else (0, width))
    moments = torch.zeros(2 if options.update else 0, width, dtype=torch.float64)
    both, z, score = (q.new_empty(plan.most, size) for size in (2 * width, width, plan.lanes))
    dropped = z.numpy()
    given = (*plan.arrays, *plan.drop, both.numpy(), dropped, score.numpy())
    found = (value.numpy(), relation.numpy(), lse.numpy())
    rest = (plan.pair, plan.affine, updated.numpy(), moments.numpy())
    weight = inputs.pair_weight.t()
    last = inputs.out_weight.t()
    for a, b, low, high in plan.chunks():
        rows = high - low
        torch.mm(pair[low:high], weight, out=both[:rows])
        run_ranges(plan.loops.attend, plan.queries(a, b, rows, 2), low, *given, *found)
        if options.update:
            plan.drop_rows(low, dropped, rows)
            torch.mm(z[:rows], last, out=updated[low:high])
            run_ranges(plan.loops.residual, plan.columns(rows), low, high, *rest)
    return value, relation, updated, moments, lse


def attend_grad(inputs: Inputs, out: Outcome, options: Options) -> Gradients:
    """As :func:`graphkit.kernels._relative_attention_torch.attend_grad`."""
    plan, grads = Plan(inputs, options), zero_gradients(inputs)
    q, pair, width = inputs.q, inputs.pair.contiguous(), plan.width
    through = out.grad_updated is not None or out.grad_moments is not None
    both, z, moved, alpha = (q.new_empty(plan.most, w) for w in (2 * width, width, width, plan.lanes))
    sums, total = np.empty((plan.longest, 3 * width), plan.real), np.zeros(3 * width)
    wanted = [to_numpy(torch.zeros_like(q) if g is None else g) for g in (out.grad_value, out.grad_relation)]
    given = (*plan.arrays, plan.real(options.sqrt_floor**0.5), *plan.drop)
    known = (*(to_numpy(x) for x in (out.value, out.relation, out.lse)), *wanted)
    scratch = (both.numpy(), z.numpy(), alpha.numpy(), moved.numpy(), through)
    found = (grads.q.numpy(), sums)
    ends = (plan.rowptr, plan.key, *scratch[2:4], wanted[0], grads.k.numpy(), grads.v.numpy())
    weight, turned = inputs.pair_weight.t(), q.new_zeros(width, 2 * width)
    outer = _Outer(plan, inputs, out, grads, moved, z) if through else None
    for a, b, low, high in plan.chunks():
        rows = high - low
        some, slopes = pair[low:high], both[:rows]
        torch.mm(some, weight, out=slopes)
        if outer is not None:
            outer.pull(low, high)
        bounds = plan.queries(a, b, rows, 4)
        run_ranges(plan.loops.attend_grad, bounds, low, a, *given, *known, *scratch, *found)
        run_ranges(plan.loops.scatter, plan.columns(rows), a, b, low, *ends)
        compiled.add_rows(sums, b - a, total)
        turned.addmm_(some.t(), slopes)  # this way round the product is faster
        if outer is None:
            torch.mm(slopes, inputs.pair_weight, out=grads.pair[low:high])
        else:
            outer.push(low, high)
            grads.pair[low:high].addmm_(slopes, inputs.pair_weight)
    grads.pair_weight.copy_(turned.t())
    grads.pair_bias.copy_(torch.from_numpy(total[: 2 * width]))
    grads.score_weight.copy_(torch.from_numpy(total[2 * width :]).view_as(grads.score_weight))
    if outer is not None:
        grads.shift.copy_(outer.sums[0])
        grads.scale.copy_(outer.sums[1])
    return grads


class _Outer:
    """The part of the gradient that comes through the new pairs."""

    def __init__(
        self, plan: Plan, inputs: Inputs, out: Outcome, grads: Gradients, moved: Tensor, z: Tensor
    ) -> None:
        self.plan, self.weight, self.grads = plan, inputs.out_weight, grads
        self.moved, self.z = moved, z
        empty, slopes = moved.new_empty(0, plan.width), moved.new_zeros(2, plan.width)
        if out.grad_moments is not None:
            slopes[0], slopes[1] = out.grad_moments[0], 2 * out.grad_moments[1]
        self.outer = torch.empty_like(moved)
        self.sums = torch.zeros(2, plan.width, dtype=torch.float64)
        self.args = (
            to_numpy(empty if out.grad_updated is None else out.grad_updated),
            to_numpy(out.updated),
            slopes.numpy(),
            plan.pair,
            plan.affine,
            out.grad_updated is not None,
            out.grad_moments is not None,
            self.outer.numpy(),
            grads.pair.numpy(),
            self.sums.numpy(),
        )

    def pull(self, low: int, high: int) -> None:
        """Writes the gradient of ehat to ``moved``, and the residual's part of that of the old pairs."""
        plan, rows = self.plan, high - low
        run_ranges(plan.loops.residual_grad, plan.columns(rows), low, high, *self.args)
        torch.mm(self.outer[:rows], self.weight, out=self.moved[:rows])
        plan.drop_rows(low, self.moved.numpy(), rows)

    def push(self, low: int, high: int) -> None:
        """Adds to the gradient of the last linear map's weight, whose input ``z`` holds."""
        rows = high - low
        self.plan.drop_rows(low, self.z.numpy(), rows)
        self.grads.out_weight.addmm_(self.outer[:rows].t(), self.z[:rows])
