"""ZINC: the benchmark's pickles and the flat arrays give the same graphs; counts; the real file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import zinc
from graphkit.datasets.zinc import PARTS, REBUILT, load_molecules
from graphkit.errors import UserError

SIZES = {"train": 6, "val": 3, "test": 2}


def molecules(count: int, seed: int) -> list[dict[str, Any]]:
    """Random molecules as the benchmark stores them."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        n = int(rng.integers(1, 7))
        bond = np.triu(rng.integers(0, 4, (n, n)), 1)
        made.append(
            {
                "num_atom": n,
                "atom_type": torch.from_numpy(rng.integers(0, 21, n)),
                "bond_type": torch.from_numpy(bond + bond.T),
                "logP_SA_cycle_normalized": torch.tensor([float(rng.normal())]),
            }
        )
    return made


@pytest.fixture
def stored() -> dict[str, list[dict[str, Any]]]:
    """Twice as many molecules of each part as the small set has."""
    return {part: molecules(2 * size, seed) for seed, (part, size) in enumerate(SIZES.items())}


@pytest.fixture
def raw(tmp_path: Path, stored: dict[str, list[dict[str, Any]]]) -> Path:
    """The benchmark's files, of which every second molecule counts."""
    folder = tmp_path / "zinc" / "raw"
    folder.mkdir(parents=True)
    for part, graphs in stored.items():
        (folder / f"{part}.pickle").write_bytes(pickle.dumps(graphs))
        chosen = [str(number) for number in range(1, len(graphs), 2)][::-1]
        (folder / f"{part}.index").write_text(",".join(chosen) + "\n")
    return folder


def write_npz(path: Path, stored: dict[str, list[dict[str, Any]]], **changed: Any) -> None:
    """Writes the same molecules as flat arrays."""
    arrays: dict[str, Any] = {}
    for part, graphs in stored.items():
        chosen = graphs[1::2][::-1]
        bonds = [g["bond_type"].numpy() for g in chosen]
        edges = [np.stack(np.nonzero(bond)) for bond in bonds]
        arrays[f"{part}_x"] = np.concatenate([g["atom_type"] for g in chosen]).astype(np.int8)
        arrays[f"{part}_edge_index"] = np.concatenate(edges, 1).astype(np.int16)
        arrays[f"{part}_edge_attr"] = np.concatenate([b[b > 0] for b in bonds]).astype(np.int8)
        arrays[f"{part}_node_ptr"] = np.cumsum([0, *(len(b) for b in bonds)]).astype(np.int32)
        arrays[f"{part}_edge_ptr"] = np.cumsum([0, *(e.shape[1] for e in edges)]).astype(np.int32)
        arrays[f"{part}_y"] = np.array([float(g["logP_SA_cycle_normalized"]) for g in chosen], np.float32)
    np.savez(path, **{**arrays, **changed})


def load(root: Path, name: str = "zinc") -> Benchmark:
    return load_molecules(name, root, None)


def test_the_pickles_of_the_benchmark(
    raw: Path, stored: dict[str, list[dict[str, Any]]], check_graphs_of: Callable[[Benchmark], Any]
) -> None:
    for _ in range(2):  # the second time from the cache
        benchmark = load(raw.parents[1])
        graphs = check_graphs_of(benchmark)
        expected = [graph for part in PARTS for graph in stored[part][1::2][::-1]]
        for number, molecule in enumerate(expected):
            graph = graphs[number]
            assert graph.x[:, 0].tolist() == molecule["atom_type"].tolist()
            dense = torch.zeros_like(molecule["bond_type"])
            dense[graph.edge_index[0], graph.edge_index[1]] = graph.edge_attr[:, 0].long()
            assert torch.equal(dense, molecule["bond_type"])
            assert graph.y.tolist() == [molecule["logP_SA_cycle_normalized"].tolist()]
        assert [part["index"].numel() for part in benchmark.splits.values()] == list(SIZES.values())
        assert (benchmark.metric, benchmark.spec.node_categories, benchmark.spec.edge_categories) == (
            *("mae", (21,), (4,)),
        )


