"""OGB's node property prediction on graphs of one kind of node: arxiv, products, proteins (arXiv:2005.00687).

Raw files that are in place are used, or OGB's archive, or it is fetched. They are read once and kept in
``<root>/<name>/processed`` in a form that holds numbers alone, the larger ones memory-mapped. The ogb package
gives its evaluator and nothing else: its own loaders unpickle what they read, and ask questions.

ogbn-papers100M and ogbn-mag have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch_geometric.data import Data

from graphkit.data import Benchmark
from graphkit.datasets.ogb_benchmark import (
    PARTS,
    PUBLISHED,
    Arrays,
    Published,
    benchmark_of,
    both_directions,
    check_counts,
    check_ids,
    check_labelled,
    class_labels,
    kept,
    read_features,
    require_features,
)
from graphkit.datasets.ogb_raw import (
    Source,
    find_or_fetch,
    fingerprint_of,
    processed_folder,
    read_count,
    read_csv,
    read_split,
)
from graphkit.errors import UserError
from graphkit.registry import register_dataset

__all__ = ["load_ogbn_arxiv", "load_ogbn_products", "load_ogbn_proteins"]

ARXIV = Source("ogbn-arxiv", "arxiv", "time")
PRODUCTS = Source("ogbn-products", "products", "sales_ranking")
PROTEINS = Source("ogbn-proteins", "proteins", "species")


# --- CSV layout -------------------------------------------------------------------------------------------


def graph_files(folder: Path, source: Source, extras: Mapping[str, Path]) -> list[Path]:
    """Lists the files that :func:`read_csv_graph` reads."""
    names = ("num-node-list", "num-edge-list", "edge", "node-label")
    files = [folder / "raw" / f"{name}.csv.gz" for name in names]
    files += [folder / "split" / source.split / f"{part}.csv.gz" for part in PARTS]
    return files + list(extras.values())


def read_csv_graph(
    folder: Path,
    source: Source,
    undirected: bool,
    published: Published | None,
    extras: Mapping[str, Path],
    *,
    several: bool = False,
) -> Arrays:
    """Reads labels, edges and the split of one homogeneous graph in OGB's CSV layout.

    Args:
        folder: Holds ``raw`` and ``split``.
        source: The data set.
        undirected: Whether edges come in both directions, sorted, without self loops and repetitions.
        published: The counts to compare with.
        extras: Files with one whole number for each node, by name.
        several: Whether a node has several labels, each 0 or 1, in place of a class.

    Returns:
        ``y`` ``[N]`` int64 (-1 where unlabelled) or ``[N, T]`` float32, ``edge_index`` ``[2, E]`` int64,
        ``train``/``valid``/``test`` indices, and ``[N]`` int64 for each extra.

    Raises:
        UserError: A missing or damaged file, ids out of range, or other counts.
    """
    raw = folder / "raw"
    nodes, count = (read_count(raw / f"num-{what}-list.csv.gz") for what in ("node", "edge"))
    labels = read_csv(raw / "node-label.csv.gz", np.float64, None if several else 1, nodes)
    y = labels.astype(np.float32) if several else class_labels(raw / "node-label.csv.gz", labels[:, 0])
    classes = y.shape[1] if several else int(y.max()) + 1
    parts = read_split(folder / "split" / source.split, nodes)
    check_counts(folder, source.name, published, nodes, count, classes, parts)
    if not several:
        check_labelled(folder, y, parts)
    edges = np.ascontiguousarray(read_csv(raw / "edge.csv.gz", np.int64, columns=2, rows=count).T)
    check_ids(raw / "edge.csv.gz", edges, nodes, nodes)
    more = {name: read_csv(path, np.int64, columns=1, rows=nodes)[:, 0] for name, path in extras.items()}
    return {"y": y, "edge_index": both_directions(edges, nodes)[0] if undirected else edges, **parts, **more}


def existing(raw: Path, **names: str) -> dict[str, Path]:
    """Returns those of the files in ``raw`` that are there, by name."""
    return {name: raw / file for name, file in names.items() if (raw / file).is_file()}


def read_csv_benchmark(
    source: Source,
    root: Path,
    features: bool,
    undirected: bool,
    published: Published | None,
    *,
    mapped: bool,
) -> Benchmark:
    """Loads a graph with classes in OGB's CSV layout; with ``published`` ``None`` one of any size."""
    folder = find_or_fetch(root, source)
    raw, processed = folder / "raw", processed_folder(root, source)
    feature_file = require_features(raw / "node-feat.csv.gz") if features else None
    extras = existing(raw, node_year="node_year.csv.gz")
    files = graph_files(folder, source, extras)
    parts = kept(
        processed,
        f"{source.name}/1/graph/{undirected}/{published}/{fingerprint_of(files)}",
        lambda: read_csv_graph(folder, source, undirected, published, extras),
        mapped=mapped,
    )
    nodes = parts["y"].size(0)
    x = None
    if feature_file is not None:
        x = kept(
            processed,
            f"{source.name}/1/x/{nodes}/{published}/{fingerprint_of([feature_file])}",
            lambda: {"x": read_features(feature_file, nodes, published)},
            mapped=mapped,
        )["x"]
    more = {name: parts[name] for name in extras}
    data = Data(x=x, y=parts["y"], edge_index=parts["edge_index"], num_nodes=nodes, **more)
    return benchmark_of(source, data, parts, published, {"raw": str(raw), "undirected": undirected})


