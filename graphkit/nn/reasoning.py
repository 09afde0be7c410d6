"""Relations as vectors, and the layer that moves probability along facts as instructions say."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.kernels.fact_sum import fact_sum
from graphkit.kernels.segment_softmax import segment_softmax
from graphkit.kernels.text_pool import text_pool, text_pool_torch
from graphkit.nn.checks import require_rate
from graphkit.nn.dropout import FastDropout, fast_dropout
from graphkit.nn.facts import FactPlan

__all__ = ["EntityScore", "ReasoningLayer", "RelationEmbedding", "RelationText"]


class RelationText(nn.Module):
    r"""The vector of a relation from its text, along facts, and from the reversed text, against them.

    .. math:: y_j = W h_j + b, \quad a_j = \mathrm{softmax}_j\, w \cdot y_j, \quad r = \sum_j a_j y_j

    By linearity :math:`w \cdot y_j` is :math:`W^\top w \cdot h_j` up to a constant, and r is :math:`W` of the
    pooled states, plus b: so the states of tokens are pooled first, and one vector a relation is projected,
    of relations in use only. A relation without a text, such as a self loop's, is :math:`b`.

    Args:
        channels: D.
        official: Let gradients of texts without tokens through their even attention, as the reference does.
    """

    def __init__(self, channels: int, official: bool = False) -> None:
        super().__init__()
        self.attention = nn.Linear(channels, 1, bias=False)
        self.official = official

    def forward(self, project: nn.Linear, types: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """Returns the vectors of some relations, ``[U, D]``.

        Args:
            project: W and b, which may be shared with questions.
            types: ``[U]`` int64, ascending.
            hidden: ``[R, L, E]`` states of all texts' tokens, with a line more if the self loop has a text.
            mask: ``[R, L]`` bool, which are tokens. A text without any is the mean of its states.
        """
        v = self.attention.weight.squeeze(0) @ project.weight  # [E]
        told = types[types < hidden.size(0)]
        if self.official:
            pooled = text_pool_torch(hidden, mask, told, v, straight=True)
        else:
            pooled = text_pool(hidden, mask, told, v)
        return F.linear(F.pad(pooled, (0, 0, 0, types.numel() - told.numel())), project.weight, project.bias)


class RelationEmbedding(nn.Module):
    """A learned vector for each relation, along facts, and another against them; one map for both.

    Args:
        num_relations: R; the self loop has a row of its own.
        width: Of the tables.
        channels: D.
    """

    def __init__(self, num_relations: int, width: int, channels: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(2, num_relations + 1, width))
        self.project = nn.Linear(width, channels)
        nn.init.normal_(self.table)

    def forward(self, types: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors of some relations along and against facts, ``[U, D]`` each."""
        along, against = self.project(self.table[:, types])
        return along, against


class ReasoningLayer(nn.Module):
    r"""Passes probability along and against facts, as far as relations match the instructions.

    .. math::
        m^k_{b r} = \mathrm{relu}((W_R\, r + b_R) \odot i_k), \qquad
        \mathrm{fwd}_k(e') = \sum_{(e, r, e')} w\, p_e\, m^k_{b r}, \qquad
        \mathrm{inv}_k(e) = \sum_{(e, r, e')} w\, p_{e'}\, \tilde m^k_{b r}

    .. math:: h \leftarrow \mathrm{relu}(W_E\, \mathrm{drop}[h; \mathrm{fwd}_1 .. \mathrm{fwd}_K;
        \mathrm{inv}_1 .. \mathrm{inv}_K] + b_E)

    Messages are computed for pairs of question and relation. Without dropout :math:`W_E` is applied to them
    and not to entities, which is the same by linearity.

    Args:
        channels: D.
        instructions: K.
        dropout: Rate of dropping.
        num_relations: R, for a learned offset of each relation in each direction (``pos_emb``); None without.
    """

    def __init__(
        self, channels: int, instructions: int, dropout: float = 0.0, num_relations: int | None = None
    ) -> None:
        super().__init__()
        require_rate("dropout", dropout, below_one=True)
        self.relation = nn.Linear(channels, channels)
        self.update = nn.Linear((2 * instructions + 1) * channels, channels)
        self.offset = None
        if num_relations is not None:
            self.offset = nn.Parameter(torch.randn(2, num_relations + 1, channels))
        self.dropout, self.instructions = dropout, instructions

    def relations(self, along: Tensor, against: Tensor, types: Tensor) -> Tensor:
        """Returns what all instructions are compared with, ``[2U, D]``: forward relations, then inverse."""
        told = self.relation(torch.cat([along, against]))
        return told if self.offset is None else told + self.offset[:, types].flatten(0, 1)

    def messages(self, relations: Tensor, instructions: Tensor, plan: FactPlan) -> Tensor:
        """Returns the messages of all pairs, ``[2P, K, D]``: forward, then inverse."""
        told = relations.index_select(0, plan.pair_type)[:, None]
        return F.relu(told * instructions.index_select(0, plan.pair_graph))

    def gather(self, messages: Tensor, p: Tensor, plan: FactPlan) -> Tensor:
        """Returns what reaches each entity, ``[n, 2, K, D]``: fwd, then inv, as the textbook has it."""
        told = fact_sum(plan.both, p, messages.flatten(1))
        return told.view(p.numel(), 2, *messages.shape[1:])

    def forward(
        self, h: Tensor, p: Tensor, messages: Tensor, plan: FactPlan, *, at_seeds: bool = False
    ) -> Tensor:
        """Returns the new states, ``[n, D]``.

        Args:
            h: ``[n, D]``.
            p: ``[n]`` probabilities.
            messages: ``[2P, K, D]``, of :meth:`messages`.
            plan: Of the batch.
            at_seeds: Promises that ``p`` is 0 but at seeds; then only their neighbours are looked at.
        """
        channels = h.size(1)
        own, near = self.update.weight[:, :channels], self.update.weight[:, channels:]
        table, rate = messages.flatten(1), self.dropout if self.training else 0.0
        if rate:
            rows = plan.seed_both if at_seeds else plan.both
            seed = torch.randint(0, 2**63 - 1, (1,), device=h.device)
            told = fact_sum(rows, p, table, dropout=rate, seed=seed).view(-1, near.size(1))
            h = fast_dropout(h, rate)
        else:
            rows = plan.seed_merged if at_seeds else plan.merged
            along, against = near.view(channels, 2, -1).unbind(1)
            pairs = table.size(0) // 2
            table = torch.cat([table[:pairs] @ along.t(), table[pairs:] @ against.t()])
            told = fact_sum(rows, p, table)
        y = F.linear(h, own, self.update.bias)
        if at_seeds:
            y.index_add_(0, plan.seed_rows, told @ near.t() if rate else told)
        elif rate:
            y.addmm_(told, near.t())
        else:
            y.add_(told)
        return y.relu_()


class EntityScore(nn.Linear):
    r"""The probability of each entity of a question, :math:`\mathrm{softmax}(w \cdot \mathrm{drop}(h) + b)`.

    Args:
        channels: D.
        dropout: Rate of dropping.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__(channels, 1)
        self.dropout = FastDropout(dropout)

    def forward(  # type: ignore[override]
        self, h: Tensor, ptr: Tensor, candidate: Tensor
    ) -> Tensor:
        """Returns ``[n]``, summing to 1 over the candidates of each question and 0 elsewhere."""
        return segment_softmax(super().forward(self.dropout(h)).squeeze(1), ptr, candidate)
