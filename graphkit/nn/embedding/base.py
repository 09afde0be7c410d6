"""What all embeddings share: one learnt row a node, looked up by id, whatever stands behind the rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from graphkit.nn.checks import require_positive

if TYPE_CHECKING:
    from typing_extensions import Self

    from graphkit.nn.embedding.config import EmbeddingConfig

__all__ = ["Embedding"]


class Embedding(nn.Module, ABC):
    r"""A table :math:`W` of ``N`` rows of width ``D``, stored in full or compressed.

    Every kind answers the same calls: ``emb(ids)``, ``emb()`` or ``emb.weight()`` for all rows,
    ``emb.rows(a, b)``, ``emb.compression_ratio``, ``emb.to_dense()``, ``Kind.from_dense(table)``. What a
    kind shares between rows it shares by *position*: row ``i`` of the table is row ``position[i]`` of the
    structure behind it, whose positions are mixed-radix numbers with the digits of :attr:`row_factors`. An
    order that gives neighbours in the graph positions with common leading digits
    (:mod:`graphkit.partition`) makes them share parameters. Ids, and with them the user's graph, splits and
    checkpoints, stay as they are.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``.

    Attributes:
        kind: The name that the factory knows it by.
        num_embeddings: ``N``.
        embedding_dim: ``D``.
        position: Buffer ``[N]``, int32 where that suffices, or ``None``; part of the state.
        config: What the factory made it from, if it did.
    """

    kind: ClassVar[str]
    config: EmbeddingConfig | None = None
    position: Tensor | None

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        require_positive("num_embeddings", num_embeddings)
        require_positive("embedding_dim", embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.register_buffer("position", None)

    @property
    def row_factors(self) -> tuple[int, ...] | None:
        """Radices of a position's digits, the most significant first; ``None`` if nothing is shared."""
        return None

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws the parameters anew from torch's generator; the order stays."""

    @abstractmethod
    def lookup(self, position: Tensor) -> Tensor:
        """Returns the rows at positions ``[B]`` int64, which were checked, as ``[B, D]``."""

    @abstractmethod
    def weight(self) -> Tensor:
        """Returns all rows by id, ``[N, D]``, differentiable; padding isn't among them."""

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """Returns the rows of ``ids``.

        Args:
            ids: Integers of any shape in ``[0, N)``, repetitions welcome; ``None`` for all rows.

        Returns:
            ``[*ids.shape, D]``, or ``[N, D]`` without ids.

        Raises:
            IndexError: If an id is out of range.
            TypeError: If the ids aren't integers.
        """
        if ids is None:
            return self.weight()
        flat = ids.reshape(-1)
        return self._rows_of(flat.long(), self.positions_of(flat)).reshape(*ids.shape, self.embedding_dim)

    def _rows_of(self, ids: Tensor, position: Tensor) -> Tensor:
        """Returns rows ``[B, D]``; a kind that has parameters by id as well looks at both."""
        return self.lookup(position)

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns rows ``start`` to ``stop - 1``, ``[stop - start, D]``.

        Raises:
            IndexError: Unless ``0 <= start <= stop <= N``.
        """
        if not 0 <= start <= stop <= self.num_embeddings:
            raise IndexError(f"rows {start}:{stop} of a table of {self.num_embeddings}")
        device = next(self.parameters()).device
        return self(torch.arange(start, stop, device=device))

    def positions_of(self, ids: Tensor) -> Tensor:
        """Checks ids ``[B]`` and returns their positions, ``[B]`` int64."""
        if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
            raise TypeError(f"ids are {ids.dtype}; they must be integers")
        if ids.numel():
            low, high = (int(v) for v in torch.aminmax(ids))
            if low < 0 or high >= self.num_embeddings:
                raise IndexError(
                    f"ids from {low} to {high}; the table has rows 0 to {self.num_embeddings - 1}"
                )
        ids = ids.long()
        return ids if self.position is None else self.position[ids].long()

    def set_order(self, position: Tensor | None) -> None:
        """Puts rows at given positions; parameters stay where they are.

        Args:
            position: ``[N]`` integers, distinct, below the product of :attr:`row_factors`; ``None`` for the
                order of ids.

        Raises:
            ValueError: If the positions aren't that, or this kind shares nothing between rows.
        """
        factors = self.row_factors
        if position is None:
            self.position = None
            return
        if factors is None:
            raise ValueError(f"a {self.kind} embedding shares nothing between rows, so it takes no order")
        capacity = math.prod(factors)
        if position.shape != (self.num_embeddings,) or position.is_floating_point():
            raise ValueError(
                f"order is {position.dtype} {list(position.shape)}; it must be integers "
                f"[{self.num_embeddings}]"
            )
        ordered = position.long().sort().values
        if int(ordered[0]) < 0 or int(ordered[-1]) >= capacity or bool((ordered.diff() == 0).any()):
            raise ValueError(f"order must hold distinct positions in [0, {capacity})")
        narrow = torch.int32 if capacity < 2**31 else torch.int64
        device = next(self.parameters()).device
        self.position = position.to(device, narrow).contiguous()

    @property
    def num_parameters(self) -> int:
        """Values that are stored and trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def compression_ratio(self) -> float:
        """``N * D`` over the number of parameters."""
        return self.num_embeddings * self.embedding_dim / self.num_parameters

    @abstractmethod
    def set_table_(self, table: Tensor) -> None:
        """Sets the parameters so that :meth:`weight` comes as close to ``table`` ``[N, D]`` as this kind can.

        Close is meant in the Frobenius norm; rank, sizes and order stay.
        """

    @classmethod
    def from_dense(cls, table: Tensor, **options: Any) -> Self:
        """Returns an embedding of this kind that approximates ``table`` ``[N, D]``, of its dtype and device.

        Args:
            table: The rows by id.
            **options: What the constructor takes beside the sizes.
        """
        made = cls(table.size(0), table.size(1), **options).to(table.device, table.dtype)
        made.set_table_(table)
        return made

    def _check_table(self, table: Tensor) -> None:
        if table.shape != (self.num_embeddings, self.embedding_dim):
            want = [self.num_embeddings, self.embedding_dim]
            raise ValueError(f"table has shape {list(table.shape)}; it must be {want}")

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Returns the table ``[N, D]`` by id, without gradient, in memory of its own."""
        return self.weight().detach().clone()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Takes the order along with the parameters; a state without one takes it away."""
        stored = state_dict.get(prefix + "position")
        if stored is not None and stored.shape != (self.num_embeddings,):
            raise ValueError(
                f"{prefix}position has shape {list(stored.shape)}; it must be [{self.num_embeddings}]"
            )
        if stored is None:
            self.position = None
        elif self.position is None or self.position.shape != stored.shape:
            self.position = torch.empty_like(stored, device=next(self.parameters()).device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, compression {self.compression_ratio:.4g}"
