"""Time of NCN and NCNC against the same models written plainly, and memory of NCNC on a graph with hubs.

python benchmarks/ncn.py [--dataset NAME ...] [--model ncn|ncnc ...] [--epochs N] [--data-root DIR]
                         [--json FILE]
python benchmarks/ncn.py --rmat [--json FILE]

One thread, process CPU time. The first form trains with the published settings, an epoch of each form in
turn, after making sure that both give the same scores; times are medians, the first epoch isn't counted.
The floor is what the matrix products of an epoch take by themselves, on the same shapes in the same run.
The second takes one training step of NCNC on 200,000 nodes and 2.0 million edges, without degree limits.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from graphs import rmat_edges
from overlap import EDGES, NODES, peak_growth, resident
from plain_ncn import PlainLinks
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.data import Benchmark
from graphkit.experiment import Experiment, build
from graphkit.models.ncnc import NCNC
from graphkit.nn.pairs import pair_structure
from graphkit.parsing import resolve
from graphkit.sampling import NegativeSampler
from graphkit.sparse import CSRGraph
from graphkit.tasks.link import LinkTask
from graphkit.train.loop import Trainer
from graphkit.train.optim import set_lr

# Wanted seconds of a training epoch, on a machine where the plain form takes so many.
TARGETS = {
    ("ncn", "cora"): (0.28, 0.80),
    ("ncnc", "cora"): (0.60, 1.55),
    ("ncn", "citeseer"): (0.75, 4.4),
}
EVALUATION_TARGET = 4.0  # times faster
MEMORY_TARGET = 2048  # MB
RMAT_BATCH, RMAT_WIDTH, RMAT_FEATURES = 1024, 64, 128

# A matrix product of a training step: rows, inputs, outputs, and whether gradients follow.
Shape = tuple[int, int, int, bool]


class Figures(NamedTuple):
    """CPU seconds of one model on one data set; gflop and rate are those of the matrix products."""

    model: str
    dataset: str
    plain_train: float
    train: float
    plain_evaluation: float
    first_evaluation: float
    evaluation: float
    gflop: float
    gflop_per_second: float
    floor: float


def seconds(call: Callable[[], Any]) -> float:
    """Returns the CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def check_equal(task: LinkTask, model: nn.Module, plain: PlainLinks, benchmark: Benchmark) -> None:
    """Makes sure that both forms give the same scores to all validation and test pairs."""
    plain.load(model.state_dict())
    kinds = ("pos_edge_label_index", "neg_edge_label_index")
    pairs = torch.cat([benchmark.splits[s][kind] for s in ("valid", "test") for kind in kinds], dim=1)
    ours, theirs = task.score(model, pairs), plain.scores(pairs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().mean()))


def train_epoch(trainer: Trainer, epoch: int) -> None:
    """Takes the steps of an epoch as the trainer does, without its log and checkpoints."""
    assert trainer.optimizer is not None
    trainer.model.train()
    set_lr(trainer.optimizer, 1.0)
    for step in range(trainer.steps):
        trainer.gradients(epoch, step)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)


def linear_shapes(model: nn.Module, run: Callable[[], Any]) -> list[Shape]:
    """Lists the products of ``nn.Linear`` modules while ``run`` runs.

    The input layer is no dense product: its features are sparse rows.
    """
    shapes: list[Shape] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        rows = inputs[0].numel() // module.in_features
        shapes.append((rows, module.in_features, module.out_features, output.requires_grad))

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(note) for module in linears]
    run()
    for hook in hooks:
        hook.remove()
    return shapes


def gemm_floor(shapes: list[Shape]) -> tuple[float, float]:
    """Returns the multiply-adds of the products, and the seconds that they take alone.

    A layer of ``R`` rows from ``I`` to ``O`` takes ``R I O`` multiply-adds forward and, where gradients
    follow, as many for that of its input and again for that of its weight. A batch of b positives and b
    negatives in NCN has R = 2b in the pair branch (1 layer), the second layer of the common branch and the
    head (1 or 2, and one of width 1); fewer in the first layer of the common branch (pairs with a common
    neighbour) and in the node MLP (2 layers, nodes that are pooled). NCNC adds the same layers, forward only,
    with R the number of candidates.
    """
    work = sum(r * i * o * (3 if gradient else 1) for r, i, o, gradient in shapes)
    return work, sum(times * product_seconds(*shape) for shape, times in Counter(shapes).items())


