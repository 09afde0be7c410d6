"""OGB's node data sets: the CSV layout, the published counts, damaged files, manners, and the real thing."""

from __future__ import annotations

import builtins
import gzip
import pickle
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import ogb, ogb_benchmark, ogb_mag, ogb_raw, ogb_store
from graphkit.datasets.ogb import ARXIV, PRODUCTS, PROTEINS, read_csv_benchmark
from graphkit.datasets.ogb_benchmark import PUBLISHED, Published
from graphkit.datasets.ogb_mag import MAG
from graphkit.datasets.ogb_papers import PAPERS
from graphkit.errors import UserError
from graphkit.registry import DATASETS

# As in conftest.py.
NODES, EDGES, WIDTH, CLASSES = 30, 80, 5, 4
SIZES = {"train": 12, "valid": 6, "test": 8}
SOURCES = (ARXIV, PRODUCTS, PROTEINS, PAPERS, MAG)

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def arxiv(root: Path, *, features: bool = True, undirected: bool = True, mapped: bool = False) -> Benchmark:
    return read_csv_benchmark(ARXIV, root, features, undirected, None, mapped=mapped)


def pairs(edge_index: torch.Tensor) -> list[tuple[int, int]]:
    return [(a, b) for a, b in edge_index.T.tolist()]


@pytest.fixture
def tiny(tiny_ogb: Any, tmp_path: Path) -> Any:
    """A tiny graph in the layout of ogbn-arxiv, in ``tmp_path``."""
    tiny_ogb.write(tmp_path / "ogbn_arxiv")
    return tiny_ogb


@pytest.mark.parametrize("mapped", [False, True])
def test_csv_layout(tiny: Any, tmp_path: Path, mapped: bool) -> None:
    for _ in range(2):  # the second time from the cache
        benchmark = arxiv(tmp_path, mapped=mapped)
        data = benchmark.data
        assert pairs(data.edge_index) == sorted(tiny.both())
        assert data.edge_index.dtype == data.y.dtype == data.node_year.dtype == torch.int64
        assert np.array_equal(data.x.numpy(), tiny.x.astype(np.float32))
        assert data.y.tolist() == tiny.labels()
        assert data.node_year.tolist() == tiny.year.tolist()
        for part, index in benchmark.splits.items():
            assert index["index"].tolist() == tiny.split[part].tolist()
            index["index"][0] = 0  # it is writable memory of its own
            assert arxiv(tmp_path, mapped=mapped).splits[part]["index"].tolist() == tiny.split[part].tolist()
        assert (benchmark.spec.num_nodes, benchmark.spec.in_channels) == (NODES, WIDTH)
        assert benchmark.spec.num_classes == CLASSES
        assert (benchmark.task, benchmark.metric, benchmark.maximize) == ("node", "acc", True)
        assert benchmark.info["valid"] == SIZES["valid"]
        assert benchmark.info["raw"] == str(tmp_path / "ogbn_arxiv" / "raw")
        assert benchmark.evaluator(torch.eye(4)[data.y[:3] % 4], data.y[:3] % 4) == {"acc": 1.0}


def test_edges_as_stored(tiny: Any, tmp_path: Path) -> None:
    assert arxiv(tmp_path, undirected=False).data.edge_index.tolist() == tiny.edges.tolist()
    assert len(arxiv(tmp_path).data.edge_index[0]) == len(tiny.both())  # caches are told apart


