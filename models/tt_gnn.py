r"""Graph networks on tensor-train node embeddings.

Paper: "Nimble GNN Embedding with Tensor-Train Decomposition", Chunxing Yin, Da Zheng, Israt Nisa, Christos
Faloutsos, George Karypis, Richard Vuduc, KDD 2022, https://arxiv.org/abs/2206.10581.

The nodes' features, if there are any, aren't looked at: each node has a learnt row of width D, and the table
of N rows is a tensor train whose row digits follow a hierarchical partition of the graph, so that neighbours
share most of their parameters. The layers on top are plain.

Where this departs from the authors' code: the partition is recursive and aligned with the digits (theirs has
one level); orthogonal cores exist for any rank (theirs fails where ``rank * q_d > p_d``); the first
rows' deviation can be chosen (``embedding.std``), which is what mattered in the comparison of starts; layers
narrow before they aggregate.

Shapes: N nodes, D width of a row, H hidden channels, C classes.

    x   = G_1[i_1] G_2[i_2] G_3[i_3] for the digits of each node's position         [N, D]
    out = convolutions as in graphkit.nn.node                                       [N, C]
"""

from __future__ import annotations

from typing import Literal

from graphkit.nn.conv import Conv, GATLayer, GCNLayer, SAGELayer
from graphkit.nn.embedding import EmbeddingConfig
from graphkit.nn.node import NodeModel, NormName
from graphkit.registry import register_model

__all__ = ["TTGNN"]

_PLAIN = {"gcn": GCNLayer, "sage": SAGELayer}


@register_model("tt-gnn", task="node", paper="arXiv:2206.10581")
class TTGNN(NodeModel):
    """GCN, GraphSAGE or GAT on learnt node embeddings, compressed as a tensor train by default.

    Args:
        num_classes: Classes to tell apart.
        num_nodes: Number of nodes ``N``.
        conv: The convolution.
        heads: Attention heads of ``gat``: side by side in hidden layers, averaged where a last convolution
            gives the classes.
        hidden_channels: Width of every hidden layer.
        num_layers: Number of convolutions.
        norm: Normalisation of hidden layers.
        residual: Add a linear map of a hidden layer's input to its output.
        jumping: Add up all hidden layers' outputs before the head; needs ``linear_head``.
        linear_head: End with a linear map; otherwise the last convolution gives the classes.
        dropout: Rate after each hidden layer.
        feature_dropout: Rate on the embedding's rows.
        embedding: Kind, rank, order and start of the table; ``--model.embedding.kind dense`` is the full one.
    """

    def __init__(
        self,
        num_classes: int | None,
        num_nodes: int | None,
        *,
        conv: Literal["gcn", "sage", "gat"] = "gcn",
        heads: int = 4,
        hidden_channels: int = 256,
        num_layers: int = 3,
        norm: NormName = "batch",
        residual: bool = False,
        jumping: bool = False,
        linear_head: bool = False,
        dropout: float = 0.5,
        feature_dropout: float = 0.0,
        embedding: EmbeddingConfig = EmbeddingConfig(kind="tensor_train", dim=128),  # noqa: B008 - frozen
    ) -> None:
        if conv not in (*_PLAIN, "gat"):
            raise ValueError(f"conv is {conv!r}; it must be gcn, sage or gat")
        self.conv, self.heads = conv, heads  # read by make_conv
        super().__init__(
            None,
            num_classes,
            num_nodes,
            hidden_channels=hidden_channels,
            num_layers=num_layers,
            norm=norm,
            residual=residual,
            jumping=jumping,
            linear_head=linear_head,
            dropout=dropout,
            feature_dropout=feature_dropout,
            embedding=embedding,
        )

    def make_conv(self, in_channels: int, out_channels: int, last: bool) -> Conv:
        if self.conv == "gat":
            return GATLayer(in_channels, out_channels, self.heads, concat=not last)
        return _PLAIN[self.conv](in_channels, out_channels)
