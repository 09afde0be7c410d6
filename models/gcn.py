"""Graph convolutional network.

Paper: "Semi-Supervised Classification with Graph Convolutional Networks", Thomas N. Kipf, Max Welling,
ICLR 2017, https://arxiv.org/abs/1609.02907. As a tuned plain model: see :mod:`graphkit.nn.node`.
"""

from __future__ import annotations

from graphkit.nn.conv import Conv, GCNLayer
from graphkit.nn.node import NodeModel
from graphkit.registry import register_model

__all__ = ["GCN"]


@register_model("gcn", task="node", paper="arXiv:1609.02907")
class GCN(NodeModel):
    """Graph convolutional network: stacked :class:`~graphkit.nn.GCNLayer`."""

    def make_conv(self, in_channels: int, out_channels: int, last: bool) -> Conv:
        return GCNLayer(in_channels, out_channels)
