"""Splits: equal to the reference bit by bit, disjoint, without leaks, a function of the seed."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected, train_test_split_edges

from graphkit.datasets import splits
from graphkit.datasets.splits import (
    LinkSplit,
    link_benchmark,
    ncn_link_split,
    random_link_split,
    random_node_split,
    scaffold_split,
    stratified_folds,
    stratified_node_split,
)
from graphkit.errors import UserError
from graphkit.sparse import undirected_edges


def random_edges(num_nodes: int, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return undirected_edges(torch.randint(num_nodes, (2, count), generator=generator), num_nodes)


def keys(pairs: Tensor) -> set[tuple[int, int]]:
    return set(map(tuple, pairs.T.tolist()))


def check(split: LinkSplit, edges: Tensor) -> None:
    """No pair twice; positives are all edges; negatives are none, and no loops."""
    parts = [keys(part) for part in vars(split).values()]
    assert [len(part) for part in parts] == list(split.counts().values())
    assert sum(map(len, parts)) == len(set.union(*parts))
    positives = keys(split.train) | keys(split.valid) | keys(split.test)
    assert positives == keys(edges)
    for part in vars(split).values():
        assert (part[0] < part[1]).all()
        assert part.dtype == torch.int64


@pytest.mark.parametrize("seed", [0, 1, 9, 12345])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000])
def test_the_stream_is_torchs(seed: int, n: int) -> None:
    """Successive permutations, whole or their first entries, as after ``torch.manual_seed``."""
    torch.manual_seed(seed)
    whole, first, last = torch.randperm(n), torch.randperm(20 * n)[:n], torch.randperm(n)
    stream = splits._TorchStream(seed)
    assert torch.equal(stream.permutation(n), whole)
    assert torch.equal(stream.permutation(20 * n, n), first)
    assert torch.equal(stream.permutation(n), last)


def reference(edges: Tensor, num_nodes: int, seed: int) -> list[Tensor]:
    """The steps of the paper's protocol with PyG's own function and torch's global generator."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = train_test_split_edges(Data(edge_index=to_undirected(edges), num_nodes=num_nodes), 0.2, 0.2)
    pool = data.val_pos_edge_index
    valid = int(pool.size(1) * 0.1 / 0.2)
    pool = pool[:, torch.randperm(pool.size(1))]
    parts = [
        torch.cat([data.train_pos_edge_index, pool[:, :-valid]], 1),
        pool[:, -valid:],
        data.test_pos_edge_index,
        data.val_neg_edge_index,
        data.test_neg_edge_index,
    ]
    return [undirected_edges(part, num_nodes) for part in parts]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_nodes", "count"), [(60, 300), (301, 1000), (700, 2000)])
def test_ncn_split_is_the_references(num_nodes: int, count: int, seed: int) -> None:
    edges = random_edges(num_nodes, count, seed)
    expected = reference(edges, num_nodes, seed)
    before = torch.random.get_rng_state()
    split = ncn_link_split(edges, num_nodes, seed)
    assert torch.equal(before, torch.random.get_rng_state())
    for part, want in zip(vars(split).values(), expected, strict=True):
        assert torch.equal(part, want)
    check(split, edges)


def test_ncn_split_of_large_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "_RANDPERM_LIMIT", 1000)
    edges = random_edges(200, 1000)
    a, b = ncn_link_split(edges, 200, 3), ncn_link_split(edges, 200, 3)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))
    check(a, edges)


def test_random_split() -> None:
    edges = random_edges(200, 1000)
    m = edges.size(1)
    a, b, c = (random_link_split(edges, 200, seed, 0.15, 0.3) for seed in (1, 1, 2))
    check(a, edges)
    valid, test = math.floor(m * 0.15), math.floor(m * 0.3)
    counts = {"valid": valid, "test": test, "valid_neg": valid, "test_neg": test, "train": m - valid - test}
    assert a.counts() == counts
    assert torch.equal(a.test_neg, b.test_neg)
    assert torch.equal(a.train, b.train)
    assert not torch.equal(a.train, c.train)
    assert not torch.equal(a.test_neg, c.test_neg)


def test_what_cant_be_split() -> None:
    few = random_edges(10, 4)
    with pytest.raises(UserError, match="at least 10 edges; this graph has"):
        ncn_link_split(few, 10, 0)
    with pytest.raises(UserError, match="edges are too few"):
        random_link_split(few, 10, 0, 0.1, 0.2)
    for ratios in ((0.0, 0.2), (0.5, 0.5), (-0.1, 0.2), (0.1, math.nan)):
        with pytest.raises(UserError, match="must be positive"):
            random_link_split(random_edges(50, 200), 50, 0, *ratios)
        with pytest.raises(UserError, match="must be positive"):
            stratified_node_split(torch.zeros(20), 0, *ratios)
    full = torch.combinations(torch.arange(12)).T
    for split in (ncn_link_split, random_link_split):
        with pytest.raises(UserError, match="0"):
            split(full, 12, 0)
    with pytest.raises(UserError, match="the train split would be empty"):
        stratified_node_split(torch.tensor([-1, -1]), 0)
    with pytest.raises(UserError, match="the valid split would be empty"):
        stratified_node_split(torch.arange(5), 0)


