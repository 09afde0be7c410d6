"""Sets of the TU collection: against PyG's reader, cross-validation, files damaged or missing."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import tu
from graphkit.datasets.tu import LOADERS, SETS, load_collected
from graphkit.errors import UserError
from graphkit.registry import DATASETS

COUNT = 30


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Thirty graphs with everything that the layout knows, in ``tmp_path/mutag/raw``."""
    folder = tmp_path / "mutag" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 7, COUNT)
    sizes[4] = 1  # no edges there
    first = np.concatenate([[0], sizes.cumsum()])
    edges, labels = [], []
    for size, start in zip(sizes, first, strict=False):
        pairs = {(int(min(pair)), int(max(pair))) for pair in rng.integers(0, size, (5, 2))}
        for a, b in sorted(pairs, reverse=True):
            if size > 1:
                label = int(rng.integers(3, 6))
                edges += [(start + a + 1, start + b + 1), (start + b + 1, start + a + 1)]
                labels += [label, label]
    edges.append(edges[0])
    labels.append(labels[0])  # a repetition
    files = {
        "A": [f"{a}, {b}" for a, b in edges],
        "graph_indicator": np.repeat(np.arange(COUNT) + 1, sizes),
        "graph_labels": np.where(np.arange(COUNT) % 3 == 0, -1, 1),
        "node_labels": rng.integers(1, 4, first[-1]),
        "edge_labels": labels,
        "node_attributes": [f"{a:.3f}, {b:.3f}" for a, b in rng.normal(size=(first[-1], 2))],
    }
    for name, lines in files.items():
        (folder / f"MUTAG_{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def load(root: Path, seed: int = 0, fold: int | None = None, **options: Any) -> Benchmark:
    return load_collected("mutag", root, seed, fold, **options)


def test_graphs_are_those_of_pyg(raw: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    from torch_geometric.io import read_tu_data

    theirs, slices, _ = read_tu_data(str(raw), "MUTAG")
    for attributes in (False, True, False):
        benchmark = load(raw.parents[1], attributes=attributes)
        graphs = check_graphs_of(benchmark)
        data = graphs.data
        assert torch.equal(data.edge_index, theirs.edge_index.to(data.edge_index.dtype))
        assert torch.equal(data.ptr, slices["x"])
        assert torch.equal(data.edge_ptr[: len(slices["edge_index"])], slices["edge_index"])
        assert torch.equal(data.y, theirs.y)
        kinds = torch.nn.functional.one_hot(data.edge_attr[:, 0].long(), 3)
        # Of a repeated edge the first label counts; PyG adds them up.
        assert torch.equal(kinds > 0, theirs.edge_attr > 0)
        if attributes:
            assert torch.equal(data.x, theirs.x)
            assert benchmark.spec.in_channels == 5
        else:
            assert torch.equal(torch.nn.functional.one_hot(data.x[:, 0].long(), 3).float(), theirs.x[:, 2:])
            assert benchmark.spec.node_categories == (3,)
        assert benchmark.spec.edge_categories == (3,)
        assert benchmark.spec.out_channels == 2


def test_graphs_without_labels_have_no_features(
    raw: Path, check_graphs_of: Callable[[Benchmark], Any]
) -> None:
    for name in ("node_labels", "edge_labels", "node_attributes"):
        (raw / f"MUTAG_{name}.txt").unlink()
    benchmark = load(raw.parents[1])
    check_graphs_of(benchmark)
    assert benchmark.data.x is None
    assert benchmark.spec.offered() == {**dict.fromkeys(benchmark.spec.offered()), "out_channels": 2}
    with pytest.raises(UserError, match=r"MUTAG has no attributes of nodes: .* no MUTAG_node_attributes.txt"):
        load(raw.parents[1], attributes=True)


def test_folds_test_every_graph_once(raw: Path) -> None:
    tested = [load(raw.parents[1], fold=fold).splits["test"]["index"] for fold in range(10)]
    assert torch.equal(torch.cat(tested).sort().values, torch.arange(COUNT))
    plain = load(raw.parents[1])
    assert [plain.info[part] for part in ("train", "valid", "test")] == [24, 3, 3]
    assert "fold" not in plain.info
    with pytest.raises(UserError, match="fold is 10; it must lie between 0 and 9"):
        load(raw.parents[1], fold=10)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("A", "1, 2\n1, 999\n", r"MUTAG_A.txt names nodes from 1 to 999"),
        ("A", "1, 2\n1, 12\n", r"MUTAG_A.txt: an edge joins two graphs"),
        ("A", "1, 2, 3\n", "has 1 rows of 3"),
        ("A", "a, b\n", r"MUTAG_A.txt is damaged"),
        ("A", "", r"MUTAG_A.txt is damaged"),
        ("graph_indicator", "1\n3\n2\n", "must hold ascending numbers from 1 to 30"),
        ("graph_indicator", "1\n31\n", "must hold ascending numbers from 1 to 30"),
        ("node_labels", "1\n", r"MUTAG_node_labels.txt has 1 rows"),
        ("edge_labels", "1\n", r"MUTAG_edge_labels.txt has 1 rows"),
        ("node_attributes", "nan\n", r"MUTAG_node_attributes.txt has 1 rows"),
    ],
)
def test_wrong_files_are_named(raw: Path, name: str, content: str, message: str) -> None:
    (raw / f"MUTAG_{name}.txt").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load(raw.parents[1])
    assert "\n" not in str(caught.value)


def test_other_counts_are_refused(raw: Path) -> None:
    with pytest.raises(
        UserError, match="isn't MUTAG: it holds 30 graphs of 2 classes, published are 188 of 2"
    ):
        load_dataset("mutag", root=raw.parents[1])


def test_files_are_fetched(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "MUTAG.zip", "w") as archive:
        for path in raw.iterdir():
            archive.write(path, f"MUTAG/{path.name}")
        archive.writestr("MUTAG/README.txt", "x")
    monkeypatch.setattr(tu, "URL", tmp_path.as_uri())
    fetched = load(tmp_path / "fresh")
    assert fetched.fingerprint == load(raw.parents[1]).fingerprint
    assert fetched.spec.edge_categories == (3,)


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_registered_and_clear_without_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = DATASETS.get(name)
    assert entry.target is LOADERS[name]
    assert entry.tasks == ("graph",)
    assert entry.summary.startswith(f"{SETS[name].title}: {SETS[name].graphs:,} graphs")
    monkeypatch.setattr(tu, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        load_dataset(name, root=tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"put the file at {tmp_path}/{name}/raw/{SETS[name].title}.zip or unpack it" in text
    assert "'nci-tpsa' need no download" in text
