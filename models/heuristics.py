r"""Link heuristics without parameters: the floor of every table.

Sources: "Clustering and preferential attachment in growing networks", Newman 2001
(https://doi.org/10.1103/PhysRevE.64.025102); "Friends and neighbors on the Web", Adamic and Adar 2003
(https://doi.org/10.1016/S0378-8733(03)00009-1); "Predicting missing links via local information", Zhou, Lue
and Zhang 2009 (https://arxiv.org/abs/0901.0553).

.. math::
    s_{ij} = \sum_{u \in N(i) \cap N(j)} w_u, \qquad
    w_u = 1 \text{ (CN)}, \quad 1 / \ln d_u \text{ (AA)}, \quad 1 / d_u \text{ (RA)}
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphkit.kernels import overlap_count
from graphkit.registry import register_model
from graphkit.sparse import CSRGraph, SparseRows, as_graph

__all__ = ["AdamicAdar", "CommonNeighbors", "ResourceAllocation"]


class Heuristic(nn.Module):
    """Base: the sum of :meth:`weight` over common neighbours; node features are not looked at."""

    def weight(self, degree: Tensor) -> Tensor:
        """Returns a common neighbour's weight from its degree, ``[N]`` float32."""
        raise NotImplementedError

    def encode(self, x: Tensor | SparseRows | None, graph: CSRGraph) -> Tensor:
        """Returns each node's weight, ``[N]``: what :meth:`score` sums."""
        return self.weight(graph.degree().float())

    def score(self, h: Tensor, graph: CSRGraph, edge_label_index: Tensor, structure: None = None) -> Tensor:
        """Returns the score of each pair ``[2, B]``, ``[B]``."""
        return overlap_count(graph.rowptr, graph.col, edge_label_index, h)

    def forward(
        self,
        x: Tensor | SparseRows | None,
        edge_index: Tensor | CSRGraph,
        edge_label_index: Tensor,
        num_nodes: int | None = None,
    ) -> Tensor:
        graph = as_graph(edge_index, x, num_nodes)
        return self.score(self.encode(x, graph), graph, edge_label_index)


@register_model("cn", task="link", paper="doi:10.1103/PhysRevE.64.025102")
class CommonNeighbors(Heuristic):
    """Number of common neighbours."""

    def weight(self, degree: Tensor) -> Tensor:
        return torch.ones_like(degree)


@register_model("aa", task="link", paper="doi:10.1016/S0378-8733(03)00009-1")
class AdamicAdar(Heuristic):
    """Adamic-Adar index: common neighbours weighted by one over the logarithm of their degree."""

    def weight(self, degree: Tensor) -> Tensor:
        # a common neighbour has degree 2 at least, save for the pair (i, i)
        return 1.0 / degree.clamp(min=2.0).log()


@register_model("ra", task="link", paper="arXiv:0901.0553")
class ResourceAllocation(Heuristic):
    """Resource allocation index: common neighbours weighted by one over their degree."""

    def weight(self, degree: Tensor) -> Tensor:
        return 1.0 / degree.clamp(min=1.0)
