"""Small graph classification sets of the TU collection (arXiv:2007.08663).

The collection's files are text: all edges, the graph of each node, classes, and labels of nodes and edges
where there are any. They are read once and kept in ``<root>/<name>/processed``. Self loops and repeated edges
are left out, as PyG does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.data import Benchmark, DataSpec
from graphkit.datasets.archives import raw_files
from graphkit.datasets.graph_sets import (
    Arrays,
    check_graphs,
    graph_benchmark,
    index_type,
    kept_graphs,
    pointer,
)
from graphkit.datasets.ogb_raw import damaged
from graphkit.datasets.splits import stratified_folds, stratified_node_split
from graphkit.errors import UserError
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.files import sha256
from graphkit.registry import register_dataset

__all__ = ["LOADERS", "SETS", "Collected", "load_collected", "read_collected"]

URL = "https://www.chrsmrrs.com/graphkerneldatasets"
CITATION = (
    "Morris, Kriege, Bause, Kersting, Mutzel, Neumann: TUDataset: A collection of benchmark datasets for "
    "learning with graphs, ICML 2020 workshop, arXiv:2007.08663"
)
FOLDS = 10


@dataclass(frozen=True)
class Collected:
    """What is published of one set.

    Attributes:
        title: Its name in the collection.
        graphs: Graphs.
        classes: Their classes.
        about: What they are.
    """

    title: str
    graphs: int
    classes: int
    about: str


SETS = {
    "mutag": Collected("MUTAG", 188, 2, "molecules; do they cause mutations?"),
    "ptc-mr": Collected("PTC_MR", 344, 2, "molecules; do they cause cancer in male rats?"),
    "nci1": Collected("NCI1", 4_110, 2, "molecules; do they inhibit lung cancer cells?"),
    "enzymes": Collected("ENZYMES", 600, 6, "proteins by their secondary structure; which class of enzyme?"),
    "proteins": Collected("PROTEINS", 1_113, 2, "proteins by their secondary structure; is it an enzyme?"),
    "dd": Collected("DD", 1_178, 2, "proteins by their amino acids; is it an enzyme?"),
    "imdb-binary": Collected("IMDB-BINARY", 1_000, 2, "actors who played together; which genre?"),
    "imdb-multi": Collected("IMDB-MULTI", 1_500, 3, "actors who played together; which genre?"),
    "reddit-binary": Collected("REDDIT-BINARY", 2_000, 2, "users who answered each other; which community?"),
    "collab-tu": Collected("COLLAB", 5_000, 3, "researchers who wrote together; which field?"),
}


def _numbers(path: Path, dtype: Any, columns: int | None = None, rows: int | None = None) -> NDArray[Any]:
    """Reads a table of numbers separated by commas, ``[rows, columns]``."""
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{path} is missing")
    with damaged(path):
        frame = pd.read_csv(path, header=None, skipinitialspace=True, dtype=dtype, engine="c")
    values: NDArray[Any] = frame.to_numpy(dtype)
    if (columns is not None and values.shape[1] != columns) or (rows is not None and len(values) != rows):
        raise UserError(
            f"{path} has {len(values):,} rows of {values.shape[1]}; expected were {rows} of {columns}"
        )
    return values


def read_collected(raw: Path, title: str) -> tuple[Arrays, dict[str, Any]]:
    """Reads a set in the collection's layout.

    Args:
        raw: Holds ``TITLE_A.txt``, ``_graph_indicator.txt``, ``_graph_labels.txt``, maybe
            ``_node_labels.txt``, ``_edge_labels.txt`` and ``_node_attributes.txt``.
        title: The set's name.

    Returns:
        ``y`` ``[G]`` int64, ``edge_index`` ``[2, E]`` sorted, ``ptr``, ``edge_ptr``, and of what there is
        ``x`` ``[N, C]`` and ``edge_attr`` ``[E, D]``, labels from 0, and ``attributes`` ``[N, F]`` float32;
        and the numbers of their categories.

    Raises:
        UserError: A missing or damaged file, an edge between two graphs, nodes out of order.
    """
    path = {part: raw / f"{title}_{part}.txt" for part in (*_NEEDED, *_OPTIONAL)}
    graph = _numbers(path["graph_indicator"], np.int64, 1)[:, 0] - 1
    labels = _numbers(path["graph_labels"], np.float64, 1)[:, 0]
    nodes, graphs = len(graph), len(labels)
    if (np.diff(graph) < 0).any() or graph.min(initial=0) < 0 or graph.max(initial=0) >= graphs:
        raise UserError(f"{path['graph_indicator']} must hold ascending numbers from 1 to {graphs:,}")
    listed = _numbers(path["A"], np.int64, 2).T - 1
    if listed.size and not (listed.min() >= 0 and listed.max() < nodes):
        raise UserError(f"{path['A']} names nodes from {listed.min() + 1} to {listed.max() + 1} of {nodes:,}")
    if (graph[listed[0]] != graph[listed[1]]).any():
        raise UserError(f"{path['A']}: an edge joins two graphs")
    key = listed[0] * nodes + listed[1]
    order = np.argsort(key, kind="stable")  # of repeated edges the first one's label counts
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(key[order]) != 0
    chosen = order[first & (listed[0] != listed[1])[order]]
    edges = listed[:, chosen]
    ptr = pointer(np.bincount(graph, minlength=graphs))
    local = (edges - ptr[graph[edges[0]]]).astype(index_type(int(np.diff(ptr).max(initial=0))))
    made: Arrays = {
        "edge_index": local,
        "ptr": ptr,
        "y": np.unique(labels, return_inverse=True)[1].reshape(-1),
    }
    made["edge_ptr"] = pointer(np.bincount(graph[edges[0]], minlength=graphs))
    info: dict[str, Any] = {"node_categories": None, "edge_categories": None}
    if path["node_labels"].is_file():
        made["x"], info["node_categories"] = _categories(_numbers(path["node_labels"], np.int64, rows=nodes))
    if path["edge_labels"].is_file():
        every = _numbers(path["edge_labels"], np.int64, rows=listed.shape[1])
        values, info["edge_categories"] = _categories(every)
        made["edge_attr"] = values[chosen]
    if path["node_attributes"].is_file():
        made["attributes"] = _numbers(path["node_attributes"], np.float32, rows=nodes)
        if not np.isfinite(made["attributes"]).all():
            raise UserError(f"{path['node_attributes']} holds values that aren't finite numbers")
    check_graphs(raw, made, info["node_categories"], info["edge_categories"])
    return made, info


_NEEDED = ("A", "graph_indicator", "graph_labels")
_OPTIONAL = ("node_labels", "edge_labels", "node_attributes")


def _categories(labels: NDArray[np.int64]) -> tuple[NDArray[Any], list[int]]:
    """Numbers the values of each column from 0, without gaps."""
    columns = [np.unique(column, return_inverse=True) for column in labels.T]
    sizes = [len(values) for values, _ in columns]
    return np.stack([at.reshape(-1) for _, at in columns], axis=1).astype(index_type(max(sizes))), sizes


def load_collected(
    name: str,
    root: Path,
    seed: int,
    fold: int | None = None,
    published: Collected | None = None,
    *,
    attributes: bool = False,
) -> Benchmark:
    """Loads a set of the collection, or with ``published`` ``None`` one in its layout of any size.

    Raises:
        UserError: Files missing offline, damaged, or of other counts; no such fold or no attributes.
    """
    title = SETS[name].title
    homes = [root / name / "raw", root / title / "raw", root / "TUDataset" / title / "raw"]
    homes += [home.parent for home in homes]
    needed, optional = ([f"{title}_{part}.txt" for part in parts] for parts in (_NEEDED, _OPTIONAL))
    url, hint = f"{URL}/{title}.zip", "'digits-graphs' and 'nci-tpsa' need no download"
    files = raw_files(homes, needed, url, f"{title}.zip", optional=optional, hint=hint)
    raw = files[0].parent
    files += [raw / file for file in optional if (raw / file).is_file()]
    kept = kept_graphs(
        root / name / "processed",
        f"{name}/1/" + "/".join(f"{path.name}={sha256(path)}" for path in files),
        lambda: read_collected(raw, title),
    )
    tensors, categories = dict(kept.tensors), kept.info["node_categories"]
    y = tensors["y"]
    classes = int(y.max()) + 1
    if published is not None and (len(y), classes) != (published.graphs, published.classes):
        raise UserError(
            f"{raw} isn't {title}: it holds {len(y):,} graphs of {classes} classes, published are "
            f"{published.graphs:,} of {published.classes}"
        )
    channels = None
    if attributes:
        if "attributes" not in tensors:
            raise UserError(f"{title} has no attributes of nodes: {raw} holds no {title}_node_attributes.txt")
        tensors["x"], categories = _numeric(tensors, categories), None
        channels = tensors["x"].size(1)
    edge_categories = kept.info["edge_categories"]
    spec = DataSpec(
        in_channels=channels,
        out_channels=classes,
        node_categories=None if categories is None else tuple(categories),
        edge_categories=None if edge_categories is None else tuple(edge_categories),
    )
    info: dict[str, Any] = {"source": url, "raw": str(raw), "seed": seed}
    if fold is None:
        splits = stratified_node_split(y, seed, 0.1, 0.1, what="graphs")
        info |= {"split": "stratified"}
    else:
        splits = stratified_folds(y, FOLDS, fold, seed)
        info |= {"split": f"{FOLDS} folds", "fold": fold}
    evaluator = GraphEvaluator("classes", "accuracy")
    return graph_benchmark(
        name,
        tensors,
        splits,
        spec,
        targets="classes",
        evaluator=evaluator,
        metric="accuracy",
        info=info,
        citation=CITATION,
    )


def _numeric(tensors: dict[str, Any], categories: list[int] | None) -> Any:
    """Returns attributes, and labels as columns of 0 and 1 beside them, ``[N, F]`` float32."""
    import torch
    from torch.nn.functional import one_hot

    parts = [tensors["attributes"]]
    for column, count in enumerate(categories or ()):
        parts.append(one_hot(tensors["x"][:, column].long(), count).float())
    return torch.cat(parts, dim=1)


def _register(name: str, published: Collected) -> Callable[..., Benchmark]:
    """Registers the loader of one of the sets."""

    def load(
        *,
        root: str | Path = "data",
        task: str = "graph",
        seed: int = 0,
        fold: int | None = None,
        attributes: bool = False,
    ) -> Benchmark:
        return load_collected(name, Path(root), seed, fold, published, attributes=attributes)

    title = published.title
    load.__name__ = load.__qualname__ = f"load_{name.replace('-', '_')}"
    load.__doc__ = f"""{title}: {published.graphs:,} graphs, {published.classes} classes: {published.about}

    Labels of nodes and edges are categories, where there are any. Accuracy.

    Args:
        root: Holds ``{name}/raw``, ``{title}/raw`` or ``TUDataset/{title}/raw`` with the collection's text
            files, or ``{name}/{title}.zip``; fetched if not.
        task: ``"graph"``.
        seed: Seeds the split, or what the folds are.
        fold: Which of ten folds, 0 to 9, is tested, the next one being for validation. By default there are
            no folds, but a split of 80/10/10, class by class.
        attributes: Whether nodes have their attributes, numbers, with the labels as columns beside them;
            else labels alone.

    Raises:
        UserError: Files missing offline, damaged, or of other counts; no such fold or no attributes.
    """
    return register_dataset(name, task="graph", paper="arXiv:2007.08663")(load)


LOADERS = {name: _register(name, published) for name, published in SETS.items()}
"""The loader of each set, by its registered name."""
