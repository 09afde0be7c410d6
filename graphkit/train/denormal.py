"""Denormal numbers count as zero while a run trains.

A processor takes far longer for a number below 1e-38 than for others, and confident models are full of them:
squared gradients in Adam, exponentials, products of probabilities. Training slows down two or three times for
digits that change nothing.

The mode belongs to a thread, and numbers must depend neither on which thread computes them nor on whether
torch's threads were started before training or in it. So all of them get it or none.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from graphkit.kernels.parallel import flushes_denormals

__all__ = ["flushed_denormals"]


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flushes denormal numbers in this thread and torch's, for a block; the kernels' threads follow suit.

    Without effect where the processor can't, or where there are several threads and no GNU OpenMP to reach
    them by.
    """
    everywhere = _setter()
    before = flushes_denormals()
    if everywhere is None or not torch.set_flush_denormal(True):
        yield
        return
    try:
        everywhere(True)
        yield
    finally:
        everywhere(before)


def _setter() -> Callable[[bool], object] | None:
    """Returns what sets the mode in this thread and all of torch's, ``None`` where that can't be."""
    threads = torch.get_num_threads()
    if threads == 1:
        return torch.set_flush_denormal
    region: Any = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None
    if region is None:
        return None
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    def everywhere(on: bool) -> None:
        # A parallel region as wide as torch's own, so that the same threads take part; each runs the body.
        region(body(lambda _: _set(on)), None, ctypes.c_uint(threads), ctypes.c_uint(0))

    return everywhere


def _set(on: bool) -> None:
    torch.set_flush_denormal(on)
