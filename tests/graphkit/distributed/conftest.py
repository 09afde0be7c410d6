"""A fixture that runs a function on several ranks."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from graphkit.environment import rank_and_world


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., None]:
    """``on_ranks(world, work)`` calls ``work(rank, world)`` in so many forked processes, which must succeed.

    They form a gloo group over a file in the test's folder, and are killed after a minute. One rank is this
    process, without a group.
    """

    def run(world: int, work: Callable[[int, int], None], seconds: float = 60) -> None:
        if world == 1:
            work(*rank_and_world())
            return
        store = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        children = [_child(rank, world, work, store) for rank in range(world)]
        codes = _wait(children, time.monotonic() + seconds)
        store.unlink(missing_ok=True)
        assert codes == [0] * world

    return run


def _child(rank: int, world: int, work: Callable[[int, int], None], store: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        files = dist.FileStore(str(store), world)
        dist.init_process_group(
            "gloo", store=files, rank=rank, world_size=world, timeout=timedelta(seconds=30)
        )
        work(rank, world)
        dist.barrier()
        dist.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(children: list[int], deadline: float) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]
