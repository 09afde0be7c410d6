"""Sparse-dense products over sorted rows, with gradients that are sums in a fixed order.

``spmm`` is the neighbourhood sum of message passing and ``sddmm`` its counterpart, one dot product an
entry; each is the other's derivative, so both can be differentiated any number of times.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.parallel import num_parts, run_ranges, weighted_bounds

__all__ = ["sddmm", "sddmm_torch", "spmm", "spmm_torch", "transpose_csr", "transpose_csr_torch"]

_HALF = (torch.float16, torch.bfloat16)


def spmm(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, *, symmetric: bool = False) -> Tensor:
    """Sums weighted rows of ``x`` over each row's entries: ``y[r] = sum_{e in row r} value[e] * x[col[e]]``.

    Args:
        rowptr: ``[R + 1]`` int64, ascending, from 0 to E.
        col: ``[E]`` int32 ids of rows of ``x``.
        value: ``[E]`` floating point, or None for ones.
        x: ``[N, F]`` floating point. Half precision is computed in float32 and rounded once.
        symmetric: The caller's promise that every entry's reverse is present (then R = N): without values the
            gradient then uses the same structure and sorts nothing.

    Returns:
        ``[R, F]`` in the common dtype of ``value`` and ``x``. Gradients flow to ``x`` and ``value``.

    Raises:
        ValueError: If shapes or dtypes don't fit, or (on CPU) an id or row pointer is out of range.
    """
    check_structure(rowptr, col)
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; it must be floating point [N, F]")
    if value is not None and (value.dim() != 1 or value.numel() != col.numel()):
        raise ValueError(f"value has shape {tuple(value.shape)}; it must be [{col.numel()}], one an entry")
    if symmetric and rowptr.numel() != x.size(0) + 1:
        raise ValueError(
            f"symmetric needs a square structure, got {rowptr.numel() - 1} rows for {x.size(0)} of x"
        )
    dtype = x.dtype if value is None else torch.promote_types(x.dtype, value.dtype)
    work = torch.float32 if dtype in _HALF else dtype
    y: Tensor = _spmm(rowptr, col, None if value is None else value.to(work), x.to(work), symmetric)
    return y.to(dtype)


def sddmm(rowptr: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Takes one dot product an entry: ``out[e] = <left[r], right[col[e]]>`` for entry ``e`` of row ``r``.

    Args:
        rowptr: ``[R + 1]`` int64, ascending, from 0 to E.
        col: ``[E]`` int32 ids of rows of ``right``.
        left: ``[R, F]`` float32 or float64.
        right: ``[N, F]`` of the same dtype.

    Returns:
        ``[E]``, differentiable in ``left`` and ``right``.

    Raises:
        ValueError: If shapes or dtypes don't fit, or (on CPU) an id or row pointer is out of range.
    """
    check_structure(rowptr, col)
    if left.dim() != 2 or right.dim() != 2 or left.size(1) != right.size(1) or left.dtype != right.dtype:
        raise ValueError(
            f"left is {left.dtype} {tuple(left.shape)} and right {right.dtype} {tuple(right.shape)}; "
            "they must be [R, F] and [N, F] of one dtype"
        )
    if left.size(0) != rowptr.numel() - 1:
        raise ValueError(f"left has {left.size(0)} rows, rowptr describes {rowptr.numel() - 1}")
    out: Tensor = _sddmm(rowptr, col, left, right)
    return out


