"""Facts sorted by the row that they reach and by what they bring there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphkit.kernels.spmm import to_numpy

__all__ = ["FactRows", "number_keys", "number_keys_torch", "sort_facts", "sort_facts_torch"]


class FactRows(NamedTuple):
    """Rows of entries of facts, those of a graph side by side.

    Attributes:
        rowptr: ``[R + 1]`` int64, ascending, from 0 to E.
        col: ``[E]`` int32, lines of a table.
        begin: ``[E + 1]`` int64, ascending, from 0 to F: the facts of each entry.
        source: ``[F]`` int32, who sends each fact's line.
        block: ``[B + 1]`` int64, where the rows of each graph begin. No two blocks have entries with the same
            line or facts with the same source.
        weight: ``[F]`` floating point, or None for ones.
    """

    rowptr: Tensor
    col: Tensor
    begin: Tensor
    source: Tensor
    block: Tensor
    weight: Tensor | None = None


def sort_facts(
    row: Tensor, line: Tensor, source: Tensor, num_lines: int, block: Tensor
) -> tuple[FactRows, Tensor]:
    """Sorts facts by row and line, stably; those that share both are one entry.

    Args:
        row: ``[F]`` int64 in [0, R).
        line: ``[F]`` int64 in [0, ``num_lines``).
        source: ``[F]`` int64.
        num_lines: Lines of the table.
        block: ``[B + 1]`` int64, where the rows of each graph begin; the last is R.

    Returns:
        The rows, without weights, and ``perm`` ``[F]`` int64: fact k of them was given as fact ``perm[k]``.
    """
    if row.device.type != "cpu":
        return sort_facts_torch(row, line, source, num_lines, block)
    from graphkit.kernels import _fact_rows_loops as loops

    rows, facts = int(block[-1]), row.numel()
    ids = row.new_empty((3, facts), dtype=torch.int32)
    perm, begin, rowptr = row.new_empty(facts), row.new_empty(facts + 1), row.new_zeros(rows + 1)
    keys, senders, out = to_numpy(row), to_numpy(source), ids.numpy()
    entries = loops.sort(
        keys, to_numpy(line), senders, num_lines, out, perm.numpy(), begin.numpy(), rowptr.numpy()
    )
    return FactRows(rowptr, ids[1, :entries], begin[: entries + 1], ids[2], block), perm


def sort_facts_torch(
    row: Tensor, line: Tensor, source: Tensor, num_lines: int, block: Tensor
) -> tuple[FactRows, Tensor]:
    """:func:`sort_facts` in plain torch operations."""
    key, perm = torch.sort(row * num_lines + line, stable=True)
    new = torch.ones_like(key, dtype=torch.bool)
    new[1:] = key[1:] != key[:-1]
    first = new.nonzero().squeeze(1)
    begin = torch.cat([first, first.new_tensor([key.numel()])])
    key = key[first]
    rowptr = row.new_zeros(int(block[-1]) + 1)
    torch.cumsum(torch.bincount(key // num_lines, minlength=rowptr.numel() - 1), 0, out=rowptr[1:])
    col = (key % num_lines).to(torch.int32)
    return FactRows(rowptr, col, begin, source[perm].to(torch.int32), block), perm


def number_keys(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the distinct keys in ascending order, and the number of each key among them.

    Args:
        keys: ``[F]`` int64 in [0, ``size``).
        size: One more than the largest key that may occur.
    """
    if keys.device.type != "cpu":
        return number_keys_torch(keys, size)
    from graphkit.kernels import _fact_rows_loops as loops

    place, number = torch.zeros(size, dtype=torch.int32), torch.empty_like(keys)
    distinct = torch.empty(min(size, keys.numel()), dtype=torch.int64)
    count = loops.number(to_numpy(keys), place.numpy(), distinct.numpy(), number.numpy())
    return distinct[:count], number


def number_keys_torch(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """:func:`number_keys` in plain torch operations."""
    mark = torch.zeros(size, dtype=torch.bool, device=keys.device)
    mark[keys] = True
    distinct = mark.nonzero().squeeze(1)
    place = torch.empty(size, dtype=torch.int64, device=keys.device)
    place[distinct] = torch.arange(distinct.numel(), device=keys.device)
    return distinct, place[keys]
