r"""Probabilities of random walks between all pairs of nodes of every graph in a batch.

.. math:: P_{ij} = [I, M, M^2, \dots, M^{K-1}]_{ij}, \qquad M = D^{-1} A

the relative random walk probabilities of "Graph Inductive Biases in Transformers without Message Passing",
Liheng Ma et al., ICML 2023, https://arxiv.org/abs/2305.17589, section 3.1. Powers are sparse-dense products:
walks from some nodes at a time are carried along the edges, so a graph of n nodes and E edges costs K n E.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.parallel import num_parts, run_ranges, weighted_bounds
from graphkit.kernels.spmm import to_numpy

__all__ = [
    "Duplicates",
    "random_walk_diagonal",
    "random_walk_diagonal_torch",
    "random_walks",
    "random_walks_torch",
]

Duplicates = Literal["add", "overwrite"]


def random_walks(
    edge_index: Tensor,
    ptr: Tensor,
    steps: int,
    edge_weight: Tensor | None = None,
    *,
    duplicates: Duplicates = "add",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Returns :math:`P_{ij}` for all pairs of nodes of each graph.

    Args:
        edge_index: ``[2, E]`` int64 of the disjoint union, from source to target. Edges count in their
            direction, loops too; the edges of a graph stay within it.
        ptr: ``[B + 1]`` int64 from 0 to n: graph ``g`` has nodes ``ptr[g]`` to ``ptr[g + 1] - 1``. Where it
            lies on the CPU nothing waits for another device.
        steps: ``K``, the identity included: 1 is the identity alone.
        edge_weight: ``[E]``, ones by default. No gradient flows to it.
        duplicates: What becomes of an edge that is there several times: ``add`` its weights, or let the last
            one ``overwrite`` the others while the degree counts all, so that rows sum to less than 1. The
            authors' code does the latter.
        dtype: float32 or float64.

    Returns:
        ``[P, K]``, a row for each pair in the order (graph, i, j), so P is the sum of squared sizes; entry
        ``k`` is the probability that ``k`` steps from ``i`` end in ``j``. A node without out-going edges
        (or with weights that sum to 0) is left by none.

    Raises:
        ValueError: If an argument is out of its range, or (on CPU) an edge leaves its graph.
    """
    sizes = _checked(edge_index, ptr, steps, edge_weight, duplicates, dtype)
    weight = None if edge_weight is None else edge_weight.detach().to(dtype)
    pairs = int(sizes.square().sum())
    overwrite = duplicates == "overwrite"
    out: Tensor = _walks(edge_index, ptr.to(edge_index.device), weight, steps, pairs, overwrite, dtype)
    return out


