"""Small things to test with: graphs of a few nodes, a task of a few steps, checks for any model."""

from __future__ import annotations

import math
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.tasks.base import Loss, Task, generator
from graphkit.train.tensors import load_tensors, save_tensors

__all__ = [
    "TinyModel",
    "TinyTask",
    "check_model",
    "edge_case_graphs",
    "on_ranks",
    "tiny_benchmark",
    "tiny_config",
    "tiny_graph",
]


def tiny_graph(nodes: int = 12, edges: int = 20, channels: int = 4, classes: int = 3, seed: int = 0) -> Data:
    """Returns a random undirected graph with features ``x`` ``[N, F]`` and classes ``y`` ``[N]``."""
    draw = generator(seed, "tiny graph")
    ends = torch.randint(nodes, (2, edges), generator=draw)
    ends = ends[:, ends[0] != ends[1]]
    edge_index = torch.cat([ends, ends.flip(0)], dim=1).unique(dim=1)
    x = torch.randn(nodes, channels, generator=draw)
    y = torch.randint(classes, (nodes,), generator=draw)
    return Data(x=x, edge_index=edge_index, y=y, num_nodes=nodes)


def edge_case_graphs(channels: int = 4) -> dict[str, Data]:
    """Returns graphs that break careless code, by what is odd about them."""

    def graph(nodes: int, edges: list[list[int]]) -> Data:
        x = torch.randn(nodes, channels, generator=generator(0, "edge cases", nodes))
        index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t().contiguous()
        return Data(x=x, edge_index=index, num_nodes=nodes)

    return {
        "no edges": graph(3, []),
        "single node": graph(1, []),
        "isolated node": graph(4, [[0, 1], [1, 0], [1, 2], [2, 1]]),
        "self loop": graph(3, [[0, 0], [0, 1], [1, 0], [1, 2], [2, 1]]),
        "duplicate edge": graph(3, [[0, 1], [0, 1], [1, 0], [1, 0], [1, 2], [2, 1]]),
    }


def tiny_benchmark(metric: str = "r2", *, maximize: bool = True, examples: int = 24) -> Benchmark:
    """Returns a regression on a few points that :class:`TinyTask` trains on."""
    draw = generator(0, "tiny benchmark")
    x = torch.randn(examples * 2, 4, generator=draw)
    y = torch.tanh(x @ torch.randn(4, 1, generator=draw)) + 0.1 * torch.randn(len(x), 1, generator=draw)
    half, quarter = examples, examples // 2
    splits = {
        "train": {"index": torch.arange(half)},
        "valid": {"index": torch.arange(half, half + quarter)},
        "test": {"index": torch.arange(half + quarter, 2 * half)},
    }

    def evaluator(prediction: Tensor, target: Tensor) -> dict[str, float]:
        mse = float((prediction - target).square().mean())
        return {"mse": mse, "r2": 1 - mse / float(target.var(unbiased=False))}

    return Benchmark(
        name="tiny",
        task="tiny",
        data=Data(x=x, y=y),
        splits=dict(splits),
        spec=DataSpec(in_channels=4),
        metric=metric,
        maximize=maximize,
        evaluator=evaluator,
    )


