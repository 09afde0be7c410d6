"""Peptides: the benchmark's tables and split, targets scaled as its loader does, files damaged or missing."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import peptides
from graphkit.datasets.molecules import graph_of
from graphkit.datasets.peptides import FUNC, SIZES, STRUCT, Peptides, load_peptides
from graphkit.errors import UserError

CHAINS = [f"{'NCC(=O)' * n}O" for n in range(1, 11)]
SPLIT = {"train": [9, 1, 2, 3, 4, 5], "val": [0, 7], "test": [8, 6]}


def table(source: Peptides) -> str:
    """Ten chains with labels or values."""
    rng = np.random.default_rng(0)
    if source.kind == "binary":
        rows = [f'{i},{text},SEQ,"{[(i + k) % 2 for k in range(10)]}",{i}' for i, text in enumerate(CHAINS)]
        return "\n".join([",smiles,peptide_seq,labels,identifier", *rows]) + "\n"
    names = ["smiles", *source.targets[::-1], "self_dist_matrix"]  # columns go by name, not by place
    values = rng.normal(3, 10, (len(CHAINS), len(source.targets)))
    rows = [",".join([text, *map(str, row), "x"]) for text, row in zip(CHAINS, values.tolist(), strict=True)]
    return "\n".join([",".join(names), *rows]) + "\n"


def write(folder: Path, source: Peptides) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / source.table[0]).write_bytes(gzip.compress(table(source).encode()))
    split = {part: np.array(index) for part, index in SPLIT.items()}
    (folder / source.split[0]).write_bytes(pickle.dumps(split))


def load(root: Path, source: Peptides) -> Benchmark:
    return load_peptides(source, root, published=False)


@pytest.mark.parametrize("source", [FUNC, STRUCT], ids=lambda source: source.name)
def test_tables_become_graphs(
    source: Peptides, tmp_path: Path, check_graphs_of: Callable[[Benchmark], Any]
) -> None:
    write(tmp_path / source.name, source)
    for _ in range(2):  # the second time from the cache
        benchmark = load(tmp_path, source)
        graphs = check_graphs_of(benchmark)
        for number, text in enumerate(CHAINS):
            expected = graph_of(text)
            assert torch.equal(graphs[number].x, expected.x)
            assert torch.equal(graphs[number].edge_index, expected.edge_index)
        assert [part["index"].tolist() for part in benchmark.splits.values()] == list(SPLIT.values())
        assert (benchmark.metric, benchmark.spec.out_channels) == (source.metric, source.width)
        assert list(benchmark.smiles or []) == CHAINS


def test_labels_are_those_of_the_table(tmp_path: Path) -> None:
    write(tmp_path / "peptides_func", FUNC)
    y = load(tmp_path, FUNC).data.y
    assert y.tolist() == [[float((i + k) % 2) for k in range(10)] for i in range(10)]


def test_values_are_scaled_over_all_molecules_as_pandas_does(tmp_path: Path) -> None:
    import io

    import pandas as pd

    write(tmp_path / "peptides-structural" / "raw", STRUCT)
    benchmark = load(tmp_path, STRUCT)
    frame = pd.read_csv(io.StringIO(table(STRUCT)))[list(STRUCT.targets)]
    expected = (frame - frame.mean()) / frame.std()
    assert np.allclose(benchmark.data.y.numpy(), expected.to_numpy(), atol=1e-6)
    assert list(benchmark.target_names or []) == list(STRUCT.targets)
    assert STRUCT.targets[:4] == ("Inertia_mass_a", "Inertia_mass_b", "Inertia_mass_c", "Inertia_valence_a")


def test_the_split_may_lie_beside_the_raw_folder(tmp_path: Path) -> None:
    home = tmp_path / "peptides-functional"
    write(home, FUNC)
    (home / "raw").mkdir()
    (home / FUNC.table[0]).rename(home / "raw" / FUNC.table[0])
    assert load(tmp_path, FUNC).info["graphs"] == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (",smiles,labels\n0,C,[0]\n", r"csv.gz, line 2: a list of 10 labels 0 or 1 was expected"),
        (f',smiles,labels\n0,C,"{[2] * 10}"\n', "line 2: a list of 10 labels"),
        (f',smiles,labels\n0,C,"{[0] * 10}"\n1,C,nothing\n', "line 3: a list of 10 labels"),
        (f',smiles,labels\n0,no,"{[0] * 10}"\n', "line 2: 'no' is no SMILES"),
        (",smile,label\n0,C,[0]\n", "lacks the columns smiles, labels"),
        ("", "is damaged"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path / "peptides-func", FUNC)
    (tmp_path / "peptides-func" / FUNC.table[0]).write_bytes(gzip.compress(content.encode()))
    split = {"train": np.array([], dtype=int), "val": np.array([], dtype=int), "test": np.array([0])}
    (tmp_path / "peptides-func" / FUNC.split[0]).write_bytes(pickle.dumps(split))
    with pytest.raises(UserError, match=message):
        load(tmp_path, FUNC)


def test_values_must_be_finite(tmp_path: Path) -> None:
    write(tmp_path / "peptides-struct", STRUCT)
    path = tmp_path / "peptides-struct" / STRUCT.table[0]
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[3] = ",".join(["C", *[""] * 11, "x"])
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(UserError, match=r"csv.gz, line 4: a target isn't a finite number"):
        load(tmp_path, STRUCT)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": [0], "val": [1]}, "must hold the indices train, val and test"),
        ([1], "must hold the indices train, val and test"),
        ({"train": [0], "val": [0], "test": [1]}, "must name molecules from 0 to 9, each once at most"),
        ({"train": [0], "val": [10], "test": [1]}, "must name molecules from 0 to 9, each once at most"),
        ({"train": [-1], "val": [2], "test": [1]}, "must name molecules from 0 to 9, each once at most"),
        ({"train": ["x"], "val": [2], "test": [1]}, "is damaged"),
    ],
)
def test_wrong_splits_are_named(tmp_path: Path, split: Any, message: str) -> None:
    write(tmp_path / "peptides-func", FUNC)
    (tmp_path / "peptides-func" / FUNC.split[0]).write_bytes(pickle.dumps(split))
    with pytest.raises(UserError, match=message):
        load(tmp_path, FUNC)


@pytest.mark.parametrize("source", [FUNC, STRUCT], ids=lambda source: source.name)
def test_files_other_than_the_published_ones_are_refused(source: Peptides, tmp_path: Path) -> None:
    write(tmp_path / source.name, source)
    with pytest.raises(UserError, match=r"csv.gz isn't the published file: its MD5 differs"):
        load_dataset(source.name, root=tmp_path)


def test_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "there", FUNC)
    where = (tmp_path / "there").as_uri()
    paths = [tmp_path / "there" / name for name in (FUNC.table[0], FUNC.split[0])]
    hashes = [hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in paths]
    monkeypatch.setattr(peptides, "SIZES", {"train": 6, "valid": 2, "test": 2})
    near = replace(
        FUNC,
        table=(FUNC.table[0], f"{where}/{FUNC.table[0]}"),
        split=(FUNC.split[0], f"{where}/{FUNC.split[0]}"),
        md5=(hashes[0], hashes[1]),
    )
    assert load_peptides(near, tmp_path / "fresh").info["graphs"] == 10
    assert (tmp_path / "fresh" / "peptides-func" / "raw" / FUNC.table[0]).is_file()
    monkeypatch.setattr(peptides, "SIZES", SIZES)
    with pytest.raises(UserError, match="isn't the split of peptides-func: it holds"):
        load_peptides(near, tmp_path / "fresh")


@pytest.mark.parametrize("source", [FUNC, STRUCT], ids=lambda source: source.name)
def test_without_network_there_is_one_clear_line(source: Peptides, tmp_path: Path) -> None:
    far = replace(source, table=(source.table[0], "http://127.0.0.1:9"))
    with pytest.raises(UserError) as caught:
        load_peptides(far, tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"put the file at {tmp_path}/{source.name}/raw/{source.table[0]}" in text
    assert "'nci-tpsa' need no download" in text


def test_the_real_table_and_split(test_data: Path) -> None:
    folder = test_data / "peptides_func"
    smiles, y = peptides.read_table(folder / FUNC.table[0], FUNC)
    parts = peptides.read_split(folder / FUNC.split[0], len(smiles))
    assert {name: len(index) for name, index in parts.items()} == SIZES
    assert y.shape == (15_535, 10)
    assert sum(SIZES.values()) == len(smiles)
    for name, md5 in zip((FUNC.table[0], FUNC.split[0]), FUNC.md5, strict=True):
        found = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        assert found == md5
