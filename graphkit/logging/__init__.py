"""Logs of a run: JSON lines always, progress for people, TensorBoard on request."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.logging.jsonl import MetricsLog
from graphkit.logging.progress import Progress, duration
from graphkit.run import Run

__all__ = ["MetricsLog", "Progress", "RunLogger", "configure", "configured", "duration"]


def configure(level: int = logging.INFO, stream: IO[str] | None = None) -> logging.Logger:
    """Sets up the logger ``graphkit`` for a program: plain messages on standard error, by rank 0 alone.

    Other ranks show warnings only, with their rank before them. A second call replaces the first. Libraries
    that use graphkit leave this alone.

    Args:
        level: The least severe messages shown.
        stream: Where they go, standard error by default.
    """
    logger = logging.getLogger("graphkit")
    for handler in [h for h in logger.handlers if getattr(h, "graphkit_own", False)]:
        logger.removeHandler(handler)
    handler = _Handler(stream)
    handler.graphkit_own = True
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger


@contextmanager
def configured() -> Iterator[logging.Logger]:
    """Has :func:`configure` hold for a block, so that a program called from Python leaves no trace of it."""
    logger = logging.getLogger("graphkit")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        yield configure()
    finally:
        logger.handlers[:], level, logger.propagate = before
        logger.setLevel(level)


class _Handler(logging.Handler):
    """Writes lines past a progress bar without breaking it."""

    graphkit_own: bool = False

    def __init__(self, stream: IO[str] | None) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream, rank = self.stream or sys.stderr, _rank()
        if rank and record.levelno < logging.WARNING:
            return
        try:
            text = f"[rank {rank}] {self.format(record)}" if rank else self.format(record)
            if stream.isatty():
                from tqdm import tqdm

                tqdm.write(text, file=stream)
            else:
                stream.write(text + "\n")
                stream.flush()
        except Exception:
            self.handleError(record)


def _rank() -> int:
    """This process's rank; before there is a process group, what torchrun says it will be."""
    rank, world = rank_and_world()
    if world == 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("RANK", "0"))
    return rank


class RunLogger:
    """What the trainer tells the world; silent on ranks other than 0.

    Args:
        run: Its folder gets ``metrics.jsonl``; nothing is written without one.
        tensorboard: Write ``tensorboard/`` in the run folder as well.
        progress: Show progress.
        stream: Where progress goes, standard error by default.
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        tensorboard: bool = False,
        progress: bool = True,
        stream: IO[str] | None = None,
    ) -> None:
        first = rank_and_world()[0] == 0
        self.metrics = MetricsLog(run.metrics_path) if run is not None and first else None
        self._folder = run.folder / "tensorboard" if run is not None and first and tensorboard else None
        self._show, self._stream = progress and first, stream
        self._progress: Progress | None = None
        self._board: Any = None

    def start(self, *, epochs: int, steps: int, done: int, position: int) -> None:
        """Begins or continues a run.

        Args:
            epochs: Epochs in all.
            steps: Steps of an epoch.
            done: Steps done before.
            position: Length of the log at the checkpoint that the run continues from.
        """
        if self.metrics is not None:
            self.metrics.rewind(position)
        if self._show:
            self._progress = Progress(epochs, steps, done, self._stream)
        if self._folder is not None:
            self._board = _summary_writer(str(self._folder), done)

    def line(self, values: Mapping[str, Any]) -> None:
        """Logs one line of ``epoch``, ``step``, ``split`` and numbers."""
        if self.metrics is not None:
            self.metrics.write(values)
        if self._board is not None:
            for key, value in values.items():
                if key not in ("epoch", "step") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{values.get('split', 'train')}/{key}", value, values.get("step"))

    def step(self, done: int, loss: float) -> None:
        """Moves the progress on by a step."""
        if self._progress is not None:
            self._progress.step(done, loss)

    def epoch(self, epoch: int, done: int, valid: str) -> None:
        """Moves the progress on by an epoch; ``valid`` says how the last evaluation went."""
        if self._progress is not None:
            self._progress.valid = valid
            self._progress.epoch(epoch, done)

    def position(self) -> int:
        """Returns the length of the log, flushed to disk."""
        return self.metrics.position() if self.metrics is not None else 0

    def close(self) -> None:
        for part in (self._progress, self.metrics, self._board):
            if part is not None:
                part.close()
        self._progress = self._board = None


def _summary_writer(folder: str, done: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard isn't installed: pip install tensorboard") from error
    return SummaryWriter(folder, purge_step=done + 1)
