"""Tables that are made without memory, because their rows lie somewhere else already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

__all__ = ["table_device", "without_tables"]

_WITHOUT: ContextVar[bool] = ContextVar("without_tables", default=False)


@contextmanager
def without_tables() -> Iterator[None]:
    """Makes partitioned tables in this block without memory: their rows are put in afterwards."""
    before = _WITHOUT.set(True)
    try:
        yield
    finally:
        _WITHOUT.reset(before)


def table_device() -> AbstractContextManager[object]:
    """Returns the context that a partitioned table is to be made in: the meta device, or none."""
    return torch.device("meta") if _WITHOUT.get() else nullcontext()
