"""Progress for people: one moving line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import IO, Any

__all__ = ["Progress", "duration"]

_log = logging.getLogger("graphkit")


class Progress:
    """Shows how far a run is and how long it will take.

    On a terminal a bar moves with each step. Elsewhere (a file, a scheduler's log) a line is logged after at
    least 5 % of the epochs or 30 seconds, so that a run leaves tens of lines, not hundreds.

    Args:
        epochs: Epochs in all.
        steps: Steps of an epoch.
        done: Steps done before, in a resumed run.
        stream: Where the bar goes; it decides whether there is one.
    """

    def __init__(self, epochs: int, steps: int, done: int = 0, stream: IO[str] | None = None) -> None:
        self.epochs, self.steps = epochs, steps
        self.total, self.begun_at = epochs * steps, done
        self.begun = self.shown = time.monotonic()
        self.shown_epoch = done // steps
        self.loss: float | None = None
        self.valid = ""
        self._bar: Any = None
        stream = stream or sys.stderr
        if stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                initial=done,
                file=stream,
                dynamic_ncols=True,
                leave=False,
                mininterval=0.2,
                bar_format="{percentage:3.0f}%|{bar:24}| {desc} [{elapsed}<{remaining}]",
            )

    def step(self, done: int, loss: float) -> None:
        """Reports a finished step.

        Args:
            done: Steps done in all.
            loss: Its loss.
        """
        self.loss = loss
        if self._bar is not None:
            self._bar.set_description_str(self._text(done), refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self.shown >= 60:  # an epoch takes long: show steps
            self._line(done, f"epoch {done // self.steps + 1}, step {done % self.steps}/{self.steps}")

    def epoch(self, epoch: int, done: int) -> None:
        """Reports a completed epoch.

        Args:
            epoch: Epochs completed.
            done: Steps done in all.
        """
        if self._bar is not None:
            self._bar.set_description_str(self._text(done))
            return
        share = (epoch - self.shown_epoch) / self.epochs
        if share >= 0.05 or time.monotonic() - self.shown >= 30 or epoch == self.epochs:
            self.shown_epoch = epoch
            self._line(done, f"epoch {epoch}/{self.epochs}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, done: int, position: str) -> None:
        self.shown = time.monotonic()
        rate = (self.shown - self.begun) / max(1, done - self.begun_at)
        left = duration(rate * (self.total - done))
        _log.info(" · ".join(part for part in (position, *self._values(), f"{left} left") if part))

    def _text(self, done: int) -> str:
        epoch = min(self.epochs, done // self.steps + 1)
        return " · ".join((f"epoch {epoch}/{self.epochs}", *self._values()))

    def _values(self) -> list[str]:
        values = [] if self.loss is None else [f"loss {self.loss:.4g}"]
        return [*values, self.valid] if self.valid else values


def duration(seconds: float) -> str:
    """Returns ``0:07``, ``12:30`` or ``3:05:00``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
