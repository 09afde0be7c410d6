"""A graph of one's own, from a list of edges and, if there are any, features and labels. No code to edit.

::

    python scripts/train.py ncnc --dataset custom --data.edges friends.csv

Edges are two columns of node names or numbers, CSV, TSV or separated by blanks, or an npz file with
``edge_index``. Features and labels are tables whose first column is the node, or npz files with ``x`` and
``y``. Everything wrong with a file is reported with its line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec, Processed, cached, file_hash, row_normalized
from graphkit.datasets.splits import link_benchmark, random_link_split, stratified_node_split
from graphkit.errors import UserError
from graphkit.evaluation.metrics import NodeEvaluator
from graphkit.registry import register_dataset
from graphkit.sparse import undirected_edges
from graphkit.tables import is_id, is_number, read_pairs, read_rows

__all__ = ["load_custom", "read_graph"]

_NODE_NAMES = {"node", "id", "node_id", "nodeid", "name"}
_LABEL_NAMES = {"label", "class", "target", "y"}


@dataclass
class _Graph:
    """A graph while it is read.

    Attributes:
        edges: ``[2, E]`` int64, as listed.
        names: The user's name of each node; ``None`` if nodes are numbered from 0 without a gap.
        num_nodes: N.
        x: ``[N, F]`` float32.
        y: ``[N]`` int64, -1 where there is no label.
        classes: The user's name of each class.
    """

    edges: NDArray[np.int64]
    names: list[str] | None
    num_nodes: int
    x: NDArray[np.float32] | None = None
    y: NDArray[np.int64] | None = None
    classes: list[str] = field(default_factory=list)


# --- Tables -----------------------------------------------------------------------------------------------


def _edge_rows(path: Path) -> tuple[list[str], list[str]]:
    """Reads two columns of names."""
    rows = read_pairs(path)
    if not rows:
        raise UserError(f"{path} lists no edges")
    return [row.cells[0] for row in rows], [row.cells[1] for row in rows]


def _feature_rows(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Reads names and ``[n, F]`` features."""
    names: dict[str, int] = {}
    values: list[list[float]] = []
    width = 0
    for at, (number, cells) in enumerate(read_rows(path)):
        if at == 0:
            width = len(cells)
            if width < 2:
                raise UserError(f"{path}, line {number}: one column; a node and its features were expected")
            if not any(map(is_number, cells[1:])):
                continue  # the header
        if len(cells) != width:
            raise UserError(f"{path}, line {number}: {len(cells)} columns; the first row has {width}")
        if cells[0] in names:
            raise UserError(f"{path}, line {number}: node '{cells[0]}' was on line {names[cells[0]]} already")
        try:
            row = [float(cell) for cell in cells[1:]]
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        if not np.isfinite(np.array(row, dtype=np.float32)).all():
            raise UserError(f"{path}, line {number}: a feature isn't finite")
        names[cells[0]] = number
        values.append(row)
    if not values:
        raise UserError(f"{path} holds no features")
    return list(names), np.array(values, dtype=np.float32)


def _label_rows(path: Path) -> dict[str, str]:
    """Reads the label of each named node."""
    labels: dict[str, str] = {}
    for at, (number, cells) in enumerate(read_rows(path)):
        if len(cells) != 2:
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns; a node and its label were expected"
            )
        if at == 0 and cells[0].lower() in _NODE_NAMES and cells[1].lower() in _LABEL_NAMES:
            continue
        if cells[0] in labels:
            raise UserError(f"{path}, line {number}: node '{cells[0]}' has a label already")
        if cells[1]:
            labels[cells[0]] = cells[1]
    if not labels:
        raise UserError(f"{path} holds no labels")
    return labels


def _array(path: Path, key: str) -> NDArray[Any]:
    """Reads one array of an npz file; pickled objects in it are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if key not in file:
                raise UserError(f"{path} has no array '{key}'; it has: {', '.join(file) or 'none'}")
            return np.asarray(file[key])
    except UserError:
        raise
    except Exception as error:  # zip, header, size: a damaged file may raise anything
        raise UserError(f"cannot read {path}: {error}") from error


# --- The graph --------------------------------------------------------------------------------------------


def _positions(cells: list[str], index: dict[str, int], path: Path, other: Path) -> NDArray[np.int64]:
    """Looks names up; those that aren't there are listed."""
    unknown = list(dict.fromkeys(cell for cell in cells if cell not in index))
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise UserError(f"{len(unknown)} nodes of {path} aren't in {other}: {shown}")
    return np.array([index[cell] for cell in cells], dtype=np.int64)


