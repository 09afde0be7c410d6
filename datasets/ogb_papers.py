"""ogbn-papers100M: a citation graph larger than most memories (arXiv:2005.00687).

Its arrays come in npz files, packed. Each is unpacked once, piece by piece, to a file of its own, and mapped;
from then on a page is read when it is touched. What message passing sees, neighbours sorted by node, is built
once on disk as well (:mod:`graphkit.mapped`) and handed out as ``Benchmark.adjacency``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark
from graphkit.datasets.ogb_benchmark import (
    PARTS,
    PUBLISHED,
    Arrays,
    Published,
    benchmark_of,
    check_counts,
    check_labelled,
    class_labels,
)
from graphkit.datasets.ogb_raw import Source, find_or_fetch, fingerprint_of, processed_folder, read_split
from graphkit.datasets.ogb_store import kept_arrays, read_member, stream_member
from graphkit.errors import UserError
from graphkit.mapped import build_mapped_csr, map_array
from graphkit.registry import register_dataset

__all__ = ["load_ogbn_papers100m"]

PAPERS = Source("ogbn-papers100M", "papers100M-bin", "time")
_ROWS = 1 << 22
_EDGES = 1 << 22


def _unpack_graph(folder: Path, published: Published | None, work: Path) -> Arrays:
    """Unpacks edges, years and labels into ``work`` and returns the splits.

    ``edge_index`` is ``[2, E]`` int64, ``y`` ``[N]`` int64 (-1 where the file has NaN: most papers are no
    arXiv papers and have no class), ``node_year`` ``[N, 1]`` int64.
    """
    raw = folder / "raw"
    nodes, edges = (int(read_member(raw / "data.npz", f"num_{what}_list")[0]) for what in ("nodes", "edges"))
    parts = read_split(folder / "split" / PAPERS.split, nodes)
    check_counts(folder, PAPERS.name, published, nodes, edges, 0, parts)
    classes = _unpack_labels(raw / "node-label.npz", nodes, work)
    check_counts(folder, PAPERS.name, published, nodes, edges, classes, parts)
    check_labelled(folder, np.load(work / "y.npy", mmap_mode="r", allow_pickle=False), parts)
    for member, shape, below in (("edge_index", (2, edges), nodes), ("node_year", (nodes, 1), None)):
        found, kind = stream_member(raw / "data.npz", member, work / f"{member}.npy", below=below)
        if found != shape or kind != np.int64:
            raise UserError(f"{raw / 'data.npz'}: '{member}' is {kind} {found}; int64 {shape} was expected")
    return dict(parts)


def _unpack_labels(path: Path, nodes: int, work: Path) -> int:
    """Writes ``y.npy`` and returns the number of classes."""
    packed = work / "labels"
    shape, _ = stream_member(path, "node_label", packed)
    if shape != (nodes, 1):
        raise UserError(f"{path}: 'node_label' has shape {shape}; ({nodes}, 1) was expected")
    labels = map_array(packed).numpy()[:, 0]
    y = np.lib.format.open_memmap(work / "y.npy", "w+", np.int64, (nodes,))
    classes = 0
    for start in range(0, nodes, _ROWS):
        y[start : start + _ROWS] = class_labels(path, labels[start : start + _ROWS])
        classes = max(classes, int(y[start : start + _ROWS].max()) + 1)
    y.flush()
    packed.unlink()
    return classes


def _unpack_features(path: Path, nodes: int, published: Published | None, work: Path) -> Arrays:
    shape, kind = stream_member(path, "node_feat", work / "x.npy")
    width = shape[-1] if published is None else published.features
    if shape != (nodes, width) or kind != np.float32:
        raise UserError(f"{path}: 'node_feat' is {kind} {shape}; float32 ({nodes}, {width}) was expected")
    return {}


def read_papers(root: Path, features: bool, undirected: bool, published: Published | None) -> Benchmark:
    """Loads ogbn-papers100M, or any graph in its layout if ``published`` is ``None``."""
    folder = find_or_fetch(root, PAPERS)
    raw, processed = folder / "raw", processed_folder(root, PAPERS)
    files = [raw / "data.npz", raw / "node-label.npz"]
    files += [folder / "split" / PAPERS.split / f"{part}.csv.gz" for part in PARTS]
    facts = f"{published}/{fingerprint_of(files)}"
    parts = kept_arrays(
        processed,
        f"{PAPERS.name}/1/graph/{facts}",
        lambda work: _unpack_graph(folder, published, work),
        needs_disk=True,
    )
    nodes, edge_index = parts["y"].size(0), parts["edge_index"]
    x = None
    if features:
        x = kept_arrays(
            processed,
            f"{PAPERS.name}/1/x/{facts}",
            lambda work: _unpack_features(raw / "data.npz", nodes, published, work),
            needs_disk=True,
        )["x"]

    def chunks() -> Iterator[Tensor]:
        for start in range(0, edge_index.size(1), _EDGES):
            yield edge_index[:, start : start + _EDGES]

    adjacency = build_mapped_csr(
        chunks,
        nodes,
        processed / ("neighbours-both" if undirected else "neighbours-in"),
        key=f"{PAPERS.name}/1/{undirected}/{facts}",
        undirected=undirected,
    )
    year = parts["node_year"][:, 0]
    data = Data(x=x, y=parts["y"], edge_index=edge_index, num_nodes=nodes, node_year=year)
    benchmark = benchmark_of(PAPERS, data, parts, published, {"raw": str(raw), "undirected": undirected})
    benchmark.adjacency = adjacency
    return benchmark


@register_dataset("ogbn-papers100M", task="node", paper="arXiv:2005.00687")
def load_ogbn_papers100m(
    *,
    root: str | Path = "data",
    task: str = "node",
    seed: int = 0,
    features: bool = True,
    undirected: bool = True,
) -> Benchmark:
    """ogbn-papers100M: 111,059,956 papers, 1,615,685,872 citations, 128 features, 172 subjects.

    1,546,782 arXiv papers have a class; ``y`` is -1 elsewhere. Split by year: training to 2017, validation
    2018, test from 2019. Accuracy by OGB's evaluator, over three seeds. Unpacked it takes 57 GB for features,
    28 GB for edges, labels and years, and up to 14 GB for sorted neighbours, none of which has to fit into
    memory.

    Args:
        root: Holds ``ogbn_papers100M``, ``ogb/ogbn_papers100M`` or ``papers100M-bin`` with OGB's ``raw`` and
            ``split``, or is that folder, or holds ``papers100M-bin.zip``; fetched if not (57 GB).
        task: ``"node"``.
        seed: Not used: the split is fixed.
        features: Whether ``x`` is unpacked; without it models learn a row for each node.
        undirected: Whether ``adjacency`` has a citation in both directions; else a paper's neighbours are
            those that cite it. ``data.edge_index`` is always as stored, from the citing paper to the cited
            one.

    Raises:
        UserError: Files missing offline, damaged, or of other counts; ``root`` can't be written.
    """
    return read_papers(Path(root), features, undirected, PUBLISHED[PAPERS.name])
