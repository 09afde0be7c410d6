"""Graph convolutional network for whole graphs, with edge features.

Paper: "Semi-Supervised Classification with Graph Convolutional Networks", Thomas N. Kipf, Max Welling,
ICLR 2017, https://arxiv.org/abs/1609.02907; edge features as in "Open Graph Benchmark", Weihua Hu et al.,
NeurIPS 2020, https://arxiv.org/abs/2005.00687. As a tuned plain model: see :mod:`graphkit.nn.graph_model`.
"""

from __future__ import annotations

from graphkit.nn.graph_conv import EdgeConv, GCNEdgeLayer
from graphkit.nn.graph_model import GraphModel
from graphkit.registry import register_model

__all__ = ["GraphGCN"]


@register_model("graph-gcn", task="graph", paper="arXiv:1609.02907")
class GraphGCN(GraphModel):
    """Graph convolutional network for graphs: stacked :class:`~graphkit.nn.graph_conv.GCNEdgeLayer`."""

    def make_conv(self, channels: int, last: bool) -> EdgeConv:
        return GCNEdgeLayer(channels, channels, edges=self.has_edges)
