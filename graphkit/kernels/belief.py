r"""Beliefs about relations, sent along edges and intersected at nodes (EpiGNN).

Khalid and Schockaert, Systematic Relational Reasoning With Epistemic Graph Neural Networks, ICLR 2025,
section 3. A belief is a distribution over n coordinates in each of F facets. An edge applies its relation's
matrix to the belief of its source, a node takes the minimum or the product of what arrives, coordinate by
coordinate, and normalises it. In a graph without cycles every edge needs to do so once, its source being
settled before, instead of once a round; where there are cycles, the backward pass computes the rounds again
instead of keeping them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels import _belief_torch as plain
from graphkit.kernels._belief_inputs import (
    Pooling,
    check_graph,
    check_ids,
    grouped,
    is_product,
    make_plan,
    padded,
    rows,
    unpadded,
)
from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges
from graphkit.kernels.spmm import to_numpy

__all__ = ["Pooling", "pool_compositions", "propagate_beliefs"]

CHUNKS = 8  # copies whose gradients are summed apart: as many at any number of threads


def propagate_beliefs(
    matrix: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    anchor: Tensor,
    *,
    num_nodes: int,
    pooling: Pooling = "min",
    rounds: int | None = None,
    cyclic_rounds: Tensor | None = None,
) -> Tensor:
    r"""Propagates beliefs from anchors along directed edges (paper section 3).

    Anchors believe in coordinate 0 in every round, all other nodes in nothing (:math:`1/n`) before the first.
    In each round, for every node v that is no anchor and has incoming edges:

    .. math:: h_v \leftarrow \text{normalise}\big(\text{pool}_{u \to v}\, M_{r_{uv}} h_u\big)

    The minimum gets :math:`10^{-18}` added before it is normalised, and so does every factor of a product,
    which is kept with an exponent of its own: many factors don't underflow.

    Args:
        matrix: ``[R, F, n, n]`` floating point, not negative, indexed (relation, facet, out, in); columns
            sum to 1 or to less. Half precision is computed in float32, the result rounded once.
        edge_index: ``[2, E]`` int64 in ``[0, N)``; any graph, with cycles, loops and parallel edges.
        edge_type: ``[E]`` int64 in ``[0, R)``.
        anchor: ``[A]`` int64, or ``[S, A]`` for S independent propagations on the same graph.
        num_nodes: N.
        pooling: "min" or "product". The gradient of a minimum goes to the first edge that attains it.
        rounds: Number of rounds; None for as many as change anything where there are no cycles, and
            ``cyclic_rounds`` in components that have some.
        cyclic_rounds: ``[A]`` int64; a component takes the largest number of its anchors (0 without any).

    Returns:
        ``[N, F, n]``, or ``[S, N, F, n]``, in the dtype of ``matrix``. Differentiable once in ``matrix``.

    Raises:
        ValueError: If shapes or options don't fit, or (on CPU) an id is out of range.
    """
    check_graph(edge_index, edge_type, anchor, num_nodes, rounds, cyclic_rounds)
    if matrix.dim() != 4 or matrix.size(2) != matrix.size(3) or not matrix.is_floating_point():
        raise ValueError(
            f"matrix is {matrix.dtype} {tuple(matrix.shape)}; it must be floating point [R, F, n, n]"
        )
    turns = anchor.new_zeros(anchor.size(-1)) if cyclic_rounds is None else cyclic_rounds
    product, facets = is_product(pooling), matrix.size(1)
    work = padded(matrix.permute(0, 2, 3, 1))
    copies = anchor if anchor.dim() == 2 else anchor[None]
    state = _sweep(work, edge_index, edge_type, copies, turns, num_nodes, rounds or 0, product)
    state = unpadded(state, facets).transpose(-1, -2).to(matrix.dtype)
    return state if anchor.dim() == 2 else state.squeeze(0)


def pool_compositions(
    composition: Tensor,
    state: Tensor,
    left: Tensor,
    right: Tensor,
    group: Tensor,
    *,
    num_groups: int,
    pooling: Pooling = "min",
) -> Tensor:
    r"""Composes pairs of beliefs and pools the results of each group (paper section 3).

    .. math:: z_{kp} = \sum_{ij} A_{pij}\, h_{left_k, i}\, h_{right_k, j}, \qquad
              out_g = \text{normalise}(\text{pool}_{k \in g}\, z_k)

    Args:
        composition: ``[F, n, n, n]``, indexed (facet, out, left, right).
        state: ``[N, F, n]`` beliefs, of the same dtype.
        left: ``[P]`` int64 rows of ``state``.
        right: ``[P]`` int64.
        group: ``[P]`` int64 in ``[0, G)``, in any order.
        num_groups: G.
        pooling: As in :func:`propagate_beliefs`.

    Returns:
        ``[G, F, n]`` in the dtype of ``state``; uniform where a group is empty. Differentiable once in
        ``composition`` and ``state``.

    Raises:
        ValueError: If shapes don't fit, or (on CPU) an id is out of range.
    """
    shape = (state.size(-2), *[state.size(-1)] * 3)
    if state.dim() != 3 or not state.is_floating_point() or composition.shape != shape:
        raise ValueError(
            f"composition has shape {tuple(composition.shape)} and state {state.dtype} {tuple(state.shape)}; "
            "they must be [F, n, n, n] and floating point [N, F, n]"
        )
    for name, ids in (("left", left), ("right", right), ("group", group)):
        if ids.dtype != torch.int64 or ids.shape != left.shape or ids.dim() != 1:
            raise ValueError(f"{name} is {ids.dtype} {tuple(ids.shape)}; it must be int64 [P], as left")
    work = padded(composition.permute(1, 2, 3, 0)), padded(state.transpose(1, 2))
    out = _pairs(*work, left, right, group, num_groups, is_product(pooling))
    return unpadded(out, state.size(1)).transpose(1, 2).to(state.dtype)


# --- the sweep: matrix [R, n, n, F], anchors [S, A], state [S, N, n, F] ------------------------------------


@torch.library.custom_op("graphkit::belief_sweep", mutates_args=())
def _sweep(
    matrix: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    anchor: Tensor,
    turns: Tensor,
    num_nodes: int,
    rounds: int,
    product: bool,
) -> Tensor:
    graph = plain.Graph(edge_index, edge_type, anchor, turns, num_nodes, rounds)
    return plain.sweep(matrix, graph, product)


@_sweep.register_fake
def _sweep_fake(*args: Any) -> Tensor:
    matrix, _, _, anchor, _, num_nodes, *_ = args
    made: Tensor = matrix.new_empty(anchor.size(0), num_nodes, matrix.size(1), matrix.size(3))
    return made


@_sweep.register_kernel("cpu")
def _sweep_cpu(*args: Any) -> Tensor:
    from graphkit.kernels import _belief_sweep_loops as loops
    from graphkit.kernels._belief_loops import finite, size_of

    matrix, *given, product = args
    graph = plain.Graph(*given)
    anchor = graph.anchor
    check_ids(graph.edge_index, graph.edge_type, anchor, graph.num_nodes, matrix.size(0))
    plan, anchors, messages = make_plan(graph)
    state = _sweep_fake(*args)
    weights, size = rows(matrix), size_of(matrix.size(1))
    if not finite(weights):  # which minima could hide
        return state.fill_(np.nan)
    bounds = even_bounds(anchor.size(0), min(num_parts(messages * weights[:1].size), max(anchor.size(0), 1)))
    run_ranges(loops.sweep, bounds, plan, anchors, weights, rows(state, 2), product, size)
    return state


@torch.library.custom_op("graphkit::belief_sweep_grad", mutates_args=())
def _sweep_grad(
    grad: Tensor,
    state: Tensor,
    matrix: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    anchor: Tensor,
    turns: Tensor,
    num_nodes: int,
    rounds: int,
    product: bool,
) -> Tensor:
    graph = plain.Graph(edge_index, edge_type, anchor, turns, num_nodes, rounds)
    return plain.sweep_grad(grad, matrix, graph, product)


@_sweep_grad.register_kernel("cpu")
def _sweep_grad_cpu(grad: Tensor, state: Tensor, matrix: Tensor, *graph: Any) -> Tensor:
    from graphkit.kernels import _belief_sweep_loops as loops
    from graphkit.kernels._belief_loops import size_of

    *given, product = graph
    plan, anchors, messages = make_plan(plain.Graph(*given))
    chunks, size = min(CHUNKS, anchors.shape[0]), size_of(matrix.size(1))
    total = matrix.new_zeros(chunks, *matrix.shape)
    bounds = even_bounds(chunks, min(num_parts(3 * messages * matrix[0].numel()), max(chunks, 1)))
    # gradients are passed on within their array
    flow = grad.detach().clone(memory_format=torch.contiguous_format)
    arrays = anchors, rows(matrix), rows(state, 2), rows(flow, 2), rows(total, 2)
    run_ranges(loops.sweep_grad, bounds, chunks, plan, *arrays, product, size)
    return total[0] if chunks == 1 else total.sum(0)


@_sweep_grad.register_fake
def _sweep_grad_fake(grad: Tensor, state: Tensor, matrix: Tensor, *graph: Any) -> Tensor:
    return matrix.new_empty(matrix.shape)


def _sweep_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[:5])
    ctx.options = inputs[5:]


def _sweep_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradient = _sweep_grad(grad, *ctx.saved_tensors, *ctx.options) if ctx.needs_input_grad[0] else None
    return gradient, *[None] * 7


_sweep.register_autograd(_sweep_backward, setup_context=_sweep_setup)


# --- the read-out: composition [n, n, n, F], state [N, n, F], out [G, n, F] --------------------------------


@torch.library.custom_op("graphkit::belief_pairs", mutates_args=())
def _pairs(
    composition: Tensor,
    state: Tensor,
    left: Tensor,
    right: Tensor,
    group: Tensor,
    num_groups: int,
    product: bool,
) -> Tensor:
    return plain.pairs(composition, state, left, right, group, num_groups, product)


@_pairs.register_fake
def _pairs_fake(*args: Any) -> Tensor:
    _, state, _, _, _, num_groups, _ = args
    made: Tensor = state.new_empty(num_groups, *state.shape[1:])
    return made


@_pairs.register_kernel("cpu")
def _pairs_cpu(*args: Any) -> Tensor:
    from graphkit.kernels import _belief_pair_loops as loops
    from graphkit.kernels._belief_loops import finite, size_of

    composition, state, left, right, group, num_groups, product = args
    ends = to_numpy(left), to_numpy(right), to_numpy(group)
    arrays = grouped(ends, state.size(0), num_groups)
    out, size = _pairs_fake(*args), size_of(state.size(1))
    weights = to_numpy(composition).reshape(1, -1)
    if not finite(weights):
        return out.fill_(np.nan)
    bounds = even_bounds(num_groups, min(num_parts(left.numel() * weights.size), max(num_groups, 1)))
    run_ranges(loops.pairs, bounds, *arrays, weights, rows(state), rows(out), product, size)
    return out


@torch.library.custom_op("graphkit::belief_pairs_grad", mutates_args=())
def _pairs_grad(
    grad: Tensor,
    out: Tensor,
    composition: Tensor,
    state: Tensor,
    left: Tensor,
    right: Tensor,
    group: Tensor,
    product: bool,
) -> tuple[Tensor, Tensor]:
    return plain.pairs_grad(grad, composition, state, left, right, group, product)


@_pairs_grad.register_kernel("cpu")
def _pairs_grad_cpu(*args: Any) -> tuple[Tensor, Tensor]:
    from graphkit.kernels import _belief_pair_loops as loops
    from graphkit.kernels._belief_loops import size_of

    grad, out, composition, state, left, right, group, product = args
    index = to_numpy(left), to_numpy(right), to_numpy(group)
    arrays = grouped(index, state.size(0), out.size(0))
    total, flow = composition.new_zeros(composition.shape), state.new_zeros(state.shape)
    weights, size = to_numpy(composition).reshape(1, -1), size_of(state.size(1))
    ends = weights, rows(state), rows(out), rows(grad), total.numpy().reshape(1, -1), rows(flow)
    run_ranges(loops.pairs_grad, [0, out.size(0)], *arrays, *ends, product, size)
    return total, flow


@_pairs_grad.register_fake
def _pairs_grad_fake(
    grad: Tensor, out: Tensor, composition: Tensor, state: Tensor, *pairs: Any
) -> tuple[Tensor, Tensor]:
    return composition.new_empty(composition.shape), state.new_empty(state.shape)


def _pairs_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[:5])
    ctx.product = inputs[6]


def _pairs_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_pairs_grad(grad, *ctx.saved_tensors, ctx.product), None, None, None, None, None


_pairs.register_autograd(_pairs_backward, setup_context=_pairs_setup)
