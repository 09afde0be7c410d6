"""The state of a run beside weights and optimizer: position, best so far, generators."""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from graphkit.config import TrainConfig

__all__ = ["TrainState", "deterministic", "generator_states", "reseed", "restore_generators"]


@dataclass
class TrainState:
    """Where a run stands. JSON gives every field back exactly.

    Attributes:
        epoch: Epochs completed, which is also the index of the present one.
        step: Steps of the present epoch done; equal to the steps of an epoch just before its evaluation.
        updates: Steps done in all.
        loss_total: Sum of the present epoch's losses before division.
        loss_divisor: What it is divided by for the epoch's loss.
        best_value: The best validation value, ``None`` before the first finite one.
        best_epoch: Epochs completed when it was reached.
        best_updates: Steps done when it was reached.
        best_metrics: All validation metrics of that moment.
        stale: Evaluations since then.
        evaluations: Evaluations in all.
        skipped: Steps left out because fp16 gradients overflowed.
        skipped_in_a_row: Those since the last update.
        log_bytes: Length of the metrics log.
        seconds: Time spent in all, over restarts.
        epoch_seconds: Training time of the present epoch.
        train_seconds: Training time of each completed epoch.
        eval_seconds: Time of each evaluation.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss_total: float = 0.0
    loss_divisor: float = 0.0
    best_value: float | None = None
    best_epoch: int | None = None
    best_updates: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    evaluations: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    log_bytes: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    train_seconds: list[float] = field(default_factory=list)
    eval_seconds: list[float] = field(default_factory=list)

    def out_of_patience(self, train: TrainConfig) -> bool:
        """Whether early stopping ends the run here."""
        return train.patience is not None and self.stale >= train.patience

    def done(self, train: TrainConfig) -> bool:
        """Whether nothing is left to train."""
        return self.epoch >= train.epochs or self.out_of_patience(train)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def reseed(seed: int) -> None:
    """Seeds torch (all devices), numpy's and python's global generators.

    The trainer calls this before each micro-batch with a seed made from its position, so what is drawn there
    depends on nothing that happened before: not on evaluations, not on a restart.
    """
    # Not torch.manual_seed, which formats a stack trace for each device type that isn't in use (1 ms).
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Asks torch for deterministic algorithms, for the length of a block."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def generator_states() -> dict[str, Any]:
    """Returns the states of all global generators as plain JSON values."""
    version, words, gauss = random.getstate()
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    states: dict[str, Any] = {
        "python": [version, _encode(np.array(words, dtype=np.uint32)), gauss],
        "numpy": {
            "key": _encode(numpy_state["state"]["key"]),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": _encode(torch.get_rng_state().numpy()),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = [_encode(s.numpy()) for s in torch.cuda.get_rng_state_all()]
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Puts back what :func:`generator_states` returned; CUDA only where the device count is the same."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(_decode(words, np.uint32).tolist()), gauss))
    saved = states["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": _decode(saved["key"], np.uint32), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    torch.set_rng_state(torch.from_numpy(_decode(states["torch"], np.uint8)))
    cuda = states.get("cuda", [])
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all([torch.from_numpy(_decode(s, np.uint8)) for s in cuda])


def _encode(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _decode(text: str, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    raw = base64.b64decode(text)
    return np.frombuffer(raw, dtype=np.dtype(dtype).newbyteorder("<")).astype(dtype)
