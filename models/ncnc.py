r"""Neural common neighbours with completion.

Paper: "Neural Common Neighbor with Completion for Link Prediction", Xiyuan Wang, Haotong Yang, Muhan Zhang,
ICLR 2024, https://arxiv.org/abs/2302.00890.

Where this departs from the authors' code, beside what :mod:`graphkit.models.ncn` says (``parity=True``
follows it instead):

* candidates are scored on the same node states as targets; theirs applies the node MLP twice there and drops
  edges a second time;
* a pair ``(j, j)`` is no candidate; theirs scores it where the target is itself an edge;
* ``learn_prior`` gives every candidate its target's prior; theirs fails on a broadcast.

Shapes: N nodes, H hidden channels, B target pairs, C candidate pairs; h, x and s as in NCN.

    P   = ceiling * sigmoid(scale * (s_NCN - offset) + ln prior)               [C]
    z   = sum over N(i) & N(j) of x_u + sum over N(i) \ N(j) of P_ju x_u
          + sum over N(j) \ N(i) of P_iu x_u                                  [B, H]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels import pair_product
from graphkit.models.ncn import PAPER, NCNPredictor, NodeStates
from graphkit.nn.checks import require_positive
from graphkit.nn.embedding import EmbeddingConfig
from graphkit.nn.encoder import ConvName, GraphEncoder, drop_edges
from graphkit.nn.link import LinkModel
from graphkit.nn.pairs import (
    PairStructure,
    Rows,
    candidate_pairs,
    concat_rows,
    drop_self_candidates,
    merge_rows,
    pair_structure,
)
from graphkit.registry import register_model
from graphkit.sparse import CSRGraph

__all__ = ["NCNC", "NCNCPredictor"]


class NCNCPredictor(NCNPredictor):
    r"""Neural common neighbours with completion (paper section 4.2).

    A node next to one end only counts with the probability that its missing link exists, which the predictor
    itself gives, without gradient:

    .. math::
        z_{ij} = \sum_{u \in N(i) \cap N(j)} x_u + \sum_{u \in N(i) \setminus N(j)} P_{ju} x_u
                 + \sum_{u \in N(j) \setminus N(i)} P_{iu} x_u, \qquad
        P = \alpha\,\sigma\big(\text{scale}\,(s^{NCN} - \text{offset}) + \ln \text{prior}\big)

    Args:
        hidden_channels: Width ``H``.
        dropout: Dropout rate of all its MLPs.
        norm: LayerNorm in its MLPs.
        tail_activation: End the branches with their activation instead of a linear layer.
        two_layer_head: Two hidden layers in the head instead of one.
        node_mlp: Transform node states before pooling; ``x = h`` without.
        edge_dropout: Share of edges that neighbourhoods are searched without, in training.
        beta: Initial weight of the pooled branch, learnt.
        max_common: Pool at most a sample of this many common neighbours; all by default.
        parity: Follow the authors' code in the points that the head of this file lists.
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
    ) -> None:
        super().__init__(
            hidden_channels,
            dropout=dropout,
            norm=norm,
            tail_activation=tail_activation,
            two_layer_head=two_layer_head,
            node_mlp=node_mlp,
            edge_dropout=edge_dropout,
            beta=beta,
            max_common=max_common,
            parity=parity,
        )
        if depth < 1:
            raise ValueError(f"depth is {depth}; it must be at least 1 (NCN is the model without completion)")
        require_positive("chunk_bytes", chunk_bytes)
        limits = {"max_candidates_train": max_candidates_train, "max_candidates_eval": max_candidates_eval}
        for name, limit in limits.items():
            if limit is not None:
                require_positive(name, limit)
        if prior <= 0:
            raise ValueError(f"prior is {prior}; it must be positive, as it multiplies odds")
        self.depth, self.scale, self.offset, self.prior, self.ceiling = depth, scale, offset, prior, ceiling
        self.max_candidates_train, self.max_candidates_eval = max_candidates_train, max_candidates_eval
        self.completion_dropout = completion_dropout
        # about six [C, H] buffers live at once while candidates are scored
        self.chunk_rows = max(256, chunk_bytes // (6 * 4 * hidden_channels))
        self.prior_mlp: nn.Sequential | None = None
        if learn_prior:
            width = hidden_channels
            # gives the prior's logit: its logarithm is wanted, and that of a sigmoid underflows
            self.prior_mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def structure(
        self, graph: CSRGraph, edge_label_index: Tensor, max_bytes: int | None = None
    ) -> PairStructure:
        """Lists common neighbours, differences and, while they fit, the candidates' common neighbours."""
        lists = self._structure(graph, edge_label_index, self.depth)
        if self.depth > 1:  # whose candidates are listed portion by portion as they are scored
            return lists
        assert lists.only_i is not None and lists.only_j is not None
        candidates = candidate_pairs(edge_label_index, lists.only_i, lists.only_j)
        inner: list[Rows] = []
        size = lists.nbytes()
        for part in candidates.split(self.chunk_rows, dim=1):
            inner.append(self._structure(graph, part, 0).common)
            size += inner[-1].nbytes()
            if max_bytes is not None and size > max_bytes:
                return lists
        return lists._replace(inner=PairStructure(concat_rows(inner))) if inner else lists

    def forward(
        self, h: Tensor, graph: CSRGraph, edge_label_index: Tensor, structure: PairStructure | None = None
    ) -> Tensor:
        if structure is None:
            graph, _ = drop_edges(graph, self.edge_dropout, self.training, symmetric=not self.parity)
            structure = self._structure(graph, edge_label_index, self.depth)
        rows = self._pooled_rows(structure)
        edges = edge_label_index[:, graph.find_edges(edge_label_index) >= 0] if rows else None
        nodes = self._nodes(h, *rows, ends=edges)
        return self._complete_and_score(nodes, graph, edge_label_index, structure, self.depth)

    def _pooled_rows(self, structure: PairStructure) -> tuple[Rows, ...]:
        """The rows whose nodes cover everything that is pooled, candidates' neighbours too; () for all nodes.

        A candidate (j, u) shares with its target the end j, and N(j) lies in the target's lists, save for i
        itself where the target is an edge: the caller adds such ends. Samples and more rounds reach beyond.
        """
        limits = (self.max_common, self.max_candidates_train, self.max_candidates_eval)
        if self.depth > 1 or self.parity or any(limit is not None for limit in limits):
            return ()
        assert structure.only_i is not None and structure.only_j is not None
        return (structure.common, structure.only_i, structure.only_j)

    def _structure(self, graph: CSRGraph, pairs: Tensor, depth: int) -> PairStructure:
        if depth == 0:
            return super().structure(graph, pairs)
        found = pair_structure(graph, pairs, differences=True)
        if not self.parity:
            found = drop_self_candidates(pairs, found)
        assert found.only_i is not None and found.only_j is not None
        limit = self.max_candidates_train if self.training else self.max_candidates_eval
        only_i = self._sample(found.only_i, pairs[0], pairs[1], limit)
        only_j = self._sample(found.only_j, pairs[1], pairs[0], limit)
        common = self._sample_common(found.common, pairs)
        return PairStructure(common, only_i, only_j)

    def _complete_and_score(
        self, nodes: NodeStates, graph: CSRGraph, pairs: Tensor, structure: PairStructure, depth: int
    ) -> Tensor:
        if depth == 0:
            return self._combine(nodes, pairs, structure.common)
        only_i, only_j = structure.only_i, structure.only_j
        assert only_i is not None and only_j is not None
        weight = self._completion(nodes, graph, pairs, structure, depth)  # [C]
        cut = only_i.node.numel()
        only_i, only_j = _weigh(only_i, weight[:cut]), _weigh(only_j, weight[cut:])
        return self._combine(nodes, pairs, merge_rows(structure.common, only_i, only_j))

    def _completion(
        self, nodes: NodeStates, graph: CSRGraph, pairs: Tensor, structure: PairStructure, depth: int
    ) -> Tensor:
        """Returns P of every candidate, ``[C]``, side i before side j."""
        only_i, only_j = structure.only_i, structure.only_j
        assert only_i is not None and only_j is not None
        candidates = candidate_pairs(pairs, only_i, only_j)
        keep_dropout = self.completion_dropout or self.parity or not self.training
        with torch.no_grad(), nullcontext() if keep_dropout else self._without_dropout():
            logit = self._candidate_logits(nodes.detach(), graph, candidates, structure.inner, depth - 1)
            odds = self.scale * (logit.to(nodes.h.dtype) - self.offset)
        if self.prior_mlp is None:
            return self.ceiling * torch.sigmoid(odds + math.log(self.prior))
        h = nodes.h
        prior = self.prior_mlp(pair_product(h, pairs)).squeeze(-1)  # [B]
        owner = torch.cat([only_i.owner(), only_j.owner()])
        return self.ceiling * torch.sigmoid(odds + F.logsigmoid(prior)[owner])

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Switches dropout off, but not what else training decides (which lists are thinned, and how)."""
        if not self.has_dropout:
            yield
            return
        parts = list(self.children())
        self.has_dropout = False
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            self.has_dropout = True
            for part in parts:
                part.train(self.training)

    def _candidate_states(self, nodes: NodeStates) -> NodeStates:
        """The authors' states of candidates: x takes the place of h, so the node MLP is applied twice."""
        return self._nodes(nodes.x)

    def _candidate_logits(
        self, nodes: NodeStates, graph: CSRGraph, pairs: Tensor, structure: PairStructure | None, depth: int
    ) -> Tensor:
        if self.parity:
            nodes = self._candidate_states(nodes)
            graph, _ = drop_edges(graph, self.edge_dropout, self.training, symmetric=False)
        logits = [nodes.h.new_zeros(0)]
        for start in range(0, pairs.size(1), self.chunk_rows):
            stop = min(start + self.chunk_rows, pairs.size(1))
            part = pairs[:, start:stop]
            lists = self._structure(graph, part, depth) if structure is None else structure.slice(start, stop)
            logits.append(self._complete_and_score(nodes, graph, part, lists, depth).to(nodes.h.dtype))
        return torch.cat(logits)


def _weigh(rows: Rows, weight: Tensor) -> Rows:
    return rows._replace(weight=weight if rows.weight is None else weight * rows.weight.to(weight.dtype))


@register_model("ncnc", task="link", paper=PAPER)
class NCNC(LinkModel):
    r"""Neural common neighbours with completion: :class:`NCNCPredictor` on a graph encoder.

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
        predictor = NCNCPredictor(
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
            depth=depth,
            scale=scale,
            offset=offset,
            prior=prior,
            ceiling=ceiling,
            learn_prior=learn_prior,
            max_candidates_train=max_candidates_train,
            max_candidates_eval=max_candidates_eval,
            completion_dropout=completion_dropout,
            chunk_bytes=chunk_bytes,
        )
        super().__init__(encoder, predictor)
