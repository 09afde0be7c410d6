"""Graph isomorphism network for whole graphs, with edge features.

Papers: "How Powerful are Graph Neural Networks?", Keyulu Xu, Weihua Hu, Jure Leskovec, Stefanie Jegelka,
ICLR 2019, https://arxiv.org/abs/1810.00826; edge features: "Strategies for Pre-training Graph Neural
Networks", Weihua Hu et al., ICLR 2020, https://arxiv.org/abs/1905.12265. As a tuned plain model: see
:mod:`graphkit.nn.graph_model`.
"""

from __future__ import annotations

from graphkit.nn.graph_conv import EdgeConv, GINELayer
from graphkit.nn.graph_model import GraphModel
from graphkit.registry import register_model

__all__ = ["GraphGIN"]


@register_model("graph-gin", task="graph", paper="arXiv:1810.00826")
class GraphGIN(GraphModel):
    """Graph isomorphism network for graphs: stacked :class:`~graphkit.nn.graph_conv.GINELayer`."""

    def make_conv(self, channels: int, last: bool) -> EdgeConv:
        return GINELayer(channels, channels, norm=self.norm)
