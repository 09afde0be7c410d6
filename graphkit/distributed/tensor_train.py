"""Tensor trains spread over the ranks of a run: blocks of rows, each with a train of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from graphkit.distributed.embedding import Assignment, PartitionedTable, mixed_seed
from graphkit.kernels.tt_lookup import tt_lookup
from graphkit.nn.checks import require_positive
from graphkit.nn.embedding.partition_range import block_size
from graphkit.nn.embedding.tt_algebra import balance_cores, grow_cores, tt_svd
from graphkit.nn.embedding.tt_engines import Engine, tt_rows
from graphkit.nn.embedding.tt_init import gaussian_cores, orthogonal_cores
from graphkit.nn.embedding.tt_shape import TTShape

__all__ = ["PartitionedTTEmbedding"]


class PartitionedTTEmbedding(PartitionedTable):
    r"""``B`` tensor trains for ``B`` blocks of rows; each rank holds ``ceil(B / W)`` of them.

    Block ``b`` holds the slots :math:`b P` to :math:`(b + 1) P - 1`, where :math:`P` is the product of the
    row factors, and row ``i`` of it is :math:`G_1^b[i_1] \cdots G_d^b[i_d]` as in :class:`TTEmbedding`. An
    order that follows the graph makes parts of it blocks. Rows travel between ranks like those of a full
    table; gradients of the cores are dense, and live where the cores do.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``.
        blocks: ``B``; more blocks than ranks, so that they can be shared out evenly.
        assignment: ``blocks`` and ``partition`` go by :meth:`set_order`, else by ids; ``hash`` spreads ids.
        rank: Rank between cores: one for all, or ``d - 1`` of them.
        num_cores: ``d``, at least 2.
        row_factors: Of a block: product at least ``N / B``; chosen if not given.
        column_factors: Product ``D``; chosen if not given.
        init: As in :class:`TTEmbedding`: columns of the whole table are orthogonal, or cores Gaussian.
        std: Deviation of the table's entries at the start, with the same defaults.
        engine: How a block's rows are computed.

    Shapes:
        Parameters ``cores.k`` ``[b, p_k, r_{k-1}, q_k, r_k]``: blocks ``cores.k.rows.start`` and on.
    """

    kind = "tensor_train"
    sparse = False

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        blocks: int = 8,
        assignment: Assignment = "blocks",
        rank: int | Sequence[int] = 16,
        num_cores: int = 3,
        row_factors: Sequence[int] | None = None,
        column_factors: Sequence[int] | None = None,
        init: Literal["orthogonal", "gaussian"] = "orthogonal",
        std: float | None = None,
        engine: Engine = "auto",
    ) -> None:
        require_positive("num_embeddings", num_embeddings)
        require_positive("blocks", blocks)
        if init not in ("orthogonal", "gaussian"):
            raise ValueError(f"init is {init!r}; it must be orthogonal or gaussian")
        if std is not None and not std > 0:
            raise ValueError(f"std is {std}; it must be positive")
        if engine not in get_args(Engine):
            raise ValueError(f"engine is {engine!r}; it must be one of {', '.join(get_args(Engine))}")
        shape = TTShape.auto(
            block_size(num_embeddings, blocks),
            embedding_dim,
            num_cores=num_cores,
            rank=rank,
            row_factors=row_factors,
            column_factors=column_factors,
        )
        super().__init__(num_embeddings, embedding_dim, assignment, blocks, shape.capacity)
        self.shape, self.init, self.std, self.engine = shape, init, std, engine
        self.cores = nn.ParameterList(torch.empty(self.local_units, *sizes) for sizes in shape.core_shapes)
        self._mark()
        self.reset_parameters()

    @property
    def row_factors(self) -> tuple[int, ...] | None:
        """Blocks and the factors of each; ``None`` where ids are hashed."""
        return None if self.assignment == "hash" else (self.units, *self.shape.row_factors)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the cores anew, alike at any number of ranks; torch's generator must agree between them."""
        seed = int(torch.randint(2**62, (), dtype=torch.int64, device="cpu"))
        if self.cores[0].is_meta:
            return
        for local in range(self.local_units):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mixed_seed(seed, self.range.start + local))
                if self.init == "gaussian":
                    drawn = gaussian_cores(self.shape, 0.1 if self.std is None else self.std)
                else:  # the blocks' Gram matrices add up to the table's
                    slots = self.shape.capacity
                    gain = self.units**-0.5 if self.std is None else math.sqrt(slots) * self.std
                    drawn = orthogonal_cores(self.shape, gain)
            self._put(local, drawn)

    def local_rows(self, asked: Tensor, *, distinct: bool) -> Tensor:
        slots = self.shape.capacity
        if self.local_units == 0:
            return self._nothing()
        if self.local_units == 1:
            return self._block_rows([core[0] for core in self.cores], asked)
        block = asked.div(slots, rounding_mode="floor")
        order = None if distinct else block.argsort(stable=True)
        within = asked % slots if order is None else asked[order] % slots
        sizes = torch.bincount(block, minlength=self.local_units).tolist()
        parts = zip(self._trains(), within.split(sizes), strict=True)
        rows = torch.cat([self._block_rows(cores, part) for cores, part in parts])
        return rows if order is None else rows.index_select(0, order.argsort())

    def local_table(self) -> Tensor:
        if self.local_units == 0:
            return self._nothing()
        everything = torch.arange(self.shape.capacity, device=self.cores[0].device)
        return torch.cat([self._block_rows(cores, everything) for cores in self._trains()])

    def _trains(self) -> Iterator[list[Tensor]]:
        """Yields the cores of each block that lives here."""
        for cores in zip(*(core.unbind(0) for core in self.cores), strict=True):
            yield list(cores)

    def _block_rows(self, cores: list[Tensor], position: Tensor) -> Tensor:
        """Returns rows ``[R, D]`` of one block."""
        if self.engine == "auto" or self.engine == "fused":
            if position.device.type == "cpu":
                return tt_lookup(cores, position)
            return tt_rows(cores, position, position.numel(), "prefix")
        return tt_rows(cores, position, position.numel(), self.engine)

    def _nothing(self) -> Tensor:
        """No rows, of no block, and yet something to differentiate."""
        like = self.cores[0]
        return like.new_zeros(0, self.embedding_dim) + sum(core.sum() for core in self.cores)

    @torch.no_grad()
    def set_table_(self, table: Tensor) -> None:
        """Sets each block's cores to a train of the present ranks close to its rows of ``table`` ``[N, D]``.

        All ranks have the table by id. Rows of padding are zeros.
        """
        self._check_table(table)
        slots, shape = self.shape.capacity, self.shape
        where = self.slots_of(torch.arange(self.num_embeddings, device=self.cores[0].device)).cpu()
        for local in range(self.local_units):
            first = (self.range.start + local) * slots
            here = ((where >= first) & (where < first + slots)).nonzero().squeeze(1)
            padded = torch.zeros(slots, self.embedding_dim, dtype=torch.float64)
            padded[where[here] - first] = table[here.to(table.device)].to("cpu", torch.float64)
            cores = tt_svd(padded, shape.row_factors, shape.column_factors, ranks=shape.ranks)
            self._put(local, grow_cores(balance_cores(cores), shape.ranks))

    def _put(self, local: int, values: Sequence[Tensor]) -> None:
        for core, value in zip(self.cores, values, strict=True):
            core[local] = value.to(core)
