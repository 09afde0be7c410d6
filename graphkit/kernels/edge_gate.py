r"""Means of neighbours weighed by a gate for each edge and channel, in one pass.

The aggregation of GatedGCN (Bresson and Laurent, arXiv:1711.07553, in the form of arXiv:2003.00982):

.. math:: z_{ij} = C e_{ij} + D x_i + E x_j, \qquad
          y_i = A x_i + \frac{\sum_j \sigma(z_{ij}) \odot B x_j}{\varepsilon + \sum_j \sigma(z_{ij})}

Of the ``[E, F]`` arrays only :math:`z` is kept, which is a result; the gates are computed again backward.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.edge_relu import check_edge, check_kinds, column_parts
from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges, weighted_bounds
from graphkit.kernels.spmm import check_ids, check_structure, entry_rows, to_numpy

__all__ = ["edge_gate_mean", "edge_gate_mean_torch"]

_HALF = (torch.float16, torch.bfloat16)


def edge_gate_mean(
    rowptr: Tensor,
    col: Tensor,
    nodes: Tensor,
    edge: Tensor,
    *,
    kind: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Computes the formula above.

    Args:
        rowptr: ``[n + 1]`` int64, ascending, from 0 to E: the edges by target.
        col: ``[E]`` int32 ids of the edges' sources.
        nodes: ``[n, 4 F]`` floating point: ``A x``, ``B x``, ``D x`` and ``E x`` side by side. Half precision
            is computed in float32 and rounded once.
        edge: ``[U, F]``: ``C e`` of the kinds of edges.
        kind: ``[E]`` int32 rows of ``edge``; by default edge ``e`` has row ``e``.
        eps: What is added to the sum of gates.

    Returns:
        ``y`` ``[n, F]`` and ``z`` ``[E, F]``, in the dtype of ``nodes``. Gradients flow from both to
        ``nodes`` and ``edge`` (once: they can't be differentiated again), summed in the order of the edges
        whatever the number of threads (on CPU).

    Raises:
        ValueError: If shapes or dtypes don't fit, or (on CPU) an id or row pointer is out of range.
    """
    check_structure(rowptr, col)
    rows = rowptr.numel() - 1
    if nodes.dim() != 2 or not nodes.is_floating_point() or nodes.size(0) != rows or nodes.size(1) % 4:
        raise ValueError(
            f"nodes is {nodes.dtype} of shape {tuple(nodes.shape)}; it must be floating point [{rows}, 4 F]"
        )
    check_edge(edge, kind, col.numel(), nodes.size(1) // 4)
    work = torch.float32 if nodes.dtype in _HALF else nodes.dtype
    y, z, _, _ = _gate(rowptr, col, kind, nodes.to(work), edge.to(work), eps)
    return y.to(nodes.dtype), z.to(nodes.dtype)


_Results = tuple[Tensor, Tensor, Tensor, Tensor]


def edge_gate_mean_torch(
    rowptr: Tensor, col: Tensor, kind: Tensor | None, nodes: Tensor, edge: Tensor, eps: float
) -> _Results:
    """:func:`edge_gate_mean` in plain torch, with the means and the inverse sums of gates, ``[n, F]``."""
    own, value, to, of = nodes.chunk(4, 1)
    rows = entry_rows(rowptr, col.numel())
    z = edge if kind is None else edge.index_select(0, kind)
    z = z + (to.index_select(0, rows) + of.index_select(0, col))
    gate = z.sigmoid()
    inverse = (own.new_zeros(own.shape).index_add(0, rows, gate) + eps).reciprocal()
    mean = own.new_zeros(own.shape).index_add(0, rows, gate * value.index_select(0, col)) * inverse
    return own + mean, z, mean, inverse


@torch.library.custom_op("graphkit::edge_gate_mean", mutates_args=())
def _gate(
    rowptr: Tensor, col: Tensor, kind: Tensor | None, nodes: Tensor, edge: Tensor, eps: float
) -> _Results:
    return edge_gate_mean_torch(rowptr, col, kind, nodes, edge, eps)


def _arrays(rowptr: Tensor, col: Tensor, kind: Tensor | None, nodes: Tensor) -> list[np.ndarray]:
    """Returns structure and nodes as arrays."""
    kinds = np.empty(0, np.int32) if kind is None else to_numpy(kind)
    return [to_numpy(rowptr), to_numpy(col), kinds, to_numpy(nodes)]


@_gate.register_kernel("cpu")
def _gate_cpu(
    rowptr: Tensor, col: Tensor, kind: Tensor | None, nodes: Tensor, edge: Tensor, eps: float
) -> _Results:
    from graphkit.kernels import _edge_loops as loops
    from graphkit.kernels._spmm_loops import bad_csr

    made = _gate_fake(rowptr, col, kind, nodes, edge, eps)
    arrays = _arrays(rowptr, col, kind, nodes)
    check_ids(bad_csr(arrays[0], arrays[1], nodes.size(0)), nodes.size(0))
    check_kinds(arrays[2], edge.size(0))
    features = to_numpy(edge)
    bounds = weighted_bounds(arrays[0], num_parts(4 * col.numel() * edge.size(1)))
    out = (t.numpy() for t in made)
    run_ranges(loops.gate_rows, bounds, *arrays, features, features.dtype.type(eps), *out)
    return made


@_gate.register_fake
def _gate_fake(
    rowptr: Tensor, col: Tensor, kind: Tensor | None, nodes: Tensor, edge: Tensor, eps: float
) -> _Results:
    width = edge.size(1)
    y, mean, inverse = (nodes.new_empty(nodes.size(0), width) for _ in range(3))
    return y, nodes.new_empty(col.numel(), width), mean, inverse


def _setup(ctx: Any, inputs: tuple[Any, ...], output: _Results) -> None:
    rowptr, col, kind, nodes, edge, _ = inputs
    _, z, mean, inverse = output
    ctx.edge_rows = edge.size(0)
    ctx.save_for_backward(rowptr, col, kind, nodes, z, mean, inverse)
    ctx.mark_non_differentiable(mean, inverse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_z: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    rowptr, col, kind, nodes, z, mean, inverse = ctx.saved_tensors
    if grad_y is None:
        if grad_z is None:
            return (None,) * 6
        grad_y = torch.zeros_like(mean)
    grads = _grad(rowptr, col, kind, nodes, z, mean, inverse, grad_y, grad_z, ctx.edge_rows)
    return None, None, None, *grads, None


_gate.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("graphkit::edge_gate_mean_grad", mutates_args=())
def _grad(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    nodes: Tensor,
    z: Tensor,
    mean: Tensor,
    inverse: Tensor,
    grad_y: Tensor,
    grad_z: Tensor | None,
    edge_rows: int,
) -> tuple[Tensor, Tensor]:
    rows, gate = entry_rows(rowptr, col.numel()), z.sigmoid()
    value = nodes.chunk(4, 1)[1].index_select(0, col)
    to_value = (grad_y * inverse).index_select(0, rows) * gate
    g = to_value * (value - mean.index_select(0, rows)) * (1 - gate)
    g = g if grad_z is None else g + grad_z
    zero = torch.zeros_like(mean)
    parts = (grad_y, zero.index_add(0, col, to_value), zero.index_add(0, rows, g), zero.index_add(0, col, g))
    to_edge = g if kind is None else g.new_zeros(edge_rows, g.size(1)).index_add(0, kind, g)
    return torch.cat(parts, 1), to_edge.clone()


@_grad.register_kernel("cpu")
def _grad_cpu(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    nodes: Tensor,
    z: Tensor,
    mean: Tensor,
    inverse: Tensor,
    grad_y: Tensor,
    grad_z: Tensor | None,
    edge_rows: int,
) -> tuple[Tensor, Tensor]:
    from graphkit.kernels import _edge_loops as loops

    arrays = _arrays(rowptr, col, kind, nodes)  # checked going forward
    given = [to_numpy(t) for t in (z, mean, inverse, grad_y)]
    more = np.empty((0, z.size(1)), given[0].dtype) if grad_z is None else to_numpy(grad_z)
    grad_nodes = nodes.new_zeros(nodes.shape)
    make = z.new_empty if kind is None else z.new_zeros
    grad_edge = make(edge_rows, z.size(1))
    # Threads share out columns: every sum is formed in the order of the edges, whatever their number.
    bounds = even_bounds(z.size(1), column_parts(4 * z.size(0), z.size(1)))
    run_ranges(loops.gate_rows_back, bounds, *arrays, *given, more, grad_nodes.numpy(), grad_edge.numpy())
    return grad_nodes, grad_edge


@_grad.register_fake
def _grad_fake(
    rowptr: Tensor,
    col: Tensor,
    kind: Tensor | None,
    nodes: Tensor,
    z: Tensor,
    mean: Tensor,
    inverse: Tensor,
    grad_y: Tensor,
    grad_z: Tensor | None,
    edge_rows: int,
) -> tuple[Tensor, Tensor]:
    return nodes.new_empty(nodes.shape), z.new_empty(edge_rows, z.size(1))
