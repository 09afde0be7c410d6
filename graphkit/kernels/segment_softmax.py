r"""Softmax over the elements of each segment that are allowed; exactly 0 for the others.

.. math:: p_i = \frac{m_i e^{s_i}}{\sum_{j \text{ in the segment of } i} m_j e^{s_j}}
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges
from graphkit.kernels.spmm import entry_rows, to_numpy

__all__ = ["segment_softmax", "segment_softmax_torch"]


def segment_softmax(score: Tensor, ptr: Tensor, mask: Tensor) -> Tensor:
    """Computes the formula above; a segment in which nothing is allowed is 0.

    Args:
        score: ``[n]`` float32 or float64; half precision is computed in float32.
        ptr: ``[B + 1]`` int64, ascending, from 0 to n.
        mask: ``[n]`` bool, what is allowed.

    Returns:
        ``[n]`` in the dtype of ``score``.

    Raises:
        ValueError: If shapes or dtypes don't fit, or (on CPU) ``ptr`` doesn't ascend from 0 to n.
    """
    if score.dim() != 1 or not score.is_floating_point():
        raise ValueError(f"score is {score.dtype} {tuple(score.shape)}; it must be floating point [n]")
    if mask.shape != score.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; it must be bool {list(score.shape)}")
    if ptr.dim() != 1 or ptr.dtype != torch.int64 or ptr.numel() < 1:
        raise ValueError(f"ptr is {ptr.dtype} {tuple(ptr.shape)}; it must be int64 [B + 1]")
    work = score if score.dtype == torch.float64 else score.float()
    p: Tensor = _softmax(work, ptr, mask)
    return p.to(score.dtype)


def segment_softmax_torch(score: Tensor, ptr: Tensor, mask: Tensor) -> Tensor:
    """:func:`segment_softmax` in plain torch operations."""
    segment, count = entry_rows(ptr, score.numel()), ptr.numel() - 1
    allowed = score.masked_fill(~mask, -torch.inf)
    top = allowed.new_full((count,), -torch.inf).scatter_reduce(0, segment, allowed.detach(), "amax")
    power = (allowed - top.masked_fill(top == -torch.inf, 0.0)[segment]).exp()
    total = power.new_zeros(count).index_add(0, segment, power)
    return power / total.masked_fill(total == 0, 1.0)[segment]


@torch.library.custom_op("graphkit::segment_softmax", mutates_args=())
def _softmax(score: Tensor, ptr: Tensor, mask: Tensor) -> Tensor:
    return segment_softmax_torch(score, ptr, mask)


@_softmax.register_kernel("cpu")
def _softmax_cpu(score: Tensor, ptr: Tensor, mask: Tensor) -> Tensor:
    from graphkit.kernels import _segment_loops as loops

    out = score.new_empty(score.shape)
    starts = to_numpy(ptr)
    if loops.bad_ptr(starts, score.numel()):
        raise ValueError(f"ptr must ascend from 0 to {score.numel()}, the number of scores")
    bounds = even_bounds(ptr.numel() - 1, num_parts(16 * score.numel()))
    run_ranges(loops.softmax, bounds, starts, to_numpy(score), to_numpy(mask), out.numpy())
    return out


@_softmax.register_fake
def _softmax_fake(score: Tensor, ptr: Tensor, mask: Tensor) -> Tensor:
    return score.new_empty(score.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    p, ptr = ctx.saved_tensors
    return _softmax_grad(grad, p, ptr), None, None


_softmax.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("graphkit::segment_softmax_grad", mutates_args=())
def _softmax_grad(grad: Tensor, p: Tensor, ptr: Tensor) -> Tensor:
    segment, flow = entry_rows(ptr, p.numel()), p * grad
    return flow - p * flow.new_zeros(ptr.numel() - 1).index_add(0, segment, flow)[segment]


@_softmax_grad.register_kernel("cpu")
def _softmax_grad_cpu(grad: Tensor, p: Tensor, ptr: Tensor) -> Tensor:
    from graphkit.kernels import _segment_loops as loops

    out = p.new_empty(p.shape)
    bounds = even_bounds(ptr.numel() - 1, num_parts(4 * p.numel()))
    run_ranges(loops.softmax_grad, bounds, to_numpy(ptr), to_numpy(grad), to_numpy(p), out.numpy())
    return out


@_softmax_grad.register_fake
def _softmax_grad_fake(grad: Tensor, p: Tensor, ptr: Tensor) -> Tensor:
    return p.new_empty(p.shape)
