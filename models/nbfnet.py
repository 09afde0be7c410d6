r"""NBFNet: path representations by a generalised Bellman-Ford iteration, the plain baseline of completion.

Paper: "Neural Bellman-Ford Networks: A General Graph Neural Network Framework for Link Prediction", Zhaocheng
Zhu, Zuobai Zhang, Louis-Pascal Xhonneux, Jian Tang, NeurIPS 2021, https://arxiv.org/abs/2106.06935.

Where this departs from the authors' code: DistMult messages with a row for each relation (not a map of the
query) alone; of their aggregations the sum, and in ``pna`` the mean and deviation each plain and scaled by
the logarithm of the degree (theirs has extrema and the inverse scale too); no edge weights. States that
propagations share are computed once, and those that nobody reads aren't, with the same results: see
:mod:`graphkit.models.nbfnet_plan`.

Shapes: N entities, E edges with inverses, R relations (2R with inverses), S pairs of a head u and a query
relation q, d hidden channels, L layers.

    h_v^0 = q if v = u else 0                                                       [S, N, d]
    L times, for edges (x, r, v) into v:
      a_v = sum of h_x * w_r, and h_v^0 itself                                      [S, N, d]
      h_v = h_v + relu(norm(W [h_v; a_v]))
    score(u, q, v) = MLP [h_v^L; q]                                                 [S, N]
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels.relation_sum import relation_sum
from graphkit.models.nbfnet_plan import Level, Plan, make_plan
from graphkit.nn.checks import require_positive
from graphkit.registry import register_model

__all__ = ["NBFNet", "NBFNetLayer", "NBFNetState"]

Aggregation = Literal["sum", "pna"]


class NBFNetState(NamedTuple):
    """What propagation from S pairs of head and relation gives.

    Attributes:
        hidden: ``[n, d]``, the distinct representations.
        row: ``[S, N]`` int64, which of them each entity has.
        query: ``[S, d]``, that of the relation.
    """

    hidden: Tensor
    row: Tensor
    query: Tensor


class NBFNetLayer(nn.Module):
    r"""One iteration.

    .. math:: a_v = h^0_v + \sum_{(x, r, v)} h_x \odot w_r, \qquad
              h_v \leftarrow h_v + \mathrm{relu}(\mathrm{norm}(W [h_v; a_v]))

    With ``pna`` :math:`a_v` is mean and standard deviation over the messages and :math:`h^0_v`, each as it is
    and times :math:`\ln(1 + \deg_v)` over the mean of that.

    Args:
        channels: d.
        num_relations: Relations with inverses.
        aggregation: ``sum`` or ``pna``.
        layer_norm: Normalise.
        skip: Add the state before.
    """

    def __init__(
        self,
        channels: int,
        num_relations: int,
        *,
        aggregation: Aggregation = "sum",
        layer_norm: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__()
        self.pna, self.skip = aggregation == "pna", skip
        self.weight = nn.Parameter(torch.randn(num_relations, channels))
        self.own = nn.Linear(channels, channels)
        self.others = nn.Linear(channels * (4 if self.pna else 1), channels, bias=False)
        self.norm = nn.LayerNorm(channels) if layer_norm else nn.Identity()

    def forward(self, h: Tensor, query: Tensor, level: Level, num_nodes: int) -> Tensor:
        """Returns the rows of a layer, ``[n, d]``.

        Args:
            h: ``[m, d]``, those of the layer before.
            query: ``[S, d]``.
            level: What they are computed from.
            num_nodes: N.
        """
        start = query[level.head_state]
        total = relation_sum(level.rowptr, level.col, level.kind, h, self.weight)
        total = total.index_add(0, level.head_row, start)
        if self.pna:
            count = (level.rowptr.diff() + 1).to(h.dtype)[:, None]
            square = relation_sum(level.rowptr, level.col, level.kind, h.square(), self.weight.square())
            square = square.index_add(0, level.head_row, start.square())
            mean = total / count
            deviation = (square / count - mean.square()).clamp(min=1e-6).sqrt()
            scale = count.log() / count[:num_nodes].log().mean().clamp(min=1e-6)
            total = torch.cat([mean, deviation, mean * scale, deviation * scale], dim=1)  # [n, 4d]
        before = h[level.own]
        update = torch.relu(self.norm(self.own(before) + self.others(total)))
        return update + before if self.skip else update


@register_model("nbfnet", task="kgc", paper="arXiv:2106.06935")
class NBFNet(nn.Module):
    """NBFNet (arXiv:2106.06935) for inductive completion of knowledge graphs.

    Args:
        num_relations: R, inverses not counted.
        hidden_channels: d.
        num_layers: L.
        aggregation: See :class:`NBFNetLayer`.
        layer_norm: Normalise in layers.
        skip: Residual connections.
        head_layers: Linear maps of the score.
    """

    needs_relation = True

    def __init__(
        self,
        num_relations: int | None,
        *,
        hidden_channels: int = 32,
        num_layers: int = 6,
        aggregation: Aggregation = "pna",
        layer_norm: bool = True,
        skip: bool = True,
        head_layers: int = 2,
    ) -> None:
        super().__init__()
        if num_relations is None:
            raise ValueError("num_relations is None; this data set has no relations")
        for name, value in (
            ("num_relations", num_relations),
            ("hidden_channels", hidden_channels),
            ("num_layers", num_layers),
            ("head_layers", head_layers),
        ):
            require_positive(name, value)
        if aggregation not in ("sum", "pna"):
            raise ValueError(f"aggregation is {aggregation!r}; it must be sum or pna")
        self.num_relations, self.channels = num_relations, hidden_channels
        self.query = nn.Embedding(2 * num_relations, hidden_channels)
        self.layers = nn.ModuleList(
            NBFNetLayer(
                *(hidden_channels, 2 * num_relations),
                aggregation=aggregation,
                layer_norm=layer_norm,
                skip=skip,
            )
            for _ in range(num_layers)
        )
        width = 2 * hidden_channels
        inner = [m for _ in range(head_layers - 1) for m in (nn.Linear(width, width), nn.ReLU())]
        self.head = nn.Sequential(*inner, nn.Linear(width, 1))

    def forward(
        self, edge_index: Tensor, edge_type: Tensor, head: Tensor, relation: Tensor, *, num_nodes: int
    ) -> Tensor:
        """Returns a score of every entity as the tail of each (head, relation), ``[S, N]``.

        Args:
            edge_index: ``[2, E]`` int64, inverse edges included.
            edge_type: ``[E]`` int64 in ``[0, 2R)``.
            head: ``[S]`` int64.
            relation: ``[S]`` int64 in ``[0, 2R)``.
            num_nodes: N.
        """
        state = self.propagate(edge_index, edge_type, head, num_nodes=num_nodes, relation=relation)
        return self.score_all(state, torch.arange(head.numel(), device=head.device), relation)

    def propagate(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        head: Tensor,
        *,
        num_nodes: int,
        relation: Tensor | None = None,
    ) -> NBFNetState:
        """Runs the iterations from each pair of head and relation; arguments as in :meth:`forward`."""
        if relation is None:
            raise ValueError("relation is None; NBFNet starts from pairs of a head and a relation")
        plan = make_plan(edge_index, edge_type, head, num_nodes, len(self.layers))
        query = self.query(relation)
        return NBFNetState(self._run(plan, query), plan.row, query)

    def score_all(self, state: NBFNetState, s_index: Tensor, relation: Tensor) -> Tensor:
        """Returns the score of every entity for each query ``[q, N]``.

        Args:
            state: Of :meth:`propagate`.
            s_index: ``[q]`` int64, which of its pairs each query is.
            relation: Not used, since the pairs have it.
        """
        return self._score(state.hidden, state.row[s_index], state.query[s_index])

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
        """Returns the scores of a few tails ``[S, c]`` for each query, computing no more than they need."""
        plan = make_plan(edge_index, edge_type, head, num_nodes, len(self.layers), tails)
        query = self.query(relation)
        return self._score(self._run(plan, query), plan.row, query)

    def _run(self, plan: Plan, query: Tensor) -> Tensor:
        """Returns the rows of the last layer, ``[n, d]``."""
        h = torch.cat([query.new_zeros(plan.num_nodes, self.channels), query[plan.first]])
        for layer, level in zip(self.layers, plan.levels, strict=True):
            h = layer(h, query, level, plan.num_nodes)
        return h

    def _score(self, hidden: Tensor, row: Tensor, query: Tensor) -> Tensor:
        """Returns ``MLP [hidden[row]; query]``, ``[q, c]``, the first map taken apart so that it is short."""
        first = self.head[0]
        assert isinstance(first, nn.Linear)
        own, asked = first.weight.split(self.channels, dim=1)
        h = F.linear(hidden, own)[row] + F.linear(query, asked, first.bias)[:, None]  # [q, c, width]
        scores: Tensor = self.head[1:](h).squeeze(-1)
        return scores
