"""Common neighbours of node pairs: as lists, as pooled sums, as counts.

The usual way gathers both neighbourhoods of every pair into one long list of keys and searches each key
in all the others: ``O(S log S)`` for ``S = sum_b (d_i + d_j)``. Here pairs are ordered by one end, chosen so
that few nodes serve as many pairs as possible; where such a hub pays for it, its neighbours are marked in a
mask of N bits and the other end's are looked up, else two sorted lists are merged or searched. That takes
``O(sum_b min(d_i, d_j) + sum over distinct hubs of d)`` and no memory beyond the result and the mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels.parallel import num_parts, run_ranges, weighted_bounds
from graphkit.kernels.spmm import (
    check_structure,
    spmm,
    spmm_torch,
    to_numpy,
    transpose_csr,
    transpose_csr_torch,
)

__all__ = [
    "Overlap",
    "common_neighbors",
    "common_neighbors_torch",
    "overlap_count",
    "overlap_count_torch",
    "overlap_pool",
    "overlap_pool_torch",
]


class Overlap(NamedTuple):
    """Neighbour sets of ``B`` pairs ``(i, j)`` as sorted rows; the differences are None unless asked for.

    Attributes:
        cn_ptr: ``[B + 1]`` int64; ``N(i) & N(j)`` of pair ``b`` is ``cn[cn_ptr[b]:cn_ptr[b + 1]]``.
        cn: Common neighbours, int32, ascending for each pair.
        only_i_ptr: ``[B + 1]`` int64, the same for ``N(i) - N(j)``.
        only_i: int32.
        only_j_ptr: ``[B + 1]`` int64, the same for ``N(j) - N(i)``.
        only_j: int32.
    """

    cn_ptr: Tensor
    cn: Tensor
    only_i_ptr: Tensor | None = None
    only_i: Tensor | None = None
    only_j_ptr: Tensor | None = None
    only_j: Tensor | None = None


def common_neighbors(rowptr: Tensor, col: Tensor, pairs: Tensor, differences: bool = False) -> Overlap:
    """Lists the common neighbours of every pair, and on request what only one of the ends has.

    Args:
        rowptr: ``[N + 1]`` int64 row pointers.
        col: ``[E]`` int32 in ``[0, N)``, ascending and distinct within a row (not checked).
        pairs: ``[2, B]`` int64. Both ends may be one node: its neighbours are then common. Pairs that share a
            node, at either end and consecutive or not, share its mask.
        differences: Whether to list ``N(i) - N(j)`` and ``N(j) - N(i)`` as well.

    Raises:
        ValueError: If shapes or dtypes don't fit or a pair holds an id outside ``[0, N)``.
    """
    _check_pairs(rowptr, col, pairs)
    cn_ptr, cn = _common_neighbors(rowptr, col, pairs)
    if not differences:
        return Overlap(cn_ptr, cn)
    return Overlap(cn_ptr, cn, *_differences(rowptr, col, pairs, cn_ptr, cn))


def overlap_pool(rowptr: Tensor, col: Tensor, pairs: Tensor, x: Tensor) -> Tensor:
    """Sums features over common neighbours: ``z[b] = sum_{u in N(i) & N(j)} x[u]`` for pair ``b = (i, j)``.

    The lists are never stored; the gradient finds them again and adds in a fixed order.

    Args:
        rowptr: ``[N + 1]`` int64 row pointers.
        col: ``[E]`` int32 in ``[0, N)``, ascending and distinct within a row (not checked).
        pairs: ``[2, B]`` int64.
        x: ``[N, F]`` floating point. Half precision is computed in float32 and rounded once.

    Returns:
        ``[B, F]`` in the dtype of ``x``; zero where nothing is shared.

    Raises:
        ValueError: If shapes or dtypes don't fit or a pair holds an id outside ``[0, N)``.
    """
    _check_pairs(rowptr, col, pairs)
    if x.dim() != 2 or x.size(0) != rowptr.numel() - 1 or not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; it must be floating point [{rowptr.numel() - 1}, F]"
        )
    work = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    z: Tensor = _pool(rowptr, col, pairs, work)
    return z.to(x.dtype)


def overlap_count(rowptr: Tensor, col: Tensor, pairs: Tensor, weight: Tensor | None = None) -> Tensor:
    """Counts common neighbours or adds up their weights: ``s[b] = sum_{u in N(i) & N(j)} weight[u]``.

    ``weight = 1 / log d`` gives the Adamic-Adar index, ``1 / d`` resource allocation.

    Args:
        rowptr: ``[N + 1]`` int64 row pointers.
        col: ``[E]`` int32 in ``[0, N)``, ascending and distinct within a row (not checked).
        pairs: ``[2, B]`` int64.
        weight: ``[N]`` floating point, or None for ones. Gradients flow to it.

    Returns:
        ``[B]`` in the dtype of ``weight``, or torch's default dtype.

    Raises:
        ValueError: If shapes or dtypes don't fit or a pair holds an id outside ``[0, N)``.
    """
    if weight is None:
        _check_pairs(rowptr, col, pairs)
        count: Tensor = _count(rowptr, col, pairs)
        return count.to(torch.get_default_dtype())
    if weight.dim() != 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be [N]")
    return overlap_pool(rowptr, col, pairs, weight[:, None])[:, 0]


def common_neighbors_torch(rowptr: Tensor, col: Tensor, pairs: Tensor, differences: bool = False) -> Overlap:
    """:func:`common_neighbors` in plain torch: expand the smaller neighbourhood, search it in all entries."""
    nodes = max(rowptr.numel() - 1, 1)
    first, second = pairs
    if not differences:
        degree = rowptr.diff()
        swap = degree[second] < degree[first]
        first, second = torch.where(swap, second, first), torch.where(swap, first, second)
    row = torch.repeat_interleave(torch.arange(rowptr.numel() - 1, device=col.device), rowptr.diff())
    known = row * nodes + col.long()

    def split(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = rowptr[a + 1] - rowptr[a]
        owner = torch.repeat_interleave(torch.arange(a.numel(), device=col.device), size)
        before = size.cumsum(0) - size
        ids = col[torch.arange(owner.numel(), device=col.device) + (rowptr[a] - before)[owner]]
        key = b[owner] * nodes + ids.long()
        at = torch.searchsorted(known, key).clamp_(max=max(known.numel() - 1, 0))
        return owner, ids, known[at] == key

    def rows(owner: Tensor, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        return _pointers(torch.bincount(owner[keep], minlength=pairs.size(1))), ids[keep]

    owner, ids, shared = split(first, second)
    common = rows(owner, ids, shared)
    if not differences:
        return Overlap(*common)
    only_i = rows(owner, ids, ~shared)
    owner, ids, shared = split(second, first)
    return Overlap(*common, *only_i, *rows(owner, ids, ~shared))


def overlap_pool_torch(rowptr: Tensor, col: Tensor, pairs: Tensor, x: Tensor) -> Tensor:
    """:func:`overlap_pool` in plain torch operations."""
    cn_ptr, cn, *_ = common_neighbors_torch(rowptr, col, pairs)
    return spmm_torch(cn_ptr, cn, None, x)


def overlap_count_torch(rowptr: Tensor, col: Tensor, pairs: Tensor, weight: Tensor | None = None) -> Tensor:
    """:func:`overlap_count` in plain torch operations."""
    if weight is None:
        return common_neighbors_torch(rowptr, col, pairs).cn_ptr.diff().to(torch.get_default_dtype())
    return overlap_pool_torch(rowptr, col, pairs, weight[:, None])[:, 0]


@torch.library.custom_op("graphkit::common_neighbors", mutates_args=())
def _common_neighbors(rowptr: Tensor, col: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    cn_ptr, cn, *_ = common_neighbors_torch(rowptr, col, pairs)
    return cn_ptr, cn


@_common_neighbors.register_kernel("cpu")
def _common_neighbors_cpu(rowptr: Tensor, col: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    from graphkit.kernels import _overlap_loops as loops

    plan = _Plan(rowptr, col, pairs)
    run_ranges(loops.count_range, plan.bounds, *plan.structure, plan.length, plan.widest)
    cn_ptr = _pointers(torch.from_numpy(plan.length))
    cn = col.new_empty(int(cn_ptr[-1]))
    # Looking twice beats keeping lists of unknown size: counting runs on vectors, and filling stops early.
    run_ranges(loops.fill_range, plan.bounds, *plan.structure, plan.length, cn_ptr.numpy(), cn.numpy())
    return cn_ptr, cn


@_common_neighbors.register_fake
def _common_neighbors_fake(rowptr: Tensor, col: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return rowptr.new_empty(pairs.size(1) + 1), col.new_empty(size)


@torch.library.custom_op("graphkit::neighbor_differences", mutates_args=())
def _differences(
    rowptr: Tensor, col: Tensor, pairs: Tensor, cn_ptr: Tensor, cn: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    overlap = common_neighbors_torch(rowptr, col, pairs, differences=True)
    assert overlap.only_i_ptr is not None
    assert overlap.only_i is not None
    assert overlap.only_j_ptr is not None
    assert overlap.only_j is not None
    return overlap.only_i_ptr, overlap.only_i, overlap.only_j_ptr, overlap.only_j


@_differences.register_kernel("cpu")
def _differences_cpu(
    rowptr: Tensor, col: Tensor, pairs: Tensor, cn_ptr: Tensor, cn: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from graphkit.kernels import _overlap_loops as loops

    shared, out = cn_ptr.diff(), []
    for nodes in pairs:
        ptr = _pointers(rowptr[nodes + 1] - rowptr[nodes] - shared)
        ids = col.new_empty(int(ptr[-1]))
        bounds = weighted_bounds(ptr.numpy(), num_parts(2 * ids.numel()))
        arrays = [to_numpy(t) for t in (nodes, rowptr, col, cn_ptr, cn, ptr)]
        run_ranges(loops.complement, bounds, *arrays, ids.numpy())
        out += [ptr, ids]
    return out[0], out[1], out[2], out[3]


@_differences.register_fake
def _differences_fake(
    rowptr: Tensor, col: Tensor, pairs: Tensor, cn_ptr: Tensor, cn: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ctx = torch.library.get_ctx()
    ptr = rowptr.new_empty(pairs.size(1) + 1)
    only_i, only_j = col.new_empty(ctx.new_dynamic_size()), col.new_empty(ctx.new_dynamic_size())
    return ptr, only_i, torch.empty_like(ptr), only_j


@torch.library.custom_op("graphkit::overlap_count", mutates_args=())
def _count(rowptr: Tensor, col: Tensor, pairs: Tensor) -> Tensor:
    return common_neighbors_torch(rowptr, col, pairs).cn_ptr.diff()


@_count.register_kernel("cpu")
def _count_cpu(rowptr: Tensor, col: Tensor, pairs: Tensor) -> Tensor:
    from graphkit.kernels import _overlap_loops as loops

    plan = _Plan(rowptr, col, pairs)
    run_ranges(loops.count_range, plan.bounds, *plan.structure, plan.length, plan.widest)
    return torch.from_numpy(plan.length)


@_count.register_fake
def _count_fake(rowptr: Tensor, col: Tensor, pairs: Tensor) -> Tensor:
    return rowptr.new_empty(pairs.size(1))


@torch.library.custom_op("graphkit::overlap_pool", mutates_args=())
def _pool(rowptr: Tensor, col: Tensor, pairs: Tensor, x: Tensor) -> Tensor:
    return overlap_pool_torch(rowptr, col, pairs, x)


@_pool.register_kernel("cpu")
def _pool_cpu(rowptr: Tensor, col: Tensor, pairs: Tensor, x: Tensor) -> Tensor:
    from graphkit.kernels import _overlap_loops as loops

    plan = _Plan(rowptr, col, pairs)
    z = x.new_empty(pairs.size(1), x.size(1))
    args = (*plan.structure, plan.length, plan.widest, to_numpy(x), z.numpy())
    run_ranges(loops.pool_range, plan.bounds, *args)
    return z


@_pool.register_fake
def _pool_fake(rowptr: Tensor, col: Tensor, pairs: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(pairs.size(1), x.size(1))


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, None, None, _pool_grad(*ctx.saved_tensors, grad)


_pool.register_autograd(_pool_backward, setup_context=_pool_setup)


# One op for the whole gradient: its lists have a size that only the data know, which torch.compile, tracing
# the backward pass, need not see.
@torch.library.custom_op("graphkit::overlap_pool_grad", mutates_args=())
def _pool_grad(rowptr: Tensor, col: Tensor, pairs: Tensor, grad: Tensor) -> Tensor:
    cn_ptr, cn, *_ = common_neighbors_torch(rowptr, col, pairs)
    target_ptr, target, _ = transpose_csr_torch(cn_ptr, cn, rowptr.numel() - 1)
    return spmm_torch(target_ptr, target, None, grad)


@_pool_grad.register_kernel("cpu")
def _pool_grad_cpu(rowptr: Tensor, col: Tensor, pairs: Tensor, grad: Tensor) -> Tensor:
    cn_ptr, cn = _common_neighbors_cpu(rowptr, col, pairs)
    target_ptr, target, _ = transpose_csr(cn_ptr, cn, rowptr.numel() - 1)
    return spmm(target_ptr, target, None, grad.detach())


@_pool_grad.register_fake
def _pool_grad_fake(rowptr: Tensor, col: Tensor, pairs: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty(rowptr.numel() - 1, grad.size(1))


def _pool_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, None, None, _pool(*ctx.saved_tensors, grad)


_pool_grad.register_autograd(_pool_grad_backward, setup_context=_pool_setup)


class _Plan:
    """The order in which targets are taken, and how they are shared out among threads."""

    def __init__(self, rowptr: Tensor, col: Tensor, pairs: Tensor) -> None:
        from graphkit.kernels import _overlap_loops as loops

        ptr, ids, ends = to_numpy(rowptr), to_numpy(col), to_numpy(pairs)
        count, nodes = ends.shape[1], ptr.shape[0] - 1
        key, probe = np.empty(count, np.int64), np.empty(count, np.int32)
        # np.zeros takes untouched pages from the system: few targets of a huge graph stay cheap.
        self.widest: int = loops.plan(ptr, ends[0], ends[1], np.zeros(nodes, np.int32), key, probe)
        if self.widest < 0:
            raise ValueError(
                f"pairs holds ids from {ends.min()} to {ends.max()}; they must lie in [0, {nodes})"
            )
        key.sort()
        begin, work = np.empty(count, np.int64), np.empty(count + 1, np.int64)
        loops.arrange(key, probe, ptr, begin, work)
        self.length: np.ndarray = np.empty(count, np.int64)
        self.structure = (key, begin, work, ptr, ids)
        self.bounds = weighted_bounds(work, num_parts(2 * int(work[-1])))


def _pointers(length: Tensor) -> Tensor:
    """Returns ``[B + 1]`` row pointers of rows of the given lengths."""
    pointers = length.new_zeros(length.numel() + 1)
    torch.cumsum(length, 0, out=pointers[1:])
    return pointers


def _check_pairs(rowptr: Tensor, col: Tensor, pairs: Tensor) -> None:
    check_structure(rowptr, col)
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.size(0) != 2:
        raise ValueError(f"pairs is {pairs.dtype} {tuple(pairs.shape)}; it must be int64 [2, B]")
