r"""Sums of what facts carry, weighed by where they come from, for graphs that lie side by side.

.. math:: y_r = \text{drop}\Bigl(\sum_{e \in \text{row } r} v_e\, M_{c_e}\Bigr), \qquad
    v_e = \sum_{f \in \text{entry } e} w_f\, p_{s_f}

The product of a sparse matrix and a table. Facts that bring the same line to the same row are one entry,
whose value is the sum of :math:`p` at their sources. Values and sums are formed, and dropout is applied, in
one pass; the backward pass reads each row's gradient once for both derivatives. Graphs share neither sources
nor lines of the table, so each graph's gradients are added up by one thread in one order, and nothing needs
to be transposed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.dropout import LEVELS, keep_mask
from graphkit.kernels.fact_rows import FactRows
from graphkit.kernels.parallel import num_parts, run_ranges, weighted_bounds
from graphkit.kernels.spmm import check_ids, check_structure, entry_rows, to_numpy

__all__ = ["fact_sum", "fact_sum_torch"]


def fact_sum(
    rows: FactRows,
    p: Tensor | None,
    table: Tensor,
    *,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Computes the formula above.

    Args:
        rows: The entries.
        p: ``[N]`` floating point; None for ones.
        table: ``[C, W]`` float32 or float64; half precision is computed in float32.
        dropout: Rate at which elements of the sums are dropped, in [0, 1).
        seed: ``[1]`` int64, which decides what is dropped; needed where the rate isn't 0.

    Returns:
        ``[R, W]`` in the dtype of ``table``. Gradients flow to ``p`` and ``table``.

    Raises:
        ValueError: If shapes or dtypes don't fit, or (on CPU) an id or row pointer is out of range.
    """
    check_structure(rows.rowptr, rows.col)
    if table.dim() != 2 or not table.is_floating_point():
        raise ValueError(f"table is {table.dtype} of shape {tuple(table.shape)}; it must be floating [C, W]")
    check_structure(rows.begin, rows.source)
    if rows.begin.numel() != rows.col.numel() + 1:
        raise ValueError(f"begin has {rows.begin.numel()} elements; it must have {rows.col.numel() + 1}")
    if rows.weight is not None and rows.weight.shape != rows.source.shape:
        raise ValueError(
            f"weight has shape {tuple(rows.weight.shape)}; it must be {list(rows.source.shape)}, one a fact"
        )
    if p is not None and p.dim() != 1:
        raise ValueError(f"p has shape {tuple(p.shape)}; it must be [N]")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
    threshold = round(dropout * LEVELS)
    if seed is None:
        if threshold:
            raise ValueError("seed is None; dropout needs one")
        seed = torch.zeros(1, dtype=torch.int64, device=table.device)
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    weight = None if rows.weight is None else rows.weight.to(dtype)
    p = None if p is None else p.to(dtype)
    y: Tensor = _fact_sum(*rows[:5], weight, p, table.to(dtype), seed, threshold)
    return y.to(table.dtype)


def fact_sum_torch(
    rows: FactRows, p: Tensor | None, table: Tensor, seed: Tensor | None = None, threshold: int = 0
) -> Tensor:
    """:func:`fact_sum` in plain torch operations, given the threshold of dropout in 1/65536."""
    value = table.new_ones(rows.source.numel()) if p is None else p[rows.source.long()]
    value = value if rows.weight is None else value * rows.weight
    entries = entry_rows(rows.begin, rows.source.numel())
    value = value.new_zeros(rows.col.numel()).index_add(0, entries, value)
    y = table.new_zeros(rows.rowptr.numel() - 1, table.size(1))
    row = entry_rows(rows.rowptr, rows.col.numel())
    y = y.index_add(0, row, value[:, None] * table[rows.col.long()])
    if threshold and seed is not None:
        y = y * _keep(seed, y, threshold)
    return y


def _keep(seed: Tensor, y: Tensor, threshold: int) -> Tensor:
    """Returns the factors of dropout."""
    return keep_mask(seed, y.size(0), y.size(1), threshold).to(y.dtype) * (LEVELS / (LEVELS - threshold))


@torch.library.custom_op("graphkit::fact_sum", mutates_args=())
def _fact_sum(
    rowptr: Tensor,
    col: Tensor,
    begin: Tensor,
    source: Tensor,
    block: Tensor,
    weight: Tensor | None,
    p: Tensor | None,
    table: Tensor,
    seed: Tensor,
    threshold: int,
) -> Tensor:
    return fact_sum_torch(FactRows(rowptr, col, begin, source, block, weight), p, table, seed, threshold)


