"""OGB's graphs with more than edges: proteins with edge features, mag with types of nodes and edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import load_dataset
from graphkit.datasets.ogb import read_proteins
from graphkit.datasets.ogb_benchmark import Published, both_directions
from graphkit.datasets.ogb_mag import read_mag
from graphkit.errors import UserError

# As in conftest.py.
NODES, EDGES, WIDTH, CLASSES = 30, 80, 5, 4
SIZES = {"train": 12, "valid": 6, "test": 8}


def pairs(edge_index: torch.Tensor) -> list[tuple[int, int]]:
    return [(a, b) for a, b in edge_index.T.tolist()]


def write_proteins(tiny: Any, root: Path, species: str = "node_species") -> tuple[np.ndarray, np.ndarray]:
    """Writes a tiny graph in the layout of ogbn-proteins; returns labels and edge features."""
    home = root / "ogbn_proteins"
    tiny.write(home, "species")
    rng = np.random.default_rng(1)
    labels, values = rng.integers(2, size=(NODES, 3)), rng.random((EDGES, 2)).round(3)
    (home / "raw" / "node-feat.csv.gz").unlink()
    (home / "raw" / "node_year.csv.gz").unlink()
    tiny.csv(home / "raw" / "node-label.csv.gz", *labels.T)
    tiny.csv(home / "raw" / "edge-feat.csv.gz", *values.T)
    tiny.csv(home / "raw" / f"{species}.csv.gz", np.arange(NODES) + 3702)
    return labels, values


def test_proteins(tiny_ogb: Any, tmp_path: Path) -> None:
    labels, values = write_proteins(tiny_ogb, tmp_path)
    benchmark = read_proteins(tmp_path, True, True, True, None)
    data = benchmark.data
    assert pairs(data.edge_index) == sorted(tiny_ogb.both())
    assert data.y.dtype == torch.float32
    assert data.y.tolist() == labels.tolist()
    assert data.node_species.tolist() == [3702 + i for i in range(NODES)]
    assert (benchmark.spec.num_classes, benchmark.spec.in_channels, benchmark.metric) == (3, 2, "rocauc")
    for node in range(NODES):  # the mean over edges, a self loop aside
        around = [v for (a, b), v in zip(tiny_ogb.edges.T, values, strict=True) if a != b and node in (a, b)]
        mean = np.mean(around, axis=0) if around else np.zeros(2)
        assert np.allclose(data.x[node], mean, rtol=1e-6)
    known = {}
    for pair, value in zip(tiny_ogb.edges.T.tolist(), values.astype(np.float32).tolist(), strict=True):
        known.setdefault(frozenset(pair), []).append(value)
    for pair, value in zip(pairs(data.edge_index), data.edge_attr.tolist(), strict=True):
        assert value in known[frozenset(pair)]
        assert len(known[frozenset(pair)]) > 1 or value == known[frozenset(pair)][0]


def test_proteins_as_stored_and_without_features(tiny_ogb: Any, tmp_path: Path) -> None:
    _, values = write_proteins(tiny_ogb, tmp_path, species="species")
    data = read_proteins(tmp_path, False, True, False, None).data
    assert data.edge_index.tolist() == tiny_ogb.edges.tolist()
    assert data.edge_attr.tolist() == values.astype(np.float32).tolist()
    assert data.x is None
    assert data.node_species[0] == 3702
    (tmp_path / "ogbn_proteins" / "raw" / "edge-feat.csv.gz").unlink()
    plain = read_proteins(tmp_path, False, False, True, None)
    assert "edge_attr" not in plain.data
    assert plain.spec.in_channels is None
    with pytest.raises(UserError, match=r"edge-feat.csv.gz is missing.*--data.features false"):
        read_proteins(tmp_path, True, False, True, None)


def test_both_directions_keeps_the_first_of_repeated_edges() -> None:
    edges = np.array([[1, 0, 2, 1, 1], [0, 1, 2, 0, 2]])
    got, follow = both_directions(edges, 3)
    assert got.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    values = np.arange(5)[:, None]
    assert follow(values)[:, 0].tolist() == [1, 0, 4, 4]
    assert both_directions(edges[:, :0], 3)[0].shape == (2, 0)


# --- mag ---

COUNTS = {"author": 7, "institution": 3, "paper": NODES}
RELATIONS = [
    ("author", "affiliated_with", "institution"),
    ("author", "writes", "paper"),
    ("paper", "cites", "paper"),
]


def write_mag(tiny: Any, root: Path) -> dict[str, np.ndarray]:
    """Writes a tiny graph in the layout of ogbn-mag; returns the edges of each relation."""
    home = root / "ogbn_mag"
    raw = home / "raw"
    rng = np.random.default_rng(2)
    tiny.csv(raw / "num-node-dict.csv.gz", *([n] for n in COUNTS.values()), header=",".join(COUNTS))
    tiny.csv(raw / "triplet-type-list.csv.gz", *zip(*reversed(RELATIONS), strict=True))
    edges = {}
    for head, name, tail in RELATIONS:
        drawn = np.stack([rng.integers(COUNTS[head], size=9), rng.integers(COUNTS[tail], size=9)])
        edges[name] = tiny.edges if name == "cites" else drawn
        folder = raw / "relations" / f"{head}___{name}___{tail}"
        tiny.csv(folder / "edge.csv.gz", *edges[name])
        tiny.csv(folder / "num-edge-list.csv.gz", [edges[name].shape[1]])
        tiny.csv(folder / "edge_reltype.csv.gz", [0] * edges[name].shape[1])
    tiny.csv(raw / "node-feat" / "paper" / "node-feat.csv.gz", *tiny.x.T)
    tiny.csv(raw / "node-feat" / "paper" / "node_year.csv.gz", tiny.year)
    tiny.csv(raw / "node-label" / "paper" / "node-label.csv.gz", tiny.y)
    tiny.write_split(home / "split" / "time" / "paper")
    return edges


def test_mag_papers(tiny_ogb: Any, tmp_path: Path) -> None:
    write_mag(tiny_ogb, tmp_path)
    for _ in range(2):
        benchmark = read_mag(tmp_path, "papers", True, True, None)
        data = benchmark.data
        assert pairs(data.edge_index) == sorted(tiny_ogb.both())
        assert data.y.tolist() == tiny_ogb.y.tolist()
        assert data.node_year.tolist() == tiny_ogb.year.tolist()
        assert np.array_equal(data.x.numpy(), tiny_ogb.x.astype(np.float32))
        assert benchmark.splits["valid"]["index"].tolist() == tiny_ogb.split["valid"].tolist()
        assert benchmark.spec.num_relations is None
        assert benchmark.spec.num_nodes == NODES
    stored = read_mag(tmp_path, "papers", False, False, None).data
    assert stored.edge_index.tolist() == tiny_ogb.edges.tolist()
    assert stored.x is None


@pytest.mark.parametrize("undirected", [True, False])
def test_mag_as_one_graph(tiny_ogb: Any, tmp_path: Path, undirected: bool) -> None:
    edges = write_mag(tiny_ogb, tmp_path)
    benchmark = read_mag(tmp_path, "all", True, undirected, None)
    data = benchmark.data
    total = sum(COUNTS.values())
    offset = {"paper": 0, "author": NODES, "institution": NODES + COUNTS["author"]}
    assert benchmark.info["node_types"] == ["paper", "author", "institution"]
    assert benchmark.info["relations"] == ["-".join(relation) for relation in RELATIONS]
    assert data.node_type.tolist() == [0] * NODES + [1] * COUNTS["author"] + [2] * COUNTS["institution"]
    want = set()
    for number, (head, name, tail) in enumerate(RELATIONS):
        for a, b in edges[name].T.tolist():
            source, target = a + offset[head], b + offset[tail]
            if not undirected:
                want.add((source, target, number))
            elif source != target:
                want |= {(source, target, number), (target, source, number + len(RELATIONS))}
    got = [(a, b, t) for (a, b), t in zip(pairs(data.edge_index), data.edge_type.tolist(), strict=True)]
    assert set(got) == want
    assert len(got) == len(want)
    assert data.y.tolist() == tiny_ogb.y.tolist() + [-1] * (total - NODES)
    assert data.node_year[:NODES].tolist() == tiny_ogb.year.tolist()
    assert data.x is None
    assert np.array_equal(data.x_paper.numpy(), tiny_ogb.x.astype(np.float32))
    assert (benchmark.spec.num_nodes, benchmark.spec.num_relations) == (total, 3)
    assert benchmark.spec.in_channels is None
    assert benchmark.spec.num_classes == CLASSES
    assert "x_paper" not in read_mag(tmp_path, "all", False, undirected, None).data


def test_mag_counts_all_nodes_and_edges(tiny_ogb: Any, tmp_path: Path) -> None:
    write_mag(tiny_ogb, tmp_path)
    total = Published(NODES + 10, EDGES + 18, CLASSES, WIDTH, *SIZES.values())
    for graph in ("papers", "all"):
        read_mag(tmp_path, graph, True, True, total)
        with pytest.raises(UserError, match=r"isn't ogbn-mag.*nodes=40,.*published are .*nodes=1939743,"):
            load_dataset("ogbn-mag", root=tmp_path, graph=graph)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("num-node-dict", [["paper"]], "a line of node types and one of counts"),
        ("num-node-dict", [["paper", "author"], ["3", "many"]], "a line of node types and one of counts"),
        ("triplet-type-list", [["paper", "cites"]], "type, relation and type"),
        ("triplet-type-list", [["paper", "../..", "paper"]], "type, relation and type"),
        ("triplet-type-list", [["venue", "hosts", "paper"]], "type, relation and type"),
        ("triplet-type-list", [["author", "writes", "paper"]], "no relation paper,cites,paper"),
    ],
)
def test_mag_schema(tiny_ogb: Any, tmp_path: Path, name: str, rows: list[list[str]], message: str) -> None:
    write_mag(tiny_ogb, tmp_path)
    path = tmp_path / "ogbn_mag" / "raw" / f"{name}.csv.gz"
    tiny_ogb.csv(path, *zip(*rows, strict=True))
    with pytest.raises(UserError, match=message):
        read_mag(tmp_path, "papers", False, True, None)
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match=f"{name}.csv.gz"):
        read_mag(tmp_path, "papers", False, True, None)


def test_mag_options(tiny_ogb: Any, tmp_path: Path) -> None:
    write_mag(tiny_ogb, tmp_path)
    with pytest.raises(UserError, match="graph is 'paper'; 'papers' or 'all'"):
        load_dataset("ogbn-mag", root=tmp_path, graph="paper")
    (tmp_path / "ogbn_mag/raw/node-feat/paper/node-feat.csv.gz").unlink()
    with pytest.raises(UserError, match=r"paper/node-feat.csv.gz is missing"):
        read_mag(tmp_path, "papers", True, True, None)
