"""Which rows of a table a rank holds."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RowRange", "block_size", "range_of"]


class RowRange(NamedTuple):
    """Where the rows of a partitioned parameter stand in the whole table.

    A parameter with the attributes ``partitioned = True`` and ``rows = RowRange(total, start)`` holds the
    slots ``start`` to ``start + len(parameter) - 1`` of ``total`` along its first dimension.

    Attributes:
        total: Rows of the whole table.
        start: The first of this rank's; ``total`` where it has none.
    """

    total: int
    start: int


def block_size(total: int, world: int) -> int:
    """Returns the rows of a full block, ``ceil(total / world)``: the rule of DTensor's ``Shard(0)``."""
    return -(-total // world)


def range_of(total: int, rank: int, world: int) -> tuple[RowRange, int]:
    """Returns a rank's rows and how many they are; the last ranks may have fewer, or none."""
    size = block_size(total, world)
    start = min(rank * size, total)
    return RowRange(total, start), min(size, total - start)
