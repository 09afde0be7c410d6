"""Node encoders for link prediction: weighted and weightless graph convolutions on sorted rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch_geometric.utils import segment

from graphkit.kernels import spmm
from graphkit.nn.checks import require_positive, require_rate
from graphkit.nn.dropout import DropoutReLU, FastDropout, NormDropoutReLU
from graphkit.nn.embedding import Embedding, EmbeddingConfig, make_embedding
from graphkit.sparse import CSRGraph, SparseRows

__all__ = ["CONVOLUTIONS", "ConvName", "FeatureLinear", "GraphEncoder", "drop_edges", "propagate"]

ConvName = Literal["gcn", "sage", "gin", "max", "puregcn", "puresum", "puremean", "puremax", "none"]
CONVOLUTIONS: tuple[str, ...] = get_args(ConvName)
_AGGREGATION = {"gcn": "gcn", "sage": "mean", "gin": "sum", "max": "max"}


def drop_edges(
    graph: CSRGraph, p: float, training: bool, *, symmetric: bool = True
) -> tuple[CSRGraph, float]:
    """Drops edges at random and returns the smaller graph with the value ``1 / (1 - p)`` of a kept edge.

    Args:
        graph: Sorted rows.
        p: Probability that an edge is dropped; below 1e-6 nothing happens.
        training: Nothing happens outside training.
        symmetric: Drop both directions of an undirected edge together. Otherwise each stored entry is drawn
            by itself, as the NCN authors' code does.
    """
    if not training or p < 1e-6:
        return graph, 1.0
    device = graph.device
    if symmetric:
        keep = torch.rand(graph.edges.size(1), device=device)[graph.edge_id] >= p
    else:
        keep = torch.rand(graph.num_entries, device=device) >= p
    return graph.filter(keep, symmetric=graph.symmetric and symmetric), 1.0 / (1.0 - p)


def propagate(x: Tensor, graph: CSRGraph, aggregation: str, value: float = 1.0) -> Tensor:
    r"""Aggregates neighbours without weights, every edge having the same ``value`` :math:`w`.

    .. math::
        \text{sum: } \sum_{u \in N(v)} w\,x_u \qquad
        \text{gcn: } \tilde d_v^{-1/2}\Big(\tilde d_v^{-1/2} x_v +
                     \sum_{u \in N(v)} w\,\tilde d_u^{-1/2} x_u\Big),\quad \tilde d_v = 1 + w\,|N(v)|

    and likewise mean (over :math:`|N(v)|`) and max; an empty neighbourhood gives 0.

    Args:
        x: ``[N, F]`` floating point.
        graph: Sorted rows of ``N`` nodes.
        aggregation: ``"sum"``, ``"mean"``, ``"max"`` or ``"gcn"``.
        value: The value of every edge.

    Returns:
        ``[N, F]``.
    """
    if aggregation == "max":
        gathered = x[graph.col.long()] * value
        return segment(gathered, graph.rowptr, reduce="max") if gathered.numel() else torch.zeros_like(x)
    degree = graph.degree().to(x.dtype).unsqueeze(1)  # [N, 1]
    if aggregation == "gcn":
        scale = (1.0 + value * degree).rsqrt()
        scaled = scale * x
        total = spmm(graph.rowptr, graph.col, None, scaled, symmetric=graph.symmetric)
        return scale * torch.add(scaled, total, alpha=value)
    total = spmm(graph.rowptr, graph.col, None, x, symmetric=graph.symmetric)
    if aggregation == "mean":
        return total * (value / degree.clamp(min=1.0))
    return total if value == 1.0 else total * value


class FeatureLinear(nn.Module):
    r"""Dropout and a linear map of node features that may be sparse: :math:`\mathrm{drop}(X) W + b`.

    For a sparse ``X`` dropout touches the stored values only (a dropped zero is a zero, so the distribution
    is the same) and both products, forward and for the weight's gradient, cost its non-zeros.

    Args:
        in_channels: Width ``F`` of the features.
        out_channels: Width ``H`` of the result.
        dropout: Rate of the dropout on ``X``.

    Shapes:
        ``X``: ``[N, F]``, dense, ``torch.sparse_csr`` or :class:`~graphkit.sparse.SparseRows`; result
        ``[N, H]``. ``weight`` is ``[F, H]``: one row a feature, the transpose of
        :class:`torch.nn.Linear`'s, so that a sparse product reads whole rows.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.dropout = FastDropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight.size(0) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor | SparseRows) -> Tensor:
        return self.project(x) + self.bias

    def project(self, x: Tensor | SparseRows) -> Tensor:
        """Returns the map without its bias, for a convolution that adds the bias after aggregation."""
        if isinstance(x, Tensor) and x.layout is torch.sparse_csr:
            x = SparseRows.from_csr(x)
        if isinstance(x, Tensor):
            return self.dropout(x) @ self.weight
        return spmm(x.rowptr, x.col, self.dropout(x.value), self.weight)


