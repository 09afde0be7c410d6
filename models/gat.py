"""Graph attention network.

Paper: "Graph Attention Networks", Petar Veličković, Guillem Cucurull, Arantxa Casanova, Adriana Romero,
Pietro Liò, Yoshua Bengio, ICLR 2018, https://arxiv.org/abs/1710.10903. As a tuned plain model: see
:mod:`graphkit.nn.node`.
"""

from __future__ import annotations

from graphkit.nn.checks import require_rate
from graphkit.nn.conv import Conv, GATLayer
from graphkit.nn.embedding import EmbeddingConfig
from graphkit.nn.node import NodeModel, NormName
from graphkit.registry import register_model

__all__ = ["GAT"]


@register_model("gat", task="node", paper="arXiv:1710.10903")
class GAT(NodeModel):
    """Graph attention network: stacked :class:`~graphkit.nn.GATLayer`.

    Args:
        in_channels: Width of the features, or ``None`` for learnt embeddings of ``num_nodes`` ids.
        num_classes: Classes to tell apart.
        num_nodes: Number of nodes, needed without features only.
        heads: Attention heads of every layer: side by side in hidden layers, averaged where a last
            convolution gives the classes.
        attention_dropout: Rate on the attention weights.
        hidden_channels: Width of every hidden layer, all heads together.
        num_layers: Number of convolutions.
        norm: Normalisation of hidden layers.
        residual: Add a linear map of a hidden layer's input to its output.
        jumping: Add up all hidden layers' outputs before the head; needs ``linear_head``.
        linear_head: End with a linear map; otherwise the last convolution gives the classes.
        dropout: Rate after each hidden layer.
        feature_dropout: Rate on the features, or on the embedding's rows.
        embedding: What stands behind learnt rows where there are no features.
    """

    def __init__(
        self,
        in_channels: int | None,
        num_classes: int | None,
        num_nodes: int | None = None,
        *,
        heads: int = 4,
        attention_dropout: float = 0.0,
        hidden_channels: int = 256,
        num_layers: int = 3,
        norm: NormName = "batch",
        residual: bool = False,
        jumping: bool = False,
        linear_head: bool = False,
        dropout: float = 0.5,
        feature_dropout: float = 0.0,
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008 - frozen
    ) -> None:
        require_rate("attention_dropout", attention_dropout)
        # read by make_conv; plain numbers may precede the module's own set-up
        self.heads, self.attention_dropout = heads, attention_dropout
        super().__init__(
            in_channels,
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
        dropout = self.attention_dropout
        return GATLayer(in_channels, out_channels, self.heads, concat=not last, dropout=dropout)
