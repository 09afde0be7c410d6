"""GraphSAGE with mean aggregation.

Paper: "Inductive Representation Learning on Large Graphs", William L. Hamilton, Rex Ying, Jure Leskovec,
NeurIPS 2017, https://arxiv.org/abs/1706.02216. As a tuned plain model: see :mod:`graphkit.nn.node`.
"""

from __future__ import annotations

from graphkit.nn.conv import Conv, SAGELayer
from graphkit.nn.node import NodeModel
from graphkit.registry import register_model

__all__ = ["SAGE"]


@register_model("sage", task="node", paper="arXiv:1706.02216")
class SAGE(NodeModel):
    """GraphSAGE with the mean: stacked :class:`~graphkit.nn.SAGELayer`."""

    def make_conv(self, in_channels: int, out_channels: int, last: bool) -> Conv:
        return SAGELayer(in_channels, out_channels)
