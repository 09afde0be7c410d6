r"""Answers of EpiGNN to queries, from relations and composition in one operation.

Both passes of :mod:`graphkit.kernels.belief` and the read-out, for models that read out between source and
target: beliefs of nodes, which nobody else asks for, and their gradients stay inside.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels import _belief_torch as plain
from graphkit.kernels._belief_inputs import (
    Pooling,
    check_graph,
    check_ids,
    is_product,
    make_plan,
    padded,
    rows,
    unpadded,
)
from graphkit.kernels.parallel import run_ranges
from graphkit.kernels.spmm import to_numpy

__all__ = ["answer_queries"]


def answer_queries(
    composition: Tensor,
    relation: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    source: Tensor,
    target: Tensor,
    path_node: Tensor,
    path_graph: Tensor,
    *,
    num_nodes: int,
    pooling: Pooling = "min",
    rounds: int | None = None,
    cyclic_rounds: Tensor | None = None,
) -> Tensor:
    r"""Returns the belief about the relation between source and target of each query (paper section 3).

    With :math:`\phi(x, y)_p = \sum_{ij} A_{pij} x_i y_j`, forward beliefs from sources along edges, backward
    beliefs from targets against them, as :func:`~graphkit.kernels.belief.propagate_beliefs` does it:

    .. math::
        \overrightarrow h_v \leftarrow \text{pool}_{u \to v}\, \phi(\overrightarrow h_u, r_{uv}), \qquad
        \overleftarrow h_u \leftarrow \text{pool}_{u \to v}\, \phi(r_{uv}, \overleftarrow h_v), \qquad
        out_b = \text{pool}_{v \in b}\, \phi(\overrightarrow h_v, \overleftarrow h_v)

    Args:
        composition: ``[F, n, n, n]``, A, indexed (facet, out, left, right).
        relation: ``[R, F, n]`` distributions, of the same dtype.
        edge_index: ``[2, E]`` int64 in ``[0, N)``.
        edge_type: ``[E]`` int64 in ``[0, R)``.
        source: ``[B]`` int64, one for each component that is asked about.
        target: ``[B]`` int64.
        path_node: ``[P]`` int64, the nodes between them, at which both passes meet.
        path_graph: ``[P]`` int64 in ``[0, B)``, the query of each.
        num_nodes: N.
        pooling: "min" or "product".
        rounds: Number of rounds, or None; and
        cyclic_rounds: ``[B]`` int64, as in :func:`~graphkit.kernels.belief.propagate_beliefs`.

    Returns:
        ``[B, F, n]`` in the dtype of ``relation``. Differentiable once in ``composition`` and ``relation``.

    Raises:
        ValueError: If shapes or options don't fit, or (on CPU) an id is out of range.
    """
    check_graph(edge_index, edge_type, source, num_nodes, rounds, cyclic_rounds)
    if relation.dim() != 3 or not relation.is_floating_point():
        raise ValueError(
            f"relation is {relation.dtype} {tuple(relation.shape)}; it must be floating point [R, F, n]"
        )
    facets, n = relation.shape[1:]
    if composition.shape != (facets, n, n, n):
        raise ValueError(
            f"composition has shape {tuple(composition.shape)}; it must be [{facets}, {n}, {n}, {n}]"
        )
    for name, ids, like in (("target", target, source), ("path_graph", path_graph, path_node)):
        if ids.dtype != torch.int64 or ids.shape != like.shape or ids.dim() != 1:
            raise ValueError(f"{name} is {ids.dtype} {tuple(ids.shape)}; it must be int64 {list(like.shape)}")
    turns = torch.zeros_like(source) if cyclic_rounds is None else cyclic_rounds
    work = padded(composition.permute(1, 2, 3, 0)), padded(relation.transpose(1, 2))
    graph = edge_index, edge_type, source, target, path_node, path_graph, turns
    out, _, _ = _answer(*work, *graph, num_nodes, rounds or 0, is_product(pooling))
    return unpadded(out, facets).transpose(1, 2).to(relation.dtype)


def both_ways(ends: Tensor, kind: Tensor, source: Tensor, target: Tensor, turns: Tensor, *sizes: int) -> Any:
    """Returns the graph and its reverse side by side: edges, relations, anchors and rounds.

    ``sizes`` are the numbers of nodes, relations and rounds.
    """
    nodes, relations, rounds = sizes
    edges = torch.cat([ends, ends.flip(0) + nodes], 1)
    kinds, anchor = torch.cat([kind, kind + relations]), torch.cat([source, target + nodes])
    return plain.Graph(edges, kinds, anchor[None], turns.repeat(2), 2 * nodes, rounds)


@torch.library.custom_op("graphkit::belief_answer", mutates_args=())
def _answer(
    composition: Tensor,
    relation: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    source: Tensor,
    target: Tensor,
    path_node: Tensor,
    path_graph: Tensor,
    turns: Tensor,
    num_nodes: int,
    rounds: int,
    product: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = num_nodes, relation.size(0), rounds
    union = both_ways(edge_index, edge_type, source, target, turns, *sizes)
    ends = path_node, path_node + num_nodes, path_graph, source.numel()
    return plain.answer(composition, relation, union, *ends, product)


@_answer.register_fake
def _answer_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    like, source, num_nodes = args[1], args[4], args[9]
    relations, n, facets = like.shape
    return (
        like.new_empty(source.numel(), n, facets),
        like.new_empty(2 * num_nodes, n, facets),
        like.new_empty(2 * relations, n, n, facets),
    )


_last = threading.local()  # what the forward pass prepared, for the backward pass that mostly follows


def _keep(*graph: Any) -> tuple[Any, ...]:
    """Returns what :func:`_prepare` makes of a graph, and keeps it for the backward pass."""
    _last.key, _last.graph, _last.made = _key(graph), graph, _prepare(*graph)
    made: tuple[Any, ...] = _last.made
    return made


def _kept(*graph: Any) -> tuple[Any, ...]:
    """Returns what was kept if it is of this graph, which is held so long that no other takes its place."""
    same = getattr(_last, "key", None) == _key(graph)
    made: tuple[Any, ...] = _last.made if same else _prepare(*graph)
    return made


def _key(graph: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        (item.data_ptr(), item.shape, item.stride(), 0 if item.is_inference() else item._version)
        if isinstance(item, Tensor)
        else item
        for item in graph
    )


def _prepare(*graph: Any) -> tuple[Any, ...]:
    """Returns the plan of the union and its anchors, path nodes by query, and both rows of each."""
    from graphkit.kernels._belief_plan_loops import sort_by
    from graphkit.kernels._path_loops import bad_ids

    edge_index, edge_type, source, target, path_node, path_graph, turns, num_nodes, rounds, relations = graph
    ends = torch.stack([source, target])
    check_ids(edge_index, edge_type, ends, num_nodes, relations, "source or target")
    union = both_ways(edge_index, edge_type, source, target, turns, num_nodes, relations, rounds)
    plan, anchors, _ = make_plan(union)
    node, group = to_numpy(path_node), to_numpy(path_graph)
    for name, ids, limit in (("path_node", node, num_nodes), ("path_graph", group, source.numel())):
        if bad_ids(ids, limit):
            raise ValueError(f"{name} holds an id outside [0, {limit})")
    return plan, anchors, (*sort_by(group, source.numel()), node, node + num_nodes)


@_answer.register_kernel("cpu")
def _answer_cpu(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from graphkit.kernels import _belief_pair_loops as readout
    from graphkit.kernels._belief_loops import finite, size_of
    from graphkit.kernels._belief_sweep_loops import sweep
    from graphkit.kernels._belief_table_loops import tables

    composition, relation, *graph, product = args
    out, state, matrix = made = _answer_fake(*args)
    plan, anchors, pairs = _keep(*graph, relation.size(0))
    size, (weights, given) = size_of(relation.size(1)), (rows(composition, 0), rows(relation))
    if not (finite(weights) and finite(given)):  # which minima could hide
        out.fill_(np.nan)
        return made
    made_rows = rows(matrix)
    tables(weights, given, made_rows, relation.size(1))
    run_ranges(sweep, [0, 1], plan, anchors, made_rows, rows(state), product, size)
    run_ranges(readout.pairs, [0, out.size(0)], *pairs, weights, rows(state), rows(out), product, size)
    return made


@torch.library.custom_op("graphkit::belief_answer_grad", mutates_args=())
def _answer_grad(
    grad: Tensor,
    out: Tensor,
    state: Tensor,
    matrix: Tensor,
    composition: Tensor,
    relation: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    source: Tensor,
    target: Tensor,
    path_node: Tensor,
    path_graph: Tensor,
    turns: Tensor,
    num_nodes: int,
    rounds: int,
    product: bool,
) -> tuple[Tensor, Tensor]:
    sizes = num_nodes, relation.size(0), rounds
    union = both_ways(edge_index, edge_type, source, target, turns, *sizes)
    ends = path_node, path_node + num_nodes, path_graph
    return plain.answer_grad(grad, state, matrix, composition, relation, union, *ends, product)


@_answer_grad.register_kernel("cpu")
def _answer_grad_cpu(
    grad: Tensor,
    out: Tensor,
    state: Tensor,
    matrix: Tensor,
    composition: Tensor,
    relation: Tensor,
    *graph: Any,
) -> tuple[Tensor, Tensor]:
    from graphkit.kernels import _belief_pair_loops as readout
    from graphkit.kernels._belief_loops import size_of
    from graphkit.kernels._belief_sweep_loops import sweep_grad
    from graphkit.kernels._belief_table_loops import tables_grad

    *given, product = graph
    plan, anchors, pairs = _kept(*given, relation.size(0))
    total, own = composition.new_zeros(composition.shape), relation.new_zeros(relation.shape)
    flow, of_matrix = np.zeros_like(rows(state)), np.zeros_like(rows(matrix))
    size, weights, states = size_of(relation.size(1)), rows(composition, 0), rows(state)
    ends = weights, states, rows(out), rows(grad), rows(total, 0), flow
    run_ranges(readout.pairs_grad, [0, out.size(0)], *pairs, *ends, product, size)
    arrays = anchors, rows(matrix), states, flow, of_matrix
    run_ranges(sweep_grad, [0, 1], 1, plan, *arrays, product, size)
    tables_grad(weights, rows(relation), of_matrix, rows(total, 0), rows(own), relation.size(1))
    return total, own


@_answer_grad.register_fake
def _answer_grad_fake(
    grad: Tensor,
    out: Tensor,
    state: Tensor,
    matrix: Tensor,
    composition: Tensor,
    relation: Tensor,
    *graph: Any,
) -> tuple[Tensor, Tensor]:
    return composition.new_empty(composition.shape), relation.new_empty(relation.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[:9])
    ctx.options = inputs[9:]


def _backward(ctx: Any, grad: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    total, own = _answer_grad(grad, *ctx.saved_tensors, *ctx.options)
    return total, own, *[None] * 10


_answer.register_autograd(_backward, setup_context=_setup)
