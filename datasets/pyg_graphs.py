"""Superpixels and block models of "Benchmarking Graph Neural Networks" (arXiv:2003.00982), from PyG's files.

MNIST and CIFAR10 as graphs of superpixels, and PATTERN and CLUSTER, where the nodes of a graph are
classified. PyG hosts each as one file of tensors, which is read with ``weights_only`` and kept in
``<root>/<name>/processed`` as flat arrays, memory-mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphkit.data import Benchmark, DataSpec
from graphkit.datasets.archives import raw_files
from graphkit.datasets.graph_sets import Arrays, check_graphs, graph_benchmark, index_type, pointer, split_at
from graphkit.datasets.ogb_benchmark import kept
from graphkit.datasets.ogb_raw import damaged
from graphkit.datasets.pickles import read_tensors
from graphkit.errors import UserError
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.files import sha256
from graphkit.registry import register_dataset

__all__ = [
    "SETS",
    "Hosted",
    "load_cifar10_superpixels",
    "load_cluster",
    "load_hosted",
    "load_mnist_superpixels",
    "load_pattern",
    "read_hosted",
]

URL = "https://data.pyg.org/datasets/benchmarking-gnns"
CITATION = (
    "Dwivedi, Joshi, Luu, Laurent, Bengio, Bresson: Benchmarking Graph Neural Networks, JMLR 24, 2023, "
    "arXiv:2003.00982"
)


@dataclass(frozen=True)
class Hosted:
    """One of the sets.

    Attributes:
        title: Its name at PyG.
        channels: Features of a node, its place included.
        classes: Classes of a graph or, without ``pixels``, of a node.
        pixels: Whether it is one of superpixels, which have places, and edges lengths.
        sizes: Graphs of training, validation and test.
    """

    title: str
    channels: int
    classes: int
    pixels: bool
    sizes: tuple[int, int, int]


SETS = {
    "mnist-superpixels": Hosted("MNIST", 3, 10, True, (55_000, 5_000, 10_000)),
    "cifar10-superpixels": Hosted("CIFAR10", 5, 10, True, (45_000, 5_000, 10_000)),
    "pattern": Hosted("PATTERN", 3, 2, False, (10_000, 2_000, 2_000)),
    "cluster": Hosted("CLUSTER", 7, 6, False, (10_000, 1_000, 1_000)),
}


def _array(value: Any, dtype: Any) -> NDArray[Any]:
    return np.asarray(value).astype(dtype)


def read_hosted(path: Path, source: Hosted, sizes: Sequence[int] | None) -> Arrays:
    """Reads a file of PyG: three lists of graphs, each a dictionary of tensors.

    Args:
        path: The file.
        source: What it should hold.
        sizes: The expected number of graphs of each part; any if ``None``.

    Returns:
        ``x`` ``[N, F]`` float32 (of superpixels intensity or colour, then the place), ``edge_index``
        ``[2, E]``, of superpixels ``edge_attr`` ``[E, 1]`` float32, ``ptr``, ``edge_ptr``, ``y`` int64 of
        graphs or nodes, and ``sizes`` ``[3]``.

    Raises:
        UserError: The file is damaged or of something else, or has other counts.
    """
    parts = read_tensors(path)
    with damaged(path):
        found = [len(part) for part in parts]
        if len(found) != 3 or (sizes is not None and found != list(sizes)):
            expected = "three lists of graphs were expected" if sizes is None else f"published are {sizes}"
            raise UserError(f"{path} isn't {source.title}: it holds {found} graphs, {expected}")
        graphs = [graph for part in parts for graph in part]
        names = ("x", "pos") if source.pixels else ("x",)
        x = [np.concatenate([_array(g[name], np.float32) for name in names], axis=1) for g in graphs]
        largest = max(len(each) for each in x)
        edges = [_array(g["edge_index"], np.int64) for g in graphs]
        made: Arrays = {
            "x": np.concatenate(x),
            "edge_index": np.concatenate([ends.astype(index_type(largest)) for ends in edges], axis=1),
            "y": np.concatenate([_array(g["y"], np.int64).reshape(-1) for g in graphs]),
            "ptr": pointer([len(each) for each in x]),
            "edge_ptr": pointer([ends.shape[1] for ends in edges]),
        }
        if max((ends.max(initial=0) for ends in edges), default=0) >= largest:
            raise UserError(f"{path}: an edge names a node that its graph doesn't have")
        if source.pixels:
            made["edge_attr"] = np.concatenate(
                [_array(g["edge_attr"], np.float32).reshape(-1, 1) for g in graphs]
            )
    check_graphs(path, made)
    labelled = len(graphs) if source.pixels else len(made["x"])
    y = made["y"]
    if (
        made["x"].shape[1] != source.channels
        or len(y) != labelled
        or not 0 <= y.min() <= y.max() < source.classes
    ):
        raise UserError(
            f"{path} isn't {source.title}: {source.channels} features of a node and {labelled:,} classes "
            f"below {source.classes} were expected; it has {made['x'].shape[1]}, and {len(y):,} from "
            f"{y.min()} to {y.max()}"
        )
    return {**made, "sizes": np.array(found)}


def load_hosted(name: str, root: Path, *, published: bool = True) -> Benchmark:
    """Loads one of the sets, or with ``published`` false one in its layout of any size."""
    source = SETS[name]
    file = f"{source.title}_v2"
    homes = [
        root / name / "raw",
        root / source.title / "raw",
        root / "GNNBenchmarkDataset" / source.title / "raw",
    ]
    homes += [home.parent for home in homes]
    url, hint = f"{URL}/{file}.zip", "'digits-graphs' needs no download"
    path = raw_files(homes, [f"{file}.pt"], url, f"{file}.zip", hint=hint)[0]
    sizes = source.sizes if published else None
    tensors = kept(
        root / name / "processed",
        f"{name}/1/{sizes}/{sha256(path)}",
        lambda: read_hosted(path, source, sizes),
        mapped=True,
    )
    binary = source.classes == 2
    kind: Literal["binary", "classes"] = "binary" if binary else "classes"
    metric = "accuracy" if source.pixels else "balanced_accuracy"
    made = {**tensors, "y": tensors["y"].float()[:, None]} if binary else tensors
    spec = DataSpec(
        in_channels=source.channels,
        out_channels=1 if binary else source.classes,
        edge_channels=1 if source.pixels else None,
    )
    return graph_benchmark(
        name,
        made,
        split_at(*tensors["sizes"].tolist()),
        spec,
        targets=kind,
        evaluator=GraphEvaluator(kind, metric),
        metric=metric,
        info={"source": url, "raw": str(path.parent), "split": "fixed"},
        citation=CITATION,
    )


@register_dataset("mnist-superpixels", task="graph", paper="arXiv:2003.00982")
def load_mnist_superpixels(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """MNIST as superpixels: 70,000 graphs of about 71 patches; which of ten digits is it?

    Nodes have intensity and place, edges to the 8 nearest patches a length. Split 55,000/5,000/10,000.

    Args:
        root: Holds ``mnist-superpixels/raw`` or ``MNIST/raw`` with PyG's ``MNIST_v2.pt``, or
            ``MNIST_v2.zip``; fetched if not.
        task: ``"graph"``.
        seed: Not used: the split is fixed.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    return load_hosted("mnist-superpixels", Path(root))


