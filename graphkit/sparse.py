"""Graphs and sparse features as rows (CSR): what the fast kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Adjacency",
    "CSRGraph",
    "SparseRows",
    "as_adjacency",
    "as_features",
    "as_graph",
    "undirected_edges",
]


def undirected_edges(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Returns each edge once, smaller end first, sorted; self loops and repetitions are dropped.

    Args:
        edge_index: ``[2, E]`` int64, in either or both directions.
        num_nodes: N.

    Returns:
        ``[2, M]`` int64.
    """
    low, high = torch.minimum(*edge_index), torch.maximum(*edge_index)
    proper = low != high
    key = torch.unique(low[proper] * num_nodes + high[proper])
    n = max(num_nodes, 1)
    return torch.stack([key // n, key % n])


def _check_edge_index(edge_index: Tensor, num_nodes: int) -> None:
    """Raises ValueError unless it is ``[2, E]`` with ids in ``[0, num_nodes)``."""
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"edge_index has shape {tuple(edge_index.shape)}; it must be [2, E]")
    if edge_index.numel() and not (int(edge_index.min()) >= 0 and int(edge_index.max()) < num_nodes):
        raise ValueError(
            f"edge_index holds ids from {int(edge_index.min())} to {int(edge_index.max())}; "
            f"they must lie in [0, {num_nodes})"
        )


@dataclass(frozen=True)
class CSRGraph:
    """Neighbour lists of an unweighted graph, sorted by node id, without duplicates or self loops.

    Attributes:
        rowptr: ``[N + 1]`` int64; the neighbours of ``v`` are ``col[rowptr[v]:rowptr[v + 1]]``.
        col: ``[E]`` int32, ascending within each row.
        edge_id: ``[E]`` int32 id of the undirected edge that an entry belongs to; both directions share it.
        edges: ``[2, M]`` int64, the undirected edges by id, smaller end first.
        symmetric: Whether every entry's reverse is present.
    """

    rowptr: Tensor
    col: Tensor
    edge_id: Tensor
    edges: Tensor
    symmetric: bool = True

    @property
    def num_nodes(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def num_entries(self) -> int:
        return self.col.numel()

    @property
    def device(self) -> torch.device:
        return self.col.device

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int) -> CSRGraph:
        """Builds the undirected simple graph of ``edge_index`` ``[2, E]`` int64 (either or both directions).

        Raises:
            ValueError: If an id is outside ``[0, num_nodes)`` or the shape is wrong.
        """
        _check_edge_index(edge_index, num_nodes)
        edges = undirected_edges(edge_index, num_nodes)
        ids = torch.arange(edges.size(1), device=edges.device)
        row, col = torch.cat([edges[0], edges[1]]), torch.cat([edges[1], edges[0]])
        order = torch.argsort(row * num_nodes + col)
        rowptr = torch.zeros(num_nodes + 1, dtype=torch.int64, device=edges.device)
        torch.cumsum(torch.bincount(row, minlength=num_nodes), 0, out=rowptr[1:])
        edge_id = torch.cat([ids, ids])[order].to(torch.int32)
        return cls(rowptr, col[order].to(torch.int32), edge_id, edges)

    def filter(self, keep: Tensor, *, symmetric: bool) -> CSRGraph:
        """Keeps the entries where ``keep`` ``[E]`` bool is true; linear time, no sort."""
        before = torch.zeros(keep.numel() + 1, dtype=torch.int64, device=keep.device)
        torch.cumsum(keep, 0, out=before[1:])
        return CSRGraph(before[self.rowptr], self.col[keep], self.edge_id[keep], self.edges, symmetric)

    def without_edges(self, removed: Tensor) -> CSRGraph:
        """Drops undirected edges by id, both directions; ``removed`` is ``[M]`` bool."""
        return self.filter(~removed[self.edge_id], symmetric=self.symmetric)

    def edge_index(self) -> Tensor:
        """Returns the entries as ``[2, E]`` int64, row by row."""
        degree = self.degree()
        row = torch.repeat_interleave(torch.arange(self.num_nodes, device=self.device), degree)
        return torch.stack([row, self.col.long()])

    def degree(self) -> Tensor:
        """Returns the ``[N]`` int64 row lengths."""
        return self.rowptr[1:] - self.rowptr[:-1]

    def find_edges(self, pairs: Tensor) -> Tensor:
        """Returns the undirected edge id of each pair ``[2, B]``, -1 where there is none, ``[B]`` int64.

        An edge that was filtered out is none; one that is left in one direction is found.
        """
        n = max(self.num_nodes, 1)
        key = torch.minimum(*pairs) * n + torch.maximum(*pairs)
        known = self.edges[0] * n + self.edges[1]
        if known.numel() == 0:
            return torch.full_like(key, -1)
        at = torch.searchsorted(known, key).clamp_(max=known.numel() - 1)
        found = known[at] == key
        if self.num_entries < 2 * known.numel():  # filtered: ``edges`` still lists what was removed
            left = torch.zeros_like(known, dtype=torch.bool)
            left[self.edge_id.long()] = True
            found &= left[at]
        return torch.where(found, at, torch.full_like(at, -1))

    def to(self, device: torch.device | str) -> CSRGraph:
        """Returns the graph on another device."""
        rowptr, col = self.rowptr.to(device), self.col.to(device)
        return CSRGraph(rowptr, col, self.edge_id.to(device), self.edges.to(device), self.symmetric)


@dataclass(frozen=True)
class Adjacency:
    """In-neighbours of R target nodes among C source nodes: what one layer's messages pass over.

    A whole graph is square (R = C, targets are the sources); a sampled block or a range of rows in layer-wise
    inference isn't. The targets' own states are handed to a layer beside those of the sources.

    Attributes:
        rowptr: ``[R + 1]`` int64; the in-neighbours of target ``v`` are ``col[rowptr[v]:rowptr[v + 1]]``.
        col: ``[E]`` int32 source ids.
        num_cols: C.
        symmetric: Whether it is square and every entry's reverse is present.
        source_degree: ``[C]`` int64 in-degrees of the sources in the graph that this is a part of; of a whole
            graph by default the row lengths.
        target_degree: ``[R]`` int64, the same of the targets. Where rows were sampled they are shorter.
    """

    rowptr: Tensor
    col: Tensor
    num_cols: int
    symmetric: bool = False
    source_degree: Tensor | None = None
    target_degree: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def device(self) -> torch.device:
        return self.col.device

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int) -> Adjacency:
        """Sorts the edges ``source -> target`` of ``[2, E]`` int64 by target; loops and repetitions go.

        Raises:
            ValueError: If an id is outside ``[0, num_nodes)`` or the shape is wrong.
        """
        _check_edge_index(edge_index, num_nodes)
        source, target = edge_index[:, edge_index[0] != edge_index[1]]
        n = max(num_nodes, 1)
        key = torch.unique(target * n + source)
        row, col = key // n, key % n
        rowptr = torch.zeros(num_nodes + 1, dtype=torch.int64, device=key.device)
        torch.cumsum(torch.bincount(row, minlength=num_nodes), 0, out=rowptr[1:])
        symmetric = torch.equal(torch.sort(col * n + row).values, key)
        return cls(rowptr, col.to(torch.int32), num_nodes, symmetric)

    @classmethod
    def from_graph(cls, graph: CSRGraph) -> Adjacency:
        """Takes the rows of a simple graph as they are."""
        return cls(graph.rowptr, graph.col, graph.num_nodes, graph.symmetric)

    def count(self) -> Tensor:
        """Returns the ``[R]`` int64 row lengths."""
        return self.rowptr.diff()

    def degrees(self) -> tuple[Tensor, Tensor]:
        """Returns the in-degrees of the sources ``[C]`` and of the targets ``[R]``.

        Raises:
            ValueError: If it isn't square and doesn't say.
        """
        target = self.count() if self.target_degree is None else self.target_degree
        if self.source_degree is not None:
            return self.source_degree, target
        if self.num_rows != self.num_cols:
            raise ValueError("rows of a part of a graph must come with source_degree")
        return target, target

    def rows(self, start: int, stop: int) -> Adjacency:
        """Returns the rows ``start`` to ``stop - 1`` of a whole graph, with degrees; nothing is copied.

        Raises:
            IndexError: Unless ``0 <= start <= stop <= R``.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise IndexError(f"rows {start}:{stop} of a graph of {self.num_rows}")
        source, target = self.degrees()
        rowptr = self.rowptr[start : stop + 1]
        first, last = int(rowptr[0]), int(rowptr[-1])
        return Adjacency(
            rowptr - first, self.col[first:last], self.num_cols, False, source, target[start:stop]
        )

    def edge_index(self) -> Tensor:
        """Returns the entries as ``[2, E]`` int64, sources above targets, row by row."""
        rows = torch.arange(self.num_rows, device=self.device)
        target = torch.repeat_interleave(rows, self.count(), output_size=self.col.numel())
        return torch.stack([self.col.long(), target])

    def to(self, device: torch.device | str) -> Adjacency:
        """Returns it on another device."""
        source, target = (
            None if d is None else d.to(device) for d in (self.source_degree, self.target_degree)
        )
        rowptr, col = self.rowptr.to(device), self.col.to(device)
        return Adjacency(rowptr, col, self.num_cols, self.symmetric, source, target)


class SparseRows(NamedTuple):
    """A sparse matrix by rows, for node features that are mostly zero.

    Attributes:
        rowptr: ``[N + 1]`` int64 row starts.
        col: ``[nnz]`` int32 columns, ascending in each row.
        value: ``[nnz]`` floating point.
        num_cols: Width ``F``.
    """

    rowptr: Tensor
    col: Tensor
    value: Tensor
    num_cols: int

    @classmethod
    def from_dense(cls, x: Tensor) -> SparseRows:
        """Keeps the non-zero entries of ``x`` ``[N, F]``."""
        row, col = x.nonzero(as_tuple=True)
        rowptr = torch.zeros(x.size(0) + 1, dtype=torch.int64, device=x.device)
        torch.cumsum(torch.bincount(row, minlength=x.size(0)), 0, out=rowptr[1:])
        return cls(rowptr, col.to(torch.int32), x[row, col], x.size(1))

    @classmethod
    def from_csr(cls, x: Tensor) -> SparseRows:
        """Takes the parts of a ``torch.sparse_csr`` matrix."""
        return cls(x.crow_indices().long(), x.col_indices().to(torch.int32), x.values(), x.size(1))

    def size(self, dim: int) -> int:
        """Returns ``N`` for dimension 0 and ``F`` for dimension 1."""
        return (self.rowptr.numel() - 1, self.num_cols)[dim]

    def to(self, device: torch.device | str) -> SparseRows:
        """Returns the matrix on another device."""
        return SparseRows(self.rowptr.to(device), self.col.to(device), self.value.to(device), self.num_cols)


def as_graph(
    edge_index: Tensor | CSRGraph, x: Tensor | SparseRows | None = None, num_nodes: int | None = None
) -> CSRGraph:
    """Returns ``edge_index`` ``[2, E]`` as sorted rows, or sorted rows as they are.

    Args:
        edge_index: Either or both directions of each edge.
        x: Node features, whose rows tell the number of nodes.
        num_nodes: Number of nodes, where ``x`` doesn't tell.

    Raises:
        ValueError: If nothing tells the number of nodes.
    """
    if isinstance(edge_index, CSRGraph):
        return edge_index
    size = num_nodes if num_nodes is not None else (x.size(0) if x is not None else None)
    if size is None:
        raise ValueError("num_nodes is needed where x is None and edge_index is a tensor")
    return CSRGraph.from_edge_index(edge_index, size)


def as_features(x: Tensor) -> Tensor | SparseRows:
    """Returns sparse rows where at most a fifth of ``x`` ``[N, F]`` differs from zero, else ``x`` itself."""
    if not x.is_floating_point() or x.dim() != 2 or x.numel() == 0:
        return x
    share = int(torch.count_nonzero(x)) / x.numel()
    return x if share > 0.2 else SparseRows.from_dense(x)


def as_adjacency(
    graph: Tensor | CSRGraph | Adjacency,
    x: Tensor | SparseRows | None = None,
    num_nodes: int | None = None,
) -> Adjacency:
    """Returns ``edge_index`` ``[2, E]`` (or a graph) as the rows that a node model's layers read.

    Args:
        graph: Edges from source to target in any order, or rows that are returned as they are.
        x: Node features, whose rows tell the number of nodes.
        num_nodes: Number of nodes, where ``x`` doesn't tell.

    Raises:
        ValueError: If nothing tells the number of nodes, or an id is out of range.
    """
    if isinstance(graph, Adjacency):
        return graph
    if isinstance(graph, CSRGraph):
        return Adjacency.from_graph(graph)
    size = num_nodes if num_nodes is not None else (x.size(0) if x is not None else None)
    if size is None:
        raise ValueError("num_nodes is needed where x is None and the graph is an edge_index")
    return Adjacency.from_edge_index(graph, size)
