from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor

from graphkit.kernels import (
    common_neighbors,
    common_neighbors_torch,
    overlap_count,
    overlap_count_torch,
    overlap_pool,
    overlap_pool_torch,
)
from graphkit.sparse import CSRGraph


def graph_with_hubs(nodes: int = 1500, edges: int = 15000, seed: int = 0) -> CSRGraph:
    """R-MAT in a few lines; ids above ``nodes`` are folded back."""
    rng = np.random.default_rng(seed)
    quadrant = rng.choice(4, (11, edges), p=[0.57, 0.19, 0.19, 0.05])
    place = 2 ** np.arange(11)[:, None]
    ends = np.stack([((quadrant >> 1) * place).sum(0), ((quadrant & 1) * place).sum(0)]) % nodes
    return CSRGraph.from_edge_index(torch.from_numpy(ends), nodes)


def some_pairs(graph: CSRGraph, count: int, seed: int = 0) -> Tensor:
    """Edges, random pairs, self pairs, repeated pairs and a run with one end in common."""
    rng = torch.Generator().manual_seed(seed)
    n = graph.num_nodes
    chosen = torch.randint(graph.edges.size(1), (count,), generator=rng)
    loops = torch.randint(n, (count // 8,), generator=rng)
    run = torch.randint(n, (count,), generator=rng)
    parts = [
        graph.edges[:, chosen],
        graph.edges[:, chosen].flip(0)[:, : count // 2],
        torch.randint(n, (2, count), generator=rng),
        torch.stack([loops, loops]),
        torch.stack([torch.full_like(run, int(graph.degree().argmax())), run]),
        torch.stack([run[:1].expand(count), run]),
    ]
    return torch.cat(parts, 1)


def neighbour_sets(graph: CSRGraph) -> list[set[int]]:
    rowptr, col = graph.rowptr.tolist(), graph.col.tolist()
    return [set(col[a:b]) for a, b in pairwise(rowptr)]


def check_lists(graph: CSRGraph, pairs: Tensor) -> None:
    near = neighbour_sets(graph)
    overlap = common_neighbors(graph.rowptr, graph.col, pairs, differences=True)
    plain = common_neighbors(graph.rowptr, graph.col, pairs)
    assert torch.equal(plain.cn_ptr, overlap.cn_ptr)
    assert torch.equal(plain.cn, overlap.cn)
    assert plain.only_i is None
    expected: list[list[list[int]]] = [[], [], []]
    for i, j in pairs.t().tolist():
        for rows, ids in zip(
            expected, (near[i] & near[j], near[i] - near[j], near[j] - near[i]), strict=True
        ):
            rows.append(sorted(ids))
    for rows, ptr, ids in zip(expected, overlap[0::2], overlap[1::2], strict=True):
        assert ptr is not None
        assert ids is not None
        assert ptr.dtype == torch.int64
        assert ids.dtype == torch.int32
        assert ptr.tolist() == [0, *np.cumsum([len(row) for row in rows]).tolist()]
        assert ids.tolist() == [u for row in rows for u in row]
    reference = common_neighbors_torch(graph.rowptr, graph.col, pairs, differences=True)
    for a, b in zip(overlap, reference, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
    assert torch.equal(common_neighbors_torch(graph.rowptr, graph.col, pairs).cn, overlap.cn)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12),
)
def test_lists_on_small_graphs(
    nodes: int, edges: list[tuple[int, int]], pairs: list[tuple[int, int]]
) -> None:
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t() % nodes
    targets = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t() % nodes
    graph = CSRGraph.from_edge_index(edge_index, nodes)
    check_lists(graph, targets)
    x = torch.randn(nodes, 3, dtype=torch.float64)
    torch.testing.assert_close(
        overlap_pool(graph.rowptr, graph.col, targets, x),
        overlap_pool_torch(graph.rowptr, graph.col, targets, x),
    )


def test_lists_on_a_graph_with_hubs() -> None:
    graph = graph_with_hubs()
    assert graph.degree().max() > 200  # marks, merges and searches are all taken
    check_lists(graph, some_pairs(graph, 400))
    for b in range(0, 200, 7):  # a few targets alone
        check_lists(graph, graph.edges[:, b : b + 1])


def test_lists_of_a_directed_graph() -> None:
    whole = graph_with_hubs()
    graph = whole.filter(
        torch.rand(whole.num_entries, generator=torch.Generator().manual_seed(3)) < 0.6, symmetric=False
    )
    check_lists(graph, some_pairs(whole, 200))


def test_pool_and_count_against_scipy() -> None:
    graph = graph_with_hubs()
    pairs = some_pairs(graph, 500)
    data = np.ones(graph.num_entries)
    matrix = sparse.csr_matrix((data, graph.col.numpy(), graph.rowptr.numpy()), (1500, 1500))
    shared = matrix[pairs[0].numpy()].multiply(matrix[pairs[1].numpy()]).tocsr()
    x = torch.randn(1500, 10, dtype=torch.float64)
    pooled = overlap_pool(graph.rowptr, graph.col, pairs, x)
    torch.testing.assert_close(pooled, torch.from_numpy(shared @ x.numpy()))
    torch.testing.assert_close(pooled, overlap_pool_torch(graph.rowptr, graph.col, pairs, x))
    count = overlap_count(graph.rowptr, graph.col, pairs)
    assert count.dtype == torch.get_default_dtype()
    assert torch.equal(count.double(), torch.from_numpy(np.asarray(shared.sum(1)).ravel()))
    assert torch.equal(count, overlap_count_torch(graph.rowptr, graph.col, pairs))
    weight = 1 / graph.degree().clamp(min=1).double()
    index = overlap_count(graph.rowptr, graph.col, pairs, weight)
    torch.testing.assert_close(index, torch.from_numpy(shared @ weight.numpy()))
    torch.testing.assert_close(index, overlap_count_torch(graph.rowptr, graph.col, pairs, weight))


def test_gradient_of_pool() -> None:
    graph = graph_with_hubs(40, 160)
    pairs = some_pairs(graph, 8)
    x = torch.randn(40, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(40, dtype=torch.float64, requires_grad=True)

    def pool(x: Tensor) -> Tensor:
        return overlap_pool(graph.rowptr, graph.col, pairs, x)

    assert torch.autograd.gradcheck(pool, (x,))
    assert torch.autograd.gradgradcheck(pool, (x,))
    assert torch.autograd.gradcheck(lambda w: overlap_count(graph.rowptr, graph.col, pairs, w), (weight,))
    factor = torch.randn(pairs.size(1), 2, dtype=torch.float64)
    (ours,) = torch.autograd.grad((pool(x) * factor).sum(), x)
    (theirs,) = torch.autograd.grad((overlap_pool_torch(graph.rowptr, graph.col, pairs, x) * factor).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_nothing_to_do() -> None:
    empty = CSRGraph.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 4)
    pairs = torch.tensor([[0, 1, 2], [0, 3, 2]])
    check_lists(empty, pairs)
    assert torch.equal(overlap_pool(empty.rowptr, empty.col, pairs, torch.randn(4, 2)), torch.zeros(3, 2))
    graph = graph_with_hubs(40, 160)
    none = torch.empty(2, 0, dtype=torch.int64)
    check_lists(graph, none)
    x = torch.randn(40, 2, requires_grad=True)
    z = overlap_pool(graph.rowptr, graph.col, none, x)
    assert z.shape == (0, 2)
    z.sum().backward()
    assert torch.equal(x.grad, torch.zeros(40, 2))
    assert overlap_count(graph.rowptr, graph.col, none).shape == (0,)


def test_threads_do_not_change_a_bit(threads: None) -> None:
    graph = graph_with_hubs(3000, 60000)
    pairs = some_pairs(graph, 4000)
    x = torch.randn(3000, 8)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        leaf = x.clone().requires_grad_()
        z = overlap_pool(graph.rowptr, graph.col, pairs, leaf)
        (grad,) = torch.autograd.grad(z.square().sum(), leaf)
        overlap = common_neighbors(graph.rowptr, graph.col, pairs, differences=True)
        results.append((z, grad, overlap_count(graph.rowptr, graph.col, pairs), *overlap))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_order_of_targets_does_not_change_a_bit() -> None:
    graph = graph_with_hubs()
    pairs = some_pairs(graph, 300)
    x = torch.randn(1500, 8)
    order = torch.randperm(pairs.size(1))
    z = overlap_pool(graph.rowptr, graph.col, pairs, x)
    assert torch.equal(overlap_pool(graph.rowptr, graph.col, pairs[:, order], x), z[order])
    assert torch.equal(overlap_pool(graph.rowptr, graph.col, pairs.flip(0), x), z)


def test_half_precision_is_computed_in_float32() -> None:
    graph = graph_with_hubs(40, 160)
    pairs = some_pairs(graph, 8)
    x = torch.randn(40, 2).bfloat16()
    z = overlap_pool(graph.rowptr, graph.col, pairs, x)
    assert torch.equal(z, overlap_pool(graph.rowptr, graph.col, pairs, x.float()).bfloat16())


def test_compiles_without_graph_breaks() -> None:
    graph = graph_with_hubs(40, 160)
    pairs = some_pairs(graph, 8)
    x = torch.randn(40, 4, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        return overlap_pool(graph.rowptr, graph.col, pairs, x.exp()).square().sum()

    (ours,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(ours, torch.autograd.grad(step(x), x)[0])


@pytest.mark.parametrize("name", ["common_neighbors", "overlap_count", "overlap_pool", "overlap_pool_grad"])
def test_op_registration(name: str) -> None:
    graph = graph_with_hubs(40, 160)
    pairs = some_pairs(graph, 8)
    extra = {
        "overlap_pool": (torch.randn(40, 2, requires_grad=True),),
        "overlap_pool_grad": (torch.randn(pairs.size(1), 2, requires_grad=True),),
    }
    op = getattr(torch.ops.graphkit, name).default
    torch.library.opcheck(op, (graph.rowptr, graph.col, pairs, *extra.get(name, ())))


def test_bad_input_is_refused() -> None:
    graph = graph_with_hubs(40, 160)
    for bad in (-1, 40):
        with pytest.raises(ValueError, match=r"must lie in \[0, 40\)"):
            common_neighbors(graph.rowptr, graph.col, torch.tensor([[0, bad], [1, 2]]))
        with pytest.raises(ValueError, match=r"must lie in \[0, 40\)"):
            overlap_count(graph.rowptr, graph.col, torch.tensor([[0, 1], [1, bad]]))
    with pytest.raises(ValueError, match="pairs is"):
        common_neighbors(graph.rowptr, graph.col, torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="x is"):
        overlap_pool(graph.rowptr, graph.col, torch.tensor([[0], [1]]), torch.randn(39, 2))
    with pytest.raises(ValueError, match="weight has shape"):
        overlap_count(graph.rowptr, graph.col, torch.tensor([[0], [1]]), torch.randn(40, 2))
