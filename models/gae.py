"""Graph autoencoder for link prediction: a graph encoder and an MLP on the product of two node states.

Paper: "Variational Graph Auto-Encoders", Thomas N. Kipf, Max Welling, 2016, https://arxiv.org/abs/1611.07308,
with the MLP head that the NCN paper (arXiv 2302.00890) uses for its row "GAE" in place of the dot product.

    h = Encoder(X, A)                                                          [N, H]
    s = head(pair_mlp(h_i * h_j))                                              [B]
"""

from __future__ import annotations

from graphkit.nn.embedding import EmbeddingConfig
from graphkit.nn.encoder import ConvName, GraphEncoder
from graphkit.nn.link import LinkModel, PairPredictor
from graphkit.registry import register_model

__all__ = ["GAE"]

PAPER = "arXiv:1611.07308"


@register_model("gae", task="link", paper=PAPER)
class GAE(LinkModel):
    """Graph autoencoder: :class:`~graphkit.nn.PairPredictor` on a :class:`~graphkit.nn.GraphEncoder`.

    Args:
        in_channels: Feature width, or ``None`` for learnt embeddings of ``num_nodes`` ids.
        num_nodes: Number of nodes, needed without features only.
        hidden_channels: Width ``H`` of every block.
        num_layers: Number of convolutions.
        conv: The convolution, see :class:`~graphkit.nn.GraphEncoder`.
        layer_norm: Normalise between weighted convolutions.
        residual: Add a convolution's input to its output where widths agree.
        jumping: Learnt weighted sum of all convolutions' outputs.
        feature_dropout: Dropout on the raw features.
        dropout: Dropout after the input layer and between weighted convolutions.
        tail_dropout: Dropout after the last pure convolution.
        edge_dropout: Share of edges each convolution goes without, in training.
        embedding: What stands behind learnt rows where there are no features.
        predictor_dropout: Dropout rate of the predictor's MLPs.
        predictor_norm: LayerNorm in the predictor's MLPs.
        tail_activation: End the predictor's branches with their activation instead of a linear layer.
        two_layer_head: Two hidden layers in the predictor's head instead of one.
    """

    def __init__(
        self,
        in_channels: int | None,
        num_nodes: int | None = None,
        *,
        hidden_channels: int = 256,
        num_layers: int = 1,
        conv: ConvName = "puregcn",
        layer_norm: bool = True,
        residual: bool = False,
        jumping: bool = False,
        feature_dropout: float = 0.0,
        dropout: float = 0.0,
        tail_dropout: float = 0.0,
        edge_dropout: float = 0.0,
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008 - frozen
        predictor_dropout: float = 0.0,
        predictor_norm: bool = True,
        tail_activation: bool = False,
        two_layer_head: bool = False,
    ) -> None:
        encoder = GraphEncoder(
            in_channels,
            hidden_channels,
            num_layers,
            conv,
            num_embeddings=num_nodes,
            embedding=embedding,
            layer_norm=layer_norm,
            residual=residual,
            jumping=jumping,
            feature_dropout=feature_dropout,
            dropout=dropout,
            tail_dropout=tail_dropout,
            edge_dropout=edge_dropout,
        )
        predictor = PairPredictor(
            hidden_channels,
            dropout=predictor_dropout,
            norm=predictor_norm,
            tail_activation=tail_activation,
            two_layer_head=two_layer_head,
        )
        super().__init__(encoder, predictor)
