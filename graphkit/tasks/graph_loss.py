r"""Losses of graph tasks as sums over the known targets, so that shards of a batch add up.

With prediction p and target y, unknown targets (NaN) left out:

.. math:: \ell = |p - z|, \quad (p - z)^2, \quad \ln(1 + e^{-(2y-1)p}), \quad -\ln \mathrm{softmax}(p)_y

for regression (:math:`z = (y - \mu_t) / \sigma_t`, or y), binary labels and classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Standard", "class_weights", "divisor", "sum_of_losses"]


class Standard(NamedTuple):
    """Mean and deviation of each target, ``[T]`` float64 each.

    Attributes:
        mean: 0 where nothing is known.
        deviation: 1 where nothing varies.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, y: Tensor) -> Standard:
        """Takes both from targets ``[n, T]``, NaN where unknown."""
        known = ~torch.isnan(y)
        count = known.sum(0).clamp(min=1)
        mean = torch.where(known, y.double(), 0.0).sum(0) / count
        variance = torch.where(known, y.double() - mean, 0.0).square().sum(0) / count
        return cls(mean, torch.where(variance > 0, variance.sqrt(), 1.0))

    def to(self, device: torch.device) -> Standard:
        return Standard(self.mean.to(device), self.deviation.to(device))

    def apply(self, y: Tensor) -> Tensor:
        """Returns ``(y - mean) / deviation`` in the type of ``y``."""
        return (y - self.mean.to(y)) / self.deviation.to(y)

    def undo(self, y: Tensor) -> Tensor:
        """Returns ``y * deviation + mean`` in the type of ``y``."""
        return y * self.deviation.to(y) + self.mean.to(y)


def class_weights(y: Tensor, classes: int) -> Tensor:
    """Returns the weight of each class, ``(V - V_c) / V`` or 0 where it is absent, float64.

    The weights of PATTERN and CLUSTER (Dwivedi et al., arXiv:2003.00982), from the labels of a batch.

    Args:
        y: ``[V]`` classes, or ``[V, T]`` binary labels with NaN where unknown.
        classes: C.

    Returns:
        ``[C]``, or ``[T, 2]`` of labels 0 and 1.
    """
    if not y.is_floating_point():
        counts = torch.bincount(y, minlength=classes).double()
    else:
        counts = torch.stack([(y == 0).sum(0), (y == 1).sum(0)], dim=1).double()
    total = counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(counts > 0, (total - counts) / total, 0.0)


def divisor(y: Tensor, weights: Tensor | None) -> float:
    """Returns what the sum over a whole batch is divided by: the known targets, or the classes' weights.

    Weighted binary labels are divided by their number. Where there is nothing, 1.
    """
    if y.is_floating_point():
        return float((~torch.isnan(y)).sum()) or 1.0
    return float(y.numel() if weights is None else weights[y].sum()) or 1.0


def sum_of_losses(
    out: Tensor, y: Tensor, kind: str, loss: str, weights: Tensor | None, standard: Standard | None
) -> Tensor:
    """Returns the sum of the losses of the known targets, a scalar.

    Args:
        out: ``[n, T]`` predictions, or ``[n, C]`` class scores.
        y: ``[n, T]`` with NaN where unknown, or ``[n]`` int64 classes.
        kind: ``regression``, ``binary`` or ``classes``.
        loss: ``mae`` or another; squares, for regression.
        weights: See :func:`class_weights`.
        standard: Of regression, what targets are standardised by.
    """
    weights = None if weights is None else weights.to(out)
    if kind == "classes":
        return F.cross_entropy(out, y, weight=weights, reduction="sum")
    known = ~torch.isnan(y)
    y = torch.where(known, y, 0.0).to(out.dtype)
    if kind == "binary":
        losses = F.binary_cross_entropy_with_logits(out, y, reduction="none")
        if weights is not None:
            losses = losses * torch.where(y > 0, weights[:, 1], weights[:, 0])
    else:
        error = out - (y if standard is None else standard.apply(y))
        losses = error.abs() if loss == "mae" else error.square()
    return (losses * known).sum()