@register_dataset("cifar10-superpixels", task="graph", paper="arXiv:2003.00982")
def load_cifar10_superpixels(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """CIFAR10 as superpixels: 60,000 graphs of about 118 patches; which of ten kinds of thing is it?

    Nodes have colour and place, edges to the 8 nearest patches a length. Split 45,000/5,000/10,000.
    See :func:`load_mnist_superpixels`.
    """
    return load_hosted("cifar10-superpixels", Path(root))


@register_dataset("pattern", task="graph", paper="arXiv:2003.00982")
def load_pattern(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """PATTERN: 14,000 random graphs of about 119 nodes; which nodes belong to the planted pattern?

    Nodes are classified, by a binary label each; the metric is the mean of both classes' accuracies. Split
    10,000/2,000/2,000.

    Args:
        root: Holds ``pattern/raw`` or ``PATTERN/raw`` with PyG's ``PATTERN_v2.pt``, or ``PATTERN_v2.zip``;
            fetched if not.
        task: ``"graph"``.
        seed: Not used: the split is fixed.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    return load_hosted("pattern", Path(root))


@register_dataset("cluster", task="graph", paper="arXiv:2003.00982")
def load_cluster(*, root: str | Path = "data", task: str = "graph", seed: int = 0) -> Benchmark:
    """CLUSTER: 12,000 random graphs of about 117 nodes; which of six communities is each node in?

    One node of each community is labelled in the features. The metric is the mean of the classes'
    accuracies. Split 10,000/1,000/1,000. See :func:`load_pattern`.
    """
    return load_hosted("cluster", Path(root))
