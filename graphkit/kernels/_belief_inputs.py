"""Checks and forms of the arguments of :mod:`graphkit.kernels.belief` and its relatives."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graphkit.kernels import _belief_torch as plain
from graphkit.kernels.spmm import to_numpy

Pooling = Literal["min", "product"]

FACETS = 8  # facets are computed in groups of so many


def is_product(pooling: str) -> bool:
    """Tells "product" from "min".

    Raises:
        ValueError: It is neither.
    """
    if pooling not in ("min", "product"):
        raise ValueError(f'pooling is "{pooling}"; it must be "min" or "product"')
    return pooling == "product"


def padded(x: Tensor) -> Tensor:
    """Returns ``x`` in a working precision, with facets, its last dimension, in whole groups."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    missing = -x.size(-1) % FACETS
    return F.pad(x, (0, missing)) if missing else x


def unpadded(x: Tensor, facets: int) -> Tensor:
    """Returns the first facets; all at once where none were added, since slices cost time backward."""
    return x[..., :facets] if x.size(-1) > facets else x


def check_graph(
    edge_index: Tensor,
    edge_type: Tensor,
    anchor: Tensor,
    num_nodes: int,
    rounds: int | None,
    cyclic_rounds: Tensor | None,
) -> None:
    """Raises ValueError where shapes, dtypes or numbers don't fit."""
    if edge_index.dtype != torch.int64 or edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"edge_index is {edge_index.dtype} {tuple(edge_index.shape)}; it must be int64 [2, E]"
        )
    edges = edge_index.size(1)
    if edge_type.dtype != torch.int64 or edge_type.shape != (edges,):
        raise ValueError(
            f"edge_type is {edge_type.dtype} {tuple(edge_type.shape)}; it must be int64 [{edges}]"
        )
    if anchor.dtype != torch.int64 or anchor.dim() not in (1, 2):
        raise ValueError(f"anchor is {anchor.dtype} {tuple(anchor.shape)}; it must be int64 [A] or [S, A]")
    if num_nodes < 0:
        raise ValueError(f"num_nodes is {num_nodes}; it must not be negative")
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1, or None")
    turns, wanted = cyclic_rounds, anchor.shape[-1:]
    if turns is not None and (turns.shape != wanted or turns.dtype != torch.int64):
        raise ValueError(
            f"cyclic_rounds is {turns.dtype} {tuple(turns.shape)}; it must be int64 {list(wanted)}"
        )


def check_ids(
    edge_index: Tensor,
    edge_type: Tensor,
    anchor: Tensor,
    num_nodes: int,
    num_kinds: int,
    named: str = "anchor",
) -> None:
    """Raises ValueError where an edge, a relation or an anchor ``[S, A]`` is out of range."""
    from graphkit.kernels import _belief_plan_loops as loops

    arrays = to_numpy(edge_index), to_numpy(edge_type), to_numpy(anchor)
    fault = loops.bad_edges(*arrays, num_nodes, num_kinds)
    if fault:
        limits = (("edge_index", num_nodes), ("edge_type", num_kinds), (named, num_nodes))
        name, limit = limits[fault - 1]
        raise ValueError(f"{name} holds an id outside [0, {limit})")


def make_plan(graph: plain.Graph) -> tuple[Any, np.ndarray, int]:
    """Returns the order of updates, the anchors, and how many messages are sent in all."""
    from graphkit.kernels import _belief_plan_loops as loops

    edges, kind, anchors = to_numpy(graph.edge_index), to_numpy(graph.edge_type), to_numpy(graph.anchor)
    plan = loops.make_plan(edges, kind, anchors, to_numpy(graph.turns), graph.rounds, graph.num_nodes)
    return plan, anchors, kind.size * (plan.turns + 1) * anchors.shape[0]


def grouped(pairs: tuple[np.ndarray, np.ndarray, np.ndarray], num_rows: int, num_groups: int) -> list[Any]:
    """Returns row pointers and pairs by group, and both ends of pairs, given left, right and group."""
    from graphkit.kernels._belief_plan_loops import sort_by
    from graphkit.kernels._path_loops import bad_ids

    limits = (num_rows, num_rows, num_groups)
    for name, array, limit in zip(("left", "right", "group"), pairs, limits, strict=True):
        if bad_ids(array, limit):
            raise ValueError(f"{name} holds an id outside [0, {limit})")
    return [*sort_by(pairs[2], num_groups), *pairs[:2]]


def rows(x: Tensor, leading: int = 1) -> np.ndarray:
    """Returns a matrix over the tensor's memory, its first dimensions as rows."""
    return to_numpy(x).reshape(math.prod(x.shape[:leading]), math.prod(x.shape[leading:]))
