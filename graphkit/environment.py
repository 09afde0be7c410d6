"""The facts beside a result: versions, hardware, source revision, parameters, memory."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

__all__ = [
    "command_line",
    "git_state",
    "hardware",
    "parameter_count",
    "peak_memory_mb",
    "rank_and_world",
    "versions",
]


def rank_and_world() -> tuple[int, int]:
    """Returns this process's rank and the number of processes, ``(0, 1)`` outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def versions() -> dict[str, str | None]:
    """Returns the versions that a result depends on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for key, package in (
        ("torch", "torch"),
        ("torch_geometric", "torch-geometric"),
        ("torch_scatter", "torch-scatter"),
        ("numpy", "numpy"),
        ("ogb", "ogb"),
        ("graphkit", "graphkit"),
    ):
        try:
            found[key] = version(package)
        except PackageNotFoundError:
            found[key] = None
    return found


def hardware() -> dict[str, Any]:
    """Returns processor, cores, memory in GB and GPUs of this machine."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "gpus": [],
    }
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Returns ``commit`` and ``dirty`` of graphkit's own source, both ``None`` outside a repository."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "errors.py")  # not a repository that merely holds the venv
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def parameter_count(model: nn.Module) -> int:
    """Returns the number of trainable values on all ranks; tied parameters and replicas count once."""
    return sum(
        p.numel() if rows is None else rows.total * math.prod(p.shape[1:])
        for p in model.parameters()
        if p.requires_grad
        for rows in [getattr(p, "rows", None)]
    )


def peak_memory_mb(device: torch.device) -> float:
    """Returns the peak memory so far: of the CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def command_line() -> list[str]:
    """Returns the command that started this process, without what only this machine has: absolute paths.

    The script is ``scripts/train.py`` or its bare name; paths in the current folder become relative to it, of
    others the last part remains, ``.../data``.
    """
    if not sys.argv:
        return []
    script = Path(sys.argv[0])
    name = f"scripts/{script.name}" if script.parent.name == "scripts" else script.name
    return [name, *map(_without_place, sys.argv[1:])]


def _without_place(argument: str) -> str:
    """Makes ``/a/b`` and ``--flag=/a/b`` relative."""
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    here = Path.cwd()
    return flag + equals + (str(path.relative_to(here)) if path.is_relative_to(here) else f".../{path.name}")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def hardware_line(facts: dict[str, Any]) -> str:
    """Returns :func:`hardware` in one line."""
    gpus = "".join(f", {name}" for name in facts.get("gpus", []))
    return f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores, {facts['memory_gb']} GB{gpus}"
