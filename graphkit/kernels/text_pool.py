r"""Attention over the tokens of texts, pooled where the tokens' states lie.

.. math:: a_{uj} = \mathrm{softmax}_j\, \langle v, H_{i_u j} \rangle, \qquad y_u = \sum_j a_{uj} H_{i_u j}

for the texts :math:`i_u` that are asked for, over the tokens that they have. The states of a language model
are wide and don't change, so they are read once in each direction, where they are, and only as far as texts
go; whatever projects them afterwards does so for one vector a text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges
from graphkit.kernels.spmm import to_numpy

__all__ = ["text_pool", "text_pool_torch"]


def text_pool(hidden: Tensor, mask: Tensor, text: Tensor, v: Tensor) -> Tensor:
    """Computes the formula above; a text without tokens is the plain mean of its L states.

    Args:
        hidden: ``[T, L, E]`` floating point, the states of all texts.
        mask: ``[T, L]`` bool, which are tokens.
        text: ``[U]`` int64, the texts that are asked for.
        v: ``[E]``, what tokens are compared with.

    Returns:
        ``[U, E]`` in the dtype of ``v``. Gradients flow to ``v`` and, where it wants one, to ``hidden``.

    Raises:
        ValueError: If shapes or dtypes don't fit, or (on CPU) a text is out of range.
    """
    if hidden.dim() != 3 or not hidden.is_floating_point() or v.shape != hidden.shape[2:]:
        raise ValueError(
            f"hidden is {hidden.dtype} {tuple(hidden.shape)} and v {tuple(v.shape)}; "
            "they must be floating point [T, L, E] and [E]"
        )
    if mask.shape != hidden.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}; it must be bool {list(hidden.shape[:2])}"
        )
    plain = hidden.dtype != v.dtype or v.dtype not in (torch.float32, torch.float64)
    if plain or hidden.device.type != "cpu" or (torch.is_grad_enabled() and hidden.requires_grad):
        return text_pool_torch(hidden, mask, text, v)
    y: Tensor
    y, _ = _pool(hidden, mask, text, v)
    return y


def text_pool_torch(
    hidden: Tensor, mask: Tensor, text: Tensor, v: Tensor, *, straight: bool = False
) -> Tensor:
    """:func:`text_pool` in plain torch operations.

    Args:
        hidden: This and the next three as there.
        mask: ``[T, L]`` bool.
        text: ``[U]`` int64.
        v: ``[E]``.
        straight: Let the gradient of a text without tokens pass through its attention, as if that weren't
            constant: what adding -1e8 to scores does in single precision.
    """
    states, allowed = hidden[text].to(v.dtype), mask[text]
    score = states @ v
    some = allowed.any(1, keepdim=True)
    flat = score - score.detach() if straight else torch.zeros_like(score)
    score = torch.where(some, score.masked_fill(~allowed, -torch.inf), flat)
    return (score.softmax(1)[:, None] @ states).squeeze(1)


@torch.library.custom_op("graphkit::text_pool", mutates_args=())
def _pool(hidden: Tensor, mask: Tensor, text: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    from graphkit.kernels import _text_loops as loops

    states = to_numpy(hidden)
    y, attention = v.new_empty(text.numel(), v.numel()), v.new_empty(text.numel(), states.shape[1])
    texts = to_numpy(text)
    if texts.size and (texts.min() < 0 or texts.max() >= states.shape[0]):
        raise ValueError(f"text holds an id outside [0, {states.shape[0]})")
    bounds = even_bounds(text.numel(), num_parts(text.numel() * states[:1].size))
    run_ranges(loops.pool, bounds, states, to_numpy(mask), texts, to_numpy(v), y.numpy(), attention.numpy())
    return y, attention


@_pool.register_fake
def _pool_fake(hidden: Tensor, mask: Tensor, text: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(text.numel(), v.numel()), v.new_empty(text.numel(), hidden.size(1))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, mask, text, _ = inputs
    y, attention = output
    ctx.mark_non_differentiable(attention)
    ctx.save_for_backward(hidden, mask, text, y, attention)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return None, None, None, _pool_grad(grad, *ctx.saved_tensors)


_pool.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("graphkit::text_pool_grad", mutates_args=())
def _pool_grad(
    grad: Tensor, hidden: Tensor, mask: Tensor, text: Tensor, y: Tensor, attention: Tensor
) -> Tensor:
    from graphkit.kernels import _text_loops as loops

    states, texts = to_numpy(hidden), to_numpy(text)
    blocks = -(-texts.shape[0] // loops.BLOCK)
    partial = y.new_zeros(blocks, y.size(1))
    bounds = even_bounds(blocks, num_parts(texts.shape[0] * states[:1].size))
    arrays = (to_numpy(grad), states, to_numpy(mask), texts, to_numpy(y), to_numpy(attention))
    run_ranges(loops.pool_grad, bounds, *arrays, partial.numpy())
    return partial.sum(0)


@_pool_grad.register_fake
def _pool_grad_fake(
    grad: Tensor, hidden: Tensor, mask: Tensor, text: Tensor, y: Tensor, attention: Tensor
) -> Tensor:
    return y.new_empty(y.size(1))
