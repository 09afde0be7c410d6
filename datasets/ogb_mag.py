"""ogbn-mag: papers, authors, institutions and fields of study (arXiv:2005.00687); papers are classified.

As a graph of papers it serves every node model. As a graph of all nodes it is one homogeneous graph with
types of nodes and edges, papers first, so that the papers' ids are the same in both.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Literal

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
    damaged,
    distinct,
    find_or_fetch,
    fingerprint_of,
    processed_folder,
    read_count,
    read_csv,
    read_split,
    require,
)
from graphkit.errors import UserError
from graphkit.registry import register_dataset

__all__ = ["load_ogbn_mag"]

MAG = Source("ogbn-mag", "mag", "time")
CITES = ("paper", "cites", "paper")

Triplet = tuple[str, str, str]


def _rows(path: Path) -> list[list[str]]:
    """Reads a small table of words."""
    require(path)
    with damaged(path), gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file) if row]


def _relation(raw: Path, triplet: Triplet) -> Path:
    return raw / "relations" / "___".join(triplet)


def _schema(raw: Path) -> tuple[dict[str, int], list[Triplet]]:
    """Reads how many nodes there are of each type, papers first, and the relations between them, sorted.

    Raises:
        UserError: If the two files don't belong together.
    """
    table = _rows(raw / "num-node-dict.csv.gz")
    if len(table) != 2 or len(table[0]) != len(table[1]) or not all(cell.isdigit() for cell in table[1]):
        raise UserError(f"{raw / 'num-node-dict.csv.gz'} must hold a line of node types and one of counts")
    counts = {kind: int(count) for kind, count in zip(*table, strict=True)}
    order = sorted(counts, key=lambda kind: (kind != "paper", kind))
    path = raw / "triplet-type-list.csv.gz"
    triplets: list[Triplet] = []
    for row in sorted(_rows(path)):
        if len(row) != 3 or row[0] not in counts or row[2] not in counts or any("/" in cell for cell in row):
            raise UserError(f"{path} must hold type, relation and type in each line, not {','.join(row)}")
        triplets.append((row[0], row[1], row[2]))
    if CITES not in triplets:
        raise UserError(f"{path} has no relation {','.join(CITES)}")
    return {kind: counts[kind] for kind in order}, triplets


def _read_relation(raw: Path, triplet: Triplet, counts: dict[str, int]) -> np.ndarray:
    """Reads ``[2, E]`` int64 ids, each within its type."""
    folder = _relation(raw, triplet)
    rows = read_count(folder / "num-edge-list.csv.gz")
    edges = np.ascontiguousarray(read_csv(folder / "edge.csv.gz", np.int64, columns=2, rows=rows).T)
    check_ids(folder / "edge.csv.gz", edges, counts[triplet[0]], counts[triplet[2]])
    return edges


def _joined(raw: Path, counts: dict[str, int], triplets: list[Triplet], undirected: bool) -> Arrays:
    """Makes one graph of all relations.

    Relation ``r`` of R keeps its number as ``edge_type``; its inverse, if wanted, gets ``R + r``. Repetitions
    within a relation go, and so do self loops where inverses are added.
    """
    offset = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
    total = sum(counts.values())
    pieces, types = [], []
    for number, triplet in enumerate(triplets):
        edges = _read_relation(raw, triplet, counts)
        edges += np.array([[offset[triplet[0]]], [offset[triplet[2]]]])
        if undirected:
            edges = edges[:, edges[0] != edges[1]]
        key = distinct(edges[0] * total + edges[1])
        edges = np.stack([key // total, key % total])
        pieces.append(edges)
        types.append(np.full(edges.shape[1], number))
        if undirected:
            pieces.append(edges[::-1])
            types.append(np.full(edges.shape[1], len(triplets) + number))
    node_type = np.repeat(np.arange(len(counts)), list(counts.values()))
    joined = np.concatenate(pieces, axis=1)
    return {"edge_index": joined, "edge_type": np.concatenate(types), "node_type": node_type}


def _read_graph(
    folder: Path, graph: str, undirected: bool, published: Published | None, year: Path | None
) -> Arrays:
    """Reads everything but the features; arrays of nodes have the length of the chosen graph."""
    raw = folder / "raw"
    counts, triplets = _schema(raw)
    papers = counts["paper"]
    edges = sum(read_count(_relation(raw, t) / "num-edge-list.csv.gz") for t in triplets)
    label_file = raw / "node-label" / "paper" / "node-label.csv.gz"
    y = class_labels(label_file, read_csv(label_file, np.float64, columns=1, rows=papers)[:, 0])
    parts = read_split(folder / "split" / MAG.split / "paper", papers)
    check_counts(folder, MAG.name, published, sum(counts.values()), edges, int(y.max()) + 1, parts)
    check_labelled(folder, y, parts)
    made: Arrays = dict(parts)
    if graph == "papers":
        cites = _read_relation(raw, CITES, counts)
        made["edge_index"] = both_directions(cites, papers)[0] if undirected else cites
    else:
        made |= _joined(raw, counts, triplets, undirected)
    others = made["node_type"].size - papers if "node_type" in made else 0
    made["y"] = np.pad(y, (0, others), constant_values=-1)
    if year is not None:
        years = read_csv(year, np.int64, columns=1, rows=papers)[:, 0]
        made["node_year"] = np.pad(years, (0, others), constant_values=-1)
    return made


def read_mag(
    root: Path, graph: str, features: bool, undirected: bool, published: Published | None
) -> Benchmark:
    """Loads ogbn-mag, or any graph in its layout if ``published`` is ``None``."""
    if graph not in ("papers", "all"):
        raise UserError(f"graph is '{graph}'; 'papers' or 'all' were expected")
    folder = find_or_fetch(root, MAG)
    raw, processed = folder / "raw", processed_folder(root, MAG)
    of_papers = raw / "node-feat" / "paper"
    feature_file = require_features(of_papers / "node-feat.csv.gz") if features else None
    counts, triplets = _schema(raw)
    files = [raw / "num-node-dict.csv.gz", raw / "triplet-type-list.csv.gz"]
    files += [raw / "node-label" / "paper" / "node-label.csv.gz"]
    files += [folder / "split" / MAG.split / "paper" / f"{part}.csv.gz" for part in PARTS]
    for triplet in triplets:
        files.append(_relation(raw, triplet) / "num-edge-list.csv.gz")
        if graph == "all" or triplet == CITES:
            files.append(_relation(raw, triplet) / "edge.csv.gz")
    year = of_papers / "node_year.csv.gz"
    files += [year] if year.is_file() else []
    parts = kept(
        processed,
        f"{MAG.name}/1/{graph}/{undirected}/{published}/{fingerprint_of(files)}",
        lambda: _read_graph(folder, graph, undirected, published, year if year.is_file() else None),
        mapped=True,
    )
    names = ("edge_type", "node_type", "node_year")
    more = {name: parts[name] for name in names if name in parts}
    if feature_file is not None:
        key = f"{MAG.name}/1/x/{counts['paper']}/{published}/{fingerprint_of([feature_file])}"
        x = kept(
            processed,
            key,
            lambda: {"x": read_features(feature_file, counts["paper"], published)},
            mapped=True,
        )["x"]
        more["x" if graph == "papers" else "x_paper"] = x
    nodes = parts["y"].size(0)
    data = Data(y=parts["y"], edge_index=parts["edge_index"], num_nodes=nodes, **more)
    info = {"raw": str(raw), "graph": graph, "undirected": undirected}
    relations = None
    if graph == "all":
        relations = len(triplets)
        info |= {"node_types": list(counts), "relations": ["-".join(triplet) for triplet in triplets]}
    return benchmark_of(MAG, data, parts, published, info, relations)


@register_dataset("ogbn-mag", task="node", paper="arXiv:2005.00687")
def load_ogbn_mag(
    *,
    root: str | Path = "data",
    task: str = "node",
    seed: int = 0,
    graph: Literal["papers", "all"] = "papers",
    features: bool = True,
    undirected: bool = True,
) -> Benchmark:
    """ogbn-mag: 1,939,743 nodes, of them 736,389 papers with 128 features, 21,111,007 edges, 349 venues.

    Split by year: training to 2017, validation 2018, test from 2019. Accuracy by OGB's evaluator. Arrays are
    memory-mapped.

    Args:
        root: Holds ``ogbn_mag``, ``ogb/ogbn_mag`` or ``mag`` with OGB's ``raw`` and ``split``, or is that
            folder, or holds ``mag.zip``; fetched if not (0.4 GB).
        task: ``"node"``.
        seed: Not used: the split is fixed.
        graph: ``"papers"``: papers and their 5,416,271 citations. ``"all"``: all nodes, papers first, then
            authors, fields of study and institutions, with ``node_type`` ``[N]`` and ``edge_type`` ``[E]``;
            ``y`` is -1 off papers, whose features are ``x_paper``.
        features: Whether the papers' features are read; without them models learn a row for each node.
        undirected: Whether edges come in both directions; in ``"all"`` the inverse of relation r is R + r.

    Raises:
        UserError: Files missing offline, damaged, or of other counts.
    """
    return read_mag(Path(root), graph, features, undirected, PUBLISHED[MAG.name])
