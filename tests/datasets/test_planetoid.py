"""Planetoid: foreign pickles that can't run, the published counts, splits without leaks."""

from __future__ import annotations

import collections
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from graphkit import files
from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import planetoid
from graphkit.datasets.planetoid import PARTS, Published, read_planetoid
from graphkit.errors import UserError
from graphkit.sparse import undirected_edges

NODES, KNOWN, TEST = 1700, 600, 1100  # test nodes, of which a few have no row


def write_tiny(folder: Path, protocol: int = 2) -> Published:
    """Writes a random graph in the Planetoid layout, with test nodes that have no row in ``tx``."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)

    def words(n: int) -> csr_matrix:
        return csr_matrix((rng.random((n, 7)) < 0.4).astype(np.float32))

    def classes(n: int) -> np.ndarray[Any, Any]:
        return np.eye(3, dtype=np.int32)[rng.integers(3, size=n)]

    present = np.concatenate(
        [[KNOWN, NODES - 1], rng.permutation(np.arange(KNOWN + 1, NODES - 1))[: TEST - 20]]
    )
    graph = collections.defaultdict(list)
    for a, b in rng.integers(NODES, size=(4000, 2)).tolist():
        graph[a].append(b)
        graph[b].append(a)
    x, y = words(KNOWN), classes(KNOWN)
    parts = {
        "allx": x,
        "ally": y,
        "x": x[:60],
        "y": y[:60],
        "tx": words(len(present)),
        "ty": classes(len(present)),
        "graph": graph,
    }
    for name, value in parts.items():
        content = pickle.dumps(value, protocol).replace(b"scipy.sparse._csr", b"scipy.sparse.csr")
        if protocol < 4:  # lengths are not written, so older names can be put in
            (folder / f"ind.cora.{name}").write_bytes(content)
        else:
            (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(value, protocol))
    (folder / "ind.cora.test.index").write_text("".join(f"{i}\n" for i in present))
    edges = {(min(a, b), max(a, b)) for a in graph for b in graph[a] if a != b}
    return Published(NODES, 7, len(edges), 3)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``raw`` of a small graph that goes by the name of Cora."""
    counts = write_tiny(tmp_path / "cora" / "raw")
    monkeypatch.setitem(planetoid.PUBLISHED, "cora", counts)
    monkeypatch.setattr(planetoid, "SHA256", {})
    return tmp_path / "cora" / "raw"


@pytest.fixture
def real(test_data: Path, tmp_path: Path) -> Path:
    """A root with copies of the real files, where a cache may be written."""
    for name in ("cora", "citeseer"):
        raw = Path("planetoid") / name / "raw"
        shutil.copytree(test_data / raw, tmp_path / raw)
    return tmp_path


