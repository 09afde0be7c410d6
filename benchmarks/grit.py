"""A training step of GRIT against the textbook form over all pairs: time, memory, floor; and its walks.

python benchmarks/grit.py [--case zinc large peptides] [--layers N] [--rounds N] [--quick] [--json FILE]

One thread, process CPU time. Both forms have the same weights and must give the same predictions in
evaluation mode first; then rounds of one step (forward and backward) each alternate, and the least time of
each counts. Ours computes its walks in the step, the textbook form has them ready. The floor is what the
matrix products of a step take by themselves in the same run, nothing computed twice. Memory is of processes
of their own: bytes kept for the gradient (without parameters), and growth of the resident set.

Molecules are synthetic: trees of degree at most 4 with some rings. Graphs of 100 to 200 nodes take the
textbook form a minute and 11 GB a step of 10 layers, so 2 layers of them are timed unless --layers says more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from overlap import peak_growth
from plain_grit import PlainGRIT
from torch import Tensor, nn

from graphkit.kernels.random_walks import random_walks
from graphkit.models.grit import GRIT
from graphkit.nn.walks import walk_encoding

ATOMS, BONDS = 28, 4
WALKED = 10_000  # graphs whose walks are timed


class Case(NamedTuple):
    """A configuration: graphs of a batch, their sizes, width, heads, steps of walks, layers (timed)."""

    graphs: int
    mean: float
    spread: float  # standard deviation, or half the range where the sizes are uniform
    uniform: bool
    width: int
    heads: int
    steps: int
    layers: int


CASES = {
    "zinc": Case(32, 23.2, 4.5, False, 64, 8, 21, 10),
    "large": Case(16, 150, 50, True, 64, 8, 21, 2),
    "peptides": Case(16, 150, 50, True, 96, 4, 17, 2),
}


class Molecules(NamedTuple):
    """A batch as graph models take it."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor
    sizes: Tensor


def molecules(case: Case, seed: int = 0) -> Molecules:
    """Draws a batch: every atom bonds to an earlier one with room, then 8 rings close for 100 atoms."""
    rng = np.random.default_rng(seed)
    if case.uniform:
        sizes = rng.integers(case.mean - case.spread, case.mean + case.spread, case.graphs, endpoint=True)
    else:
        sizes = rng.normal(case.mean, case.spread, case.graphs).round().clip(6).astype(int)
    edges: list[tuple[int, int]] = []
    first = 0
    for size in sizes:
        degree = np.zeros(size, int)
        for a in range(1, size + round(0.08 * size) + 1):
            known, room = min(a, size), np.flatnonzero(degree[: min(a, size)] < 4)
            b = int(rng.choice(room[-6:]))
            a = a if a < size else int(rng.choice(np.flatnonzero(degree[:known] < 4)))
            if a != b:
                edges.append((first + a, first + b))
                degree[[a, b]] += 1
        first += size
    one_way = torch.tensor(edges).t()
    bonds = torch.from_numpy(rng.integers(1, BONDS, len(edges)))
    return Molecules(
        torch.from_numpy(rng.integers(0, ATOMS, (first, 1))),
        torch.cat([one_way, one_way.flip(0)], 1),
        torch.cat([bonds, bonds])[:, None],
        torch.repeat_interleave(torch.arange(len(sizes)), torch.from_numpy(sizes)),
        torch.from_numpy(sizes),
    )


def build(case: Case) -> GRIT:
    """Returns the published model; textbook code also computes what its last layer's pairs would become."""
    torch.manual_seed(0)
    return GRIT(
        None,
        1,
        [ATOMS],
        [BONDS],
        hidden_channels=case.width,
        num_layers=case.layers,
        heads=case.heads,
        walk_steps=case.steps,
        unused_parameters=True,
    )


def forms(case: Case) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Returns both models with calls that give their predictions of one batch."""
    data = molecules(case)
    ours = build(case)
    plain = PlainGRIT(ours)
    walks = walk_encoding(
        data.edge_index, case.steps, torch.cat([torch.zeros(1).long(), data.sizes.cumsum(0)])
    )
    return {
        "textbook": (plain, lambda: plain(*data[:4], walks)),
        "graphkit": (ours, lambda: ours(*data)),
    }


def step(model: nn.Module, predict: Callable[[], Tensor]) -> None:
    """Runs forward and backward, and drops the gradients."""
    predict().abs().mean().backward()
    model.zero_grad(set_to_none=True)


def check_equal(case: Case) -> None:
    """Makes sure that both forms predict the same."""
    found = []
    for model, predict in forms(case).values():
        model.eval()
        with torch.no_grad():
            found.append(predict())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3 * float(found[0].abs().mean()))


def timed(case: Case, rounds: int) -> dict[str, float]:
    """Returns the least CPU seconds of a step of each form, in alternating rounds after one each."""
    both = forms(case)
    best = dict.fromkeys(both, float("inf"))
    for turn in range(rounds + 1):
        for name, (model, predict) in both.items():
            start = time.process_time()
            step(model.train(), predict)
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def remember(case: Case, name: str, results: Any) -> None:
    """Puts MB kept for the gradient and the growth of the resident set; runs in its own process."""
    torch.set_num_threads(1)
    model, predict = forms(case)[name]
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = predict().abs().mean()
    saved = sum(size for place, size in kept.items() if place not in own) / 1e6
    loss.backward()
    model.zero_grad(set_to_none=True)
    del loss
    results.put((saved, peak_growth(lambda: step(model, predict))))


def memory(case: Case, name: str) -> tuple[float, float]:
    """Returns what :func:`remember` measures."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=remember, args=(case, name, results))
    worker.start()
    worker.join()
    if worker.exitcode:
        raise SystemExit(f"{name}: failed, see above")
    found: tuple[float, float] = results.get()
    return found


