r"""What the two neighbourhoods of a node pair have in common and what not, as rows of node ids.

For targets ``(i, j)`` on a graph, :func:`pair_structure` lists :math:`N(i) \\cap N(j)` and, if asked,
:math:`N(i) \\setminus N(j)` and :math:`N(j) \\setminus N(i)`. The lists hold no parameters, so those of fixed
evaluation pairs are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graphkit.kernels import common_neighbors, spmm
from graphkit.sparse import CSRGraph

__all__ = [
    "PairStructure",
    "Rows",
    "candidate_pairs",
    "concat_rows",
    "drop_self_candidates",
    "hash_uniform",
    "merge_rows",
    "pair_structure",
    "pool",
    "pool_rows",
    "sample_rows",
    "select_entries",
]


class Rows(NamedTuple):
    """A list of weighted node ids for each of ``B`` pairs.

    Attributes:
        ptr: ``[B + 1]`` int64 row starts.
        node: ``[nnz]`` int32 node ids, ascending in each row.
        weight: ``[nnz]`` floating point, or ``None`` for ones.
    """

    ptr: Tensor
    node: Tensor
    weight: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return self.ptr.numel() - 1

    def lengths(self) -> Tensor:
        """Returns ``[B]`` int64 entries per row."""
        return self.ptr[1:] - self.ptr[:-1]

    def owner(self) -> Tensor:
        """Returns the ``[nnz]`` int64 row of each entry."""
        rows = torch.arange(self.num_rows, device=self.ptr.device)
        return torch.repeat_interleave(rows, self.lengths(), output_size=self.node.numel())

    def slice(self, start: int, stop: int) -> Rows:
        """Returns the rows ``start:stop`` as views."""
        ptr = self.ptr[start : stop + 1]
        first, last = int(ptr[0]), int(ptr[-1])
        weight = None if self.weight is None else self.weight[first:last]
        return Rows(ptr - first, self.node[first:last], weight)

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self if t is not None)


class PairStructure(NamedTuple):
    """The lists of ``B`` pairs.

    Attributes:
        common: Common neighbours.
        only_i: Neighbours of ``i`` alone, or ``None`` where no completion is asked for.
        only_j: Neighbours of ``j`` alone.
        inner: The lists of the candidate pairs (see :func:`candidate_pairs`) where they are kept.
    """

    common: Rows
    only_i: Rows | None = None
    only_j: Rows | None = None
    inner: PairStructure | None = None

    def slice(self, start: int, stop: int) -> PairStructure:
        """Returns the lists of the pairs ``start:stop``; inner lists are not carried over."""
        only_i = None if self.only_i is None else self.only_i.slice(start, stop)
        only_j = None if self.only_j is None else self.only_j.slice(start, stop)
        return PairStructure(self.common.slice(start, stop), only_i, only_j)

    def nbytes(self) -> int:
        return sum(part.nbytes() for part in self if part is not None)


def pair_structure(graph: CSRGraph, pairs: Tensor, *, differences: bool = False) -> PairStructure:
    """Lists common neighbours, and the two differences if asked, of each pair.

    Args:
        graph: Sorted rows.
        pairs: ``[2, B]`` int64 node ids.
        differences: Also list the neighbours of one end alone.
    """
    found = common_neighbors(graph.rowptr, graph.col, pairs, differences)
    if found.only_i_ptr is None or found.only_i is None or found.only_j_ptr is None or found.only_j is None:
        return PairStructure(Rows(found.cn_ptr, found.cn))
    only_i, only_j = Rows(found.only_i_ptr, found.only_i), Rows(found.only_j_ptr, found.only_j)
    return PairStructure(Rows(found.cn_ptr, found.cn), only_i, only_j)


def candidate_pairs(pairs: Tensor, only_i: Rows, only_j: Rows) -> Tensor:
    r"""Returns the pairs whose link would make a node a common neighbour, ``[2, C]`` int64.

    First :math:`(j, u)` for :math:`u \in N(i) \setminus N(j)`, target by target, then :math:`(i, u)` for
    :math:`u \in N(j) \setminus N(i)`; pairs of one target stand together and share their first end.
    """
    first = torch.cat([pairs[1][only_i.owner()], pairs[0][only_j.owner()]])
    return torch.stack([first, torch.cat([only_i.node, only_j.node]).long()])


def pool(rows: Rows, x: Tensor) -> Tensor:
    r"""Returns :math:`z_b = \sum_{u \in \text{row } b} w_{bu}\, x_u`, ``[B, F]``; an empty row gives 0."""
    return spmm(rows.ptr, rows.node, rows.weight, x)


def pool_rows(rows: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pools the rows that have entries only.

    Returns:
        ``(index, z)``: the ``[R]`` int64 rows with at least one entry, and their ``[R, F]`` sums.
    """
    index = rows.lengths().nonzero().squeeze(1)
    ptr = torch.cat([rows.ptr[index], rows.ptr[-1:]])
    return index, spmm(ptr, rows.node, rows.weight, x)


