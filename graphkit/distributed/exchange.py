"""Rows that live on other ranks: who asks whom for what, and the way of the rows and of their gradients.

A look-up is three messages of ``all_to_all_single``: how many rows each rank wants from each, which ones, and
the rows. Gradients take the last way backwards. An id is sent once however often it occurs, in four bytes.

All ranks take part in every exchange, with empty requests too, in the same order. The exchanges have process
groups of their own, so that this order is theirs alone: other collectives may fall between them anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from graphkit.distributed.grouping import Groups, group_equal, sum_groups
from graphkit.environment import rank_and_world

__all__ = [
    "Channels",
    "Route",
    "Traffic",
    "fetch_rows",
    "find_route",
    "gather_rows",
    "id_bytes",
    "in_background",
    "open_channels",
    "take_rows",
]

_OUTSIDE = -1  # in place of a number of rows: the request holds an id that doesn't exist


class Channels(NamedTuple):
    """Process groups of the exchanges.

    Attributes:
        rows: Of the main thread's; ``None`` where there is one process.
        ahead: Of requests that are sent in the background.
    """

    rows: dist.ProcessGroup | None
    ahead: dist.ProcessGroup | None


class Route(NamedTuple):
    """One look-up's way through the ranks.

    Attributes:
        asked: ``[R]`` int64, local rows that ranks want, those for rank 0 first; each rank's ascending.
        give: How many for each rank; their sum is ``R``.
        take: How many rows come from each rank; their sum is ``U``.
        groups: The ``B`` ids that are looked up, by which of the ``U`` rows they get.
    """

    asked: Tensor
    give: list[int]
    take: list[int]
    groups: Groups


@dataclass
class Traffic:
    """What look-ups have moved since :meth:`reset`, in bytes between this rank and the others.

    Attributes:
        lookups: How many there were.
        ids: Ids that were looked up, with repetitions.
        distinct: Distinct ids of each look-up, summed.
        local: Those of them whose rows live here.
        ids_sent: Requests, with their counts.
        ids_received: The others' requests.
        rows_sent: Rows for others.
        rows_received: Rows for this rank.
        gradients_sent: Gradients; they go where the rows came from.
        gradients_received: Gradients of rows that live here.
    """

    lookups: int = 0
    ids: int = 0
    distinct: int = 0
    local: int = 0
    ids_sent: int = 0
    ids_received: int = 0
    rows_sent: int = 0
    rows_received: int = 0
    gradients_sent: int = 0
    gradients_received: int = 0

    def reset(self) -> None:
        """Starts counting anew."""
        vars(self).update(vars(Traffic()))

    @property
    def local_share(self) -> float:
        """Share of the distinct ids whose rows live on this rank; 1 before the first look-up."""
        return self.local / self.distinct if self.distinct else 1.0

    @property
    def sent(self) -> int:
        """All bytes to other ranks."""
        return self.ids_sent + self.rows_sent + self.gradients_sent

    @property
    def received(self) -> int:
        """All bytes from other ranks."""
        return self.ids_received + self.rows_received + self.gradients_received

    def count(self, route: Route, rank: int, each: int) -> tuple[int, int]:
        """Adds a look-up's ids, and returns how many rows come from other ranks and how many go there."""
        own, counts = route.take[rank], 8 * (len(route.take) - 1)
        coming, going = sum(route.take) - own, sum(route.give) - route.give[rank]
        self.lookups += 1
        self.ids += route.groups.place.numel()
        self.distinct += coming + own
        self.local += own
        self.ids_sent += counts + each * coming
        self.ids_received += counts + each * going
        return coming, going


_channels: WeakKeyDictionary[dist.ProcessGroup, Channels] = WeakKeyDictionary()
_workers: dict[int, ThreadPoolExecutor] = {}


def open_channels() -> Channels:
    """Returns the exchanges' process groups; the first call must be made by all ranks."""
    world = dist.group.WORLD if rank_and_world()[1] > 1 else None
    if world is None:
        return Channels(None, None)
    if world not in _channels:
        limit = _timeout_of(world)
        _channels[world] = Channels(dist.new_group(timeout=limit), dist.new_group(timeout=limit))
    return _channels[world]


def _timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Returns how long collectives may take, as the group was made; new groups don't inherit it."""
    device = torch.device("cuda" if "nccl" in str(dist.get_backend(group)) else "cpu")
    try:
        limit: timedelta = group._get_backend(device).options._timeout
    except (AttributeError, RuntimeError):  # a backend of another kind: its own default
        return None
    return limit


def in_background(work: Callable[[], Any]) -> Future[Any]:
    """Runs work on the thread of background requests, one after the other in the order of calls."""
    here = os.getpid()  # a forked process has none of its parent's threads
    if here not in _workers:
        _workers[here] = ThreadPoolExecutor(1, thread_name_prefix="rows ahead")
    return _workers[here].submit(work)


