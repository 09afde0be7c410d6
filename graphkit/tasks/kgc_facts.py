"""Facts of a knowledge graph with their inverses, and which answers to a query are right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.graphs import ragged_index
from graphkit.sampling import free_keys

__all__ = ["Answers", "Facts"]


class Facts(NamedTuple):
    """A graph that messages pass over, inverse edges after the others.

    Attributes:
        edge_index: ``[2, 2E]`` int64.
        edge_type: ``[2E]`` int64 in ``[0, 2R)``.
        num_nodes: N.
    """

    edge_index: Tensor
    edge_type: Tensor
    num_nodes: int

    @classmethod
    def of(cls, edge_index: Tensor, edge_type: Tensor, num_nodes: int, relations: int) -> Facts:
        """Adds the inverses to the edges of a graph with R relations."""
        both = torch.cat([edge_index, edge_index.flip(0)], dim=1).long()
        return cls(both, torch.cat([edge_type, edge_type + relations]).long(), num_nodes)

    def without(self, drop: Tensor | None) -> Facts:
        """Returns the graph without some edges, ``[2E]`` bool."""
        if drop is None:
            return self
        keep = (~drop).nonzero().squeeze(1)
        return self._replace(edge_index=self.edge_index[:, keep], edge_type=self.edge_type[keep])

    def to(self, device: torch.device) -> Facts:
        return self._replace(edge_index=self.edge_index.to(device), edge_type=self.edge_type.to(device))


class Answers:
    """All right tails of every (head, relation) that occurs.

    Args:
        queries: ``[3, m]`` int64 rows head, relation, tail; repetitions don't matter.
        num_nodes: N.
        relations: Relations with inverses.
    """

    def __init__(self, queries: Tensor, num_nodes: int, relations: int) -> None:
        head, relation, tail = queries
        self.num_nodes, self.relations = num_nodes, relations
        facts = torch.unique((head * relations + relation) * num_nodes + tail)
        self.tail = facts % num_nodes
        self.keys, count = torch.unique_consecutive(facts // num_nodes, return_counts=True)
        self.ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
        self.most = int(count.max()) if count.numel() else 0

    def of(self, head: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the right tails of queries that occur: ``[q + 1]`` pointers and ``[m]`` ids."""
        rows = torch.searchsorted(self.keys, head * self.relations + relation)
        items, begin = ragged_index(self.ptr, rows)
        return begin, self.tail[items]

    def wrong(self, head: Tensor, relation: Tensor, count: int, draw: torch.Generator) -> Tensor:
        """Draws ``count`` entities for each query, uniformly and with replacement, none of them right.

        Returns:
            ``[q, count]`` int64.

        Raises:
            UserError: All entities are right answers to a query.
        """
        if self.most >= self.num_nodes:
            raise UserError(f"all {self.num_nodes} entities are right answers to some query; none is wrong")
        begin, tails = self.of(head, relation)
        query = torch.repeat_interleave(torch.arange(head.numel()), begin.diff())
        start = torch.arange(head.numel()) * self.num_nodes
        free = self.num_nodes - begin.diff()
        share = torch.rand(head.numel(), count, generator=draw, dtype=torch.float64)
        rank = torch.minimum((share * free[:, None]).long(), free[:, None] - 1)
        keys = free_keys((rank + (start - begin[:-1])[:, None]).flatten(), start[query] + tails)
        return (keys % self.num_nodes).view(-1, count)
