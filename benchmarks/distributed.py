"""Look-up, backward pass and update of a table on several ranks, against other ways to hold it.

python benchmarks/distributed.py [--rows N] [--width D] [--ids B] [--ranks W] [--way NAME ...] [--json FILE]

Ranks are processes with one thread each that talk over gloo. Every rank looks up its own ids, drawn anew in
each step. What is shown is CPU time of a rank's process, the mean over ranks of the median over steps; memory
is the resident set at its highest over what it was before the table was made. Before that, every way must
give the rows and, after a step, the table of one process on a small table.

partitioned          rows and optimizer state on the rank that owns them, :class:`PartitionedEmbedding`
  ... ahead          the same, ids sent in the background before
one process          ``nn.Embedding(sparse=True)``: a rank by itself, no messages
DTensor rows         ``RowwiseParallel``, the gradient of the shard is dense
DDP, sparse / dense  ``nn.Embedding`` under DistributedDataParallel, the table on every rank
all-gather           the whole table is gathered, rows are taken from it
TorchRec             the engine ``torchrec``, where it is installed; rules sgd and rowwise_adagrad
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
from torch import Tensor, nn

from graphkit.config import OptimConfig
from graphkit.distributed.embedding import PartitionedEmbedding
from graphkit.report import format_table
from graphkit.train.optim import build_optimizer, gradient_norms

LR = 0.1


class Way(ABC):
    """A table of ``N x D`` that is looked up and updated."""

    optimizer: Any

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """Returns the rows of this rank's ids."""

    @abstractmethod
    def table(self) -> Tensor:
        """Returns the whole table, for the check."""

    def update(self) -> None:
        """One step of the optimizer."""
        self.optimizer.step()
        self.optimizer.zero_grad()


