"""A table that is stored as a tensor train: each row is the product of ``d`` small matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from graphkit.kernels.tt_lookup import tt_lookup
from graphkit.nn.checks import require_positive
from graphkit.nn.embedding.base import Embedding
from graphkit.nn.embedding.tt_algebra import balance_cores, grow_cores, round_cores, tt_svd
from graphkit.nn.embedding.tt_engines import Engine, tt_rows
from graphkit.nn.embedding.tt_init import gaussian_cores, orthogonal_cores
from graphkit.nn.embedding.tt_shape import TTShape, inner_ranks

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TTEmbedding"]

# Beyond this share of all rows in one lookup, computing the whole table costs less than sharing prefixes.
FULL_SHARE = 0.6
# A whole table larger than this many bytes isn't computed for the sake of a part of it.
FULL_BYTES = 1 << 30
# Sharing prefixes pays from this many rows a prefix on; below, every row is computed by itself.
ROWS_PER_PREFIX = 1.5


class TTEmbedding(Embedding):
    r"""Tensor-train embedding: :math:`W[i, j] = G_1[i_1, j_1] G_2[i_2, j_2] \cdots G_d[i_d, j_d]`.

    Position ``i`` and column ``j`` are mixed-radix numbers, the first digit most significant, with the digits
    :math:`i_k < p_k` and :math:`j_k < q_k`; :math:`G_k[i_k, j_k]` is an ``[r_{k-1}, r_k]`` matrix. Rows whose
    positions share leading digits share their leading factors, so an order that gives neighbours in the graph
    common digits (:mod:`graphkit.partition`) lets them share what they have in common.

    Parameters are ``cores.0, cores.1, ...`` of shape ``(p_k, r_{k-1}, q_k, r_k)``,
    :math:`\sum_k p_k r_{k-1} q_k r_k` values in all. All of them get a dense gradient from every lookup, an
    empty one too, so any optimizer and plain data parallelism will do.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``.
        rank: Rank between cores: one for all, or ``d - 1`` of them.
        num_cores: ``d``, at least 2.
        row_factors: ``(p_1, ..., p_d)``, product at least ``N``; chosen by :meth:`TTShape.auto` if not given.
        column_factors: ``(q_1, ..., q_d)``, product ``D``; chosen likewise.
        order: ``[N]`` distinct positions below the product of the row factors; ids by default.
        init: ``orthogonal``: the padded table has exactly orthogonal columns of one norm; ``gaussian``:
            independent Gaussian cores of matched variance.
        std: Deviation of the table's entries at the start. By default columns have norm 1
            (``orthogonal``), or it is 0.1 (``gaussian``).
        engine: How rows are computed: ``full`` (whole table by matrix products), ``prefix`` (leading
            factors once for all rows that share them), ``gather`` (row by row), ``fused`` (compiled, on CPU;
            elsewhere like ``auto``) or ``auto`` (by device and batch). All give the same rows and keep
            nothing but positions and cores for the backward pass.

    Raises:
        ValueError: If the arguments don't fit each other.

    Source:
        C. Yin, D. Zheng, I. Nisa, C. Faloutsos, G. Karypis, R. Vuduc, "Nimble GNN Embedding with Tensor-Train
        Decomposition", KDD 2022, arXiv:2206.10581.
    """

    kind: ClassVar[str] = "tensor_train"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rank: int | Sequence[int] = 16,
        num_cores: int = 3,
        row_factors: Sequence[int] | None = None,
        column_factors: Sequence[int] | None = None,
        order: Tensor | None = None,
        init: Literal["orthogonal", "gaussian"] = "orthogonal",
        std: float | None = None,
        engine: Engine = "auto",
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        if init not in ("orthogonal", "gaussian"):
            raise ValueError(f"init is {init!r}; it must be 'orthogonal' or 'gaussian'")
        if engine not in get_args(Engine):
            raise ValueError(f"engine is {engine!r}; it must be one of {', '.join(get_args(Engine))}")
        if std is not None and not std > 0:
            raise ValueError(f"std is {std}; it must be positive")
        self.shape = TTShape.auto(
            num_embeddings,
            embedding_dim,
            num_cores=num_cores,
            rank=rank,
            row_factors=row_factors,
            column_factors=column_factors,
        )
        self.init, self.std, self.engine = init, std, engine
        self.cores = nn.ParameterList(torch.empty(sizes) for sizes in self.shape.core_shapes)
        self.reset_parameters()
        if order is not None:
            self.set_order(order)

    @property
    def row_factors(self) -> tuple[int, ...]:
        """``(p_1, ..., p_d)``: radices of a position's digits."""
        return self.shape.row_factors

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the cores anew from torch's generator; the order stays."""
        if self.init == "gaussian":
            drawn = gaussian_cores(self.shape, 0.1 if self.std is None else self.std)
        else:
            gain = 1.0 if self.std is None else math.sqrt(self.shape.capacity) * self.std
            drawn = orthogonal_cores(self.shape, gain)
        for core, values in zip(self.cores, drawn, strict=True):
            core.copy_(values)

    def lookup(self, position: Tensor) -> Tensor:
        """Returns the rows at positions ``[B]`` int64, which were checked, as ``[B, D]``."""
        engine = self._engine_for(position)
        if engine == "fused":
            return tt_lookup(list(self.cores), position)
        return tt_rows(list(self.cores), position, position.numel(), engine)

    def weight(self) -> Tensor:
        """Returns all rows by id, ``[N, D]``, differentiable; padding isn't among them."""
        position, cores = None if self.position is None else self.position.long(), list(self.cores)
        if self.engine != "auto" and self.engine != "fused":
            return tt_rows(cores, position, self.num_embeddings, self.engine)
        if cores[0].device.type != "cpu":
            return tt_rows(cores, position, self.num_embeddings, "full")
        return tt_lookup(cores, torch.arange(self.num_embeddings) if position is None else position)

    def _engine_for(self, position: Tensor) -> Literal["full", "prefix", "gather", "fused"]:
        """Chooses by device, by the size of the batch and by how many of its rows share a prefix."""
        on_cpu = position.device.type == "cpu"
        if self.engine == "auto" or (self.engine == "fused" and not on_cpu):
            return "fused" if on_cpu else self._torch_engine_for(position)
        return self.engine

    def _torch_engine_for(self, position: Tensor) -> Literal["full", "prefix", "gather"]:
        table = self.num_embeddings * self.embedding_dim * self.cores[0].element_size()
        if position.numel() > FULL_SHARE * self.num_embeddings and table <= FULL_BYTES:
            return "full"
        last = self.row_factors[-1]
        possible = self.shape.capacity // last
        if position.numel() >= ROWS_PER_PREFIX * possible:
            return "prefix"
        prefixes = torch.unique(position.div(last, rounding_mode="floor")).numel()
        return "prefix" if position.numel() >= ROWS_PER_PREFIX * prefixes else "gather"

    # --- tables in and out, ranks, more rows ------------------------------------------------------------

    @classmethod
    def from_dense(cls, table: Tensor, *, tol: float | None = None, **options: Any) -> Self:
        """Returns a tensor train that approximates ``table`` ``[N, D]`` by id, of its dtype and device.

        Args:
            table: The rows by id. Takes a few times its memory in float64.
            tol: Largest error as a share of the table's Frobenius norm; ranks are then as high as that takes.
            **options: What the constructor takes beside the sizes; ``rank`` only where ``tol`` isn't given.

        Raises:
            ValueError: If both ``tol`` and ``rank`` are given.
        """
        if tol is None:
            return super().from_dense(table, **options)
        if "rank" in options:
            raise ValueError("give either rank or tol: a tolerance decides the ranks")
        made = cls(table.size(0), table.size(1), rank=1, **options).to(table.device, table.dtype)
        shape = made.shape
        made._replace(tt_svd(made._by_position(table), shape.row_factors, shape.column_factors, tol=tol))
        return made

    @torch.no_grad()
    def set_table_(self, table: Tensor) -> None:
        """Sets the cores to a train of the present ranks that is close to ``table`` ``[N, D]`` (TT-SVD).

        Parameters stay the same objects. Ranks that the table doesn't fill are grown as in :meth:`grow_`.

        Raises:
            ValueError: If the table has another shape.
        """
        self._check_table(table)
        ranks, shape = self.shape.ranks, self.shape
        cores = tt_svd(self._by_position(table), shape.row_factors, shape.column_factors, ranks=ranks)
        for core, values in zip(self.cores, grow_cores(balance_cores(cores), ranks), strict=True):
            core.copy_(values)

    def round_(self, rank: int | Sequence[int] | None = None, tol: float | None = None) -> None:
        """Lowers ranks, changing the table as little as one sweep of truncated decompositions does.

        The cores become new parameters: build the optimizer anew.

        Args:
            rank: Ranks not to be exceeded: one for all or ``d - 1`` of them.
            tol: Largest change as a share of the Frobenius norm of the table with its padding, as far as
                ``rank`` allows.

        Raises:
            ValueError: If neither is given.
        """
        if rank is None and tol is None:
            raise ValueError("round_ needs a rank, a tol or both")
        limit = None if rank is None else (1, *inner_ranks(rank, self.shape.num_cores), 1)
        self._replace(round_cores(list(self.cores), ranks=limit, tol=tol or 0.0))

    def grow_(self, rank: int | Sequence[int]) -> None:
        """Raises ranks; the table stays what it is up to rounding, and the new values are trained.

        The cores become new parameters: build the optimizer anew.

        Args:
            rank: One for all or ``d - 1`` of them. Ranks that can't matter are cut, with a warning.

        Raises:
            ValueError: If one is below the present rank.
        """
        shape = self.shape
        inner = inner_ranks(rank, shape.num_cores)
        if any(new < old for new, old in zip(inner, shape.ranks[1:-1], strict=True)):
            raise ValueError(f"rank is {rank}; it must not be below the present {list(shape.ranks[1:-1])}")
        larger = TTShape.auto(
            self.num_embeddings,
            self.embedding_dim,
            rank=inner,
            row_factors=shape.row_factors,
            column_factors=shape.column_factors,
        )
        self._replace(grow_cores(list(self.cores), larger.ranks), balance=False)

    @torch.no_grad()
    def append(self, num_new: int, positions: Tensor | None = None) -> None:
        """Adds rows with the ids ``N`` to ``N + num_new - 1``; existing rows don't change.

        If a position lies beyond the last one, the first core gets more digits (its new slices are noise of
        its own deviation) and becomes a new parameter: build the optimizer anew.

        Args:
            num_new: How many.
            positions: ``[num_new]`` free positions; by default the lowest free ones, or the ids where ids are
                positions.

        Raises:
            ValueError: If positions aren't distinct, free and not negative.
        """
        require_positive("num_new", num_new)
        old, capacity = self.num_embeddings, self.shape.capacity
        device = self.cores[0].device
        taken = torch.arange(old, device=device) if self.position is None else self.position.long()
        if positions is None:
            free = torch.ones(capacity, dtype=torch.bool, device=device)
            free[taken] = False
            added = free.nonzero().squeeze(1)[:num_new]
            beyond = torch.arange(capacity, capacity + num_new - added.numel(), device=device)
            added = torch.cat([added, beyond])
        else:
            added = positions.to(device, torch.int64).reshape(-1)
        everyone = torch.cat([taken, added])
        whole = positions is None or not positions.is_floating_point()
        if (
            not whole
            or added.numel() != num_new
            or int(added.min()) < 0
            or everyone.unique().numel() != old + num_new
        ):
            raise ValueError(f"positions must be {num_new} distinct free integers, none negative")
        below = capacity // self.row_factors[0]
        missing = int(added.max()) // below + 1 - self.row_factors[0]
        if missing > 0:
            first = self.cores[0]
            noise = torch.randn(missing, *first.shape[1:], dtype=torch.float64)
            noise = (noise * float(first.double().pow(2).mean().sqrt())).to(first)
            self._replace([torch.cat([first.detach(), noise]), *list(self.cores)[1:]], balance=False)
        self.num_embeddings = old + num_new
        self.shape = self.shape._replace(num_embeddings=self.num_embeddings)
        ids_are_positions = self.position is None and positions is None
        self.set_order(None if ids_are_positions else everyone)

    def _replace(self, cores: list[Tensor], *, balance: bool = True) -> None:
        """Puts other cores in place of the present ones, in their dtype and on their device."""
        like = self.cores[0]
        cores = balance_cores(cores) if balance else cores
        self.cores = nn.ParameterList(
            nn.Parameter(core.detach().to(like.device, like.dtype), like.requires_grad) for core in cores
        )
        self.shape = self.shape._replace(
            row_factors=tuple(core.size(0) for core in cores),
            ranks=(1, *(core.size(3) for core in cores)),
        )

    def _by_position(self, table: Tensor) -> Tensor:
        """Returns the table ``[N, D]`` in the order of positions, ``[P, D]`` float64, zeros as padding."""
        padded = torch.zeros(self.shape.capacity, table.size(1), dtype=torch.float64)
        values = table.detach().to("cpu", torch.float64)
        if self.position is None:
            padded[: values.size(0)] = values
        else:
            padded[self.position.cpu().long()] = values
        return padded

    def extra_repr(self) -> str:
        rows, columns = ("x".join(map(str, factors)) for factors in self.shape[2:4])
        ranks = "-".join(map(str, self.shape.ranks[1:-1]))
        return f"{super().extra_repr()}, rows {rows}, columns {columns}, ranks {ranks}, engine {self.engine}"
