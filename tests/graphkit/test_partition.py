"""Hierarchical orders: digits that follow the graph, capacities that hold, places for new nodes."""

from __future__ import annotations

import math
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphkit import metis, partition
from graphkit.data import Benchmark, load_dataset
from graphkit.errors import UserError
from graphkit.metis import undirected_rows, within_capacity
from graphkit.partition import (
    METHODS,
    Method,
    cached_order,
    hierarchical_order,
    order_statistics,
    place_new_nodes,
)
from graphkit.sparse import Adjacency, CSRGraph

SHAPES = ["random", "star", "path", "cliques", "loops", "empty"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edges_of(shape: str, n: int, seed: int = 0) -> Tensor:
    """Edges in one direction or both, with loops and repetitions, some nodes without any."""
    ids, hub = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    if shape == "star":
        return torch.stack([hub, ids])
    if shape == "path":
        return torch.stack([ids[:-1], ids[1:]])
    if shape == "cliques":
        a, b = torch.meshgrid(ids, ids, indexing="ij")
        return torch.stack([a[a // 4 == b // 4], b[a // 4 == b // 4]])
    if shape == "loops":
        return torch.stack([ids, ids])
    return torch.randint(max(1, n * 3 // 4), (2, 2 * n if shape == "random" else 0), generator=seeded(seed))


def blocks(count: int, size: int) -> Tensor:
    """Complete graphs of ``size`` nodes, a single edge from each to the next; ids shuffled."""
    n = count * size
    a, b = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    inside = (a // size == b // size) & (a < b)
    bridges = torch.stack([torch.arange(count - 1) * size, torch.arange(1, count) * size])
    return torch.randperm(n, generator=seeded(7))[
        torch.cat([torch.stack([a[inside], b[inside]]), bridges], 1)
    ]


def assert_an_order(position: Tensor, n: int, factors: list[int]) -> None:
    """One position a node, distinct and in range: every cell of every level then holds what it may."""
    assert position.dtype == torch.int64
    assert position.shape == (n,)
    assert position.unique().numel() == n
    assert n == 0 or (int(position.min()) >= 0 and int(position.max()) < math.prod(factors))


@pytest.fixture(scope="module")
def cora(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """The real graph, from copies of its files: a cache is written beside them."""
    folder = tmp_path_factory.mktemp("data")
    raw = Path("planetoid", "cora", "raw")
    shutil.copytree(test_data / raw, folder / raw)
    return load_dataset("cora", root=folder, task="node")


# Orders


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([1, 2, 3, 5, 7]), min_size=1, max_size=4),
    st.sampled_from(SHAPES),
    st.sampled_from(METHODS),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_every_graph_gets_an_order(
    factors: list[int], shape: str, method: Method, share: float, seed: int
) -> None:
    n = round(share * math.prod(factors))
    position = hierarchical_order(edges_of(shape, n, seed), n, factors, method=method, seed=seed)
    assert_an_order(position, n, factors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("n", "factors"),
    [(0, [2, 3]), (1, [1, 1, 1]), (1, [4, 5]), (60, [3, 4, 5]), (60, [60]), (60, [1, 60, 1]), (9, [5, 5, 5])],
)
@pytest.mark.parametrize("method", ["hierarchical", "one_level"])
def test_the_ends_of_the_range(shape: str, n: int, factors: list[int], method: Method) -> None:
    edges = edges_of(shape, n)
    assert_an_order(hierarchical_order(edges, n, factors, method=method), n, factors)


def test_communities_become_cells() -> None:
    edges = blocks(12, 8)
    for factors in ([12, 8], [3, 4, 8], [12, 2, 5]):
        position = hierarchical_order(edges, 96, factors)
        assert_an_order(position, 96, factors)
        cell = position // (math.prod(factors) // 12)
        inside = cell[edges[0]] == cell[edges[1]]
        assert int((~inside).sum()) == 11, "only the bridges are cut"


def test_padding_is_spread() -> None:
    edges = edges_of("random", 4000)
    joined = torch.unique(edges).numel()
    position = hierarchical_order(edges, 4000, [10, 10, 60])
    size = torch.bincount(position // 600, minlength=10)
    assert int(size.min()) > 0.98 * 400, (size, joined)
    assert int(size.max()) < 1.02 * 400, (size, joined)


def test_slots_of_a_leaf_count_up_with_the_id() -> None:
    position = hierarchical_order(edges_of("cliques", 200), 200, [5, 6, 8])
    slot, leaf = position % 8, position // 8
    for cell in leaf.unique():
        assert slot[leaf == cell].tolist() == list(range(int((leaf == cell).sum())))


def test_isolated_nodes_fill_the_emptiest_leaves() -> None:
    joined = blocks(4, 6)  # 24 nodes, to which 12 without neighbours are added
    position = hierarchical_order(joined, 36, [4, 10])
    assert torch.bincount(position // 10).tolist() == [9, 9, 9, 9]
    alone = position[24:]
    assert torch.equal(alone % 10, torch.tensor([6, 6, 6, 6, 7, 7, 7, 7, 8, 8, 8, 8])), "after the others"
    plain = hierarchical_order(joined, 24, [4, 10])
    assert torch.equal(position[:24], plain)


def test_the_graph_may_come_in_any_form() -> None:
    n, factors = 300, [4, 8, 10]
    edges = edges_of("random", n)
    wanted = hierarchical_order(edges, n, factors)
    both = torch.cat([edges, edges.flip(0), torch.arange(n).expand(2, n)], 1)
    directed = Adjacency.from_edge_index(edges, n)
    assert not directed.symmetric
    loops = undirected_rows(edges, n)
    row = torch.from_numpy(loops.owners()).long()
    with_loops = torch.stack(
        [torch.cat([row, torch.arange(n)]), torch.cat([torch.from_numpy(loops.col), torch.arange(n)])]
    )
    with_loops = with_loops[:, torch.argsort(with_loops[0] * n + with_loops[1])]
    rowptr = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.bincount(with_loops[0], minlength=n).cumsum(0)]
    )
    for graph in (
        both,
        edges[:, torch.randperm(edges.size(1))],
        directed,
        Adjacency.from_edge_index(both, n),
        CSRGraph.from_edge_index(edges, n),
        Adjacency(rowptr, with_loops[1].to(torch.int32), n, symmetric=True),
    ):
        assert torch.equal(hierarchical_order(graph, n, factors), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_repeats_and_another_differs(method: Method) -> None:
    edges = edges_of("random", 500)
    first, again, other = (
        hierarchical_order(edges, 500, [5, 10, 11], method=method, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (method == "identity")


def test_orders_that_do_not_look_at_the_graph() -> None:
    edges = edges_of("random", 50)
    assert torch.equal(hierarchical_order(edges, 50, [6, 10], method="identity"), torch.arange(50))
    shuffled = hierarchical_order(edges, 50, [6, 10], method="random")
    assert torch.equal(shuffled.sort().values, torch.arange(50))


def test_one_level_sorts_by_part_and_id() -> None:
    edges = blocks(5, 8)
    position = hierarchical_order(edges, 40, [5, 10], method="one_level")
    assert torch.equal(position.sort().values, torch.arange(40)), "consecutive, so parts drift over digits"
    part = position // 8
    assert int((part[edges[0]] != part[edges[1]]).sum()) == 4
    for cell in range(5):
        ids = torch.nonzero(part == cell).view(-1)
        assert torch.equal(position[ids], torch.arange(8 * cell, 8 * cell + 8))


def test_nodes_too_many_move_where_their_neighbours_are() -> None:
    # Part 0 has 5 nodes where 3 may be: 3 and 4 have the fewest neighbours in it. Node 3 is joined to part 1,
    # node 4 to none of the others; part 2 is the emptiest.
    edges = torch.tensor([[0, 0, 1, 2, 3, 3, 5], [1, 2, 2, 4, 0, 5, 6]])
    rows = undirected_rows(edges, 7)
    part = np.array([0, 0, 0, 0, 0, 1, 1])
    assert within_capacity(part, rows, 3, 3).tolist() == [0, 0, 0, 1, 2, 1, 1]
    assert part.tolist() == [0, 0, 0, 0, 0, 1, 1], "the argument stays"
    assert within_capacity(part, rows, 3, 5) is part


@given(st.integers(0, 1000), st.integers(2, 6))
def test_no_part_exceeds_its_capacity_however_bad_the_partition(seed: int, parts: int) -> None:
    n = 40
    rows = undirected_rows(edges_of("random", n, seed), n)
    bad = np.random.default_rng(seed).integers(0, parts, n) ** 2 // parts
    part = within_capacity(bad, rows, parts, -(-n // parts))
    assert np.bincount(part, minlength=parts).max() <= -(-n // parts)
    assert part.min() >= 0
    assert part.max() < parts


def test_progress_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_QUIET", -1.0)
    lines: list[str] = []
    hierarchical_order(blocks(12, 8), 96, [3, 4, 8], progress=lines.append)
    assert lines[0].startswith("level 1 of 2: 96 nodes and 347 edges, into 3 parts")
    assert lines[1].startswith("level 2 of 2: 96 nodes and 345 edges in 3 sets, into 4 parts each")
    assert lines[2].startswith("level 2 of 2: 1 of 3 sets are split, ")
    assert lines[2].endswith(" left")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": [3, 3]}, r"factors \(3, 3\) give 9 positions for 10 nodes"),
        ({"factors": []}, "at least one"),
        ({"factors": [20, 0]}, "each at least 1"),
        ({"method": "metis"}, "method is 'metis'; it must be one of hierarchical, one_level"),
        ({"graph": Adjacency.from_edge_index(torch.tensor([[0], [1]]), 9)}, "graph has 9 rows"),
        ({"graph": torch.tensor([[0], [10]])}, "ids from 0 to 10"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"graph": torch.tensor([[0], [1]]), "num_nodes": 10, "factors": [3, 4]}
    with pytest.raises(ValueError, match=message):
        hierarchical_order(**{**good, **arguments})


def test_without_pymetis_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    edges = edges_of("random", 50)
    with pytest.raises(UserError, match="need METIS, which isn't installed: pip install pymetis"):
        hierarchical_order(edges, 50, [5, 10])
    assert_an_order(hierarchical_order(edges, 50, [5, 10], method="random"), 50, [5, 10])


# Statistics


def test_statistics_count_edges_and_labels() -> None:
    factors = [2, 2, 3]
    position = torch.tensor([0, 1, 3, 6, 7, 9])  # digits 000, 001, 010, 100, 101, 110
    edges = torch.tensor([[0, 0, 0, 3, 3, 5], [1, 2, 3, 4, 5, 5]])  # the last is a loop
    y = torch.tensor([0, 1, 1, 2, -1, 2])
    found = order_statistics(position, edges, factors, y)
    assert found.shared == pytest.approx((4 / 5, 2 / 5))
    assert found.purity == pytest.approx(((2 + 2) / 5, (1 + 1 + 1 + 1) / 5))
    assert found.leaves == 4
    assert found.padding == pytest.approx(1.0)
    assert order_statistics(position, edges, factors).purity is None
    rows = Adjacency.from_edge_index(torch.cat([edges, edges.flip(0)], 1), 6)
    assert order_statistics(position.int(), rows, factors, y[:, None]) == found
    assert order_statistics(position, edges, [12]).shared == ()
    assert math.isnan(order_statistics(position, edges[:, :0], factors).shared[0])


def test_statistics_check_what_they_get() -> None:
    edges = torch.tensor([[0], [1]])
    for position in (torch.tensor([0, 0]), torch.tensor([0, 4]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=r"distinct numbers in \[0, 4\)"):
            order_statistics(position, edges, [2, 2])
    for y in (torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"it must be \[2\] integers"):
            order_statistics(torch.arange(2), edges, [2, 2], y)


# Measured before with other code: shares of edges inside cells of the first digit and of the first two, and
# the label purity of the latter. That hierarchical order was cut k-way; bisection keeps more in the second.
TABLE = [
    ("hierarchical", 0.873, 0.52, 0.77),
    ("one_level", 0.598, 0.101, 0.69),
    ("random", 0.085, 0.005, 0.34),
    ("identity", 0.140, 0.051, 0.41),
]


@pytest.mark.parametrize(("method", "first", "second", "pure"), TABLE)
def test_cora_keeps_its_edges_together(
    cora: Benchmark, method: Method, first: float, second: float, pure: float
) -> None:
    edges, factors = cora.data.edge_index, [13, 14, 16]
    found = order_statistics(
        hierarchical_order(edges, 2708, factors, method=method), edges, factors, cora.data.y
    )
    assert found.purity is not None
    assert found.padding == pytest.approx(2912 / 2708 - 1)
    assert found.shared[0] == pytest.approx(first, abs=0.03)
    if method == "hierarchical":
        assert found.shared[1] > second + 0.05
        assert found.purity[1] > pure - 0.02
    else:
        assert found.shared[1] == pytest.approx(second, abs=0.03)
        assert found.purity[1] == pytest.approx(pure, abs=0.03)


# New nodes


def test_a_new_node_joins_most_of_its_neighbours() -> None:
    position = torch.tensor([0, 1, 4, 5, 8])  # leaves 0, 0, 1, 1, 2 of four with four slots each
    edges = torch.tensor([[5, 5, 3, 6, 0], [0, 2, 5, 4, 1]])
    assert place_new_nodes(position, [2, 2, 4], edges, 3).tolist() == [6, 9, 12]  # the last has no neighbour


def test_ties_go_to_the_emptiest_leaf() -> None:
    position = torch.tensor([0, 1, 4])
    assert place_new_nodes(position, [4, 4], torch.tensor([[3, 3], [0, 2]]), 1).tolist() == [5]


def test_a_full_leaf_overflows_into_the_nearest_cell_with_room() -> None:
    # Two cells of two leaves with two slots. Leaf 0 is full, its sister has one place; then the other cell.
    position = torch.tensor([0, 1, 2])
    edges = torch.tensor([[3, 4, 5], [0, 0, 1]])
    assert place_new_nodes(position, [2, 2, 2], edges, 3).tolist() == [3, 4, 6]


def test_new_neighbours_count_once_they_have_a_place() -> None:
    position = torch.tensor([0, 9])
    chain = torch.tensor([[2, 3, 4, 3], [1, 2, 3, 4]])
    assert place_new_nodes(position, [4, 6], chain, 3).tolist() == [6, 7, 8]


def test_gaps_inside_a_leaf_are_used() -> None:
    assert place_new_nodes(torch.tensor([1, 3]), [2, 4], torch.tensor([[2, 3], [0, 1]]), 2).tolist() == [0, 2]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99)
)
def test_every_new_node_gets_a_place_of_its_own(
    factors: list[int], share: float, new_share: float, seed: int
) -> None:
    capacity = math.prod(factors)
    n = round(share * capacity)
    new = round(new_share * (capacity - n))
    position = torch.randperm(capacity, generator=seeded(seed))[:n]
    edges = torch.randint(max(1, n + new), (2, 2 * (n + new)), generator=seeded(seed + 1))
    placed = place_new_nodes(position, factors, edges, new)
    assert_an_order(torch.cat([position, placed]), n + new, factors)


def test_new_nodes_need_room_and_valid_ids() -> None:
    none = torch.empty(2, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match="give 4 positions for 5 nodes"):
        place_new_nodes(torch.arange(4), [2, 2], none, 1)
    with pytest.raises(ValueError, match="ids from 0 to 3"):
        place_new_nodes(torch.arange(2), [2, 2], torch.tensor([[0], [3]]), 1)
    with pytest.raises(ValueError, match="distinct numbers"):
        place_new_nodes(torch.tensor([1, 1]), [2, 2], none, 1)
    with pytest.raises(ValueError, match="num_new is -1"):
        place_new_nodes(torch.arange(4), [2, 2], none, -1)
    assert place_new_nodes(torch.arange(4), [2, 2], none, 0).tolist() == []


# Stored orders


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists the methods of the orders that are computed from here on."""
    calls: list[str] = []
    compute = partition.hierarchical_order

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs["method"])
        return compute(*args, **kwargs)

    monkeypatch.setattr(partition, "hierarchical_order", spy)
    return calls


@pytest.mark.parametrize("method", ["hierarchical", "one_level"])
def test_an_order_is_computed_once(method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = edges_of("random", 200)
    wanted = hierarchical_order(edges, 200, [4, 5, 11], method=method, seed=2)
    calls = counting(monkeypatch)

    def get(graph: Any = edges, factors: Any = (4, 5, 11), seed: int = 2) -> Tensor:
        return cached_order(tmp_path / "orders", graph, 200, factors, method=method, seed=seed)

    assert torch.equal(get(), wanted)
    assert get().dtype == torch.int64
    assert torch.equal(get(Adjacency.from_edge_index(edges.flip(0), 200)), wanted), "directions don't matter"
    assert calls == [method]
    get(seed=3)
    get(factors=(4, 11, 5))
    get(graph=edges[:, :-5])
    assert calls == [method] * 4
    monkeypatch.setattr(partition, "metis_version", lambda: "of tomorrow")
    get()
    assert calls == [method] * 5
    assert len(list((tmp_path / "orders").glob("*.safetensors"))) == 5


def test_orders_of_a_moment_are_not_stored(tmp_path: Path) -> None:
    edges = edges_of("random", 50)
    for method in ("random", "identity"):
        found = cached_order(tmp_path / "orders", edges, 50, [60], method=method, seed=1)
        assert torch.equal(found, hierarchical_order(edges, 50, [60], method=method, seed=1))
    assert not (tmp_path / "orders").exists()


def _order_in_process(folder: Path, start: Any, out: Any) -> None:
    built: list[str] = []
    start.wait()
    position = cached_order(folder, edges_of("random", 300), 300, [5, 6, 11], progress=built.append)
    out.put((bool(built), position.tolist()))


def test_processes_compute_an_order_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, out = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_order_in_process, args=(tmp_path, start, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    (first, a), (second, b) = out.get(timeout=60), out.get(timeout=60)
    for worker in workers:
        worker.join()
    assert first + second == 1
    assert a == b


def test_the_version_of_metis_is_known() -> None:
    assert metis.metis_version() != "none"
