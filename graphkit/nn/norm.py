"""Batch normalisation for batches of any size, whose statistics may span the shards of one batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Across", "SafeBatchNorm", "total_across"]


class Across(Protocol):
    """What connects the shards of a batch that are computed at the same time, in other processes.

    Attributes:
        silent: This shard's rows count for nothing; it only takes part.
    """

    silent: bool

    def gather(self, values: Tensor) -> Tensor:
        """Returns the values ``[*]`` of all shards, ``[W, *]``."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over shards, in a tensor of its own."""
        ...


class SafeBatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of one row, or none, by its running statistics.

    Attributes:
        across: Where a batch is computed in shards, what adds up their statistics; ``None`` for whole ones.
            The result is then that of the whole batch, up to rounding, and so are the gradients.
    """

    across: Across | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.across is not None:
            return self._across(x, self.across)
        if self.training and x.size(0) < 2:
            running = (self.running_mean, self.running_var)
            return F.batch_norm(x, *running, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)

    def _across(self, x: Tensor, across: Across) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        running = (self.running_mean, self.running_var)
        out, mean, var, rows = _Normalise.apply(x.to(wide), *running, self.eps, across)
        self.follow(mean, var, rows)
        if self.affine:
            out = out * self.weight + self.bias
        result: Tensor = out.to(x.dtype)
        return result

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor, rows: Tensor) -> None:
        """Moves the running statistics towards those of a batch of more than one row.

        Args:
            mean: ``[d]``.
            var: ``[d]``, of the batch, not corrected for its size.
            rows: Scalar, the number of rows; it isn't waited for.
        """
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        enough = rows > 1
        self.num_batches_tracked.add_(enough)
        wide = enough.double()
        share = wide * self.momentum if self.momentum is not None else wide / self.num_batches_tracked
        kind = self.running_mean.dtype
        unbiased = var * (rows / (rows - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(kind), share.to(kind))
        self.running_var.lerp_(unbiased.to(kind), share.to(kind))


class _Normalise(torch.autograd.Function):
    r"""Rows of all shards, normalised: :math:`\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}`.

    Each shard sends its count, mean and sum of squared deviations; they are put together as Chan, Golub and
    LeVeque (1983) do, without the cancellation of sums of squares. With :math:`n` rows in all

    .. math:: \frac{\partial L}{\partial x} = \frac{1}{\sigma}
        \Big(g - \frac{1}{n} \sum g - \hat x \frac{1}{n} \sum g \hat x\Big).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, across: Across
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = 0 if across.silent else x.size(0)
        local = x.mean(0) if rows else x.new_zeros(x.size(1))
        spread = (x - local).square().sum(0) if rows else local
        sent = across.gather(torch.cat([local.new_tensor([rows]), local, spread]).double())
        counts, means, spreads = sent.split([1, x.size(1), x.size(1)], dim=1)
        count = counts.sum()
        some, enough = count.clamp(min=1), count > 1
        mean = (counts * means).sum(0) / some
        var = (spreads + counts * (means - mean).square()).sum(0) / some
        scale = (torch.where(enough, var, running_var) + eps).rsqrt().to(x.dtype)
        out = (x - torch.where(enough, mean, running_mean).to(x.dtype)) * scale
        ctx.save_for_backward(out, scale, enough / some)
        ctx.across, ctx.silent = across, across.silent
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        out, scale, each = ctx.saved_tensors
        sums = torch.stack([grad.sum(0), (grad * out).sum(0)]).double()
        first, second = (ctx.across.sum(sums * (not ctx.silent)) * each).to(grad.dtype)
        shifted = (grad - first - out * second) * scale
        return torch.zeros_like(grad) if ctx.silent else shifted, None, None, None, None


class _Total(torch.autograd.Function):
    """The sum over shards; each shard's gradient is the sum of all theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, across: Across) -> Tensor:
        ctx.across, ctx.silent = across, across.silent
        return across.sum(torch.zeros_like(values) if across.silent else values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total: Tensor = ctx.across.sum(torch.zeros_like(grad) if ctx.silent else grad)
        return torch.zeros_like(total) if ctx.silent else total, None


def total_across(values: Tensor, across: Across | None) -> Tensor:
    """Returns the sum of ``values`` over the shards of a batch, with its gradient; they as they are alone."""
    if across is None:
        return values
    total: Tensor = _Total.apply(values, across)
    return total
