"""Negative samples: no edge, no loop, distinct, uniform, and a function of the generator alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphkit.errors import UserError
from graphkit.sampling import NegativeSampler, distinct_ranks, free_keys, pair_keys
from graphkit.sparse import CSRGraph


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def graph(num_nodes: int, share: float, seed: int = 0) -> Tensor:
    """A random graph, some edges in both directions, with loops."""
    mask = torch.rand(num_nodes, num_nodes, generator=seeded(seed)) < share
    return torch.nonzero(mask).T.contiguous()


def adjacency(edges: Tensor, num_nodes: int, directed: bool) -> Tensor:
    mask = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    mask[edges[0], edges[1]] = True
    return mask if directed else mask | mask.T


@given(st.integers(0, 25), st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]), st.booleans(), st.integers(0, 9))
def test_ranks_list_all_non_edges_in_order(n: int, share: float, directed: bool, seed: int) -> None:
    edges = graph(n, share, seed)
    taken = adjacency(edges, n, directed)
    taken.fill_diagonal_(True)
    free = ~taken if directed else (~taken).triu(1)
    expected = torch.nonzero(free).T
    sampler = NegativeSampler(edges, n, directed=directed)
    assert sampler.available == expected.size(1)
    assert torch.equal(sampler.of_rank(torch.arange(sampler.available)), expected)
    drawn = sampler.draw(sampler.available, seeded(seed))  # all of them, each once
    assert torch.equal(drawn[:, torch.argsort(drawn[0] * n + drawn[1])], expected)


@pytest.mark.parametrize("directed", [False, True])
def test_negatives_are_distinct_and_no_edges(directed: bool) -> None:
    n = 500
    edges = graph(n, 0.02)
    drawn = NegativeSampler(edges, n, directed=directed).draw(3000, seeded())
    assert drawn.shape == (2, 3000)
    assert drawn.dtype == torch.int64
    assert not adjacency(edges, n, directed)[drawn[0], drawn[1]].any()
    assert (drawn[0] != drawn[1]).all()
    assert torch.unique(drawn[0] * n + drawn[1]).numel() == 3000
    if not directed:
        assert (drawn[0] < drawn[1]).all()


def test_large_graphs_cost_little() -> None:
    n = 3_000_000_000  # keys near 2^62
    edges = torch.tensor([[0, n - 2, 5], [n - 1, n - 1, 3]])
    drawn = NegativeSampler.__new__(NegativeSampler)  # row starts would need n entries: directed has none
    drawn.num_nodes, drawn.directed = n, True
    drawn._taken = torch.sort(edges[0] * n + edges[1]).values
    drawn.available = n * n - 3
    pairs = drawn.draw(1000, seeded())
    assert ((pairs >= 0) & (pairs < n)).all()
    assert pairs.double().mean() > n / 3


def test_pair_keys_number_the_triangle() -> None:
    pairs = torch.combinations(torch.arange(9)).T
    assert torch.equal(pair_keys(pairs, 9), torch.arange(36))


def test_free_keys() -> None:
    assert free_keys(torch.arange(4), torch.tensor([0, 2, 3])).tolist() == [1, 4, 5, 6]
    assert free_keys(torch.arange(3), torch.empty(0, dtype=torch.int64)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("count", [4, 40])  # the rejecting way, and the one that shuffles
def test_negatives_are_uniform(distinct: bool, count: int) -> None:
    n = 16
    csr = CSRGraph.from_edge_index(graph(n, 0.15), n)
    sampler = NegativeSampler(csr.edges, n)
    generator = seeded(1)
    draws = 4000
    hits = torch.zeros(n, n)
    for _ in range(draws):
        pairs = sampler.draw(count, generator, distinct=distinct)
        hits.index_put_((pairs[0], pairs[1]), torch.ones(count), accumulate=True)
    free = ~adjacency(csr.edges, n, False)
    free = free.triu(1)
    assert hits[~free].sum() == 0
    share = count / sampler.available
    expected = draws * share
    variance = expected * (1 - share if distinct else 1)
    chi2 = float(((hits[free] - expected) ** 2 / variance).sum())
    freedom = sampler.available
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_first_draws_are_uniform_too() -> None:
    """Without replacement the first of several draws is as good as a single one."""
    generator = seeded(2)
    first = torch.stack([distinct_ranks(1000, 5, generator) for _ in range(4000)])
    for position in range(5):
        counts = torch.bincount(first[:, position] // 100, minlength=10).float()
        assert float(((counts - 400) ** 2 / 400).sum()) < 30


def test_the_generator_decides() -> None:
    sampler = NegativeSampler(graph(200, 0.05), 200)
    before = torch.random.get_rng_state()
    a, b, c = (sampler.draw(50, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.random.get_rng_state())
    generator = seeded(3)
    sampler.draw(50, generator)
    assert not torch.equal(a, sampler.draw(50, generator))


def test_too_few_non_edges() -> None:
    n = 6
    edges = torch.combinations(torch.arange(n)).T[:, 1:]  # all pairs but (0, 1)
    sampler = NegativeSampler(edges, n)
    assert sampler.draw(1, seeded()).tolist() == [[0], [1]]
    assert sampler.draw(3, seeded(), distinct=False).tolist() == [[0] * 3, [1] * 3]
    assert sampler.draw(0, seeded()).shape == (2, 0)
    with pytest.raises(UserError, match=r"2 negative pairs .* 6 nodes has only 1 pairs without an edge"):
        sampler.draw(2, seeded())
    full = torch.combinations(torch.arange(n)).T
    with pytest.raises(UserError, match="has only 0"):
        NegativeSampler(full, n).draw(1, seeded(), distinct=False)
    with pytest.raises(ValueError, match="count is -1"):
        sampler.draw(-1, seeded())


@pytest.mark.parametrize("n", [0, 1])
def test_graphs_without_pairs(n: int) -> None:
    empty = torch.empty(2, 0, dtype=torch.int64)
    for directed in (False, True):
        assert NegativeSampler(empty, n, directed=directed).draw(0, seeded()).shape == (2, 0)