def _read_edges(path: Path, features: Path | None) -> _Graph:
    """Reads edges and features, whose nodes, where given as a table, are all the nodes there are."""
    npz = features is not None and features.suffix == ".npz"
    x = _array(features, "x") if npz and features is not None else None
    if x is not None and (x.ndim != 2 or x.dtype.kind not in "fiub" or not np.isfinite(x).all()):
        raise UserError(
            f"{features}: x has shape {x.shape} and type {x.dtype}; finite numbers [N, F] are needed"
        )
    if path.suffix == ".npz":
        edges = _array(path, "edge_index")
        if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype.kind not in "iu" or edges.size == 0:
            raise UserError(f"{path}: edge_index is {edges.dtype} {edges.shape}; integers [2, E] are needed")
        if edges.min() < 0:
            raise UserError(f"{path}: edge_index holds {edges.min()}; nodes are numbered from 0")
        source = target = None
        numbers = edges.astype(np.int64)
    else:
        source, target = _edge_rows(path)
        numbers = None
    if features is not None and x is None:
        names, x = _feature_rows(features)
        index = {name: at for at, name in enumerate(names)}
        if numbers is not None:
            source, target = (list(map(str, side.tolist())) for side in numbers)
        assert source is not None
        assert target is not None
        numbers = _positions(source + target, index, path, features).reshape(2, -1)
        return _Graph(numbers, None if names == _counted(len(names)) else names, len(names), x)
    if numbers is not None:
        return _numbered(numbers, x, path, features)
    assert source is not None
    assert target is not None
    if x is not None:  # rows of an array: nodes must be their numbers
        if not all(map(is_id, source + target)):
            raise UserError(f"{path} names its nodes, {features} numbers them: give features as a table")
        return _numbered(np.array([source, target], dtype=np.int64), x, path, features)
    distinct = {*source, *target}
    names = sorted(distinct, key=int) if all(map(is_id, distinct)) else sorted(distinct)
    index = {name: at for at, name in enumerate(names)}
    numbers = np.array([[index[name] for name in side] for side in (source, target)], dtype=np.int64)
    return _Graph(numbers, None if names == _counted(len(names)) else names, len(names))


