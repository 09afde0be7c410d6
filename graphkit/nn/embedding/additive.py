r"""Compressed tables whose rows are sums of a few shared ones.

Papers: "Position-based Hash Embeddings For Scaling Graph Neural Networks", Maria Kalantzi, George Karypis,
IEEE BigData 2021, https://arxiv.org/abs/2109.00101; "Compositional Embeddings Using Complementary Partitions
for Memory-Efficient Recommendation Systems", Hao-Jun Michael Shi, Dheevatsa Mudigere, Maxim Naumov, Jiyan
Yang, KDD 2020, https://arxiv.org/abs/1909.02107.

Both are one formula with different slots: row ``i`` is :math:`\sum_l w_{il}\, T_{s_l(i)}`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.nn.checks import require_positive
from graphkit.nn.embedding.base import Embedding

__all__ = ["AdditiveEmbedding", "HashEmbedding", "QuotientRemainderEmbedding"]

_PRIME = 2**31 - 1


class AdditiveEmbedding(Embedding):
    r"""Row ``i`` is :math:`\sum_{l=1}^{L} w_{il}\, T_{s_l(i)}` for a shared table ``T`` of ``K`` rows.

    Shapes:
        Parameter ``table`` ``[K, D]``.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, slots: int, terms: int, std: float) -> None:
        super().__init__(num_embeddings, embedding_dim)
        if not std > 0:
            raise ValueError(f"std is {std}; it must be positive")
        self.terms, self.std = terms, std
        self.table = nn.Parameter(torch.empty(slots, embedding_dim))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=self.std / math.sqrt(self.terms))

    @abstractmethod
    def slots(self, ids: Tensor, position: Tensor) -> Tensor:
        """Returns the shared rows that each row is the sum of, ``[B, L]`` int64 in ``[0, K)``."""

    def term_weights(self, ids: Tensor) -> Tensor | None:
        """Returns the weight of each term, ``[B, L]``; ``None`` for ones."""
        return None

    def _rows_of(self, ids: Tensor, position: Tensor) -> Tensor:
        weights = self.term_weights(ids)
        return F.embedding_bag(self.slots(ids, position), self.table, mode="sum", per_sample_weights=weights)

    def lookup(self, position: Tensor) -> Tensor:
        if self.position is None:
            return self._rows_of(position, position)
        ids = torch.full((math.prod(self.row_factors or ()),), -1, device=position.device)
        ids[self.position.long()] = torch.arange(self.num_embeddings, device=position.device)
        return self._rows_of(ids[position], position)

    def weight(self) -> Tensor:
        return self(torch.arange(self.num_embeddings, device=self.table.device))

    @torch.no_grad()
    def set_table_(self, table: Tensor) -> None:
        """Solves the least squares problem for ``T``, the weights being as they are."""
        self._check_table(table)
        ids = torch.arange(self.num_embeddings, device=table.device)
        slots = self.slots(ids, self.positions_of(ids)).cpu()
        weights = self.term_weights(ids)
        values = torch.ones(slots.shape) if weights is None else weights.detach().cpu()
        solution = _least_squares(slots, values.double(), table.detach().cpu().double(), self.table.size(0))
        self.table.copy_(solution)


