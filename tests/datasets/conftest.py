"""Tiny files in OGB's raw layouts, for the tests of its loaders, and what holds for all sets of graphs."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import Benchmark
from graphkit.graphs import GraphSet

NODES, EDGES, WIDTH, CLASSES = 30, 80, 5, 4
SIZES = {"train": 12, "valid": 6, "test": 8}


class TinyOGB:
    """A random graph with repeated edges, self loops, and unlabelled nodes that no split names."""

    nodes, num_edges, width, classes, sizes = NODES, EDGES, WIDTH, CLASSES, SIZES

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.edges = rng.integers(NODES, size=(2, EDGES))
        self.edges[:, 0] = 3  # a self loop
        self.edges[:, 1] = self.edges[:, 2]  # a repetition
        self.edges[:, 4] = self.edges[::-1, 3]  # both directions
        self.x = rng.normal(size=(NODES, WIDTH)).round(3)
        self.year = rng.integers(1990, 2020, size=NODES)
        order = rng.permutation(NODES)
        at = np.cumsum([0, *SIZES.values()])
        self.split = {name: order[a:b] for name, a, b in zip(SIZES, at, at[1:], strict=False)}
        self.y = rng.integers(CLASSES, size=NODES)
        self.y[order[0]] = CLASSES - 1
        self.unlabelled = order[at[-1] :]

    def labels(self) -> list[int]:
        """Returns the classes, -1 where there is none."""
        y = self.y.copy()
        y[self.unlabelled] = -1
        found: list[int] = y.tolist()
        return found

    def both(self) -> set[tuple[int, int]]:
        """Returns the edges in both directions, without self loops."""
        pairs = {(a, b) for a, b in self.edges.T.tolist() if a != b}
        return pairs | {(b, a) for a, b in pairs}

    @staticmethod
    def csv(path: Path, *columns: Any, header: str = "") -> None:
        """Writes columns of numbers or words as OGB does: gzipped, no header unless given."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [header] if header else []
        lines += [",".join(str(cell) for cell in row) for row in zip(*columns, strict=True)]
        path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))

    def write_split(self, folder: Path) -> None:
        for name, index in self.split.items():
            self.csv(folder / f"{name}.csv.gz", index)

    def write(self, home: Path, split: str = "time") -> None:
        """Writes the CSV layout of one graph."""
        raw = home / "raw"
        labels = ["nan" if label < 0 else label for label in self.labels()]
        self.csv(raw / "num-node-list.csv.gz", [NODES])
        self.csv(raw / "num-edge-list.csv.gz", [EDGES])
        self.csv(raw / "edge.csv.gz", *self.edges)
        self.csv(raw / "node-label.csv.gz", labels)
        self.csv(raw / "node-feat.csv.gz", *self.x.T)
        self.csv(raw / "node_year.csv.gz", self.year)
        self.write_split(home / "split" / split)

    @staticmethod
    def is_mapped(tensor: torch.Tensor) -> bool:
        """Tells whether a tensor's memory is that of a mapped ``.npy`` file; Linux only."""
        at = tensor.data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, stop = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            if start <= at < stop:
                return line.endswith(".npy")
        return False


@pytest.fixture
def tiny_ogb() -> TinyOGB:
    """A tiny graph that can write itself in OGB's layouts."""
    return TinyOGB()


def check_graph_benchmark(benchmark: Benchmark) -> GraphSet:
    """Asserts what holds for every benchmark of graphs; returns its graphs."""
    graphs = GraphSet(benchmark.data)
    data, spec, y = benchmark.data, benchmark.spec, benchmark.data.y
    assert benchmark.task == "graph"
    index = [benchmark.splits[part]["index"] for part in ("train", "valid", "test")]
    joined = torch.cat(index)
    assert all(part.dtype == torch.int64 and part.numel() > 0 for part in index)
    assert joined.unique().numel() == joined.numel()  # no graph is in two parts
    assert 0 <= int(joined.min()) <= int(joined.max()) < len(graphs)
    limit = graphs.sizes().repeat_interleave(data.edge_ptr.diff())
    assert bool(((data.edge_index >= 0) & (data.edge_index < limit)).all())
    for name, categories, channels in (
        ("x", spec.node_categories, spec.in_channels),
        ("edge_attr", spec.edge_categories, spec.edge_channels),
    ):
        values = data.get(name)
        if categories is not None:
            assert not values.is_floating_point()
            assert values.size(1) == len(categories)
            assert bool((values >= 0).all())
            assert bool((values < torch.tensor(categories)).all())
        elif channels is not None:
            assert values.dtype == torch.float32
            assert values.size(1) == channels
        else:
            assert values is None
    items = data.num_nodes if graphs.per_node else len(graphs)
    if benchmark.targets == "classes":
        assert y.dtype == torch.int64
        assert y.shape == (items,)
        assert 0 <= int(y.min()) <= int(y.max()) < (spec.out_channels or 0)
        predictions = torch.nn.functional.one_hot(y, spec.out_channels).float()
    else:
        assert y.dtype == torch.float32
        assert y.shape == (items, spec.out_channels)
        assert benchmark.targets in ("regression", "binary")
        predictions = y.nan_to_num()
    value = benchmark.evaluator(predictions, y)[benchmark.metric]  # of a perfect model
    assert value == pytest.approx(1.0 if benchmark.maximize else 0.0)
    if benchmark.smiles is not None:
        assert len(benchmark.smiles) == len(graphs)
    return graphs


@pytest.fixture
def check_graphs_of() -> Callable[[Benchmark], GraphSet]:
    """What holds for every benchmark of graphs."""
    return check_graph_benchmark
