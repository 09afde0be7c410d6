r"""Sums of messages with edge features, :math:`\sum_j w_{ij}\,\mathrm{ReLU}(x_j + e_{ij})`, in one pass.

The message of GINE and of GCN with edge features. Written with gathers it makes three ``[E, F]`` arrays a
layer, forward and again backward; here a message exists for the moment in which it is added. Edge features
may be rows of a small table, one for each kind of edge: molecules have a handful of kinds of bonds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges, weighted_bounds
from graphkit.kernels.spmm import check_ids, check_structure, entry_rows, to_numpy

__all__ = ["Loops", "edge_relu_sum", "edge_relu_sum_torch"]

_HALF = (torch.float16, torch.bfloat16)


class Loops(NamedTuple):
    r"""A node's message to itself, :math:`w_r\,\mathrm{ReLU}(x_r + e_0)`.

    Attributes:
        edge: ``[F]`` features :math:`e_0`.
        weight: ``[R]`` factors, constants.
    """

    edge: Tensor
    weight: Tensor


def edge_relu_sum(
    rowptr: Tensor,
    col: Tensor,
    x: Tensor,
    edge: Tensor,
    *,
    kind: Tensor | None = None,
    weight: Tensor | None = None,
    own: Tensor | None = None,
    loops: Loops | None = None,
) -> Tensor:
    r"""Returns :math:`y_r = s_r + \sum_{i \in \text{row } r} w_i\,\mathrm{ReLU}(x_{c_i} + e_{k_i})`, e: edge.

    Args:
        rowptr: ``[R + 1]`` int64, ascending, from 0 to E.
        col: ``[E]`` int32 ids of rows of ``x``.
        x: ``[C, F]`` floating point. Half precision is computed in float32 and rounded once.
        edge: ``[U, F]`` features of the kinds of edges.
        kind: ``[E]`` int32 rows of ``edge``; by default edge ``e`` has row ``e``.
        weight: ``[E]`` factors; ones by default. They are constants: no gradient flows to them.
        own: ``[1]``, for :math:`s_r = \mathrm{own}\, x_r`. It and ``loops`` need R = C; without either
            :math:`s_r` is 0.
        loops: For the :math:`s_r` of :class:`Loops`.

    Returns:
        ``[R, F]`` in the dtype of ``x``. Gradients flow to ``x``, ``edge``, ``own`` and the loops' ``edge``,
        summed in the order of the rows whatever the number of threads (on CPU).

    Raises:
        ValueError: If shapes or dtypes don't fit, or (on CPU) an id or row pointer is out of range.
    """
    check_structure(rowptr, col)
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; it must be floating point [C, F]")
    rows, width = rowptr.numel() - 1, x.size(1)
    check_edge(edge, kind, col.numel(), width)
    if weight is not None and weight.shape != col.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be [{col.numel()}]")
    _check_own(own, loops, rows, x)
    work = torch.float32 if x.dtype in _HALF else x.dtype
    factors = (weight, None if loops is None else loops.weight)
    factor, loop_factor = (None if f is None else f.detach().to(work) for f in factors)
    single = None if own is None else own.to(work)
    loop = None if loops is None else loops.edge.to(work)
    y: Tensor = _sum(rowptr, col, kind, factor, single, loop, loop_factor, x.to(work), edge.to(work))
    return y.to(x.dtype)


def check_edge(edge: Tensor, kind: Tensor | None, num_edges: int, width: int) -> None:
    """Raises ValueError unless every edge has a row of ``edge``."""
    if edge.dim() != 2 or not edge.is_floating_point() or edge.size(1) != width:
        raise ValueError(
            f"edge is {edge.dtype} of shape {tuple(edge.shape)}; it must be floating point [U, {width}]"
        )
    if kind is None and edge.size(0) != num_edges:
        raise ValueError(f"edge has {edge.size(0)} rows for {num_edges} edges; without kind they must agree")
    if kind is not None and (kind.dtype != torch.int32 or kind.shape != (num_edges,)):
        raise ValueError(f"kind is {kind.dtype} {tuple(kind.shape)}; it must be int32 [{num_edges}]")


def _check_own(own: Tensor | None, loops: Loops | None, rows: int, x: Tensor) -> None:
    if own is not None and loops is not None:
        raise ValueError("own and loops exclude each other")
    if own is not None and own.shape != (1,):
        raise ValueError(f"own has shape {tuple(own.shape)}; it must be [1]")
    if loops is not None and (loops.edge.shape != x.shape[1:] or loops.weight.shape != (rows,)):
        raise ValueError(
            f"loops have edge {tuple(loops.edge.shape)} and weight {tuple(loops.weight.shape)}; they must be "
            f"[{x.size(1)}] and [{rows}]"
        )
    if (own is not None or loops is not None) and rows != x.size(0):
        raise ValueError(f"own and loops need a square structure, got {rows} rows for {x.size(0)} of x")


def check_kinds(kind: np.ndarray, size: int) -> None:
    """Raises ValueError if a kind has no row."""
    from graphkit.kernels._edge_loops import bad_kinds

    if bad_kinds(kind, size):
        raise ValueError(f"kind holds an id outside [0, {size})")


def edge_relu_sum_torch(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    loop: Tensor | None,
    loop_weight: Tensor | None,
    x: Tensor,
    edge: Tensor,
) -> Tensor:
    """:func:`edge_relu_sum` in plain torch operations (float32 or float64)."""
    features = edge if kind is None else edge.index_select(0, kind)
    message = (x.index_select(0, col) + features).relu()
    message = message if weight is None else message * weight[:, None]
    y = x.new_zeros(rowptr.numel() - 1, x.size(1))
    y = y.index_add(0, entry_rows(rowptr, col.numel()), message)
    if own is not None:
        y = y + own * x
    if loop is not None and loop_weight is not None:
        y = y + loop_weight[:, None] * (x + loop).relu()
    return y


@torch.library.custom_op("graphkit::edge_relu_sum", mutates_args=())
def _sum(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    loop: Tensor | None,
    loop_weight: Tensor | None,
    x: Tensor,
    edge: Tensor,
) -> Tensor:
    return edge_relu_sum_torch(rowptr, col, kind, weight, own, loop, loop_weight, x, edge)


def _arrays(
    rowptr: Tensor, col: Tensor, kind: Tensor | None, factors: list[Tensor | None], x: Tensor, edge: Tensor
) -> list[np.ndarray]:
    """Returns the arguments as arrays, empty where there is none."""
    states = to_numpy(x)
    nothing = np.empty(0, states.dtype)
    kinds = np.empty(0, np.int32) if kind is None else to_numpy(kind)
    given = [nothing if f is None else to_numpy(f) for f in factors]
    return [to_numpy(rowptr), to_numpy(col), kinds, *given, states, to_numpy(edge)]


@_sum.register_kernel("cpu")
def _sum_cpu(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    loop: Tensor | None,
    loop_weight: Tensor | None,
    x: Tensor,
    edge: Tensor,
) -> Tensor:
    from graphkit.kernels import _edge_loops
    from graphkit.kernels._spmm_loops import bad_csr

    y = x.new_empty(rowptr.numel() - 1, x.size(1))
    arrays = _arrays(rowptr, col, kind, [weight, own, loop, loop_weight], x, edge)
    check_ids(bad_csr(arrays[0], arrays[1], x.size(0)), x.size(0))
    check_kinds(arrays[2], edge.size(0))
    bounds = weighted_bounds(arrays[0], num_parts((col.numel() + y.size(0)) * x.size(1)))
    run_ranges(_edge_loops.relu_rows, bounds, *arrays, y.numpy())
    return y


@_sum.register_fake
def _sum_fake(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    loop: Tensor | None,
    loop_weight: Tensor | None,
    x: Tensor,
    edge: Tensor,
) -> Tensor:
    return x.new_empty(rowptr.numel() - 1, x.size(1))


@torch.library.custom_op("graphkit::edge_relu_sum_grad", mutates_args=())
def _grad(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    loop: Tensor | None,
    loop_weight: Tensor | None,
    x: Tensor,
    edge: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    features = edge if kind is None else edge.index_select(0, kind)
    g = grad.index_select(0, entry_rows(rowptr, col.numel()))
    g = g if weight is None else g * weight[:, None]
    g = g.masked_fill(x.index_select(0, col) + features <= 0, 0)
    grad_edge = g if kind is None else torch.zeros_like(edge).index_add(0, kind, g)
    grad_x, grad_own = torch.zeros_like(x).index_add(0, col, g), x.new_zeros(x.size(1))
    if own is not None:
        grad_x, grad_own = grad_x + own * grad, (grad * x).sum(0)
    if loop is not None and loop_weight is not None:
        g = (grad * loop_weight[:, None]).masked_fill(x + loop <= 0, 0)
        grad_x, grad_own = grad_x + g, g.sum(0)
    return grad_x, grad_edge, grad_own


@_grad.register_kernel("cpu")
def _grad_cpu(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    loop: Tensor | None,
    loop_weight: Tensor | None,
    x: Tensor,
    edge: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from graphkit.kernels import _edge_loops

    arrays = _arrays(rowptr, col, kind, [weight, own, loop, loop_weight], x, edge)  # checked going forward
    grad_x, grad_own = x.new_zeros(x.shape), x.new_zeros(x.size(1))
    grad_edge = edge.new_empty(edge.shape) if kind is None else edge.new_zeros(edge.shape)
    # Threads share out columns: every sum is formed in the order of the rows, whatever their number.
    bounds = even_bounds(x.size(1), column_parts(col.numel() + x.size(0), x.size(1)))
    grads = (grad_x.numpy(), grad_edge.numpy(), grad_own.numpy())
    run_ranges(_edge_loops.relu_rows_back, bounds, *arrays, to_numpy(grad), *grads)
    return grad_x, grad_edge, grad_own


def column_parts(rows: int, width: int) -> int:
    """Returns how many ranges of at least 16 columns to cut ``rows * width`` steps into."""
    return min(num_parts(rows * width), max(1, width // 16))


@_grad.register_fake
def _grad_fake(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    weight: Tensor | None,
    own: Tensor | None,
    loop: Tensor | None,
    loop_weight: Tensor | None,
    x: Tensor,
    edge: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), edge.new_empty(edge.shape), x.new_empty(x.size(1))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    own, loop = ctx.saved_tensors[4:6]
    grad_x, grad_edge, grad_own = _grad(*ctx.saved_tensors, grad)
    to_own = None if own is None else grad_own.sum().view(1)
    return None, None, None, None, to_own, None if loop is None else grad_own, None, grad_x, grad_edge


def _second_backward(
    ctx: Any, grad_x: Tensor, grad_edge: Tensor, grad_own: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient of a gradient, rarely wanted: in torch's operations."""
    rowptr, col, kind, weight, own, loop, loop_weight, x, edge, grad = ctx.saved_tensors
    given, features = (t if kind is None else t.index_select(0, kind) for t in (grad_edge, edge))
    g = (grad_x.index_select(0, col) + given).masked_fill(x.index_select(0, col) + features <= 0, 0)
    g = g if weight is None else g * weight[:, None]
    to_grad = x.new_zeros(grad.shape).index_add(0, entry_rows(rowptr, col.numel()), g)
    to_own = to_x = None
    if own is not None:
        to_grad = to_grad + own * grad_x + grad_own * x
        to_own, to_x = (grad * grad_x).sum().view(1), grad_own * grad
    if loop is not None:
        to_grad = to_grad + loop_weight[:, None] * (grad_x + grad_own).masked_fill(x + loop <= 0, 0)
    return None, None, None, None, to_own, None, None, to_x, None, to_grad


_sum.register_autograd(_backward, setup_context=_setup)
_grad.register_autograd(_second_backward, setup_context=_setup)
