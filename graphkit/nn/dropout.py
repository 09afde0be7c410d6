"""Dropout with ReLU and layer normalisation, in the order that the zoo's MLPs use them: norm, dropout, ReLU.

On CPU these are single passes (see :mod:`graphkit.kernels.dropout`), whose outcome depends on the seed alone,
not on the number of threads; other devices take torch's own functions, with their own random streams.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphkit.kernels import dropout as kernel

__all__ = [
    "DropoutReLU",
    "FastDropout",
    "NormDropoutReLU",
    "dropout_relu",
    "fast_dropout",
    "norm_dropout_relu",
]


def fast_dropout(x: Tensor, p: float = 0.5, training: bool = True, seed: int | None = None) -> Tensor:
    """Zeroes elements at the rate ``p`` and scales the others by ``1 / (1 - p)``.

    Args:
        x: Floating point of any shape. Half precision is computed in float32.
        p: Rate of dropping in [0, 1]; on CPU it is rounded to a multiple of 1/65536, and the scale with it.
        training: Without it, ``x`` is returned.
        seed: Fixes the outcome (on CPU); by default one number is drawn from torch's generator.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: If ``p`` is outside [0, 1] or ``x`` isn't floating point.
    """
    _check(x, p)
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return kernel.dropout(_working(x), _seed(seed), p, False).to(x.dtype)


def dropout_relu(x: Tensor, p: float = 0.5, training: bool = True, seed: int | None = None) -> Tensor:
    """Computes ``relu(dropout(x))`` in one pass that keeps no mask.

    Args:
        x: Floating point of any shape. Half precision is computed in float32.
        p: Rate of dropping in [0, 1]; on CPU it is rounded to a multiple of 1/65536, and the scale with it.
        training: Without it, only ReLU is applied.
        seed: Fixes the outcome (on CPU); by default one number is drawn from torch's generator.

    Returns:
        A tensor of the shape and dtype of ``x``. NaN stays NaN where it isn't dropped.

    Raises:
        ValueError: If ``p`` is outside [0, 1] or ``x`` isn't floating point.
    """
    _check(x, p)
    if not training or p == 0:
        return F.relu(x)
    if x.device.type != "cpu":
        return F.relu(F.dropout(x, p))
    return kernel.dropout(_working(x), _seed(seed), p, True).to(x.dtype)


def norm_dropout_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    p: float = 0.5,
    training: bool = True,
    eps: float = 1e-5,
    seed: int | None = None,
) -> Tensor:
    """Computes ``relu(dropout(layer_norm(x)))`` over the last dimension.

    Args:
        x: ``[..., F]`` floating point. Half precision is computed in float32.
        weight: ``[F]``.
        bias: ``[F]``.
        p: Rate of dropping in [0, 1]; on CPU it is rounded to a multiple of 1/65536, and the scale with it.
        training: Without it, nothing is dropped.
        eps: Added to the variance.
        seed: Fixes the outcome (on CPU); by default one number is drawn from torch's generator.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: If ``p`` is outside [0, 1], ``x`` isn't floating point, or a parameter doesn't fit.
    """
    _check(x, p)
    if x.dim() == 0 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must be [{x.shape[-1:].numel()}], "
            f"the last dimension of x {tuple(x.shape)}"
        )
    if not training or p == 0 or x.device.type != "cpu":
        y = F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps).to(x.dtype)
        return F.relu(F.dropout(y, p, training), inplace=True)
    work = _working(x)
    y = kernel.norm_dropout_relu(work, weight.to(work.dtype), bias.to(work.dtype), _seed(seed), p, eps)
    return y.to(x.dtype)


class FastDropout(nn.Module):
    """:func:`fast_dropout` with a fixed rate."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = _rate(p)

    def forward(self, x: Tensor) -> Tensor:
        return fast_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropoutReLU(FastDropout):
    """:func:`dropout_relu` with a fixed rate."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout_relu(x, self.p, self.training)


class NormDropoutReLU(nn.LayerNorm):
    """Layer normalisation, dropout, ReLU: :func:`norm_dropout_relu` with the parameters of ``nn.LayerNorm``.

    Args:
        width: Size of the last dimension.
        p: Rate of dropping in [0, 1].
        eps: Added to the variance.
    """

    def __init__(self, width: int, p: float = 0.5, eps: float = 1e-5) -> None:
        super().__init__(width, eps=eps)
        self.p = _rate(p)

    def forward(self, x: Tensor) -> Tensor:
        return norm_dropout_relu(x, self.weight, self.bias, self.p, self.training, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


def _rate(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; it must lie in [0, 1]")
    return p


def _check(x: Tensor, p: float) -> None:
    _rate(p)
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}; it must be floating point")


def _working(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _seed(seed: int | None) -> Tensor:
    """Returns the seed of a call as a tensor, which torch.compile needn't know the value of."""
    if seed is None:
        return torch.randint(0, 2**63 - 1, (1,))
    return torch.tensor([seed])
