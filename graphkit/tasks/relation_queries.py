"""Query graphs in flat arrays, and unions of them; a batch is one compiled pass over the arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.kernels.spmm import to_numpy
from graphkit.nn.paths import path_mask

__all__ = ["Queries", "QuerySet"]


class Queries(NamedTuple):
    """Queries on a disjoint union of graphs, in its numbering of nodes.

    Attributes:
        edge_index: ``[2, E]`` int64, row 0 the tail and row 1 the head of an arrow.
        edge_type: ``[E]`` int64.
        source: ``[B]`` int64.
        target: ``[B]`` int64.
        num_nodes: N.
        path_node: ``[P]`` int64, the nodes of one path for each query.
        path_graph: ``[P]`` int64, the query of each, ascending.
    """

    edge_index: Tensor
    edge_type: Tensor
    source: Tensor
    target: Tensor
    num_nodes: int
    path_node: Tensor
    path_graph: Tensor

    def to(self, device: torch.device) -> Queries:
        if device.type == "cpu":
            return self
        return Queries(*(c.to(device) if isinstance(c, Tensor) else c for c in self))  # type: ignore[arg-type]

    def scores(self, model: nn.Module) -> Tensor:
        """Returns what the model says, ``[B, R]``."""
        out: Tensor = model(
            self.edge_index,
            self.edge_type,
            self.source,
            self.target,
            num_nodes=self.num_nodes,
            path_node=self.path_node,
            path_graph=self.path_graph,
        )
        return out


class QuerySet:
    """G query graphs.

    Args:
        data: Flat arrays as :class:`~graphkit.graphs.GraphSet` reads them: ``ptr``, ``edge_ptr``,
            ``edge_index`` in each graph's own numbering, ``edge_type``, ``source``, ``target`` ``[G]``, and
            ``node_on_path`` ``[N]`` bool, which is searched for if absent.
    """

    def __init__(self, data: Data) -> None:
        mask = data.get("node_on_path")
        if mask is None:
            mask = path_mask(data.edge_index, data.edge_ptr, data.ptr, data.source, data.target)
        node = mask.nonzero().squeeze(1)
        owner = torch.searchsorted(data.ptr, node, right=True) - 1
        path_ptr = torch.zeros_like(data.ptr)
        torch.cumsum(torch.bincount(owner, minlength=len(data.ptr) - 1), 0, out=path_ptr[1:])
        ends = torch.stack([data.source, data.target])
        arrays = (
            data.ptr,
            data.edge_ptr,
            path_ptr,
            data.edge_index,
            data.edge_type,
            node - data.ptr[owner],
            ends,
        )
        self._arrays = [to_numpy(array) for array in arrays]

    def __len__(self) -> int:
        return len(self._arrays[0]) - 1

    def gather(self, ids: Tensor) -> Queries:
        """Returns the union of some graphs ``[B]`` int64, in their order, on the CPU."""
        from graphkit.kernels import _query_loops as loops

        chosen = to_numpy(ids)
        edges, nodes = (int((ptr[chosen + 1] - ptr[chosen]).sum()) for ptr in self._arrays[1:3])
        shapes = ((2, edges), (edges,), (2, len(chosen)), (nodes,), (nodes,))
        made = [np.empty(shape, dtype=np.int64) for shape in shapes]
        size = loops.gather(chosen, *self._arrays, *made)
        edge_index, edge_type, ends, node, graph = map(torch.from_numpy, made)
        return Queries(edge_index, edge_type, ends[0], ends[1], size, node, graph)
