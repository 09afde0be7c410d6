"""A whole-graph training step of GCN, GraphSAGE and GAT, against the same model of PyG's layers.

python benchmarks/node.py [--data-root DIR] [--conv gcn sage gat] [--json FILE]

One thread, process CPU time, median of three steps after one that isn't measured. The graph is ogbn-arxiv
(without its features, which aren't read) where DIR holds its raw files, else an R-MAT graph of its size. Both
forms get the same weights and must give the same logits in evaluation mode before anything is timed. The peak
is by how much the resident set grows during a step; each form runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from graphs import rmat_edges
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from graphkit.data import load_dataset
from graphkit.models import GAT, GCN, SAGE
from graphkit.nn import NodeModel
from graphkit.partition import hierarchical_order
from graphkit.sparse import Adjacency

NODES, EDGES, WIDTH, CLASSES, LAYERS, HEADS = 169_343, 1_157_799, 128, 40, 3, 4
FORMS = ("PyG", "graphkit", "graphkit, nodes renumbered")


class PlainModel(nn.Module):
    """The same stack of PyG's convolutions, BatchNorm, ReLU and dropout; normalisation is computed once."""

    def __init__(self, conv: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for layer in range(LAYERS):
            last = layer == LAYERS - 1
            out = CLASSES if last else WIDTH
            if conv == "gcn":
                self.convs.append(GCNConv(WIDTH, out, cached=True))
            elif conv == "sage":
                self.convs.append(SAGEConv(WIDTH, out))
            else:
                self.convs.append(GATConv(WIDTH, out if last else out // HEADS, HEADS, concat=not last))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(LAYERS - 1))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.dropout(F.relu(norm(conv(x, edge_index))), 0.5, self.training)
        out: Tensor = self.convs[-1](x, edge_index)
        return out

    @torch.no_grad()
    def take(self, model: NodeModel) -> None:
        """Copies our weights."""
        for theirs, ours in zip(self.convs, model.convs, strict=True):
            if isinstance(theirs, SAGEConv):
                theirs.lin_l.weight.copy_(ours.neighbour.t())
                theirs.lin_r.weight.copy_(ours.own.t())
                theirs.lin_l.bias.copy_(ours.bias)
                continue
            theirs.lin.weight.copy_(ours.weight.t())
            theirs.bias.copy_(ours.bias)
            if isinstance(theirs, GATConv):
                theirs.att_src.copy_(ours.source_weight.unsqueeze(0))
                theirs.att_dst.copy_(ours.target_weight.unsqueeze(0))


def our_model(conv: str) -> NodeModel:
    """Returns the same stack of ours."""
    torch.manual_seed(0)
    sizes = {"hidden_channels": WIDTH, "num_layers": LAYERS, "dropout": 0.5}
    if conv == "gat":
        return GAT(WIDTH, CLASSES, heads=HEADS, **sizes)
    return (GCN if conv == "gcn" else SAGE)(WIDTH, CLASSES, **sizes)


def load(root: str | None) -> tuple[Tensor, int]:
    """Returns the symmetric edges and the number of nodes."""
    if root is None:
        edges = torch.from_numpy(rmat_edges(NODES, EDGES))
        return torch.cat([edges, edges.flip(0)], dim=1), NODES
    data = load_dataset("ogbn-arxiv", root=root, features=False).data
    return data.edge_index, int(data.num_nodes)


def measure(conv: str, form: str, root: str | None, results: Any) -> None:
    """Times steps of one form; runs in its own process."""
    torch.set_num_threads(1)
    edge_index, nodes = load(root)
    torch.manual_seed(1)
    x, y = torch.randn(nodes, WIDTH), torch.randint(CLASSES, (nodes,))
    ours, plain = our_model(conv), PlainModel(conv)
    plain.take(ours)
    new = torch.arange(nodes)
    if "renumbered" in form:
        position = hierarchical_order(edge_index, nodes, (56, 56, 54), seed=0)
        new[torch.argsort(position)] = torch.arange(nodes)
    graph: Any = Adjacency.from_edge_index(new[edge_index], nodes)
    states = torch.empty_like(x).index_copy_(0, new, x)
    model: nn.Module = ours
    if form == "PyG":
        with torch.no_grad():
            expected = ours.eval()(states, graph)
            torch.testing.assert_close(plain.eval()(x, edge_index), expected, rtol=1e-3, atol=1e-4)
        model, graph, states = plain, edge_index, x
        del ours
    target = y[torch.argsort(new)] if form != "PyG" else y
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    model.train()

    def step() -> None:
        F.cross_entropy(model(states, graph), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    times = []
    for _ in range(3):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    results.put((statistics.median(times), growth(step)))


def growth(call: Callable[[], None]) -> float:
    """Returns by how many MB the resident set grows at most during a call."""
    process, top, over = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal top
        while not over.wait(0.005):
            top = max(top, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        over.set()
        watcher.join()
    return max(top - before, 0) / 1e6


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", metavar="DIR")
    parser.add_argument("--conv", nargs="+", default=["gcn", "sage", "gat"], choices=["gcn", "sage", "gat"])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    figures: dict[str, dict[str, tuple[float, float]]] = {}
    print("| | CPU s a step | peak MB | PyG / ours |\n|---|---|---|---|")
    for conv in options.conv:
        figures[conv] = {}
        for form in FORMS:
            results = context.Queue()
            worker = context.Process(target=measure, args=(conv, form, options.data_root, results))
            worker.start()
            worker.join()
            if worker.exitcode:
                raise SystemExit(f"{conv}, {form}: failed, see above")
            seconds, peak = figures[conv][form] = results.get()
            ratio = "" if form == "PyG" else f"{figures[conv]['PyG'][0] / seconds:.1f}"
            print(f"| {conv}: {form} | {seconds:.2f} | {peak:.0f} | {ratio} |", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
