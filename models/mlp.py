"""A multilayer perceptron on the nodes' own features: the baseline that doesn't see the graph.

Paper: "Learning representations by back-propagating errors", David E. Rumelhart, Geoffrey E. Hinton,
Ronald J. Williams, Nature 1986, https://doi.org/10.1038/323533a0. As a tuned plain model: see
:mod:`graphkit.nn.node`. It departs from a convolution in its layers alone, so a difference in accuracy is the
graph's.
"""

from __future__ import annotations

from graphkit.nn.conv import Conv, LinearLayer
from graphkit.nn.node import NodeModel
from graphkit.registry import register_model

__all__ = ["MLP"]


@register_model("mlp", task="node", paper="doi:10.1038/323533a0")
class MLP(NodeModel):
    """Multilayer perceptron on nodes' own features, blind to the graph."""

    def make_conv(self, in_channels: int, out_channels: int, last: bool) -> Conv:
        return LinearLayer(in_channels, out_channels)
