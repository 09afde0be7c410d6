r"""Ways to compute rows of a tensor train in torch: whole table, shared prefixes, row by row.

Cores are ``(p_k, r_{k-1}, q_k, r_k)``, so ``core[i]`` is the block :math:`G_k[i]`. With
:math:`X_1 = G_1[i_1]` and :math:`X_k = X_{k-1} G_k[i_k]` (``[q_1...q_k, r_k]``), row ``i`` is
:math:`X_d`, flattened. Of a lookup only positions and cores are kept for the backward pass, which computes
the products anew: with :math:`dX_d` the gradient of a row,

.. math:: dG_k[i_k] \mathrel{+}= X_{k-1}^\top dX_k, \qquad dX_{k-1} = dX_k G_k[i_k]^\top.

Which way is cheapest depends on how many rows share a prefix :math:`(i_1, ..., i_{d-1})`; measurements are
in ``benchmarks/README.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Engine", "TorchEngine", "tt_rows"]

TorchEngine = Literal["full", "prefix", "gather"]
Engine = Literal["auto", "full", "prefix", "gather", "fused"]
Cores = Sequence[Tensor]

# Temporaries of one chunk stay below this many values (64 MB in float32), so that they are reused.
CHUNK_VALUES = 1 << 24


def tt_rows(cores: Cores, position: Tensor | None, num_rows: int, engine: TorchEngine) -> Tensor:
    """Computes rows of the table, differentiable (once) in the cores.

    Args:
        cores: ``(p_k, r_{k-1}, q_k, r_k)`` each, floating point. Half precision is computed in float32.
        position: ``[B]`` int64 positions, repetitions allowed; ``None`` for the first ``num_rows``.
        num_rows: ``B``.
        engine: ``full``, ``prefix`` or ``gather``.

    Returns:
        ``[B, D]``. Its gradient's sums are taken in a fixed order.
    """
    dtype = cores[0].dtype
    if dtype in (torch.float16, torch.bfloat16):
        cores = [core.float() for core in cores]
    rows: Tensor = _Rows.apply(engine, position, num_rows, *cores)
    return rows.to(dtype)


class _Rows(torch.autograd.Function):
    """Rows of a tensor train; keeps positions and cores alone."""

    @staticmethod
    def forward(
        ctx: Any, engine: TorchEngine, position: Tensor | None, num_rows: int, *cores: Tensor
    ) -> Tensor:
        ctx.engine, ctx.num_rows = engine, num_rows
        ctx.save_for_backward(position, *cores)
        with torch.autocast(cores[0].device.type, enabled=False):
            return _forward(engine, cores, position, num_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        position, *cores = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return None, None, None, *_backward(ctx.engine, cores, position, ctx.num_rows, grad.contiguous())


def _forward(engine: TorchEngine, cores: Cores, position: Tensor | None, num_rows: int) -> Tensor:
    width = math.prod(core.size(2) for core in cores)
    if num_rows == 0:
        return cores[0].new_zeros(0, width)
    if engine == "full":
        return _table_rows(cores, position, num_rows)
    position = _all_positions(cores, position, num_rows)
    distinct, inverse = torch.unique(position, return_inverse=True)
    products = _share(cores, distinct) if engine == "prefix" else None
    out = cores[0].new_empty(distinct.numel(), width)
    for chunk in _chunks(cores, distinct.numel()):
        if products is None:
            out[chunk] = _chain(cores, _digits(cores, distinct[chunk]))[-1].flatten(1)
        else:
            left = products[-1].value[products[-1].parent_of(distinct[chunk])]
            out[chunk] = _grow(left, cores[-1][distinct[chunk] % cores[-1].size(0)]).flatten(1)
    return out if _is_sequence(inverse) else out[inverse]


def _backward(
    engine: TorchEngine, cores: Cores, position: Tensor | None, num_rows: int, grad: Tensor
) -> list[Tensor]:
    grads = [torch.zeros_like(core) for core in cores]
    if num_rows == 0:
        return grads
    if engine == "full":
        _table_backward(cores, position, grad, grads)
        return grads
    position = _all_positions(cores, position, num_rows)
    distinct, inverse = torch.unique(position, return_inverse=True)
    if not _is_sequence(inverse):
        grad = _add_rows(grad.new_zeros(distinct.numel(), grad.size(1)), inverse, grad)
    if engine == "prefix":
        _share_backward(cores, distinct, grad, grads)
    else:
        for chunk in _chunks(cores, distinct.numel()):
            digits = _digits(cores, distinct[chunk])
            _chain_backward(cores, digits, _chain(cores, digits), grad[chunk], grads)
    return grads


# --- one row at a time -------------------------------------------------------------------------------------


def _digits(cores: Cores, position: Tensor) -> list[Tensor]:
    """Splits positions ``[B]`` into digits, ``[B]`` each, the most significant first."""
    digits = []
    for core in reversed(cores):
        digits.append(position % core.size(0))
        position = position.div(core.size(0), rounding_mode="floor")
    return digits[::-1]


def _grow(left: Tensor, blocks: Tensor) -> Tensor:
    """Multiplies ``[B, J, r]`` by blocks ``[B, r, q, s]`` and returns ``[B, J q, s]``."""
    return torch.bmm(left, blocks.flatten(2)).reshape(left.size(0), -1, blocks.size(3))


def _chain(cores: Cores, digits: list[Tensor]) -> list[Tensor]:
    """Returns the products ``X_1, ..., X_d`` of every row, ``[B, q_1...q_k, r_k]``."""
    products = [cores[0][digits[0]].squeeze(1)]
    for core, digit in zip(cores[1:], digits[1:], strict=True):
        products.append(_grow(products[-1], core[digit]))
    return products


def _chain_backward(
    cores: Cores, digits: list[Tensor], products: list[Tensor], grad: Tensor, grads: list[Tensor]
) -> None:
    """Adds the gradients of ``[B]`` rows, each by itself, to ``grads``."""
    for k in range(len(cores) - 1, 0, -1):
        r, q, s = cores[k].shape[1:]
        grad = grad.reshape(grad.size(0), -1, q * s)
        blocks = torch.bmm(products[k - 1].transpose(1, 2), grad)  # [B, r, q s]
        _add_rows(grads[k], digits[k], blocks.view(-1, r, q, s))
        grad = torch.bmm(grad, cores[k][digits[k]].flatten(2).transpose(1, 2))
    _add_rows(grads[0], digits[0], grad.reshape(-1, *cores[0].shape[1:]))


# --- rows with the same leading digits ---------------------------------------------------------------------


class _Prefixes(NamedTuple):
    """Products over the distinct prefixes of some positions.

    Attributes:
        base: Row factor of the core that follows, by which a position is divided to give its prefix.
        prefix: ``[U]`` ascending, or ``None`` where ``value`` holds all prefixes there are.
        value: ``[U, J, r]``.
    """

    base: int
    prefix: Tensor | None
    value: Tensor

    def parent_of(self, position: Tensor) -> Tensor:
        """Returns where in ``value`` the prefix of each position stands."""
        prefix = position.div(self.base, rounding_mode="floor")
        return prefix if self.prefix is None else torch.searchsorted(self.prefix, prefix)


def _share(cores: Cores, position: Tensor) -> list[_Prefixes]:
    """Computes the products ``X_1, ..., X_{d-1}`` once for every distinct prefix of ``[B]`` positions.

    Where more than half of all prefixes of a length occur, those of that length and below are computed for
    all, by matrix products without gathering.
    """
    found: list[tuple[int, Tensor]] = []
    prefix = position
    for k in range(len(cores) - 1, 0, -1):
        base = cores[k].size(0)
        prefix = torch.unique_consecutive(prefix.div(base, rounding_mode="floor"))
        found.append((base, prefix))
    levels: list[_Prefixes] = []
    value = None
    for k, (base, prefix) in enumerate(reversed(found)):
        whole = 2 * prefix.numel() > math.prod(core.size(0) for core in cores[: k + 1])
        if value is None:
            value = cores[0].squeeze(1) if whole else cores[0][prefix].squeeze(1)
        elif whole and levels[-1].prefix is None:
            value = _grow_all(value, cores[k])
        else:
            value = _grow(value[levels[-1].parent_of(prefix)], cores[k][prefix % cores[k].size(0)])
            whole = False
        levels.append(_Prefixes(base, None if whole else prefix, value))
    return levels


def _share_backward(cores: Cores, position: Tensor, grad: Tensor, grads: list[Tensor]) -> None:
    """Adds the gradients of rows at ascending distinct positions to ``grads``, prefix by prefix."""
    levels = _share(cores, position)
    children: Tensor | None = position
    for k in range(len(cores) - 1, 0, -1):
        core, level = cores[k], levels[k - 1]
        _, r, q, s = core.shape
        if children is None:
            below = _grow_all_backward(level.value, core, grad, grads[k])
        else:
            below = torch.zeros_like(level.value)
            for chunk in _chunks(cores[: k + 1], children.numel()):
                part = grad[chunk].reshape(-1, level.value.size(1), q * s)
                parent, digit = level.parent_of(children[chunk]), children[chunk] % core.size(0)
                blocks = torch.bmm(level.value[parent].transpose(1, 2), part)
                _add_rows(grads[k], digit, blocks.view(-1, r, q, s))
                _add_rows(below, parent, torch.bmm(part, core[digit].flatten(2).transpose(1, 2)))
        grad, children = below, level.prefix
    first = grad.reshape(-1, *cores[0].shape[1:])
    if children is None:
        grads[0] += first
    else:
        _add_rows(grads[0], children, first)


# --- all rows ----------------------------------------------------------------------------------------------


def _grow_all(left: Tensor, core: Tensor) -> Tensor:
    """Extends all products ``[I, J, r]`` by all digits of a core, to ``[I p, J q, s]``."""
    p, r, q, s = core.shape
    flat = left.reshape(-1, r) @ core.transpose(0, 1).reshape(r, p * q * s)
    return flat.view(*left.shape[:2], p, q * s).transpose(1, 2).reshape(-1, left.size(1) * q, s)


def _grow_all_backward(left: Tensor, core: Tensor, grad: Tensor, core_grad: Tensor) -> Tensor:
    """Adds the gradient of the core of :func:`_grow_all` to ``core_grad`` and returns that of ``left``."""
    p, r, q, s = core.shape
    flat = grad.view(left.size(0), p, left.size(1), q * s).transpose(1, 2).reshape(-1, p * q * s)
    core_grad += (left.reshape(-1, r).t() @ flat).view(r, p, q, s).transpose(0, 1)
    return (flat @ core.transpose(0, 1).reshape(r, p * q * s).t()).view_as(left)


class _Block(NamedTuple):
    """A range of first digits, as large as temporaries allow, and the rows of a lookup that lie in it."""

    cores: list[Tensor]
    first_digits: slice
    rows: Tensor | slice  # of the output
    local: Tensor | slice  # positions in the block


def _blocks(cores: Cores, position: Tensor | None, num_rows: int) -> Iterator[_Block]:
    below = math.prod(core.size(0) for core in cores[1:])
    width = math.prod(core.size(2) for core in cores)
    digits = max(1, CHUNK_VALUES // (below * width))
    total = cores[0].size(0)
    order = sorted_ = None
    if position is not None and digits < total:
        sorted_, order = torch.sort(position, stable=True)
    for start in range(0, total, digits):
        stop = min(start + digits, total)
        inside: list[Tensor] = [cores[0][start:stop], *cores[1:]]
        first = slice(start, stop)
        if position is None:
            stop_row = min(stop * below, num_rows)
            if start * below < stop_row:
                yield _Block(
                    inside, first, slice(start * below, stop_row), slice(0, stop_row - start * below)
                )
        elif order is None or sorted_ is None:
            yield _Block(inside, first, slice(None), position)
        else:
            bounds = torch.tensor([start * below, stop * below], device=position.device)
            low, high = torch.searchsorted(sorted_, bounds).tolist()
            if low < high:
                yield _Block(inside, first, order[low:high], sorted_[low:high] - start * below)


def _whole(cores: Cores) -> list[Tensor]:
    """Returns the products ``X_1, ..., X_{d-1}`` for all prefixes."""
    products = [cores[0].squeeze(1)]
    for core in cores[1:-1]:
        products.append(_grow_all(products[-1], core))
    return products


def _table_rows(cores: Cores, position: Tensor | None, num_rows: int) -> Tensor:
    out = None
    for block in _blocks(cores, position, num_rows):
        rows = _grow_all(_whole(block.cores)[-1], block.cores[-1]).flatten(1)[block.local]
        if rows.size(0) == num_rows and isinstance(block.rows, slice):
            return rows
        if out is None:
            out = rows.new_empty(num_rows, rows.size(1))
        out[block.rows] = rows
    assert out is not None, "a lookup of no rows doesn't come here"
    return out


def _table_backward(cores: Cores, position: Tensor | None, grad: Tensor, grads: list[Tensor]) -> None:
    for block in _blocks(cores, position, grad.size(0)):
        products = _whole(block.cores)
        size = math.prod(core.size(0) for core in block.cores)
        spread = grad.new_zeros(size, grad.size(1))
        if isinstance(block.local, slice):
            spread[block.local] = grad[block.rows]
        else:
            _add_rows(spread, block.local, grad[block.rows])
        for k in range(len(cores) - 1, 0, -1):
            spread = _grow_all_backward(products[k - 1], block.cores[k], spread, grads[k])
        grads[0][block.first_digits] += spread.view_as(block.cores[0])


# --- small parts -------------------------------------------------------------------------------------------


def _all_positions(cores: Cores, position: Tensor | None, num_rows: int) -> Tensor:
    return torch.arange(num_rows, device=cores[0].device) if position is None else position


def _is_sequence(index: Tensor) -> bool:
    """Tells whether the index is 0, 1, 2, ...: then nothing need be gathered."""
    return torch.equal(index, torch.arange(index.numel(), device=index.device))


def _chunks(cores: Cores, count: int) -> Iterator[slice]:
    """Cuts ``count`` rows so that a chunk's products and blocks stay within :data:`CHUNK_VALUES`."""
    values, columns = 0, 1
    for core in cores:
        columns *= core.size(2)
        values += math.prod(core.shape[1:]) + columns * core.size(3)
    step = max(1, CHUNK_VALUES // (4 * values))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _add_rows(out: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """Adds rows of ``source`` to rows ``index`` of ``out``, in place, in an order that is always the same.

    On CUDA ``index_add_`` adds in whatever order threads come; accumulating ``index_put_`` sorts first.
    """
    if out.is_cuda:
        return out.index_put_((index,), source, accumulate=True)
    return out.index_add_(0, index, source)
