"""The full table: a row of its own for every id."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.nn.embedding.base import Embedding

__all__ = ["DenseEmbedding"]

_QR_LIMIT = 1 << 26  # entries; beyond, random columns are orthogonal to 1e-3 anyway and QR takes minutes


class DenseEmbedding(Embedding):
    r"""A table :math:`W \in \mathbb{R}^{N \times D}` of parameters.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``.
        sparse: Look-ups give sparse gradients, so that a step costs the rows that were looked up;
            ``weight()`` gives a dense one nevertheless.
        init: ``"orthogonal"``: :math:`W^\top W = N s^2 I` (rows, if there are fewer of them);
            ``"gaussian"``: independent entries.
        std: The entries' deviation ``s``; by default ``N**-0.5`` for orthogonal columns, else 0.1.

    Shapes:
        Parameter ``table`` ``[N, D]``.
    """

    kind = "dense"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        sparse: bool = False,
        init: Literal["orthogonal", "gaussian"] = "orthogonal",
        std: float | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        if init not in ("orthogonal", "gaussian"):
            raise ValueError(f"init is {init!r}; it must be orthogonal or gaussian")
        if std is not None and not std > 0:
            raise ValueError(f"std is {std}; it must be positive")
        self.sparse, self.init, self.std = sparse, init, std
        self.table = nn.Parameter(torch.empty(num_embeddings, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        rows = self.num_embeddings
        orthogonal = self.init == "orthogonal"
        std = self.std if self.std is not None else rows**-0.5 if orthogonal else 0.1
        if orthogonal and self.table.numel() <= _QR_LIMIT:
            nn.init.orthogonal_(self.table, gain=std * rows**0.5)
        else:
            nn.init.normal_(self.table, std=std)

    def lookup(self, position: Tensor) -> Tensor:
        return F.embedding(position, self.table, sparse=self.sparse)

    def weight(self) -> Tensor:
        return self.table

    @torch.no_grad()
    def set_table_(self, table: Tensor) -> None:
        self._check_table(table)
        self.table.copy_(table)