class Partitioned(Way):
    """graphkit's; the step includes the norm of gradients that the training loop takes."""

    def __init__(self, start: Tensor, rule: Any) -> None:
        self.embedding = PartitionedEmbedding(*start.shape, std=1.0)
        self.embedding.set_table_(start)
        self.optimizer = build_optimizer(self.embedding, OptimConfig(lr=LR, rows=rule))

    def rows(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def table(self) -> Tensor:
        return self.embedding.to_dense()

    def update(self) -> None:
        gradient_norms(self.optimizer)
        super().update()


class TorchRec(Partitioned):
    """The same table by TorchRec, rows updated by FBGEMM's fused kernels."""

    def __init__(self, start: Tensor, rule: Any) -> None:
        from graphkit.distributed.torchrec import TorchRecEmbedding

        self.embedding = TorchRecEmbedding(*start.shape, std=1.0)
        self.embedding.set_table_(start)
        self.optimizer = build_optimizer(self.embedding, OptimConfig(lr=LR, rows=rule))


class Gathered(Partitioned):
    """The same rows, and no exchange but of everything."""

    def rows(self, ids: Tensor) -> Tensor:
        return self.embedding.weight().index_select(0, ids)

    def update(self) -> None:
        Way.update(self)


class Alone(Way):
    """One process; rule adam is torch's SparseAdam."""

    def __init__(self, start: Tensor, rule: str) -> None:
        self.embedding = nn.Embedding.from_pretrained(start.clone(), freeze=False, sparse=True)
        self.optimizer = own_optimizer(self.embedding, rule)

    def rows(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def table(self) -> Tensor:
        return self.embedding.weight.detach()


class DataParallel(Way):
    """Replicated under DDP, which takes the mean over ranks."""

    def __init__(self, start: Tensor, rule: str, sparse: bool) -> None:
        made = nn.Embedding.from_pretrained(start.clone(), freeze=False, sparse=sparse)
        self.embedding = nn.parallel.DistributedDataParallel(made)
        self.optimizer = own_optimizer(made, rule if sparse or rule == "sgd" else f"dense {rule}")

    def rows(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) * dist.get_world_size()

    def table(self) -> Tensor:
        return self.embedding.module.weight.detach()


class Rowwise(Way):
    """DTensor's rows; each rank's ids are a shard of the batch."""

    def __init__(self, start: Tensor, rule: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard
        from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

        made = nn.Embedding.from_pretrained(start.clone(), freeze=False)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        style = RowwiseParallel(input_layouts=Shard(0), output_layouts=Shard(0))
        self.embedding = parallelize_module(made, mesh, style)
        self.optimizer = own_optimizer(self.embedding, rule if rule == "sgd" else f"dense {rule}")

    def rows(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def table(self) -> Tensor:
        return self.embedding.weight.full_tensor().detach()


def own_optimizer(module: nn.Module, rule: str) -> torch.optim.Optimizer:
    """Gives torch's optimizer for a rule, of sparse gradients unless it says dense."""
    if rule == "sgd":
        return torch.optim.SGD(module.parameters(), lr=LR)
    if rule.endswith("adagrad"):
        return torch.optim.Adagrad(module.parameters(), lr=LR)
    if rule == "adam":
        return torch.optim.SparseAdam(module.parameters(), lr=LR)
    return torch.optim.Adam(module.parameters(), lr=LR)


WAYS: dict[str, Callable[[Tensor, str], Way]] = {
    "one process": Alone,
    "partitioned": Partitioned,
    "partitioned, ahead": Partitioned,
    "DTensor rows": Rowwise,
    "DDP, sparse": lambda start, rule: DataParallel(start, rule, True),
    "DDP, dense": lambda start, rule: DataParallel(start, rule, False),
    "all-gather": Gathered,
    **({"TorchRec": TorchRec} if importlib.util.find_spec("torchrec") else {}),
}
RULES = ("sgd", "rowwise_adagrad", "adam")


def draw(rows: int, ids: int, rank: int, step: int) -> Tensor:
    """Ids of a rank in a step, some of them repeated."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(rows, (ids,), generator=generator)


def check(way: str, rule: str, rank: int, world: int) -> None:
    """Raises unless rows and the table after a step of sgd are those of one process."""
    rows, width, ids = 1009, 8, 300
    start = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    ours = WAYS[way](start, "sgd")
    everybody = [draw(rows, ids + 5 * r * ("DTensor" not in way), r, 0) for r in range(world)]
    mine = everybody[rank]
    found = ours.rows(mine)
    scale = dist.get_world_size() if way.startswith("DDP") else 1
    torch.testing.assert_close(found, scale * start[mine])
    (found.square().sum() / scale).backward()
    ours.update()
    theirs = start.clone().requires_grad_()
    if way == "one process":
        everybody = [mine]
    sum((scale * theirs[i].square()).sum() for i in everybody).backward()
    if way.startswith("DDP"):
        theirs.grad /= world
    torch.testing.assert_close(ours.table(), start - LR * theirs.grad, atol=1e-4, rtol=1e-4)


def measure(way: str, rule: str, options: Any, rank: int, world: int) -> dict[str, float]:
    """Returns CPU milliseconds of forward, backward and update, and MB."""
    check(way, rule, rank, world)
    start = torch.randn(options.rows, options.width, generator=torch.Generator().manual_seed(0))
    before = trim()
    ours = WAYS[way](start, rule)
    batches = [draw(options.rows, options.ids, rank, step) for step in range(options.steps + 1)]
    weight = torch.randn(options.ids, options.width)
    ahead = way.endswith("ahead")
    times: list[tuple[float, float, float]] = []
    for step, ids in enumerate(batches):
        if world > 1:
            dist.barrier()
        first = time.process_time()
        if ahead and step + 1 < len(batches):
            ours.embedding.prefetch(batches[step + 1])  # type: ignore[attr-defined]
        rows = ours.rows(ids)
        second = time.process_time()
        rows.backward(weight)
        third = time.process_time()
        ours.update()
        if step:  # the first makes state and connections
            times.append((second - first, third - second, time.process_time() - third))
    parts = [1000 * statistics.median(part) for part in zip(*times, strict=True)]
    total = 1000 * statistics.median(map(sum, times))
    peak = memory("VmHWM") - before
    return dict(zip(("forward", "backward", "update"), parts, strict=True)) | {"total": total, "MB": peak}


def memory(name: str) -> float:
    """A line of the process's status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1e3
    raise OSError(f"no {name} in /proc/self/status")


def trim() -> float:
    """Gives free memory back, restarts the count of the peak and returns what is in use, in MB."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def on_ranks(way: str, rule: str, options: Any) -> dict[str, float]:
    """Measures one way in processes of its own and returns the mean over ranks."""
    world = 1 if way == "one process" else options.ranks
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    torch.set_num_threads(1)
                    if world > 1:
                        store = dist.FileStore(f"{folder}/store", world)
                        limit = timedelta(seconds=120)
                        dist.init_process_group("gloo", None, limit, world, rank, store)
                    found = measure(way, rule, options, rank, world)
                    Path(folder, f"{rank}.json").write_text(json.dumps(found))
                    if world > 1:
                        dist.barrier()
                        dist.destroy_process_group()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            sys.exit(f"{way} failed")
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]
    return {name: statistics.fmean(one[name] for one in found) for name in found[0]}


def main() -> None:
    """Reads arguments, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--ids", type=int, default=20_000, help="of a rank in a step")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--way", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rule", nargs="*", choices=RULES, default=list(RULES))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = []
    for rule in options.rule:
        for way in options.way:
            if rule != "sgd" and way in ("all-gather", "DDP, dense"):
                continue  # the dense gradient is what costs
            if rule == "adam" and way == "TorchRec":
                continue  # FBGEMM has it on GPUs only
            rows.append({"rule": rule, "table": way, **on_ranks(way, rule, options)})
    sizes = f"{options.rows:,} x {options.width}, {options.ids:,} ids on each of {options.ranks} ranks"
    print(f"{sizes}; CPU ms, MB")
    print(format_table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
