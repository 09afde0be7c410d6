"""OGB's molecules: the CSV layout against OGB's own reader, counts, damaged files, the real files."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.compat import import_ogb
from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import ogb_graphs, ogb_raw
from graphkit.datasets.molecules import graph_of
from graphkit.datasets.ogb_graphs import LOADERS, MOLECULES, Molecules, load_molecules, source_of
from graphkit.errors import UserError
from graphkit.registry import DATASETS

SMILES = ["CCO", "C", "c1ccccc1Cl", "CC(=O)[O-]", "F/C=C/F", "N[C@@H](C)C(=O)O", "[Na+].[Cl-]", "CC#N"]
SPLIT = {"train": [0, 2, 3, 7], "valid": [1, 5], "test": [4, 6]}
NAME, TASKS = "ogbg-molclintox", 2


def gzipped(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def rows(values: Any) -> list[str]:
    return [",".join(map(str, row)) for row in values]


def labels() -> list[list[Any]]:
    return [["" if i == 3 else i % 2, "nan" if i == 4 else int(i > 2)] for i in range(len(SMILES))]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Eight molecules in OGB's layout, in ``tmp_path/ogbg_molclintox``."""
    folder = tmp_path / source_of(NAME).folder
    graphs = [graph_of(text) for text in SMILES]
    gzipped(folder / "raw" / "num-node-list.csv.gz", [str(g.num_nodes) for g in graphs])
    gzipped(folder / "raw" / "num-edge-list.csv.gz", [str(g.edge_index.size(1) // 2) for g in graphs])
    gzipped(folder / "raw" / "node-feat.csv.gz", rows(np.concatenate([g.x for g in graphs])))
    gzipped(folder / "raw" / "edge.csv.gz", rows(np.concatenate([g.edge_index.T[::2] for g in graphs])))
    gzipped(folder / "raw" / "edge-feat.csv.gz", rows(np.concatenate([g.edge_attr[::2] for g in graphs])))
    gzipped(folder / "raw" / "graph-label.csv.gz", rows(labels()))
    names = ",".join(["a", "b", "smiles", "mol_id"])
    table = [f"0,0,{text} ,M{i}" for i, text in enumerate(SMILES)]
    gzipped(folder / "mapping" / "mol.csv.gz", [names, *table])
    for part, index in SPLIT.items():
        gzipped(folder / "split" / "scaffold" / f"{part}.csv.gz", [str(i) for i in index])
    return folder


def load(root: Path, **options: Any) -> Benchmark:
    return load_molecules(NAME, root, **options)


def test_graphs_are_those_of_ogbs_own_reader(home: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    theirs = import_ogb("ogb.io.read_graph_raw").read_csv_graph_raw(str(home / "raw"), add_inverse_edge=True)
    for _ in range(2):  # the second time from the cache
        benchmark = load(home.parent)
        graphs = check_graphs_of(benchmark)
        assert len(graphs) == len(theirs) == len(SMILES)
        for number, graph in enumerate(theirs):
            ours = graphs[number]
            assert ours.x.tolist() == graph["node_feat"].tolist()
            assert ours.edge_index.tolist() == graph["edge_index"].tolist()
            assert ours.edge_attr.tolist() == graph["edge_feat"].tolist()
        assert graphs.data.x.dtype == graphs.data.edge_index.dtype == torch.int8
        assert {part: index["index"].tolist() for part, index in benchmark.splits.items()} == SPLIT
        assert benchmark.data.y.isnan().nonzero().tolist() == [[3, 0], [4, 1]]
        assert benchmark.data.y[:3].tolist() == [[0, 0], [1, 0], [0, 0]]
        assert list(benchmark.smiles or []) == SMILES
        assert list(benchmark.target_names or []) == ["a", "b"]
        assert (benchmark.metric, benchmark.targets, benchmark.spec.out_channels) == (
            "rocauc",
            "binary",
            TASKS,
        )
        assert benchmark.info["train"] == 4


def test_a_molecule_gets_the_features_of_the_data_set(home: Path) -> None:
    for features, columns in (("full", (9, 3)), ("simple", (2, 2))):
        benchmark = load(home.parent, features=features)
        assert (benchmark.data.x.size(1), benchmark.data.edge_attr.size(1)) == columns
        assert len(benchmark.spec.node_categories or ()) == columns[0]
        assert len(benchmark.spec.edge_categories or ()) == columns[1]
        assert benchmark.from_smiles is not None
        graph = benchmark.from_smiles(SMILES[0])
        assert torch.equal(graph.x, benchmark.data.x[:3])
        assert torch.equal(graph.edge_attr, benchmark.data.edge_attr[:4])
    with pytest.raises(UserError, match="features is 'some'; it must be one of full, simple"):
        load(home.parent, features="some")


def test_molecules_are_read_without_their_mapping(home: Path) -> None:
    (home / "mapping" / "mol.csv.gz").unlink()
    benchmark = load(home.parent)
    assert benchmark.smiles is None
    assert benchmark.target_names is None


def test_a_note_of_the_files_is_shown(home: Path) -> None:
    assert "note" not in load(home.parent).info
    (home / "RELEASE_v1.txt").write_text("made otherwise\nmore")
    assert load(home.parent).info["note"] == "made otherwise"


def test_nothing_is_unpickled_and_nothing_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks a question"))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("it unpickles"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it unpickles"))
    load(home.parent)


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("raw/num-node-list", ["3"] * 7, r"num-edge-list.csv.gz must hold 7 numbers of bonds"),
        ("raw/num-edge-list", ["-1", *["2"] * 7], r"num-edge-list.csv.gz must hold 8 numbers of bonds"),
        ("raw/edge", ["0,1"], r"edge.csv.gz has 1 rows; .* were expected"),
        ("raw/node-feat", ["1,2"], r"node-feat.csv.gz has 2 columns; 9 were expected"),
        ("raw/graph-label", ["0,0"], r"graph-label.csv.gz has 1 rows; 8 were expected"),
        ("raw/graph-label", ["a,b"] * 8, r"graph-label.csv.gz is damaged or something else"),
        ("split/scaffold/train", ["0", "0"], "names a graph twice"),
        ("split/scaffold/test", ["8"], r"test.csv.gz must hold graph ids from 0 to 7"),
        ("mapping/mol", ["smiles", "C"], r"mol.csv.gz must hold a column 'smiles' of 8 molecules"),
        ("mapping/mol", ["a", *["C"] * 8], r"mol.csv.gz must hold a column 'smiles'"),
    ],
)
def test_wrong_files_are_named(home: Path, file: str, lines: list[str], message: str) -> None:
    gzipped(home / f"{file}.csv.gz", lines)
    with pytest.raises(UserError, match=message) as caught:
        load(home.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["raw/node-feat", "raw/edge-feat", "raw/edge", "raw/graph-label"])
