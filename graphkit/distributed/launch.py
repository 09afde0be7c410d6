"""Processes that torchrun started: their group, their devices, and how they end.

graphkit spawns nothing. Under ``torchrun --nproc-per-node N scripts/train.py ...`` each process finds its
rank in the environment, and :func:`process_group` joins them, over NCCL for tensors on GPUs and over gloo for
those on CPUs. Without torchrun it does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from graphkit.distributed.ranks import barrier
from graphkit.environment import rank_and_world
from graphkit.errors import UserError

__all__ = ["TIMEOUT_MINUTES", "LostRankError", "attempt", "first_ones_first", "launch_id", "process_group"]

TIMEOUT_MINUTES = 30.0
"""How long a rank waits for another before it gives up, unless ``--timeout`` says otherwise."""

_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
_LATE = ("timed out", "timeout")


class LostRankError(UserError):
    """Another rank ended or didn't answer; what happened to it is told where it happened."""

    exit_code = 1


def attempt() -> int:
    """Returns how often torchrun started this job again, 0 the first time."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str | None:
    """Returns what tells a torchrun job from others, the same after a restart; ``None`` without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name is None else f"{name}-{os.getppid()}"  # the parent is torchrun itself


@contextmanager
def process_group(minutes: float = TIMEOUT_MINUTES) -> Iterator[None]:
    """Joins the processes of a torchrun job for the length of a block.

    Ranks other than 0 print nothing to standard output. At its end all wait for each other. After an error
    they don't: the process ends, and the others, which notice at once over gloo and after ``minutes`` at the
    latest, end too.

    Args:
        minutes: How long to wait for another rank.

    Raises:
        LostRankError: Another rank ended, or wasn't heard of for so long.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if minutes <= 0:
        raise UserError(f"--timeout is {minutes:g}; it must be a positive number of minutes")
    store = _join(minutes)
    with contextlib.ExitStack() as stack:
        if dist.get_rank() > 0:
            quiet = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(quiet))
        try:
            yield
            barrier()
        except UserError as error:
            first = store.compare_set("told", "", str(error)).decode()
            error.told = dist.get_rank() > 0 and first == str(error)  # once is enough
            raise
        except RuntimeError as error:
            lost = _lost(error, minutes)
            if lost is None:
                raise
            raise lost from error
    dist.destroy_process_group()  # after an error the connections last until the traceback is printed


def _join(minutes: float) -> PrefixStore:
    """Makes the process group, with a name space of its own for each attempt of torchrun.

    torchrun's store keeps the keys of an attempt that died, and the next would take them for its own
    (pytorch issue 135712).
    """
    wait = timedelta(minutes=minutes)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    base = TCPStore(host, port, world, rank == 0 and not agent, timeout=wait, wait_for_workers=False)
    store = PrefixStore(f"graphkit/{attempt()}", base)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
    return store


def _lost(error: RuntimeError, minutes: float) -> LostRankError | None:
    """Returns what an error of the transport means, if it is one."""
    text, rank = str(error).lower(), rank_and_world()[0]
    where = f"rank {rank} of {rank_and_world()[1]}"
    if any(sign in text for sign in _LOST):
        return LostRankError(f"{where} stops, since another rank ended; see its own message")
    if any(sign in text for sign in _LATE):
        return LostRankError(
            f"{where} waited {minutes:g} minutes for another rank; see what that one does, or wait longer "
            "with --timeout MINUTES"
        )
    return None


@contextmanager
def first_ones_first() -> Iterator[None]:
    """Lets the first process of each machine through a block before the others, which find its files."""
    first = rank_and_world()[1] == 1 or os.environ.get("LOCAL_RANK", str(rank_and_world()[0])) == "0"
    if not first:
        barrier()
    try:
        yield
    finally:
        if first:  # even after an error: the others will meet it too
            barrier()
