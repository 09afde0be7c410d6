"""Gated graph convolutional network, which updates the states of edges too.

Paper: "Residual Gated Graph ConvNets", Xavier Bresson, Thomas Laurent, 2017,
https://arxiv.org/abs/1711.07553, in the form of "Benchmarking Graph Neural Networks", Vijay Prakash Dwivedi
et al., JMLR 2023, https://arxiv.org/abs/2003.00982. As a tuned plain model: see
:mod:`graphkit.nn.graph_model`. Edges without features start from one learnt row; the last layer doesn't
update them, since nobody reads that.
"""

from __future__ import annotations

from graphkit.nn.graph_conv import EdgeConv, GatedGCNLayer
from graphkit.nn.graph_model import GraphModel
from graphkit.registry import register_model

__all__ = ["GatedGCN"]


@register_model("gated-gcn", task="graph", paper="arXiv:1711.07553")
class GatedGCN(GraphModel):
    """Gated graph convolutional network: stacked :class:`~graphkit.nn.graph_conv.GatedGCNLayer`."""

    carries_edges = True

    def make_conv(self, channels: int, last: bool) -> EdgeConv:
        return GatedGCNLayer(channels, channels, update_edges=not last, norm=self.norm, dropout=self.dropout)
