"""A partitioned table in one process, its rows left in the files that many ranks wrote."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graphkit.distributed.embedding import PartitionedTable

__all__ = ["MappedEmbedding"]


class MappedEmbedding(PartitionedTable):
    """Rows that are read where they lie: a look-up touches the pages of its rows, and no others.

    It answers like the table that it stands for, and its state has that one's names, but it isn't trained.

    Args:
        like: The table that it stands for; id, slots and order are its.
        parts: ``[n_i, D]`` each, one behind the other: the rows by slot.

    Raises:
        ValueError: The parts aren't all rows of the table.
    """

    kind = "dense"

    def __init__(self, like: PartitionedTable, parts: Sequence[Tensor]) -> None:
        super().__init__(like.num_embeddings, like.embedding_dim, like.assignment, like.units, like.unit_rows)
        rows = sum(len(part) for part in parts)
        if rows != like.num_embeddings or any(part.shape[1:] != (like.embedding_dim,) for part in parts):
            raise ValueError(
                f"parts have shapes {[list(part.shape) for part in parts]}; together they must be "
                f"{[like.num_embeddings, like.embedding_dim]}"
            )
        self.config, self.position = like.config, like.position
        kept = [part for part in parts if len(part)]
        for number, part in enumerate(kept):
            self.register_parameter(f"part{number}", nn.Parameter(part, requires_grad=False))
        self.ends = torch.tensor([len(part) for part in kept]).cumsum(0)

    @property
    def parts(self) -> list[Tensor]:
        """The rows by slot, file by file."""
        return [self.get_parameter(f"part{number}") for number in range(len(self.ends))]

    @property
    def row_factors(self) -> tuple[int, ...] | None:
        return (self.num_embeddings,) if self.assignment == "partition" else None

    @property
    def num_parameters(self) -> int:
        return self.num_embeddings * self.embedding_dim

    def local_rows(self, asked: Tensor, *, distinct: bool) -> Tensor:
        ends = self.ends.to(asked.device)
        part = torch.bucketize(asked, ends, right=True)
        order = None if distinct else part.argsort(stable=True)
        sorted_ids = asked if order is None else asked[order]
        pieces = sorted_ids.split(torch.bincount(part, minlength=len(self.parts)).tolist())
        starts = [0, *self.ends.tolist()[:-1]]
        found = [
            rows.index_select(0, ids - start)
            for rows, ids, start in zip(self.parts, pieces, starts, strict=True)
        ]
        rows = torch.cat(found)
        return rows if order is None else torch.empty_like(rows).index_copy_(0, order, rows)

    def local_table(self) -> Tensor:
        return torch.cat(self.parts)

    def reset_parameters(self) -> None:
        """Refuses: the rows are a file's."""
        raise RuntimeError("the rows of a mapped table are those of its files")

    def set_table_(self, table: Tensor) -> None:
        """Refuses: the rows are a file's."""
        self.reset_parameters()

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "table"] = self.local_table()
        if self.position is not None:
            destination[prefix + "position"] = self.position
