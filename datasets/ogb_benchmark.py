"""What OGB's node data sets have in common: published counts, edges, labels, and the benchmark itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec, Processed, Split, cached
from graphkit.datasets.ogb_raw import Source, distinct, read_csv, require
from graphkit.datasets.ogb_store import kept_arrays
from graphkit.errors import UserError
from graphkit.evaluation.ogb import OGBEvaluator

__all__ = [
    "PARTS",
    "PUBLISHED",
    "Arrays",
    "Published",
    "benchmark_of",
    "both_directions",
    "check_counts",
    "check_ids",
    "check_labelled",
    "class_labels",
    "kept",
    "read_features",
    "require_features",
]

Arrays = dict[str, NDArray[Any]]

CITATION = (
    "Hu, Fey, Zitnik, Dong, Ren, Liu, Catasta, Leskovec: Open Graph Benchmark: Datasets for Machine Learning "
    "on Graphs, NeurIPS 2020, arXiv:2005.00687"
)


@dataclass(frozen=True)
class Published:
    """The counts of a published data set.

    Attributes:
        nodes: Nodes, of all types.
        edges: Edges as the files list them: those of an undirected graph once.
        classes: Classes, or tasks where a node has several labels.
        features: Width of the features.
        train: Training nodes.
        valid: Validation nodes.
        test: Test nodes.
    """

    nodes: int
    edges: int
    classes: int
    features: int
    train: int
    valid: int
    test: int


# Nodes and edges as in the table of ogb.stanford.edu/docs/nodeprop, classes and tasks as in the ogb package's
# master.csv, widths and splits as that page and the paper's section on each data set describe them.
PUBLISHED = {
    "ogbn-arxiv": Published(169_343, 1_166_243, 40, 128, 90_941, 29_799, 48_603),
    "ogbn-products": Published(2_449_029, 61_859_140, 47, 100, 196_615, 39_323, 2_213_091),
    "ogbn-proteins": Published(132_534, 39_561_252, 112, 8, 86_619, 21_236, 24_679),
    "ogbn-papers100M": Published(111_059_956, 1_615_685_872, 172, 128, 1_207_179, 125_265, 214_338),
    "ogbn-mag": Published(1_939_743, 21_111_007, 349, 128, 629_571, 64_879, 41_939),
}

PARTS = ("train", "valid", "test")


def check_counts(
    where: Path,
    name: str,
    published: Published | None,
    nodes: int,
    edges: int,
    classes: int,
    parts: Mapping[str, NDArray[Any]],
) -> None:
    """Compares counts with the published ones, where there are any.

    The highest class need not occur in a file, so fewer classes are no mistake, but more are.

    Raises:
        UserError: If they differ; names both.
    """
    if published is None:
        return
    sizes = (parts[part].size for part in PARTS)
    found = Published(nodes, edges, max(classes, published.classes), published.features, *sizes)
    if found != published:
        raise UserError(f"{where} isn't {name}: it holds {found}, published are {published}")


def both_directions(
    edges: NDArray[np.int64], num_nodes: int
) -> tuple[NDArray[np.int64], Callable[[NDArray[Any]], NDArray[Any]]]:
    """Puts each edge in both directions, once, without self loops, sorted by row then column.

    Args:
        edges: ``[2, E]`` int64.
        num_nodes: N.

    Returns:
        ``[2, 2M]`` int64, and a function that takes ``[E, F]`` attributes of the given edges to ``[2M, F]``
        ones of the result; of repeated edges the first counts.
    """
    n = max(num_nodes, 1)
    low, high = edges
    key = np.concatenate([low * n + high, high * n + low])
    entries = distinct(key[np.concatenate([low != high] * 2)])

    def follow(attributes: NDArray[Any]) -> NDArray[Any]:
        order = np.argsort(key, kind="stable")  # the first of equals comes first
        ordered = key[order]
        kept_ones = ordered // n != ordered % n
        kept_ones[1:] &= ordered[1:] != ordered[:-1]
        return attributes[order[kept_ones] % len(low)]

    return np.stack([entries // n, entries % n]), follow


def class_labels(path: Path, labels: NDArray[Any]) -> NDArray[np.int64]:
    """Returns classes ``[N]`` int64, -1 for NaN.

    Raises:
        UserError: If there is anything but whole numbers from 0 on.
    """
    known = ~np.isnan(labels)
    y = np.where(known, labels, -1).astype(np.int64)
    if not (np.array_equal(y[known], labels[known]) and y[known].min(initial=0) >= 0):
        raise UserError(f"{path} must hold classes: whole numbers from 0 on")
    return y


def check_labelled(where: Path, y: NDArray[Any], parts: Mapping[str, NDArray[Any]]) -> None:
    """Raises UserError if a node of a split has no class; ``y`` is ``[N]`` int64."""
    for part, index in parts.items():
        if (y[index] < 0).any():
            raise UserError(
                f"{where}: the {part} split names node {index[y[index] < 0][0]}, which has no class"
            )


def check_ids(path: Path, edges: NDArray[np.int64], num_sources: int, num_targets: int) -> None:
    """Raises UserError unless the rows of ``[2, E]`` are ids below the two numbers."""
    for ids, count in zip(edges, (num_sources, num_targets), strict=True):
        if ids.size and not (ids.min() >= 0 and ids.max() < count):
            raise UserError(f"{path} names nodes from {ids.min()} to {ids.max()}; there are {count}")


def read_features(path: Path, num_nodes: int, published: Published | None) -> NDArray[np.float32]:
    """Reads ``[N, F]`` float32 features.

    Raises:
        UserError: If the file is damaged, of another size, or holds something not finite.
    """
    x = read_csv(path, np.float32, None if published is None else published.features, num_nodes)
    if not np.isfinite(x).all():
        raise UserError(f"{path} holds values that aren't finite numbers")
    return x


def require_features(path: Path) -> Path:
    """Returns ``path`` if it is there.

    Raises:
        UserError: If not; says how to do without.
    """
    advice = "put it there, or train learnt embeddings in place of features: --data.features false"
    return require(path, advice)


def kept(
    folder: Path, key: str, build: Callable[[], Mapping[str, NDArray[Any]]], *, mapped: bool
) -> dict[str, Tensor]:
    """Returns what ``build`` made the first time: hashed and in memory, or memory-mapped."""
    if mapped:
        return kept_arrays(folder, key, lambda _: build())
    plain = cached(folder, key, lambda: Processed({k: torch.from_numpy(v) for k, v in build().items()}, {}))
    return plain.tensors


def benchmark_of(
    source: Source,
    data: Data,
    parts: Mapping[str, Tensor],
    published: Published | None,
    info: Mapping[str, Any],
    num_relations: int | None = None,
) -> Benchmark:
    """Makes the benchmark of a graph and its split, with OGB's evaluator."""
    x, y = data.x, data.y
    classes = y.size(1) if y.dim() == 2 else int(y.max()) + 1
    if published is not None:
        classes = published.classes
    splits: dict[str, Split] = {part: {"index": parts[part].clone()} for part in PARTS}
    spec = DataSpec(data.num_nodes, None if x is None else x.size(1), classes, num_relations)
    evaluator = OGBEvaluator(source.name)
    facts = {"source": source.url, "split": source.split, "nodes": data.num_nodes}
    facts |= {"entries": data.edge_index.size(1), **info}
    facts |= {part: int(split["index"].numel()) for part, split in splits.items()}
    metric = evaluator.metric
    return Benchmark(source.name, "node", data, splits, spec, metric, True, evaluator, CITATION, facts)
