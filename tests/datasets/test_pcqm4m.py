"""PCQM4Mv2: OGB's table and split, the customary held-out part, files damaged or missing."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import pcqm4m
from graphkit.datasets.molecules import graph_of
from graphkit.datasets.pcqm4m import load_quantum
from graphkit.errors import UserError

CHAINS = [f"{'C' * (1 + n)}O" for n in range(20)]
TRAIN, VALID, HIDDEN = [1, *range(3, 15)], [0, 2, 15], [16, 17, 18, 19]
HELD = 4


def write(home: Path, gaps: list[Any] | None = None, **split: Any) -> None:
    gaps = [round(5 + n / 7, 4) if n not in HIDDEN else "" for n in range(20)] if gaps is None else gaps
    lines = [f"{n},{text},{gap}" for n, (text, gap) in enumerate(zip(CHAINS, gaps, strict=True))]
    (home / "raw").mkdir(parents=True, exist_ok=True)
    table = "\n".join(["idx,smiles,homolumogap", *lines]) + "\n"
    (home / "raw" / "data.csv.gz").write_bytes(gzip.compress(table.encode()))
    parts = {"train": np.array(TRAIN), "valid": np.array(VALID), "test-dev": np.array(HIDDEN)}
    torch.save({**parts, **split}, home / "split_dict.pt")


def load(root: Path, held_out: int = HELD) -> Benchmark:
    return load_quantum(root, held_out, published=False)


@pytest.mark.parametrize("place", ["pcqm4m-v2", "pcqm4mv2", "pcqm4mv2/raw/pcqm4m-v2"])
def test_labelled_molecules_become_graphs(
    place: str, tmp_path: Path, check_graphs_of: Callable[[Benchmark], Any]
) -> None:
    write(tmp_path / place)
    shuffled = np.random.default_rng(42).permutation(TRAIN)
    expected = {"train": shuffled[HELD:], "valid": shuffled[:HELD], "test": VALID}
    for _ in range(2):  # the second time from the cache
        benchmark = load(tmp_path)
        graphs = check_graphs_of(benchmark)
        assert len(graphs) == 16  # those of the hidden test aren't there
        for number, text in enumerate(CHAINS[:16]):
            assert torch.equal(graphs[number].x, graph_of(text).x)
            assert benchmark.data.y[number, 0] == pytest.approx(5 + number / 7, abs=1e-3)
        for part, index in benchmark.splits.items():
            assert index["index"].tolist() == sorted(int(n) for n in expected[part])
        assert list(benchmark.smiles or []) == CHAINS[:16]
        assert (benchmark.metric, benchmark.spec.out_channels) == ("mae", 1)


def test_tensors_serve_as_indices(tmp_path: Path) -> None:
    write(tmp_path / "pcqm4m-v2", train=torch.tensor(TRAIN), valid=torch.tensor(VALID))
    assert load(tmp_path).info["train"] == 9


def test_wrong_files_are_named(tmp_path: Path) -> None:
    home = tmp_path / "pcqm4m-v2"
    gaps: list[Any] = [1.0] * 20
    gaps[5] = ""
    for options, message in (
        ({"gaps": gaps}, r"data.csv.gz, line 7: a molecule of the training or validation part has no gap"),
        ({"valid": np.array([1])}, r"split_dict.pt must name molecules from 0 to 19, each once at most"),
        ({"valid": np.array([20])}, r"split_dict.pt must name molecules from 0 to 19"),
        ({"train": np.array([1, 3])}, r"split_dict.pt names 2 training molecules; 4 are to be held out"),
        ({"gaps": ["x"] * 20}, r"data.csv.gz is damaged"),
    ):
        write(home, **options)
        with pytest.raises(UserError, match=message) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
    torch.save([1], home / "split_dict.pt")
    with pytest.raises(UserError, match="must hold the indices train and valid"):
        load(tmp_path)
    (home / "split_dict.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"split_dict.pt is damaged"):
        load(tmp_path)
    write(home)
    with pytest.raises(UserError, match=r"isn't PCQM4Mv2: its parts hold \(13, 3\), published are"):
        load_quantum(tmp_path, HELD)


def test_the_archive_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "made")
    with zipfile.ZipFile(tmp_path / "pcqm4m-v2.zip", "w") as archive:
        for name in ("raw/data.csv.gz", "split_dict.pt"):
            archive.write(tmp_path / "made" / name, f"pcqm4m-v2/{name}")
    monkeypatch.setattr(pcqm4m, "URL", (tmp_path / "pcqm4m-v2.zip").as_uri())
    assert load(tmp_path / "fresh").info["graphs"] == 16
    monkeypatch.setattr(pcqm4m, "URL", "http://127.0.0.1:9")
    assert load(tmp_path / "fresh").info["graphs"] == 16


def test_without_network_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcqm4m, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        load_dataset("pcqm4mv2", root=tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"put the file at {tmp_path}/pcqm4mv2/raw/pcqm4m-v2.zip or unpack it" in text
    assert "'nci-tpsa' need no download" in text
