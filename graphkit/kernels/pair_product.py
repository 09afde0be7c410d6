r"""The product of two nodes' states, :math:`h_i \odot h_j`, for many pairs in one pass.

Gathering both ends first writes and reads two ``[B, F]`` arrays that nobody wants; here each product is
formed from the two rows directly, and its gradient is added into them directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges
from graphkit.kernels.spmm import to_numpy

__all__ = ["pair_product", "pair_product_torch"]


def pair_product(h: Tensor, pairs: Tensor) -> Tensor:
    r"""Returns :math:`h_i \odot h_j` for each pair, ``[B, F]``.

    Args:
        h: ``[N, F]`` floating point. Half precision is computed by torch's own operations.
        pairs: ``[2, B]`` int64 in ``[0, N)``.

    Raises:
        ValueError: If a shape is wrong or an id out of range (on CPU).
    """
    if h.dim() != 2 or pairs.dim() != 2 or pairs.size(0) != 2:
        raise ValueError(f"h {tuple(h.shape)} must be [N, F] and pairs {tuple(pairs.shape)} [2, B]")
    if h.device.type != "cpu" or h.dtype not in (torch.float32, torch.float64):
        return pair_product_torch(h, pairs)
    return _product(h, pairs)


def pair_product_torch(h: Tensor, pairs: Tensor) -> Tensor:
    """:func:`pair_product` in torch's operations: any device, and what tests compare with."""
    return h.index_select(0, pairs[0]) * h.index_select(0, pairs[1])


@torch.library.custom_op("graphkit::pair_product", mutates_args=())
def _product(h: Tensor, pairs: Tensor) -> Tensor:
    return pair_product_torch(h, pairs)


@_product.register_kernel("cpu")
def _product_cpu(h: Tensor, pairs: Tensor) -> Tensor:
    from graphkit.kernels import _pair_loops as loops

    first, second = to_numpy(pairs[0]), to_numpy(pairs[1])
    if loops.out_of_range(0, first.shape[0], first, second, h.size(0)):
        raise ValueError(
            f"pairs hold ids from {int(pairs.min())} to {int(pairs.max())}; they must lie in [0, {h.size(0)})"
        )
    out = h.new_empty(pairs.size(1), h.size(1))
    bounds = even_bounds(pairs.size(1), num_parts(out.numel()))
    run_ranges(loops.multiply, bounds, to_numpy(h), first, second, out.numpy())
    return out


@_product.register_fake
def _product_fake(h: Tensor, pairs: Tensor) -> Tensor:
    return h.new_empty(pairs.size(1), h.size(1))


@torch.library.custom_op("graphkit::pair_product_grad", mutates_args=())
def _grad(h: Tensor, pairs: Tensor, grad: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out.index_add_(0, pairs[0], grad * h.index_select(0, pairs[1]))
    return out.index_add_(0, pairs[1], grad * h.index_select(0, pairs[0]))


@_grad.register_kernel("cpu")
def _grad_cpu(h: Tensor, pairs: Tensor, grad: Tensor) -> Tensor:
    from graphkit.kernels import _pair_loops as loops

    out = h.new_zeros(h.shape)
    # Threads share out columns, not pairs: every sum is formed in one order, whatever their number.
    bounds = even_bounds(h.size(1), min(num_parts(grad.numel()), max(1, h.size(1) // 16)))
    ends = to_numpy(pairs[0]), to_numpy(pairs[1])
    run_ranges(loops.scatter_back, bounds, to_numpy(h), *ends, to_numpy(grad), out.numpy())
    return out


@_grad.register_fake
def _grad_fake(h: Tensor, pairs: Tensor, grad: Tensor) -> Tensor:
    return h.new_empty(h.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    h, pairs = ctx.saved_tensors
    return _grad(h, pairs, grad), None


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of a gradient, rarely wanted: in torch's operations."""
    h, pairs, first = ctx.saved_tensors
    at_i, at_j = grad.index_select(0, pairs[0]), grad.index_select(0, pairs[1])
    to_h = torch.zeros_like(h).index_add(0, pairs[1], first * at_i).index_add(0, pairs[0], first * at_j)
    to_first = at_i * h.index_select(0, pairs[1]) + at_j * h.index_select(0, pairs[0])
    return to_h, None, to_first


_product.register_autograd(_backward, setup_context=_setup)
_grad.register_autograd(_second_backward, setup_context=_setup)
