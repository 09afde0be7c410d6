"""What ends a run before its time: signals, a time limit, numbers that aren't finite."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from graphkit.distributed.ranks import any_true
from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.train.optim import gradient_values
from graphkit.train.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from graphkit.train.loop import Trainer

__all__ = ["TIME_LIMIT_EXIT", "NonFiniteError", "SignalGuard", "Stopped", "dump_step", "fail_step", "replay"]

TIME_LIMIT_EXIT = 75
"""Exit code of a run that ``train.max_minutes`` stopped: EX_TEMPFAIL, "try again later"."""

_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")


class Stopped(SystemExit):
    """The run was asked to stop, has saved its state and can be resumed.

    A :class:`SystemExit`, so that a script that doesn't catch it ends with the right exit code.

    Attributes:
        code: 128 + the signal's number (143 SIGTERM, 130 SIGINT), or 75 for the time limit.
        reason: For people, e.g. ``"SIGTERM"``.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code)
        self.reason = reason

    def __str__(self) -> str:
        return f"stopped by {self.reason}"


class NonFiniteError(UserError):
    """The loss or a gradient was NaN or infinite; no parameter was changed.

    Attributes:
        folder: The dump of the step, if the run has a folder.
    """

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


class SignalGuard:
    """Turns signals and the time limit into a stop at the next safe point.

    The first signal is remembered until :meth:`check`; within :meth:`interruptible` it raises at once,
    because an evaluation changes nothing and may outlast a scheduler's patience. A second signal ends the
    process immediately. Under torchrun, which repeats a terminal's Ctrl-C to its workers, a second one within
    five seconds is taken for that repetition.

    Args:
        max_minutes: Time limit, counted from the construction.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._pending: Stopped | None = None
        self._first = 0.0
        self._may_raise = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._pending is not None:
            if "TORCHELASTIC_RUN_ID" in os.environ and now - self._first < 5:
                return
            os._exit(128 + number)
        self._first = now
        self._pending = Stopped(128 + number, signal.Signals(number).name)
        if self._may_raise:
            raise self._pending

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop, or its time is over."""
        if self._pending is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self._pending = Stopped(TIME_LIMIT_EXIT, "train.max_minutes")
        return self._pending is not None

    def check(self, device: torch.device | None = None, told: bool | None = None) -> None:
        """Raises :class:`Stopped` if any rank was asked to stop; to be called between steps.

        Args:
            device: Where ranks ask each other.
            told: Whether any rank was, where they have just told each other; spares a message.
        """
        if any_true(self.asked, device or torch.device("cpu")) if told is None else told:
            raise self._pending or Stopped(128 + signal.SIGTERM, "another rank")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal raise inside the block; ranks that must agree first wait for :meth:`check`."""
        alone = rank_and_world()[1] == 1
        if alone and self._pending is not None:
            raise self._pending
        self._may_raise = alone
        try:
            yield
        finally:
            self._may_raise = False


def non_finite_gradients(model: nn.Module) -> list[str]:
    """Returns the names of the parameters whose gradient holds a NaN or an infinity."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(gradient_values(parameter.grad)).all())
    ]


def dump_step(folder: Path, trainer: Trainer, epoch: int, step: int, found: dict[str, Any]) -> None:
    """Writes what it takes to replay a step: plain JSON, and the weights before it.

    Buffers that a training forward pass updates (BatchNorm's running statistics) have already seen the step;
    training mode doesn't read them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "seed": trainer.config.seed,
        "epoch": epoch,
        "step": step,
        "updates": trainer.state.updates,
        "rank": trainer.rank,
        "world": trainer.world,
        **{key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in found.items()},
        "config": trainer.config.to_dict(),
    }
    save_tensors(folder / "model.safetensors", trainer.model.state_dict())
    (folder / "step.json").write_text(json.dumps(record, indent=1, default=str))


def fail_step(trainer: Trainer, loss: float, norms: list[float]) -> NoReturn:
    """Leaves evidence of the present step, whose numbers aren't finite, and ends the run before its update.

    Args:
        trainer: At the step, with its gradients.
        loss: Loss of the global batch.
        norms: Gradient norm of each parameter group.

    Raises:
        NonFiniteError: Always.
    """
    epoch, step = trainer.state.epoch, trainer.state.step
    names = non_finite_gradients(trainer.model)
    which = "gradient" if math.isfinite(loss) else "loss"
    found = {"non_finite": which, "loss": loss, "grad_norm": math.hypot(*norms), "gradients": names}
    trainer.model.zero_grad(set_to_none=True)
    what = f"{which} is not finite at epoch {epoch}, step {step} (loss {loss:g}"
    what += f", first of {len(names)} such gradients: {names[0]})" if names else ")"
    if trainer.run is None:
        raise NonFiniteError(f"{what}; no parameter was changed")
    folder = trainer.run.failures / f"step-{trainer.state.updates}"
    if trainer.rank == 0:
        try:
            dump_step(folder, trainer, epoch, step, found)
        except OSError as error:
            raise NonFiniteError(f"{what}; no parameter was changed; no dump in {folder}: {error}") from error
    raise NonFiniteError(
        f"{what}; no parameter was changed; replay: python scripts/train.py --replay {folder}", folder
    )


def replay(
    trainer: Trainer, epoch: int, step: int, weights: Path | None = None, *, anomaly: bool = False
) -> dict[str, Any]:
    """Computes one step's loss and gradients again, without an update.

    Args:
        trainer: A trainer made from the same configuration.
        epoch: Epoch of the step, from 0.
        step: Step within the epoch, from 0.
        weights: The dump's ``model.safetensors``; the model as it is, if absent.
        anomaly: Let autograd point at the operation whose backward pass gave NaN (slow; it raises).

    Returns:
        ``loss``, ``grad_norm`` and ``non_finite``, the names of parameters with non-finite gradients.
    """
    if weights is not None:
        trainer.model.load_state_dict(load_tensors(weights))
    with torch.autograd.set_detect_anomaly(anomaly, check_nan=anomaly):
        loss, norms, _ = trainer.gradients(epoch, step)
    names = non_finite_gradients(trainer.model)
    trainer.model.zero_grad(set_to_none=True)
    return {"loss": loss, "grad_norm": math.hypot(*norms), "non_finite": names}
