"""The contract of data sets, and the cache of processed data."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

from graphkit import data
from graphkit.data import Benchmark, DataSpec, Processed, cached, load_dataset, row_normalized
from graphkit.errors import UserError


def made() -> Processed:
    tensors = {
        "x": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        "edges": torch.tensor([[0, 1], [1, 2]]).T,  # not contiguous
        "none": torch.empty(2, 0, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
    }
    return Processed(tensors, {"nodes": 5, "names": ["a", "é"], "pair": (1, 2)})


def same(a: Processed, b: Processed) -> bool:
    return (
        a.info == b.info
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    )


class Builder:
    """Counts how often it is asked."""

    calls = 0

    def __call__(self) -> Processed:
        self.calls += 1
        return made()


def test_cached_builds_once(tmp_path: Path) -> None:
    build = Builder()
    first = cached(tmp_path / "c", "graph/1", build)
    second = cached(tmp_path / "c", "graph/1", build)
    assert build.calls == 1
    assert same(first, second)
    assert first.info["pair"] == [1, 2]
    cached(tmp_path / "c", "graph/2", build)
    assert build.calls == 2
    shown = sorted(p.suffix for p in (tmp_path / "c").iterdir() if not p.name.startswith("."))
    assert shown == [".json", ".json", ".safetensors", ".safetensors"]


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "pickle"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, suffix: str, damage: str) -> None:
    build = Builder()
    cached(tmp_path, "graph", build)
    (path,) = tmp_path.glob(f"graph*.{suffix}")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) - 9] ^= 1
    elif damage == "truncate":
        del content[-7:]
    elif damage == "empty":
        content.clear()
    else:
        content[:] = b"cposix\nsystem\n(S'echo'\ntR."
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="it is built again"):
        again = cached(tmp_path, "graph", build)
    assert build.calls == 2
    assert same(again, cached(tmp_path, "graph", build))
    assert build.calls == 2


def test_a_missing_tensor_file_is_built_again(tmp_path: Path) -> None:
    build = Builder()
    cached(tmp_path, "graph", build)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.warns(UserWarning, match="built again"):
        cached(tmp_path, "graph", build)


def test_another_format_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    cached(tmp_path, "graph", build)
    monkeypatch.setattr(data, "_CACHE_FORMAT", 2)
    with pytest.warns(UserWarning, match="belongs to something else"):
        cached(tmp_path, "graph", build)


def test_an_unwritable_folder_only_disables_caching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    build = Builder()
    with pytest.warns(UserWarning, match="nothing is cached"):
        first = cached(tmp_path / "file", "graph", build)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = cached(tmp_path / "file", "graph", build)
    assert build.calls == 2
    assert same(first, second)

    def full(*_: object) -> None:
        raise UserError("cannot write: the disk is full")

    monkeypatch.setattr(data, "atomic_write", full)
    with pytest.warns(UserWarning, match="disk is full"):
        cached(tmp_path / "ok", "graph", build)


def test_a_failed_build_stores_nothing(tmp_path: Path) -> None:
    def build() -> Processed:
        raise UserError("corrupt")

    with pytest.raises(UserError, match="corrupt"):
        cached(tmp_path, "graph", build)
    assert not list(tmp_path.glob("graph*"))


def build_slowly(folder: Path, start: Any, out: Any) -> None:
    def build() -> Processed:
        with open(folder / "built", "a") as file:
            file.write("x")
        time.sleep(0.3)
        return made()

    torch.set_num_threads(1)  # a forked process has no thread pool
    start.wait()
    out.put(float(cached(folder / "cache", "key", build).tensors["x"].sum()))


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, out = context.Barrier(2), context.Queue()
    workers = [context.Process(target=build_slowly, args=(tmp_path, start, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert out.get(timeout=60) == out.get(timeout=60) == float(made().tensors["x"].sum())
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert (tmp_path / "built").read_text() == "x"


def test_the_manifest_is_json(tmp_path: Path) -> None:
    cached(tmp_path, "a key/with:signs", made)
    manifest = json.loads(next(tmp_path.glob("a-key-with-signs-*.json")).read_text())
    assert manifest["key"] == "a key/with:signs"
    assert len(manifest["sha256"]) == 64


def test_load_dataset_refuses_what_isnt_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown data set 'coar'; did you mean 'cora'"):
        load_dataset("coar", root=tmp_path)
    with pytest.raises(UserError, match="'digits' has no task 'graph'; it serves: link, node"):
        load_dataset("digits", root=tmp_path, task="graph")


def test_spec_and_transforms() -> None:
    offered = DataSpec(num_nodes=3, node_categories=(4, 2)).offered()
    assert {name: size for name, size in offered.items() if size is not None} == {
        "num_nodes": 3,
        "node_categories": (4, 2),
    }
    assert offered.keys() == {field.name for field in fields(DataSpec)}
    x = row_normalized(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    assert x.tolist() == [[0.25, 0.75], [0.0, 0.0]]


def small(**changes: Any) -> Benchmark:
    """A benchmark of four nodes; ``changes`` replace tensors of the graph, a split's edges or the names."""
    parts = {
        "x": torch.arange(8.0).reshape(4, 2),
        "y": torch.tensor([0, 1, 0, 1]),
        "edge_index": torch.tensor([[0, 1], [1, 0]]),
        "held": torch.tensor([[2], [3]]),
        "names": None,
    } | changes
    graph = Data(x=parts["x"], y=parts["y"], edge_index=parts["edge_index"], num_nodes=4)
    splits = {"test": {"pos_edge_label_index": parts["held"]}}
    spec = DataSpec(num_nodes=4)
    return Benchmark(
        "small", "link", graph, splits, spec, "mrr", True, lambda a, b: {}, node_names=parts["names"]
    )


