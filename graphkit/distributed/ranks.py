"""What the processes of a run ask of each other; alone, every answer is immediate.

The transport is ``torch.distributed``: these are the few sums, agreements and gatherings that graphkit needs,
each a call that all ranks make, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from graphkit.environment import rank_and_world

__all__ = [
    "Each",
    "all_max",
    "all_sum",
    "any_true",
    "barrier",
    "gather_rows",
    "in_turn",
    "same_everywhere",
    "share_out",
    "start_sum",
]

_SMALL = 1 << 18  # bytes that all ranks send together
Part = TypeVar("Part")
Found = TypeVar("Found")


class Each(Protocol):
    """Works on each of some parts: :func:`in_turn` alone, :func:`share_out` together with the other ranks."""

    def __call__(self, parts: Sequence[Part], work: Callable[[Part], Found]) -> list[Found]: ...


def all_max(values: Tensor) -> Tensor:
    """Returns the elementwise maximum over ranks."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def all_sum(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Returns the elementwise sum over ranks; ``values`` may be written to."""
    return values if rank_and_world()[1] == 1 else start_sum(values, group).wait()


def start_sum(values: Tensor, group: dist.ProcessGroup | None = None) -> torch.futures.Future[Tensor]:
    """Begins a sum over ranks, for a tensor that may be written to.

    gloo gathers a few numbers in a quarter of the time that it takes to reduce them, so small tensors on a
    CPU are gathered and added here, in the order of ranks.
    """
    world = dist.get_world_size(group)
    if values.device.type == "cpu" and world * values.nbytes <= _SMALL:
        parts = [torch.empty_like(values) for _ in range(world)]
        gathered = dist.all_gather(parts, values.contiguous(), group=group, async_op=True).get_future()
        added: torch.futures.Future[Tensor] = gathered.then(lambda future: _added(future, parts))
        return added
    reduced = dist.all_reduce(values, group=group, async_op=True).get_future()
    done: torch.futures.Future[Tensor] = reduced.then(lambda future: future.value()[0])
    return done


def _added(future: torch.futures.Future[Any], parts: list[Tensor]) -> Tensor:
    future.value()  # raises what the exchange raised
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def any_true(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if rank_and_world()[1] == 1:
        return flag
    return bool(all_max(torch.tensor([float(flag)], device=device)).item())


def barrier() -> None:
    """Waits for all ranks."""
    if rank_and_world()[1] > 1:
        dist.barrier()


def same_everywhere(value: Any) -> Any:
    """Returns rank 0's value, anything that can be sent, on all ranks."""
    if rank_and_world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Returns the rows ``[n_r, ...]`` of each rank, whose numbers may differ, in the order of ranks.

    Each rank sends its own rows and no padding.
    """
    rank, world = rank_and_world()
    if world == 1:
        return [rows]
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([rows.size(0)], device=rows.device))
    found = []
    for source, count in enumerate(torch.cat(counts).tolist()):
        part = rows.contiguous() if source == rank else rows.new_empty(count, *rows.shape[1:])
        if count:
            dist.broadcast(part, src=source)
        found.append(part)
    return found


def in_turn(parts: Sequence[Part], work: Callable[[Part], Found]) -> list[Found]:
    """Returns ``[work(part) for part in parts]``, whoever else is there."""
    return [work(part) for part in parts]


def share_out(parts: Sequence[Part], work: Callable[[Part], Found]) -> list[Found]:
    """Returns ``[work(part) for part in parts]`` on every rank, each part worked on by one of them.

    Rank ``r`` of ``W`` takes the parts ``r, r + W, ...``; what it finds is sent to all. Every part is
    computed just as one process computes it, so the results are the same bit for bit, however many parts and
    ranks there are. All ranks work equally often. Results may hold tensors, which arrive on the CPU.

    Args:
        parts: The same on all ranks.
        work: Makes a result that can be sent: tensors, numbers, tuples of them.
    """
    rank, world = rank_and_world()
    if world == 1:
        return in_turn(parts, work)
    sent: list[Any] = [None] * world
    # tables over ranks are looked up by all together, so a rank that has nothing left repeats the last part
    rounds = range(rank, -(-len(parts) // world) * world, world)
    own = [_on_cpu(work(parts[min(at, len(parts) - 1)])) for at in rounds]
    dist.all_gather_object(sent, own[: len(parts[rank::world])])
    found: list[Any] = [None] * len(parts)
    for source, items in enumerate(sent):
        found[source::world] = items
    return found


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, tuple):
        items = [_on_cpu(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
