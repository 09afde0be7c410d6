"""Which pairs of nodes attend to each other, as sorted flat rows: all pairs of every graph, or a list.

Row ``p`` is a pair of a query ``i`` and a key ``j`` of one graph. Rows are in the order (graph, i, j): those
of a query are consecutive, its keys ascend, and no pair is there twice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NodePairs"]


class NodePairs(NamedTuple):
    """Pairs of nodes in sorted flat rows.

    Attributes:
        rowptr: ``[n + 1]`` int64; the pairs of query ``i`` are rows ``rowptr[i]`` to ``rowptr[i + 1] - 1``.
        key: ``[P]`` int32 node ids in the numbering of the batch.
        offset: ``[n]`` int64 where all pairs are there: the row of (i, j) is ``offset[i] + j``. ``None`` for
            a list.
    """

    rowptr: Tensor
    key: Tensor
    offset: Tensor | None = None

    @classmethod
    def full(cls, sizes: Tensor, device: torch.device | None = None) -> NodePairs:
        """Lists all pairs of every graph, each node with itself too.

        Args:
            sizes: ``[B]`` int64 nodes of each graph; on the CPU, so that nothing waits for a device.
            device: Where the pairs shall lie; that of ``sizes`` by default.
        """
        nodes, pairs = int(sizes.sum()), int(sizes.square().sum())
        size = sizes.to(device or sizes.device, non_blocking=True)
        first = size.cumsum(0) - size
        count = torch.repeat_interleave(size, size, output_size=nodes)  # keys of each query
        rowptr = torch.cat([size.new_zeros(1), count.cumsum(0)])
        shift = rowptr[:-1] - torch.repeat_interleave(first, size, output_size=nodes)
        row = torch.arange(pairs, device=size.device)
        key = row - torch.repeat_interleave(shift, count, output_size=pairs)
        return cls(rowptr, key.to(torch.int32), shift)

    @classmethod
    def of(cls, query: Tensor, key: Tensor, num_nodes: int) -> NodePairs:
        """Lists the given pairs, sorted and each once.

        Args:
            query: ``[m]`` int64 in any order.
            key: ``[m]`` int64.
            num_nodes: Nodes of the batch, n.
        """
        code = torch.unique(query * num_nodes + key)
        count = torch.bincount(code // max(num_nodes, 1), minlength=num_nodes)
        rowptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
        return cls(rowptr, (code % max(num_nodes, 1)).to(torch.int32))

    @property
    def num_nodes(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def num_pairs(self) -> int:
        return self.key.numel()

    def query(self) -> Tensor:
        """Returns the query of every row, ``[P]`` int64."""
        node = torch.arange(self.num_nodes, device=self.key.device)
        return torch.repeat_interleave(node, self.rowptr.diff(), output_size=self.num_pairs)

    def find(self, query: Tensor, key: Tensor) -> Tensor:
        """Returns the rows of some pairs.

        Args:
            query: ``[m]`` int64 in ``[0, n)``.
            key: ``[m]`` int64 in ``[0, n)``. Where all pairs are listed it must be of the query's graph,
                which isn't checked.

        Returns:
            ``[m]`` int64; -1 where a list doesn't have the pair.
        """
        if self.offset is not None:
            return self.offset[query] + key
        code, wanted = self.query() * self.num_nodes + self.key, query * self.num_nodes + key
        row = torch.searchsorted(code, wanted)
        at = row.clamp(max=max(self.num_pairs - 1, 0))
        found = code[at] == wanted if self.num_pairs else torch.zeros_like(row, dtype=torch.bool)
        return torch.where(found, row, -1)

    def loops(self) -> Tensor:
        """Returns the row of every node with itself, ``[n]`` int64; -1 where a list doesn't have it."""
        node = torch.arange(self.num_nodes, device=self.key.device)
        return self.find(node, node)

    def select(self, keep: Tensor) -> tuple[NodePairs, Tensor]:
        """Returns some of the pairs as a list, and the rows that they were.

        Args:
            keep: ``[P]`` bool.
        """
        rows = keep.nonzero().squeeze(1)
        before = torch.cat([rows.new_zeros(1), keep.cumsum(0)])  # kept among the first rows
        return NodePairs(before[self.rowptr], self.key[rows]), rows

    def edge_index(self) -> Tensor:
        """Returns the pairs as PyG writes edges, ``[2, P]`` int64: keys (sources), then queries (targets)."""
        return torch.stack([self.key.long(), self.query()])