def transpose_csr(rowptr: Tensor, col: Tensor, num_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transposes a structure by a stable counting sort, O(E + R + num_cols).

    Args:
        rowptr: ``[R + 1]`` int64, ascending, from 0 to E.
        col: ``[E]`` int32 in ``[0, num_cols)``.
        num_cols: Number of columns.

    Returns:
        ``rowptr_t`` ``[num_cols + 1]`` int64, ``row_t`` ``[E]`` int32 (ascending within a row) and ``perm``
        ``[E]`` int64: entry ``k`` of the transpose is entry ``perm[k]`` of the original.

    Raises:
        ValueError: If dtypes don't fit, or (on CPU) an id or row pointer is out of range.
    """
    check_structure(rowptr, col)
    out: tuple[Tensor, Tensor, Tensor] = _transpose(rowptr, col, num_cols)
    return out


def entry_rows(rowptr: Tensor, num_entries: int) -> Tensor:
    """Returns the row of every entry, ``[E]`` int64."""
    rows = torch.arange(rowptr.numel() - 1, device=rowptr.device)
    return torch.repeat_interleave(rows, rowptr.diff(), output_size=num_entries)


def spmm_torch(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor) -> Tensor:
    """:func:`spmm` in plain torch operations (float32 or float64): gather, weigh, add by row."""
    messages = x[col.long()]
    if value is not None:
        messages = value[:, None] * messages
    y = messages.new_zeros(rowptr.numel() - 1, x.size(1))
    return y.index_add(0, entry_rows(rowptr, col.numel()), messages)


def sddmm_torch(rowptr: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """:func:`sddmm` in plain torch operations."""
    return (left[entry_rows(rowptr, col.numel())] * right[col.long()]).sum(1)


def transpose_csr_torch(rowptr: Tensor, col: Tensor, num_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`transpose_csr` by a stable sort in torch."""
    perm = torch.argsort(col, stable=True)
    rowptr_t = rowptr.new_zeros(num_cols + 1)
    torch.cumsum(torch.bincount(col.long(), minlength=num_cols), 0, out=rowptr_t[1:])
    return rowptr_t, entry_rows(rowptr, col.numel())[perm].to(torch.int32), perm


@torch.library.custom_op("graphkit::spmm", mutates_args=())
def _spmm(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, symmetric: bool) -> Tensor:
    return spmm_torch(rowptr, col, value, x)


@_spmm.register_kernel("cpu")
def _spmm_cpu(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, symmetric: bool) -> Tensor:
    from graphkit.kernels import _spmm_loops as loops

    y = x.new_empty(rowptr.numel() - 1, x.size(1))
    ptr, ids, features = to_numpy(rowptr), to_numpy(col), to_numpy(x)
    weights = np.empty(0, features.dtype) if value is None else to_numpy(value)
    check_ids(loops.bad_csr(ptr, ids, features.shape[0]), features.shape[0])
    bounds = weighted_bounds(ptr, num_parts(ids.shape[0] * features.shape[1]))
    run_ranges(loops.spmm_rows, bounds, ptr, ids, weights, features, y.numpy())
    return y


@_spmm.register_fake
def _spmm_fake(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, symmetric: bool) -> Tensor:
    return x.new_empty(rowptr.numel() - 1, x.size(1))


def _spmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rowptr, col, value, x, ctx.symmetric = inputs
    ctx.num_cols = x.size(0)
    # x is needed for the gradient of the values alone, and they for the gradient of x alone.
    wants_value = value is not None and value.requires_grad
    ctx.save_for_backward(rowptr, col, value, x if wants_value else None)


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rowptr, col, value, x = ctx.saved_tensors
    grad_value = grad_x = None
    if ctx.needs_input_grad[2]:
        grad_value = _sddmm(rowptr, col, grad, x)
    if ctx.needs_input_grad[3]:
        grad_x = _pull_back(rowptr, col, value, grad, ctx.num_cols, ctx.symmetric)
    return None, None, grad_value, grad_x, None


def _pull_back(
    rowptr: Tensor, col: Tensor, value: Tensor | None, grad: Tensor, num_cols: int, symmetric: bool = False
) -> Tensor:
    """Returns the product of the transposed matrix with ``grad``, ``[num_cols, F]``."""
    if symmetric and value is None:
        out: Tensor = _spmm(rowptr, col, None, grad, True)
        return out
    rowptr_t, row_t, perm = _transpose(rowptr, col, num_cols)
    out = _spmm(rowptr_t, row_t, None if value is None else value[perm], grad, False)
    return out


_spmm.register_autograd(_spmm_backward, setup_context=_spmm_setup)


@torch.library.custom_op("graphkit::sddmm", mutates_args=())
def _sddmm(rowptr: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return sddmm_torch(rowptr, col, left, right)


@_sddmm.register_kernel("cpu")
def _sddmm_cpu(rowptr: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    from graphkit.kernels import _spmm_loops as loops

    out = left.new_empty(col.numel())
    ptr, ids, a, b = to_numpy(rowptr), to_numpy(col), to_numpy(left), to_numpy(right)
    check_ids(loops.bad_csr(ptr, ids, b.shape[0]), b.shape[0])
    bounds = weighted_bounds(ptr, num_parts(ids.shape[0] * a.shape[1]))
    run_ranges(loops.sddmm_rows, bounds, ptr, ids, a, b, out.numpy())
    return out


@_sddmm.register_fake
def _sddmm_fake(rowptr: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(col.numel())


def _sddmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rowptr, col, left, right = ctx.saved_tensors
    grad_left = grad_right = None
    if ctx.needs_input_grad[2]:
        grad_left = _spmm(rowptr, col, grad, right, False)
    if ctx.needs_input_grad[3]:
        grad_right = _pull_back(rowptr, col, grad, left, right.size(0))
    return None, None, grad_left, grad_right


_sddmm.register_autograd(_sddmm_backward, setup_context=_sddmm_setup)


@torch.library.custom_op("graphkit::transpose_csr", mutates_args=())
def _transpose(rowptr: Tensor, col: Tensor, num_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    return transpose_csr_torch(rowptr, col, num_cols)


@_transpose.register_kernel("cpu")
def _transpose_cpu(rowptr: Tensor, col: Tensor, num_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    from graphkit.kernels import _spmm_loops as loops

    rowptr_t = rowptr.new_zeros(num_cols + 1)
    row_t, perm = col.new_empty(col.numel()), rowptr.new_empty(col.numel())
    ptr, ids = to_numpy(rowptr), to_numpy(col)
    check_ids(loops.bad_csr(ptr, ids, num_cols), num_cols)
    loops.transpose(ptr, ids, rowptr_t.numpy(), row_t.numpy(), perm.numpy())
    return rowptr_t, row_t, perm


@_transpose.register_fake
def _transpose_fake(rowptr: Tensor, col: Tensor, num_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    return rowptr.new_empty(num_cols + 1), col.new_empty(col.numel()), rowptr.new_empty(col.numel())


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Returns a contiguous array over the tensor's memory (a copy only where it isn't contiguous)."""
    return tensor.detach().contiguous().numpy()


def check_structure(rowptr: Tensor, col: Tensor) -> None:
    """Raises ValueError unless the tensors have the dtypes and dimensions of sorted rows."""
    if rowptr.dtype != torch.int64 or rowptr.dim() != 1 or rowptr.numel() < 1:
        raise ValueError(f"rowptr is {rowptr.dtype} {tuple(rowptr.shape)}; it must be int64 [R + 1]")
    if col.dtype != torch.int32 or col.dim() != 1:
        raise ValueError(f"col is {col.dtype} {tuple(col.shape)}; it must be int32 [E]")


def check_ids(fault: int, num_cols: int) -> None:
    """Raises ValueError for what the loops' check of rows found (0: nothing)."""
    if fault == 1:
        raise ValueError("rowptr must ascend from 0 to the number of entries of col")
    if fault == 2:
        raise ValueError(f"col holds an id outside [0, {num_cols})")
