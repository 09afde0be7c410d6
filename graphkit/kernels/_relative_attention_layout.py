"""Arguments of :mod:`graphkit.kernels.relative_attention` in the order of its loops, and gradients back.

The loops have the channels of heads in the order (channel of a head, head), the caller (head, channel). A
projection of ``pair * scale + shift`` is one of ``pair`` itself with another weight and bias, so what is
scaled and shifted is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Arguments", "Gradients", "Inputs", "Options", "Outcome", "arrange", "collect", "zero_gradients"]

# Reorders columns from (head, channel) to (channel, head), or back: (rows, heads, back) -> rows.
Reorder = Callable[[Tensor, int, bool], Tensor]


class Options(NamedTuple):
    """What is no tensor: as in :func:`~graphkit.kernels.relative_attention.relative_attention`, encoded.

    ``bound`` is infinite for no clamp; ``drop`` and ``pair_drop`` count rates in units of 1/65536; ``rows``
    is the number of pairs of a chunk.
    """

    update: bool
    rectify: bool
    bound: float
    drop: int
    pair_drop: int
    sqrt_floor: float
    rows: int

    @classmethod
    def of(cls, settings: Sequence[float]) -> Options:
        """Reads the numbers that an operation is given: one argument costs less than seven."""
        update, rectify, bound, drop, pair_drop, sqrt_floor, rows = settings
        return cls(bool(update), bool(rectify), bound, int(drop), int(pair_drop), sqrt_floor, int(rows))


class Arguments(NamedTuple):
    """Tensors as the caller has them."""

    q: Tensor
    k: Tensor
    v: Tensor
    pair: Tensor
    rowptr: Tensor
    key: Tensor
    pair_weight: Tensor
    pair_bias: Tensor
    score_weight: Tensor
    out_weight: Tensor | None
    out_bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    seed: Tensor | None


class Inputs(NamedTuple):
    """Tensors as the loops have them; rows of ``pair_weight`` are all w, then all b.

    ``scale`` and ``shift`` are those of the residual alone: the projection has them in its weight and bias,
    and ``shift`` has the bias of the last linear map.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pair: Tensor
    rowptr: Tensor
    key: Tensor
    pair_weight: Tensor
    pair_bias: Tensor
    score_weight: Tensor
    out_weight: Tensor
    scale: Tensor | None
    shift: Tensor | None
    seed: Tensor | None


class Gradients(NamedTuple):
    """Gradients of :class:`Inputs`."""

    q: Tensor
    k: Tensor
    v: Tensor
    pair: Tensor
    pair_weight: Tensor
    pair_bias: Tensor
    score_weight: Tensor
    out_weight: Tensor
    scale: Tensor
    shift: Tensor


class Outcome(NamedTuple):
    """Results of the forward pass and the gradients of four of them; None for no gradient."""

    value: Tensor
    relation: Tensor
    updated: Tensor
    lse: Tensor
    grad_value: Tensor | None
    grad_relation: Tensor | None
    grad_updated: Tensor | None
    grad_moments: Tensor | None


def zero_gradients(inputs: Inputs) -> Gradients:
    """Returns zeros for every gradient, that of ``pair`` not yet set."""

    def zeros(x: Tensor) -> Tensor:
        return x.new_zeros(x.shape)

    return Gradients(
        zeros(inputs.q),
        zeros(inputs.k),
        zeros(inputs.v),
        inputs.pair.new_empty(inputs.pair.shape),
        zeros(inputs.pair_weight),
        zeros(inputs.pair_bias),
        zeros(inputs.score_weight),
        zeros(inputs.out_weight),
        inputs.q.new_zeros(inputs.q.size(1)),
        inputs.q.new_zeros(inputs.q.size(1)),
    )


def arrange(given: Arguments, reorder: Reorder) -> Inputs:
    """Returns the arguments as the loops have them."""
    heads = given.score_weight.size(1)
    weight, bias = _w_and_b(given.pair_weight, heads), _w_and_b(given.pair_bias[:, None], heads)[:, 0]
    if given.shift is not None:
        bias = bias.addmv(weight, given.shift)
    # The identity takes channels from one order to the other, so it too is a matrix.
    last = (
        given.pair_weight.new_ones(given.q.size(1)).diag() if given.out_weight is None else given.out_weight
    )
    ends = [x for x in (given.shift, given.out_bias) if x is not None]
    return Inputs(
        reorder(given.q, heads, False),
        reorder(given.k, heads, False),
        reorder(given.v, heads, False),
        given.pair,
        given.rowptr,
        given.key,
        weight if given.scale is None else weight * given.scale,
        bias,
        given.score_weight,
        reorder(last, heads, False),
        given.scale,
        sum(ends[1:], ends[0]) if ends else None,
        given.seed,
    )


def collect(given: Arguments, grads: Gradients, reorder: Reorder) -> list[Tensor]:
    """Returns the gradients of all arguments but ``rowptr``, ``key`` and ``seed``; none for none is empty."""
    heads, width = given.score_weight.size(1), given.q.size(1)
    weight, bias, scale, shift = grads.pair_weight, grads.pair_bias, grads.scale, grads.shift
    if given.scale is not None or given.shift is not None:
        own = _w_and_b(given.pair_weight, heads)
        scale = scale + (weight * own).sum(0)
        shift = shift.addmv(own.t(), bias)
    if given.scale is not None:
        weight = weight * given.scale
    if given.shift is not None:
        weight = weight.addr(bias, given.shift)

    def in_order(rows: Tensor) -> Tensor:
        return rows.view(2, -1, heads, rows.size(1)).permute(2, 0, 1, 3).reshape(2 * width, rows.size(1))

    return [
        *(reorder(x, heads, True) for x in grads[:3]),
        grads.pair,
        in_order(weight),
        in_order(bias[:, None])[:, 0].clone(),
        grads.score_weight,
        # an operation may return no tensor twice
        weight.new_empty(0) if given.out_weight is None else reorder(grads.out_weight, heads, True),
        weight.new_empty(0) if given.out_bias is None else grads.shift,
        weight.new_empty(0) if given.scale is None else scale,
        weight.new_empty(0) if given.shift is None else shift,
    ]


def _w_and_b(rows: Tensor, heads: int) -> Tensor:
    """Reorders rows from (head, {w, b}, channel) to ({w, b}, channel, head)."""
    return rows.view(heads, 2, -1, rows.size(1)).permute(1, 2, 0, 3).reshape(rows.shape)
