r"""Ablations of NCN: counts instead of pooled states, more branches, completion of counts.

Paper: "Neural Common Neighbor with Completion for Link Prediction", Xiyuan Wang, Haotong Yang, Muhan Zhang,
ICLR 2024, https://arxiv.org/abs/2302.00890, its table of ablations.

Where this departs from the authors' code: a count :math:`c` enters as :math:`\ln(1 + c)`, since a hub's raw
count swamps a linear layer (``parity=True``: raw); branches are built with the arguments given, where theirs
shifts positional ones. Shapes as in :mod:`graphkit.models.ncn`; c is the number of common neighbours, [B, 1].

    gae-cn         s = head(beta * count_mlp(c) + pair_mlp(h_i * h_j))
    gae-cn-concat  s = head([c, pair_mlp(h_i * h_j)])
    gae-cnc        as gae-cn with c + sum of P over both differences (completed counts)
    ncn2           s = head(beta * common_mlp(z) + second_mlp(z_12 + z_21) + pair_mlp(h_i * h_j)),
                   z_12 pools N(i) & N2(j), z_21 pools N2(i) & N(j), N2 = ends of walks of length two
    ncn-diff       the same with the two differences N(i) \ N(j), N(j) \ N(i) in the second branch
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from graphkit.kernels import overlap_count
from graphkit.models.ncn import PAPER, NCNPredictor, NodeStates
from graphkit.models.ncnc import NCNCPredictor
from graphkit.nn.embedding import EmbeddingConfig
from graphkit.nn.encoder import ConvName, GraphEncoder, drop_edges
from graphkit.nn.link import LinkModel, PairPredictor, two_layer_mlp
from graphkit.nn.pairs import PairStructure, Rows, candidate_pairs, merge_rows, pair_structure, select_entries
from graphkit.registry import register_model
from graphkit.sparse import CSRGraph

__all__ = ["NCNAblation"]


class _Counts(NCNPredictor):
    """Pools ones in place of node states: z is the (weighted) number of pooled nodes, ``[B, 1]``."""

    def __init__(self, hidden_channels: int, **options: Any) -> None:
        super().__init__(hidden_channels, **{**options, "node_mlp": False})
        norm, tail = options.get("norm", True), options.get("tail_activation", False)
        self.common_mlp = two_layer_mlp(1, hidden_channels, options.get("dropout", 0.0), norm, tail)

    def _nodes(self, h: Tensor, *rows: Rows, ends: Tensor | None = None) -> NodeStates:
        return NodeStates(h, h.new_ones(h.size(0), 1), None)

    def _pooled(self, z: Tensor) -> Tensor:
        return z if self.parity else z.log1p()


class _CompletedCounts(_Counts, NCNCPredictor):
    """Counts with completion."""

    def _candidate_states(self, nodes: NodeStates) -> NodeStates:
        return nodes


class _ConcatenatedCount(PairPredictor):
    """The count stands beside the pair branch as one more input of the head."""

    def __init__(
        self,
        hidden_channels: int,
        *,
        parity: bool = False,
        dropout: float = 0.0,
        edge_dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(hidden_channels, dropout=dropout, **options)
        self.parity, self.edge_dropout = parity, edge_dropout
        self.head[0] = nn.Linear(hidden_channels + 1, hidden_channels)

    def forward(
        self, h: Tensor, graph: CSRGraph, edge_label_index: Tensor, structure: PairStructure | None = None
    ) -> Tensor:
        graph, _ = drop_edges(graph, self.edge_dropout, self.training, symmetric=not self.parity)
        count = overlap_count(graph.rowptr, graph.col, edge_label_index).to(h.dtype).unsqueeze(1)  # [B, 1]
        count = count if self.parity else count.log1p()
        return self.head(torch.cat([count, self.pair_branch(h, edge_label_index)], dim=1)).squeeze(-1)


class _TwoBranches(NCNPredictor):
    """A second pooled branch, over the lists that :meth:`structure` puts in ``only_i`` and ``only_j``."""

    def __init__(self, hidden_channels: int, **options: Any) -> None:
        super().__init__(hidden_channels, **options)
        norm, tail = options.get("norm", True), options.get("tail_activation", False)
        width = hidden_channels
        self.second_mlp = two_layer_mlp(width, width, options.get("dropout", 0.0), norm, tail)

    def _score(self, h: Tensor, pairs: Tensor, structure: PairStructure) -> Tensor:
        assert structure.only_i is not None and structure.only_j is not None
        second = merge_rows(structure.only_i, structure.only_j)
        nodes = self._nodes(h, structure.common, second)
        both = self._add_pooled(
            self.pair_branch(h, pairs), self.beta, self.common_mlp, structure.common, nodes
        )
        return self.head(
            self._add_pooled(both, torch.ones_like(self.beta), self.second_mlp, second, nodes)
        ).squeeze(-1)


class _Differences(_TwoBranches):
    def structure(
        self, graph: CSRGraph, edge_label_index: Tensor, max_bytes: int | None = None
    ) -> PairStructure:
        return pair_structure(graph, edge_label_index, differences=True)


class _TwoHops(_TwoBranches):
    def structure(
        self, graph: CSRGraph, edge_label_index: Tensor, max_bytes: int | None = None
    ) -> PairStructure:
        found = pair_structure(graph, edge_label_index, differences=True)
        assert found.only_i is not None and found.only_j is not None
        near_i = merge_rows(found.common, found.only_i)  # N(i)
        near_j = merge_rows(found.common, found.only_j)  # N(j)
        # u in N(i) ends a walk of length two from j exactly if u and j have a common neighbour
        count = overlap_count(graph.rowptr, graph.col, candidate_pairs(edge_label_index, near_i, near_j))
        cut = near_i.node.numel()
        return PairStructure(
            found.common, select_entries(near_i, count[:cut] > 0), select_entries(near_j, count[cut:] > 0)
        )


Variant = Literal["gae-cn", "gae-cn-concat", "gae-cnc", "ncn2", "ncn-diff"]
_SIMPLE = {"gae-cn": _Counts, "ncn2": _TwoHops, "ncn-diff": _Differences}


@register_model("ncn-ablation", task="link", paper=PAPER)
class NCNAblation(LinkModel):
    r"""One of the variants that the NCN paper compares itself with; see the head of this file.

    Args:
        in_channels: Feature width, or ``None`` for learnt embeddings of ``num_nodes`` ids.
        num_nodes: Number of nodes, needed without features only.
        variant: Which one. Options that a variant has no part for are without effect: completion's save for
            gae-cnc, ``node_mlp`` and ``beta`` where counts are pooled.
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
        depth: Rounds of completion; the innermost candidates are scored by NCN.
        scale: Slope of a completion's probability in its logit.
        offset: Logit of even odds, before the prior.
        prior: Factor on the odds of every completion.
        ceiling: Largest weight :math:`\alpha` of a completion; may exceed 1.
        learn_prior: Let an MLP of :math:`h_i \odot h_j` give the prior of each target instead.
        max_candidates_train: Complete at most a sample of this many nodes a side in training; all by default.
        max_candidates_eval: The same in evaluation.
        completion_dropout: Keep dropout active while candidates are scored in training, as published.
        chunk_bytes: Candidates are scored in portions whose activations take about this much memory.
        parity: Follow the authors' code in the points that the head of this file lists.
    """

    def __init__(
        self,
        in_channels: int | None,
        num_nodes: int | None = None,
        *,
        variant: Variant = "gae-cn",
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
        depth: int = 1,
        scale: float = 5.0,
        offset: float = 3.0,
        prior: float = 0.5,
        ceiling: float = 1.0,
        learn_prior: bool = False,
        max_candidates_train: int | None = None,
        max_candidates_eval: int | None = None,
        completion_dropout: bool = True,
        chunk_bytes: int = 32 * 2**20,
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
        head: dict[str, Any] = {
            "dropout": predictor_dropout,
            "norm": predictor_norm,
            "tail_activation": tail_activation,
            "two_layer_head": two_layer_head,
            "parity": parity,
        }
        pooled = {
            "node_mlp": node_mlp,
            "edge_dropout": predictor_edge_dropout,
            "beta": beta,
            "max_common": max_common,
        }
        completion = {
            "depth": depth,
            "scale": scale,
            "offset": offset,
            "prior": prior,
            "ceiling": ceiling,
            "learn_prior": learn_prior,
            "max_candidates_train": max_candidates_train,
            "max_candidates_eval": max_candidates_eval,
            "completion_dropout": completion_dropout,
            "chunk_bytes": chunk_bytes,
        }
        predictor: PairPredictor
        if variant == "gae-cn-concat":
            predictor = _ConcatenatedCount(hidden_channels, edge_dropout=predictor_edge_dropout, **head)
        elif variant == "gae-cnc":
            predictor = _CompletedCounts(hidden_channels, **head, **pooled, **completion)
        elif variant in _SIMPLE:
            predictor = _SIMPLE[variant](hidden_channels, **head, **pooled)
        else:
            raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(get_args(Variant))}")
        super().__init__(encoder, predictor)
