"""From the states of nodes to the prediction of a graph: pooling and heads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.nn.checks import require_positive

__all__ = ["MLPHead", "Pooling", "TaperedHead", "pool"]

Pooling = Literal["sum", "mean", "max"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def pool(x: Tensor, batch: Tensor, num_graphs: int, how: Pooling = "sum") -> Tensor:
    """Combines the rows of each graph.

    Args:
        x: ``[n, d]``.
        batch: ``[n]`` int64, the graph of each row.
        num_graphs: B.
        how: Sum, mean or elementwise maximum.

    Returns:
        ``[B, d]``; zero for a graph without nodes.
    """
    if how == "max":
        index = batch[:, None].expand_as(x)
        return x.new_zeros(num_graphs, x.size(1)).scatter_reduce(0, index, x, "amax", include_self=False)
    total = x.new_zeros(num_graphs, x.size(1)).index_add(0, batch, x)
    if how == "sum":
        return total
    if how != "mean":
        raise ValueError(f"pooling is {how!r}; it must be sum, mean or max")
    count = torch.bincount(batch, minlength=num_graphs).clamp(min=1)
    return total / count[:, None].to(x.dtype)


class TaperedHead(nn.Module):
    """Maps ``d -> d/2 -> d/4 -> out`` with an activation between: the head of SAN (arXiv:2106.03893).

    Args:
        channels: Width ``d``, at least 4.
        out_channels: Width of the prediction.
        activation: ``relu`` or ``gelu``.
        layers: Times the width is halved.
    """

    def __init__(self, channels: int, out_channels: int, activation: str = "relu", layers: int = 2) -> None:
        super().__init__()
        if channels < 1 << layers:
            raise ValueError(f"channels is {channels}; to be halved {layers} times it must be {1 << layers}")
        widths = [channels >> k for k in range(layers + 1)] + [out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class MLPHead(nn.Module):
    """Maps ``d -> d -> ... -> out`` by ``layers`` linear maps with ReLU between.

    Args:
        channels: Width ``d``.
        out_channels: Width of the prediction.
        layers: Number of linear maps, at least 1.
        l2norm: Divide each hidden row by its 2-norm after ReLU. GraphGym's heads always do, and published
            figures of GRIT and GPS rest on it.
        dropout: Rate after each hidden layer.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        layers: int = 1,
        *,
        l2norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive("layers", layers)
        widths = [channels] * layers + [out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.l2norm, self.dropout = l2norm, dropout

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
            x = F.normalize(x, dim=-1) if self.l2norm else x
            x = F.dropout(x, self.dropout, self.training)
        out: Tensor = self.layers[-1](x)
        return out
