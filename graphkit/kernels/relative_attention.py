r"""Attention whose scores and values read a feature vector of each pair, streamed over pairs (GRIT).

Ma et al., Graph Inductive Biases in Transformers without Message Passing, ICML 2023, section 3.2 and its
appendix. Written with whole matrices, a layer keeps a dozen tensors of the size of the pairs; here pairs go
through in chunks that fit the cache, nothing of them is kept but the result, and the backward pass computes
the rest anew, as it does attention's weights from the logarithm of their sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from graphkit.kernels import _relative_attention_torch as plain
from graphkit.kernels._relative_attention_layout import Arguments, Options, Outcome, arrange, collect
from graphkit.kernels.dropout import LEVELS
from graphkit.kernels.spmm import check_structure

__all__ = ["RelativeAttention", "relative_attention"]

# Bytes of a chunk's projections where the caller doesn't say: scratch that stays in a core's cache on CPU;
# elsewhere enough for a device to be busy with.
CPU_BYTES, DEVICE_BYTES = 1 << 20, 1 << 28


class RelativeAttention(NamedTuple):
    """What :func:`relative_attention` returns."""

    value: Tensor
    relation: Tensor
    pair: Tensor | None
    moments: Tensor | None


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pair: Tensor,
    rowptr: Tensor,
    key: Tensor,
    pair_weight: Tensor,
    pair_bias: Tensor,
    score_weight: Tensor,
    out_weight: Tensor | None = None,
    out_bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    update: bool = True,
    activation: Literal["relu", "none"] = "relu",
    clamp: float | None = 5.0,
    dropout: float = 0.0,
    pair_dropout: float = 0.0,
    seed: Tensor | None = None,
    sqrt_floor: float = 0.0,
    chunk_bytes: int | None = None,
) -> RelativeAttention:
    r"""Attends from queries to keys through features of their pairs, and updates these.

    For pair p of query i and key j, with ``d = H c`` channels in H heads side by side:

    .. math::
        e_p &= \text{scale} \odot \text{pair}_p + \text{shift} \\
        (w_p, b_p) &= W_E\, e_p + b_E \\
        \hat e_p &= \sigma\big(\rho((q_i + k_j) \odot w_p) + b_p\big), \quad
            \rho(t) = \text{sign}(t)\sqrt{|t|} \\
        \alpha_p^h &= \text{softmax}_{p \in i}\big(\text{clamp}(\langle A^h, \hat e_p^h \rangle)\big) \\
        \text{value}_i &= \sum_{p \in i} \alpha_p v_j, \quad
            \text{relation}_i = \sum_{p \in i} \alpha_p \hat e_p \\
        \text{pair}'_p &= e_p + W_O\, \hat e_p + b_O

    Args:
        q: ``[n, d]`` queries, floating point. Half precision is computed in float32 and rounded once.
        k: ``[n, d]`` keys.
        v: ``[n, d]`` values.
        pair: ``[P, d]`` features of pairs, before the normalisation that ``scale`` and ``shift`` stand for.
        rowptr: ``[n + 1]`` int64: pairs ``rowptr[i] ... rowptr[i + 1] - 1`` are query i's. A query without
            pairs gets zeros.
        key: ``[P]`` int32 in ``[0, n)``, the key of each pair.
        pair_weight: ``[2d, d]``, :math:`W_E`; its rows are ordered (head, {w, b}, channel of the head).
        pair_bias: ``[2d]``, :math:`b_E`.
        score_weight: ``[c, H]``, :math:`A`.
        out_weight: ``[d, d]``, :math:`W_O`; None for the identity.
        out_bias: ``[d]``, :math:`b_O`.
        scale: ``[d]``; None for ones.
        shift: ``[d]``; None for zeros.
        update: Whether to compute the new pairs and their moments.
        activation: :math:`\sigma`: "relu", or "none" for the identity.
        clamp: Largest absolute value of a score, beyond which its gradient is 0; None for no bound.
        dropout: Rate in [0, 1] of dropping attention weights :math:`\alpha`, for both sums alike.
        pair_dropout: Rate of dropping elements of :math:`\hat e` on their way to :math:`W_O`.
        seed: ``[1]`` int64, needed where a rate isn't 0. Rates are rounded to multiples of 1/65536.
        sqrt_floor: :math:`\epsilon` in :math:`\rho'(t) = 1 / (2 \sqrt{\max(|t|, \epsilon)})`, where
            :math:`\rho'(0)` is 0.
        chunk_bytes: Bytes of a chunk's :math:`(w, b)`, what bounds the working memory; by default 1 MB on
            CPU, 256 MB elsewhere. A query's pairs are in one chunk on CPU.

    Returns:
        ``value`` and ``relation`` ``[n, d]`` in the dtype of ``q``; ``pair`` ``[P, d]`` in float32 (float64
        if ``q`` is), and ``moments`` ``[2, d]`` float64, the sums of its rows and of their squares. The last
        two are None without ``update``. All are differentiable once in all floating-point arguments. The
        working precision is that of float32 (or float64) also under autocast.

    Raises:
        ValueError: If shapes, dtypes or options don't fit, or (on CPU) an id or row pointer is out of range.
    """
    _check_tensors(q, k, v, pair, rowptr, key)
    _check_weights(q.size(1), pair_weight, pair_bias, score_weight, out_weight, out_bias, scale, shift)
    drop, pair_drop = _check_options(activation, clamp, dropout, pair_dropout, seed, sqrt_floor, chunk_bytes)
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    if chunk_bytes is None:
        chunk_bytes = CPU_BYTES if q.device.type == "cpu" else DEVICE_BYTES
    rows = max(1, chunk_bytes // (2 * q.size(1) * work.itemsize))
    settings = (update, activation == "relu", math.inf if clamp is None else clamp, drop, pair_drop)
    value, relation, updated, moments, _ = _attention(
        *(x.to(work) for x in (q, k, v, pair)),
        rowptr,
        key,
        *(x.to(work) for x in (pair_weight, pair_bias, score_weight)),
        *(None if x is None else x.to(work) for x in (out_weight, out_bias, scale, shift)),
        seed,
        [float(number) for number in (*settings, sqrt_floor, rows)],
    )
    value, relation = value.to(q.dtype), relation.to(q.dtype)
    return RelativeAttention(value, relation, updated if update else None, moments if update else None)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, pair: Tensor, rowptr: Tensor, key: Tensor) -> None:
    check_structure(rowptr, key)
    if q.dim() != 2 or not q.is_floating_point():
        raise ValueError(f"q is {q.dtype} {tuple(q.shape)}; it must be floating point [n, d]")
    for name, x, shape in (
        ("k", k, tuple(q.shape)),
        ("v", v, tuple(q.shape)),
        ("pair", pair, (key.numel(), q.size(1))),
        ("rowptr", rowptr, (q.size(0) + 1,)),
    ):
        if x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; with q {tuple(q.shape)} it must be {shape}")


def _check_weights(
    width: int,
    pair_weight: Tensor,
    pair_bias: Tensor,
    score_weight: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> None:
    if score_weight.dim() != 2 or score_weight.numel() != width or width == 0:
        raise ValueError(
            f"score_weight has shape {tuple(score_weight.shape)}; it must be [c, H] with c H = {width} > 0"
        )
    if out_weight is None and out_bias is not None:
        raise ValueError("out_bias needs out_weight; without it the last linear map is the identity")
    for name, x, shape in (
        ("pair_weight", pair_weight, (2 * width, width)),
        ("pair_bias", pair_bias, (2 * width,)),
        ("out_weight", out_weight, (width, width)),
        ("out_bias", out_bias, (width,)),
        ("scale", scale, (width,)),
        ("shift", shift, (width,)),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {shape}")


def _check_options(
    activation: str,
    clamp: float | None,
    dropout: float,
    pair_dropout: float,
    seed: Tensor | None,
    sqrt_floor: float,
    chunk_bytes: int | None,
) -> tuple[int, int]:
    """Returns both rates in units of 1/65536."""
    if activation not in ("relu", "none"):
        raise ValueError(f'activation is "{activation}"; it must be "relu" or "none"')
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp is {clamp}; it must be positive, or None")
    if not sqrt_floor >= 0:
        raise ValueError(f"sqrt_floor is {sqrt_floor}; it must not be negative")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"chunk_bytes is {chunk_bytes}; it must be positive")
    for name, rate in (("dropout", dropout), ("pair_dropout", pair_dropout)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} is {rate}; it must be in [0, 1]")
    drop, pair_drop = round(dropout * LEVELS), round(pair_dropout * LEVELS)
    if (drop or pair_drop) and (seed is None or seed.shape != (1,) or seed.dtype != torch.int64):
        what = "None" if seed is None else f"{seed.dtype} {tuple(seed.shape)}"
        raise ValueError(f"seed is {what}; dropout needs int64 [1]")
    return drop, pair_drop


def _forward(engine: Any, given: Arguments, options: Options) -> tuple[Tensor, ...]:
    with torch.autocast(given.q.device.type, enabled=False):
        value, relation, *rest = engine.attend(arrange(given, engine.reorder), options)
        heads = given.score_weight.size(1)
        return engine.reorder(value, heads, True), engine.reorder(relation, heads, True), *rest


def _differentiate(engine: Any, given: Arguments, out: Outcome, options: Options) -> list[Tensor]:
    heads = given.score_weight.size(1)

    def turned(x: Tensor | None) -> Any:
        return None if x is None else engine.reorder(x, heads, False)

    with torch.autocast(given.q.device.type, enabled=False):
        sums = (turned(out.value), turned(out.relation))
        grads = (turned(out.grad_value), turned(out.grad_relation))
        out = Outcome(*sums, out.updated, out.lse, *grads, out.grad_updated, out.grad_moments)
        return collect(
            given, engine.attend_grad(arrange(given, engine.reorder), out, options), engine.reorder
        )


@torch.library.custom_op("graphkit::relative_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pair: Tensor,
    rowptr: Tensor,
    key: Tensor,
    pair_weight: Tensor,
    pair_bias: Tensor,
    score_weight: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    seed: Tensor | None,
    settings: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (pair_weight, pair_bias, score_weight, out_weight, out_bias)
    given = Arguments(q, k, v, pair, rowptr, key, *weights, scale, shift, seed)
    value, relation, updated, moments, lse = _forward(plain, given, Options.of(settings))
    return value, relation, updated, moments, lse


@_attention.register_kernel("cpu")
def _attention_cpu(*args: Any) -> tuple[Tensor, ...]:
    from graphkit.kernels import _relative_attention_cpu as cpu

    return _forward(cpu, Arguments(*args[:-1]), Options.of(args[-1]))


@_attention.register_fake
def _attention_fake(*args: Any) -> tuple[Tensor, ...]:
    given, options = Arguments(*args[:-1]), Options.of(args[-1])
    q, pair = given.q, given.pair
    rows, two = (pair.size(0), 2) if options.update else (0, 0)
    return (
        q.new_empty(q.shape),
        q.new_empty(q.shape),
        pair.new_empty(rows, pair.size(1)),
        q.new_empty(two, q.size(1), dtype=torch.float64),
        q.new_empty(q.size(0), given.score_weight.size(1)),
    )


@torch.library.custom_op("graphkit::relative_attention_grad", mutates_args=())
def _attention_grad(
    value: Tensor,
    relation: Tensor,
    updated: Tensor,
    lse: Tensor,
    grad_value: Tensor | None,
    grad_relation: Tensor | None,
    grad_updated: Tensor | None,
    grad_moments: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pair: Tensor,
    rowptr: Tensor,
    key: Tensor,
    pair_weight: Tensor,
    pair_bias: Tensor,
    score_weight: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    seed: Tensor | None,
    settings: Sequence[float],
) -> list[Tensor]:
    out = Outcome(value, relation, updated, lse, grad_value, grad_relation, grad_updated, grad_moments)
    weights = (pair_weight, pair_bias, score_weight, out_weight, out_bias)
    given = Arguments(q, k, v, pair, rowptr, key, *weights, scale, shift, seed)
    return _differentiate(plain, given, out, Options.of(settings))


@_attention_grad.register_kernel("cpu")
def _attention_grad_cpu(*args: Any) -> list[Tensor]:
    from graphkit.kernels import _relative_attention_cpu as cpu

    return _differentiate(cpu, Arguments(*args[8:-1]), Outcome(*args[:8]), Options.of(args[-1]))


@_attention_grad.register_fake
def _attention_grad_fake(*args: Any) -> list[Tensor]:
    given = Arguments(*args[8:-1])
    nothing = given.q.new_empty(0)
    known = (*given[:4], *given[6:13])
    return [nothing.clone() if x is None else x.new_empty(x.shape) for x in known]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.settings = inputs
    value, relation, updated, _, lse = output
    ctx.save_for_backward(value, relation, updated, lse, *tensors)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    saved, wanted = ctx.saved_tensors, ctx.needs_input_grad
    options = Options.of(ctx.settings)
    given = (*grads[:2], *(grads[2:4] if options.update else (None, None)))
    if all(g is None for g in given):
        return (None,) * len(wanted)
    found = _attention_grad(*saved[:4], *given, *saved[4:], ctx.settings)
    every = [*found[:4], None, None, *found[4:], None, None]
    if given[2] is None and given[3] is None:
        every[9] = every[10] = None  # the last linear map: only the new pairs depend on it
    return tuple(g if needed else None for g, needed in zip(every, wanted, strict=True))


_attention.register_autograd(_backward, setup_context=_setup)