def product_seconds(rows: int, inputs: int, outputs: int) -> float:
    """Returns the least CPU seconds of a linear map's three products, on pieces that fit the cache."""
    piece = min(rows, 1024)
    x, weight, grad = torch.randn(piece, inputs), torch.randn(inputs, outputs), torch.randn(piece, outputs)
    y, grad_x, grad_weight = torch.empty_like(grad), torch.empty_like(x), torch.empty_like(weight)
    best = float("inf")
    for _ in range(50):
        start = time.process_time()
        torch.mm(x, weight, out=y)
        torch.mm(grad, weight.t(), out=grad_x)
        torch.mm(x.t(), grad, out=grad_weight)
        best = min(best, time.process_time() - start)
    return best * rows / piece


def floor(case: Case, pairs: int, nodes: int) -> tuple[float, float]:
    """Returns GFLOP of a step's products, and the seconds that they take alone.

    A layer maps pairs to w and b (2d) and back to pairs (d, not in the last layer), nodes to q, k, v, their
    sum and, twice as wide, through the FFN.
    """
    d, layers = case.width, case.layers
    shapes = [(pairs, d, 2 * d, layers), (pairs, d, d, layers - 1), (nodes, d, d, 4 * layers)]
    shapes += [(nodes, d, 2 * d, layers), (nodes, 2 * d, d, layers)]
    work = sum(6 * rows * inputs * outputs * times for rows, inputs, outputs, times in shapes)
    seconds = sum(times * product_seconds(*shape) for *shape, times in shapes)
    return work / 1e9, seconds


def walk_seconds(case: Case) -> float:
    """Returns the CPU seconds that walks of many batches' graphs take."""
    batches = [molecules(case._replace(graphs=250), seed) for seed in range(4)]
    spent = 0.0
    for turn in range(WALKED // 250):
        data = batches[turn % len(batches)]
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), data.sizes.cumsum(0)])
        start = time.process_time()
        random_walks(data.edge_index, ptr, case.steps)
        spent += time.process_time() - start
    return spent


def report(name: str, case: Case, rounds: int) -> dict[str, Any]:
    """Measures a case and prints its rows."""
    check_equal(case)
    sizes = molecules(case).sizes
    nodes, pairs = int(sizes.sum()), int(sizes.square().sum())
    work, least = floor(case, pairs, nodes)
    seconds = timed(case, rounds)
    figures: dict[str, Any] = {"pairs": pairs, "layers": case.layers, "gflop": work, "floor": least}
    for form in seconds:
        saved, peak = memory(case, form)
        figures[form] = {"seconds": seconds[form], "saved_mb": saved, "peak_mb": peak}
        ratio = seconds["textbook"] / seconds[form]
        what = f"{name}: {case.layers} x {case.width}, {case.heads} heads, {pairs:,} pairs"
        shown = f"{seconds[form]:.3f} | {ratio:.1f} | {seconds[form] / least:.1f}"
        print(f"| {what} | {form} | {shown} | {saved:.0f} | {peak:.0f} |", flush=True)
    print(f"| | products alone ({work:.1f} GFLOP) | {least:.3f} | | 1 | | |", flush=True)
    return figures


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", default=["zinc"], choices=list(CASES))
    parser.add_argument("--layers", type=int, help="instead of the case's own number")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each form whose least counts")
    parser.add_argument("--quick", action="store_true", help="2 layers and 2 rounds")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    columns = ("", "form", "CPU s a step", "textbook / form", "form / floor", "kept MB", "peak MB")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name in options.case:
        layers = 2 if options.quick else options.layers or CASES[name].layers
        figures[name] = report(
            name, CASES[name]._replace(layers=layers), 2 if options.quick else options.rounds
        )
    figures["walks"] = walk_seconds(CASES["zinc"])
    print(f"\nRandom walks of {WALKED:,} graphs of the size of ZINC's: {figures['walks']:.2f} s")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
