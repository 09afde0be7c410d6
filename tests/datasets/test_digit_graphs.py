"""Digits as graphs of pixels: against a plain loop, without a download."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphkit.data import Benchmark, load_dataset
from graphkit.datasets.digit_graphs import pixel_graphs
from graphkit.errors import UserError


@given(st.integers(2, 4), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 99))
def test_pixels_against_a_plain_loop(side: int, count: int, diagonals: bool, inked: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = (rng.integers(0, 3, (count, side, side)) / 2).astype(np.float32)
    made = pixel_graphs(images, diagonals, inked)
    for at, image in enumerate(images):
        places = [(r, c) for r in range(side) for c in range(side) if image[r, c] > 0 or not inked]
        x = [[float(image[r, c]), r / (side - 1), c / (side - 1)] for r, c in places]
        edges = {
            (i, j): math.dist(a, b)
            for i, a in enumerate(places)
            for j, b in enumerate(places)
            if 0 < math.dist(a, b) < (1.5 if diagonals else 1.1)
        }
        nodes, part = slice(*made["ptr"][at : at + 2]), slice(*made["edge_ptr"][at : at + 2])
        assert made["x"][nodes].tolist() == [pytest.approx(row) for row in x]
        found = [(int(i), int(j)) for i, j in made["edge_index"][:, part].T]
        assert found == sorted(edges)
        assert made["edge_attr"][part, 0].tolist() == [pytest.approx(edges[pair]) for pair in found]


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, (58_736, 319_784)),
        ({"diagonals": False, "inked": False}, (1797 * 64, 1797 * 224)),
        ({"inked": False}, (1797 * 64, 1797 * 420)),
    ],
)
def test_digits_need_no_download(
    tmp_path: Path,
    options: dict[str, Any],
    counts: tuple[int, int],
    check_graphs_of: Callable[[Benchmark], Any],
) -> None:
    benchmark = load_dataset("digits-graphs", root=tmp_path, **options)
    assert len(check_graphs_of(benchmark)) == 1797
    assert (benchmark.info["nodes"], benchmark.info["edges"]) == counts
    spec = benchmark.spec
    assert (spec.in_channels, spec.edge_channels, spec.out_channels) == (3, 1, 10)
    index = [part["index"] for part in benchmark.splits.values()]
    assert [part.numel() for part in index] == [1259, 179, 359]
    share = torch.stack([torch.bincount(benchmark.data.y[part]) / part.numel() for part in index])
    assert float((share - share[0]).abs().max()) < 0.01
    assert not list(tmp_path.iterdir())


def test_the_split_follows_the_seed(tmp_path: Path) -> None:
    first, again, other = (load_dataset("digits-graphs", root=tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert not torch.equal(first.splits["test"]["index"], other.splits["test"]["index"])
    with pytest.raises(UserError, match="must be positive"):
        load_dataset("digits-graphs", root=tmp_path, test_ratio=1.0)
