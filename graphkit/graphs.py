"""Many graphs in flat arrays, and batches gathered from them.

A set of G graphs is one PyG ``Data``, laid out as PyG's own in-memory data sets are after collation: node
tensors of all graphs one after the other, edge tensors likewise, ``edge_index`` in each graph's own numbering
from 0, and two pointers that say where a graph begins. A batch is then a few gathers; no object is made for a
graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data

__all__ = ["GraphSet", "collate", "ragged_index"]

_NODE_NAMES = ("x", "pos", "z")
_POINTERS = ("ptr", "edge_ptr")


def ragged_index(ptr: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which items the given rows hold, row after row, and where each row begins among them.

    Args:
        ptr: ``[R + 1]`` int64; row ``r`` holds items ``ptr[r]`` to ``ptr[r + 1] - 1``.
        ids: ``[n]`` int64 rows, in any order, repeated or not.

    Returns:
        ``[m]`` int64 items and ``[n + 1]`` int64 beginnings, from 0 to m.
    """
    start = ptr[ids]
    begin = torch.zeros(ids.numel() + 1, dtype=torch.int64, device=ptr.device)
    torch.cumsum(ptr[ids + 1] - start, 0, out=begin[1:])
    total = int(begin[-1])
    shift = torch.repeat_interleave(start - begin[:-1], begin.diff(), output_size=total)
    return torch.arange(total, device=ptr.device) + shift, begin


def collate(graphs: Sequence[Data]) -> Data:
    """Lays out graphs in flat arrays, as :class:`GraphSet` reads them.

    Args:
        graphs: Each with ``num_nodes`` and ``edge_index``; the other tensors of the first graph, joined along
            their first dimension. A tensor without dimensions becomes an entry of a graph.

    Raises:
        ValueError: If there is no graph, or one lacks a tensor that the first one has.
    """
    if not graphs:
        raise ValueError("there are no graphs to put together")
    nodes = torch.tensor([int(g.num_nodes or 0) for g in graphs])
    edges = torch.tensor([g.edge_index.size(1) for g in graphs])
    made = Data(num_nodes=int(nodes.sum()))
    for name, size in (("ptr", nodes), ("edge_ptr", edges)):
        made[name] = torch.cat([size.new_zeros(1), size.cumsum(0)])
    for name, first in graphs[0].to_dict().items():
        if not isinstance(first, Tensor) or name in (*_POINTERS, "batch"):
            continue
        for number, graph in enumerate(graphs):
            if not isinstance(graph.get(name), Tensor):
                raise ValueError(f"graph {number} has no '{name}', which the first one has")
        parts = [graph[name].reshape(1) if graph[name].dim() == 0 else graph[name] for graph in graphs]
        made[name] = torch.cat(parts, dim=1 if name == "edge_index" else 0)
    return made


class GraphSet:
    """Graphs in flat arrays.

    Tensors of ``data`` belong to edges if their name begins with ``edge``, to nodes if it is ``x``, ``pos``,
    ``z`` or begins with ``node``, and to graphs else; ``y`` belongs to graphs, or to nodes where it has as
    many rows as there are nodes.

    Args:
        data: ``ptr`` and ``edge_ptr`` ``[G + 1]`` int64; ``edge_index`` ``[2, E]`` of any integer type, ids
            within the graph; any of ``x`` ``[N, F]``, ``edge_attr`` ``[E, D]``, ``y`` ``[G, ...]`` or
            ``[N, ...]``, and more.

    Raises:
        ValueError: If a tensor has another number of rows than its kind has items.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        self.ptr, self.edge_ptr = data.ptr, data.edge_ptr
        counts = {"node": int(self.ptr[-1]), "edge": int(self.edge_ptr[-1]), "graph": len(self)}
        self._names: dict[str, list[str]] = {kind: [] for kind in counts}
        for name, value in data.to_dict().items():
            if not isinstance(value, Tensor) or name in _POINTERS:
                continue
            rows = value.size(1 if name == "edge_index" else 0)
            kind = self._kind(name, rows)
            if rows != counts[kind]:
                raise ValueError(f"{name} has {rows} rows; there are {counts[kind]} {kind}s")
            self._names[kind].append(name)
        self.per_node = "y" in self._names["node"]

    def _kind(self, name: str, rows: int) -> str:
        if name.startswith("edge"):
            return "edge"
        if name in _NODE_NAMES or name.startswith("node"):
            return "node"
        return "node" if name == "y" and rows == int(self.ptr[-1]) and rows != len(self) else "graph"

    def __len__(self) -> int:
        return int(self.ptr.numel()) - 1

    def sizes(self, ids: Tensor | None = None) -> Tensor:
        """Returns the number of nodes of some graphs, or of all, int64."""
        return self.ptr.diff() if ids is None else self.ptr[ids + 1] - self.ptr[ids]

    def batch(self, ids: Tensor) -> Data:
        """Returns the disjoint union of some graphs.

        Args:
            ids: ``[B]`` int64, in any order.

        Returns:
            The gathered tensors, ``edge_index`` int64 in the union's numbering, ``batch`` ``[n]`` (the graph
            of each node, from 0), ``ptr`` and ``edge_ptr`` ``[B + 1]``.
        """
        nodes, ptr = ragged_index(self.ptr, ids)
        edges, edge_ptr = ragged_index(self.edge_ptr, ids)
        made = Data(num_nodes=nodes.numel(), ptr=ptr, edge_ptr=edge_ptr)
        made.batch = torch.repeat_interleave(
            torch.arange(ids.numel(), device=ptr.device), ptr.diff(), output_size=nodes.numel()
        )
        for kind, index in (("node", nodes), ("edge", edges), ("graph", ids)):
            for name in self._names[kind]:
                value = self.data[name]
                if name == "edge_index":
                    shift = torch.repeat_interleave(ptr[:-1], edge_ptr.diff(), output_size=edges.numel())
                    made.edge_index = value.index_select(1, index).long() + shift
                else:
                    made[name] = value.index_select(0, index)
        return made

    def __getitem__(self, number: int) -> Data:
        """Returns one graph, its tensors views of the set's."""
        if not 0 <= number < len(self):
            raise IndexError(f"graph {number} of {len(self)}")
        made = Data(num_nodes=int(self.ptr[number + 1] - self.ptr[number]))
        ranges = {
            "node": slice(int(self.ptr[number]), int(self.ptr[number + 1])),
            "edge": slice(int(self.edge_ptr[number]), int(self.edge_ptr[number + 1])),
            "graph": slice(number, number + 1),
        }
        for kind, part in ranges.items():
            for name in self._names[kind]:
                value = self.data[name]
                made[name] = value[:, part].long() if name == "edge_index" else value[part]
        return made