def merge_rows(*lists: Rows) -> Rows:
    """Joins lists row by row: row ``b`` of the result holds row ``b`` of each, one after the other."""
    lengths = torch.stack([rows.lengths() for rows in lists])  # [L, B]
    ptr = torch.zeros_like(lists[0].ptr)
    torch.cumsum(lengths.sum(0), 0, out=ptr[1:])
    before = ptr[:-1] + torch.cumsum(lengths, 0) - lengths  # where each list's row starts in the result
    size = int(ptr[-1])
    source = torch.empty(size, dtype=torch.int64, device=ptr.device)
    offset = 0
    for rows, start in zip(lists, before, strict=True):
        entry = torch.arange(rows.node.numel(), device=ptr.device)
        source[entry + (start - rows.ptr[:-1])[rows.owner()]] = entry + offset
        offset += rows.node.numel()
    node = torch.cat([rows.node for rows in lists])[source]
    if all(rows.weight is None for rows in lists):
        return Rows(ptr, node)
    like = next(rows.weight for rows in lists if rows.weight is not None)
    weights = [like.new_ones(rows.node.numel()) if rows.weight is None else rows.weight for rows in lists]
    return Rows(ptr, node, torch.cat(weights)[source])


def concat_rows(lists: Sequence[Rows]) -> Rows:
    """Puts lists of pairs one below the other."""
    ptr = [torch.zeros(1, dtype=torch.int64, device=lists[0].ptr.device)]
    for rows in lists:
        ptr.append(rows.ptr[1:] + ptr[-1][-1])
    weights = [rows.weight for rows in lists if rows.weight is not None]
    if weights and len(weights) < len(lists):
        weights = [
            rows.weight if rows.weight is not None else torch.ones(rows.node.numel()) for rows in lists
        ]
    return Rows(
        torch.cat(ptr), torch.cat([rows.node for rows in lists]), torch.cat(weights) if weights else None
    )


def drop_self_candidates(pairs: Tensor, structure: PairStructure) -> PairStructure:
    """Removes the candidate ``(j, j)`` (and ``(i, i)``) that appears where a target is itself an edge."""
    if structure.only_i is None or structure.only_j is None:
        return structure
    only_i = _without(structure.only_i, pairs[1])
    only_j = _without(structure.only_j, pairs[0])
    return structure._replace(only_i=only_i, only_j=only_j)


def _without(rows: Rows, node: Tensor) -> Rows:
    return select_entries(rows, rows.node != node[rows.owner()].to(rows.node.dtype))


def select_entries(rows: Rows, keep: Tensor) -> Rows:
    """Keeps the entries where ``keep`` ``[nnz]`` bool is true."""
    before = torch.zeros(keep.numel() + 1, dtype=torch.int64, device=keep.device)
    torch.cumsum(keep, 0, out=before[1:])
    weight = None if rows.weight is None else rows.weight[keep]
    return Rows(before[rows.ptr], rows.node[keep], weight)


def sample_rows(rows: Rows, limit: int, seed: Tensor, *, replace: bool = False) -> Rows:
    r"""Thins rows of more than ``limit`` entries to an unbiased sample; shorter rows stay whole.

    Each kept entry is weighted by ``length / limit`` (times how often it was drawn), so the expectation of
    the pooled sum is the full sum. The draw depends on ``seed`` alone, row by row, whatever the batch.

    Args:
        rows: Unweighted rows.
        limit: Largest number of draws, at least 1.
        seed: ``[B]`` int64, one seed a row.
        replace: Draw with replacement, as the NCN authors' code does; without, the variance is smaller.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    lengths = rows.lengths()
    long = lengths > limit
    if not bool(long.any()):
        return rows
    owner = rows.owner()
    count = torch.ones(rows.node.numel(), dtype=torch.float32, device=rows.node.device)
    if replace:
        index = long.nonzero().squeeze(1)  # [R]
        draw = torch.arange(limit, device=index.device)
        uniform = hash_uniform(seed[index].unsqueeze(1), draw)  # [R, limit]
        at = (uniform * lengths[index].unsqueeze(1)).long() + rows.ptr[index].unsqueeze(1)
        count[long[owner]] = 0.0
        count.index_add_(0, at.flatten(), torch.ones(at.numel(), device=count.device))
    else:
        # the `limit` smallest of one random key an entry: rank within the row by a sort on (row, key)
        key = hash_uniform(seed[owner], rows.node.long())
        order = torch.argsort(key)
        order = order[torch.argsort(owner[order], stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel(), device=order.device)
        count[long[owner] & (rank - rows.ptr[owner] >= limit)] = 0.0
    weight = torch.where(long[owner], count * (lengths[owner] / limit).to(count.dtype), count)
    return select_entries(rows._replace(weight=weight), count > 0)


def hash_uniform(seed: Tensor, position: Tensor) -> Tensor:
    """Returns uniforms in ``[0, 1)`` (float64) that depend on ``seed`` and ``position`` alone.

    A 64-bit mix (Steele, Lea and Flood's splitmix finaliser) of their combination; broadcast like a sum.
    """
    z = seed * -7046029254386353131 + position * 2862933555777941757 + 3037000493
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return ((z >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
