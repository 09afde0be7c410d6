"""OGB's npz layout, that of papers100M: unpacked in pieces, mapped, and never unpickled."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import ogb_papers
from graphkit.datasets.ogb_papers import read_papers
from graphkit.errors import UserError

# As in conftest.py.
NODES, EDGES, WIDTH, CLASSES = 30, 80, 5, 4
SIZES = {"train": 12, "valid": 6, "test": 8}

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def pairs(edge_index: torch.Tensor) -> list[tuple[int, int]]:
    return [(a, b) for a, b in edge_index.T.tolist()]


@pytest.fixture
def tiny(tiny_ogb: Any) -> Any:
    return tiny_ogb


def write_papers(tiny: Any, root: Path, **changes: Any) -> None:
    """Writes a tiny graph in the layout of ogbn-papers100M, with other arrays if given."""
    home = root / "ogbn_papers100M"
    (home / "raw").mkdir(parents=True)
    labels = tiny.y.astype(np.float32)[:, None]
    labels[tiny.unlabelled] = np.nan
    arrays = {
        "edge_index": np.asfortranarray(tiny.edges),  # as a transposed table is stored
        "node_feat": tiny.x.astype(np.float32),
        "node_year": tiny.year[:, None],
        "num_nodes_list": np.array([NODES]),
        "num_edges_list": np.array([EDGES]),
    }
    np.savez_compressed(home / "raw" / "data.npz", **{**arrays, **changes})
    np.savez(home / "raw" / "node-label.npz", node_label=changes.get("node_label", labels))
    tiny.write_split(home / "split" / "time")


def check_papers(benchmark: Benchmark, tiny: Any) -> None:
    data = benchmark.data
    assert data.edge_index.tolist() == tiny.edges.tolist()
    assert data.y.tolist() == tiny.labels()
    assert data.y.dtype == torch.int64
    assert data.node_year.tolist() == tiny.year.tolist()
    assert benchmark.adjacency is not None
    assert {(a, b) for a, b in pairs(benchmark.adjacency.edge_index())} == tiny.both()
    assert benchmark.adjacency.col.numel() == len(tiny.both())
    assert (benchmark.spec.num_classes, benchmark.metric) == (CLASSES, "acc")


@on_linux
def test_npz_layout(tiny: Any, tmp_path: Path) -> None:
    write_papers(tiny, tmp_path)
    for _ in range(2):
        benchmark = read_papers(tmp_path, True, True, None)
        check_papers(benchmark, tiny)
        assert np.array_equal(benchmark.data.x.numpy(), tiny.x.astype(np.float32))
        mapped = [benchmark.data[key] for key in ("x", "y", "edge_index", "node_year")]
        assert all(tiny.is_mapped(tensor) for tensor in [*mapped, benchmark.adjacency.col])
    assert not [p for p in (tmp_path / "ogbn_papers100M" / "processed").rglob("*") if p.suffix == ".tmp"]


def test_npz_is_unpacked_once(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_papers(tiny, tmp_path)
    first = read_papers(tmp_path, True, True, None).fingerprint

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpacked again")

    for name in ("stream_member", "read_member", "read_split"):
        monkeypatch.setattr(ogb_papers, name, refuse)
    assert read_papers(tmp_path, True, True, None).fingerprint == first


def test_papers_one_way_and_without_features(tiny: Any, tmp_path: Path) -> None:
    write_papers(tiny, tmp_path, node_feat=np.array("unread", dtype=object))
    benchmark = read_papers(tmp_path, False, False, None)
    assert benchmark.data.x is None
    one_way = {(a, b) for a, b in tiny.edges.T.tolist() if a != b}
    assert set(pairs(benchmark.adjacency.edge_index())) == one_way
    both = read_papers(tmp_path, False, True, None)
    check_papers(both, tiny)  # both are kept
    assert both.fingerprint != benchmark.fingerprint  # of the same edges as stored


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_features_become_float32(tiny: Any, tmp_path: Path, dtype: Any) -> None:
    write_papers(tiny, tmp_path, node_feat=np.arange(NODES * WIDTH).reshape(NODES, WIDTH).astype(dtype))
    x = read_papers(tmp_path, True, True, None).data.x
    assert x.dtype == torch.float32
    assert x.view(-1).tolist() == list(range(NODES * WIDTH))
    assert tiny.x.shape == x.shape


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("member", ["edge_index", "node_feat", "node_year", "num_nodes_list", "node_label"])
def test_an_array_of_objects_is_refused(
    tiny: Any, tmp_path: Path, member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = np.array([[Payload()] * 2] * NODES, dtype=object)
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("unpickled"))
    write_papers(tiny, tmp_path, **{member: evil})
    with pytest.raises(UserError, match=rf"'{member}' holds object, not numbers; nothing is unpickled"):
        read_papers(tmp_path, True, True, None)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": np.full((2, EDGES), NODES)}, f"'edge_index' names node {NODES}; there are {NODES}"),
        ({"edge_index": np.full((2, EDGES), -1)}, "names node -1"),
        ({"edge_index": np.zeros((2, EDGES))}, r"'edge_index' is float32 \(2, 80\); int64 \(2, 80\)"),
        ({"edge_index": np.zeros((3, EDGES), dtype=np.int64)}, r"'edge_index' is int64 \(3, 80\)"),
        ({"node_feat": np.zeros((NODES, 2), dtype=np.int8)}, "'node_feat' is int64"),
        ({"node_year": np.zeros((1, 1), dtype=np.int64)}, "'node_year' is int64"),
        ({"node_label": np.zeros((NODES, 2), dtype=np.float32)}, "'node_label' has shape"),
        ({"node_label": np.full((NODES, 1), 0.5, dtype=np.float32)}, "whole numbers"),
        ({"node_label": np.full((NODES, 1), np.nan, dtype=np.float32)}, "which has no class"),
        ({"num_nodes_list": np.array([3])}, "node ids from 0 to 2"),
    ],
)
def test_bad_arrays_are_refused(tiny: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_papers(tiny, tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        read_papers(tmp_path, True, True, None)
    assert not [p for p in tmp_path.rglob("*.tmp") if p.is_dir()]


@pytest.mark.parametrize("file", ["data.npz", "node-label.npz"])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "without", "missing"])
def test_damaged_npz_is_named(tiny: Any, tmp_path: Path, file: str, damage: str) -> None:
    write_papers(tiny, tmp_path)
    path = tmp_path / "ogbn_papers100M" / "raw" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
        if file == "data.npz":  # then nothing says that the folder is one
            (path.parent / "num-node-list.csv.gz").touch()
    elif damage == "without":
        np.savez(path, other=np.arange(3))
    elif damage == "flipped":
        with zipfile.ZipFile(path) as archive:
            at = archive.infolist()[0]
            content[at.header_offset + 150] ^= 0xFF
        path.write_bytes(content)
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2]}.get(damage, b"<html>"))
    with pytest.raises(UserError, match=file) as caught:
        read_papers(tmp_path, True, True, None)
    assert "\n" not in str(caught.value)


def test_papers_need_a_place_to_unpack(tiny: Any, tmp_path: Path) -> None:
    write_papers(tiny, tmp_path)
    (tmp_path / "ogbn_papers100M" / "processed").write_text("in the way")
    with pytest.raises(UserError, match="too large for memory and are unpacked there"):
        read_papers(tmp_path, True, True, None)


def test_papers_counts_are_checked_before_anything_is_unpacked(tiny: Any, tmp_path: Path) -> None:
    write_papers(tiny, tmp_path, edge_index=np.array("unread", dtype=object))
    with pytest.raises(UserError, match=r"isn't ogbn-papers100M.*nodes=30,.*nodes=111059956"):
        load_dataset("ogbn-papers100M", root=tmp_path)
