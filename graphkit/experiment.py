"""From a configuration to the things it names: benchmark, task, model."""

from __future__ import annotations

import inspect
import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphkit.config import RunConfig
from graphkit.data import Benchmark, DataSpec, load_dataset
from graphkit.distributed.launch import first_ones_first
from graphkit.distributed.planner import Expected, expecting
from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.nn.embedding import Embedding, fit_to_graph, order_of
from graphkit.partition import cached_order
from graphkit.registry import MODELS, TASKS, Entry
from graphkit.sparse import Adjacency
from graphkit.tasks.base import Task, derive_seed

__all__ = [
    "Experiment",
    "build",
    "build_model",
    "choose_task",
    "pick_device",
    "place_embeddings",
    "sizes_from_data",
]


_log = logging.getLogger("graphkit")


class Experiment(NamedTuple):
    """What a configuration names, built."""

    benchmark: Benchmark
    task: Task
    model: nn.Module


def sizes_from_data(entry: Entry) -> list[str]:
    """Returns the constructor arguments of a model that the data decides."""
    offered = DataSpec().offered()
    return [name for name in inspect.signature(entry.target).parameters if name in offered]


def choose_task(model: Entry, dataset: Entry, asked: str | None = None) -> str:
    """Returns the task that a model and a data set have in common.

    Raises:
        UserError: They have none, or not the one asked for.
    """
    common = [task for task in dataset.tasks if task in model.tasks]
    if asked is not None and asked in common:
        return asked
    if asked is None and common:
        return common[0]
    wanted = [asked] if asked in dataset.tasks else dataset.tasks
    fitting = [f"models for {task} prediction: {', '.join(MODELS.names(task=task))}" for task in wanted]
    raise UserError(
        f"model '{model.name}' is for {' and '.join(model.tasks)} prediction; data set '{dataset.name}' "
        f"serves {' and '.join(dataset.tasks)}"
        + (f", and task '{asked}' was asked for" if asked else "")
        + f"; {'; '.join(fitting)}"
    )


def pick_device(name: str) -> torch.device:
    """Returns the device called ``name``; ``auto`` is CUDA where there is a GPU.

    Raises:
        UserError: No such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and rank_and_world()[1] > 1:
            device = torch.device("cuda", torch.cuda.current_device())  # this process's own
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' can't be used here: {str(error).splitlines()[0]}") from error
    return device


def build_model(config: RunConfig, spec: DataSpec) -> nn.Module:
    """Builds the model of a configuration, its weights decided by the seed alone.

    Raises:
        UserError: An argument out of range.
    """
    entry = MODELS.get(config.model_name)
    sizes = {name: spec.offered()[name] for name in sizes_from_data(entry)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "init"))
        try:
            model: nn.Module = entry.target(**sizes, **config.model)
        except (ValueError, TypeError) as error:
            raise UserError(f"model '{config.model_name}': {error}") from error
    return model


def build(
    config: RunConfig,
    *,
    data_root: str | Path = "data",
    device: str | torch.device = "cpu",
    orders: bool = True,
    ranks: int | None = None,
) -> Experiment:
    """Loads the data set and builds task and model.

    Args:
        config: Complete, as :mod:`graphkit.parsing` makes it.
        data_root: Folder of raw files and caches.
        device: Where to train.
        orders: Compute what follows the graph: orders and spectral starts of embeddings, the task's order.
            Not needed where stored weights are loaded next, which hold it.
        ranks: The number of processes that a run was begun with, if not the present one: it decides how
            large global batches are.
    """
    with first_ones_first():
        benchmark = load_dataset(
            config.dataset_name, root=data_root, task=config.task_name, seed=config.seed, **config.data
        )
    options: dict[str, Any] = dict(config.task)
    begun = rank_and_world()[1] if ranks is None else ranks
    batch = config.train.batch_size * config.train.accumulate * begun
    try:
        task: Task = TASKS.get(config.task_name).target(
            benchmark, config.seed, batch, config.train.eval_batch_size, device, **options
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"task '{config.task_name}': {error}") from error
    task.cache_folder = Path(data_root)
    optimizer = config.optim.name if config.optim.name != "sgd" or not config.optim.momentum else "momentum"
    training = expecting(Expected(task.rows_per_step, optimizer, config.optim.rows))
    with training if orders else nullcontext():
        model = build_model(config, benchmark.spec)
    task.prepare(model)
    if orders:
        folder = Path(data_root) / "orders"
        # orders are computed once, under a lock; rows are then put in place by all ranks together
        place_embeddings(model, benchmark, config.seed, folder, task.rows)
        if task.wants_order:
            _give_order(task, model, folder)
    for module in model.modules():
        if getattr(module, "assignment", None) == "partition" and isinstance(module.position, Tensor):
            task.follow_rows(module.position)
    return Experiment(benchmark, task, model)


def _give_order(task: Task, model: nn.Module, folder: Path) -> None:
    """Hands the task the order of the model's embedding, or another if that doesn't follow the graph."""
    position, graph = order_of(model), _graph(task.benchmark, task.rows)
    if position is None:
        nodes = int(task.benchmark.data.num_nodes)
        side = math.ceil(nodes ** (1 / 3))
        factors = (side, side, -(-nodes // side**2))
        try:
            position = cached_order(folder, graph, nodes, factors, seed=0, progress=_log.info)
        except UserError as error:
            raise UserError(f"{error}; or leave task.reorder and task.cluster at their defaults") from error
    task.renumber(position)


def _graph(benchmark: Benchmark, rows: Adjacency | None) -> Tensor | Adjacency:
    """Returns what messages pass over, sorted if it is at hand."""
    known = benchmark.adjacency if rows is None else rows
    edges: Tensor = benchmark.data.edge_index
    return edges if known is None else known


def place_embeddings(
    model: nn.Module, benchmark: Benchmark, seed: int, folder: Path, rows: Adjacency | None = None
) -> None:
    """Lets the embeddings of a model follow the graph that its messages pass over.

    Args:
        model: As :func:`build_model` made it.
        benchmark: Its data.
        seed: The run's seed, for orders that have none of their own.
        folder: Where computed orders are kept.
        rows: The benchmark's graph, where it was sorted before.

    Raises:
        UserError: An order can't be computed, or an embedding can't take it.
    """
    if not any(isinstance(module, Embedding) for module in model.modules()):
        return
    graph = _graph(benchmark, rows)
    try:
        nodes = int(benchmark.data.num_nodes)
        fit_to_graph(model, graph, nodes, seed=seed, folder=folder, progress=_log.info)
    except UserError as error:
        raise UserError(f"{error}; or take --model.embedding.order random, or identity") from error
    except ValueError as error:
        raise UserError(f"embedding: {error}") from error
