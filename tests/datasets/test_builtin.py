"""Digits: exact neighbours, no download, splits without leaks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphkit.data import load_dataset
from graphkit.datasets.builtin import nearest_neighbours
from graphkit.errors import UserError


@given(st.integers(2, 12), st.integers(0, 5), st.data())
def test_nearest_neighbours_against_a_sort(n: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n - 1))
    points = torch.randint(3, (n, 2), generator=torch.Generator().manual_seed(seed))  # many ties and twins
    rows = points.tolist()
    expected = set()
    for i, a in enumerate(rows):
        near = sorted(
            (sum((p - q) ** 2 for p, q in zip(a, b, strict=True)), j) for j, b in enumerate(rows) if j != i
        )
        expected |= {(min(i, j), max(i, j)) for _, j in near[:k]}
    assert set(map(tuple, nearest_neighbours(points, k).T.tolist())) == expected


def pairs(index: torch.Tensor) -> set[tuple[int, int]]:
    return {(min(a, b), max(a, b)) for a, b in index.T.tolist()}


def test_links(tmp_path: Path) -> None:
    link, other = load_dataset("digits", root=tmp_path), load_dataset("digits", root=tmp_path, seed=1)
    node = load_dataset("digits", root=tmp_path, task="node")
    edges, seen = pairs(node.data.edge_index), pairs(link.data.edge_index)
    held = [pairs(link.splits[part]["pos_edge_label_index"]) for part in ("valid", "test")]
    free = [pairs(link.splits[part]["neg_edge_label_index"]) for part in ("valid", "test")]
    assert seen | held[0] | held[1] == edges
    assert len(seen) + len(held[0]) + len(held[1]) == len(edges) == 9929
    assert not (free[0] | free[1]) & edges
    assert not free[0] & free[1]
    assert (len(held[0]), len(held[1])) == (len(free[0]), len(free[1])) == (992, 1985)
    assert link.data.is_undirected()
    assert not torch.equal(link.data.edge_index, other.data.edge_index)
    assert torch.equal(link.data.edge_index, load_dataset("digits", root=tmp_path).data.edge_index)
    assert (link.metric, link.spec.num_nodes, link.spec.in_channels) == ("hits@100", 1797, 64)
    assert (float(link.data.x.min()), float(link.data.x.max())) == (0.0, 1.0)
    assert not list(tmp_path.iterdir())


def test_nodes(tmp_path: Path) -> None:
    node = load_dataset("digits", root=tmp_path, task="node")
    index = {name: part["index"] for name, part in node.splits.items()}
    assert {name: len(part) for name, part in index.items()} == {"train": 1079, "valid": 359, "test": 359}
    assert torch.equal(torch.cat(list(index.values())).sort().values, torch.arange(1797))
    share = torch.stack([torch.bincount(node.data.y[part]) / len(part) for part in index.values()])
    assert float((share - share[0]).abs().max()) < 0.01
    assert (node.metric, node.spec.num_classes) == ("accuracy", 10)


def test_options(tmp_path: Path) -> None:
    few = load_dataset("digits", root=tmp_path, k=3, valid_ratio=0.2)
    assert few.info["edges"] < 5000
    assert few.info["valid"] == few.info["valid_neg"] == int(few.info["edges"] * 0.2)
    for k in (0, 1797):
        with pytest.raises(UserError, match=f"k is {k}; it must lie between 1 and 1796"):
            load_dataset("digits", root=tmp_path, k=k)
