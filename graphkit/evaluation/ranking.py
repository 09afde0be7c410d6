r"""Ranks of the right entity among all others, or among a few sampled ones, and metrics of them.

In filtered ranking (Bordes et al., NeurIPS 2013) the other right answers to a query are left out. As in
:mod:`graphkit.evaluation.metrics`, a tie counts half a place in the mean reciprocal rank and never favours
the right answer in Hits@K: with :math:`a` candidates above the answer and :math:`t` level with it,

.. math:: \mathrm{MRR} = \mathrm{mean}\, \frac{1}{1 + a + t/2}, \qquad
          \mathrm{Hits@}K = \mathrm{mean}\, [\, 1 + a + t \le K \,].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.evaluation.metrics import check_scores

__all__ = ["Ranks", "expected_hits", "filtered_ranks", "ranking_metrics", "sampled_ranks"]


class Ranks(NamedTuple):
    """Where the right answers of some queries stand.

    Attributes:
        above: ``[q]`` int64, candidates that score higher than the answer.
        ties: ``[q]`` int64, candidates that score as much.
        candidates: ``[q]`` int64, those that it was compared with, itself not counted.
    """

    above: Tensor
    ties: Tensor
    candidates: Tensor

    @property
    def mean(self) -> Tensor:
        """``[q]`` float64, 1 is best; a tie is half a place."""
        return 1 + self.above + 0.5 * self.ties.double()

    @property
    def worst(self) -> Tensor:
        """``[q]`` int64, 1 is best; everything level stands above the answer."""
        return 1 + self.above + self.ties

    @classmethod
    def join(cls, parts: Sequence[Ranks]) -> Ranks:
        """Returns the ranks of several portions of queries, on the CPU."""
        return cls(*(torch.cat([column.cpu() for column in columns]) for columns in zip(*parts, strict=True)))


def filtered_ranks(
    scores: Tensor, answer: Tensor, known_ptr: Tensor | None = None, known: Tensor | None = None
) -> Ranks:
    """Ranks each answer among all entities but the query's other right answers.

    Args:
        scores: ``[q, N]`` floating point, a score of every entity.
        answer: ``[q]`` int64, the right entity.
        known_ptr: ``[q + 1]`` int64; query ``i`` has ``known[known_ptr[i]:known_ptr[i + 1]]``. ``None`` if
            nothing is left out.
        known: ``[m]`` int64, all right entities of each query, distinct within a query; whether the answer is
            among them doesn't matter.

    Raises:
        UserError: Non-finite or no scores.
    """
    scores = _checked(scores)
    own = scores.gather(1, answer[:, None])
    above, level = (scores > own).sum(1), (scores == own).sum(1)
    candidates = torch.full_like(above, scores.size(1))
    if known is not None and known_ptr is not None:
        query = torch.repeat_interleave(
            torch.arange(answer.numel(), device=known.device), known_ptr.diff(), output_size=known.numel()
        )
        other = known != answer[query]
        query, left_out = query[other], known[other]
        theirs, mine = scores[query, left_out], own[query, 0]
        for count, what in ((above, theirs > mine), (level, theirs == mine), (candidates, None)):
            taken = torch.ones_like(query) if what is None else what.long()
            count.index_add_(0, query, taken, alpha=-1)
    return Ranks(above, level - 1, candidates - 1)  # the answer is level with itself


def sampled_ranks(scores: Tensor, answer: Tensor, negatives: Tensor) -> Ranks:
    """Ranks each answer among sampled entities.

    Args:
        scores: ``[q, N]`` floating point, a score of every entity.
        answer: ``[q]`` int64, the right entity.
        negatives: ``[q, K]`` int64 entities, none of them right; one may be there several times.

    Raises:
        UserError: Non-finite or no scores.
    """
    scores = _checked(scores)
    own, others = scores.gather(1, answer[:, None]), scores.gather(1, negatives)
    count = torch.full_like(answer, negatives.size(1))
    return Ranks((others > own).sum(1), (others == own).sum(1), count)


def ranking_metrics(ranks: Ranks, ks: Sequence[int] = (1, 3, 10)) -> dict[str, float]:
    """Returns ``mrr`` and ``hits@K`` for each K.

    Raises:
        UserError: No query.
    """
    if ranks.above.numel() == 0:
        raise UserError("there is nothing to rank: the split is empty")
    result = {"mrr": float((1 / ranks.mean).mean())}
    worst = ranks.worst
    for k in ks:
        if k < 1:
            raise ValueError(f"ks is {tuple(ks)}; each must be at least 1")
        result[f"hits@{k}"] = int((worst <= k).sum()) / worst.numel()
    return result


def expected_hits(ranks: Ranks, k: int, samples: int) -> float:
    r"""Returns the Hits@K to expect against ``samples`` candidates drawn with replacement, exactly.

    With the share :math:`p = (a + t) / c` of candidates that stand above the answer (a tie does),

    .. math:: \mathrm{mean} \sum_{i=0}^{K-1} \binom{n}{i} p^i (1 - p)^{n-i},

    which no seed decides. NBFNet's authors (arXiv:2106.06935) report inductive completion so, with 49 samples
    where they say 50: theirs count the answer.

    Raises:
        UserError: No query.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; it must lie between 1 and the {samples} samples")
    if ranks.above.numel() == 0:
        raise UserError("there is nothing to rank: the split is empty")
    p = (ranks.worst - 1).double() / ranks.candidates.clamp(min=1)
    total = torch.zeros_like(p)
    for i in range(k):
        total += math.comb(samples, i) * p.pow(i) * (1 - p).pow(samples - i)
    return float(total.mean())


def _checked(scores: Tensor) -> Tensor:
    scores = scores.detach()
    check_scores(scores, "scores")
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