def find_route(
    slots: Tensor,
    block: int,
    world: int,
    group: dist.ProcessGroup | None,
    *,
    bad: Tensor | None = None,
) -> Route:
    """Finds where the rows of some slots live and tells their ranks.

    Args:
        slots: ``[B]`` int64, all in range; repetitions welcome.
        block: Slots of a rank; rank ``r`` holds those from ``r * block`` on.
        world: Number of ranks.
        group: Channel, ``None`` for one rank.
        bad: A boolean: this rank was asked for what doesn't exist. All ranks raise if one was.

    Raises:
        IndexError: Any rank was asked for what doesn't exist.
    """
    groups = group_equal(slots)
    wanted = groups.keys
    if group is None:
        size = wanted.numel()
        return Route(wanted, [size], [size], groups)
    bounds = torch.arange(1, world, device=slots.device) * block
    cuts = torch.searchsorted(wanted, bounds)
    ends = cuts.new_full((1,), wanted.numel())
    take = torch.diff(torch.cat([cuts.new_zeros(1), cuts, ends]))
    if bad is not None:
        take = torch.where(bad, _OUTSIDE, take)
    give = torch.empty_like(take)
    dist.all_to_all_single(give, take, group=group)
    take_list, give_list = torch.stack([take, give]).tolist()  # the only wait for the device
    if _OUTSIDE in give_list:
        raise IndexError(f"rank {give_list.index(_OUTSIDE)} looked up ids that are out of range")
    narrow = torch.int32 if id_bytes(block) == 4 else torch.int64
    asked = _exchange((wanted % block).to(narrow), take_list, give_list, group)
    return Route(asked.long(), give_list, take_list, groups)


def id_bytes(block: int) -> int:
    """Returns what an id takes on its way to a rank that holds ``block`` slots."""
    return 4 if block < 2**31 else 8


def _exchange(data: Tensor, give: list[int], take: list[int], group: dist.ProcessGroup) -> Tensor:
    """Sends ``give[r]`` rows to each rank, in order, and returns those that come, ``take[r]`` from each."""
    coming = data.new_empty((sum(take), *data.shape[1:]))
    dist.all_to_all_single(coming, data.contiguous(), take, give, group=group)
    return coming


class _TakeRows(torch.autograd.Function):
    """Rows of a parameter, with a gradient that holds each of them once and no other."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, distinct: bool) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.distinct = table.shape, distinct
        return table.index_select(0, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        if not ctx.distinct:
            groups = group_equal(rows, runs=True)
            rows, grad = groups.keys, sum_groups(grad, groups)
        whole = torch.sparse_coo_tensor(
            # a copy, since gradients of several look-ups are added in place and NumPy's memory can't grow
            rows.clone().unsqueeze(0),
            grad,
            ctx.shape,
            is_coalesced=True,
            check_invariants=False,
        )
        return whole, None, None


class _Send(torch.autograd.Function):
    """Rows to the ranks that asked for them; gradients the way back."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, route: Route, group: dist.ProcessGroup, told: Callable[[int], None]
    ) -> Tensor:
        ctx.route, ctx.group, ctx.told = route, group, told
        return _exchange(rows, route.give, route.take, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        back = _exchange(grad, ctx.route.take, ctx.route.give, ctx.group)
        ctx.told(grad.size(1) * grad.element_size())
        return back, None, None, None


class _Spread(torch.autograd.Function):
    """A row for each id, equal ones for equal ids."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return rows.index_select(0, groups.place)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_groups(grad, ctx.groups), None


def take_rows(table: Tensor, rows: Tensor, *, distinct: bool) -> Tensor:
    """Returns ``table[rows]``, ``[R, D]``; the gradient of the table is sparse and coalesced.

    Args:
        table: A parameter ``[n, D]``.
        rows: ``[R]`` int64.
        distinct: They are ascending, each once; otherwise they are a few ascending runs.
    """
    taken: Tensor = _TakeRows.apply(table, rows, distinct)
    return taken


def fetch_rows(
    rows: Tensor, route: Route, rank: int, block: int, group: dist.ProcessGroup | None, count: Traffic
) -> Tensor:
    """Sends the rows that were asked for and returns those that this rank asked for, by id.

    Args:
        rows: ``[R, D]``, the rows ``route.asked``.
        route: See :func:`find_route`.
        rank: This process's.
        block: Slots of a rank.
        group: Channel, ``None`` for one rank.
        count: Where bytes are added.

    Returns:
        ``[B, D]``, differentiable.
    """
    coming, going = count.count(route, rank, id_bytes(block))
    width = rows.size(1) * rows.element_size()
    count.rows_sent += going * width
    count.rows_received += coming * width
    if group is not None:

        def told(row: int) -> None:
            count.gradients_sent += coming * row
            count.gradients_received += going * row

        rows = _Send.apply(rows, route, group, told)
    spread: Tensor = _Spread.apply(rows, route.groups)
    return spread


class _GatherRows(torch.autograd.Function):
    """The blocks of all ranks one behind the other; the gradient of each is summed where it lives."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, size: int, world: int, group: dist.ProcessGroup) -> Tensor:
        ctx.kept, ctx.world, ctx.group = block.size(0), world, group
        padded = block.contiguous()
        if block.size(0) < size:
            padded = block.new_zeros(size, *block.shape[1:])
            padded[: block.size(0)] = block
        whole = block.new_empty(world * size, *block.shape[1:])
        gather = (
            getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        )  # its name since 2.13
        gather(whole, padded, group=group)
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        parts = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(parts, grad.contiguous(), group=ctx.group)  # gloo has no reduce-scatter
        total = parts.view(ctx.world, -1, *grad.shape[1:]).sum(0)
        return total[: ctx.kept], None, None, None


def gather_rows(block: Tensor, size: int, world: int, group: dist.ProcessGroup | None) -> Tensor:
    """Returns the rows of all ranks, ``[world * size, ...]``, zeros where a rank has fewer than ``size``.

    Args:
        block: This rank's rows ``[n, ...]``, ``n <= size``.
        size: Rows of a full block.
        world: Number of ranks.
        group: Channel, ``None`` for one rank.
    """
    if group is None:
        return block
    whole: Tensor = _GatherRows.apply(block, size, world, group)
    return whole