def random_walk_diagonal(
    edge_index: Tensor,
    ptr: Tensor,
    steps: int,
    edge_weight: Tensor | None = None,
    *,
    duplicates: Duplicates = "add",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Returns :math:`P_{ii}`, the probabilities to be back after each number of steps, ``[n, K]``.

    For encodings that want these alone: memory is ``[n, K]``, not that of all pairs (on CPU).

    Args:
        edge_index: As in :func:`random_walks`, like the other arguments.
        ptr: ``[B + 1]`` int64.
        steps: ``K``, the identity included.
        edge_weight: ``[E]``, ones by default.
        duplicates: ``add`` or ``overwrite``.
        dtype: float32 or float64.

    Raises:
        ValueError: As :func:`random_walks`.
    """
    _checked(edge_index, ptr, steps, edge_weight, duplicates, dtype)
    weight = None if edge_weight is None else edge_weight.detach().to(dtype)
    overwrite = duplicates == "overwrite"
    out: Tensor = _diagonal(edge_index, ptr.to(edge_index.device), weight, steps, overwrite, dtype)
    return out


def random_walks_torch(
    edge_index: Tensor, ptr: Tensor, weight: Tensor | None, steps: int, overwrite: bool, dtype: torch.dtype
) -> Tensor:
    """:func:`random_walks` in plain torch operations: any device, and what tests compare with.

    ``M^k = M M^(k-1)``: the row of ``i`` is the weighted sum of the rows of its targets.
    """
    sizes, device = ptr.diff(), edge_index.device
    first, size = (part.repeat_interleave(sizes) for part in (ptr[:-1], sizes))  # of each node's graph
    begin = torch.cat([size.new_zeros(1), size.cumsum(0)])  # of each node's pairs
    node = torch.arange(size.numel(), device=device)
    power = torch.zeros(int(begin[-1]), dtype=dtype, device=device)
    power[begin[:-1] + node - first] = 1
    value = _transition_torch(edge_index, weight, node.numel(), overwrite, dtype)
    # every edge carries as many numbers as its graph has nodes
    count = size[edge_index[0]]
    within = torch.arange(int(count.sum()), device=device)
    within -= (count.cumsum(0) - count).repeat_interleave(count)
    to, source = (begin[end].repeat_interleave(count) + within for end in edge_index)
    value = value.repeat_interleave(count)
    powers = [power]
    for _ in range(steps - 1):
        powers.append(torch.zeros_like(power).index_add(0, to, value * powers[-1][source]))
    return torch.stack(powers, 1)


def random_walk_diagonal_torch(
    edge_index: Tensor, ptr: Tensor, weight: Tensor | None, steps: int, overwrite: bool, dtype: torch.dtype
) -> Tensor:
    """:func:`random_walk_diagonal` in plain torch operations, by way of all pairs."""
    sizes = ptr.diff()
    size = sizes.repeat_interleave(sizes)
    node = torch.arange(size.numel(), device=ptr.device)
    own = size.cumsum(0) - size + node - ptr[:-1].repeat_interleave(sizes)
    return random_walks_torch(edge_index, ptr, weight, steps, overwrite, dtype)[own]


def _transition_torch(
    edge_index: Tensor, weight: Tensor | None, nodes: int, overwrite: bool, dtype: torch.dtype
) -> Tensor:
    """Returns the probability of every edge to be walked along, ``[E]``."""
    source, target = edge_index
    if weight is None:
        weight = torch.ones(source.numel(), dtype=dtype, device=source.device)
    degree = weight.new_zeros(nodes).index_add(0, source, weight)
    value = weight * torch.where(degree == 0, 0, 1 / degree)[source]
    if overwrite:
        same = source * nodes + target
        order = torch.argsort(same, stable=True)
        last = torch.ones_like(same, dtype=torch.bool)
        last[order[:-1]] = same[order[:-1]] != same[order[1:]]
        value = torch.where(last, value, 0)
    return value


def _checked(
    edge_index: Tensor,
    ptr: Tensor,
    steps: int,
    edge_weight: Tensor | None,
    duplicates: str,
    dtype: torch.dtype,
) -> Tensor:
    """Raises ValueError for what doesn't fit; returns the sizes of the graphs."""
    if edge_index.dtype != torch.int64 or edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"edge_index is {edge_index.dtype} {tuple(edge_index.shape)}; it must be int64 [2, E]"
        )
    if ptr.dtype != torch.int64 or ptr.dim() != 1 or ptr.numel() < 1:
        raise ValueError(f"ptr is {ptr.dtype} {tuple(ptr.shape)}; it must be int64 [B + 1]")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1, the identity alone")
    if edge_weight is not None and edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"edge_weight has shape {tuple(edge_weight.shape)}; it must be [{edge_index.size(1)}]"
        )
    if duplicates not in ("add", "overwrite"):
        raise ValueError(f"duplicates is {duplicates!r}; it must be add or overwrite")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}; it must be float32 or float64")
    return ptr.diff()


