"""The configuration of a run, as frozen dataclasses.

The parameters of the model, the data set and the task live in plain mappings here: their schema is the
signature of the class or loader that takes them, and :mod:`graphkit.parsing` checks them against it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from graphkit.errors import UserError, did_you_mean

__all__ = ["OptimConfig", "RunConfig", "TrainConfig"]


def _require(ok: bool, key: str, got: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{key} is {got!r}; it must be {allowed}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, learning rate schedule and clipping.

    Attributes:
        name: The optimizer, with torch's defaults for what is not named here.
        lr: Learning rate of every parameter group that ``group_lr`` does not name.
        group_lr: Learning rate by sub-module, e.g. ``{encoder: 0.004, predictor: 0.002}``.
        weight_decay: L2 penalty (adam, sgd) or decoupled decay (adamw).
        momentum: Momentum of sgd.
        schedule: Shape of the learning rate after warm-up.
        warmup_epochs: Epochs of linear warm-up, from rate / warm-up steps on; fractions are allowed.
        min_lr_ratio: Where cosine and linear schedules end, as a fraction of the learning rate.
        clip_norm: Gradients of all parameters together are scaled to at most this norm; none by default.
        clip_groups: Clip each parameter group by itself instead.
        rows: What updates rows of tables with sparse gradients, only those that were looked up; weight decay
            and momentum hold for the rest of the model. ``same``: as ``name``, without either.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    group_lr: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_epochs: float = 0.0
    min_lr_ratio: float = 0.0
    clip_norm: float | None = None
    clip_groups: bool = False
    rows: Literal["same", "sgd", "adagrad", "rowwise_adagrad", "adam"] = "same"

    def __post_init__(self) -> None:
        _require(self.name in ("adam", "adamw", "sgd"), "optim.name", self.name, "adam, adamw or sgd")
        _require(self.lr >= 0, "optim.lr", self.lr, "at least 0")
        for group, lr in self.group_lr.items():
            _require(lr >= 0, f"optim.group_lr.{group}", lr, "at least 0")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        _require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        _require(
            self.schedule in ("constant", "cosine", "linear"),
            "optim.schedule",
            self.schedule,
            "constant, cosine or linear",
        )
        _require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "at least 0")
        _require(0 <= self.min_lr_ratio <= 1, "optim.min_lr_ratio", self.min_lr_ratio, "in [0, 1]")
        _require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "positive")
        rules = ("same", "sgd", "adagrad", "rowwise_adagrad", "adam")
        _require(self.rows in rules, "optim.rows", self.rows, f"one of {', '.join(rules)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, in what portions and in what precision a run trains.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Examples of one micro-batch on one rank; a step sees ``batch_size * accumulate * ranks``.
        eval_batch_size: Examples scored at once in evaluation.
        accumulate: Micro-batches whose gradients are added before a step.
        precision: Autocast type of the forward pass; fp16 scales the loss.
        eval_every: Epochs from one evaluation to the next; the last epoch is always evaluated.
        patience: Stop after this many evaluations without a better validation value; never by default.
        checkpoint_every: Epochs from one checkpoint to the next; the last state is always kept.
        checkpoint_steps: Steps from one checkpoint to the next, in addition.
        keep: Checkpoints kept beside the best one (at least 2, the newest may be damaged).
        max_minutes: Save and stop cleanly after this long; the run resumes later.
        deterministic: Ask torch for deterministic algorithms (CPU results are exact without it).
    """

    epochs: int = 100
    batch_size: int = 1024
    eval_batch_size: int = 8192
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    eval_every: int = 1
    patience: int | None = None
    checkpoint_every: int = 10
    checkpoint_steps: int | None = None
    keep: int = 2
    max_minutes: float | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "eval_batch_size", "accumulate", "eval_every", "checkpoint_every")
        for name in positive:
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        _require(
            self.precision in ("fp32", "bf16", "fp16"),
            "train.precision",
            self.precision,
            "fp32, bf16 or fp16",
        )
        _require(self.patience is None or self.patience >= 1, "train.patience", self.patience, "at least 1")
        _require(
            self.checkpoint_steps is None or self.checkpoint_steps >= 1,
            "train.checkpoint_steps",
            self.checkpoint_steps,
            "at least 1",
        )
        _require(self.keep >= 2, "train.keep", self.keep, "at least 2")
        _require(
            self.max_minutes is None or self.max_minutes > 0,
            "train.max_minutes",
            self.max_minutes,
            "positive",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result.

    Attributes:
        model_name: Registered model.
        dataset_name: Registered data set.
        task_name: Registered task.
        seed: Seeds initialisation, batches, negatives, dropout and random splits, each on its own.
        model: Arguments of the model's constructor, complete.
        data: Arguments of the data set's loader beside root, task and seed, complete.
        task: Options of the task, complete.
        optim: See :class:`OptimConfig`.
        train: See :class:`TrainConfig`.
    """

    model_name: str
    dataset_name: str
    task_name: str
    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain dictionaries, ready for YAML or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Builds a configuration from :meth:`to_dict`'s form.

        Raises:
            UserError: An unknown key, with the closest known one, or a value out of range.
        """
        values = dict(values)
        _refuse_unknown(values, cls, "")
        for section, kind in (("optim", OptimConfig), ("train", TrainConfig)):
            given = dict(values.get(section) or {})
            _refuse_unknown(given, kind, f"{section}.")
            values[section] = kind(**given)
        return cls(**values)

    def hash(self) -> str:
        """Returns the first 12 hex digits of the SHA-256 of the sorted JSON form."""
        text = json.dumps(self.to_dict(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _refuse_unknown(values: Mapping[str, Any], kind: type, prefix: str) -> None:
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(f"unknown key '{prefix}{key}'{did_you_mean(str(key), known)}")