def test_without_features_their_file_is_not_read(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "ogbn_arxiv" / "raw" / "node-feat.csv.gz"
    path.write_bytes(b"not even gzip")
    benchmark = arxiv(tmp_path, features=False)
    assert benchmark.data.x is None
    assert benchmark.spec.in_channels is None
    path.unlink()
    assert arxiv(tmp_path, features=False).fingerprint == benchmark.fingerprint
    with pytest.raises(UserError, match=r"node-feat.csv.gz is missing.*--data.features false") as caught:
        arxiv(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["ogbn_arxiv", "ogb/ogbn_arxiv", "arxiv", "."])
def test_folders_in_place(tiny_ogb: Any, tmp_path: Path, place: str) -> None:
    tiny_ogb.write(tmp_path / place)
    assert Path(arxiv(tmp_path).info["raw"]) == tmp_path / place / "raw"


@pytest.mark.parametrize("mapped", [False, True])
def test_tables_are_read_once(
    tiny: Any, tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = arxiv(tmp_path, mapped=mapped)

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"{path} is read again")

    for module in (ogb, ogb_benchmark, ogb_raw):
        monkeypatch.setattr(module, "read_csv", refuse)
    assert arxiv(tmp_path, mapped=mapped).fingerprint == first.fingerprint
    tiny.csv(tmp_path / "ogbn_arxiv" / "raw" / "node_year.csv.gz", np.arange(NODES))
    with pytest.raises(AssertionError, match="read again"):  # a file has changed
        arxiv(tmp_path, mapped=mapped)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_root_that_cannot_be_written_works_without_a_cache(tiny: Any, tmp_path: Path, mapped: bool) -> None:
    (tmp_path / "ogbn_arxiv" / "processed").write_text("in the way")
    with pytest.warns(UserWarning, match="nothing is cached"):
        first = arxiv(tmp_path, features=False, mapped=mapped)
    assert first.data.num_nodes == NODES


@on_linux
def test_large_arrays_are_mapped(tiny: Any, tmp_path: Path) -> None:
    for _ in range(2):
        data = arxiv(tmp_path, mapped=True).data
        assert all(tiny.is_mapped(t) for t in (data.x, data.y, data.edge_index, data.node_year))
        data.x[0] = 7.0  # changes this process's copy, not the file
    assert np.array_equal(arxiv(tmp_path, mapped=True).data.x.numpy(), tiny.x.astype(np.float32))


@pytest.mark.parametrize("damage", ["manifest", "cut", "missing", "no manifest"])
def test_a_damaged_store_is_built_again(tiny: Any, tmp_path: Path, damage: str) -> None:
    want = arxiv(tmp_path, features=False, mapped=True).fingerprint
    (stored,) = (tmp_path / "ogbn_arxiv" / "processed").glob("*/manifest.json")
    if damage == "manifest":
        stored.write_text(stored.read_text().replace("y", "z"))
    elif damage == "cut":
        path = stored.parent / "y.npy"
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "missing":
        (stored.parent / "y.npy").unlink()
    else:
        stored.unlink()
    with pytest.warns(UserWarning, match="it is built again"):
        assert arxiv(tmp_path, features=False, mapped=True).fingerprint == want
    assert arxiv(tmp_path, features=False, mapped=True).fingerprint == want


def test_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    def build(work: Path) -> dict[str, Any]:
        np.save(work / "half.npy", np.zeros(3))
        if not (tmp_path / "go").exists():
            shutil.copytree(work, work.with_name(work.name.replace(".tmp", "x.tmp")))  # as if it were killed
            raise UserError("stopped")
        return {"more": np.arange(2)}

    with pytest.raises(UserError, match="stopped"):
        ogb_store.kept_arrays(tmp_path, "a/b", build)
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    (tmp_path / "go").touch()
    assert set(ogb_store.kept_arrays(tmp_path, "a/b", build)) == {"half", "more"}
    assert not list(tmp_path.glob(".*.tmp"))


# --- What is wrong with files ---

CSV_FILES = [
    *(f"raw/{name}.csv.gz" for name in ("edge", "node-label", "node-feat", "node_year")),
    *("raw/num-node-list.csv.gz", "raw/num-edge-list.csv.gz"),
    *(f"split/time/{part}.csv.gz" for part in SIZES),
]


DAMAGES = ("empty", "truncated", "text", "flipped", "words", "ragged", "short")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in CSV_FILES
        for damage in DAMAGES
        if damage != "short" or not name.startswith("split")  # a shorter split is a split
    ],
)
def test_damaged_files_are_named(tiny: Any, tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / "ogbn_arxiv" / name
    content = bytearray(path.read_bytes())
    plain = gzip.decompress(content).decode()
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    rows = plain.splitlines(keepends=True)
    other = {
        "empty": b"",
        "truncated": bytes(content[:-9]),
        "text": b"<!DOCTYPE html>",
        "flipped": bytes(content),
        "words": gzip.compress(("many" + plain[1:]).encode()),
        "ragged": gzip.compress(f"{rows[0].strip()},1\n{''.join(rows[1:])}".encode()),
        "short": gzip.compress("".join(rows[:-1]).encode()),
    }
    path.write_bytes(other[damage])
    with pytest.raises(UserError) as caught:
        arxiv(tmp_path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "ogbn_arxiv").rglob("*graph*.safetensors")) or "node-feat" in name


@pytest.mark.parametrize("name", [name for name in CSV_FILES if "year" not in name])
def test_missing_files_are_named(tiny: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "ogbn_arxiv" / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        arxiv(tmp_path)


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        (
            "raw/edge",
            [[NODES] * EDGES, [0] * EDGES],
            rf"names nodes from {NODES} to {NODES}; there are {NODES}",
        ),
        ("raw/edge", [[-1] * EDGES, [0] * EDGES], "names nodes from -1"),
        ("raw/node-label", [[0.5] * NODES], "whole numbers"),
        ("raw/node-label", [[-3] * NODES], "whole numbers"),
        ("raw/node-label", [["nan"] * NODES], r"split names node \d+, which has no class"),
        ("raw/node-feat", [["inf"] * NODES], "aren't finite"),
        ("split/time/train", [[1, 2, 2]], "names a node twice"),
        ("split/time/valid", [[NODES]], f"from 0 to {NODES - 1}"),
        ("split/time/test", [[-1]], "node ids from 0"),
    ],
)
def test_bad_numbers_are_refused(
    tiny: Any, tmp_path: Path, name: str, columns: list[list[Any]], message: str
) -> None:
    tiny.csv(tmp_path / "ogbn_arxiv" / f"{name}.csv.gz", *columns)
    with pytest.raises(UserError, match=message):
        arxiv(tmp_path)


