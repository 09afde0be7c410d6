"""The operations of :mod:`graphkit.kernels.relative_attention` in plain torch, for any device.

Chunks are of pairs, wherever a query's begin and end: nothing has to be known on the host. The softmax is
carried from chunk to chunk by the largest score so far, the sum of exponentials, and both weighted sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from graphkit.kernels._relative_attention_layout import Gradients, Inputs, Options, Outcome, zero_gradients
from graphkit.kernels.dropout import LEVELS, keep_mask

__all__ = ["PAIR_KEY", "attend", "attend_grad", "reorder"]

STEP = 0x9E3779B97F4A7C15  # between the row keys of dropout
PAIR_KEY = 0x5851F42D4C957F2D  # what tells the mask of pairs from that of weights


class Chunk(NamedTuple):
    """Pairs ``start..stop`` and what both passes compute of them; ``mask`` None for no dropout."""

    start: int
    stop: int
    query: Tensor  # [R]
    key: Tensor  # [R]
    moved: Tensor  # [R, d]: q_i + k_j
    gain: Tensor  # [R, d]
    root: Tensor  # [R, d]: signed root of their product
    ehat: Tensor  # [R, d]
    score: Tensor  # [R, H], before clamping
    mask: Tensor | None  # [R, H]: dropout's factors


def scale_of(threshold: int) -> float:
    """Returns what kept numbers are multiplied by."""
    return LEVELS / max(LEVELS - threshold, 1)


def factors(seed: Tensor, start: int, like: Tensor, threshold: int) -> Tensor:
    """Returns dropout's factors of ``like``, whose first row is pair row ``start``, as the loops do."""
    ahead = start * STEP & (1 << 64) - 1
    moved = seed + (ahead - (1 << 64) if ahead >> 63 else ahead)
    return keep_mask(moved, like.size(0), like.size(1), threshold).to(like.dtype) * scale_of(threshold)


def chunks(inputs: Inputs, options: Options) -> Iterator[Chunk]:
    """Yields the pairs in order."""
    q, heads, total = inputs.q, inputs.score_weight.size(1), inputs.pair.size(0)
    width = q.size(1)
    for start in range(0, total, options.rows):
        stop = min(start + options.rows, total)
        places = torch.arange(start, stop, device=q.device)
        query = torch.bucketize(places, inputs.rowptr[1:], right=True)
        key = inputs.key[start:stop].long()
        both = torch.addmm(inputs.pair_bias, inputs.pair[start:stop], inputs.pair_weight.t())
        moved, gain = q[query] + inputs.k[key], both[:, :width]
        t = moved * gain
        root = torch.copysign(t.abs().sqrt(), t)
        ehat = root + both[:, width:]
        ehat = ehat.relu() if options.rectify else ehat
        score = (ehat * inputs.score_weight.flatten()).view(stop - start, -1, heads).sum(1)
        mask = None
        if options.drop:
            assert inputs.seed is not None
            mask = factors(inputs.seed, start, score, options.drop)
        yield Chunk(start, stop, query, key, moved, gain, root, ehat, score, mask)


