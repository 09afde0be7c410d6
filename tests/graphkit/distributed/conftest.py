"""A fixture that runs a function on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graphkit import testing


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., None]:
    """``on_ranks(world, work)`` calls ``work(rank, world)`` in so many processes, which must all succeed.

    One rank is this process, without a group.
    """

    def run(world: int, work: Callable[[int, int], None]) -> None:
        def seeded(rank: int) -> None:
            torch.manual_seed(0)
            work(rank, world)

        if world == 1:
            work(0, 1)
        else:
            assert testing.on_ranks(world, seeded, tmp_path, seconds=30) == [0] * world

    return run