class HashEmbedding(AdditiveEmbedding):
    r"""Position-based hash embedding (Kalantzi and Karypis, section III).

    Node ``i`` with the digits :math:`(i_1, \dots, i_d)` of its position is in cluster
    :math:`c_l = (i_1, \dots, i_l)` of level ``l``:

    .. math:: \mathrm{row}(i) = \sum_{l=1}^{d-1} C^{(l)}_{c_l} + \sum_{k=1}^{h} w_{ik}\, B_{\eta_k(i)}

    with ``h`` hash functions into ``buckets`` rows and a learnt weight for each. With an order that follows
    the graph the first sum is shared by neighbours, and the second tells them apart.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``.
        row_factors: Radices of positions; three nearly equal ones by default. The last digit has no level.
        buckets: Hashed rows; by default ``sqrt(N)`` rounded up to a power of two.
        num_hashes: ``h``; 0 leaves the clusters alone.
        std: Deviation of the table's entries at the start.
        order: See :class:`~graphkit.nn.embedding.Embedding`.

    Shapes:
        ``table`` ``[p_1 + p_1 p_2 + ... + buckets, D]``, ``importance`` ``[N, h]``.
    """

    kind = "hash"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        row_factors: Sequence[int] | None = None,
        buckets: int | None = None,
        num_hashes: int = 2,
        std: float = 0.1,
        order: Tensor | None = None,
    ) -> None:
        require_positive("num_embeddings", num_embeddings)
        if num_hashes < 0:
            raise ValueError(f"num_hashes is {num_hashes}; it must be at least 0")
        self._factors = tuple(row_factors or _three_factors(num_embeddings))
        if len(self._factors) < 2 or min(self._factors) < 1 or math.prod(self._factors) < num_embeddings:
            raise ValueError(
                f"row_factors are {self._factors}; two or more are needed, with a product of at least "
                f"{num_embeddings}"
            )
        self._levels = [math.prod(self._factors[:k]) for k in range(1, len(self._factors))]
        self.num_hashes = num_hashes
        if buckets is not None:
            require_positive("buckets", buckets)
        self.buckets = 0 if not num_hashes else buckets or 2 ** math.ceil(math.log2(num_embeddings) / 2)
        terms = len(self._levels) + num_hashes
        super().__init__(num_embeddings, embedding_dim, sum(self._levels) + self.buckets, terms, std)
        if num_hashes:
            self.importance = nn.Parameter(torch.empty(num_embeddings, num_hashes))
        self.reset_parameters()
        self.set_order(order)

    @property
    def row_factors(self) -> tuple[int, ...]:
        return self._factors

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.num_hashes:
            nn.init.ones_(self.importance)

    def slots(self, ids: Tensor, position: Tensor) -> Tensor:
        columns, first = [], 0
        for size in self._levels:
            columns.append(first + position // (math.prod(self._factors) // size))
            first += size
        for k in range(self.num_hashes):
            # universal hashing modulo a Mersenne prime: below 2^62, so nothing overflows
            factor, shift = (48271 * (2 * k + 1)) ** 2 % _PRIME, (69621 * (k + 1)) ** 3 % _PRIME
            columns.append(first + (ids % _PRIME * factor + shift) % _PRIME % self.buckets)
        return torch.stack(columns, dim=1)

    def term_weights(self, ids: Tensor) -> Tensor | None:
        if not self.num_hashes:
            return None
        own = self.importance[ids]
        return torch.cat([own.new_ones(ids.numel(), len(self._levels)), own], dim=1)


class QuotientRemainderEmbedding(AdditiveEmbedding):
    r"""Quotient-remainder embedding (Shi et al., section 2), with the sum as its operation.

    .. math:: \mathrm{row}(i) = Q_{\lfloor \pi_i / m \rfloor} + R_{\pi_i \bmod m}

    for position :math:`\pi_i` and ``m`` remainders. With an order that follows the graph, quotients are
    clusters.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``.
        buckets: Remainders ``m``; by default ``sqrt(N)``, rounded, which makes the table smallest.
        std: Deviation of the table's entries at the start.
        order: See :class:`~graphkit.nn.embedding.Embedding`.

    Shapes:
        ``table`` ``[ceil(N / m) + m, D]``, quotients before remainders.
    """

    kind = "quotient_remainder"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        buckets: int | None = None,
        std: float = 0.1,
        order: Tensor | None = None,
    ) -> None:
        require_positive("num_embeddings", num_embeddings)
        self.buckets = max(1, round(math.sqrt(num_embeddings))) if buckets is None else buckets
        require_positive("buckets", self.buckets)
        self.quotients = -(-num_embeddings // self.buckets)
        super().__init__(num_embeddings, embedding_dim, self.quotients + self.buckets, 2, std)
        self.reset_parameters()
        self.set_order(order)

    @property
    def row_factors(self) -> tuple[int, ...]:
        return (self.quotients, self.buckets)

    def slots(self, ids: Tensor, position: Tensor) -> Tensor:
        remainder = self.quotients + position % self.buckets
        return torch.stack([position // self.buckets, remainder], dim=1)


def _three_factors(n: int) -> tuple[int, int, int]:
    side = max(1, round(n ** (1 / 3)))
    return side, side, -(-n // side**2)


def _least_squares(slots: Tensor, values: Tensor, table: Tensor, size: int, steps: int = 200) -> Tensor:
    """Minimises ``|S T - table|`` over ``T`` ``[size, D]`` by conjugate gradients on the normal equations.

    Args:
        slots: ``[N, L]`` int64: row ``i`` of ``S`` has ``values[i, l]`` in column ``slots[i, l]``.
        values: ``[N, L]`` float64.
        table: ``[N, D]`` float64.
        size: Columns of ``S``.
        steps: Iterations at most.
    """
    row = torch.arange(slots.size(0)).repeat_interleave(slots.size(1))
    index = torch.stack([row, slots.reshape(-1)])
    forward = torch.sparse_coo_tensor(
        index, values.reshape(-1), (slots.size(0), size), check_invariants=False
    ).coalesce()
    backward = forward.t().coalesce()
    solution = table.new_zeros(size, table.size(1))
    residual = torch.sparse.mm(backward, table)
    direction, norm = residual.clone(), residual.square().sum(0)
    enough = 1e-24 * norm.clamp(min=1e-300)
    for _ in range(steps):
        if bool((norm <= enough).all()):
            break
        product = torch.sparse.mm(backward, torch.sparse.mm(forward, direction))
        rate = norm / (direction * product).sum(0).clamp(min=1e-300)
        solution += rate * direction
        residual -= rate * product
        now = residual.square().sum(0)
        direction = residual + now / norm.clamp(min=1e-300) * direction
        norm = now
    return solution
