"""Metrics in torch, behind guards: no score is perfect because it is NaN, and none is of nothing.

Rank metrics compare scores only, so any strictly increasing map of the scores leaves them as they are. Ties
between a positive and a negative never favour the positive in Hits@K, and count half in MRR and AUC.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from graphkit.errors import UserError

__all__ = ["LinkEvaluator", "NodeEvaluator", "accuracy", "auc", "check_scores", "hits_at_k", "mrr"]


def check_scores(scores: Tensor, what: str) -> None:
    """Refuses scores that no metric may be computed from.

    Args:
        scores: Any shape, floating point.
        what: Their name in the message, ``"positive scores"``.

    Raises:
        UserError: If there are none, or some aren't finite; the message counts them and names the first.
    """
    if scores.numel() == 0:
        raise UserError(f"there are no {what}: the split is empty")
    finite = torch.isfinite(scores)
    if not bool(finite.all()):
        bad = torch.nonzero(~finite)
        where = ", ".join(str(i) for i in bad[0].tolist())
        value = float(scores[tuple(bad[0])])
        raise UserError(
            f"{bad.size(0)} of {scores.numel()} {what} aren't finite, the first ({value}) at index {where}: "
            "the model diverged, or a batch wasn't scored"
        )


def _link_scores(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
    """Checks both kinds of scores and detaches them; ``[P, 1]`` positives become ``[P]``."""
    pos, neg = pos.detach(), neg.detach()
    pos = pos.reshape(-1)
    if neg.dim() == 2 and neg.size(1) == 1 and pos.numel() != neg.size(0):
        neg = neg.reshape(-1)
    check_scores(pos, "positive scores")
    check_scores(neg, "negative scores")
    if neg.dim() > 2 or (neg.dim() == 2 and neg.size(0) != pos.numel()):
        raise UserError(
            f"negative scores have shape {list(neg.shape)}; they must be [N] (shared) or [{pos.numel()}, K]"
        )
    wide = torch.promote_types(pos.dtype, neg.dtype)
    if wide in (torch.float16, torch.bfloat16):
        wide = torch.float32
    pos, neg = pos.to(wide), neg.to(wide)
    if pos.numel() + neg.numel() > 2 and bool((pos == pos[0]).all()) and bool((neg == pos[0]).all()):
        warnings.warn(
            f"all {pos.numel() + neg.numel()} scores are {float(pos[0]):g}: this ranks nothing", stacklevel=3
        )
    return pos, neg


def _hits(pos: Tensor, neg: Tensor, k: int) -> float:
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if neg.dim() == 2:
        if neg.size(1) < k:
            raise UserError(
                f"hits@{k} needs at least {k} negatives for each positive; there are {neg.size(1)}"
            )
        kth = torch.topk(neg, k, dim=1).values[:, -1]
    else:
        if neg.numel() < k:
            raise UserError(f"hits@{k} needs at least {k} negatives; there are {neg.numel()}")
        kth = torch.topk(neg, k).values[-1]
    return int((pos > kth).sum()) / pos.numel()


def _reciprocal_rank(pos: Tensor, neg: Tensor) -> float:
    if neg.dim() == 2:
        above = (neg > pos[:, None]).sum(1)
        level = (neg >= pos[:, None]).sum(1)
    else:
        ordered = neg.sort().values
        above = neg.numel() - torch.searchsorted(ordered, pos, right=True)
        level = neg.numel() - torch.searchsorted(ordered, pos, right=False)
    rank = 1 + 0.5 * (above + level).double()
    return float((1 / rank).mean())


def _auc(pos: Tensor, neg: Tensor) -> float:
    ordered = neg.reshape(-1).sort().values
    below = torch.searchsorted(ordered, pos, right=False).sum()
    up_to = torch.searchsorted(ordered, pos, right=True).sum()
    return int(below + up_to) / (2 * pos.numel() * ordered.numel())


def hits_at_k(pos: Tensor, neg: Tensor, k: int) -> float:
    """Returns the share of positives that score strictly above the K-th best negative.

    Args:
        pos: ``[P]`` scores.
        neg: ``[N]`` scores of negatives that all positives share, or ``[P, K']`` of each positive's own.
        k: At least 1, at most the number of negatives.

    Raises:
        UserError: Non-finite or no scores, or fewer than ``k`` negatives (OGB would return 1.0).
    """
    return _hits(*_link_scores(pos, neg), k)


def mrr(pos: Tensor, neg: Tensor) -> float:
    """Returns the mean reciprocal rank, a tie counting half a place: ``mean 1 / (1 + #above + #ties / 2)``.

    Args:
        pos: ``[P]`` scores.
        neg: ``[N]`` scores of shared negatives, or ``[P, K]`` of each positive's own.

    Raises:
        UserError: Non-finite or no scores.
    """
    return _reciprocal_rank(*_link_scores(pos, neg))


def auc(pos: Tensor, neg: Tensor) -> float:
    """Returns the area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Args:
        pos: ``[P]`` scores.
        neg: Scores of any shape, all of them compared with all positives.

    Raises:
        UserError: Non-finite or no scores.
    """
    return _auc(*_link_scores(pos, neg))


def accuracy(predictions: Tensor, y: Tensor) -> float:
    """Returns the share of correct classes.

    Args:
        predictions: ``[n, C]`` scores or ``[n]`` (``[n, 1]``) integer classes.
        y: ``[n]`` or ``[n, 1]`` integer classes.

    Raises:
        UserError: Non-finite scores, no nodes, or different numbers of them.
    """
    predictions, y = predictions.detach(), y.reshape(-1)
    if y.numel() == 0:
        raise UserError("there is nothing to compute an accuracy of: the split is empty")
    if predictions.size(0) != y.numel():
        raise UserError(f"{predictions.size(0)} predictions for {y.numel()} nodes")
    if predictions.is_floating_point():
        check_scores(predictions, "class scores")
        if predictions.dim() != 2:
            raise UserError(f"class scores have shape {list(predictions.shape)}; they must be [n, C]")
        if y.numel() > 1 and bool((predictions == predictions.reshape(-1)[0]).all()):
            warnings.warn("all class scores are equal: this decides nothing", stacklevel=2)
        predictions = predictions.argmax(1)
    return int((predictions.reshape(-1) == y.to(predictions.device)).sum()) / y.numel()


class LinkEvaluator:
    """Ranks positives against negatives: ``evaluator(pos, neg) -> {"hits@20": ..., "mrr": ..., "auc": ...}``.

    Args:
        ks: The K of each Hits@K.
        mrr: Whether to report the mean reciprocal rank.
        auc: Whether to report the area under the ROC curve.

    Raises:
        UserError: When called, as :func:`hits_at_k` does.
    """

    def __init__(self, ks: Sequence[int] = (20, 50, 100), *, mrr: bool = True, auc: bool = True) -> None:
        if any(k < 1 for k in ks):
            raise ValueError(f"ks is {tuple(ks)}; each must be at least 1")
        self.ks = tuple(ks)
        self.mrr = mrr
        self.auc = auc

    @classmethod
    def fitting(cls, metric: str, num_negatives: int, ks: Sequence[int] = (20, 50, 100)) -> LinkEvaluator:
        """Returns an evaluator with those Hits@K that so many negatives allow, and with ``metric``.

        Args:
            metric: The deciding metric: ``"hits@K"``, ``"mrr"`` or ``"auc"``.
            num_negatives: Negatives of the smallest split.
            ks: Further K to report where they fit.

        Raises:
            UserError: If ``metric`` isn't one of these, or its K exceeds the negatives.
        """
        wanted = set(ks)
        if metric.startswith("hits@") and metric[5:].isdigit() and int(metric[5:]) > 0:
            k = int(metric[5:])
            if k > num_negatives:
                raise UserError(
                    f"hits@{k} needs at least {k} negatives, and the smallest split has {num_negatives}; "
                    "choose metric mrr, auc or a smaller K"
                )
            wanted.add(k)
        elif metric not in ("mrr", "auc"):
            raise UserError(f"unknown link metric '{metric}'; known: hits@K (any K), mrr, auc")
        return cls(sorted(k for k in wanted if k <= num_negatives))

    def __call__(self, pos: Tensor, neg: Tensor) -> dict[str, float]:
        pos, neg = _link_scores(pos, neg)
        result = {f"hits@{k}": _hits(pos, neg, k) for k in self.ks}
        if self.mrr:
            result["mrr"] = _reciprocal_rank(pos, neg)
        if self.auc:
            result["auc"] = _auc(pos, neg)
        return result

    def __repr__(self) -> str:
        return f"{type(self).__name__}(ks={self.ks}, mrr={self.mrr}, auc={self.auc})"


class NodeEvaluator:
    """Compares classes: ``evaluator(predictions, y) -> {"accuracy": ...}``; see :func:`accuracy`."""

    def __call__(self, predictions: Tensor, y: Tensor) -> dict[str, float]:
        return {"accuracy": accuracy(predictions, y)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
