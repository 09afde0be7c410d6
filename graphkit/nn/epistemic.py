r"""Layers of epistemic graph neural networks: composition and intersection of beliefs about relations.

Khalid and Schockaert, Systematic Relational Reasoning With Epistemic Graph Neural Networks, ICLR 2025. A
belief is F distributions (facets) over n primitive relations each, of which coordinate 0 is identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels import _belief_torch as plain
from graphkit.kernels.belief import Pooling, pool_compositions, propagate_beliefs
from graphkit.nn.checks import require_positive

__all__ = ["CompNorm", "Composition", "EpistemicPropagation", "MLPComposition", "Pooling"]

CompNorm = Literal["official", "softmax"]


class Composition(nn.Module):
    r"""Composition of beliefs by a learnt tensor (paper section 3).

    .. math::
        \phi(x, y)_p = \sum_{ij} A_{pij}\, x_i\, y_j, \qquad A_{p0j} = \delta_{pj},\; A_{pi0} = \delta_{pi}

    Identity on either side changes nothing; elsewhere :math:`A_{\cdot ij}` is a learnt distribution.

    Args:
        facets: F, each with a tensor of its own.
        facet_channels: n, at least 2.
        norm: How logits :math:`c_{pij}` become distributions over p: "softmax" does it at once; "official",
            the way of the authors' code, takes the softmax over j and divides by the sum over p.
        probabilities: Take the logits themselves instead (an ablation of the paper).

    Parameters: ``weight`` ``[F, n, n - 1, n - 1]``, indexed (facet, p, i - 1, j - 1).
    """

    identity: Tensor

    def __init__(
        self, facets: int, facet_channels: int, *, norm: CompNorm = "official", probabilities: bool = True
    ) -> None:
        super().__init__()
        require_positive("facets", facets)
        if facet_channels < 2:
            raise ValueError(f"facet_channels is {facet_channels}; it must be at least 2")
        if norm not in get_args(CompNorm):
            raise ValueError(f"norm is {norm!r}; it must be one of {', '.join(get_args(CompNorm))}")
        self.norm, self.probabilities = norm, probabilities
        inner = facet_channels - 1
        self.weight = nn.Parameter(torch.empty(facets, facet_channels, inner, inner))
        identity = torch.zeros(facet_channels, facet_channels, facet_channels)
        every = torch.arange(facet_channels)
        identity[every, 0, every] = identity[every, every, 0] = 1.0
        self.register_buffer("identity", identity, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def tensor(self) -> Tensor:
        """Returns ``A`` ``[F, n, n, n]``, indexed (facet, p, i, j)."""
        core: Tensor = self.weight
        if self.probabilities and self.norm == "official":
            core = core.softmax(3)
            core = core / core.sum(1, keepdim=True)
        elif self.probabilities:
            core = core.softmax(1)
        return F.pad(core, (1, 0, 1, 0)) + self.identity

    def matrices(self, relation: Tensor, tensor: Tensor | None = None) -> Tensor:
        r"""Returns what composition with each relation does, from the right and from the left.

        .. math::
            \phi(x, r)_p = \sum_i (M^{\to}_r)_{pi}\, x_i, \qquad
            \phi(r, y)_p = \sum_j (M^{\gets}_r)_{pj}\, y_j

        Args:
            relation: ``[R, F, n]`` distributions.
            tensor: What :meth:`tensor` returned, where it is at hand.

        Returns:
            :math:`M^{\to}` and :math:`M^{\gets}`, ``[2, R, F, n, n]``.
        """
        a = self.tensor() if tensor is None else tensor
        facets, n = a.shape[:2]
        r = relation.transpose(0, 1)  # [F, R, n]
        both = [a.permute(0, 3, 1, 2), a.permute(0, 2, 1, 3)]  # [F, j, p, i], [F, i, p, j]
        made = torch.bmm(r, torch.stack(both, 2).view(facets, n, 2 * n * n))
        # facets last in memory, as they are worked on
        return made.view(facets, -1, 2, n, n).permute(2, 1, 3, 4, 0).contiguous().permute(0, 1, 4, 2, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Composes beliefs, ``[..., F, n]`` each."""
        return torch.einsum("fpij,...fi,...fj->...fp", self.tensor(), x, y)


