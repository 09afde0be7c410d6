"""From a configuration to the things it names: benchmark, task, model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from graphkit.config import RunConfig
from graphkit.data import Benchmark, DataSpec, load_dataset
from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.registry import MODELS, TASKS, Entry
from graphkit.tasks.base import Task, derive_seed

__all__ = ["Experiment", "build", "build_model", "choose_task", "pick_device", "sizes_from_data"]


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
    raise UserError(
        f"model '{model.name}' is for {' and '.join(model.tasks)} prediction; data set '{dataset.name}' "
        f"serves {' and '.join(dataset.tasks)}" + (f", and task '{asked}' was asked for" if asked else "")
    )


def pick_device(name: str) -> torch.device:
    """Returns the device called ``name``; ``auto`` is CUDA where there is a GPU.

    Raises:
        UserError: No such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
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
    config: RunConfig, *, data_root: str | Path = "data", device: str | torch.device = "cpu"
) -> Experiment:
    """Loads the data set and builds task and model.

    Args:
        config: Complete, as :mod:`graphkit.parsing` makes it.
        data_root: Folder of raw files and caches.
        device: Where to train.
    """
    benchmark = load_dataset(
        config.dataset_name, root=data_root, task=config.task_name, seed=config.seed, **config.data
    )
    options: dict[str, Any] = dict(config.task)
    batch = config.train.batch_size * config.train.accumulate * rank_and_world()[1]
    try:
        task: Task = TASKS.get(config.task_name).target(
            benchmark, config.seed, batch, config.train.eval_batch_size, device, **options
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"task '{config.task_name}': {error}") from error
    model = build_model(config, benchmark.spec)
    return Experiment(benchmark, task, model)