def pyg(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Reads the files as PyG does. Its rule for missing test rows goes by the name Citeseer."""
    from torch_geometric.io import read_planetoid_data

    data = read_planetoid_data(str(folder), name)
    return {key: data[key] for key in ("x", "y", "edge_index", "train_mask", "val_mask", "test_mask")}


def equal_to_pyg(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for key in ("x", "y", "edge_index"):
        assert torch.equal(ours[key], theirs[key]), key
        assert ours[key].dtype == theirs[key].dtype
    for key, mask in (("train", "train_mask"), ("valid", "val_mask"), ("test", "test_mask")):
        assert torch.equal(ours[key], torch.nonzero(theirs[mask]).view(-1)), key


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_what_pyg_reads(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "raw"
    counts = write_tiny(folder, protocol)
    monkeypatch.setitem(planetoid.PUBLISHED, "cora", counts)
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in PARTS:  # under the name that makes PyG fill the gaps
        shutil.copy(folder / f"ind.cora.{part}", copy / f"ind.citeseer.{part}")
    if protocol == 2:
        pytest.importorskip("scipy.sparse.csr", reason="PyG itself needs scipy's old name")
    equal_to_pyg(read_planetoid(folder, "cora"), pyg(copy, "citeseer"))


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_real_files_equal_pyg(test_data: Path, name: str) -> None:
    folder = test_data / "planetoid" / name / "raw"
    equal_to_pyg(read_planetoid(folder, name), pyg(folder, name))


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "classes", "sizes"),
    [
        ("cora", 2708, 5278, 1433, 7, [3696, 527, 1055, 1055, 1055]),
        ("citeseer", 3327, 4552, 3703, 6, [3187, 455, 910, 910, 910]),
    ],
)
def test_published_counts(
    real: Path, name: str, nodes: int, edges: int, features: int, classes: int, sizes: list[int]
) -> None:
    link = load_dataset(name, root=real)
    node = load_dataset(name, root=real / "planetoid", task="node")
    assert (link.data.num_nodes, link.spec.in_channels) == (nodes, features)
    assert node.spec.num_classes == classes
    assert undirected_edges(node.data.edge_index, nodes).size(1) == edges
    assert [link.info[part] for part in ("train", "valid", "test", "valid_neg", "test_neg")] == sizes
    assert link.metric == "hits@100"
    assert link.maximize
    assert [node.splits[part]["index"].numel() for part in ("train", "valid", "test")] == [
        20 * classes,
        500,
        1000,
    ]
    assert node.data.x.sum() == link.data.x.sum()


def pairs(index: torch.Tensor) -> set[tuple[int, int]]:
    return {(min(a, b), max(a, b)) for a, b in index.T.tolist()}


def no_leak(root: Path, name: str, split: str) -> None:
    link = load_dataset(name, root=root, seed=1, split=split)
    node = load_dataset(name, root=root, task="node")
    edges, seen = pairs(node.data.edge_index), pairs(link.data.edge_index)
    valid, test = link.splits["valid"], link.splits["test"]
    held = [pairs(part["pos_edge_label_index"]) for part in (valid, test)]
    negatives = [pairs(part["neg_edge_label_index"]) for part in (valid, test)]
    assert seen == pairs(link.splits["train"]["pos_edge_label_index"])
    assert not seen & (held[0] | held[1])
    assert not held[0] & held[1]
    assert seen | held[0] | held[1] == edges
    assert not negatives[0] & negatives[1]
    assert not (negatives[0] | negatives[1]) & edges
    assert all(a != b for a, b in negatives[0] | negatives[1])
    assert link.data.is_undirected()
    joined = torch.cat([node.splits[part]["index"] for part in ("train", "valid", "test")])
    assert torch.unique(joined).numel() == joined.numel()


@pytest.mark.parametrize("split", ["ncn", "random"])
def test_nothing_leaks(tiny: Path, split: str) -> None:
    no_leak(tiny.parents[1], "cora", split)


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_nothing_leaks_from_real_data(real: Path, name: str) -> None:
    no_leak(real, name, "ncn")


def test_the_seed_decides(tiny: Path) -> None:
    root = tiny.parents[1]
    a, b, c = (load_dataset("cora", root=root, seed=seed) for seed in (4, 4, 5))
    for part in ("valid", "test"):
        for key in ("pos_edge_label_index", "neg_edge_label_index"):
            assert torch.equal(a.splits[part][key], b.splits[part][key])
            assert not torch.equal(a.splits[part][key], c.splits[part][key])
    assert a.info["seed"] == 4


def test_folders(tiny: Path, tmp_path: Path) -> None:
    for place in ("Cora/raw", "planetoid/cora/raw", "raw", "."):
        root = tmp_path / "root" / place.replace("/", "_")
        (root / place).mkdir(parents=True, exist_ok=True)
        for path in tiny.iterdir():
            shutil.copy(path, root / place)
        assert load_dataset("cora", root=root, task="node").info["raw"] == str(root / place)


def test_options(tiny: Path) -> None:
    root = tiny.parents[1]
    plain = load_dataset("cora", root=root)
    scaled = load_dataset("cora", root=root, normalize_features=True)
    sums = scaled.data.x.sum(1)
    assert torch.allclose(sums, (plain.data.x.sum(1) > 0).float())
    few = load_dataset("cora", root=root, split="random", valid_ratio=0.05, test_ratio=0.1)
    assert few.info["test"] == few.info["test_neg"] == int(few.info["edges"] * 0.1)


def test_a_split_must_fit_the_task(tiny: Path) -> None:
    root = tiny.parents[1]
    for task, split, allowed in (
        ("link", "nc", "'ncn' or 'random'"),
        ("link", "public", "'ncn' or 'random'"),
        ("node", "ncn", "'public' or 'random'"),
    ):
        with pytest.raises(UserError, match=f"unknown split '{split}': for task '{task}' it is {allowed}"):
            load_dataset("cora", root=root, task=task, split=split)


def test_default_splits(tiny: Path) -> None:
    root = tiny.parents[1]
    for task, split in (("link", "ncn"), ("node", "public")):
        plain, named = (load_dataset("cora", root=root, task=task, split=s) for s in (None, split))
        assert plain.info["split"] == split
        assert plain.fingerprint == named.fingerprint
    link = load_dataset("cora", root=root, split="random")
    assert link.info["valid"] == int(link.info["edges"] * 0.1)


def test_random_node_split(tiny: Path) -> None:
    """60/20/20 of the nodes with a class: those of the test range without a row have none."""
    root = tiny.parents[1]

    def load(**options: Any) -> Benchmark:
        return load_dataset("cora", root=root, task="node", split="random", **options)

    benchmark = load(seed=3)
    labelled = set(range(KNOWN)) | set(
        load_dataset("cora", root=root, task="node").splits["test"]["index"].tolist()
    )
    index = {part: split["index"] for part, split in benchmark.splits.items()}
    assert len(labelled) < NODES
    assert sum(i.numel() for i in index.values()) == len(labelled)
    assert set(torch.cat(list(index.values())).tolist()) == labelled
    assert index["valid"].numel() == index["test"].numel() == int(len(labelled) * 0.2)
    assert (benchmark.info["split"], benchmark.info["seed"]) == ("random", 3)
    assert load(seed=3).fingerprint == benchmark.fingerprint != load(seed=4).fingerprint
    few = load(valid_ratio=0.1, test_ratio=0.3)
    assert (few.info["valid"], few.info["test"]) == (int(len(labelled) * 0.1), int(len(labelled) * 0.3))


def same(a: Benchmark, b: Benchmark) -> bool:
    return all(torch.equal(a.data[key], b.data[key]) for key in ("x", "y", "edge_index"))


def test_pickles_are_read_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny.parents[1]
    first = load_dataset("cora", root=root, task="node")
    assert len(list((root / "cora" / "processed").glob("*.safetensors"))) == 1

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is unpickled again")

    monkeypatch.setattr(planetoid, "_unpickle", refuse)
    again = load_dataset("cora", root=root, task="node")
    assert same(first, again)
    assert all(torch.equal(first.splits[part]["index"], again.splits[part]["index"]) for part in first.splits)
    assert load_dataset("cora", root=root).info["edges"] == first.info["edges"]
    with open(tiny / "ind.cora.x", "ab") as file:
        file.write(b".")
    with pytest.raises(AssertionError, match="unpickled again"):  # the file has changed
        load_dataset("cora", root=root)


def test_a_root_that_cannot_be_written_works_without_a_cache(tiny: Path) -> None:
    root = tiny.parents[1]
    (root / "cora" / "processed").write_text("in the way")
    with pytest.warns(UserWarning, match="nothing is cached"):
        first = load_dataset("cora", root=root)
    assert same(first, load_dataset("cora", root=root))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("part", ["x", "graph", "ally"])
@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Payload(), 0),
        pickle.dumps(Payload(), 4),
        pickle.dumps({0: [Payload()]}, 2),
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cnumpy.core.multiarray\nscalar.",
        b"cbuiltins\ngetattr\n.",
        b"ccollections\ndefaultdict.__init__\n.",
    ],
)
def test_a_malicious_pickle_does_nothing(
    tiny: Path, part: str, content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tiny / f"ind.cora.{part}").write_bytes(content)
    with pytest.raises(UserError, match=rf"ind.cora.{part} isn't a Planetoid") as caught:
        load_dataset("cora", root=tiny.parents[1])
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "other"])
def test_damaged_files_are_named(tiny: Path, part: str, damage: str) -> None:
    path = tiny / f"ind.cora.{part}"
    content = path.read_bytes()
    other = {"empty": b"", "truncated": content[: len(content) // 2], "text": b"<!DOCTYPE html>"}
    path.write_bytes(other.get(damage, pickle.dumps("a word", 2)))
    with pytest.raises(UserError) as caught:
        load_dataset("cora", root=tiny.parents[1], task="node")
    assert "cora" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_sparse_parts_are_refused(tiny: Path) -> None:
    """Indices out of range would have scipy read other memory."""
    good = csr_matrix(np.eye(3, dtype=np.float32))
    for name, value in (
        ("indices", [0, 1, 99]),
        ("indptr", [0, 3, 1, 3]),
        ("_shape", (2, 3)),
        ("data", [1.0]),
    ):
        bad = good.copy()
        bad.__dict__[name] = np.array(value) if name != "_shape" else value
        (tiny / "ind.cora.tx").write_bytes(pickle.dumps(bad, 2))
        with pytest.raises(UserError, match="tx isn't a Planetoid matrix"):
            read_planetoid(tiny, "cora")


def test_other_counts_are_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planetoid.PUBLISHED, "cora", Published(2708, 1433, 5278, 7))
    with pytest.raises(UserError, match=r"isn't cora: it holds .*nodes=1700.* published are .*nodes=2708"):
        load_dataset("cora", root=tiny.parents[1])


def test_files_in_place_that_differ_are_reported(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planetoid, "SHA256", {"ind.cora.x": "0" * 64})
    with pytest.warns(UserWarning, match=r"ind.cora.x differs from the published file"):
        load_dataset("cora", root=tiny.parents[1])


def test_offline_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planetoid, "URL", "http://127.0.0.1:9")
    for name in ("cora", "pubmed"):
        with pytest.raises(UserError) as caught:
            load_dataset(name, root=tmp_path)
        text = str(caught.value)
        assert "\n" not in text
        assert (
            f"put the file at {tmp_path / name / 'raw'}/ind.{name}.x (and the rest of ind.{name}.*)" in text
        )
        assert "'digits', which needs no download" in text
        assert not list(tmp_path.rglob("ind.*"))


def test_a_missing_file_is_fetched(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planetoid, "URL", tiny.as_uri())
    hashes = {path.name: files.sha256(path) for path in tiny.iterdir()}
    monkeypatch.setattr(planetoid, "SHA256", hashes)
    benchmark = load_dataset("cora", root=tmp_path / "new")
    assert benchmark.info["raw"] == str(tmp_path / "new" / "cora" / "raw")
    (tmp_path / "new" / "cora" / "raw" / "ind.cora.y").unlink()
    load_dataset("cora", root=tmp_path / "new")
    monkeypatch.setattr(planetoid, "SHA256", {**hashes, "ind.cora.x": "0" * 64})
    with pytest.raises(UserError, match="not the known file"):
        load_dataset("cora", root=tmp_path / "newer")


def load_once(root: Path, start: Any, out: Any) -> None:
    torch.set_num_threads(1)  # a forked process has no thread pool
    start.wait()
    out.put(int(load_dataset("cora", root=root).splits["test"]["neg_edge_label_index"].sum()))


def test_two_processes_at_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planetoid, "URL", tiny.as_uri())
    context = multiprocessing.get_context("fork")
    start, out = context.Barrier(2), context.Queue()
    workers = [context.Process(target=load_once, args=(tmp_path / "new", start, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert out.get(timeout=60) == out.get(timeout=60)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert not list((tmp_path / "new").rglob("*.part"))