def test_other_counts_are_refused(tiny: Any, tmp_path: Path) -> None:
    found = Published(NODES, EDGES, CLASSES, WIDTH, *SIZES.values())
    read_csv_benchmark(ARXIV, tmp_path, True, True, found, mapped=False)
    for field, value in (("edges", 3), ("classes", 2), ("features", 9), ("train", 13), ("test", 1)):
        other = Published(**{**vars(found), field: value})
        with pytest.raises(UserError) as caught:
            read_csv_benchmark(ARXIV, tmp_path, True, True, other, mapped=False)
        if field != "features":
            assert f"it holds {Published(**{**vars(other), field: vars(found)[field]})}" in str(caught.value)
            assert f"published are {other}" in str(caught.value)
    with pytest.raises(UserError, match=r"isn't ogbn-arxiv.*nodes=30,.*published are .*nodes=169343,"):
        load_dataset("ogbn-arxiv", root=tmp_path)
    assert tiny.edges.shape == (2, EDGES)


def test_published_counts_add_up() -> None:
    """Splits cover all nodes; of mag all papers, of papers100M those with a class."""
    for name, nodes in (
        *((name, PUBLISHED[name].nodes) for name in ("ogbn-arxiv", "ogbn-products", "ogbn-proteins")),
        ("ogbn-mag", 736_389),
        ("ogbn-papers100M", 1_546_782),
    ):
        counts = PUBLISHED[name]
        assert counts.train + counts.valid + counts.test == nodes


# --- Manners ---


def test_registered() -> None:
    assert ogb_mag.load_ogbn_mag is DATASETS.get("ogbn-mag").target
    for source in SOURCES:
        entry = DATASETS.get(source.name)
        assert entry.tasks == ("node",)
        assert entry.paper == "arXiv:2005.00687"
        first = (entry.target.__doc__ or "").splitlines()[0]
        assert first.startswith(f"{source.name}: ")
        assert f"{PUBLISHED[source.name].nodes:,}" in first
        assert f"{PUBLISHED[source.name].edges:,}" in first


def test_no_question_no_thread(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set(threading.enumerate())
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("it asks a question"))
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("it unpickles"))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it unpickles"))
    arxiv(tmp_path)
    assert set(threading.enumerate()) == threads


@pytest.fixture
def real(test_data: Path, tmp_path: Path) -> Path:
    """A root where the real files of ogbn-arxiv are linked and a cache may be written."""
    (tmp_path / "ogbn_arxiv").mkdir()
    for part in ("raw", "split"):
        (tmp_path / "ogbn_arxiv" / part).symlink_to(test_data / "ogb" / "ogbn_arxiv" / part)
    return tmp_path


def test_the_real_arxiv(real: Path) -> None:
    benchmark = load_dataset("ogbn-arxiv", root=real, features=False)
    data, splits = benchmark.data, benchmark.splits
    assert (data.num_nodes, data.edge_index.size(1)) == (169_343, 2_315_598)
    assert [splits[part]["index"].numel() for part in SIZES] == [90_941, 29_799, 48_603]
    joined = torch.cat([splits[part]["index"] for part in SIZES])
    assert torch.equal(joined.sort().values, torch.arange(169_343))  # disjoint, and nothing left out
    assert data.is_undirected()
    assert not data.has_self_loops()
    key = data.edge_index[0] * 169_343 + data.edge_index[1]
    assert bool((key.diff() > 0).all())
    assert torch.equal(data.y.unique(), torch.arange(40))
    years = {part: data.node_year[splits[part]["index"]] for part in SIZES}
    assert int(years["train"].max()) <= 2017
    assert years["valid"].unique().tolist() == [2018]
    assert int(years["test"].min()) >= 2019
    assert data.x is None
    assert benchmark.spec.num_classes == 40
    assert benchmark.metric == "acc"
    test = splits["test"]["index"]
    assert benchmark.evaluator(data.y[test], data.y[test]) == {"acc": 1.0}
    if not (real / "ogbn_arxiv" / "raw" / "node-feat.csv.gz").exists():
        with pytest.raises(UserError, match=r"node-feat.csv.gz is missing"):
            load_dataset("ogbn-arxiv", root=real)