def product_seconds(rows: int, inputs: int, outputs: int, gradient: bool) -> float:
    """Returns the median CPU seconds of one layer's products, with nothing around them."""
    x, weight, grad = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    y, grad_x, grad_weight = torch.empty_like(grad), torch.empty_like(x), torch.empty_like(weight)

    def products() -> None:
        torch.mm(x, weight.t(), out=y)
        if gradient:
            torch.mm(grad, weight, out=grad_x)
            torch.mm(grad.t(), x, out=grad_weight)

    products()
    return statistics.median(seconds(products) for _ in range(5))


def compare(model_name: str, dataset_name: str, epochs: int, data_root: str) -> Figures:
    """Measures one model on one data set."""
    # the plain form has our default completion, whatever the recipe reproduces
    config = resolve(model_name, dataset_name, ["--model.parity", "false"])

    def built() -> Experiment:
        return build(config, data_root=data_root)

    benchmark, task, model = built()
    assert isinstance(task, LinkTask)
    plain = PlainLinks(config, benchmark)
    check_equal(task, model, plain, benchmark)
    trainer = Trainer(model, task, config)
    train_epoch(trainer, 0)
    plain.epoch()
    spent, spent_plain = [], []
    for epoch in range(1, epochs + 1):
        spent.append(seconds(partial(train_epoch, trainer, epoch)))
        spent_plain.append(seconds(plain.epoch))
    shapes = linear_shapes(model, lambda: train_epoch(trainer, 0))
    work, floor = gemm_floor(shapes)

    first, later, recomputed = [], [], []
    for _ in range(3):
        fresh = built().task  # nothing kept from an earlier evaluation
        evaluations = [seconds(partial(evaluate_both, fresh, model)) for _ in range(4)]
        first.append(evaluations[0])
        later += evaluations[1:]
        recomputed += [seconds(partial(evaluate_both, plain)) for _ in range(2)]
    return Figures(
        model_name,
        dataset_name,
        plain_train=statistics.median(spent_plain),
        train=statistics.median(spent),
        plain_evaluation=statistics.median(recomputed),
        first_evaluation=statistics.median(first),
        evaluation=statistics.median(later),
        gflop=2e-9 * work,
        gflop_per_second=2e-9 * work / floor,
        floor=floor,
    )


def evaluate_both(evaluator: Any, *model: nn.Module) -> None:
    """Evaluates validation and test pairs by ``evaluator.evaluate(*model, split)``."""
    for split in ("valid", "test"):
        evaluator.evaluate(*model, split)


def yes(met: bool) -> str:
    """Returns the word for a verdict."""
    return "yes" if met else "no"


def report(f: Figures) -> None:
    """Prints the lines of one comparison."""
    print(f"\n{f.model} on {f.dataset}: CPU seconds, {'plain':>27}{'graphkit':>10}{'ratio':>8}  target met")
    verdict = "no target"
    if (f.model, f.dataset) in TARGETS:
        wanted, usual = TARGETS[f.model, f.dataset]
        ratio = usual / wanted
        verdict = f"{yes(f.train <= wanted)} (<= {wanted} s)"
        verdict += f"; {yes(f.plain_train / f.train >= ratio)} (>= {ratio:.1f}x)"
    lines = [("training epoch", f.plain_train, f.train, verdict)]
    for name, ours in (("first evaluation", f.first_evaluation), ("later evaluations", f.evaluation)):
        met = yes(f.plain_evaluation / ours >= EVALUATION_TARGET)
        lines.append((name, f.plain_evaluation, ours, f"{met} (>= {EVALUATION_TARGET:.0f}x)"))
    for name, before, ours, met in lines:
        print(f"  {name:45}{before:10.3f}{ours:10.3f}{before / ours:7.1f}x  {met}")
    print(
        f"  matrix products of an epoch: {f.gflop:.1f} GFLOP at {f.gflop_per_second:.0f} GFLOP/s, "
        f"floor {f.floor:.3f} s; the epoch takes {f.train / f.floor:.2f} times that"
    )


