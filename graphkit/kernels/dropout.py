"""Dropout that hashes positions instead of drawing floats, fused with ReLU and with layer normalisation.

torch draws one Bernoulli float an element, writes a mask, multiplies, and then reads everything again for the
ReLU: in a small MLP on CPU that is a third of the time. Here 16 bits of a hash of (seed, position) decide an
element, in the pass that reads it, and nothing but the result is kept: where ReLU follows, the result says
what was dropped; where it doesn't, the backward pass hashes again.

The rate is rounded to a multiple of 1/65536; the scale is the inverse of the rounded rate of keeping.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges
from graphkit.kernels.spmm import to_numpy

__all__ = ["dropout", "dropout_torch", "keep_mask", "norm_dropout_relu", "norm_dropout_relu_torch"]

LEVELS = 1 << 16
LINE = 1024  # as in _dropout_loops
BLOCK = 64


def dropout(x: Tensor, seed: Tensor, p: float, relu: bool) -> Tensor:
    """Returns ``scale * keep * x``, then with ``relu`` its positive part.

    Args:
        x: Any shape, float32 or float64, on CPU.
        seed: ``[1]`` int64.
        p: Rate of dropping in [0, 1].
        relu: Whether to apply ReLU.
    """
    y: Tensor = _dropout(x, seed, round(p * LEVELS), relu)
    return y


def norm_dropout_relu(x: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, p: float, eps: float) -> Tensor:
    """Returns ``relu(scale * keep * (weight * (x - mean) / sqrt(var + eps) + bias))``, rows normalised.

    Args:
        x: ``[..., F]`` float32 or float64, on CPU.
        weight: ``[F]`` of the same dtype.
        bias: ``[F]`` of the same dtype.
        seed: ``[1]`` int64.
        p: Rate of dropping in [0, 1].
        eps: Added to the variance.
    """
    y: Tensor
    y, _, _ = _norm(x.reshape(-1, x.size(-1)), weight, bias, seed, round(p * LEVELS), eps)
    return y.view(x.shape)


def keep_mask(seed: Tensor, rows: int, width: int, threshold: int) -> Tensor:
    """Returns which elements of ``[rows, width]`` are kept, bool: the loops' hash in torch's integers.

    Args:
        seed: ``[1]`` int64.
        rows: Number of rows.
        width: Length of a row.
        threshold: Elements whose 16 bits are below it are dropped.
    """
    z = seed + (torch.arange(rows, device=seed.device) + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift(z, 31)
    before, between = (z & 0xFFFFFFFF)[:, None], _shift(z, 32)[:, None]
    h = torch.arange((width + 1) // 2, device=seed.device) ^ before
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) + between) & 0xFFFFFFFF
    h = (h * 0x846CA68B) & 0xFFFFFFFF
    h = h ^ (h >> 16)
    return torch.cat([h & 0xFFFF, h >> 16], 1)[:, :width] >= threshold


def dropout_torch(x: Tensor, seed: Tensor, threshold: int, relu: bool) -> Tensor:
    """:func:`dropout` in plain torch operations, given the threshold."""
    lines = -(-x.numel() // LINE)
    keep = keep_mask(seed, lines, LINE, threshold).flatten()[: x.numel()].view(x.shape)
    y = torch.where(keep, x * _scale(threshold), 0)
    return y.relu() if relu else y


def norm_dropout_relu_torch(
    x: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, threshold: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`norm_dropout_relu` of ``[R, F]`` in plain torch, with means and inverse deviations."""
    mean = x.mean(1)
    rstd = ((x - mean[:, None]).square().mean(1) + eps).rsqrt()
    y = (x - mean[:, None]) * rstd[:, None] * weight + bias
    keep = keep_mask(seed, x.size(0), x.size(1), threshold)
    return torch.where(keep, y * _scale(threshold), 0).relu(), mean, rstd


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def _unsigned(seed: Tensor) -> np.uint64:
    return np.uint64(int(seed) & 0xFFFFFFFFFFFFFFFF)


