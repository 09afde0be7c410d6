"""Time of EpiGNN against its textbook form, on problems of RCC-8.

python benchmarks/epignn.py [--steps N] [--epochs N] [--threads N] [--json FILE]

CPU time of the process, on one thread unless told otherwise. The textbook form composes every edge by the
whole bilinear form in each of nine rounds, forward and backward, and searches paths in the forward pass, node
by node. Both forms must agree on scores and gradients before either is timed. Steps are training steps on
batches of 128 graphs (loss, gradients, optimizer); the two forms take turns and the figures are medians. An
epoch has 57,600 graphs with paths of 2 to 4 edges in 1 to 3 branches, batches gathered included.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphkit.datasets.reasoning import load_rcc8
from graphkit.models.epignn import EpiGNN, wrong_relations
from graphkit.tasks.relation import RelationTask
from graphkit.tasks.relation_queries import Queries

BATCH, ROUNDS, CELLS = 128, 9, ((4, 3), (9, 3))
# Milliseconds of a step, of an evaluated graph, and seconds of an epoch that are wanted.
TRAINED = (2, 3, 4)  # lengths of paths in training
STEP_TARGET, GRAPH_TARGET, EPOCH_TARGET = 10.0, 0.2, 4.0


class Textbook(nn.Module):
    """EpiGNN as the paper writes it, on the parameters of ``model``."""

    def __init__(self, model: EpiGNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, queries: Queries) -> Tensor:
        """Returns the score of each relation for each query, ``[B, R]``."""
        relation = self.model.relation.softmax(2)
        ends = (queries.source, queries.target)
        h = [self.propagate(queries, relation, forward=way) for way in (True, False)]
        node, graph = search(queries.edge_index, *ends, queries.num_nodes)
        z = self.compose(h[0][node], h[1][node])
        out = self.pool(z, graph, ends[0].numel())
        return torch.einsum("bfp,rfp->br", (out + 1e-12).log(), relation)

    def compose(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the bilinear form of two lists of beliefs."""
        return torch.einsum("fpij,kfi,kfj->kfp", self.model.composition.tensor(), x, y)

    def propagate(self, queries: Queries, relation: Tensor, *, forward: bool) -> Tensor:
        """Returns the beliefs after all rounds of one pass."""
        (tail, head), nodes = queries.edge_index, queries.num_nodes
        anchor = queries.source if forward else queries.target
        identity = torch.zeros_like(relation[:1])
        identity[..., 0] = 1.0
        h = relation.new_full((nodes, *relation.shape[1:]), 1 / relation.size(2))
        h = h.index_copy(0, anchor, identity.expand(anchor.numel(), -1, -1))
        for _ in range(ROUNDS):
            r = relation[queries.edge_type]
            message = self.compose(h[tail], r) if forward else self.compose(r, h[head])
            h = self.pool(message, head if forward else tail, nodes)
            h = h.index_copy(0, anchor, identity.expand(anchor.numel(), -1, -1))
        return h

    def pool(self, message: Tensor, target: Tensor, rows: int) -> Tensor:
        """Returns the normalised minima of each target's messages."""
        index = target[:, None, None].expand_as(message)
        low = message.new_zeros(rows, *message.shape[1:])
        low = low.scatter_reduce(0, index, message, "amin", include_self=False)
        return (low + 1e-18) / (low + 1e-18).sum(2, keepdim=True)