def test_fingerprint_stands_for_the_content() -> None:
    plain = small().fingerprint
    assert re.fullmatch("[0-9a-f]{16}", plain)
    assert small().fingerprint == plain
    assert small(edge_index=torch.tensor([[0, 1, 5], [1, 0, 5]])[:, :2]).fingerprint == plain  # a view
    others = [
        small(x=torch.arange(8.0).reshape(4, 2) + torch.eye(4, 2) * 1e-6),
        small(x=torch.arange(8.0).reshape(2, 4)),
        small(x=None),
        small(y=torch.tensor([0, 1, 1, 1])),
        small(edge_index=torch.tensor([[0, 2], [2, 0]])),
        small(edge_index=torch.empty(2, 0, dtype=torch.int64)),
        small(held=torch.tensor([[2], [1]])),
        small(names=["a", "b", "c", "d"]),
        small(names=["a", "b", "d", "c"]),
    ]
    found = [other.fingerprint for other in others]
    assert len({plain, *found}) == len(others) + 1


def test_fingerprint_of_a_large_tensor_takes_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly spaced ones, the first and the last among them, whatever the order in memory."""
    monkeypatch.setattr(data, "_WHOLE", 1000)
    monkeypatch.setattr(data, "_BLOCKS", 3)
    monkeypatch.setattr(data, "_BLOCK_BYTES", 80)
    x = torch.arange(400.0).reshape(100, 4)
    plain = small(x=x).fingerprint
    assert small(x=x.t().contiguous().t()).fingerprint == plain
    assert small(x=x.reshape(200, 2)).fingerprint != plain
    assert small(x=x.int()).fingerprint != plain
    seen = []
    for at in range(400):
        changed = x.clone()
        changed.view(-1)[at] += 1
        if small(x=changed).fingerprint != plain:
            seen.append(at)
    assert seen == [*range(20), *range(190, 210), *range(380, 400)]


def test_fingerprint_follows_seed_and_options() -> None:
    found = [load_dataset("digits", k=3, seed=seed).fingerprint for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert load_dataset("digits", k=4).fingerprint != found[0]
