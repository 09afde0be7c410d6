r"""EpiGNN: beliefs about relations, composed along paths and intersected where paths meet.

Paper: "Systematic Relational Reasoning With Epistemic Graph Neural Networks", Irtaza Khalid, Steven
Schockaert, ICLR 2025, https://arxiv.org/abs/2407.17396.

Where this departs from the authors' code: the path of a query is found in its own graph, whatever the numbers
of its nodes (theirs is right only if the first edge starts at the source); products are kept with an exponent
of their own and never underflow; where several messages attain a minimum, the first one takes its gradient;
``rounds`` may end with the longest path, where more change nothing (theirs takes nine, which is too few
beyond k = 9); only the passes that the read-out needs are computed.

Shapes: N nodes and E edges of a disjoint union of B query graphs, R relations, F facets of n coordinates, P
nodes between source and target.

    r    = softmax(relation)                                                    [R, F, n]
    A    = composition                                                          [F, n, n, n]
    hF_v = normalise pool over edges u -r-> v of phi(hF_u, r); identity at s    [N, F, n]
    hB_u = normalise pool over edges u -r-> v of phi(r, hB_v); identity at t    [N, F, n]
    out  = normalise pool over path nodes v of phi(hF_v, hB_v)                  [B, F, n]
    score = - sum of CE(r, out) over facets                                     [B, R]
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels.belief import propagate_beliefs
from graphkit.kernels.belief_answer import answer_queries
from graphkit.nn.checks import require_positive
from graphkit.nn.epistemic import CompNorm, Composition, EpistemicPropagation, MLPComposition, Pooling
from graphkit.nn.paths import path_nodes
from graphkit.registry import register_model

__all__ = ["Composition", "EpiGNN", "EpistemicPropagation", "MLPComposition"]

Score = Literal["cross_entropy", "cross_entropy_left", "cosine", "kl"]

EPS = 1e-12  # in every logarithm of the scores
MAX_ROUNDS = 32  # of automatic rounds where there are cycles
SPREAD = 6  # rounds from a head to all entities, as NBFNet's layers


@register_model("epignn", task=("relation", "kgc"), paper="arXiv:2407.17396")
class EpiGNN(nn.Module):
    """EpiGNN (arXiv:2407.17396): relational reasoning by composing and intersecting beliefs.

    Args:
        num_relations: R, inverses not counted.
        facets: F, distributions that make up a belief.
        facet_channels: n, primitive relations that each is over, identity among them.
        pooling: How a node's messages are intersected: "min" or "product".
        rounds: Rounds of messages; None for the longest path in graphs without cycles, and in others for
            twice the shortest path between source and target (at most 32). Towards all entities it is six.
        readout: Pool both passes at the nodes between source and target, or take one pass's answer alone.
        path: Which nodes those are: of one "shortest" path, or of "all" directed paths from source to target.
        score: How an answer is compared with relations: by the cross entropy of the answer from the relation
            ("cross_entropy"), of the relation from the answer ("cross_entropy_left"), the divergence "kl", or
            "cosine", which is trained by cross entropy over relations instead of a margin.
        margin: By how much the right relation is to be better than wrong ones.
        negatives: Wrong relations drawn for each query.
        comp_norm: See :class:`~graphkit.nn.epistemic.Composition`.
        inverse: Have relations r + R, the inverses, too: for graphs to which they were added.
        probabilities: Without, nothing is normalised but relations and answers (an ablation).
        bilinear: Without, messages are composed by :class:`~graphkit.nn.epistemic.MLPComposition` (an
            ablation).
    """

    needs_relation = False

    def __init__(
        self,
        num_relations: int | None,
        *,
        facets: int = 8,
        facet_channels: int = 4,
        pooling: Pooling = "min",
        rounds: int | None = None,
        readout: Literal["both", "forward", "backward"] = "both",
        path: Literal["shortest", "all"] = "shortest",
        score: Score = "cross_entropy",
        margin: float = 1.0,
        negatives: int = 1,
        comp_norm: CompNorm = "official",
        inverse: bool = False,
        probabilities: bool = True,
        bilinear: bool = True,
    ) -> None:
        super().__init__()
        if num_relations is None:
            raise ValueError("num_relations is None; this data set has no relations")
        require_positive("num_relations", num_relations)
        require_positive("negatives", negatives)
        for name, value, allowed in (
            ("readout", readout, ("both", "forward", "backward")),
            ("path", path, ("shortest", "all")),
            ("score", score, get_args(Score)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if not margin >= 0:
            raise ValueError(f"margin is {margin}; it must not be negative")
        self.num_relations = num_relations
        self.readout, self.path, self.score_name = readout, path, score
        self.margin, self.negatives = margin, negatives
        kinds = 2 * num_relations if inverse else num_relations
        self.relation = nn.Parameter(torch.empty(kinds, facets, facet_channels))
        self.composition = Composition(facets, facet_channels, norm=comp_norm, probabilities=probabilities)
        self.mlp = None if bilinear else MLPComposition(facet_channels)
        self.propagation = EpistemicPropagation(pooling=pooling, rounds=rounds, normalise=probabilities)
        self._warned = False
        nn.init.xavier_uniform_(self.relation)

    # Queries: which relation does source have to target?

    def forward(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        num_nodes: int,
        path_node: Tensor | None = None,
        path_graph: Tensor | None = None,
    ) -> Tensor:
        """Returns a score of each relation for each query, ``[B, R]``.

        Args:
            edge_index: ``[2, E]`` int64, tail and head of each arrow, in a disjoint union of graphs.
            edge_type: ``[E]`` int64.
            source: ``[B]`` int64, one for each graph that is asked about.
            target: ``[B]`` int64.
            num_nodes: N.
            path_node: ``[P]`` int64, the nodes of a shortest path for each query; searched for if None.
            path_graph: ``[P]`` int64, the query of each.

        Raises:
            ValueError: If shapes don't fit, or (on CPU) an id is out of range.
        """
        relation, edges = self.relation.softmax(2), (edge_index, edge_type)
        out = self._answer(relation, edges, (source, target), num_nodes, (path_node, path_graph))
        return self.score(out, relation)

    def answer(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        num_nodes: int,
        path_node: Tensor | None = None,
        path_graph: Tensor | None = None,
    ) -> Tensor:
        """Returns the belief about the relation of source and target, ``[B, F, n]``; arguments as above."""
        edges, path = (edge_index, edge_type), (path_node, path_graph)
        return self._answer(self.relation.softmax(2), edges, (source, target), num_nodes, path)

    def beliefs(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        num_nodes: int,
    ) -> tuple[Tensor, Tensor]:
        """Returns what every node believes, forward from source and backward from target, ``[N, F, n]`` each.

        Row v of the first is about the relation of source to v, of the second about that of v to target.
        """
        *_, turns = self._paths(edge_index, source, target, num_nodes, None, None)
        relation, edges = self.relation.softmax(2), (edge_index, edge_type)
        passes, anchors = ("forward", "backward"), [source, target]
        a = self.composition.tensor()
        state = self._beliefs(relation, a, edges, passes, anchors, num_nodes, turns)
        return state[:num_nodes], state[num_nodes:]

    def _answer(
        self,
        relation: Tensor,
        edges: tuple[Tensor, Tensor],
        ends: tuple[Tensor, Tensor],
        num_nodes: int,
        path: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        node, graph, turns = self._paths(edges[0], *ends, num_nodes, *path)
        (source, target), a, layer = ends, self.composition.tensor(), self.propagation
        passes = ("forward", "backward") if self.readout == "both" else (self.readout,)
        if self.readout == "both" and self.mlp is None and layer.normalise:
            return answer_queries(
                a,
                relation,
                *edges,
                *ends,
                node,
                graph,
                num_nodes=num_nodes,
                pooling=layer.pooling,
                rounds=layer.rounds,
                cyclic_rounds=turns,
            )
        anchors = [source if name == "forward" else target for name in passes]
        state = self._beliefs(relation, a, edges, passes, anchors, num_nodes, turns)
        if self.readout == "both":
            return layer.intersect(a, state, node, node + num_nodes, graph, source.numel())
        out = state[target if self.readout == "forward" else source]
        return out if layer.normalise else out.abs() / out.abs().sum(-1, keepdim=True)

    def _paths(
        self,
        edge_index: Tensor,
        source: Tensor,
        target: Tensor,
        num_nodes: int,
        node: Tensor | None,
        graph: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the nodes between sources and targets, their queries, and rounds where there are cycles."""
        if (node is None) != (graph is None):
            raise ValueError("path_node and path_graph must be given together, or neither")
        if node is None or graph is None or self.path == "all":
            every = self.path == "all"
            node, graph, length = path_nodes(edge_index, source, target, num_nodes=num_nodes, every=every)
        else:
            length = torch.zeros_like(source).index_add(0, graph, torch.ones_like(graph)) - 1
        rounds = self.propagation.rounds
        if rounds is None:
            return node, graph, (2 * length).clamp(1, MAX_ROUNDS)
        # asking another device would stop it, so there only where it matters: tests have the longer paths
        asked = length.device.type == "cpu" or not self.training
        if asked and not self._warned and not torch.compiler.is_compiling() and length.numel():
            longest = int(length.max())
            if longest > rounds:
                self._warned = True
                warnings.warn(
                    f"a path has {longest} edges, but beliefs go {rounds} rounds and may not reach its end; "
                    "take more rounds, or None for as many as are needed",
                    stacklevel=2,
                )
        return node, graph, None

    def _beliefs(
        self,
        relation: Tensor,
        a: Tensor,
        edges: tuple[Tensor, Tensor],
        passes: tuple[str, ...],
        anchors: list[Tensor],
        num_nodes: int,
        turns: Tensor | None,
    ) -> Tensor:
        """Returns the states of the passes one after the other, ``[passes N, F, n]``.

        All are computed at once, on the disjoint union of the graph and its reverse.
        """
        count, (edge_index, edge_type) = len(passes), edges
        ways = [edge_index if name == "forward" else edge_index.flip(0) for name in passes]
        union = torch.cat([way + k * num_nodes for k, way in enumerate(ways)], 1)
        anchor = torch.cat([v + k * num_nodes for k, v in enumerate(anchors)])
        turns = None if turns is None else turns.repeat(count)
        if self.mlp is not None:
            told = self.mlp.transform(relation)[edge_type].repeat(count, 1, 1)

            def send(h: Tensor) -> Tensor:
                assert self.mlp is not None
                made = self.mlp.transform(h) * told
                return made / made.sum(-1, keepdim=True)

            start = relation.new_full((count * num_nodes, *relation.shape[1:]), 1.0 / relation.size(2))
            return self.propagation.run(send, start, union, anchor, turns)
        both = self.composition.matrices(relation, a)
        matrix = both.flatten(0, 1) if count == 2 else both[int(passes[0] == "backward")]
        kind = torch.cat([edge_type + k * relation.size(0) for k in range(count)])
        nodes = count * num_nodes
        return self.propagation(matrix, union, kind, anchor, num_nodes=nodes, cyclic_rounds=turns)

    # Scores and losses

    def score(self, out: Tensor, relation: Tensor | None = None) -> Tensor:
        """Returns a score of each relation for answers, ``[B, R]``, summed over facets.

        Args:
            out: ``[B, F, n]``, of :meth:`answer`.
            relation: ``[R, F, n]`` distributions, where they are at hand.
        """
        relation = self.relation.softmax(2) if relation is None else relation
        if relation.size(0) > self.num_relations:
            relation = relation[: self.num_relations]
        relation, out = relation.flatten(1), out.flatten(1)
        if self.score_name == "cross_entropy":
            return (out + EPS).log() @ relation.t()
        if self.score_name == "cross_entropy_left":
            return out @ (relation + EPS).log().t()
        if self.score_name == "kl":
            relation = relation + EPS
            return (out + EPS).log() @ relation.t() - (relation * relation.log()).sum(1)
        cosine = F.normalize(out, dim=1, eps=0.0) @ F.normalize(relation, dim=1, eps=0.0).t()
        return (cosine + 1e-16).log()

    def training_loss(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        source: Tensor,
        target: Tensor,
        y: Tensor,
        *,
        num_nodes: int,
        path_node: Tensor | None = None,
        path_graph: Tensor | None = None,
        seed: int | Tensor = 0,
    ) -> Tensor:
        """Returns the loss of each query, ``[B]``: :meth:`margin_loss`, or cross entropy with cosine scores.

        Args:
            edge_index: This and what isn't named here as in the call.
            edge_type: ``[E]`` int64.
            source: ``[B]`` int64.
            target: ``[B]`` int64.
            y: ``[B]`` int64, the right relations.
            num_nodes: N.
            path_node: ``[P]`` int64, or None.
            path_graph: ``[P]`` int64, or None.
            seed: ``[B]`` int64, which wrong relations are drawn for each query; or one number for all.
        """
        paths = {"path_node": path_node, "path_graph": path_graph}
        scores = self(edge_index, edge_type, source, target, num_nodes=num_nodes, **paths)
        if self.score_name == "cosine":
            return F.cross_entropy(scores, y, reduction="none")
        return self.margin_loss(scores, y, wrong_relations(y, self.num_relations, self.negatives, seed))

    def margin_loss(self, scores: Tensor, y: Tensor, negative: Tensor) -> Tensor:
        r"""Returns :math:`\max(0, \gamma + \text{mean}_k\, s_{n_k} - s_y)` of scores averaged over facets.

        Args:
            scores: ``[B, R]``, as :meth:`score` gives them.
            y: ``[B]`` int64, the right relations.
            negative: ``[B, K]`` int64, wrong ones.
        """
        right, wrong = scores.gather(1, y[:, None])[:, 0], scores.gather(1, negative)
        wrong = wrong[:, 0] if negative.size(1) == 1 else wrong.mean(1)
        return ((wrong - right) / self.relation.size(1) + self.margin).relu()

    # Completion: which tail does a head have in a relation?

    def propagate(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        head: Tensor,
        *,
        num_nodes: int,
        removed: Tensor | None = None,
        relation: Tensor | None = None,
    ) -> Tensor:
        """Returns what every entity believes about its relation from each head, ``[S, N, F, n]``.

        Args:
            edge_index: ``[2, E]`` int64, inverse edges included where they are meant to be.
            edge_type: ``[E]`` int64.
            head: ``[S]`` int64.
            num_nodes: N.
            removed: ``[E]`` bool, edges to go without.
            relation: Not used: beliefs are about all relations at once.

        Raises:
            ValueError: For models without probabilities or bilinear composition, and as in the call.
        """
        if self.mlp is not None or not self.propagation.normalise:
            raise ValueError("ablations don't complete graphs: probabilities and bilinear must be true")
        if removed is not None:
            edge_index, edge_type = edge_index[:, ~removed], edge_type[~removed]
        matrix = self.composition.matrices(self.relation.softmax(2))[0]
        # a fixed number of rounds: what a head sees must not hang on the heads beside it
        return propagate_beliefs(
            *(matrix, edge_index, edge_type, head[:, None]),
            num_nodes=num_nodes,
            pooling=self.propagation.pooling,
            rounds=self.propagation.rounds or SPREAD,
        )

    def score_all(self, state: Tensor, s_index: Tensor, relation: Tensor) -> Tensor:
        r"""Returns :math:`\sum_{fp} r_{fp} \ln h_{fp}` of every entity for each query, ``[q, N]``.

        Args:
            state: ``[S, N, F, n]`` of :meth:`propagate`.
            s_index: ``[q]`` int64, which of its heads each query asks about.
            relation: ``[q]`` int64.
        """
        told = self.relation.softmax(2).flatten(1)[relation]  # [q, F n]
        # queries of one head side by side, so that its beliefs are read once and never repeated
        order = torch.argsort(s_index, stable=True)
        count = torch.zeros(state.size(0), dtype=torch.int64, device=state.device)
        count.index_add_(0, s_index, torch.ones_like(s_index))
        row = s_index[order]
        column = torch.arange(row.numel(), device=row.device) - (count.cumsum(0) - count)[row]
        width = int(count.max()) if row.numel() else 0
        asked = told.new_zeros(state.size(0), width, told.size(1)).index_put((row, column), told[order])
        scores = asked @ (state.flatten(2) + EPS).log().transpose(1, 2)  # [S, width, N]
        place = torch.empty_like(order)
        place[order] = row * width + column
        return scores.flatten(0, 1)[place]

    def score_tails(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        head: Tensor,
        relation: Tensor,
        tails: Tensor,
        *,
        num_nodes: int,
    ) -> Tensor:
        """Returns the scores of a few tails for each query, ``[q, c]``: as :meth:`score_all`, for less."""
        start, s_index = torch.unique(head, return_inverse=True)
        state = self.propagate(edge_index, edge_type, start, num_nodes=num_nodes)
        told = self.relation.softmax(2).flatten(1)[relation]
        beliefs = state[s_index[:, None], tails].flatten(2)  # [q, c, F n]
        return ((beliefs + EPS).log() @ told[:, :, None])[..., 0]


def wrong_relations(y: Tensor, num_relations: int, count: int, seed: int | Tensor) -> Tensor:
    """Draws relations other than ``y``, uniformly and with replacement, ``[B, count]`` int64.

    Args:
        y: ``[B]`` int64.
        num_relations: R, at least 2.
        count: How many for each.
        seed: ``[B]`` int64, what each row is drawn by; or one number, by which and its place a row is drawn.
    """
    if num_relations < 2:
        raise ValueError(f"num_relations is {num_relations}; there are no wrong ones to draw")
    rows = seed if isinstance(seed, Tensor) else torch.arange(y.numel(), device=y.device) + (seed << 20)
    place = torch.arange(1, count + 1, device=y.device)
    # a multiplicative hash, in the integers modulo 2^64
    mixed = rows.reshape(-1, 1) * -7046029254386353131 + place * -4658895280553007687
    mixed = (mixed ^ (mixed >> 29)) * -7723592293110705685
    drawn = ((mixed >> 32) & 0x7FFFFFFF) % (num_relations - 1)
    return drawn + (drawn >= y[:, None])
