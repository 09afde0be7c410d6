"""The shape of a tensor-train table: factors of rows and columns, and ranks between the cores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from graphkit.nn.checks import require_positive

__all__ = ["TTShape", "capped_ranks", "inner_ranks"]


class TTShape(NamedTuple):
    r"""Sizes of a tensor train :math:`W[i, j] = G_1[i_1, j_1] G_2[i_2, j_2] \cdots G_d[i_d, j_d]`.

    Rows are numbered in mixed radix with the digits :math:`(i_1, ..., i_d)`, columns with
    :math:`(j_1, ..., j_d)`, the first digit the most significant one.

    Attributes:
        num_embeddings: Rows ``N`` in use.
        embedding_dim: Columns ``D``, the product of ``column_factors``.
        row_factors: ``(p_1, ..., p_d)`` with a product of at least ``N``.
        column_factors: ``(q_1, ..., q_d)``.
        ranks: ``(r_0, ..., r_d)``; both ends are 1.
    """

    num_embeddings: int
    embedding_dim: int
    row_factors: tuple[int, ...]
    column_factors: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def num_cores(self) -> int:
        """``d``."""
        return len(self.row_factors)

    @property
    def capacity(self) -> int:
        """Positions: the product of the row factors. Those from ``N`` on are padding."""
        return math.prod(self.row_factors)

    @property
    def core_shapes(self) -> list[tuple[int, int, int, int]]:
        """``(p_k, r_{k-1}, q_k, r_k)`` of every core, the digit first: a digit's slice is one block."""
        r = self.ranks
        return [
            (p, r[k], q, r[k + 1])
            for k, (p, q) in enumerate(zip(self.row_factors, self.column_factors, strict=True))
        ]

    @property
    def num_parameters(self) -> int:
        r""":math:`\sum_k r_{k-1} p_k q_k r_k`."""
        return sum(math.prod(shape) for shape in self.core_shapes)

    @classmethod
    def auto(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        *,
        num_cores: int = 3,
        rank: int | Sequence[int] = 16,
        row_factors: Sequence[int] | None = None,
        column_factors: Sequence[int] | None = None,
        max_padding: float = 0.05,
    ) -> TTShape:
        """Chooses what isn't given.

        Column factors are nearly equal and descend, row factors are nearly equal and ascend, and their
        product exceeds ``N`` by no more than ``max_padding``. An orthonormal last core needs
        ``p_d >= r_{d-1} q_d``: the last row factor is raised to that, up to twice an equal share, or the last
        column factor lowered, as long as neither costs a tenth more parameters.

        Args:
            num_embeddings: Rows ``N``.
            embedding_dim: Columns ``D``.
            num_cores: ``d``, at least 2; the length of given factors goes first.
            rank: One rank for all bonds, or ``d - 1`` of them. Ranks that can't matter are cut, with a
                warning.
            row_factors: ``(p_1, ..., p_d)``.
            column_factors: ``(q_1, ..., q_d)``.
            max_padding: Largest share of unused positions; bounds chosen row factors only.

        Raises:
            ValueError: If the arguments don't fit each other.
        """
        require_positive("num_embeddings", num_embeddings)
        require_positive("embedding_dim", embedding_dim)
        if not max_padding >= 0:
            raise ValueError(f"max_padding is {max_padding}; it must be at least 0")
        given = row_factors if row_factors is not None else column_factors
        d = num_cores if given is None else len(given)
        if d < 2:
            raise ValueError(f"num_cores is {d}; a tensor train has at least 2")
        inner = inner_ranks(rank, d)
        rows = None if row_factors is None else tuple(map(int, row_factors))
        if column_factors is None:
            p, q = _choose(num_embeddings, embedding_dim, inner, rows, max_padding)
        else:
            q = tuple(map(int, column_factors))
            p = rows or _rows(num_embeddings, d, max_padding, inner[-1] * q[-1])
        if len(q) != d or min(q) < 1 or math.prod(q) != embedding_dim:
            raise ValueError(
                f"column_factors are {list(q)}; they must be {d} positive factors of {embedding_dim}"
            )
        if len(p) != d or min(p) < 1 or math.prod(p) < num_embeddings:
            raise ValueError(
                f"row_factors are {list(p)}; they must be {d} positive integers "
                f"with a product of at least {num_embeddings}"
            )
        ranks = capped_ranks(inner, [a * b for a, b in zip(p, q, strict=True)])
        if ranks != (1, *inner, 1):
            warnings.warn(
                f"ranks {list(inner)} are cut to {list(ranks[1:-1])}: "
                f"a table with row factors {list(p)} and column factors {list(q)} has no higher ones",
                stacklevel=2,
            )
        return cls(num_embeddings, embedding_dim, p, q, ranks)


