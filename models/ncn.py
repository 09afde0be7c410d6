r"""Neural common neighbours.

Paper: "Neural Common Neighbor with Completion for Link Prediction", Xiyuan Wang, Haotong Yang, Muhan Zhang,
ICLR 2024, https://arxiv.org/abs/2302.00890. Its completion stands in :mod:`graphkit.models.ncnc`.

Where this departs from the authors' code (``parity=True`` follows it instead): dropped edges go in both
directions together, theirs draws each direction by itself; jumping weights start at ``1 / num_layers``,
theirs from a normal distribution; sampled rows are the same in every evaluation, without replacement.

Shapes: N nodes, F features, H hidden channels, B target pairs.

    h   = Encoder(X, A)                                                        [N, H]
    x   = h + node_mlp(h)                                                      [N, H]
    z   = sum over u in N(i) & N(j) of x_u                                     [B, H]
    s   = head(beta * common_mlp(z) + pair_mlp(h_i * h_j))                     [B]
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from graphkit.nn.checks import require_positive, require_rate
from graphkit.nn.embedding import EmbeddingConfig
from graphkit.nn.encoder import ConvName, GraphEncoder, drop_edges
from graphkit.nn.link import LinkModel, PairPredictor, two_layer_mlp
from graphkit.nn.pairs import PairStructure, Rows, pair_structure, pool_rows, sample_rows
from graphkit.registry import register_model
from graphkit.sparse import CSRGraph

__all__ = ["NCN", "NCNPredictor", "NodeStates"]

PAPER = "arXiv:2302.00890"


class NodeStates(NamedTuple):
    """Node states of one call: ``h`` ``[N, H]``, and ``x`` for the nodes that are pooled (``local`` ids)."""

    h: Tensor
    x: Tensor
    local: Tensor | None

    def detach(self) -> NodeStates:
        return NodeStates(self.h.detach(), self.x.detach(), self.local)


class NCNPredictor(PairPredictor):
    r"""Neural common neighbours (paper section 4.1).

    .. math::
        s_{ij} = \mathrm{head}\Big(\beta\,\mathrm{common\_mlp}\big(\sum_{u \in N(i) \cap N(j)} x_u\big)
                 + \mathrm{pair\_mlp}(h_i \odot h_j)\Big), \qquad x = h + \mathrm{node\_mlp}(h)

    Args:
        hidden_channels: Width ``H``.
        dropout: Dropout rate of all its MLPs.
        norm: LayerNorm in its MLPs.
        tail_activation: End the branches with their activation instead of a linear layer.
        two_layer_head: Two hidden layers in the head instead of one.
        node_mlp: Transform node states before pooling; ``x = h`` without.
        edge_dropout: Share of edges that common neighbours are searched without, in training.
        beta: Initial weight of the pooled branch, learnt.
        max_common: Pool at most a sample of this many common neighbours; all by default.
        parity: Follow the authors' code in the points that the head of this file lists.
    """

    def __init__(
        self,
        hidden_channels: int,
        *,
        dropout: float = 0.0,
        norm: bool = True,
        tail_activation: bool = False,
        two_layer_head: bool = False,
        node_mlp: bool = False,
        edge_dropout: float = 0.0,
        beta: float = 1.0,
        max_common: int | None = None,
        parity: bool = False,
    ) -> None:
        super().__init__(
            hidden_channels,
            dropout=dropout,
            norm=norm,
            tail_activation=tail_activation,
            two_layer_head=two_layer_head,
        )
        require_rate("the predictor's edge dropout", edge_dropout, below_one=True)
        if max_common is not None:
            require_positive("max_common", max_common)
        width = hidden_channels
        self.node_mlp = two_layer_mlp(width, width, dropout, norm, True) if node_mlp else None
        self.common_mlp = two_layer_mlp(width, width, dropout, norm, tail_activation)
        self.beta = nn.Parameter(torch.tensor([float(beta)]))
        self.has_dropout = dropout > 0
        self.edge_dropout, self.max_common, self.parity = edge_dropout, max_common, parity

    def structure(
        self, graph: CSRGraph, edge_label_index: Tensor, max_bytes: int | None = None
    ) -> PairStructure:
        found = pair_structure(graph, edge_label_index)
        return found._replace(common=self._sample_common(found.common, edge_label_index))

    def forward(
        self, h: Tensor, graph: CSRGraph, edge_label_index: Tensor, structure: PairStructure | None = None
    ) -> Tensor:
        if structure is None:
            graph, _ = drop_edges(graph, self.edge_dropout, self.training, symmetric=not self.parity)
            structure = self.structure(graph, edge_label_index)
        return self._score(h, edge_label_index, structure)

    def _score(self, h: Tensor, pairs: Tensor, structure: PairStructure) -> Tensor:
        return self._combine(self._nodes(h, structure.common), pairs, structure.common)

    def _combine(self, nodes: NodeStates, pairs: Tensor, rows: Rows) -> Tensor:
        total = self.pair_branch(nodes.h, pairs)
        return self.head(self._add_pooled(total, self.beta, self.common_mlp, rows, nodes)).squeeze(-1)

    def _nodes(self, h: Tensor, *rows: Rows, ends: Tensor | None = None) -> NodeStates:
        """Computes x = h + node_mlp(h) for the nodes of ``rows`` and ``ends``; everywhere without rows."""
        if self.node_mlp is None:
            return NodeStates(h, h, None)
        if rows:
            used = torch.zeros(h.size(0), dtype=torch.bool, device=h.device)
            for part in rows:
                used[part.node.long()] = True
            if ends is not None:
                used[ends.flatten()] = True
            node = used.nonzero().squeeze(1)
            if node.numel() < 0.7 * h.size(0):
                chosen = h.index_select(0, node)
                # an id that was left out by mistake must fail, not read another node's row
                local = torch.where(used, torch.cumsum(used, 0) - 1, -1).to(torch.int32)
                return NodeStates(h, chosen + self.node_mlp(chosen), local)
        return NodeStates(h, h + self.node_mlp(h), None)

    def _add_pooled(
        self, total: Tensor, weight: Tensor, mlp: nn.Sequential, rows: Rows, nodes: NodeStates
    ) -> Tensor:
        """Returns total + weight * mlp(z), ``[B, H]``; ``total`` may be overwritten where no gradient flows.

        Most rows are empty, so z = 0 there: they are done together as far as nothing tells them apart.
        """
        if nodes.local is not None:
            rows = rows._replace(node=nodes.local[rows.node.long()])
        index, z = pool_rows(rows, nodes.x)  # [R], [R, H]
        first, rest = mlp[0], mlp[1:]
        assert isinstance(first, nn.Linear)
        hidden = first(self._pooled(z))
        if index.numel() == rows.num_rows:
            return torch.addcmul(total, weight, rest(hidden))
        nothing = first.bias.to(hidden.dtype).unsqueeze(0)  # first(0), of every empty row
        if self.training and self.has_dropout:  # which does tell them apart
            return torch.addcmul(
                total, weight, rest(nothing.expand(rows.num_rows, -1).index_copy(0, index, hidden))
            )
        both = weight * rest(torch.cat([nothing, hidden]))  # [1 + R, H]
        total = total.to(both.dtype)  # under autocast total is half, both isn't: the two sums cancel in part
        extra = both[1:] - both[:1]
        if torch.is_grad_enabled():
            return (total + both[:1]).index_add(0, index, extra)
        return total.add_(both[:1]).index_add_(0, index, extra)

    def _pooled(self, z: Tensor) -> Tensor:
        """What becomes of a pooled sum before its MLP; must keep 0 at 0."""
        return z

    def _sample_common(self, rows: Rows, pairs: Tensor) -> Rows:
        return self._sample(rows, torch.minimum(*pairs), torch.maximum(*pairs), self.max_common)

    def _sample(self, rows: Rows, own: Tensor, other: Tensor, limit: int | None) -> Rows:
        """Thins rows to ``limit`` draws, seeded by the two ends, in training by torch's generator as well."""
        if limit is None:
            return rows
        seed = own * 2654435761 + other
        if self.training:
            seed = seed + torch.randint(2**40, (1,)).to(seed.device) * 7
        return sample_rows(rows, limit, seed, replace=self.parity)


@register_model("ncn", task="link", paper=PAPER)
class NCN(LinkModel):
    """Neural common neighbours: :class:`NCNPredictor` on a :class:`~graphkit.nn.GraphEncoder`.

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
        node_mlp: Transform node states before pooling.
        predictor_edge_dropout: Share of edges that neighbourhoods are searched without, in training.
        beta: Initial weight of the pooled branch, learnt.
        max_common: Pool at most a sample of this many common neighbours; all by default.
        parity: Follow the authors' code in the points that the head of this file lists.
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
        node_mlp: bool = False,
        predictor_edge_dropout: float = 0.0,
        beta: float = 1.0,
        max_common: int | None = None,
        parity: bool = False,
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
            parity=parity,
        )
        predictor = NCNPredictor(
            hidden_channels,
            dropout=predictor_dropout,
            norm=predictor_norm,
            tail_activation=tail_activation,
            two_layer_head=two_layer_head,
            node_mlp=node_mlp,
            edge_dropout=predictor_edge_dropout,
            beta=beta,
            max_common=max_common,
            parity=parity,
        )
        super().__init__(encoder, predictor)
