"""Metrics of graph tasks: errors, rank metrics over several labels, accuracies; behind the usual guards.

Labels that are NaN are unknown and count nowhere. With several targets a metric is the plain mean over those
that can be evaluated, as in OGB (arXiv:2005.00687).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from graphkit.errors import UserError, did_you_mean
from graphkit.evaluation.metrics import accuracy, check_scores

__all__ = [
    "METRICS",
    "GraphEvaluator",
    "average_precision",
    "balanced_accuracy",
    "mae",
    "rmse",
    "roc_auc",
]

Kind = Literal["regression", "binary", "classes"]
METRICS: dict[str, tuple[str, ...]] = {
    "regression": ("mae", "rmse"),
    "binary": ("rocauc", "ap", "accuracy", "balanced_accuracy"),
    "classes": ("accuracy", "balanced_accuracy"),
}
"""The metrics of each kind of target."""


def mae(predictions: Tensor, y: Tensor) -> float:
    r"""Returns the mean absolute error, :math:`\frac1T \sum_t \mathrm{mean}_i |p_{it} - y_{it}|`.

    Args:
        predictions: ``[n, T]`` (or ``[n]``) in the targets' unit.
        y: The truth in the same shape, NaN where unknown.

    Raises:
        UserError: Non-finite or no predictions, other shapes, or no known value at all.
    """
    return _mean_error(*_matrices(predictions, y), lambda error: error.abs().mean())


def rmse(predictions: Tensor, y: Tensor) -> float:
    r"""Returns the root of the mean squared error of each target, averaged over targets; see :func:`mae`."""
    return _mean_error(*_matrices(predictions, y), lambda error: error.square().mean().sqrt())


def roc_auc(scores: Tensor, y: Tensor) -> float:
    """Returns the area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Args:
        scores: ``[n, T]`` (or ``[n]``): logits, probabilities or any other order.
        y: Labels 0 and 1 in the same shape, NaN where unknown.

    Returns:
        The mean over labels that have both positives and negatives.

    Raises:
        UserError: Non-finite or no scores, other shapes or labels, or no label that has both.
    """
    return _mean_rank(*_matrices(scores, y, labels=True), _area)


def average_precision(scores: Tensor, y: Tensor) -> float:
    r"""Returns the average precision :math:`\sum_k (R_k - R_{k-1}) P_k` over thresholds k, best score first.

    Precision P and recall R are those of all scores at or above a threshold, so ties enter together, as in
    scikit-learn. Arguments, mean and raises as in :func:`roc_auc`.
    """
    return _mean_rank(*_matrices(scores, y, labels=True), _precision)


def balanced_accuracy(predictions: Tensor, y: Tensor) -> float:
    """Returns the mean over classes of the share of a class that is found: the accuracy of PATTERN, CLUSTER.

    Args:
        predictions: ``[n, C]`` class scores, or ``[n, 1]`` (``[n]``) logits of a binary label.
        y: ``[n]`` integer classes, or floating-point labels 0 and 1 in the logits' shape, NaN where unknown.

    Returns:
        The mean over classes that occur in ``y``.

    Raises:
        UserError: Non-finite or no scores, or other shapes.
    """
    found, truth = _decisions(predictions, y)
    known = torch.bincount(truth)
    hits = torch.bincount(truth[found == truth], minlength=known.numel())
    occurs = known > 0
    return float((hits[occurs].double() / known[occurs]).mean())


class GraphEvaluator:
    """Compares predictions with the truth: ``evaluator(predictions, y) -> {"mae": ..., "rmse": ...}``.

    Args:
        kind: What is predicted: ``regression`` values ``[n, T]``, ``binary`` logits ``[n, T]``, or scores of
            ``classes`` ``[n, C]``.
        metric: The deciding metric, one of :data:`METRICS` of this kind. The others are reported where they
            can be computed; accuracies of binary labels only if one of them decides.

    Raises:
        ValueError: Unknown kind or metric.
        UserError: When called, as the metrics' functions do.
    """

    def __init__(self, kind: Kind, metric: str) -> None:
        if kind not in METRICS:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(METRICS)}")
        if metric not in METRICS[kind]:
            raise ValueError(f"'{metric}' is no metric for {kind}{did_you_mean(metric, METRICS[kind])}")
        self.kind, self.metric = kind, metric
        others = METRICS[kind] if "accuracy" in metric else METRICS[kind][:2]
        self.metrics = (metric, *(name for name in others if name != metric))

    def __call__(self, predictions: Tensor, y: Tensor) -> dict[str, float]:
        result = {self.metric: _FUNCTIONS[self.metric](predictions, y)}
        for name in self.metrics[1:]:
            try:
                with warnings.catch_warnings():  # the first has warned
                    warnings.simplefilter("ignore")
                    result[name] = _FUNCTIONS[name](predictions, y)
            except UserError:  # what decides can be computed, this one can't
                continue
        return result

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind!r}, {self.metric!r})"


def _matrices(predictions: Tensor, y: Tensor, labels: bool = False) -> tuple[Tensor, Tensor]:
    """Checks both and returns them as float64 ``[n, T]`` on the CPU."""
    predictions, y = predictions.detach().cpu(), y.detach().cpu()
    predictions = predictions[:, None] if predictions.dim() == 1 else predictions
    y = y[:, None] if y.dim() == 1 else y
    check_scores(predictions, "predictions")
    if predictions.shape != y.shape or predictions.dim() != 2:
        raise UserError(f"predictions have shape {list(predictions.shape)}, the truth {list(y.shape)}")
    y = y.double()
    if bool(torch.isinf(y).any()):
        raise UserError("the truth holds infinite values")
    if labels:
        wrong = ~(torch.isnan(y) | (y == 0) | (y == 1))
        if bool(wrong.any()):
            raise UserError(f"binary labels must be 0, 1 or NaN (unknown), not {float(y[wrong][0]):g}")
        _warn_if_constant(predictions, "ranks")
    return predictions.double(), y


def _warn_if_constant(scores: Tensor, deed: str) -> None:
    first = scores.reshape(-1)[0]
    if scores.size(0) > 1 and bool((scores == first).all()):
        warnings.warn(f"all {scores.numel()} scores are {float(first):g}: this {deed} nothing", stacklevel=4)


def _mean_error(predictions: Tensor, y: Tensor, error: Callable[[Tensor], Tensor]) -> float:
    known = ~torch.isnan(y)
    parts = [
        error(predictions[rows, t] - y[rows, t]) for t, rows in enumerate(known.unbind(1)) if bool(rows.any())
    ]
    if not parts:
        raise UserError("there is nothing to evaluate: no value of this split is known")
    return float(torch.stack(parts).mean())


def _mean_rank(scores: Tensor, y: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> float:
    parts = []
    for score, label in zip(scores.unbind(1), y.unbind(1), strict=True):
        known = ~torch.isnan(label)
        positive = label[known] == 1
        if bool(positive.any()) and not bool(positive.all()):
            parts.append(value(score[known], positive))
    if not parts:
        raise UserError("there is nothing to rank: no label of this split has both positives and negatives")
    return float(torch.stack(parts).mean())


def _area(score: Tensor, positive: Tensor) -> Tensor:
    negatives, positives = score[~positive].sort().values, score[positive]
    below = torch.searchsorted(negatives, positives, right=False).sum()
    up_to = torch.searchsorted(negatives, positives, right=True).sum()
    return (below + up_to).double() / (2 * positives.numel() * negatives.numel())


def _precision(score: Tensor, positive: Tensor) -> Tensor:
    ordered, order = score.sort(descending=True)
    hits = positive[order].cumsum(0).double()
    last = torch.ones_like(ordered, dtype=torch.bool)  # of equal scores
    last[:-1] = ordered[1:] != ordered[:-1]
    ends = last.nonzero().squeeze(1)
    found = hits[ends]
    gained = found.diff(prepend=found.new_zeros(1))
    return (gained * found / (ends + 1)).sum() / hits[-1]


def _decisions(predictions: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns predicted and true classes, ``[m]`` int64 each, of what is known."""
    if y.is_floating_point():
        scores, truth = _matrices(predictions, y, labels=True)
        known = ~torch.isnan(truth)
        if not bool(known.any()):
            raise UserError("there is nothing to evaluate: no label of this split is known")
        return (scores[known] > 0).long(), truth[known].long()
    predictions, truth = predictions.detach().cpu(), y.detach().cpu().reshape(-1)
    check_scores(predictions, "class scores")
    if predictions.dim() != 2 or predictions.size(0) != truth.numel():
        raise UserError(f"class scores have shape {list(predictions.shape)}, the truth {list(y.shape)}")
    _warn_if_constant(predictions, "decides")
    return predictions.argmax(1), truth


def _accuracy(predictions: Tensor, y: Tensor) -> float:
    if not y.is_floating_point():
        return accuracy(predictions.detach().cpu(), y.cpu())
    found, truth = _decisions(predictions, y)
    return int((found == truth).sum()) / truth.numel()


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "mae": mae,
    "rmse": rmse,
    "rocauc": roc_auc,
    "ap": average_precision,
    "accuracy": _accuracy,
    "balanced_accuracy": balanced_accuracy,
}
