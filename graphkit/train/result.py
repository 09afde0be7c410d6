"""The result of a run and the facts that make it worth something."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from graphkit import environment

if TYPE_CHECKING:
    from graphkit.train.loop import Trainer

__all__ = ["Result", "make_result"]


@dataclass(frozen=True)
class Result:
    """What ``result.json`` holds.

    Attributes:
        model: Registered model.
        dataset: Registered data set.
        task: Registered task.
        seed: The run's seed.
        metric: The metric that chose the weights.
        maximize: Whether larger is better.
        valid: Validation metrics of the chosen weights.
        test: Test metrics of the same weights.
        best_epoch: Epochs completed when they were reached; ``None`` if nothing was trained.
        epochs: Epochs trained.
        stopped_early: Whether patience ran out.
        parameters: Trainable values.
        seconds_per_epoch: Median training time of an epoch.
        seconds_per_evaluation: Median time of a validation.
        seconds: Time in all, over restarts.
        peak_memory_mb: Peak memory of the CUDA device, else of the process.
        skipped_steps: Steps left out because fp16 overflowed.
        versions: Of python, torch, PyG, numpy, graphkit, ...
        hardware: Processor, cores, memory, GPUs.
        git: Commit of graphkit and whether its source was changed since.
        command: Command line.
        config_hash: :meth:`graphkit.config.RunConfig.hash`.
        data: Facts about the data set, among them its ``fingerprint``.
    """

    model: str
    dataset: str
    task: str
    seed: int
    metric: str
    maximize: bool
    valid: dict[str, float]
    test: dict[str, float]
    best_epoch: int | None
    epochs: int
    stopped_early: bool
    parameters: int
    seconds_per_epoch: float | None
    seconds_per_evaluation: float | None
    seconds: float
    peak_memory_mb: float
    skipped_steps: int = 0
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    config_hash: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """Reads :meth:`to_dict`'s form; keys of other versions are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def make_result(trainer: Trainer, valid: dict[str, float], test: dict[str, float]) -> Result:
    """Collects the result of a trainer that has come to its end."""
    config, state, benchmark = trainer.config, trainer.state, trainer.task.benchmark
    return Result(
        model=config.model_name,
        dataset=config.dataset_name,
        task=config.task_name,
        seed=config.seed,
        metric=benchmark.metric,
        maximize=benchmark.maximize,
        valid=valid,
        test=test,
        best_epoch=state.best_epoch,
        epochs=state.epoch,
        stopped_early=state.out_of_patience(config.train),
        parameters=environment.parameter_count(trainer.model),
        seconds_per_epoch=_median(state.train_seconds),
        seconds_per_evaluation=_median(state.eval_seconds),
        seconds=state.seconds,
        peak_memory_mb=round(environment.peak_memory_mb(trainer.device), 1),
        skipped_steps=state.skipped,
        versions=environment.versions(),
        hardware=environment.hardware(),
        git=environment.git_state(),
        command=environment.command_line(),
        config_hash=config.hash(),
        data={**benchmark.info, "fingerprint": trainer.fingerprint},
    )


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
