"""Encoders of node and edge features of many small graphs: categories, numbers, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.nn.checks import require_positive

__all__ = ["CategoryEmbedding", "EdgeFeatures", "NodeFeatures"]

Init = Literal["normal", "xavier_uniform"]


class CategoryEmbedding(nn.Module):
    r"""Adds up a learnt row for each categorical column, :math:`\sum_j T_j[x_j]`, in one gather.

    The atom and bond encoders of OGB (arXiv:2005.00687) with ``init="xavier_uniform"``; with one column an
    ordinary embedding.

    Args:
        sizes: Categories of each column.
        channels: Width ``d``.
        init: ``normal`` (standard deviation 1), or Glorot and Bengio's uniform one, table by table.

    Shapes:
        ``[n, C]`` (or ``[n]`` where C is 1) of any integer type to ``[n, d]``. The tables lie one below the
        other in ``weight`` ``[sum(sizes), d]``.

    Raises:
        ValueError: No column, an empty one; when called, another number of columns, floating point, or (on
            CPU) a category out of its column's range.
    """

    first: Tensor
    limit: Tensor

    def __init__(self, sizes: Sequence[int], channels: int, init: Init = "normal") -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes is {list(sizes)}; it must name at least one category for each column")
        if init not in ("normal", "xavier_uniform"):
            raise ValueError(f"init is {init!r}; it must be normal or xavier_uniform")
        require_positive("channels", channels)
        self.sizes, self.init = tuple(sizes), init
        self.weight = nn.Parameter(torch.empty(sum(sizes), channels))
        limit = torch.tensor(self.sizes)
        self.register_buffer("limit", limit, persistent=False)
        self.register_buffer("first", limit.cumsum(0) - limit, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in self.weight.detach().split(self.sizes):
            if self.init == "normal":
                nn.init.normal_(table)
            else:
                nn.init.xavier_uniform_(table)

    def forward(self, x: Tensor) -> Tensor:
        columns = x.reshape(-1, 1) if x.dim() == 1 else x
        if x.is_floating_point() or columns.dim() != 2 or columns.size(1) != len(self.sizes):
            raise ValueError(
                f"categories are {x.dtype} {list(x.shape)}; they must be integers [n, {len(self.sizes)}]"
            )
        columns = columns.long()
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = (columns < 0) | (columns >= self.limit)
            if bool(wrong.any()):
                row, column = (int(i) for i in wrong.nonzero()[0])
                raise ValueError(
                    f"row {row} has category {int(columns[row, column])} in column {column}; known are 0 to "
                    f"{self.sizes[column] - 1}"
                )
        return F.embedding_bag(columns + self.first, self.weight, mode="sum")

    def extra_repr(self) -> str:
        return f"sizes={list(self.sizes)}, channels={self.weight.size(1)}, init={self.init!r}"


class NodeFeatures(nn.Module):
    """Encodes nodes: categories by :class:`CategoryEmbedding`, numbers by a linear map, nothing by one row.

    Args:
        channels: Width ``d``.
        in_channels: Width ``F`` of numeric features, if there are any.
        categories: Categories of each column, if ``x`` holds integers.
        init: Of categories' tables.

    Shapes:
        ``x`` ``[n, F]`` floating point, ``[n, C]`` integers, or ``None`` and ``num_nodes``; gives ``[n, d]``.
    """

    def __init__(
        self,
        channels: int,
        *,
        in_channels: int | None = None,
        categories: Sequence[int] | None = None,
        init: Init = "normal",
    ) -> None:
        super().__init__()
        self.encoder: nn.Module
        self.bare = in_channels is None and categories is None
        if categories is not None:
            self.encoder = CategoryEmbedding(categories, channels, init)
        elif in_channels is not None:
            self.encoder = nn.Linear(in_channels, channels)
        else:
            self.encoder = CategoryEmbedding([1], channels, init)

    def forward(self, x: Tensor | None, num_nodes: int | None = None) -> Tensor:
        if self.bare:
            weight = self.encoder.weight
            assert isinstance(weight, Tensor)
            count = num_nodes if x is None else x.size(0)
            if count is None:
                raise ValueError("num_nodes is needed where nodes have no features")
            return weight.expand(count, -1)
        if x is None:
            raise ValueError("x is None, but this model was built for nodes with features")
        out: Tensor = self.encoder(x)
        return out

    def reset_parameters(self) -> None:
        self.encoder.reset_parameters()  # type: ignore[operator]


class EdgeFeatures(nn.Module):
    """Encodes edges: categories, numbers, one learnt row for all, or nothing.

    Args:
        channels: Width ``d``.
        edge_channels: Width ``D`` of numeric ``edge_attr``, if there is any.
        categories: Categories of each column, if ``edge_attr`` holds integers.
        constant: Whether edges without attributes share one learnt row; else they have none.
        init: Of categories' tables.

    Shapes:
        ``edge_attr`` ``[E, D]`` or ``[E]``, or ``None``, and the number of edges; gives ``[E, d]``, or
        ``None`` where edges have nothing.
    """

    def __init__(
        self,
        channels: int,
        *,
        edge_channels: int | None = None,
        categories: Sequence[int] | None = None,
        constant: bool = False,
        init: Init = "normal",
    ) -> None:
        super().__init__()
        self.encoder: nn.Module | None = None
        self.constant = False
        if categories is not None:
            self.encoder = CategoryEmbedding(categories, channels, init)
        elif edge_channels is not None:
            self.encoder = nn.Linear(edge_channels, channels)
        elif constant:
            self.encoder, self.constant = CategoryEmbedding([1], channels, init), True

    def forward(self, edge_attr: Tensor | None, num_edges: int) -> Tensor | None:
        if self.encoder is None:
            return None
        if self.constant:
            weight = self.encoder.weight
            assert isinstance(weight, Tensor)
            return weight.expand(num_edges, -1)
        if edge_attr is None:
            raise ValueError("edge_attr is None, but this model was built for edges with attributes")
        wide = edge_attr if edge_attr.dim() == 2 else edge_attr[:, None]
        out: Tensor = self.encoder(wide)
        return out

    def reset_parameters(self) -> None:
        if self.encoder is not None:
            self.encoder.reset_parameters()  # type: ignore[operator]
