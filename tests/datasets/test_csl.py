"""Circular skip links: loops dropped, folds as published, files damaged or missing, the real ones."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import csl
from graphkit.datasets.csl import GRAPHS, INDICES, LABELS
from graphkit.errors import UserError

NODES, COUNT = 9, 20


def ring(skip: int) -> Any:
    """A ring with links of one length, and self loops as in the published files."""
    at = np.arange(NODES)
    dense = np.eye(NODES)
    for step in (1, skip):
        dense[at, (at + step) % NODES] = dense[(at + step) % NODES, at] = 1
    return scipy.sparse.coo_matrix(dense)


def indices() -> dict[str, list[list[int]]]:
    """Five folds of 12/4/4 graphs."""
    held = [[(4 * fold + k) % COUNT for k in range(4)] for fold in range(5)]
    valid = [held[(fold + 1) % 5] for fold in range(5)]
    train = [[n for n in range(COUNT) if n not in held[fold] + valid[fold]][::-1] for fold in range(5)]
    return {"train": train, "valid": valid, "test": held}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The five files, in ``tmp_path/csl``."""
    folder = tmp_path / "csl"
    folder.mkdir()
    (folder / GRAPHS).write_bytes(pickle.dumps([ring(2 + n % 2) for n in range(COUNT)]))
    torch.save(torch.arange(COUNT) % 10, folder / LABELS, _use_new_zipfile_serialization=False)
    for part, folds in indices().items():
        (folder / INDICES[part]).write_text("\n".join(",".join(map(str, fold)) for fold in folds) + "\n")
    return folder


def test_graphs_have_no_loops_and_no_features(
    home: Path, check_graphs_of: Callable[[Benchmark], Any]
) -> None:
    for _ in range(2):  # the second time from the cache
        benchmark = load_dataset("csl", root=home.parent)
        graphs = check_graphs_of(benchmark)
        for number in range(COUNT):
            dense = ring(2 + number % 2).toarray() - np.eye(NODES)
            assert graphs[number].edge_index.tolist() == np.stack(np.nonzero(dense)).tolist()
            assert graphs[number].num_nodes == NODES
        assert benchmark.data.y.tolist() == [n % 10 for n in range(COUNT)]
        assert (benchmark.metric, benchmark.spec.out_channels) == ("accuracy", 10)


@pytest.mark.parametrize("place", ["csl/raw", "CSL", "CSL/raw"])
def test_files_in_place(home: Path, place: str) -> None:
    other = home.parent / "other" / place
    other.mkdir(parents=True)
    for path in home.iterdir():
        path.rename(other / path.name)
    assert load_dataset("csl", root=home.parent / "other").info["raw"] == str(other)


def test_the_seed_chooses_the_fold_unless_it_is_named(home: Path) -> None:
    folds = indices()
    for seed, fold, chosen in ((0, None, 0), (7, None, 2), (7, 4, 4)):
        benchmark = load_dataset("csl", root=home.parent, seed=seed, fold=fold)
        assert benchmark.info["fold"] == chosen
        for part, index in benchmark.splits.items():
            assert index["index"].tolist() == sorted(folds[part][chosen])
    for fold in (-1, 5):
        with pytest.raises(UserError, match=f"fold is {fold}; it must lie between 0 and 4"):
            load_dataset("csl", root=home.parent, fold=fold)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (GRAPHS, pickle.dumps([1, 2]), "isn't a list of sparse matrices"),
        (GRAPHS, pickle.dumps([scipy.sparse.coo_matrix(np.ones((2, 3)))] * COUNT), "graph 0 is no graph"),
        (GRAPHS, b"", "is damaged"),
        (LABELS, b"", "is damaged"),
        (INDICES["valid"], b"0,1\n", "must hold 5 lines of graphs from 0 to 19"),
        (INDICES["valid"], b"0,20\n" * 5, "must hold 5 lines of graphs from 0 to 19"),
        (INDICES["valid"], b"0,x\n" * 5, "isn't a list of graphs"),
        (INDICES["valid"], b"0,1\n" * 5, "fold 0 has a graph in two of its parts"),
    ],
)
def test_wrong_files_are_named(home: Path, name: str, content: bytes, message: str) -> None:
    (home / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("csl", root=home.parent)
    assert "\n" not in str(caught.value)
    assert str(home) in str(caught.value)


def test_other_labels_are_refused(home: Path) -> None:
    for labels in (torch.arange(COUNT), torch.zeros(3)):
        torch.save(labels, home / LABELS)
        with pytest.raises(UserError, match=f"{LABELS} must hold 20 classes from 0 to 9"):
            load_dataset("csl", root=home.parent)


def test_files_are_fetched(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "CSL.zip", "w") as archive:
        for name in (GRAPHS, LABELS):
            archive.write(home / name, f"CSL/{name}")
    monkeypatch.setattr(csl, "URL", (tmp_path / "CSL.zip").as_uri())
    monkeypatch.setattr(csl, "INDEX_URL", home.as_uri())
    found = load_dataset("csl", root=tmp_path / "fresh")
    assert found.fingerprint == load_dataset("csl", root=home.parent).fingerprint


def test_without_network_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csl, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        load_dataset("csl", root=tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"put the file at {tmp_path}/csl/raw/CSL.zip or unpack it" in text
    assert "'digits-graphs' needs no download" in text


def test_the_real_files(test_data: Path, tmp_path: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    (tmp_path / "csl").mkdir()  # not a link: the cache goes here
    for path in (test_data / "csl").iterdir():
        (tmp_path / "csl" / path.name).symlink_to(path)
    tested = []
    for fold in range(5):
        benchmark = load_dataset("csl", root=tmp_path, fold=fold)
        graphs = check_graphs_of(benchmark)
        assert [benchmark.info[part] for part in ("train", "valid", "test")] == [90, 30, 30]
        for part in benchmark.splits.values():
            classes = torch.bincount(benchmark.data.y[part["index"]], minlength=10)
            assert bool((classes == classes[0]).all())
        tested.append(benchmark.splits["test"]["index"])
    assert torch.equal(torch.cat(tested).sort().values, torch.arange(150))
    assert len(graphs) == 150
    for number in range(150):
        graph = graphs[number]
        assert (graph.num_nodes, graph.edge_index.size(1)) == (41, 164)
        assert graph.is_undirected()
        assert not graph.has_self_loops()
        assert torch.bincount(graph.edge_index[0]).tolist() == [4] * 41