@torch.library.custom_op("graphkit::random_walks", mutates_args=())
def _walks(
    edge_index: Tensor,
    ptr: Tensor,
    weight: Tensor | None,
    steps: int,
    num_pairs: int,
    overwrite: bool,
    dtype: torch.dtype,
) -> Tensor:
    return random_walks_torch(edge_index, ptr, weight, steps, overwrite, dtype)


@_walks.register_kernel("cpu")
def _walks_cpu(
    edge_index: Tensor,
    ptr: Tensor,
    weight: Tensor | None,
    steps: int,
    num_pairs: int,
    overwrite: bool,
    dtype: torch.dtype,
) -> Tensor:
    from graphkit.kernels import _random_walks_loops as loops

    rows = _transitions(edge_index, ptr, weight, overwrite, dtype)
    bounds = to_numpy(ptr)
    pair_ptr = np.concatenate([[0], np.cumsum(np.diff(bounds) ** 2)])
    out = torch.empty(num_pairs, steps, dtype=dtype)
    parts = weighted_bounds(pair_ptr, num_parts(2 * out.numel()))
    run_ranges(loops.all_pairs, parts, bounds, pair_ptr, *rows, out.numpy())
    return out


@_walks.register_fake
def _walks_fake(
    edge_index: Tensor,
    ptr: Tensor,
    weight: Tensor | None,
    steps: int,
    num_pairs: int,
    overwrite: bool,
    dtype: torch.dtype,
) -> Tensor:
    return edge_index.new_empty(num_pairs, steps, dtype=dtype)


@torch.library.custom_op("graphkit::random_walk_diagonal", mutates_args=())
def _diagonal(
    edge_index: Tensor, ptr: Tensor, weight: Tensor | None, steps: int, overwrite: bool, dtype: torch.dtype
) -> Tensor:
    return random_walk_diagonal_torch(edge_index, ptr, weight, steps, overwrite, dtype)


@_diagonal.register_kernel("cpu")
def _diagonal_cpu(
    edge_index: Tensor, ptr: Tensor, weight: Tensor | None, steps: int, overwrite: bool, dtype: torch.dtype
) -> Tensor:
    from graphkit.kernels import _random_walks_loops as loops

    rows = _transitions(edge_index, ptr, weight, overwrite, dtype)
    bounds = to_numpy(ptr)
    work = np.concatenate([[0], np.cumsum(np.diff(bounds) ** 2)])
    out = torch.empty(int(bounds[-1]), steps, dtype=dtype)
    parts = weighted_bounds(work, num_parts(int(work[-1]) * steps))
    run_ranges(loops.returns, parts, bounds, *rows, out.numpy())
    return out


@_diagonal.register_fake
def _diagonal_fake(
    edge_index: Tensor, ptr: Tensor, weight: Tensor | None, steps: int, overwrite: bool, dtype: torch.dtype
) -> Tensor:
    nodes = torch.library.get_ctx().new_dynamic_size()
    return edge_index.new_empty(nodes, steps, dtype=dtype)


def _transitions(
    edge_index: Tensor, ptr: Tensor, weight: Tensor | None, overwrite: bool, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the edges sorted by target: row pointers, sources, probabilities."""
    from graphkit.kernels import _random_walks_loops as loops

    source, target = to_numpy(edge_index[0]), to_numpy(edge_index[1])
    bounds = to_numpy(ptr)
    value = np.empty(source.shape[0], np.float32 if dtype == torch.float32 else np.float64)
    rowptr, col = np.zeros(max(int(bounds[-1]), 0) + 1, np.int64), np.empty(source.shape[0], np.int32)
    weights = np.empty(0, value.dtype) if weight is None else to_numpy(weight)
    fault = loops.transitions(source, target, weights, bounds, overwrite, rowptr, col, value)
    if fault == 1:
        raise ValueError(
            f"edge_index joins nodes of two graphs, or names one outside [0, {rowptr.shape[0] - 1})"
        )
    if fault == 2:
        raise ValueError("ptr must ascend from 0 to the number of nodes")
    return rowptr, col, value