def reorder(x: Tensor, heads: int, back: bool) -> Tensor:
    """Reorders columns from (head, channel) to (channel, head), or back."""
    outer = x.size(1) // heads if back else heads
    return x.view(x.size(0), outer, x.size(1) // outer).transpose(1, 2).reshape(x.shape)


def by_head(weight: Tensor, x: Tensor) -> Tensor:
    """Multiplies the heads of ``x`` ``[R, d]`` by ``weight`` ``[R, H]``."""
    heads = weight.size(1)
    return (x.view(x.size(0), x.size(1) // heads, heads) * weight[:, None]).view(x.shape)


def attend(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns both sums ``[n, d]``, the new pairs, their moments (empty without update) and log-sum-exps."""
    q, pair = inputs.q, inputs.pair
    nodes, width, heads = q.size(0), q.size(1), inputs.score_weight.size(1)
    top, mass = q.new_full((nodes, heads), -torch.inf), q.new_zeros(nodes, heads)
    value, relation = q.new_zeros(nodes, width), q.new_zeros(nodes, width)
    updated = torch.empty_like(pair) if options.update else pair.new_empty(0, width)
    moments = pair.new_zeros(2 if options.update else 0, width, dtype=torch.float64)
    for chunk in chunks(inputs, options):
        score = chunk.score.clamp(-options.bound, options.bound)
        places = chunk.query[:, None].expand_as(score)
        higher = top.scatter_reduce(0, places, score, "amax")
        fading = torch.where(top == -torch.inf, 0, (top - higher).exp())
        top, p = higher, (score - higher[chunk.query]).exp()
        mass = (mass * fading).index_add_(0, chunk.query, p)
        p = p if chunk.mask is None else p * chunk.mask
        value = by_head(fading, value).index_add_(0, chunk.query, by_head(p, inputs.v[chunk.key]))
        relation = by_head(fading, relation).index_add_(0, chunk.query, by_head(p, chunk.ehat))
        if options.update:
            y = _updated(chunk, inputs, options)
            updated[chunk.start : chunk.stop] = y
            wide = y.double()
            moments += torch.stack([wide.sum(0), wide.square().sum(0)])
    inverse = torch.where(mass > 0, 1 / mass, 0)
    lse = torch.where(mass > 0, top + mass.log(), 0)
    return by_head(inverse, value), by_head(inverse, relation), updated, moments, lse


def _dropped(chunk: Chunk, inputs: Inputs, options: Options, x: Tensor) -> Tensor:
    if not options.pair_drop:
        return x
    assert inputs.seed is not None
    return x * factors(inputs.seed ^ PAIR_KEY, chunk.start, x, options.pair_drop)


def _updated(chunk: Chunk, inputs: Inputs, options: Options) -> Tensor:
    z = _dropped(chunk, inputs, options, chunk.ehat) @ inputs.out_weight.t()
    e = inputs.pair[chunk.start : chunk.stop]
    e = e if inputs.scale is None else e * inputs.scale
    return z + e if inputs.shift is None else z + (e + inputs.shift)


def attend_grad(inputs: Inputs, out: Outcome, options: Options) -> Gradients:
    """Returns the gradients; everything of a pair is computed anew from its log-sum-exp."""
    grads = zero_gradients(inputs)
    zeros = torch.zeros_like(inputs.q)
    grad_value = zeros if out.grad_value is None else out.grad_value
    grad_relation = zeros if out.grad_relation is None else out.grad_relation
    shape = (zeros.size(0), *inputs.score_weight.shape)
    mean = (grad_value * out.value + grad_relation * out.relation).view(shape).sum(1)
    weight = inputs.score_weight.flatten()
    floor = options.sqrt_floor**0.5
    for chunk in chunks(inputs, options):
        pull = grad_relation[chunk.query]
        p = (chunk.score.clamp(-options.bound, options.bound) - out.lse[chunk.query]).exp()
        dot = chunk.ehat * pull + grad_value[chunk.query] * inputs.v[chunk.key]
        dot = dot.view(-1, *shape[1:]).sum(1)
        kept, dot = (p, dot) if chunk.mask is None else (p * chunk.mask, dot * chunk.mask)
        slope = torch.where(chunk.score.abs() <= options.bound, p * (dot - mean[chunk.query]), 0)
        steep = by_head(slope, weight.expand_as(pull))
        g, outer = by_head(kept, pull) + steep, _outer(chunk, inputs, out, options, grads)
        g = g if outer is None else g + outer
        grads.score_weight.add_(by_head(slope, chunk.ehat).sum(0).view_as(grads.score_weight))
        g = torch.where(chunk.ehat > 0, g, 0) if options.rectify else g
        size = chunk.root.abs()
        back = g * torch.where(size == 0, 0, 0.5 / size.clamp(min=floor))
        both = torch.cat([back * chunk.moved, g], 1)
        back = back * chunk.gain
        grads.q.index_add_(0, chunk.query, back)
        grads.k.index_add_(0, chunk.key, back)
        grads.v.index_add_(0, chunk.key, by_head(kept, grad_value[chunk.query]))
        grads.pair_bias.add_(both.sum(0))
        grads.pair_weight.addmm_(both.t(), inputs.pair[chunk.start : chunk.stop])
        rest = both @ inputs.pair_weight
        if outer is None:
            grads.pair[chunk.start : chunk.stop] = rest
        else:
            grads.pair[chunk.start : chunk.stop] += rest
    return grads


def _outer(chunk: Chunk, inputs: Inputs, out: Outcome, options: Options, grads: Gradients) -> Tensor | None:
    """Returns the gradient of ehat through the new pairs, and adds to what only these depend on."""
    rows = slice(chunk.start, chunk.stop)
    if out.grad_updated is None and out.grad_moments is None:
        return None
    g = torch.zeros_like(chunk.ehat) if out.grad_updated is None else out.grad_updated[rows]
    if out.grad_moments is not None:
        slopes = out.grad_moments.to(g.dtype)
        g = g + (slopes[0] + 2 * slopes[1] * out.updated[rows])
    grads.shift.add_(g.sum(0))
    grads.scale.add_((g * inputs.pair[rows]).sum(0))
    grads.pair[rows] = g if inputs.scale is None else g * inputs.scale
    grads.out_weight.addmm_(g.t(), _dropped(chunk, inputs, options, chunk.ehat))
    return _dropped(chunk, inputs, options, g @ inputs.out_weight)