@register_dataset("ogbn-arxiv", task="node", paper="arXiv:2005.00687")
def load_ogbn_arxiv(
    *,
    root: str | Path = "data",
    task: str = "node",
    seed: int = 0,
    features: bool = True,
    undirected: bool = True,
) -> Benchmark:
    """ogbn-arxiv: 169,343 papers on computer science, 1,166,243 citations, 128 features, 40 subjects.

    Split by year: training to 2017, validation 2018, test from 2019. Accuracy by OGB's evaluator.

    Args:
        root: Holds ``ogbn_arxiv``, ``ogb/ogbn_arxiv`` or ``arxiv`` with OGB's ``raw`` and ``split``, or is
            that folder, or holds ``arxiv.zip``; fetched if not.
        task: ``"node"``.
        seed: Not used: the split is fixed.
        features: Whether ``x`` is read; without it models learn a row for each node.
        undirected: Whether a citation counts in both directions (2,315,598 entries); else as stored, from
            the citing paper to the cited one.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    published = PUBLISHED[ARXIV.name]
    return read_csv_benchmark(ARXIV, Path(root), features, undirected, published, mapped=False)


@register_dataset("ogbn-products", task="node", paper="arXiv:2005.00687")
def load_ogbn_products(
    *,
    root: str | Path = "data",
    task: str = "node",
    seed: int = 0,
    features: bool = True,
    undirected: bool = True,
) -> Benchmark:
    """ogbn-products: 2,449,029 products, 61,859,140 joint purchases, 100 features, 47 categories.

    Split by sales rank: training the 8 % sold most, validation the next 2 %. Accuracy by OGB's evaluator.
    Arrays are memory-mapped.

    Args:
        root: Holds ``ogbn_products``, ``ogb/ogbn_products`` or ``products``, or is that folder, or holds
            ``products.zip``; fetched if not (1.4 GB).
        task: ``"node"``.
        seed: Not used: the split is fixed.
        features: Whether ``x`` is read; without it models learn a row for each node.
        undirected: Whether an edge comes in both directions (123,718,280 entries), as models expect of this
            undirected graph; else as the file lists it, once.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    published = PUBLISHED[PRODUCTS.name]
    return read_csv_benchmark(PRODUCTS, Path(root), features, undirected, published, mapped=True)


# --- Proteins ---------------------------------------------------------------------------------------------