def _shift(z: Tensor, by: int) -> Tensor:
    """Shifts unsigned 64-bit numbers to the right."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _scale(threshold: int) -> float:
    return LEVELS / max(LEVELS - threshold, 1)


@torch.library.custom_op("graphkit::dropout", mutates_args=())
def _dropout(x: Tensor, seed: Tensor, threshold: int, relu: bool) -> Tensor:
    return dropout_torch(x, seed, threshold, relu)


@_dropout.register_kernel("cpu")
def _dropout_cpu(x: Tensor, seed: Tensor, threshold: int, relu: bool) -> Tensor:
    from graphkit.kernels import _dropout_loops as loops

    y = x.new_empty(x.shape)
    source = to_numpy(x).reshape(-1)
    real = source.dtype.type
    floor = real(0) if relu else real(-np.inf)
    bounds = even_bounds(-(-source.shape[0] // LINE), num_parts(x.numel()))
    args = (_unsigned(seed), np.uint32(threshold), real(_scale(threshold)), floor)
    run_ranges(loops.dropout_lines, bounds, source, *args, y.numpy().reshape(-1))
    return y


@_dropout.register_fake
def _dropout_fake(x: Tensor, seed: Tensor, threshold: int, relu: bool) -> Tensor:
    return x.new_empty(x.shape)


def _dropout_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.threshold, ctx.relu = inputs
    ctx.save_for_backward(output if ctx.relu else seed)


def _dropout_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (saved,) = ctx.saved_tensors
    if ctx.relu:
        return _relu_grad(grad, saved, ctx.threshold), None, None, None
    return _dropout(grad, saved, ctx.threshold, False), None, None, None


_dropout.register_autograd(_dropout_backward, setup_context=_dropout_setup)


@torch.library.custom_op("graphkit::dropout_relu_grad", mutates_args=())
def _relu_grad(grad: Tensor, y: Tensor, threshold: int) -> Tensor:
    return torch.where(y <= 0, 0, grad * _scale(threshold))


@_relu_grad.register_kernel("cpu")
def _relu_grad_cpu(grad: Tensor, y: Tensor, threshold: int) -> Tensor:
    from graphkit.kernels import _dropout_loops as loops

    out = y.new_empty(y.shape)
    g, result = to_numpy(grad).reshape(-1), to_numpy(y).reshape(-1)
    bounds = even_bounds(g.shape[0], num_parts(g.shape[0]))
    run_ranges(loops.relu_grad, bounds, g, result, g.dtype.type(_scale(threshold)), out.numpy().reshape(-1))
    return out


@_relu_grad.register_fake
def _relu_grad_fake(grad: Tensor, y: Tensor, threshold: int) -> Tensor:
    return y.new_empty(y.shape)


def _relu_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, y, ctx.threshold = inputs
    ctx.save_for_backward(y)


def _relu_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _relu_grad(grad, ctx.saved_tensors[0], ctx.threshold), None, None


_relu_grad.register_autograd(_relu_grad_backward, setup_context=_relu_grad_setup)


@torch.library.custom_op("graphkit::norm_dropout_relu", mutates_args=())
def _norm(
    x: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, threshold: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return norm_dropout_relu_torch(x, weight, bias, seed, threshold, eps)


@_norm.register_kernel("cpu")
def _norm_cpu(
    x: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, threshold: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from graphkit.kernels import _dropout_loops as loops

    y, mean, rstd = _norm_fake(x, weight, bias, seed, threshold, eps)
    source = to_numpy(x)
    real = source.dtype.type
    affine = (to_numpy(weight), to_numpy(bias), real(eps))
    drop = (_unsigned(seed), np.uint32(threshold), real(_scale(threshold)))
    bounds = even_bounds(x.size(0), num_parts(x.numel()))
    run_ranges(loops.norm_rows, bounds, source, *affine, *drop, y.numpy(), mean.numpy(), rstd.numpy())
    return y, mean, rstd


@_norm.register_fake
def _norm_fake(
    x: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, threshold: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.size(0)), x.new_empty(x.size(0))


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, _, ctx.threshold, _ = inputs
    ctx.save_for_backward(x, weight, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _norm_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    grad_x, grad_weight, grad_bias = _norm_grad(grad, *ctx.saved_tensors, ctx.threshold)
    return grad_x, grad_weight, grad_bias, None, None, None


_norm.register_autograd(_norm_backward, setup_context=_norm_setup)


@torch.library.custom_op("graphkit::norm_dropout_relu_grad", mutates_args=())
def _norm_grad(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, threshold: int
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.where(y <= 0, 0, grad * _scale(threshold))
    hat = (x - mean[:, None]) * rstd[:, None]
    gw = g * weight
    grad_x = gw - gw.mean(1, keepdim=True) - hat * (gw * hat).mean(1, keepdim=True)
    return grad_x * rstd[:, None], (g * hat).sum(0), g.sum(0)


@_norm_grad.register_kernel("cpu")
def _norm_grad_cpu(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, threshold: int
) -> tuple[Tensor, Tensor, Tensor]:
    from graphkit.kernels import _dropout_loops as loops

    rows, width = x.shape
    blocks = -(-rows // BLOCK)
    grad_x, partial = x.new_empty(rows, width), x.new_empty(blocks, 2, width)
    args = [to_numpy(t) for t in (grad, x, weight, y, mean, rstd)]
    bounds = even_bounds(blocks, num_parts(x.numel()))
    scale = args[1].dtype.type(_scale(threshold))
    run_ranges(loops.norm_grad_blocks, bounds, *args, scale, grad_x.numpy(), partial.numpy())
    total = partial.sum(0)
    return grad_x, total[0].clone(), total[1].clone()


@_norm_grad.register_fake
def _norm_grad_fake(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, threshold: int
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(weight)