def test_stratified_nodes() -> None:
    y = torch.tensor([0] * 50 + [1] * 30 + [-1] * 20)[torch.randperm(100)]
    a, b, c = (stratified_node_split(y, seed) for seed in (1, 1, 2))
    assert [int((y[a[name]["index"]] == label).sum()) for name in a for label in (0, 1)] == [
        30,
        18,
        10,
        6,
        10,
        6,
    ]
    joined = torch.cat([a[name]["index"] for name in ("train", "valid", "test")])
    assert torch.equal(joined.sort().values, torch.nonzero(y >= 0).view(-1))
    assert all(torch.equal(a[name]["index"], b[name]["index"]) for name in a)
    assert not torch.equal(a["train"]["index"], c["train"]["index"])


def test_random_nodes() -> None:
    nodes = torch.arange(0, 300, 3)
    a, b, c = (random_node_split(nodes, seed) for seed in (1, 1, 2))
    assert [a[part]["index"].numel() for part in ("train", "valid", "test")] == [60, 20, 20]
    assert torch.equal(torch.cat([part["index"] for part in a.values()]).sort().values, nodes)
    for part in a:
        assert torch.equal(a[part]["index"], a[part]["index"].sort().values)
        assert torch.equal(a[part]["index"], b[part]["index"])
        assert not torch.equal(a[part]["index"], c[part]["index"])
    sizes = random_node_split(nodes, 0, valid_ratio=0.05, test_ratio=0.5)
    assert [part["index"].numel() for part in sizes.values()] == [45, 5, 50]
    before = torch.get_rng_state()
    random_node_split(nodes, 0)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(UserError, match="leave some to train"):
        random_node_split(nodes, 0, 0.5, 0.5)
    with pytest.raises(UserError, match=r"4 nodes are too few for shares of 0\.2"):
        random_node_split(nodes[:4], 0)


@given(st.lists(st.integers(0, 3), min_size=10, max_size=60), st.integers(3, 10), st.integers(0, 3))
def test_every_item_is_tested_in_one_fold(labels: list[int], folds: int, seed: int) -> None:
    y = torch.tensor(labels)
    parts = [stratified_folds(y, folds, fold, seed) for fold in range(folds)]
    tested = torch.cat([part["test"]["index"] for part in parts])
    assert torch.equal(tested.sort().values, torch.arange(len(labels)))
    for fold, part in enumerate(parts):
        joined = torch.cat([index["index"] for index in part.values()])
        assert torch.equal(joined.sort().values, torch.arange(len(labels)))
        assert torch.equal(part["valid"]["index"], parts[(fold + 1) % folds]["test"]["index"])
        for label in set(labels):
            share = labels.count(label) / folds
            assert abs(int((y[part["test"]["index"]] == label).sum()) - share) < 1


def test_folds_are_drawn_by_the_seed_and_checked() -> None:
    y = torch.arange(40) % 2
    a, b, c = (stratified_folds(y, 5, 2, seed)["test"]["index"] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    for fold in (-1, 5):
        with pytest.raises(UserError, match=f"fold is {fold}; it must lie between 0 and 4"):
            stratified_folds(y, 5, fold, 0)
    with pytest.raises(UserError, match="3 graphs are too few for 5 folds"):
        stratified_folds(y[:3], 5, 0, 0)


def naive_scaffold_split(scaffolds: list[int], valid: float, test: float) -> dict[str, list[int]]:
    """The rule as MoleculeNet's papers tell it, on lists."""
    groups: dict[int, list[int]] = {}
    for number, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(number)
    n = len(scaffolds)
    parts: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for group in sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True):
        if len(parts["train"]) + len(group) <= round(n * (1 - valid - test), 6):
            parts["train"] += group
        elif len(parts["train"]) + len(parts["valid"]) + len(group) <= round(n * (1 - test), 6):
            parts["valid"] += group
        else:
            parts["test"] += group
    return parts


@given(st.lists(st.integers(0, 12), max_size=60), st.sampled_from([(0.1, 0.1), (0.25, 0.25), (0.3, 0.1)]))
def test_scaffolds_against_the_plain_rule(scaffolds: list[int], shares: tuple[float, float]) -> None:
    expected = naive_scaffold_split(scaffolds, *shares)
    if not all(expected.values()):
        with pytest.raises(UserError, match=r"leave no (train|valid|test) part"):
            scaffold_split(torch.tensor(scaffolds, dtype=torch.int64), *shares)
        return
    found = scaffold_split(torch.tensor(scaffolds), *shares)
    assert {name: part["index"].tolist() for name, part in found.items()} == {
        name: sorted(part) for name, part in expected.items()
    }


def test_link_benchmark() -> None:
    edges = random_edges(100, 600)
    split = random_link_split(edges, 100, 0)
    benchmark = link_benchmark("x", split, 100, metric="hits@50", info={"seed": 0})
    assert torch.equal(benchmark.data.edge_index, to_undirected(split.train))
    assert benchmark.spec.offered()["in_channels"] is None
    assert benchmark.data.num_nodes == 100
    assert benchmark.info == {"seed": 0, **split.counts()}
    assert set(benchmark.splits["train"]) == {"pos_edge_label_index"}
    valid = benchmark.splits["valid"]
    result = benchmark.evaluator(
        torch.randn(valid["pos_edge_label_index"].size(1)), torch.randn(valid["neg_edge_label_index"].size(1))
    )
    assert benchmark.metric in result
    with pytest.raises(UserError, match="hits@100 needs at least 100 negatives"):
        link_benchmark("x", split, 100)
