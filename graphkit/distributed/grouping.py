"""Equal ids brought together, and sums over them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Groups", "group_equal", "sum_groups"]


class Groups(NamedTuple):
    """Keys ``[B]`` by what they are equal to.

    Attributes:
        keys: ``[U]`` int64, each once, ascending.
        place: ``[B]`` int64: which of them each key is.
        first: ``[U]`` int64: where each occurs first.
        rest: ``[B - U]`` int64: where keys occur again, those of a key in order.
    """

    keys: Tensor
    place: Tensor
    first: Tensor
    rest: Tensor


def group_equal(keys: Tensor, *, runs: bool = False) -> Groups:
    """Groups keys ``[B]`` int64, none negative.

    Args:
        keys: See above.
        runs: They consist of a few ascending runs, which are merged rather than sorted.
    """
    if keys.device.type != "cpu":
        ordered, order = keys.sort(stable=True)
        new = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=new[1:])
        place = torch.empty_like(order)
        place[order] = new.cumsum(0) - 1
        return Groups(ordered[new], place, order[new], order[~new])
    values, size = keys.numpy(), keys.numel()
    if not runs and size and int(values.max()) < 2**31 and size < 2**32:
        # One sort of 8-byte numbers, key before position, takes a third of a sort that returns an order.
        both = (values << 32) | np.arange(size)
        both.sort()
        sorted_keys, positions = both >> 32, both & 0xFFFFFFFF
    else:
        positions = np.argsort(values, kind="stable")
        sorted_keys = values[positions]
    begins = np.ones(size, bool)
    np.not_equal(sorted_keys[1:], sorted_keys[:-1], out=begins[1:])
    place_of = np.empty(size, np.int64)
    place_of[positions] = np.cumsum(begins) - 1
    parts = (sorted_keys[begins], place_of, positions[begins], positions[~begins])
    return Groups(*map(torch.from_numpy, parts))


def sum_groups(values: Tensor, groups: Groups) -> Tensor:
    """Returns ``[U, D]``: the sum of each group's values ``[B, D]``, added in the order of positions."""
    total = values.index_select(0, groups.first)
    if groups.rest.numel():
        total.index_add_(0, groups.place[groups.rest], values.index_select(0, groups.rest))
    return total
