r"""The neighbourhood sum of a relational graph: every edge weighs what it carries by its relation.

.. math:: y_v = \sum_{(u, r, v)} x_u \odot w_r

is DistMult's message (arXiv:1412.6575) summed over the edges into v.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges, weighted_bounds
from graphkit.kernels.spmm import check_structure, entry_rows, to_numpy

__all__ = ["relation_sum", "relation_sum_torch"]

_HALF = (torch.float16, torch.bfloat16)
_FAULTS = (
    "rowptr must ascend from 0 to the number of entries",
    "col is out of range",
    "kind is out of range",
)


def relation_sum(rowptr: Tensor, col: Tensor, kind: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Sums ``x[col[e]] * weight[kind[e]]`` over the entries of each row.

    Args:
        rowptr: ``[n + 1]`` int64, ascending, from 0 to E.
        col: ``[E]`` int32 rows of ``x``.
        kind: ``[E]`` int32 rows of ``weight``.
        x: ``[m, d]`` floating point. Half precision is computed in float32 and rounded once.
        weight: ``[T, d]`` floating point.

    Returns:
        ``[n, d]`` in the common dtype. Gradients flow to ``x`` and ``weight``, once; that of ``weight`` is
        summed in float64.

    Raises:
        ValueError: If shapes or dtypes don't fit or (on CPU) an id is out of range.
    """
    check_structure(rowptr, col)
    if kind.dtype != torch.int32 or kind.shape != col.shape:
        raise ValueError(f"kind is {kind.dtype} {list(kind.shape)}; it must be int32 [{col.numel()}]")
    if x.dim() != 2 or weight.dim() != 2 or x.size(1) != weight.size(1):
        raise ValueError(
            f"x has shape {list(x.shape)} and weight {list(weight.shape)}; they must be [m, d] and [T, d]"
        )
    dtype = torch.promote_types(x.dtype, weight.dtype)
    work = torch.float32 if dtype in _HALF else dtype
    y: Tensor = _sum(rowptr, col, kind, x.to(work), weight.to(work))
    return y.to(dtype)


def relation_sum_torch(rowptr: Tensor, col: Tensor, kind: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """:func:`relation_sum` in plain torch operations (float32 or float64): gather, weigh, add by row."""
    message = x[col.long()] * weight[kind.long()]
    y = x.new_zeros(rowptr.numel() - 1, x.size(1))
    return y.index_add(0, entry_rows(rowptr, col.numel()), message)


@torch.library.custom_op("graphkit::relation_sum", mutates_args=())
def _sum(rowptr: Tensor, col: Tensor, kind: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return relation_sum_torch(rowptr, col, kind, x, weight)


@_sum.register_kernel("cpu")
def _sum_cpu(rowptr: Tensor, col: Tensor, kind: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    from graphkit.kernels import _relation_sum_loops as loops

    y = x.new_empty(rowptr.numel() - 1, x.size(1))
    ptr, ids, kinds = to_numpy(rowptr), to_numpy(col), to_numpy(kind)
    rows, weights = to_numpy(x), to_numpy(weight)
    fault = loops.bad_entries(ptr, ids, kinds, rows.shape[0], weights.shape[0])
    if fault:
        raise ValueError(_FAULTS[fault - 1])
    bounds = weighted_bounds(ptr, num_parts(ids.shape[0] * rows.shape[1]))
    run_ranges(loops.sum_rows, bounds, ptr, ids, kinds, rows, weights, y.numpy())
    return y


@_sum.register_fake
def _sum_fake(rowptr: Tensor, col: Tensor, kind: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(rowptr.numel() - 1, x.size(1))


@torch.library.custom_op("graphkit::relation_sum_backward", mutates_args=())
def _pull_back(
    rowptr: Tensor, col: Tensor, kind: Tensor, x: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    back, ids, kinds = grad[entry_rows(rowptr, col.numel())], col.long(), kind.long()
    grad_x = torch.zeros_like(x).index_add(0, ids, back * weight[kinds])
    grad_weight = torch.zeros_like(weight, dtype=torch.float64)
    return grad_x, grad_weight.index_add(0, kinds, (x[ids] * back).double()).to(weight.dtype)


@_pull_back.register_kernel("cpu")
def _pull_back_cpu(
    rowptr: Tensor, col: Tensor, kind: Tensor, x: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    from graphkit.kernels import _relation_sum_loops as loops

    given = [to_numpy(t) for t in (rowptr, col, kind, x, weight, grad)]
    grad_x, grad_weight = np.zeros_like(given[3]), np.zeros(given[4].shape)
    parts = min(num_parts(2 * col.numel() * x.size(1)), max(1, x.size(1) // 8))
    run_ranges(loops.pull_back, even_bounds(x.size(1), parts), *given, grad_x, grad_weight)
    return torch.from_numpy(grad_x), torch.from_numpy(grad_weight).to(weight.dtype)


@_pull_back.register_fake
def _pull_back_fake(
    rowptr: Tensor, col: Tensor, kind: Tensor, x: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_weight = _pull_back(*ctx.saved_tensors, grad.contiguous())
    return None, None, None, grad_x, grad_weight


_sum.register_autograd(_backward, setup_context=_setup)
