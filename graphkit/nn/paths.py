"""The nodes between source and target of a query: a shortest path, or all paths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphkit.kernels.spmm import to_numpy

__all__ = ["PathNodes", "path_mask", "path_nodes"]


class PathNodes(NamedTuple):
    """The nodes between source and target of B queries.

    Attributes:
        node: ``[P]`` int64, query after query.
        graph: ``[P]`` int64, the query of each, ascending.
        length: ``[B]`` int64, the number of edges of a shortest path, directions ignored; -1 where source and
            target aren't connected.
    """

    node: Tensor
    graph: Tensor
    length: Tensor


def path_nodes(
    edge_index: Tensor, source: Tensor, target: Tensor, *, num_nodes: int, every: bool = False
) -> PathNodes:
    """Finds the nodes of one shortest path for each query, both ends included.

    Directions of edges are ignored. Of several shortest paths the one whose edges are listed first is taken,
    so that renumbering nodes changes nothing. Unconnected ends are the only nodes of their query. The search
    runs on the CPU, wherever the tensors are.

    Args:
        edge_index: ``[2, E]`` integers in ``[0, N)``.
        source: ``[B]`` integers.
        target: ``[B]`` integers. Queries may share a component.
        num_nodes: N.
        every: Take the nodes of all directed walks from source to target instead, ascending; where there is
            none, a shortest path as before.

    Raises:
        ValueError: If shapes don't fit or an id is out of range.
    """
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"edge_index has shape {tuple(edge_index.shape)}; it must be [2, E]")
    if source.dim() != 1 or source.shape != target.shape:
        raise ValueError(
            f"source has shape {tuple(source.shape)} and target {tuple(target.shape)}; both must be [B]"
        )
    node, graph, length = _search(edge_index, source, target, num_nodes, every)
    return PathNodes(node, graph, length)


def path_mask(edge_index: Tensor, edge_ptr: Tensor, ptr: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Marks the nodes of one shortest path for each graph of a set, both ends included.

    Args:
        edge_index: ``[2, E]`` integers, the edges of all graphs in their own numbering, as
            :class:`~graphkit.graphs.GraphSet` keeps them.
        edge_ptr: ``[G + 1]`` int64; graph ``g`` has edges ``edge_ptr[g]`` to ``edge_ptr[g + 1] - 1``.
        ptr: ``[G + 1]`` int64, the same for nodes.
        source: ``[G]`` integers, each in its graph's numbering.
        target: ``[G]`` integers.

    Returns:
        ``[N]`` bool. The path is that of :func:`path_nodes`.

    Raises:
        ValueError: If shapes don't fit or an id lies outside its graph.
    """
    size, graphs = ptr.diff(), ptr.numel() - 1
    if edge_ptr.shape != ptr.shape or source.shape != (graphs,):
        raise ValueError(
            f"edge_ptr has shape {tuple(edge_ptr.shape)} and source {tuple(source.shape)}; with ptr "
            f"{tuple(ptr.shape)} they must be [{graphs + 1}] and [{graphs}]"
        )
    owner = torch.repeat_interleave(torch.arange(graphs), edge_ptr.diff(), output_size=edge_index.size(1))
    for name, ids, limit in (
        ("edge_index", edge_index, size[owner]),
        ("source", source, size),
        ("target", target, size),
    ):
        if bool(((ids < 0) | (ids >= limit)).any()):
            raise ValueError(f"{name} holds an id outside its graph")
    found = path_nodes(edge_index + ptr[owner], source + ptr[:-1], target + ptr[:-1], num_nodes=int(ptr[-1]))
    mask = torch.zeros(int(ptr[-1]), dtype=torch.bool)
    mask[found.node] = True
    return mask


@torch.library.custom_op("graphkit::path_nodes", mutates_args=())
def _search(
    edge_index: Tensor, source: Tensor, target: Tensor, num_nodes: int, every: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from graphkit.kernels import _path_loops as loops

    arrays = [to_numpy(ids.to("cpu", torch.int64)) for ids in (*edge_index, source, target)]
    for name, ids in zip(("edge_index", "edge_index", "source", "target"), arrays, strict=True):
        if loops.bad_ids(ids, num_nodes):
            raise ValueError(f"{name} holds an id outside [0, {num_nodes})")
    length = torch.empty(source.numel(), dtype=torch.int64)
    node, graph = loops.search(*arrays, num_nodes, every, length.numpy())  # type: ignore[call-arg]
    device = edge_index.device
    return torch.from_numpy(node).to(device), torch.from_numpy(graph).to(device), length.to(device)


@_search.register_fake
def _search_fake(
    edge_index: Tensor, source: Tensor, target: Tensor, num_nodes: int, every: bool
) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    node = edge_index.new_empty(size, dtype=torch.int64)
    return node, torch.empty_like(node), source.new_empty(source.numel(), dtype=torch.int64)
