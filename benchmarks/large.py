"""Training steps on a generated graph larger than a rank's share of memory should hold, table included.

Two processes, one thread each, sample from one memory-mapped graph and train a two-layer GraphSAGE on learnt
node rows alone, for a fixed number of steps, with the trainer's own gradients and optimizer::

    python benchmarks/large.py --build --folder DIR
    torchrun --nproc-per-node 2 benchmarks/large.py --folder DIR --table dense
    torchrun --nproc-per-node 2 benchmarks/large.py --folder DIR --table tensor_train

The graph is R-MAT (a, b, c = 0.57, 0.19, 0.19) of 10 million nodes; 115 million directed edges are drawn and
repeats dropped. Tables: ``dense``, 10 million rows of 64 partitioned over the ranks, with row-wise Adagrad;
``tensor_train``, rank 16, a replica on each rank, with Adam. Traffic of the partitioned table is counted by
the table; that of replicated parameters is what a ring sends, ``2 (W - 1) / W`` times their bytes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from graphs import rmat_chunks
from torch_geometric.data import Data

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.distributed.launch import process_group
from graphkit.distributed.ranks import gather_rows
from graphkit.environment import rank_and_world
from graphkit.evaluation import GraphEvaluator
from graphkit.experiment import build_model
from graphkit.mapped import build_mapped_csr, open_mapped_csr
from graphkit.tasks.node import NodeTask
from graphkit.train import Trainer

NODES, EDGES, CLASSES, WIDTH = 10_000_000, 115_000_000, 16, 64
FANOUTS, BATCH, WARM = [10, 5], 1024, 5
KEY = f"rmat/{NODES}/{EDGES}"
TABLES: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense", "partitioned": True, "init": "gaussian"},
    "tensor_train": {"kind": "tensor_train", "rank": 16, "order": "identity"},
    "tensor_train_partitioned": {"kind": "tensor_train", "rank": 16, "partitioned": True},
}


def build(folder: Path) -> None:
    """Draws the graph and sorts it on disk."""

    def chunks() -> Any:
        return (torch.from_numpy(piece) for piece in rmat_chunks(NODES, EDGES))

    started = time.process_time()
    graph = build_mapped_csr(chunks, NODES, folder, key=KEY, undirected=False, buffer_bytes=512 << 20)
    seconds = time.process_time() - started
    print(f"{graph.num_rows:,} nodes, {graph.col.numel():,} entries, {seconds:.0f} s CPU")


def benchmark(folder: Path, steps: int, world: int) -> Benchmark:
    """The graph with random classes, and as many targets as the steps take."""
    graph = open_mapped_csr(folder, KEY)
    draw = torch.Generator().manual_seed(0)
    count = steps * BATCH * world
    targets = torch.randperm(NODES, generator=draw)[:count].clone()
    y = torch.randint(CLASSES, (NODES,), generator=draw)
    splits = {name: {"index": targets} for name in ("train", "valid", "test")}
    sizes = DataSpec(num_nodes=NODES, num_classes=CLASSES)
    evaluator = GraphEvaluator("classes", "accuracy")
    data = Data(y=y, num_nodes=NODES)
    return Benchmark("rmat", "node", data, splits, sizes, "accuracy", True, evaluator, adjacency=graph)


def own_memory() -> dict[str, float]:
    """MB of this process: without and with what is mapped from files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "VmRSS", "VmHWM")}


def run(folder: Path, table: str, steps: int) -> None:
    """Trains for some steps and prints what each rank held, sent and took."""
    rank, world = rank_and_world()
    torch.set_num_threads(1)
    config = RunConfig(
        model_name="tt-gnn",
        dataset_name="rmat",
        task_name="node",
        seed=0,
        model={
            **{"conv": "sage", "hidden_channels": WIDTH, "num_layers": 2, "norm": "none", "dropout": 0.0},
            "embedding": {**TABLES[table], "dim": WIDTH},
        },
        optim=OptimConfig(name="adam", lr=0.01, rows="rowwise_adagrad"),
        train=TrainConfig(epochs=1, batch_size=BATCH),
    )
    started = time.perf_counter()
    data = benchmark(folder, WARM + steps, world)
    task = NodeTask(data, 0, BATCH * world, BATCH, fanouts=FANOUTS, eval_fanouts=FANOUTS)
    model = build_model(config, data.spec)
    trainer = Trainer(model, task, config)
    assert trainer.optimizer is not None
    ready = time.perf_counter() - started
    tables = [module for module in model.modules() if hasattr(module, "traffic")]
    times, cpu, losses = [], 0.0, []
    for step in range(WARM + steps):
        if step == WARM:
            cpu = time.process_time()
            for module in tables:
                module.traffic.reset()
        begun = time.perf_counter()
        loss, _, _ = trainer.gradients(0, step)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - begun)
        losses.append(loss)
    cpu = (time.process_time() - cpu) / steps
    seconds = statistics.median(times[WARM:])
    shared = sum(p.numel() * p.element_size() for p in model.parameters() if not hasattr(p, "rows"))
    row = {
        "table MB on this rank": sum(p.numel() * p.element_size() for p in model.embedding.parameters())
        / 1e6,
        "own memory MB": own_memory()["RssAnon"],
        "with mapped files MB": own_memory()["VmRSS"],
        "peak MB": own_memory()["VmHWM"],
        "start s": ready,
        "step s": seconds,
        "CPU s": cpu,
        "examples/s": world * BATCH / seconds,
        "all-reduced MB a step": 2 * (world - 1) / world * shared / 1e6,
        "first loss": losses[0],
        "last loss": losses[-1],
    }
    for module in tables:
        traffic = module.traffic
        row |= {
            "distinct rows a step": traffic.distinct / steps,
            "local share": traffic.local / max(traffic.distinct, 1),
            "ids sent MB a step": traffic.ids_sent / steps / 1e6,
            "rows sent MB a step": traffic.rows_sent / steps / 1e6,
            "gradients sent MB a step": traffic.gradients_sent / steps / 1e6,
        }
    every = torch.cat(gather_rows(torch.tensor([list(row.values())], dtype=torch.float64)))
    if rank == 0:
        print(f"{table}, {world} ranks, {steps} steps after {WARM}")
        for column, name in enumerate(row):
            print(f"{name:>26}  " + "  ".join(f"{value:12,.4g}" for value in every[:, column].tolist()))
        print(json.dumps({"table": table, "world": world, "ranks": every.tolist(), "names": list(row)}))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the graph lies (0.6 GB)")
    parser.add_argument("--build", action="store_true", help="draw and sort the graph")
    parser.add_argument("--table", choices=list(TABLES), default="dense")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.build:
        build(options.folder)
        return
    with process_group():
        run(options.folder, options.table, options.steps)


if __name__ == "__main__":
    main()
