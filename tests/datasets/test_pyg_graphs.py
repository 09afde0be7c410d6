"""Superpixels and block models: files in PyG's layout, as graphs and as node labels; damaged or missing."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets import pyg_graphs
from graphkit.datasets.pyg_graphs import SETS, load_hosted
from graphkit.errors import UserError

SIZES = (6, 3, 2)


def parts(name: str) -> list[list[dict[str, torch.Tensor]]]:
    """Random graphs as PyG hosts them."""
    source, g = SETS[name], torch.Generator().manual_seed(0)
    made = []
    for size in SIZES:
        graphs = []
        for number in range(size):
            n, e = 3 + number % 4, 2 + 3 * number
            graph = {"edge_index": torch.randint(n, (2, e), generator=g)}
            if source.pixels:
                graph["x"] = torch.rand(n, source.channels - 2, generator=g)
                graph["pos"] = torch.rand(n, 2, generator=g)
                graph["edge_attr"] = torch.rand(e, generator=g)
                graph["y"] = torch.tensor([number % source.classes])
            else:
                graph["x"] = torch.rand(n, source.channels, generator=g)
                graph["y"] = torch.arange(n) % source.classes
            graphs.append(graph)
        made.append(graphs)
    return made


def write(root: Path, name: str, content: Any = None) -> Path:
    title = SETS[name].title
    path = root / title / "raw" / f"{title}_v2.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parts(name) if content is None else content, path)
    return path


@pytest.mark.parametrize("name", SETS)
def test_files_of_pyg(name: str, tmp_path: Path, check_graphs_of: Callable[[Benchmark], Any]) -> None:
    write(tmp_path, name)
    source = SETS[name]
    for _ in range(2):  # the second time from the cache
        benchmark = load_hosted(name, tmp_path, published=False)
        graphs = check_graphs_of(benchmark)
        expected = [graph for part in parts(name) for graph in part]
        for number, graph in enumerate(expected):
            found = graphs[number]
            x = torch.cat([graph["x"], graph["pos"]], 1) if source.pixels else graph["x"]
            assert torch.equal(found.x, x)
            assert torch.equal(found.edge_index, graph["edge_index"])
            assert found.y.flatten().tolist() == graph["y"].tolist()
            if source.pixels:
                assert torch.equal(found.edge_attr[:, 0], graph["edge_attr"])
        assert graphs.per_node != source.pixels
        assert [part["index"].numel() for part in benchmark.splits.values()] == list(SIZES)
        assert benchmark.spec.in_channels == source.channels
        metric = "accuracy" if source.pixels else "balanced_accuracy"
        assert (benchmark.metric, benchmark.spec.out_channels) == (
            metric,
            {2: 1}.get(source.classes, source.classes),
        )


def test_edges_with_a_column_of_lengths_are_the_same(tmp_path: Path) -> None:
    name = "mnist-superpixels"
    write(tmp_path / "a", name)
    wide = parts(name)
    for part in wide:
        for graph in part:
            graph["edge_attr"] = graph["edge_attr"][:, None]
    write(tmp_path / "b", name, wide)
    first, second = (load_hosted(name, tmp_path / place, published=False) for place in "ab")
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("name", ["mnist-superpixels", "cluster"])
def test_wrong_graphs_are_named(name: str, tmp_path: Path) -> None:
    def broken(key: str, value: torch.Tensor) -> Any:
        made = parts(name)
        made[1][2][key] = value
        return made

    for content, message in (
        (parts(name)[:2], r"it holds \[6, 3\] graphs"),
        (broken("edge_index", torch.tensor([[0], [9]])), "an edge names|graph 8 has"),
        (broken("edge_index", torch.tensor([[0], [-1]])), r"graph 8 has 5 nodes, and an edge \[0, -1\]"),
        (
            broken("x", torch.full((5, SETS[name].channels - 2 * SETS[name].pixels), torch.nan)),
            "x holds values",
        ),
        (broken("y", torch.full_like(parts(name)[1][2]["y"], 10)), r"isn't .*below .* were expected"),
        ([[{"x": torch.zeros(1, 1)}], [], []], "is damaged"),
        ({"x": 3}, "three lists of graphs were expected"),
        ([], "three lists of graphs were expected"),
    ):
        path = write(tmp_path, name, content)
        with pytest.raises(UserError, match=message) as caught:
            load_hosted(name, tmp_path, published=False)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{path.name} is damaged"):
        load_hosted(name, tmp_path, published=False)


def test_other_counts_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "pattern")
    with pytest.raises(
        UserError, match=r"isn't PATTERN: it holds \[6, 3, 2\] graphs, published are \(10000,"
    ):
        load_dataset("pattern", root=tmp_path)


def test_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "cluster")
    with zipfile.ZipFile(tmp_path / "CLUSTER_v2.zip", "w") as archive:
        archive.write(path, path.name)
    monkeypatch.setattr(pyg_graphs, "URL", tmp_path.as_uri())
    assert load_hosted("cluster", tmp_path / "fresh", published=False).info["graphs"] == sum(SIZES)


@pytest.mark.parametrize("name", SETS)
def test_without_network_there_is_one_clear_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyg_graphs, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        load_dataset(name, root=tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"put the file at {tmp_path}/{name}/raw/{SETS[name].title}_v2.zip or unpack it" in text
    assert "'digits-graphs' needs no download" in text