class GraphEncoder(nn.Module):
    r"""The encoder of NCN (Wang et al., arXiv 2302.00890, appendix; all its convolutions).

    A convolution with weights is :math:`\mathrm{agg}(X W) + b`, where gcn normalises symmetrically with self
    loops, ``sage`` is the mean, ``gin`` the sum and ``max`` the maximum over neighbours. The ``pure*`` family
    has no weights at all: one linear input layer, then :func:`propagate`. Layer 1 and every layer but the
    last is followed by LayerNorm, dropout and ReLU in weighted encoders; in pure ones the last by dropout.

    Args:
        in_channels: Feature width, or ``None`` for learnt embeddings of ``num_embeddings`` node ids.
        hidden_channels: Width ``H`` of every block's output.
        num_layers: Number of convolutions; 0 (or ``conv="none"``) leaves the input layer alone.
        conv: The convolution.
        num_embeddings: Rows of the embedding table where there are no features.
        embedding: What stands behind them; its width may differ from ``H`` in weighted encoders only.
        layer_norm: Normalise between weighted convolutions.
        residual: Add a layer's input to its output; not to that of a weighted encoder's first layer, whose
            input are raw features.
        jumping: Return the weighted sum :math:`\sum_l a_l x_l` of all layers' outputs, ``a`` learnt.
        feature_dropout: Dropout on the raw features.
        dropout: Dropout after the input layer and between weighted convolutions.
        tail_dropout: Dropout after the last pure convolution.
        edge_dropout: Share of edges dropped, afresh for each layer.
        parity: Follow the authors' code in two details: edges are dropped in each direction by itself, and
            the jumping weights start from a normal distribution instead of ``1 / num_layers``.

    Shapes:
        ``x``: ``[N, F]`` dense or sparse CSR, or ``[N]`` int64 ids, or ``None`` for ids ``0..N-1``;
        result ``[N, H]``.
    """

    def __init__(
        self,
        in_channels: int | None,
        hidden_channels: int,
        num_layers: int = 1,
        conv: ConvName = "gcn",
        *,
        num_embeddings: int | None = None,
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008 - frozen
        layer_norm: bool = True,
        residual: bool = False,
        jumping: bool = False,
        feature_dropout: float = 0.0,
        dropout: float = 0.0,
        tail_dropout: float = 0.0,
        edge_dropout: float = 0.0,
        parity: bool = False,
    ) -> None:
        super().__init__()
        if conv not in CONVOLUTIONS:
            raise ValueError(f"conv is {conv!r}; it must be one of {', '.join(CONVOLUTIONS)}")
        require_positive("hidden_channels", hidden_channels)
        for name, rate in (("feature_dropout", feature_dropout), ("dropout", dropout)):
            require_rate(name, rate)
        require_rate("tail_dropout", tail_dropout)
        require_rate("edge_dropout", edge_dropout, below_one=True)
        if num_layers < 0:
            raise ValueError(f"num_layers is {num_layers}; it must be at least 0")
        if in_channels is None and num_embeddings is None:
            raise ValueError("in_channels is None, so num_embeddings must say how many node ids there are")
        self.num_layers = 0 if conv == "none" else num_layers
        self.pure = conv.startswith("pure") or self.num_layers == 0
        self.aggregation = _AGGREGATION.get(conv, conv.removeprefix("pure"))
        self.residual, self.edge_dropout, self.parity = residual, edge_dropout, parity

        width = hidden_channels
        self.input: nn.Module
        if in_channels is None:
            table = make_embedding(EmbeddingConfig.of(embedding), int(num_embeddings or 0), width)
            if self.pure and table.embedding_dim != width:
                raise ValueError(
                    f"embedding.dim is {table.embedding_dim}; an encoder whose convolutions have no weights "
                    f"needs rows of its own width, {width}"
                )
            self.input, width = table, table.embedding_dim
        elif self.pure:
            self.input = FeatureLinear(in_channels, width, feature_dropout)
        else:
            width = in_channels
            self.input = nn.Identity()
        self.input_dropout = FastDropout(dropout)
        self.tail_dropout = FastDropout(tail_dropout if self.pure and self.num_layers else 0.0)

        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in range(0 if self.pure else self.num_layers):
            first_dropout = feature_dropout if layer == 0 and in_channels is not None else 0.0
            self.convs.append(
                FeatureLinear(width if layer == 0 else hidden_channels, hidden_channels, first_dropout)
            )
            if layer == 0 or layer < self.num_layers - 1:
                self.norms.append(
                    NormDropoutReLU(hidden_channels, dropout) if layer_norm else DropoutReLU(dropout)
                )
        self.jumping = nn.Parameter(torch.empty(self.num_layers)) if jumping and self.num_layers else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in (self.input, *self.convs, *self.norms):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for conv in self.convs:
            assert isinstance(conv, FeatureLinear)
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        if self.jumping is not None:
            if self.parity:
                nn.init.normal_(self.jumping)
            else:
                nn.init.constant_(self.jumping, 1.0 / self.num_layers)

    def forward(
        self, x: Tensor | SparseRows | None, graph: CSRGraph | Tensor, num_nodes: int | None = None
    ) -> Tensor:
        if isinstance(graph, Tensor):
            size = num_nodes if num_nodes is not None else _count_nodes(x, graph, self.input)
            graph = CSRGraph.from_edge_index(graph, size)
        h: Tensor | SparseRows = self._embed(x, graph.num_nodes)
        outputs: list[Tensor] = []
        for layer in range(self.num_layers):
            kept, value = drop_edges(graph, self.edge_dropout, self.training, symmetric=not self.parity)
            if isinstance(h, Tensor) and self.pure:
                y = propagate(h, kept, self.aggregation, value)
                if layer == self.num_layers - 1:
                    y = self.tail_dropout(y)
            else:
                conv = self.convs[layer]
                assert isinstance(conv, FeatureLinear)
                y = propagate(conv.project(h), kept, self.aggregation, value) + conv.bias
                if layer < len(self.norms):
                    y = self.norms[layer](y)
            # a weighted encoder's first layer starts from raw features, which may be sparse: nothing to add
            raw = not self.pure and layer == 0 and not isinstance(self.input, Embedding)
            fits = isinstance(h, Tensor) and h.size(1) == y.size(1)
            h = y + h if self.residual and not raw and fits and isinstance(h, Tensor) else y
            outputs.append(h)
        assert isinstance(h, Tensor)
        return h if self.jumping is None else _weighted_sum(self.jumping, outputs)

    def _embed(self, x: Tensor | SparseRows | None, num_nodes: int) -> Tensor | SparseRows:
        if isinstance(self.input, Embedding):
            if isinstance(x, Tensor) and not x.is_floating_point():
                rows = self.input(x)
            elif num_nodes == self.input.num_embeddings:
                rows = self.input()
            elif num_nodes < self.input.num_embeddings:
                rows = self.input.rows(0, num_nodes)
            else:
                raise ValueError(
                    f"the graph has {num_nodes} nodes, the embedding {self.input.num_embeddings} rows"
                )
            return self.input_dropout(rows)
        if x is None:
            raise ValueError("x is None, but this encoder was built with in_channels")
        return self.input_dropout(self.input(x)) if self.pure else x


def _weighted_sum(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    total = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total + weight * output
    return total


def _count_nodes(x: Tensor | SparseRows | None, edge_index: Tensor, embed: nn.Module) -> int:
    if x is not None:
        return x.size(0)
    if isinstance(embed, Embedding):
        return embed.num_embeddings
    return int(edge_index.max()) + 1 if edge_index.numel() else 0
