r"""Neighbourhood sums with a factor a source, a factor a target and the target's own row, in one pass.

The aggregations of GCN, GraphSAGE and their like are one formula:

.. math:: y_r = n_r \sum_{e \in \text{row } r} s_{c_e}\, x_{c_e} + w_r\, x_{o + r}

Written with products and sums of whole matrices each factor costs a pass over all states, forward and
backward; here none does. The derivative is the same formula on the transposed rows, with :math:`s` and
:math:`n` in each other's place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.parallel import num_parts, run_ranges, weighted_bounds
from graphkit.kernels.spmm import check_ids, check_structure, entry_rows, to_numpy, transpose_csr

__all__ = ["scaled_spmm", "scaled_spmm_torch"]

_HALF = (torch.float16, torch.bfloat16)


def scaled_spmm(
    rowptr: Tensor,
    col: Tensor,
    x: Tensor,
    *,
    source: Tensor | None = None,
    row: Tensor | None = None,
    own: Tensor | None = None,
    start: int = 0,
    symmetric: bool = False,
) -> Tensor:
    """Sums rows of ``x`` over each row's entries, with factors: the formula above.

    Args:
        rowptr: ``[R + 1]`` int64, ascending, from 0 to E.
        col: ``[E]`` int32 ids of rows of ``x``.
        x: ``[C, F]`` floating point. Half precision is computed in float32 and rounded once.
        source: ``[C]`` factors ``s`` of the sources; ones by default.
        row: ``[R]`` factors ``n`` of the rows; ones by default.
        own: ``[R]`` factors ``w`` of the targets' own rows; zeros by default.
        start: ``o``: target ``r`` is row ``o + r`` of ``x``.
        symmetric: The caller's promise that every entry's reverse is present (then R = C): the gradient then
            uses the same structure and sorts nothing.

    Returns:
        ``[R, F]`` in the dtype of ``x``. Gradients flow to ``x`` alone; factors are constants.

    Raises:
        ValueError: If shapes don't fit, or (on CPU) an id or row pointer is out of range.
    """
    check_structure(rowptr, col)
    rows = rowptr.numel() - 1
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; it must be floating point [C, F]")
    for name, factor, size in (("source", source, x.size(0)), ("row", row, rows), ("own", own, rows)):
        if factor is not None and factor.shape != (size,):
            raise ValueError(f"{name} has shape {tuple(factor.shape)}; it must be [{size}]")
    if own is not None and not 0 <= start <= x.size(0) - rows:
        raise ValueError(
            f"start is {start}; with {rows} rows of {x.size(0)} it must be 0 to {x.size(0) - rows}"
        )
    if symmetric and rows != x.size(0):
        raise ValueError(f"symmetric needs a square structure, got {rows} rows for {x.size(0)} of x")
    work = torch.float32 if x.dtype in _HALF else x.dtype
    factors = [None if f is None else f.detach().to(work) for f in (source, row, own)]
    y: Tensor = _scaled(rowptr, col, *factors, x.to(work), start, symmetric)
    return y.to(x.dtype)


def scaled_spmm_torch(
    rowptr: Tensor,
    col: Tensor,
    source: Tensor | None,
    row: Tensor | None,
    own: Tensor | None,
    x: Tensor,
    start: int,
) -> Tensor:
    """:func:`scaled_spmm` in plain torch operations (float32 or float64)."""
    weighed = x if source is None else x * source[:, None]
    y = x.new_zeros(rowptr.numel() - 1, x.size(1))
    y = y.index_add(0, entry_rows(rowptr, col.numel()), weighed[col.long()])
    y = y if row is None else y * row[:, None]
    return y if own is None else y + own[:, None] * x[start : start + y.size(0)]


@torch.library.custom_op("graphkit::scaled_spmm", mutates_args=())
def _scaled(
    rowptr: Tensor,
    col: Tensor,
    source: Tensor | None,
    row: Tensor | None,
    own: Tensor | None,
    x: Tensor,
    start: int,
    symmetric: bool,
) -> Tensor:
    return scaled_spmm_torch(rowptr, col, source, row, own, x, start)


@_scaled.register_kernel("cpu")
def _scaled_cpu(
    rowptr: Tensor,
    col: Tensor,
    source: Tensor | None,
    row: Tensor | None,
    own: Tensor | None,
    x: Tensor,
    start: int,
    symmetric: bool,
) -> Tensor:
    from graphkit.kernels import _scaled_loops
    from graphkit.kernels._spmm_loops import bad_csr

    y = x.new_empty(rowptr.numel() - 1, x.size(1))
    ptr, ids, states = to_numpy(rowptr), to_numpy(col), to_numpy(x)
    nothing = np.empty(0, states.dtype)
    factors = [nothing if f is None else to_numpy(f) for f in (source, row, own)]
    check_ids(bad_csr(ptr, ids, states.shape[0]), states.shape[0])
    bounds = weighted_bounds(ptr, num_parts((ids.shape[0] + y.size(0)) * states.shape[1]))
    run_ranges(_scaled_loops.scaled_rows, bounds, ptr, ids, *factors, start, states, y.numpy())
    return y


@_scaled.register_fake
def _scaled_fake(
    rowptr: Tensor,
    col: Tensor,
    source: Tensor | None,
    row: Tensor | None,
    own: Tensor | None,
    x: Tensor,
    start: int,
    symmetric: bool,
) -> Tensor:
    return x.new_empty(rowptr.numel() - 1, x.size(1))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rowptr, col, source, row, own, x, ctx.start, ctx.symmetric = inputs
    ctx.num_cols = x.size(0)
    ctx.save_for_backward(rowptr, col, source, row, own)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rowptr, col, source, row, own = ctx.saved_tensors
    grad_x = None
    if ctx.needs_input_grad[5]:
        if ctx.symmetric:  # then every row is its own target, from the first on
            grad_x = _scaled(rowptr, col, row, source, own, grad, 0, True)
        else:
            rowptr_t, row_t, _ = transpose_csr(rowptr, col, ctx.num_cols)
            grad_x = _scaled(rowptr_t, row_t, row, source, None, grad, 0, False)
            if own is not None:
                stop = ctx.start + grad.size(0)
                mine = grad_x[ctx.start : stop] + own[:, None] * grad
                grad_x = torch.cat([grad_x[: ctx.start], mine, grad_x[stop:]])
    return None, None, None, None, None, grad_x, None, None


_scaled.register_autograd(_backward, setup_context=_setup)