def test_missing_and_damaged_files_are_named(home: Path, file: str) -> None:
    path = home / f"{file}.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"{path.name} is damaged"):
        load(home.parent)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name} is missing"):
        load(home.parent)


def test_ids_and_categories_out_of_range_are_named(home: Path) -> None:
    good = (home / "raw" / "edge.csv.gz").read_bytes()
    lines = gzip.decompress(good).decode().split()
    gzipped(home / "raw" / "edge.csv.gz", ["0,3", *lines[1:]])
    with pytest.raises(UserError, match=r"raw: graph 0 has 3 nodes, and an edge \[0, 3\]"):
        load(home.parent)
    (home / "raw" / "edge.csv.gz").write_bytes(good)
    lines = gzip.decompress((home / "raw" / "node-feat.csv.gz").read_bytes()).decode().split()
    gzipped(home / "raw" / "node-feat.csv.gz", ["119" + lines[0][1:], *lines[1:]])
    with pytest.raises(UserError, match="column 0 of x holds 119; known are 0 to 118"):
        load(home.parent)


def test_other_counts_are_refused(home: Path) -> None:
    right = Molecules("clintox", 8, 2, "binary", "", (4, 2, 2))
    load(home.parent, published=right)
    for wrong in (
        Molecules("clintox", 9, 2, "binary", ""),
        Molecules("clintox", 8, 3, "binary", ""),
        Molecules("clintox", 8, 2, "binary", "", (3, 3, 2)),
    ):
        with pytest.raises(
            UserError, match=r"isn't ogbg-molclintox: it holds 8 molecules, 2 tasks.*published"
        ):
            load(home.parent, published=wrong)
    with pytest.raises(UserError, match="published are 1,477 molecules, 2 tasks"):
        load_dataset(NAME, root=home.parent)