def search(edge_index: Tensor, source: Tensor, target: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Returns the nodes of a shortest path for each query, and the query of each."""
    near: list[list[int]] = [[] for _ in range(nodes)]
    for u, v in edge_index.t().tolist():
        near[u].append(v)
        near[v].append(u)
    node: list[int] = []
    graph: list[int] = []
    for query, (s, t) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        after, queue = {t: t}, deque([t])
        while s not in after:
            u = queue.popleft()
            for v in near[u]:
                if v not in after:
                    after[v] = u
                    queue.append(v)
        path = [s]
        while path[-1] != t:
            path.append(after[path[-1]])
        node += path
        graph += [query] * len(path)
    return torch.tensor(node), torch.tensor(graph)


def ours(model: EpiGNN) -> Callable[[Queries], Tensor]:
    """Returns our form, as the task calls it."""
    return lambda queries: queries.scores(model)


def stepper(
    scores: Callable[[Queries], Tensor], model: EpiGNN, queries: Queries, y: Tensor
) -> Callable[[], Any]:
    """Returns a training step on one batch; each step draws other wrong relations."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    turn = [0]

    def step() -> Tensor:
        negative = wrong_relations(y, model.num_relations, model.negatives, turn[0])
        loss = model.margin_loss(scores(queries), y, negative).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        turn[0] += 1
        return loss

    return step


def check(model: EpiGNN, queries: Queries) -> None:
    """Raises unless both forms have equal scores and gradients, in double precision."""
    model = copy.deepcopy(model).double()
    weight = torch.randn(queries.source.numel(), model.num_relations, dtype=torch.float64)
    found = []
    for form in (Textbook(model), ours(model)):
        scores = form(queries)
        found.append([scores, *torch.autograd.grad((scores * weight).sum(), list(model.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def times(calls: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Returns median CPU milliseconds of calls that take turns, five at a time."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(math.ceil(count / 5)):
        for name, call in calls.items():
            for _ in range(min(count, 5)):
                start = time.process_time()
                call()
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def row(name: str, figures: dict[str, float], unit: str, target: float | None) -> None:
    """Prints a line of the table."""
    plain, fast = figures["textbook"], figures["graphkit"]
    verdict = "" if target is None else f"{target:g} {unit}: {'met' if fast <= target else 'not met'}"
    figure = f"{plain:.3g} {unit} | {fast:.3g} {unit} | {plain / fast:.0f}"
    print(f"| {name} | {figure} | {verdict} |", flush=True)


@torch.inference_mode()
def answers(task: RelationTask, form: Callable[[Queries], Tensor], ids: Tensor) -> Tensor:
    """Returns the answers to some graphs, gathered first."""
    return form(task.queries.gather(ids)).argmax(1)


def measure_cells(task: RelationTask, steps: int) -> dict[str, dict[str, float]]:
    """Returns the figures of steps and evaluations of each cell."""
    found: dict[str, dict[str, float]] = {}
    data, test = task.benchmark.data, task.benchmark.splits["test"]["index"]
    for k, b in CELLS:
        ids = test[(data.k[test] == k) & (data.b[test] == b)]
        ids = ids[torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(0))]
        batch, y = task.queries.gather(ids[:BATCH]), task.y[ids[:BATCH]]
        models = [EpiGNN(task.relations) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        plain, fast = Textbook(models[0]), ours(models[1])
        check(models[0], batch)
        calls = {
            "textbook": stepper(plain, models[0], batch, y),
            "graphkit": stepper(fast, models[1], batch, y),
        }
        found[f"step, (k, b) = ({k}, {b})"] = times(calls, steps)
        row(
            f"training step, (k, b) = ({k}, {b})",
            found[f"step, (k, b) = ({k}, {b})"],
            "ms",
            STEP_TARGET if k in TRAINED else None,
        )
        many = ids[:1024]
        forms = {"textbook": plain, "graphkit": fast}
        figures = times({name: partial(answers, task, form, many) for name, form in forms.items()}, 3)
        figures = {name: value / many.numel() for name, value in figures.items()}
        found[f"evaluation, (k, b) = ({k}, {b})"] = figures
        row(f"evaluation of a graph, (k, b) = ({k}, {b})", figures, "ms", GRAPH_TARGET)
    return found


def measure_epoch(task: RelationTask, epochs: int) -> dict[str, float]:
    """Returns seconds of an epoch through the task, and of gathering its batches alone."""
    model = EpiGNN(task.relations)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)

    def train(epoch: int) -> None:
        for number in range(task.steps_per_epoch):
            loss = task.loss(model, task.batch(epoch, number))
            (loss.total / loss.divisor).backward()
            optimizer.step()
            optimizer.zero_grad()

    def gather(epoch: int) -> None:
        for number in range(task.steps_per_epoch):
            task.queries.gather(task.batch(epoch, number).ids)

    found = {}
    for name, call in (("epoch", train), ("batches", gather)):
        taken = []
        for epoch in range(epochs):
            start = time.process_time()
            call(epoch)
            taken.append(time.process_time() - start)
        found[name] = min(taken)
    return found


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    k, b = ([cell[place] for cell in CELLS[::-1]] for place in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        made = load_rcc8(root=folder, test_k=sorted(k), test_b=sorted(set(b)), test_per_relation=160)
        parts = [made.splits[name]["index"] for name in ("train", "valid")]
        made.splits["train"]["index"] = torch.cat(parts)  # all 57,600
        task = RelationTask(made, 0, BATCH, 1024)
        print("| | textbook | graphkit | ratio | wanted |\n|---|---|---|---|---|")
        found: dict[str, Any] = measure_cells(task, options.steps)
        found["epoch"] = figures = measure_epoch(task, options.epochs)
    graphs = task.train_index.numel()
    print(
        f"\nAn epoch of {graphs:,} graphs takes {figures['epoch']:.2f} s (wanted: {EPOCH_TARGET:g} s), ",
        end="",
    )
    print(f"of which batches take {figures['batches']:.2f} s.")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
