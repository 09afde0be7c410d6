"""Data parallel training: DistributedDataParallel round a task's loss, and statistics over all shards.

What DDP wraps is not the model but "the loss of a shard", because tasks call a model's parts (``encode``,
``score``) and not only its ``forward``. A loss is the shard's share of the *global* batch's, so gradients are
summed over ranks, not averaged, and equal those of one process with the whole batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from graphkit.distributed.ranks import all_max, all_sum, gather_rows, start_sum
from graphkit.environment import rank_and_world
from graphkit.nn.norm import SafeBatchNorm
from graphkit.tasks.base import Loss, Task

__all__ = ["DataParallel"]


class DataParallel:
    """The loss of this rank's shards, and the sum of all ranks' gradients after the last of them.

    Alone it only calls the task. On several ranks parameters and buffers start as rank 0 has them;
    normalisations of batches take statistics over all ranks; a rank whose share is empty takes part with
    another's, which counts for nothing. Two kinds of parameters are none of DDP's: those marked
    ``partitioned``, whose rows live on one rank and whose look-up sums gradients, and those with sparse
    gradients, whose rows are gathered here.

    Args:
        model: Moved to its device.
        task: Gives shards and losses.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model, self.task = model, task
        self.world = rank_and_world()[1]
        self._wrapped: DistributedDataParallel | None = None
        self._across: _Ranks | None = None
        self._sparse = [p for p in _sparse_parameters(model) if not getattr(p, "partitioned", False)]
        if self.world == 1:
            return
        self._across = _Ranks()
        for module in model.modules():
            if isinstance(module, SafeBatchNorm) and not task.whole_graph:
                module.across = self._across
        for parameter in self._sparse:
            dist.broadcast(parameter.data, src=0)
        own = {id(p) for p in self._sparse}
        ignored = [
            f"model.{name}"
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in own or getattr(parameter, "partitioned", False)
        ]
        shard_loss = _ShardLoss(model, task)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(shard_loss, ignored)
        group = dist.new_group()  # its messages may pass those of normalisations
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers will be renamed
            self._wrapped = DistributedDataParallel(
                shard_loss,
                process_group=group,
                broadcast_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
        self._wrapped.register_comm_hook(group, _summed)

    def loss(self, batch: Any, index: int, parts: int) -> Loss:
        """Returns the loss of one shard, whose backward pass adds up ranks, unless :meth:`accumulating`.

        Args:
            batch: The global batch.
            index: The shard's number.
            parts: Of so many.
        """
        shard = self.task.shard(batch, index, parts)
        if self._wrapped is None:
            return self.task.loss(self.model, shard)
        silent = self.task.is_empty(shard)
        if silent:
            shard = self.task.shard(batch, 0, parts)
        with self._silence(silent):
            total, divisor = self._wrapped(shard, silent)
        return Loss(total, divisor)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward pass of a shard that isn't the last of its step."""
        if self._wrapped is None or last:
            return nullcontext()
        held: AbstractContextManager[None] = self._wrapped.no_sync()
        return held

    def finish(self) -> None:
        """Adds up the gradients that DDP leaves alone, after the last backward pass."""
        if self.world > 1:
            sum_sparse_gradients(self._sparse)

    @contextmanager
    def _silence(self, silent: bool) -> Iterator[None]:
        assert self._across is not None
        self._across.silent = silent
        try:
            yield
        finally:
            self._across.silent = False


class _ShardLoss(nn.Module):
    """The loss of a shard as a module's forward, which is what DDP can wrap.

    Attributes:
        anchor: Has no use and no gradient. DDP warns of time lost where it finds no unused parameter, and
            there are always models and batches that leave some unused.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.anchor = nn.Parameter(torch.zeros((), device=task.device))
        object.__setattr__(self, "task", task)

    def forward(self, shard: Any, silent: bool) -> tuple[Tensor, float]:
        task: Task = self.task  # type: ignore[assignment]
        total, divisor = task.loss(self.model, shard)
        if silent:
            total = total * 0
        if not total.requires_grad:  # nothing to learn from, but the other ranks wait for a backward pass
            total = total + self.anchor * 0
        return total, float(divisor)


class _Ranks:
    """Statistics over ranks, for :class:`~graphkit.nn.norm.SafeBatchNorm`."""

    def __init__(self) -> None:
        self.silent = False
        self._group = dist.new_group()

    def gather(self, values: Tensor) -> Tensor:
        found = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(found, values.contiguous(), group=self._group)
        return torch.stack(found)

    def sum(self, values: Tensor) -> Tensor:
        return all_sum(values.clone(memory_format=torch.contiguous_format), self._group)


def _summed(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's hook: the sum of gradients; by default it would be their mean."""
    return start_sum(bucket.buffer(), group)


# DDP reads the hook's annotations and takes no strings for them
_summed.__annotations__ |= {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}


def _sparse_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of modules whose look-ups give sparse gradients."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if getattr(module, "sparse", False) is True:
            found |= {id(p): p for p in module.parameters(recurse=False) if p.requires_grad}
    return list(found.values())


def sum_sparse_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gathers the rows of sparse gradients from all ranks; a gradient that is dense anywhere becomes so."""
    for parameter in parameters:
        grad = parameter.grad
        dense = grad is not None and not grad.is_sparse
        flags = torch.tensor([float(grad is not None), float(dense)], device=parameter.device)
        anywhere, any_dense = all_max(flags).bool().tolist()
        if not anywhere:
            continue
        if any_dense:
            whole = torch.zeros_like(parameter) if grad is None else grad.to_dense()
            dist.all_reduce(whole)
            parameter.grad = whole
            continue
        if grad is None:
            index = torch.zeros(0, dtype=torch.int64, device=parameter.device)
            values = parameter.new_zeros(0, *parameter.shape[1:])
        else:
            grad = grad.coalesce()
            index, values = grad.indices()[0], grad.values()
        rows = torch.cat(gather_rows(index)).unsqueeze(0)
        every = torch.cat(gather_rows(values))
        parameter.grad = torch.sparse_coo_tensor(rows, every, parameter.shape).coalesce()
