"""Graph isomorphism network for nodes.

Paper: "How Powerful are Graph Neural Networks?", Keyulu Xu, Weihua Hu, Jure Leskovec, Stefanie Jegelka,
ICLR 2019, https://arxiv.org/abs/1810.00826. As a tuned plain model: see :mod:`graphkit.nn.node`.
"""

from __future__ import annotations

from graphkit.nn.conv import Conv, GINLayer
from graphkit.nn.node import NodeModel
from graphkit.registry import register_model

__all__ = ["GIN"]


@register_model("gin", task="node", paper="arXiv:1810.00826")
class GIN(NodeModel):
    """Graph isomorphism network: stacked :class:`~graphkit.nn.GINLayer`."""

    def make_conv(self, in_channels: int, out_channels: int, last: bool) -> Conv:
        return GINLayer(in_channels, out_channels)