def rmat_step() -> dict[str, float]:
    """Takes one training step on a graph with hubs and returns its figures."""
    torch.manual_seed(0)
    edges = torch.from_numpy(rmat_edges(NODES, EDGES))
    graph = CSRGraph.from_edge_index(edges, NODES)
    positive = edges[:, :RMAT_BATCH].clone()
    negative = NegativeSampler(graph.edges, NODES).draw(RMAT_BATCH, torch.Generator().manual_seed(0))
    removed = torch.zeros(graph.edges.size(1), dtype=torch.bool)
    removed[graph.find_edges(positive)] = True
    graph, pairs = graph.without_edges(removed), torch.cat([positive, negative], dim=1)
    del edges, removed, positive, negative
    label = torch.cat([torch.ones(RMAT_BATCH), torch.zeros(RMAT_BATCH)])
    model = NCNC(
        RMAT_FEATURES, hidden_channels=RMAT_WIDTH, node_mlp=True, predictor_dropout=0.1, tail_activation=True
    )
    x = torch.randn(NODES, RMAT_FEATURES)

    def step(pairs: Tensor, label: Tensor) -> None:
        model.zero_grad(set_to_none=True)
        score = model.score(model.encode(x, graph), graph, pairs)
        F.binary_cross_entropy_with_logits(score, label).backward()

    step(pairs[:, -8:], label[-8:])  # compiles the kernels
    spent: list[float] = []
    peak = peak_growth(lambda: spent.append(seconds(lambda: step(pairs, label))))
    high_water = math.nan if math.isnan(peak) else resident("VmHWM")
    found = pair_structure(graph, pairs, differences=True)
    assert found.only_i is not None
    assert found.only_j is not None
    candidates = found.only_i.node.numel() + found.only_j.node.numel()
    return {
        "cpu_s": spent[0],
        "candidates": candidates,
        "entries": found.common.node.numel() + candidates,
        "step_mb": peak,
        "process_mb": high_water,
    }


def report_rmat(figures: dict[str, float]) -> None:
    """Prints the figures of the step on the graph with hubs."""
    met = yes(figures["process_mb"] <= MEMORY_TARGET)
    print(
        f"NCNC, H = {RMAT_WIDTH}, one training step on R-MAT ({NODES} nodes, {EDGES} edges):\n"
        f"  {RMAT_BATCH} edges that are taken out and {RMAT_BATCH} non-edges;\n"
        f"  {figures['candidates']:.0f} candidates, {figures['entries']:.0f} pooled entries\n"
        f"  {figures['cpu_s']:.2f} CPU s; peak {figures['step_mb']:.0f} MB above what the process held "
        f"before, {figures['process_mb']:.0f} MB in all\n"
        f"  target met: {met} (<= {MEMORY_TARGET} MB in all)"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="NCN and NCNC: time, and memory on a graph with hubs.")
    parser.add_argument("--dataset", nargs="+", default=["cora", "citeseer"])
    parser.add_argument("--model", nargs="+", choices=["ncn", "ncnc"], default=["ncn", "ncnc"])
    parser.add_argument("--epochs", type=int, default=5, help="epochs to measure")
    parser.add_argument("--data-root", default="data", help="folder of raw files and caches")
    parser.add_argument("--rmat", action="store_true", help="one training step on a graph with hubs instead")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    print(f"1 thread, torch {torch.__version__}, {platform.machine()}")
    figures: list[dict[str, Any]] = []
    if options.rmat:
        figures.append(rmat_step())
        report_rmat(figures[0])
    else:
        for dataset in options.dataset:
            for model in options.model:
                found = compare(model, dataset, options.epochs, options.data_root)
                report(found)
                figures.append(found._asdict())
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