def _counted(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def _numbered(edges: NDArray[np.int64], x: NDArray[Any] | None, path: Path, features: Path | None) -> _Graph:
    """A graph whose nodes are numbers already."""
    num_nodes = int(edges.max()) + 1
    if x is not None and num_nodes > len(x):
        raise UserError(f"{path} names node {num_nodes - 1}; {features} has {len(x)} rows")
    if x is None:
        return _Graph(edges, None, num_nodes)
    return _Graph(edges, None, len(x), x.astype(np.float32))


def _add_labels(graph: _Graph, path: Path) -> None:
    """Reads labels into ``graph.y`` and ``graph.classes``."""
    y = np.full(graph.num_nodes, -1, dtype=np.int64)
    if path.suffix == ".npz":
        stored = _array(path, "y").reshape(-1)
        if stored.dtype.kind not in "iub" or len(stored) != graph.num_nodes or stored.max(initial=-1) < 0:
            raise UserError(
                f"{path}: y is {stored.dtype} of {len(stored)}; {graph.num_nodes} integers are needed"
            )
        values = [int(v) for v in np.unique(stored[stored >= 0])]
        y[stored >= 0] = np.searchsorted(values, stored[stored >= 0])
        graph.classes = [str(v) for v in values]
    else:
        labels = _label_rows(path)
        names = graph.names or _counted(graph.num_nodes)
        index = {name: at for at, name in enumerate(names)}
        at = _positions(list(labels), index, path, Path("the graph"))
        distinct = set(labels.values())
        graph.classes = sorted(distinct, key=int) if all(map(is_id, distinct)) else sorted(distinct)
        number = {name: i for i, name in enumerate(graph.classes)}
        y[at] = [number[label] for label in labels.values()]
    graph.y = y


def read_graph(edges: Path, features: Path | None = None, labels: Path | None = None) -> Processed:
    """Reads a graph from its files.

    Args:
        edges: The list of edges; direction doesn't count.
        features: One row a node. A table's nodes are all nodes there are, also those without an edge.
        labels: One row a node, or fewer.

    Returns:
        Tensors ``edges`` ``[2, M]`` int64 (each once, smaller end first), ``x`` and ``y`` if there are any,
        and in ``info`` the node names, the classes and what was dropped.

    Raises:
        UserError: A file is missing or malformed; the message names file and line.
    """
    graph = _read_edges(edges, features)
    if labels is not None:
        _add_labels(graph, labels)
    listed = torch.from_numpy(graph.edges)
    simple = undirected_edges(listed, graph.num_nodes)
    loops = int((listed[0] == listed[1]).sum())
    tensors = {"edges": simple}
    if graph.x is not None:
        tensors["x"] = torch.from_numpy(graph.x)
    if graph.y is not None:
        tensors["y"] = torch.from_numpy(graph.y)
    info = {
        "num_nodes": graph.num_nodes,
        "names": graph.names,
        "classes": graph.classes,
        "self_loops": loops,
        "repeated": listed.size(1) - loops - simple.size(1),
    }
    return Processed(tensors, info)


@register_dataset("custom", task=("link", "node"))
def load_custom(
    *,
    root: str | Path = "data",
    task: str = "link",
    seed: int = 0,
    edges: str = "",
    features: str | None = None,
    labels: str | None = None,
    valid_ratio: float | None = None,
    test_ratio: float = 0.2,
    metric: str = "mrr",
    normalize_features: bool = False,
) -> Benchmark:
    """A graph of your own, from a CSV or npz file of edges.

    Args:
        root: The cache of what was read is put in ``root/custom``.
        task: ``"link"``, or ``"node"``, which needs ``labels``.
        seed: Seeds the split: edges at random, or labelled nodes class by class.
        edges: CSV or TSV with two columns of node names or numbers, header optional, or npz with
            ``edge_index`` ``[2, E]``. The graph is taken as undirected.
        features: CSV with the node first, then numbers, or npz with ``x`` ``[N, F]``. Without it a model
            learns an embedding.
        labels: CSV of node and class, or npz with ``y`` ``[N]``, negative where unknown.
        valid_ratio: Share for validation; by default 0.1 of the edges or 0.2 of the labelled nodes.
        test_ratio: Share for test.
        metric: Of link prediction: ``mrr``, ``auc`` or ``hits@K``, which needs K negatives in each split.
        normalize_features: Whether each row of features is divided by its sum.

    Raises:
        UserError: Missing or malformed files, or too few edges for the split or the metric.
    """
    if not edges:
        raise UserError("the data set 'custom' needs its edges: --data.edges FILE (CSV, TSV or npz)")
    if task == "node" and labels is None:
        raise UserError(
            "node classification needs labels: --data.labels FILE (CSV of node and class, or npz)"
        )
    given = {"edges": edges, "features": features, "labels": labels}
    paths = {name: Path(value) for name, value in given.items() if value is not None}
    hashes = {str(path): file_hash(path) for path in paths.values()}
    key = "custom/2/" + "/".join(f"{name}{p.suffix}={hashes[str(p)]}" for name, p in paths.items())
    read = cached(
        Path(root) / "custom",
        key,
        lambda: read_graph(paths["edges"], paths.get("features"), paths.get("labels")),
    )
    return _benchmark(
        read, hashes, task, seed, valid_ratio, test_ratio, metric, normalize_features=normalize_features
    )


def _benchmark(
    read: Processed,
    files: dict[str, str],
    task: str,
    seed: int,
    valid_ratio: float | None,
    test_ratio: float,
    metric: str,
    *,
    normalize_features: bool,
) -> Benchmark:
    """Splits what was read."""
    pairs, n, names = read.tensors["edges"], int(read.info["num_nodes"]), read.info["names"]
    x: Tensor | None = read.tensors.get("x")
    y: Tensor | None = read.tensors.get("y")
    if x is not None and normalize_features:
        x = row_normalized(x)
    info: dict[str, Any] = {"source": next(iter(files)), "files": files}
    info |= {"nodes": n, "edges": pairs.size(1), "seed": seed}
    dropped = {name: read.info[name] for name in ("self_loops", "repeated") if read.info[name]}
    info |= {"dropped": dropped} if dropped else {}
    if task == "link":
        parted = random_link_split(pairs, n, seed, 0.1 if valid_ratio is None else valid_ratio, test_ratio)
        info["split"] = "random"
        return link_benchmark("custom", parted, n, x=x, y=y, metric=metric, info=info, node_names=names)
    assert y is not None
    splits = stratified_node_split(y, seed, 0.2 if valid_ratio is None else valid_ratio, test_ratio)
    classes = read.info["classes"]
    info |= {"split": "stratified", "classes": classes}
    info |= {name: part["index"].numel() for name, part in splits.items()}
    data = Data(x=x, y=y, edge_index=torch.cat([pairs, pairs.flip(0)], 1), num_nodes=n)
    spec = DataSpec(n, None if x is None else x.size(1), len(classes))
    evaluator = NodeEvaluator()
    return Benchmark(
        "custom", task, data, splits, spec, "accuracy", True, evaluator, info=info, node_names=names
    )