class TinyModel(nn.Module):
    """Two layers with dropout, BatchNorm (a buffer that training moves) and a tied weight.

    Args:
        hidden: Width.
        dropout: Probability.
    """

    def __init__(self, hidden: int = 8, dropout: float = 0.3) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.drop = nn.Dropout(dropout)
        self.middle = nn.Linear(hidden, hidden)
        self.tied = nn.Linear(hidden, hidden)
        self.tied.weight = self.middle.weight
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[n, 1]`` for ``[n, 4]``."""
        h = self.drop(torch.relu(self.norm(self.encoder(x))))
        h = self.drop(torch.relu(self.tied(torch.relu(self.middle(h)))))
        out: Tensor = self.head(h)
        return out


class TinyTask(Task):
    """Regression on :func:`tiny_benchmark`; hooks let a test interfere.

    Args:
        benchmark: The data.
        seed: The run's seed.
        batch_size: Examples of a global batch.
        eval_batch_size: Not used.
        device: Where batches are put.
        on_batch: Called with (epoch, step) before each batch.
        on_evaluate: Called with (split, metrics) after each evaluation; what it returns replaces the metrics.
    """

    name = "tiny"

    def __init__(
        self,
        benchmark: Benchmark | None = None,
        seed: int = 0,
        batch_size: int = 8,
        eval_batch_size: int = 64,
        device: torch.device | str = "cpu",
        *,
        on_batch: Callable[[int, int], None] | None = None,
        on_evaluate: Callable[[str, dict[str, float]], dict[str, float] | None] | None = None,
    ) -> None:
        super().__init__(benchmark or tiny_benchmark(), seed, batch_size, eval_batch_size, device)
        self.on_batch, self.on_evaluate = on_batch, on_evaluate

    def check(self, model: nn.Module) -> None:
        if not callable(getattr(model, "forward", None)):
            raise UserError("the tiny task needs a model with forward(x)")

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.benchmark.splits["train"]["index"]) / self.batch_size)

    def batch(self, epoch: int, step: int) -> Tensor:
        if self.on_batch is not None:
            self.on_batch(epoch, step)
        index = self.benchmark.splits["train"]["index"]
        order = torch.randperm(len(index), generator=generator(self.seed, "order", epoch))
        return index[order][step * self.batch_size : (step + 1) * self.batch_size]

    def shard(self, batch: Tensor, index: int, parts: int) -> tuple[Tensor, int]:
        return batch[index::parts], len(batch)

    def loss(self, model: nn.Module, batch: tuple[Tensor, int]) -> Loss:
        ids, count = batch
        x, y = self.benchmark.data.x[ids].to(self.device), self.benchmark.data.y[ids].to(self.device)
        return Loss((model(x).float() - y).square().sum(), count)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        ids = self.benchmark.splits[split]["index"]
        x, y = self.benchmark.data.x[ids].to(self.device), self.benchmark.data.y[ids].to(self.device)
        metrics = self.benchmark.evaluator(model(x).float(), y)
        changed = self.on_evaluate(split, metrics) if self.on_evaluate is not None else None
        return metrics if changed is None else changed


def tiny_config(seed: int = 0, optim: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    """Returns a configuration for :class:`TinyTask`: four epochs of three steps."""
    return RunConfig(
        model_name="tiny",
        dataset_name="tiny",
        task_name="tiny",
        seed=seed,
        optim=OptimConfig(**{"lr": 0.01, **(optim or {})}),
        train=TrainConfig(**{"epochs": 4, "batch_size": 8, **train}),
    )


def on_ranks(world: int, work: Callable[[int], object], folder: Path, *, seconds: float = 120.0) -> list[int]:
    """Runs ``work(rank)`` in forked processes that form a gloo group; returns their exit codes.

    Args:
        world: Number of processes.
        work: Called in each, on one thread; an exception is printed and gives the code 1.
        folder: Where the processes meet, by a file that is gone afterwards.
        seconds: The longest that a process waits for another, after which it ends by an exception.
    """
    store = folder / f".store-{os.getpid()}"
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                meeting = dist.FileStore(str(store), world)  # type: ignore[attr-defined]
                wait = timedelta(seconds=seconds)
                dist.init_process_group("gloo", store=meeting, rank=rank, world_size=world, timeout=wait)
                work(rank)
                dist.barrier()
                dist.destroy_process_group()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    store.unlink(missing_ok=True)
    return codes


def check_model(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], *, unused: tuple[str, ...] = ()
) -> None:
    """Asserts what holds for any trainable model.

    The loss is finite; every parameter gets a finite gradient; in evaluation mode it is deterministic;
    weights survive a file; steps on one batch lower its loss.

    Args:
        model: Freshly built.
        loss: Computes a scalar loss on fixed inputs.
        unused: Prefixes of parameters that may stay without a gradient.
    """
    model.train()
    torch.manual_seed(0)
    first = loss(model)
    assert first.ndim == 0, f"the loss is a scalar, not {tuple(first.shape)}"
    assert bool(torch.isfinite(first)), f"the loss is {first.item()}"
    first.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith(unused or ("\0",)):
            assert parameter.grad is not None, f"{name} gets no gradient"
            assert bool(torch.isfinite(parameter.grad).all()), f"the gradient of {name} is not finite"
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        assert torch.equal(loss(model), loss(model)), "evaluation mode isn't deterministic"
    _check_round_trip(model)
    _check_learns(model, loss)


def _check_round_trip(model: nn.Module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder) / "model.safetensors", model.state_dict())
        loaded = load_tensors(Path(folder) / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), loaded[name]), f"{name} changes when saved and loaded"


def _check_learns(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.no_grad():
        before = loss(model).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    with torch.no_grad():
        after = loss(model).item()
    assert after < before, f"60 steps on one batch take the loss from {before:.4g} to {after:.4g}"