@_fact_sum.register_kernel("cpu")
def _fact_sum_cpu(*args: Any) -> Tensor:
    from graphkit.kernels import _fact_loops as loops
    from graphkit.kernels._spmm_loops import bad_csr

    rowptr, col, begin, source, block, weight, p, table, seed, threshold = args
    y = table.new_empty(rowptr.numel() - 1, table.size(1))
    arrays = _arrays(rowptr, col, begin, source, weight, p, table)
    check_ids(bad_csr(arrays[0], arrays[1], table.size(0)), table.size(0))
    sources = 1 << 31 if p is None else p.numel()
    check_ids(bad_csr(arrays[2], arrays[3], sources), sources)
    bounds = _bounds(block, arrays[0], table.size(1))
    drop = (np.uint64(int(seed) & 0xFFFFFFFFFFFFFFFF), np.uint32(threshold), _scale(arrays[-1], threshold))
    run_ranges(loops.sum_rows, bounds, *arrays, *drop, y.numpy())
    return y


@_fact_sum.register_fake
def _fact_sum_fake(rowptr: Tensor, *others: Any) -> Tensor:
    table = others[6]
    return table.new_empty(rowptr.numel() - 1, table.size(1))


def _arrays(
    rowptr: Tensor,
    col: Tensor,
    begin: Tensor,
    source: Tensor,
    weight: Tensor | None,
    p: Tensor | None,
    table: Tensor,
) -> tuple[np.ndarray, ...]:
    """Returns what both loops read; nothing means ones."""
    lines = to_numpy(table)
    nothing = np.empty(0, lines.dtype)
    values = (nothing if t is None else to_numpy(t) for t in (weight, p))
    return (*(to_numpy(t) for t in (rowptr, col, begin, source)), *values, lines)


def _bounds(block: Tensor, rowptr: np.ndarray, width: int) -> list[int]:
    """Returns rows at which threads take turns: where graphs begin."""
    starts = to_numpy(block)
    if starts[0] != 0 or starts[-1] != rowptr.shape[0] - 1 or (np.diff(starts) < 0).any():
        raise ValueError("block must ascend from 0 to the number of rows")
    parts = min(num_parts(int(rowptr[-1]) * width), max(1, starts.shape[0] - 1))
    return [int(starts[k]) for k in weighted_bounds(rowptr[starts], parts)]


def _scale(table: np.ndarray, threshold: int) -> Any:
    return table.dtype.type(LEVELS / (LEVELS - threshold))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.threshold = inputs[-1]
    ctx.save_for_backward(*inputs[:-1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wants = ctx.needs_input_grad[6]
    grad_p, grad_table = _fact_grad(grad, *ctx.saved_tensors, ctx.threshold, wants)
    return (None,) * 6 + (grad_p if wants else None, grad_table, None, None)


_fact_sum.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("graphkit::fact_sum_grad", mutates_args=())
def _fact_grad(
    grad: Tensor,
    rowptr: Tensor,
    col: Tensor,
    begin: Tensor,
    source: Tensor,
    block: Tensor,
    weight: Tensor | None,
    p: Tensor | None,
    table: Tensor,
    seed: Tensor,
    threshold: int,
    wants_p: bool,
) -> tuple[Tensor, Tensor]:
    if threshold:
        grad = grad * _keep(seed, grad, threshold)
    sender, entry = source.long(), entry_rows(begin, source.numel())
    value = table.new_ones(source.numel()) if p is None else p[sender]
    value = value if weight is None else value * weight
    value = value.new_zeros(col.numel()).index_add(0, entry, value)
    sent, line = grad[entry_rows(rowptr, col.numel())], col.long()
    grad_p = table.new_zeros(0 if p is None or not wants_p else p.numel())
    if grad_p.numel():
        flow = (sent * table[line]).sum(1)[entry]
        grad_p.index_add_(0, sender, flow if weight is None else flow * weight)
    return grad_p, torch.zeros_like(table).index_add_(0, line, sent * value[:, None])


@_fact_grad.register_kernel("cpu")
def _fact_grad_cpu(*args: Any) -> tuple[Tensor, Tensor]:
    from graphkit.kernels import _fact_loops as loops

    grad, rowptr, col, begin, source, block, weight, p, table, seed, threshold, wants_p = args
    grad_p = table.new_zeros(0 if p is None or not wants_p else p.numel())
    grad_table = torch.zeros_like(table, memory_format=torch.contiguous_format)
    arrays = _arrays(rowptr, col, begin, source, weight, p, table)
    bounds = _bounds(block, arrays[0], table.size(1))
    drop = (np.uint64(int(seed) & 0xFFFFFFFFFFFFFFFF), np.uint32(threshold), _scale(arrays[-1], threshold))
    run_ranges(loops.grad_rows, bounds, to_numpy(grad), *arrays, *drop, grad_p.numpy(), grad_table.numpy())
    return grad_p, grad_table


@_fact_grad.register_fake
def _fact_grad_fake(*args: Any) -> tuple[Tensor, Tensor]:
    p, table, wants_p = args[7], args[8], args[11]
    return table.new_empty(0 if p is None or not wants_p else p.numel()), torch.empty_like(table)
