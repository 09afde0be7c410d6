"""Sampled neighbourhoods: real, distinct, uniform, a function of (seed, epoch, step), right for layers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit.sampling import NeighborSampler, SampledBatch, clustered_order, prefetch, seed_order
from graphkit.sparse import Adjacency

both_forms = pytest.mark.parametrize("compiled", [True, False])


def graph(num_nodes: int, num_edges: int, seed: int = 0) -> Adjacency:
    """A random directed graph with hubs and isolated nodes."""
    rng = np.random.default_rng(seed)
    ends = (num_nodes * rng.random((2, num_edges)) ** 2).astype(np.int64)
    return Adjacency.from_edge_index(torch.from_numpy(rng.permutation(num_nodes)[ends]), num_nodes)


def alike(count: int, degree: int) -> Adjacency:
    """Nodes ``0 .. count - 1``, all with the same in-neighbours; they themselves have none."""
    rowptr = torch.arange(count + degree + 1).clamp(max=count) * degree
    col = torch.arange(count, count + degree, dtype=torch.int32).repeat(count)
    return Adjacency(rowptr, col, count + degree)


def same(left: SampledBatch, right: SampledBatch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(left, right, strict=True)
    )


def some_seeds(num_nodes: int, count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(num_nodes)[:count])


def check(batch: SampledBatch, whole: Adjacency, seeds: Tensor, fanouts: list[int]) -> None:
    """Compares a batch with what its definition says, hop by hop."""
    nodes, entries = batch.num_nodes_by_hop, batch.num_entries_by_hop
    assert len(nodes) == len(entries) == len(fanouts) + 1
    assert batch.n_id[: batch.batch_size].tolist() == seeds.tolist()
    assert batch.n_id.unique().numel() == batch.n_id.numel() == nodes[-1]
    assert batch.e_id.unique().numel() == batch.e_id.numel() == entries[-1]
    assert torch.equal(batch.degree, whole.count()[batch.n_id])
    # Every entry is one of the graph's: the same source, and the same row.
    source, target = batch.n_id[batch.edge_index]
    assert torch.equal(source, whole.col[batch.e_id].long())
    assert ((whole.rowptr[target] <= batch.e_id) & (batch.e_id < whole.rowptr[target + 1])).all()
    found = dict.fromkeys(seeds.tolist())
    drawn = batch.rowptr.diff()
    assert drawn.numel() == nodes[-2]
    for hop, k in enumerate(fanouts):
        rows = slice(nodes[hop - 1] if hop else 0, nodes[hop])
        degree = batch.degree[rows]
        assert torch.equal(drawn[rows], degree if k < 0 else degree.clamp(max=k))
        found |= dict.fromkeys(source[entries[hop] : entries[hop + 1]].tolist())
        assert batch.n_id[: nodes[hop + 1]].tolist() == list(found), "numbered as they are found"


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(0, 400),
    st.lists(st.sampled_from([-1, 1, 2, 3, 7, 100]), min_size=1, max_size=4),
    st.integers(0, 20),
    st.integers(0, 10**6),
)
def test_a_batch_is_what_its_definition_says(
    n: int, edges: int, fanouts: list[int], count: int, seed: int
) -> None:
    whole, seeds = graph(n, edges, seed), some_seeds(n, count, seed)
    batches = [
        NeighborSampler(whole, fanouts, seed=seed, compiled=form).sample(seeds, 3, 5)
        for form in (True, False)
    ]
    check(batches[0], whole, seeds, fanouts)
    assert same(*batches), "both forms draw the same"
    for tensor, dtype in zip(
        (batches[0].n_id, batches[0].rowptr, batches[0].col, batches[0].e_id, batches[0].degree),
        (torch.int64, torch.int64, torch.int32, torch.int64, torch.int64),
        strict=True,
    ):
        assert tensor.dtype == dtype


@both_forms
@pytest.mark.parametrize(("degree", "k"), [(7, 3), (40, 5), (16, 15), (300, 1), (100, 20)])
def test_every_set_of_neighbours_is_equally_likely(degree: int, k: int, compiled: bool) -> None:
    nodes, steps = 500, 12  # one node's draws at different steps, and different nodes' at one step
    sampler = NeighborSampler(alike(nodes, degree), [k], seed=1, compiled=compiled)
    batches = [sampler.sample(torch.arange(nodes), 0, step) for step in range(steps)]
    taken = np.zeros((nodes * steps, degree))
    entries = torch.cat([batch.e_id for batch in batches]).numpy() % degree
    np.put_along_axis(taken, entries.reshape(-1, k), 1, axis=1)
    assert (taken.sum(1) == k).all(), "without replacement"
    draws, together = len(taken), taken.T @ taken
    # How often each is taken. A draw's hits have variance p (1 - p) and sum to k, hence the factor.
    p, hits = k / degree, np.diag(together)
    statistic = ((hits - draws * p) ** 2).sum() / (draws * p * (1 - p)) * (degree - 1) / degree
    assert abs(statistic - (degree - 1)) < 4 * np.sqrt(2 * (degree - 1))
    if k > 1:  # How often two are taken together.
        q = p * (k - 1) / (degree - 1)
        pairs = together[np.triu_indices(degree, 1)]
        assert abs(pairs - draws * q).max() < 5 * np.sqrt(draws * q * (1 - q)) + 1
    # What a node draws says nothing about the next node: overlaps are hypergeometric.
    overlap = (taken[1:] * taken[:-1]).sum(1)
    variance = k * p * (1 - p) * (degree - k) / (degree - 1)
    assert abs(overlap.mean() - k * p) < 4 * np.sqrt(variance / len(overlap))


@both_forms
def test_purity_in_seed_epoch_and_step(compiled: bool) -> None:
    whole, seeds = graph(300, 6000), some_seeds(300, 20)
    samplers = [NeighborSampler(whole, [4, 3], seed=s, compiled=compiled) for s in (0, 0, 1)]
    first = samplers[0].sample(seeds, 2, 7)
    samplers[0].sample(some_seeds(300, 50, 1), 9, 9)  # leaves nothing behind
    assert same(first, samplers[0].sample(seeds, 2, 7))
    assert same(first, samplers[1].sample(seeds, 2, 7))
    others = [samplers[0].sample(seeds, e, s).e_id for e in range(4) for s in range(8)]
    others.append(samplers[2].sample(seeds, 2, 7).e_id)
    assert len({tuple(e.tolist()) for e in others}) == 33


@both_forms
def test_a_seed_draws_the_same_whoever_is_beside_it(compiled: bool) -> None:
    whole, seeds = graph(300, 6000), some_seeds(300, 20)
    sampler = NeighborSampler(whole, [4], compiled=compiled)
    batch = sampler.sample(seeds, 0, 0)
    alone = [sampler.sample(seed[None], 0, 0).e_id for seed in seeds]
    assert torch.equal(torch.cat(alone), batch.e_id)


@both_forms
def test_graphs_with_nothing_to_draw(compiled: bool) -> None:
    empty = Adjacency.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 5)
    batch = NeighborSampler(empty, [3, -1], compiled=compiled).sample(torch.tensor([4, 1]), 0, 0)
    assert batch.n_id.tolist() == [4, 1]
    assert batch.num_nodes_by_hop == (2, 2, 2)
    assert batch.edge_index.shape == (2, 0)
    assert [b.num_rows for b in batch.blocks()] == [2, 2]
    none = NeighborSampler(graph(20, 60), [3], compiled=compiled).sample(
        torch.tensor([], dtype=torch.int64), 0, 0
    )
    assert none.batch_size == none.n_id.numel() == none.col.numel() == 0
    nobody = Adjacency.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 0)
    sampler = NeighborSampler(nobody, [3], compiled=compiled)
    assert sampler.sample(torch.tensor([], dtype=torch.int64), 0, 0).num_nodes_by_hop == (0, 0)


@both_forms
def test_large_fanouts_take_whole_neighbourhoods(compiled: bool) -> None:
    whole, seeds = graph(80, 500), some_seeds(80, 6)
    largest = int(whole.count().max())
    batches = [
        NeighborSampler(whole, [k, k], compiled=compiled).sample(seeds, 0, 0) for k in (-1, largest, 10**6)
    ]
    assert same(batches[0], batches[1])
    assert same(batches[0], batches[2])
    assert torch.equal(
        batches[0].rowptr.diff(), whole.count()[batches[0].n_id[: batches[0].num_nodes_by_hop[1]]]
    )


def mean(h: Tensor, block: Adjacency, own: Tensor) -> Tensor:
    """The mean of the in-neighbours and the node itself, spelt out."""
    out = own.clone()
    for r in range(block.num_rows):
        for e in range(int(block.rowptr[r]), int(block.rowptr[r + 1])):
            out[r] += h[int(block.col[e])]
    return out / (block.count()[:, None] + 1)


@both_forms
def test_layers_over_blocks_equal_layers_over_the_graph(compiled: bool) -> None:
    whole, seeds = graph(60, 250), some_seeds(60, 5)
    x = torch.randn(60, 3, dtype=torch.float64)
    expected = x
    for _ in range(3):
        expected = mean(expected, whole, expected)
    batch = NeighborSampler(whole, [-1] * 3, compiled=compiled).sample(seeds, 0, 0)
    h = x[batch.n_id]
    for block in batch.blocks():
        assert block.num_cols == h.size(0)
        h = mean(h, block, h[: block.num_rows])
    torch.testing.assert_close(h, expected[seeds])


def test_blocks_stay_within_their_sources_and_carry_degrees() -> None:
    whole, seeds = graph(500, 5000), some_seeds(500, 8)
    batch = NeighborSampler(whole, [5, 4, 3]).sample(seeds, 0, 0)
    blocks = batch.blocks()
    assert [b.num_rows for b in blocks] == list(batch.num_nodes_by_hop[2::-1])
    assert [b.num_cols for b in blocks] == list(batch.num_nodes_by_hop[:0:-1])
    for block in blocks:
        assert int(block.col.max()) < block.num_cols
        assert int(block.rowptr[-1]) == block.col.numel()
        assert not block.symmetric
        source, target = block.degrees()
        assert torch.equal(source, whole.count()[batch.n_id[: block.num_cols]])
        assert torch.equal(target, source[: block.num_rows])


def test_degrees_that_a_graph_brings_are_passed_on() -> None:
    whole = graph(30, 200)
    counted = Adjacency(whole.rowptr, whole.col, 30, False, whole.count() + 5, whole.count() + 5)
    batch = NeighborSampler(counted, [2]).sample(some_seeds(30, 4), 0, 0)
    assert torch.equal(batch.degree, whole.count()[batch.n_id] + 5)


def test_as_data_of_pytorch_geometric() -> None:
    whole, seeds = graph(50, 300), some_seeds(50, 4)
    x, y = torch.randn(50, 3), torch.arange(50)
    batch = NeighborSampler(whole, [3, 2]).sample(seeds, 0, 0)
    data = batch.to_data(x=x, y=y)
    assert data.num_nodes == batch.n_id.numel()
    assert data.batch_size == 4
    assert torch.equal(data.edge_index, batch.edge_index)
    assert torch.equal(data.x, x[batch.n_id])
    assert torch.equal(data.y, batch.n_id)
    assert torch.equal(data.e_id, batch.e_id)
    assert "x" not in batch.to_data()
    assert same(batch.to("cpu"), batch)


def test_agreement_with_pytorch_geometric() -> None:
    from torch_geometric import typing
    from torch_geometric.data import Data
    from torch_geometric.loader import NeighborLoader

    if not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE):
        pytest.skip("needs pyg-lib or torch-sparse")
    whole, seeds = graph(60, 250), some_seeds(60, 5)
    data = Data(edge_index=whole.edge_index(), num_nodes=60)
    theirs = next(iter(NeighborLoader(data, [-1, -1], input_nodes=seeds, batch_size=5)))
    ours = NeighborSampler(whole, [-1, -1]).sample(seeds, 0, 0)
    assert torch.equal(ours.n_id.sort().values, theirs.n_id.sort().values)
    assert torch.equal(ours.n_id[:5], theirs.n_id[:5])
    pairs = [
        n_id[edges].T.tolist()
        for n_id, edges in ((ours.n_id, ours.edge_index), (theirs.n_id, theirs.edge_index))
    ]
    assert sorted(pairs[0]) == sorted(pairs[1])


@both_forms
def test_bad_seeds_are_refused_and_leave_no_trace(compiled: bool) -> None:
    whole = graph(50, 300)
    sampler = NeighborSampler(whole, [3, 3], compiled=compiled)
    good = sampler.sample(some_seeds(50, 4), 0, 0)
    for bad, match in (
        ([3, 1, 3], "twice"),
        ([0, 50], "outside"),
        ([-1], "outside"),
    ):
        with pytest.raises(ValueError, match=match):
            sampler.sample(torch.tensor(bad), 0, 0)
        assert same(good, sampler.sample(some_seeds(50, 4), 0, 0))
    with pytest.raises(ValueError, match="seeds is"):
        sampler.sample(torch.tensor([1], dtype=torch.int32), 0, 0)
    with pytest.raises(ValueError, match="seeds is"):
        sampler.sample(torch.tensor([[1]]), 0, 0)


def test_damaged_rows_are_refused() -> None:
    col = torch.tensor([1, 2, 9], dtype=torch.int32)
    sampler = NeighborSampler(Adjacency(torch.tensor([0, 1, 3, 3]), col, 3), [5])
    with pytest.raises(ValueError, match="col holds"):
        sampler.sample(torch.tensor([1]), 0, 0)
    sampler = NeighborSampler(Adjacency(torch.tensor([0, 2, 1, 300]), col, 3), [5])
    for node in (1, 2):
        with pytest.raises(ValueError, match="rowptr must"):
            sampler.sample(torch.tensor([node]), 0, 0)


def test_bad_arguments_are_refused() -> None:
    whole = graph(10, 30)
    for bad in ([], [0], [3, -2], [2**31]):
        with pytest.raises(ValueError, match="fanouts is"):
            NeighborSampler(whole, bad)
    with pytest.raises(ValueError, match="whole"):
        NeighborSampler(whole.rows(0, 5), [3])
    with pytest.raises(ValueError, match="col is"):
        NeighborSampler(Adjacency(whole.rowptr, whole.col.long(), 10), [3])
    endless = torch.zeros(1, dtype=torch.int64).expand(2**31)  # takes no memory
    with pytest.raises(ValueError, match="int32 ids"):
        NeighborSampler(Adjacency(endless, whole.col, 2**31 - 1), [3])


@both_forms
def test_threads_share_a_sampler(compiled: bool) -> None:
    whole = graph(2000, 40000)
    sampler = NeighborSampler(whole, [5, 5], compiled=compiled)

    def make(step: int) -> SampledBatch:
        return sampler.sample(some_seeds(2000, 64, step), 0, step)

    expected = list(prefetch(make, range(12), 0))
    for workers in (1, 4):
        for ours, theirs in zip(prefetch(make, range(12), workers), expected, strict=True):
            assert same(ours, theirs)
    with ThreadPoolExecutor(6) as pool:
        assert all(same(a, b) for a, b in zip(pool.map(make, range(12)), expected, strict=True))


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("graphkit-prefetch")]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_prefetch_keeps_the_order_and_raises_in_place(workers: int) -> None:
    def make(step: int) -> int:
        time.sleep(0.002 * (step % 3))
        if step == 7:
            raise RuntimeError("seven")
        return step * step

    seen: list[int] = []
    with pytest.raises(RuntimeError, match="seven"):
        seen.extend(prefetch(make, range(20), workers))
    assert seen == [step * step for step in range(7)]
    assert list(prefetch(make, range(7), workers)) == seen
    assert list(prefetch(make, [], workers)) == []
    assert prefetch_threads() == []


def test_prefetch_ends_its_threads_and_stays_bounded() -> None:
    made = []

    def make(step: int) -> int:
        made.append(step)
        return step

    def begin() -> Iterator[int]:
        items = prefetch(make, range(10**6), 2)
        assert [next(items), next(items)] == [0, 1]
        assert prefetch_threads()
        return items

    items = begin()
    items.close()  # type: ignore[attr-defined]
    assert prefetch_threads() == []
    items = begin()
    del items
    assert prefetch_threads() == []
    for _ in prefetch(make, range(50), 2):
        break
    assert prefetch_threads() == []
    assert len(made) < 25
    with pytest.raises(ValueError, match="workers is"):
        prefetch(make, range(3), -1)


def test_seed_order() -> None:
    index = torch.arange(100, 400)
    orders = [seed_order(index, seed, epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(orders[0], orders[1])
    assert len({tuple(o.tolist()) for o in orders}) == 3
    for order in orders:
        assert torch.equal(order.sort().values, index)


def test_clustered_order_keeps_blocks_together() -> None:
    position = torch.randperm(1000)
    index = torch.randperm(1000)[:333]
    orders = [clustered_order(index, position, 10, 0, epoch) for epoch in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    by_position = index[position[index].argsort()]
    rank = {node: number for number, node in enumerate(by_position.tolist())}
    for order in orders:
        assert torch.equal(order.sort().values, index.sort().values)
        for block in order[:330].view(-1, 10).tolist():  # neighbours in the order, which closes in a ring
            assert {(rank[b] - rank[a]) % 333 for a, b in pairwise(block)} == {1}
    left = {tuple(clustered_order(index, position, 10, 0, epoch)[330:].tolist()) for epoch in range(20)}
    assert len(left) > 10, "no nodes are left over in every epoch"
    assert clustered_order(index[:4], position, 10, 0, 0).numel() == 4
    with pytest.raises(ValueError, match="block is"):
        clustered_order(index, position, 0, 0, 0)
