"""What link predictors share: the scoring head, the MLP blocks, and encoder plus predictor as one model."""

from __future__ import annotations

from torch import Tensor, nn

from graphkit.kernels import pair_product
from graphkit.nn.checks import require_positive, require_rate
from graphkit.nn.dropout import DropoutReLU, NormDropoutReLU
from graphkit.nn.encoder import GraphEncoder
from graphkit.nn.pairs import PairStructure
from graphkit.sparse import CSRGraph, SparseRows, as_graph

__all__ = ["LinkModel", "PairPredictor", "activation", "two_layer_mlp"]


def activation(width: int, dropout: float, norm: bool) -> nn.Module:
    """Returns [LayerNorm,] dropout and ReLU, fused."""
    return NormDropoutReLU(width, dropout) if norm else DropoutReLU(dropout)


def two_layer_mlp(
    inputs: int, width: int, dropout: float, norm: bool, tail_activation: bool
) -> nn.Sequential:
    """Linear, dropout, ReLU, Linear, [LayerNorm,] dropout, ReLU [, Linear unless the activation ends it]."""
    layers: list[nn.Module] = [nn.Linear(inputs, width), DropoutReLU(dropout)]
    layers += [nn.Linear(width, width), activation(width, dropout, norm)]
    return nn.Sequential(*layers, *([] if tail_activation else [nn.Linear(width, width)]))


class PairPredictor(nn.Module):
    r"""Scores pairs from their product alone: :math:`s = \mathrm{head}(\mathrm{pair\_mlp}(h_i \odot h_j))`.

    The head of a graph autoencoder, and the base of the predictors that look at neighbours as well.

    Args:
        hidden_channels: Width ``H``.
        dropout: Dropout rate of all its MLPs.
        norm: LayerNorm in its MLPs.
        tail_activation: End the branches with their activation instead of a linear layer.
        two_layer_head: Two hidden layers in the head instead of one.

    Shapes:
        ``h`` ``[N, H]``, ``edge_label_index`` ``[2, B]`` int64; result ``[B]`` logits.
    """

    def __init__(
        self,
        hidden_channels: int,
        *,
        dropout: float = 0.0,
        norm: bool = True,
        tail_activation: bool = False,
        two_layer_head: bool = False,
    ) -> None:
        super().__init__()
        require_positive("hidden_channels", hidden_channels)
        require_rate("the predictor's dropout", dropout)
        width = hidden_channels
        self.hidden_channels = width
        tail = [] if tail_activation else [nn.Linear(width, width)]
        self.pair_mlp = nn.Sequential(nn.Linear(width, width), activation(width, dropout, norm), *tail)
        head: list[nn.Module] = []
        for _ in range(2 if two_layer_head else 1):
            head += [nn.Linear(width, width), activation(width, dropout, norm)]
        self.head = nn.Sequential(*head, nn.Linear(width, 1))

    def structure(
        self, graph: CSRGraph, edge_label_index: Tensor, max_bytes: int | None = None
    ) -> PairStructure | None:
        """Returns what the scores need of the graph, for pairs that are scored again and again.

        Args:
            graph: Sorted rows.
            edge_label_index: ``[2, B]`` int64.
            max_bytes: Leave out what can be left out beyond this size.
        """
        return None

    def forward(
        self, h: Tensor, graph: CSRGraph, edge_label_index: Tensor, structure: PairStructure | None = None
    ) -> Tensor:
        return self.head(self.pair_branch(h, edge_label_index)).squeeze(-1)

    def pair_branch(self, h: Tensor, pairs: Tensor) -> Tensor:
        """Returns ``pair_mlp(h_i * h_j)``, ``[B, H]``."""
        return self.pair_mlp(pair_product(h, pairs))


class LinkModel(nn.Module):
    """An encoder and a predictor: what the link task calls, and a plain module for anyone else.

    Args:
        encoder: ``(x, graph) -> [N, H]``.
        predictor: ``(h, graph, edge_label_index, structure) -> [B]``.
    """

    def __init__(self, encoder: GraphEncoder, predictor: PairPredictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor

    def encode(self, x: Tensor | SparseRows | None, graph: CSRGraph) -> Tensor:
        """Returns node states ``[N, H]``."""
        return self.encoder(x, graph)

    def score(
        self, h: Tensor, graph: CSRGraph, edge_label_index: Tensor, structure: PairStructure | None = None
    ) -> Tensor:
        """Returns the logit of each pair ``[2, B]``, ``[B]``."""
        return self.predictor(h, graph, edge_label_index, structure)

    def structure(
        self, graph: CSRGraph, edge_label_index: Tensor, max_bytes: int | None = None
    ) -> PairStructure | None:
        """Returns what :meth:`score` may be handed again for the same graph and pairs."""
        return self.predictor.structure(graph, edge_label_index, max_bytes)

    def forward(
        self,
        x: Tensor | SparseRows | None,
        edge_index: Tensor | CSRGraph,
        edge_label_index: Tensor,
        num_nodes: int | None = None,
    ) -> Tensor:
        """Returns the logit of each pair.

        Args:
            x: ``[N, F]`` features, dense or sparse CSR, or ``None`` for learnt embeddings.
            edge_index: ``[2, E]`` int64, either or both directions of each edge, or the graph as sorted rows.
            edge_label_index: ``[2, B]`` int64 pairs to score.
            num_nodes: ``N`` where ``x`` doesn't tell.
        """
        graph = as_graph(edge_index, x, num_nodes)
        return self.score(self.encode(x, graph), graph, edge_label_index)
