"""What the training loop asks of the other processes of a run; alone, every answer is immediate.

The loop needs four things from ``torch.distributed``: its rank, the world's size, the sum of the gradients
and agreement on a flag. Gradients are summed here after the backward pass, not averaged by a wrapper round
the model, because tasks call a model's parts (``encode``, ``score``) and not only its ``forward``; with a
loss normalised by the *global* batch the sum is the gradient of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from graphkit.environment import rank_and_world

__all__ = ["all_max", "all_sum", "any_true", "barrier", "sum_gradients"]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums the gradients over ranks, in one message a data type.

    A parameter that got no gradient on this rank takes part with zeros, so that ranks whose shard left a part
    of the model unused stay in step. Parameters marked ``partitioned = True`` are skipped: their rows live on
    one rank only.
    """
    if rank_and_world()[1] == 1:
        return
    shared = [p for p in parameters if p.requires_grad and not getattr(p, "partitioned", False)]
    used = torch.tensor([p.grad is not None for p in shared], dtype=torch.int32)
    used = used.to(shared[0].device) if shared else used
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter, anywhere in zip(shared, used.tolist(), strict=True):
        if not anywhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for grads in by_dtype.values():
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        parts = flat.split([g.numel() for g in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))


def all_max(values: Tensor) -> Tensor:
    """Returns the elementwise maximum over ranks."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def all_sum(values: Tensor) -> Tensor:
    """Returns the elementwise sum over ranks."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values)
    return values


def any_true(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if rank_and_world()[1] == 1:
        return flag
    return bool(all_max(torch.tensor([float(flag)], device=device)).item())


def barrier() -> None:
    """Waits for all ranks."""
    if rank_and_world()[1] > 1:
        dist.barrier()