def test_what_the_ogb_package_says_is_what_is_published() -> None:
    import pandas as pd

    table = pd.read_csv(f"{import_ogb('ogb.graphproppred').__path__[0]}/master.csv", index_col=0)
    assert set(MOLECULES) == set(table.columns[table.loc["data type"] == "mol"]) - {"ogbg-molchembl"}
    for name, published in MOLECULES.items():
        about = table[name]
        assert int(about["num tasks"]) == published.tasks
        assert about["url"].replace("http:", "https:") == source_of(name).url
        assert (about["task type"] == "regression") == (published.kind == "regression")
        assert about["split"] == source_of(name).split
        if published.sizes is not None:
            assert sum(published.sizes) == published.graphs


@pytest.mark.parametrize("name", MOLECULES)
def test_every_set_is_registered_and_clear_without_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = DATASETS.get(name)
    assert entry.target is LOADERS[name]
    assert entry.tasks == ("graph",)
    assert entry.summary.startswith(f"{name}: {MOLECULES[name].graphs:,} molecules")
    monkeypatch.setattr(ogb_raw, "MOLECULES_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        load_dataset(name, root=tmp_path)
    text, folder = str(caught.value), tmp_path / name.replace("-", "_")
    assert "\n" not in text
    assert (
        f"put the file at {folder}/{MOLECULES[name].archive}.zip or unpack it, so that {folder}/raw" in text
    )
    assert "'nci-tpsa' need no download" in text


def test_an_archive_is_unpacked(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(home.rglob("*.gz")):
            archive.write(path, f"clintox/{path.relative_to(home)}")
    (tmp_path / "clintox.zip").write_bytes(out.getvalue())
    monkeypatch.setattr(ogb_raw, "MOLECULES_URL", tmp_path.as_uri())
    assert load(tmp_path / "root").info["graphs"] == 8
    assert (tmp_path / "root" / "ogbg_molclintox" / "mapping" / "mol.csv.gz").is_file()


def test_every_task_is_evaluated_by_ogb() -> None:
    assert {ogb_graphs.OGBEvaluator(name).metric for name in MOLECULES} == {"rocauc", "ap", "rmse"}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ogbg-molesol", (1_128, 14_991, 30_856)),
        ("ogbg-molfreesolv", (642, 5_600, 10_770)),
        ("ogbg-molhiv", (41_127, 1_049_163, 2_259_376)),
    ],
)
def test_the_real_files(
    name: str,
    counts: tuple[int, ...],
    test_data: Path,
    tmp_path: Path,
    check_graphs_of: Callable[[Benchmark], Any],
) -> None:
    folder = tmp_path / name.replace("-", "_")
    folder.mkdir()
    for part in (test_data / "ogb" / folder.name).iterdir():
        (folder / part.name).symlink_to(part)
    benchmark = load_dataset(name, root=tmp_path)
    graphs = check_graphs_of(benchmark)
    assert tuple(benchmark.info[what] for what in ("graphs", "nodes", "edges")) == counts
    assert tuple(benchmark.info[part] for part in SPLIT) == MOLECULES[name].sizes
    assert sum(benchmark.info[part] for part in SPLIT) == counts[0]
    if name == "ogbg-molhiv":
        index = (part["index"] for part in benchmark.splits.values())
        assert [int(benchmark.data.y[part].sum()) for part in index] == [1232, 81, 130]
    assert benchmark.from_smiles is not None
    assert benchmark.smiles is not None
    for number in (0, 101, 600):  # OGB's features are today's rdkit's
        assert torch.equal(benchmark.from_smiles(benchmark.smiles[number]).x, graphs[number].x)
