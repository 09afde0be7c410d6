"""Rows of a tensor train, computed from shared prefixes without keeping a slice a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.parallel import even_bounds, num_parts, run_ranges
from graphkit.kernels.spmm import to_numpy

__all__ = ["tt_lookup", "tt_lookup_torch"]

_HALF = (torch.float16, torch.bfloat16)

# Gradients are summed in parts, each with a buffer of the size of the cores: at most so many parts, of at
# least so many elementary steps, and so many for each value of the buffer; with so many values in all
# buffers. None of it depends on the number of threads.
MAX_SEGMENTS, SEGMENT_WORK, WORK_PER_VALUE, SEGMENT_VALUES = 16, 1 << 22, 16, 1 << 24


def tt_lookup(cores: Sequence[Tensor], position: Tensor) -> Tensor:
    r"""Computes rows of a tensor train, :math:`y_b = G_1[i_1] G_2[i_2] \cdots G_d[i_d]`, flattened.

    On CPU positions are sorted, and the product of the first ``d - 1`` factors stays in cache while
    consecutive rows share it; the backward pass computes it anew.

    Args:
        cores: ``d >= 2`` of shape ``(p_k, r_{k-1}, q_k, r_k)`` with :math:`r_0 = r_d = 1`, of one floating
            point dtype. Half precision is computed in float32 and rounded once.
        position: ``[B]`` int64, in mixed radix with digits :math:`i_k < p_k`, the first the most significant;
            repetitions allowed.

    Returns:
        ``[B, q_1 ... q_d]``, differentiable (once) in the cores. Gradients are summed in an order that
        depends on sizes alone, not on the number of threads.

    Raises:
        ValueError: If shapes or dtypes don't fit, or (on CPU) a position is out of range.
    """
    _check(cores, position)
    dtype = cores[0].dtype
    work = [core.float() if dtype in _HALF else core for core in cores]
    rows: Tensor = _lookup(work, position)
    return rows.to(dtype)


def tt_lookup_torch(cores: Sequence[Tensor], position: Tensor) -> Tensor:
    """:func:`tt_lookup` in plain torch operations (float32 or float64): every row by itself."""
    digits = []
    for core in reversed(cores):
        digits.append(position % core.size(0))
        position = position.div(core.size(0), rounding_mode="floor")
    rows = cores[0][digits[-1]].squeeze(1)
    for core, digit in zip(cores[1:], digits[-2::-1], strict=True):
        columns = rows.size(1) * core.size(2)
        rows = torch.bmm(rows, core[digit].flatten(2)).reshape(-1, columns, core.size(3))
    return rows.flatten(1)


def _check(cores: Sequence[Tensor], position: Tensor) -> None:
    if len(cores) < 2:
        raise ValueError(f"cores are {len(cores)}; a tensor train has at least 2")
    right = 1
    for k, core in enumerate(cores):
        if core.dim() != 4 or core.size(1) != right or core.dtype != cores[0].dtype:
            raise ValueError(
                f"core {k} is {core.dtype} {tuple(core.shape)}; "
                f"it must be {cores[0].dtype} (p, {right}, q, r)"
            )
        right = core.size(3)
    if right != 1 or not cores[0].is_floating_point():
        raise ValueError(
            f"the last core is {cores[-1].dtype} with right rank {right}; it must be floating, 1"
        )
    if position.dim() != 1 or position.dtype != torch.int64:
        raise ValueError(f"position is {position.dtype} {tuple(position.shape)}; it must be int64 [B]")


@torch.library.custom_op("graphkit::tt_lookup", mutates_args=())
def _lookup(cores: Sequence[Tensor], position: Tensor) -> Tensor:
    return tt_lookup_torch(cores, position)


@_lookup.register_kernel("cpu")
def _lookup_cpu(cores: Sequence[Tensor], position: Tensor) -> Tensor:
    from graphkit.kernels import _tt_loops as loops

    width = math.prod(core.size(2) for core in cores)
    out = cores[0].new_empty(position.numel(), width)
    meta, data = _layout(cores)
    keys, place = _sorted(cores, meta, position)
    bounds = even_bounds(keys.shape[0], num_parts(_work(cores, keys.shape[0])))
    run_ranges(loops.lookup, bounds, meta, data, keys, place, out.numpy().reshape(-1))
    return out


@_lookup.register_fake
def _lookup_fake(cores: Sequence[Tensor], position: Tensor) -> Tensor:
    return cores[0].new_empty(position.numel(), math.prod(core.size(2) for core in cores))


@torch.library.custom_op("graphkit::tt_lookup_backward", mutates_args=())
def _lookup_backward(cores: Sequence[Tensor], position: Tensor, grad: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [core.detach().requires_grad_() for core in cores]
        sums = torch.autograd.grad(tt_lookup_torch(leaves, position), leaves, grad)
    return [part.contiguous() for part in sums]


@_lookup_backward.register_kernel("cpu")
def _lookup_backward_cpu(cores: Sequence[Tensor], position: Tensor, grad: Tensor) -> list[Tensor]:
    from graphkit.kernels import _tt_loops as loops

    meta, data = _layout(cores)
    # Between the first and the last core, blocks are needed both ways round.
    inner = [core.detach().transpose(1, 2).transpose(2, 3).reshape(-1) for core in cores[1:-1]]
    turned = torch.cat([cores[0].detach().reshape(-1), *inner]).numpy()
    keys, place = _sorted(cores, meta, position)
    work = _work(cores, keys.shape[0])
    least = max(SEGMENT_WORK, WORK_PER_VALUE * data.shape[0])
    segments = max(1, min(MAX_SEGMENTS, work // least, SEGMENT_VALUES // data.shape[0]))
    bounds = np.array(even_bounds(keys.shape[0], segments))
    sums = np.zeros((segments, data.shape[0]), data.dtype)
    ranges = even_bounds(segments, min(segments, num_parts(work)))
    slopes = to_numpy(grad).reshape(-1)
    run_ranges(loops.lookup_backward, ranges, bounds, meta, data, turned, keys, place, slopes, sums)
    for part in sums[1:]:
        sums[0] += part
    return _unlay(cores, torch.from_numpy(sums[0]))


@_lookup_backward.register_fake
def _lookup_backward_fake(cores: Sequence[Tensor], position: Tensor, grad: Tensor) -> list[Tensor]:
    return [core.new_empty(core.shape) for core in cores]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    cores, position = inputs
    ctx.save_for_backward(position, *cores)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, None]:
    position, *cores = ctx.saved_tensors
    return _lookup_backward(cores, position, grad.contiguous()), None


_lookup.register_autograd(_differentiate, setup_context=_setup)


def _work(cores: Sequence[Tensor], count: int) -> int:
    """Returns about how many multiplications ``count`` rows take beyond their prefixes."""
    return count * math.prod(core.size(2) for core in cores) * cores[-1].size(1)


def _layout(cores: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Returns sizes and values as the compiled loops read them."""
    meta, start, columns, stack = [], 0, 1, 0
    for core in cores:
        p, r, q, s = core.shape
        columns *= q
        meta.append((p, r, q, s, start, columns, stack))
        start += core.numel()
        stack += columns * s
    parts = [core.detach().reshape(-1) for core in cores[:-1]]
    parts.append(cores[-1].detach().squeeze(3).transpose(1, 2).reshape(-1))
    return np.array(meta, np.uint64), torch.cat(parts).numpy()


def _unlay(cores: Sequence[Tensor], flat: Tensor) -> list[Tensor]:
    parts = list(flat.split([core.numel() for core in cores]))
    p, r, q, _ = cores[-1].shape
    parts[-1] = parts[-1].view(p, q, r).transpose(1, 2)
    # Results of an op share no memory with each other.
    own = torch.contiguous_format
    return [
        part.reshape(core.shape).clone(memory_format=own) for part, core in zip(parts, cores, strict=True)
    ]


def _sorted(cores: Sequence[Tensor], meta: np.ndarray, position: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns sorted keys of positions and where each came from; refuses positions out of range."""
    from graphkit.kernels import _tt_loops as loops

    capacity = math.prod(core.size(0) for core in cores)
    if position.numel():
        low, high = (int(v) for v in torch.aminmax(position))
        if low < 0 or high >= capacity:
            raise ValueError(f"position holds values from {low} to {high}; they must lie in [0, {capacity})")
    keys = loops.sorting_keys(to_numpy(position), meta)
    ordered, place = loops.radix_sort(keys, max(1, (capacity - 1).bit_length()))
    return ordered, place
