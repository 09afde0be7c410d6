"""The protocol between a task and the trainer.

A task owns what models of one kind share: the batches of a split, the loss, the evaluation and the form of
predictions. The trainer drives it and knows nothing else. Every batch is a pure function of
``(seed, epoch, step)``, so a run continues from any step without replaying what came before.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from graphkit.data import Benchmark
from graphkit.errors import UserError
from graphkit.seeds import derive_seed, generator
from graphkit.sparse import Adjacency

__all__ = ["Loss", "Task", "derive_seed", "generator", "portions", "wide"]


def portions(batch_size: int, eval_batch_size: int) -> dict[str, dict[str, Any]]:
    """Returns the ``defaults`` of a task whose examples are larger than the general default counts on."""
    return {"train": {"batch_size": batch_size, "eval_batch_size": eval_batch_size}}


def wide(values: Tensor) -> Tensor:
    """Returns values in float32 or wider: what losses and metrics are computed in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Loss(NamedTuple):
    """A loss as a sum and its normaliser, so that micro-batches and ranks add up exactly.

    Attributes:
        total: Scalar tensor with gradient; this shard's share of the batch's sum.
        divisor: What the *whole* batch's sum is divided by; equal for all shards of one batch.
    """

    total: Tensor
    divisor: float


class Task(ABC):
    """Base of all tasks.

    A constructor takes the benchmark, a seed, the size of a global batch and that of an evaluation batch, the
    device, and then keyword-only options, which are the task's configuration (``--task.X``).

    Args:
        benchmark: The data set.
        seed: The run's seed.
        batch_size: Examples of one global batch (over all micro-batches and ranks).
        eval_batch_size: Examples scored at once in evaluation.
        device: Where batches are put.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Sections of a run's configuration where neither recipe, file nor flag says another value."""
    wants_order: bool = False
    """Whether :meth:`renumber` is to be called, with an order of the nodes that follows the graph."""
    rows: Adjacency | None = None
    """The graph that messages pass over, where the task has it sorted for others to use."""
    whole_graph: bool = False
    """Whether every shard's forward pass goes over the whole graph, so that statistics are whole anyway."""
    cache_folder: Path | None = None
    """Where what takes long to compute may be kept from run to run."""

    def __init__(
        self,
        benchmark: Benchmark,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.benchmark = benchmark
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.device = torch.device(device)

    def renumber(self, position: Tensor) -> None:  # noqa: B027 - only for those that want it
        """Takes positions ``[N]`` of the nodes, neighbours near each other."""

    def rows_per_step(self) -> int | None:
        """Returns how many distinct nodes a rank meets in a training step, ``None`` for all of them."""
        return None

    def follow_rows(self, slot: Tensor) -> None:  # noqa: B027 - only for those that can
        """Takes the slots ``[N]`` of the nodes' rows, of which each rank holds a range.

        A rank may then be given the examples of each batch whose rows it is likely to hold.
        """

    def prepare(self, model: nn.Module) -> None:  # noqa: B027 - only for those that want it
        """Gives a new model what it takes over from the data, before weights are loaded."""

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raises :class:`~graphkit.errors.UserError` if the model lacks what this task calls."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Number of steps of each epoch, at least 1."""

    @abstractmethod
    def batch(self, epoch: int, step: int) -> Any:
        """Returns the global batch of a step, both counted from 0; a pure function of seed and position."""

    @abstractmethod
    def shard(self, batch: Any, index: int, parts: int) -> Any:
        """Returns the ``index``-th of ``parts`` shares of a global batch: a micro-batch, a rank's part."""

    def is_empty(self, shard: Any) -> bool:
        """Whether a shard holds no example, as some do where a batch has fewer examples than shards."""
        return False

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Returns the training loss of a shard."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Returns the metrics of one of :attr:`evaluation_splits`; draws no random numbers."""

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The splits that :meth:`evaluate` takes; by default all but the training split."""
        return tuple(split for split in self.benchmark.splits if split != "train")

    def check_split(self, split: str) -> None:
        """Raises :class:`~graphkit.errors.UserError` if a split can't be evaluated."""
        if split not in self.evaluation_splits:
            known = " or ".join(self.evaluation_splits)
            raise UserError(f"{self.benchmark.name} can't be evaluated on split '{split}'; take {known}")

    def pictures(self, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, bytes]:
        """Returns pictures of a finished run, by the name of the file in its folder; by default none.

        Args:
            metrics: Those of the result, by split.
        """
        return {}

    @classmethod  # noqa: B027 - no arguments is a sensible default
    def add_predict_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Adds the arguments of ``predict`` that are this task's own; by default none.

        None of them may be required, or positional without a default: :meth:`predict` says what is missing.
        """

    def predict(self, model: nn.Module, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows of the predictions that ``options`` ask for, as text.

        Args:
            model: In evaluation mode.
            options: What :meth:`add_predict_arguments` added, parsed.

        Raises:
            UserError: The request can't be met; by default every one.
        """
        raise UserError(f"task '{self.name}' has no predictions to write; use graphkit.load in Python")
