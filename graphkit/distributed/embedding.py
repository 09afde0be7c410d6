"""A full table whose rows are spread over the ranks of a run."""

from __future__ import annotations

import math
from abc import abstractmethod
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from graphkit.distributed.exchange import (
    Channels,
    Route,
    Traffic,
    fetch_rows,
    find_route,
    gather_rows,
    in_background,
    open_channels,
    take_rows,
)
from graphkit.environment import rank_and_world
from graphkit.nn.embedding.base import Embedding
from graphkit.nn.embedding.partition_range import block_size, range_of

__all__ = ["Assignment", "PartitionedEmbedding", "PartitionedTable", "slot_factor"]

Assignment = Literal["blocks", "hash", "partition"]

_PARTS = 64  # of the graph, nested, for the assignment ``partition``
_FRESH = 65_536  # slots that one generator starts
_WAITING = 4  # requests that may be sent ahead of their look-ups


class _Ahead(NamedTuple):
    """A request in the background, and what it was made for; ranks number them alike."""

    number: int
    ids: Tensor
    version: int
    route: Future[Route]


class PartitionedTable(Embedding):
    r"""What partitioned tables share: ids have slots, contiguous blocks of slots belong to ranks.

    The slot of an id doesn't depend on the number of ranks: it is the id (``blocks``), a permutation of ids
    that is computed (``hash``), or :attr:`position`. So a table that was saved by slot loads at any number of
    ranks. Rank ``r`` of ``W`` holds the units ``r * ceil(n / W)`` to ``(r + 1) * ceil(n / W) - 1`` of ``n``;
    the last ranks may hold fewer, or none. A unit is a row, or a block of rows with parameters in common.

    Calls are collective: all ranks look up, each its own ids, and go through the backward pass equally
    often and in the same order; ``emb()``, :meth:`weight`, :meth:`to_dense` and :meth:`set_order` too. In one
    process there is nothing to agree on. The backward pass *sums* what all ranks send, so the loss is divided
    by what the whole batch is divided by, never by the number of ranks.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``.
        assignment: Which slots ids get.
        units: ``n``.
        unit_rows: Slots of a unit.

    Attributes:
        traffic: Bytes that look-ups have moved, and the share of them that stayed local.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, assignment: Assignment, units: int, unit_rows: int
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        if assignment not in ("blocks", "hash", "partition"):
            raise ValueError(f"assignment is {assignment!r}; it must be blocks, hash or partition")
        self.assignment = assignment
        self.rank, self.world = rank_and_world()
        self.units, self.unit_rows = units, unit_rows
        self.range, self.local_units = range_of(units, self.rank, self.world)
        self.block = block_size(units, self.world) * unit_rows
        self.traffic = Traffic()
        self._ahead: list[_Ahead] = []
        self._sent = 0

    @abstractmethod
    def local_rows(self, asked: Tensor, *, distinct: bool) -> Tensor:
        """Returns this rank's rows ``asked`` ``[R]`` int64, ``[R, D]``; hangs on the parameters if R is 0."""

    @abstractmethod
    def local_table(self) -> Tensor:
        """Returns the rows of all of this rank's slots, ``[local_units * unit_rows, D]``, differentiable."""

    # --- Slots ------------------------------------------------------------------------------------------

    def slots_of(self, ids: Tensor) -> Tensor:
        """Returns the slots ``[B]`` int64 of ids ``[B]``, which are in range."""
        if self.assignment == "hash":
            return ids.long() * slot_factor(self.num_embeddings) % self.num_embeddings
        return ids.long() if self.position is None else self.position[ids].long()

    def positions_of(self, ids: Tensor) -> Tensor:
        """Checks ids ``[B]`` on this rank and returns their slots, ``[B]`` int64."""
        super().positions_of(ids)
        return self.slots_of(ids)

    def ranks_of(self, ids: Tensor) -> Tensor:
        """Returns the rank ``[B]`` int64 that each id ``[B]``, in range, lives on."""
        return self.slots_of(ids).div(self.block, rounding_mode="floor")

    # --- Look-ups ---------------------------------------------------------------------------------------

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """Returns the rows of ``ids``, wherever they live; all ranks call it together.

        Args:
            ids: Integers of any shape in ``[0, N)``, repetitions welcome; ``None`` for all rows.

        Returns:
            ``[*ids.shape, D]``, or ``[N, D]`` without ids.

        Raises:
            IndexError: An id is out of range, on whichever rank.
            TypeError: The ids aren't integers.
        """
        if ids is None:
            return self.weight()
        route = self._sent_ahead(ids)
        if route is None:
            self._check_kind(ids)
            route = self._route(ids, self._channels().rows)
        return self._fetch(route).reshape(*ids.shape, self.embedding_dim)

    def lookup(self, position: Tensor) -> Tensor:
        """Returns the rows at slots ``[B]`` int64, which were checked, as ``[B, D]``."""
        group = self._channels().rows
        return self._fetch(find_route(position, self.block, self.world, group))

    def prefetch(self, ids: Tensor) -> None:
        """Sends the request for ``ids`` in the background; ``emb(ids)`` with the same tensor finishes it.

        Rows follow at the look-up, since a step may change them until then. All ranks call it together. If
        one of them then looks up something else, all ask anew; requests left over are forgotten.

        Args:
            ids: As for a look-up. They mustn't be written to in between.
        """
        self._check_kind(ids)
        work = partial(self._route, ids, self._channels().ahead)
        version = _version_of(ids)
        if ids.device.type == "cpu":
            route = in_background(work)
        else:  # other devices want one order of all collectives, so it is put in line here
            route = Future()
            route.set_result(work())
        self._sent += 1
        self._ahead = [*self._ahead[1 - _WAITING :], _Ahead(self._sent, ids, version, route)]

    def _sent_ahead(self, ids: Tensor) -> Route | None:
        """Returns the request that was made for these ids, if all ranks have one of the same call."""
        if not self._ahead:
            return None
        same = [ahead for ahead in self._ahead if ahead.ids is ids and ahead.version == _version_of(ids)]
        number = same[0].number if same else 0
        highest, lowest = number, number
        if self.world > 1:
            numbers = torch.tensor([number, -number], device=ids.device)
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._channels().rows)
            highest, lowest = (int(value) for value in (numbers * numbers.new_tensor([1, -1])).tolist())
        self._ahead = [ahead for ahead in self._ahead if ahead.number > highest]
        return same[0].route.result() if 0 < highest == lowest else None

    def _route(self, ids: Tensor, group: Any) -> Route:
        flat = ids.detach().reshape(-1)
        bad = None
        if flat.numel():
            low, high = torch.aminmax(flat)
            bad = (low < 0) | (high >= self.num_embeddings)
            if self.world == 1 or flat.device.type == "cpu":
                bad = self._say_bad(bad, low, high)
            if bad is not None:
                flat = flat.clamp(0, self.num_embeddings - 1)
        try:
            return find_route(self.slots_of(flat), self.block, self.world, group, bad=bad)
        except IndexError as error:
            raise IndexError(f"{error}; the table has rows 0 to {self.num_embeddings - 1}") from None

    def _say_bad(self, bad: Tensor, low: Tensor, high: Tensor) -> Tensor | None:
        """Raises where this is the only rank; the others must hear of it otherwise."""
        if not bool(bad):
            return None
        if self.world > 1:
            return bad
        raise IndexError(
            f"ids from {int(low)} to {int(high)}; the table has rows 0 to {self.num_embeddings - 1}"
        )

    def _fetch(self, route: Route) -> Tensor:
        rows = self.local_rows(route.asked, distinct=self.world == 1)
        return fetch_rows(rows, route, self.rank, self.block, self._channels().rows, self.traffic)

    def _channels(self) -> Channels:
        if (self.rank, self.world) != rank_and_world():
            raise RuntimeError(
                f"the table was made as rank {self.rank} of {self.world}, and this is rank "
                "%d of %d; make it after the process group" % rank_and_world()
            )
        return open_channels()

    def _check_kind(self, ids: Tensor) -> None:
        if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
            raise TypeError(f"ids are {ids.dtype}; they must be integers")

    # --- The whole table --------------------------------------------------------------------------------

    def weight(self) -> Tensor:
        """Returns all rows by id on every rank, ``[N, D]``; the gradient is dense."""
        whole = gather_rows(self.local_table(), self.block, self.world, self._channels().rows)
        if self.assignment == "hash":
            return whole.index_select(
                0, self.slots_of(torch.arange(self.num_embeddings, device=whole.device))
            )
        if self.position is not None:
            return whole.index_select(0, self.position.long())
        return whole if whole.size(0) == self.num_embeddings else whole[: self.num_embeddings]

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Returns the table ``[N, D]`` by id on every rank, without gradient, in memory of its own."""
        whole = self.weight().detach()
        return whole.clone() if self.world == 1 else whole

    def set_order(self, position: Tensor | None) -> None:
        """Gives ids their slots; rank 0's are taken by all ranks, and parameters stay where they are.

        Args:
            position: As for :meth:`Embedding.set_order`.

        Raises:
            ValueError: If the positions aren't distinct and in range, or the assignment takes no order.
        """
        if self.assignment == "hash" and position is not None:
            raise ValueError("an embedding whose rows are assigned by hash takes no order")
        super().set_order(position)
        if self.world > 1 and self.position is not None:
            dist.broadcast(self.position, 0, group=self._channels().rows)

    @property
    def num_parameters(self) -> int:
        """Values that all ranks together store and train."""
        return sum(math.prod(p.shape[1:]) for p in self.parameters()) * self.units

    # --- Parameters -------------------------------------------------------------------------------------

    def _mark(self) -> None:
        """Tells optimizer, checkpoints and data parallelism that rows of these parameters live here only."""
        for parameter in self.parameters():
            parameter.partitioned = True  # type: ignore[attr-defined]
            parameter.rows = self.range  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()  # copies of parameters don't keep attributes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": []}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._mark()  # with assign=True they are new objects

    def extra_repr(self) -> str:
        first, size = self.range.start * self.unit_rows, self.local_units * self.unit_rows
        return f"{super().extra_repr()}, by {self.assignment}, slots {first} to {first + size - 1} here"


class PartitionedEmbedding(PartitionedTable):
    r"""A table :math:`W \in \mathbb{R}^{N \times D}` of which each rank holds ``ceil(N / W)`` rows.

    Look-ups give sparse gradients, which hold each row once; :meth:`weight` gives a dense one.

    Args:
        num_embeddings: Rows ``N``.
        embedding_dim: Width ``D``.
        assignment: ``blocks``: ids in a row live together; ``hash``: they are spread evenly; ``partition``:
            by :meth:`set_order`, which follows a partition of the graph, so that neighbours live together.
        init: Entries are Gaussian and independent either way (columns of a tall table are nearly orthogonal
            then); it decides the default of ``std``, as in :class:`DenseEmbedding`.
        std: The entries' deviation; by default ``N**-0.5`` for ``orthogonal``, else 0.1.

    Shapes:
        Parameter ``table`` ``[n, D]``: the slots ``table.rows.start`` to ``table.rows.start + n - 1``.
    """

    kind = "dense"
    sparse = True

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        assignment: Assignment = "blocks",
        init: Literal["orthogonal", "gaussian"] = "orthogonal",
        std: float | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, assignment, num_embeddings, 1)
        if init not in ("orthogonal", "gaussian"):
            raise ValueError(f"init is {init!r}; it must be orthogonal or gaussian")
        if std is not None and not std > 0:
            raise ValueError(f"std is {std}; it must be positive")
        self.init, self.std = init, std
        self.table = nn.Parameter(torch.empty(self.local_units, embedding_dim))
        self._mark()
        self.reset_parameters()

    @property
    def row_factors(self) -> tuple[int, ...] | None:
        """With ``partition``: parts of the graph and slots of a part."""
        if self.assignment != "partition":
            return None
        parts = min(_PARTS, self.num_embeddings)
        return parts, block_size(self.num_embeddings, parts)

    def set_order(self, position: Tensor | None) -> None:
        """Gives ids the slots ``0`` to ``N - 1`` in the order of their positions; see the base class."""
        super().set_order(position)
        if self.position is not None:
            order = self.position.long().argsort()
            self.position[order] = torch.arange(order.numel(), device=order.device).to(self.position.dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the rows anew, alike at any number of ranks; torch's generator must agree between them."""
        orthogonal = self.init == "orthogonal"
        std = self.std if self.std is not None else self.num_embeddings**-0.5 if orthogonal else 0.1
        seed = int(torch.randint(2**62, (), dtype=torch.int64, device="cpu"))
        if self.table.is_meta:
            return
        first, last = self.range.start, self.range.start + self.local_units
        for fresh in range(first // _FRESH, -(-last // _FRESH)):
            generator = torch.Generator().manual_seed(mixed_seed(seed, fresh))
            begin, end = fresh * _FRESH, min((fresh + 1) * _FRESH, self.num_embeddings)
            values = torch.randn(end - begin, self.embedding_dim, generator=generator).mul_(std)
            here = slice(max(begin, first) - begin, min(end, last) - begin)
            self.table[max(begin, first) - first : min(end, last) - first] = values[here].to(self.table)

    def local_rows(self, asked: Tensor, *, distinct: bool) -> Tensor:
        return take_rows(self.table, asked, distinct=distinct)

    def local_table(self) -> Tensor:
        return self.table

    @torch.no_grad()
    def set_table_(self, table: Tensor) -> None:
        """Takes this rank's rows out of ``table`` ``[N, D]`` by id, which all ranks have."""
        self._check_table(table)
        first = self.range.start
        if self.assignment != "hash" and self.position is None:
            self.table.copy_(table[first : first + self.local_units])
            return
        slots = self.slots_of(torch.arange(self.num_embeddings, device=self.table.device))
        here = ((slots >= first) & (slots < first + self.local_units)).nonzero().squeeze(1)
        self.table[slots[here] - first] = table[here.to(table.device)].to(self.table)


def _version_of(ids: Tensor) -> int:
    """Returns what changes when somebody writes to a tensor."""
    return -1 if ids.is_inference() else ids._version


def mixed_seed(seed: int, number: int) -> int:
    """Returns a seed for the ``number``-th of several generators."""
    mixed = (seed ^ (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ mixed >> 31) * 0xBF58476D1CE4E5B9 % 2**64
    return (mixed ^ mixed >> 29) % 2**63


def slot_factor(num_ids: int) -> int:
    """Returns the factor ``a`` that spreads ids over slots: ``slot = a * id mod N``, one to one.

    It is close to ``N`` over the golden ratio, so any run of ids is spread evenly, and smaller for tables of
    more than three billion rows, so that products stay below 2^63.
    """
    factor = max(1, min(round(num_ids * (math.sqrt(5) - 1) / 2), (2**63 - 1) // num_ids))
    while math.gcd(factor, num_ids) != 1:
        factor -= 1
    return factor