def test_all_molecules_need_no_index(raw: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    for path in raw.glob("*.index"):
        path.unlink()
    benchmark = load(raw.parents[1], "zinc-full")
    check_graphs_of(benchmark)
    assert [part["index"].numel() for part in benchmark.splits.values()] == [12, 6, 4]
    assert benchmark.spec.node_categories == (28,)


@pytest.mark.parametrize("place", ["zinc", "ZINC/raw", "."])
def test_rebuilt_arrays_hold_the_same_graphs(
    raw: Path, tmp_path: Path, stored: dict[str, list[dict[str, Any]]], place: str
) -> None:
    other = tmp_path / "other"
    (other / place).mkdir(parents=True)
    write_npz(other / place / REBUILT, stored)
    first, second = load(tmp_path), load(other)
    assert first.fingerprint == second.fingerprint
    assert "rebuilt" not in first.info["source"]
    assert "training graphs rebuilt from SMILES" in second.info["source"]
    write_npz(raw.parent / REBUILT, {part: graphs[::-1] for part, graphs in stored.items()})
    assert load(tmp_path).fingerprint == first.fingerprint  # the benchmark's own files come first


def test_wrong_arrays_are_named(tmp_path: Path, stored: dict[str, list[dict[str, Any]]]) -> None:
    path = tmp_path / REBUILT
    for changed, message in (
        ({"val_x": np.full(3, 22)}, "nodes don't add up"),
        ({"val_y": np.full(3, np.nan, np.float32)}, "must be 11 finite numbers"),
        ({"val_y": np.zeros(2, np.float32)}, "must be 11 finite numbers"),
    ):
        write_npz(path, stored, **changed)
        with pytest.raises(UserError, match=message):
            load(tmp_path)
    write_npz(path, stored)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["test_x"][0] = 21
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="column 0 of x holds 21; known are 0 to 20"):
        load(tmp_path)
    del arrays["test_x"]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=f"{REBUILT} lacks the arrays test_x"):
        load(tmp_path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=REBUILT):
        load(tmp_path)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{REBUILT} is damaged"):
        load(tmp_path)


def test_wrong_pickles_are_named(raw: Path) -> None:
    index = (raw / "val.index").read_text()
    for text in ("1,1", "7", "-1", "x", ""):
        (raw / "val.index").write_text(text)
        with pytest.raises(UserError, match=r"val.index (isn't a list of|must hold distinct)"):
            load(raw.parents[1])
    (raw / "val.index").write_text(index)
    for content in (b"", pickle.dumps([{"atom_type": 1}] * 6), pickle.dumps([1] * 6)):
        (raw / "val.pickle").write_bytes(content)
        with pytest.raises(UserError, match=r"val.pickle is damaged"):
            load(raw.parents[1])


def test_other_counts_are_refused(raw: Path) -> None:
    with pytest.raises(UserError, match=r"isn't zinc: it holds \[6, 3, 2\] graphs, published are \[10000,"):
        load_dataset("zinc", root=raw.parents[1])


def test_the_archive_is_fetched(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "molecules.zip", "w") as archive:
        for path in raw.glob("*.pickle"):
            archive.write(path, f"molecules/{path.name}")
    monkeypatch.setattr(zinc, "URL", (tmp_path / "molecules.zip").as_uri())
    monkeypatch.setattr(zinc, "INDEX_URL", raw.as_uri())
    assert load(tmp_path / "fresh").fingerprint == load(tmp_path).fingerprint


@pytest.mark.parametrize("name", ["zinc", "zinc-full"])
def test_without_network_there_is_one_clear_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zinc, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        load_dataset(name, root=tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"put the file at {tmp_path}/zinc/raw/molecules.zip or unpack it" in text
    assert "'nci-tpsa' need no download" in text


def test_the_real_file(test_data: Path, tmp_path: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    (tmp_path / "zinc").mkdir()  # not a link: the cache goes here
    (tmp_path / "zinc" / REBUILT).symlink_to(test_data / "zinc" / REBUILT)
    benchmark = load_dataset("zinc", root=tmp_path)
    check_graphs_of(benchmark)
    assert [benchmark.info[what] for what in ("graphs", "nodes", "edges")] == [12_000, 277_864, 597_970]
    assert [benchmark.info[part] for part in ("train", "valid", "test")] == [10_000, 1_000, 1_000]
    assert benchmark.data.x.unique().tolist() == list(range(21))
    assert benchmark.data.edge_attr.unique().tolist() == [1, 2, 3]