class MLPComposition(nn.Module):
    r"""Composition without a bilinear form, an ablation of the paper (its appendix).

    .. math:: \phi(x, y) = \text{normalise}\big((|g(x)| + \epsilon) \odot (|g(y)| + \epsilon)\big)

    with the same :math:`g` for all facets: linear maps n - hidden - hidden - hidden - n and tanh between.
    """

    def __init__(self, facet_channels: int, hidden_channels: int = 300) -> None:
        super().__init__()
        require_positive("hidden_channels", hidden_channels)
        n, d = facet_channels, hidden_channels
        self.map = nn.Sequential(
            *(nn.Linear(n, d), nn.Tanh(), nn.Linear(d, d), nn.Tanh()),
            *(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, n)),
        )

    def transform(self, x: Tensor) -> Tensor:
        """Returns ``|g(x)| + eps``, which products of both sides are made of."""
        mapped: Tensor = self.map(x)
        return mapped.abs() + plain.EPS

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Composes beliefs, ``[..., F, n]`` each."""
        made = self.transform(x) * self.transform(y)
        return made / made.sum(-1, keepdim=True)


class EpistemicPropagation(nn.Module):
    r"""Propagation of beliefs from anchors along edges (paper section 3); it has no parameters.

    Anchors believe in identity in every round, all others in nothing (:math:`1/n`) before the first. Then, in
    each round, a node intersects what its edges' sources tell it; what it believed itself isn't among it:

    .. math:: h_v \leftarrow \text{normalise}\big(\text{pool}_{u \to v}\, \phi(h_u, r_{uv})\big)

    Args:
        pooling: "min" or "product", by coordinate. Products don't underflow, whatever the degree.
        rounds: How many; None for the longest path where there are no cycles, and as many as the caller says
            in components with some.
        normalise: Without, pooled values stay as they are (an ablation of the paper).
    """

    def __init__(
        self, *, pooling: Pooling = "min", rounds: int | None = None, normalise: bool = True
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling is {pooling!r}; it must be one of {', '.join(get_args(Pooling))}")
        if rounds is not None:
            require_positive("rounds", rounds)
        self.pooling, self.rounds, self.normalise = pooling, rounds, normalise

    def forward(
        self,
        matrix: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        anchor: Tensor,
        *,
        num_nodes: int,
        cyclic_rounds: Tensor | None = None,
    ) -> Tensor:
        """Returns the final beliefs ``[N, F, n]``, or ``[S, N, F, n]`` for S rows of anchors.

        Args:
            matrix: ``[R, F, n, n]``, of :meth:`Composition.matrices`.
            edge_index: ``[2, E]`` int64.
            edge_type: ``[E]`` int64 in ``[0, R)``.
            anchor: ``[A]`` int64, or ``[S, A]``; several only in components of their own.
            num_nodes: N.
            cyclic_rounds: ``[A]`` int64, rounds of an anchor's component where it has cycles and ``rounds``
                is None; 0 by default.
        """
        if self.normalise:
            return propagate_beliefs(
                *(matrix, edge_index, edge_type, anchor),
                num_nodes=num_nodes,
                pooling=self.pooling,
                rounds=self.rounds,
                cyclic_rounds=cyclic_rounds,
            )

        def send(h: Tensor) -> Tensor:
            return torch.einsum("efpi,efi->efp", matrix[edge_type], h)

        start = matrix.new_full((num_nodes, *matrix.shape[1:3]), 1.0 / matrix.size(2))
        return self.run(send, start, edge_index, anchor, cyclic_rounds)

    def run(
        self,
        send: Callable[[Tensor], Tensor],
        start: Tensor,
        edge_index: Tensor,
        anchor: Tensor,
        cyclic_rounds: Tensor | None = None,
    ) -> Tensor:
        """Propagates with any messages, round by round.

        Args:
            send: Makes messages ``[E, F, n]`` from the beliefs of the edges' sources.
            start: ``[N, F, n]`` beliefs before the first round, but for anchors.
            edge_index: ``[2, E]`` int64.
            anchor: ``[A]`` int64.
            cyclic_rounds: As above.
        """
        turns = torch.zeros_like(anchor) if cyclic_rounds is None else cyclic_rounds
        nodes, (tail, head) = start.size(0), edge_index
        kept = ~torch.isin(head, anchor)
        graph = plain.Graph(edge_index, head, anchor[None], turns, nodes, self.rounds or 0)
        limit = plain.node_rounds(graph, head[kept], tail[kept])
        if not self.normalise and self.rounds is None:
            limit = limit + 1  # nodes without messages change in the first round
        first = torch.zeros_like(start[:1])
        first[..., 0] = 1.0
        state = start.index_copy(0, anchor, first.expand(anchor.numel(), -1, -1))
        moves = torch.ones(nodes, dtype=torch.bool, device=start.device).index_fill(0, anchor, False)
        for turn in range(1, int(limit.max()) + 1 if nodes else 1):
            pooled = self.pool(send(state[tail]), head, nodes)
            state = torch.where((moves & (limit >= turn))[:, None, None], pooled, state)
        return state

    def pool(self, message: Tensor, target: Tensor, num_rows: int) -> Tensor:
        """Pools messages ``[E, F, n]`` of each target, ``[num_rows, F, n]``."""
        if self.normalise:
            across = message.transpose(1, 2)[None]
            return plain.pool(across, target, num_rows, self.pooling == "product")[0].transpose(1, 2)
        product = self.pooling == "product"
        empty = message.new_full((num_rows, *message.shape[1:]), 1.0 if product else 0.0)
        index = target[:, None, None].expand_as(message)
        how = "prod" if product else "amin"
        return empty.scatter_reduce(0, index, message, how, include_self=product) + plain.EPS

    def intersect(
        self, composition: Tensor, state: Tensor, left: Tensor, right: Tensor, group: Tensor, num_groups: int
    ) -> Tensor:
        """Pools compositions of rows ``left`` and ``right`` of ``state`` by group, ``[G, F, n]``.

        Args:
            composition: ``[F, n, n, n]``, of :meth:`Composition.tensor`.
            state: ``[N, F, n]``.
            left: ``[P]`` int64.
            right: ``[P]`` int64.
            group: ``[P]`` int64 in ``[0, G)``.
            num_groups: G.
        """
        if self.normalise:
            ends = (composition, state, left, right, group)
            return pool_compositions(*ends, num_groups=num_groups, pooling=self.pooling)
        z = torch.einsum("fpij,kfi,kfj->kfp", composition, state[left], state[right])
        pooled = self.pool(z, group, num_groups).abs()
        return pooled / pooled.sum(-1, keepdim=True)