def read_edge_features(
    folder: Path, nodes: int, published: Published | None, *, x: bool, undirected: bool | None
) -> Arrays:
    """Reads proteins' edge features, and what nodes get of them.

    Args:
        folder: Holds ``raw``.
        nodes: N.
        published: For the expected width.
        x: Whether to make ``x`` ``[N, F]`` float32: the mean over a node's edges, of either direction, zero
            where there is none. It is summed in float64.
        undirected: How ``edge_attr`` ``[E, F]`` float32 is ordered: as the edges of :func:`both_directions`
            or as the files; ``None`` for none.
    """
    raw = folder / "raw"
    count = read_count(raw / "num-edge-list.csv.gz")
    edges = np.ascontiguousarray(read_csv(raw / "edge.csv.gz", np.int64, columns=2, rows=count).T)
    width = None if published is None else published.features
    values = read_csv(raw / "edge-feat.csv.gz", np.float32, width, count)
    if not np.isfinite(values).all():
        raise UserError(f"{raw / 'edge-feat.csv.gz'} holds values that aren't finite numbers")
    made: Arrays = {}
    if x:
        proper = edges[0] != edges[1]
        ends = [row[proper] for row in edges]
        degree = sum(np.bincount(end, minlength=nodes) for end in ends)
        mean = np.empty((nodes, values.shape[1]), dtype=np.float32)
        for k in range(values.shape[1]):
            column = values[proper, k].astype(np.float64)
            total = sum(np.bincount(end, column, nodes) for end in ends)
            mean[:, k] = total / np.maximum(degree, 1)
        made["x"] = mean
    if undirected is not None:
        made["edge_attr"] = both_directions(edges, nodes)[1](values) if undirected else values
    return made


def read_proteins(
    root: Path, features: bool, edge_features: bool, undirected: bool, published: Published | None
) -> Benchmark:
    """Loads ogbn-proteins, or any graph in its layout if ``published`` is ``None``."""
    folder = find_or_fetch(root, PROTEINS)
    raw, processed = folder / "raw", processed_folder(root, PROTEINS)
    wanted = features or edge_features
    feature_file = require_features(raw / "edge-feat.csv.gz") if wanted else None
    # Older archives name the file otherwise; the ogb package renames it when it sees it.
    extras = existing(raw, node_species="species.csv.gz") | existing(raw, node_species="node_species.csv.gz")
    files = graph_files(folder, PROTEINS, extras)
    facts = f"{published}/{fingerprint_of(files)}"
    parts = kept(
        processed,
        f"{PROTEINS.name}/1/graph/{undirected}/{facts}",
        lambda: read_csv_graph(folder, PROTEINS, undirected, published, extras, several=True),
        mapped=True,
    )
    nodes = parts["y"].size(0)
    more = {name: parts[name] for name in extras}
    if feature_file is not None:
        order = undirected if edge_features else None
        more |= kept(
            processed,
            f"{PROTEINS.name}/1/features/{features}/{order}/{facts}/{fingerprint_of([feature_file])}",
            lambda: read_edge_features(folder, nodes, published, x=features, undirected=order),
            mapped=True,
        )
    data = Data(y=parts["y"], edge_index=parts["edge_index"], num_nodes=nodes, **more)
    return benchmark_of(PROTEINS, data, parts, published, {"raw": str(raw), "undirected": undirected})


@register_dataset("ogbn-proteins", task="node", paper="arXiv:2005.00687")
def load_ogbn_proteins(
    *,
    root: str | Path = "data",
    task: str = "node",
    seed: int = 0,
    features: bool = True,
    edge_features: bool = False,
    undirected: bool = True,
) -> Benchmark:
    """ogbn-proteins: 132,534 proteins of 8 species, 39,561,252 associations with 8 features, 112 functions.

    Split by species. ``y`` is ``[N, 112]`` float32 of 0 and 1, and the metric the ROC-AUC, averaged over the
    functions, by OGB's evaluator. Arrays are memory-mapped.

    Args:
        root: Holds ``ogbn_proteins``, ``ogb/ogbn_proteins`` or ``proteins``, or is that folder, or holds
            ``proteins.zip``; fetched if not.
        task: ``"node"``.
        seed: Not used: the split is fixed.
        features: Whether nodes, which have no features of their own, get the mean of their edges' features
            as ``x``, as is customary; without it models learn a row for each node.
        edge_features: Whether ``edge_attr`` ``[E, 8]`` is loaded, in the order of ``edge_index``.
        undirected: Whether an edge comes in both directions (79,122,504 entries), as models expect of this
            undirected graph; else as the file lists it, once.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    return read_proteins(Path(root), features, edge_features, undirected, PUBLISHED[PROTEINS.name])