def capped_ranks(inner: Sequence[int], modes: Sequence[int]) -> tuple[int, ...]:
    """Cuts inner ranks to what the ``modes`` (row times column factor) on either side allow.

    Returns:
        ``(r_0, ..., r_d)`` with ``r_k <= r_{k-1} modes_k`` and ``r_{k-1} <= modes_k r_k``.
    """
    ranks = [1, *inner, 1]
    for k in range(1, len(ranks)):
        ranks[k] = min(ranks[k], ranks[k - 1] * modes[k - 1])
    for k in range(len(ranks) - 1, 0, -1):
        ranks[k - 1] = min(ranks[k - 1], ranks[k] * modes[k - 1])
    return tuple(ranks)


def inner_ranks(rank: int | Sequence[int], d: int) -> tuple[int, ...]:
    """Returns ``(r_1, ..., r_{d-1})`` from one rank for all or a rank for each.

    Raises:
        ValueError: If their number is wrong or one isn't positive.
    """
    inner = (rank,) * (d - 1) if isinstance(rank, int) else tuple(map(int, rank))
    if len(inner) != d - 1 or min(inner) < 1:
        raise ValueError(f"rank is {rank}; it must be a positive integer, or {d - 1} of them for {d} cores")
    return inner


def _choose(
    num_rows: int, width: int, inner: tuple[int, ...], rows: tuple[int, ...] | None, max_padding: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chooses column factors, and row factors unless given; see :meth:`TTShape.auto`."""
    d = len(inner) + 1
    splits = sorted(_splits(width, d, width), key=lambda split: (sum(split), split))
    first = None
    for q in splits:
        if 4 * sum(q) > 5 * sum(splits[0]):
            break
        p = rows or _rows(num_rows, d, max_padding, inner[-1] * q[-1])
        size = TTShape(num_rows, width, p, q, (1, *inner, 1)).num_parameters if len(p) == d else 0
        first = first or (p, q, size)
        if len(p) == d and p[-1] >= inner[-1] * q[-1] and size <= 1.1 * first[2]:
            return p, q
    assert first is not None, "a width has at least one split"
    return first[:2]


def _splits(rest: int, count: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Yields all ways to write ``rest`` as ``count`` descending factors up to ``largest``."""
    if count == 1:
        if rest <= largest:
            yield (rest,)
        return
    for factor in range(1, min(rest, largest) + 1):
        if rest % factor == 0:
            for tail in _splits(rest // factor, count - 1, factor):
                yield (factor, *tail)


def _rows(num_rows: int, d: int, max_padding: float, wanted_last: int) -> tuple[int, ...]:
    """Chooses ascending factors whose product lies between ``num_rows`` and that plus padding."""
    most = math.floor(num_rows * (1 + max_padding) + 1e-9)
    plain = _near_equal(num_rows, most, d)
    share = num_rows ** (1 / d)
    if plain[-1] >= wanted_last or wanted_last > 2 * share:
        return plain
    # The last factor is what orthogonality asks for, or a little more where that splits the rest better.
    found: list[tuple[int, int, tuple[int, ...]]] = []
    for last in range(wanted_last, wanted_last + max(2, wanted_last // 8)):
        rest = -(-num_rows // last)
        if rest * last <= most:
            head = _near_equal(rest, most // last, d - 1)
            p = (*head, last)
            if head[-1] <= last:
                found.append((sum(p), math.prod(p), p))
    return min(found)[2] if found else plain


def _near_equal(low: int, high: int, d: int) -> tuple[int, ...]:
    """Returns ``d`` ascending factors of a number in ``[low, high]``, as equal as possible.

    Factors but the last are sought in a window around the equal share that widens until something fits;
    ``(1, ..., 1, low)`` always does.
    """
    if d == 1:
        return (low,)
    share = max(1, int(low ** (1 / d)))

    def ascend(count: int, first: int, stop: int, product: int) -> Iterator[tuple[int, ...]]:
        if count == 1:
            last = max(first, -(-low // product))
            if product * last <= high:
                yield (last,)
            return
        for factor in range(first, stop):
            for tail in ascend(count - 1, factor, stop, product * factor):
                yield (factor, *tail)

    window = 1
    while True:
        found = ascend(d, max(1, share - window), share + 2 + window, 1)
        best = min(((sum(p), p[-1] - p[0], math.prod(p), p) for p in found), default=None)
        if best is not None:
            return best[3]
        window *= 2
