"""Paths to answers and their weights, against every walk there is."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit.tasks.kgqa_paths import Walks


def step(iteration: int, prior: list[float], forward: list[float], inverse: list[float]) -> Any:
    values = [torch.tensor(v, dtype=torch.float64) for v in (prior, forward, inverse)]
    return SimpleNamespace(
        iteration=iteration, prior=values[0], prob=values[0], forward=values[1], inverse=values[2]
    )


def naive(edges: Tensor, n: int, seeds: list[int], layers: list[Any]) -> dict[tuple[int, ...], float]:
    """Returns the weight of each path, by the entities on it, from all walks one after the other."""
    sent = []
    for layer in layers:
        between: dict[tuple[int, int], float] = defaultdict(float)
        for f, (a, b) in enumerate(edges.t().tolist()):
            between[a, b] += float(layer.forward[f])
            between[b, a] += float(layer.inverse[f])
        rest = 1 - float(layer.forward.sum() + layer.inverse.sum())
        for v in range(n):
            own = rest * float(layer.prior[v] / layer.prior.sum())
            between[v, v] = own + sum(w for (a, _), w in list(between.items()) if a == v)
        sent.append(between)
    weights: dict[tuple[int, ...], float] = defaultdict(float)
    for walk in product(range(n), repeat=len(layers) + 1):
        if walk[0] in seeds:
            weight = 1.0
            for between, pair in zip(sent, pairwise(walk), strict=True):
                weight *= between.get(pair, 0.0)
            path = tuple(v for i, v in enumerate(walk) if i == 0 or v != walk[i - 1])
            weights[path] += weight
    total: dict[int, float] = defaultdict(float)
    for path, weight in weights.items():
        total[path[-1]] += weight
    return {path: weight / total[path[-1]] for path, weight in weights.items() if weight > 0}


@st.composite
def told(draw: st.DrawFn) -> tuple[Tensor, int, list[int], list[Any]]:
    n, facts = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    entity = st.integers(0, n - 1)
    edges = torch.tensor([draw(st.lists(entity, min_size=facts, max_size=facts)) for _ in range(2)])
    seeds = draw(st.lists(entity, min_size=1, max_size=2, unique=True))
    amount = st.sampled_from([0.0, 0.5, 1.0, 3.0])
    steps = []
    depth = draw(st.integers(1, 3))
    for iteration, layer in product(range(draw(st.integers(1, 2))), range(depth)):
        raw = draw(st.lists(amount, min_size=2 * facts + 1, max_size=2 * facts + 1))
        raw = [x / (sum(raw) + 1) for x in raw]
        prior = (
            [float(v in seeds) for v in range(n)]
            if layer == 0
            else draw(st.lists(st.sampled_from([0.1, 1.0]), min_size=n, max_size=n))
        )
        steps.append(step(iteration, prior, raw[:facts], raw[facts : 2 * facts]))
    return edges, n, seeds, steps


@settings(max_examples=40)
@given(told())
def test_weights_are_those_of_all_walks(case: tuple[Tensor, int, list[int], list[Any]]) -> None:
    edges, n, seeds, steps = case
    walks = Walks(edges, n, seeds, steps)
    count = 1 + max(s.iteration for s in steps)
    expected = [naive(edges, n, seeds, [s for s in steps if s.iteration == t]) for t in range(count)]
    for target in set(range(n)) - set(seeds):
        reasons = walks.reasons(target)
        reachable = any(path[-1] == target for paths in expected for path in paths)
        assert not reachable or reasons
        for reason in reasons:
            assert reason.nodes[-1] == target
            assert reason.nodes[0] in seeds
            assert reason.weights == pytest.approx([paths.get(reason.nodes, 0.0) for paths in expected])
            for (fact, along), pair in zip(reason.moves, pairwise(reason.nodes), strict=True):
                ends = tuple(edges[:, fact].tolist())
                assert pair == (ends if along else ends[::-1])
        last = [reason.weights[-1] for reason in reasons]
        assert last == sorted(last, reverse=True)


def test_the_weightiest_path_comes_first() -> None:
    # 0 -> 1 -> 3 and 0 -> 2 -> 3
    edges = torch.tensor([[0, 0, 1, 2], [1, 2, 3, 3]])
    steps = [
        step(0, [1, 0, 0, 0], [0.6, 0.4, 0, 0], [0.0] * 4),
        step(0, [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0.0] * 4),
    ]
    first, second = Walks(edges, 4, [0], steps).reasons(3) + Walks(edges, 4, [0], steps[:0]).reasons(3)
    assert (first.nodes, first.moves) == ((0, 1, 3), ((0, True), (2, True)))
    assert first.weights == pytest.approx((0.6,))
    assert (second.nodes, second.weights) == ((0, 1, 3), ())


def test_the_fact_that_most_was_sent_along_stands_for_its_parallels() -> None:
    edges = torch.tensor([[0, 0, 1], [1, 1, 0]])
    (reason,) = Walks(edges, 2, [0], [step(0, [1, 0], [0.1, 0.2, 0.0], [0, 0, 0.6])]).reasons(1)
    assert reason.moves == ((2, False),)
    assert reason.weights == pytest.approx((1.0,))


def test_what_no_walk_reaches_has_the_shortest_path_without_weight() -> None:
    edges = torch.tensor([[0, 2, 4], [1, 1, 4]])
    walks = Walks(edges, 5, [0], [step(0, [1, 0, 0, 0, 0], [0.5, 0, 0], [0, 0, 0])])
    (reason,) = walks.reasons(2)
    assert (reason.nodes, reason.moves, reason.weights) == ((0, 1, 2), ((0, True), (1, False)), (0.0,))
    assert walks.reasons(3) == walks.reasons(4) == walks.reasons(0) == []


def test_a_subgraph_without_facts_has_no_paths() -> None:
    walks = Walks(torch.zeros(2, 0, dtype=torch.int64), 2, [0], [step(0, [1, 0], [], [])])
    assert walks.reasons(1) == []
