"""In-neighbours as rows, whole graphs and parts of them; and what turns into sparse features."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphkit.sparse import Adjacency, CSRGraph, SparseRows, as_adjacency, as_features

LISTED = torch.tensor([[3, 1, 1, 2, 2, 0, 3], [1, 3, 1, 0, 0, 2, 0]])  # a loop, a repetition, one way 3 -> 0
PROPER = torch.tensor([[3, 1, 2, 0, 3], [1, 3, 0, 2, 0]])


def pairs(edge_index: Tensor) -> list[tuple[int, int]]:
    return sorted(map(tuple, edge_index.t().tolist()))


@given(st.integers(1, 7), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20))
def test_rows_hold_each_edge_once_at_its_target(nodes: int, edges: list[tuple[int, int]]) -> None:
    edges = [(source % nodes, target % nodes) for source, target in edges]
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t()
    graph = Adjacency.from_edge_index(index, nodes)
    proper = sorted({pair for pair in edges if pair[0] != pair[1]})
    assert pairs(graph.edge_index()) == proper
    for node in range(nodes):
        row = graph.col[graph.rowptr[node] : graph.rowptr[node + 1]].tolist()
        assert row == sorted(source for source, target in proper if target == node)
    assert graph.symmetric == all((target, source) in proper for source, target in proper)
    assert (graph.num_rows, graph.num_cols) == (nodes, nodes)
    assert graph.rowptr.dtype == torch.int64
    assert graph.col.dtype == torch.int32
    assert torch.equal(graph.count(), torch.tensor([sum(t == v for _, t in proper) for v in range(nodes)]))


def test_graph_of_no_nodes() -> None:
    graph = Adjacency.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 0)
    assert (graph.num_rows, graph.col.numel(), graph.symmetric) == (0, 0, True)
    assert graph.edge_index().shape == (2, 0)


@pytest.mark.parametrize("bad", [torch.tensor([[0], [4]]), torch.tensor([[-1], [0]]), torch.tensor([[0, 1]])])
def test_bad_edges_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"edge_index (holds ids|has shape)"):
        Adjacency.from_edge_index(bad, 4)


def test_whole_graph_has_the_lengths_of_its_rows_as_degrees() -> None:
    graph = Adjacency.from_edge_index(LISTED, 4)
    source, target = graph.degrees()
    assert source.tolist() == target.tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3), (2, 2), (3, 4), (0, 0)])
def test_range_of_rows_keeps_ids_of_sources_and_all_degrees(start: int, stop: int) -> None:
    graph = Adjacency.from_edge_index(LISTED, 4)
    part = graph.rows(start, stop)
    assert (part.num_rows, part.num_cols, part.symmetric) == (stop - start, 4, False)
    assert pairs(part.edge_index()) == [(s, t - start) for s, t in pairs(PROPER) if start <= t < stop]
    source, target = part.degrees()
    assert source.tolist() == [2, 1, 1, 1]
    assert target.tolist() == [2, 1, 1, 1][start:stop]


def test_part_without_degrees_of_its_sources_has_none() -> None:
    part = Adjacency(torch.tensor([0, 1]), torch.tensor([2], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="must come with source_degree"):
        part.degrees()


def test_moving_keeps_everything() -> None:
    part = Adjacency.from_edge_index(LISTED, 4).rows(1, 3)
    moved = part.to("cpu")
    for name in ("rowptr", "col", "source_degree", "target_degree"):
        assert torch.equal(getattr(moved, name), getattr(part, name))
    assert (moved.num_cols, moved.symmetric) == (part.num_cols, part.symmetric)
    assert Adjacency.from_edge_index(LISTED, 4).to("cpu").source_degree is None


# --- What models accept ------------------------------------------------------------------------------------


def test_rows_are_taken_as_they_are() -> None:
    graph = Adjacency.from_edge_index(LISTED, 4)
    assert as_adjacency(graph) is graph


def test_simple_graph_lends_its_rows() -> None:
    simple = CSRGraph.from_edge_index(LISTED, 4)
    graph = as_adjacency(simple)
    assert graph.col is simple.col
    assert (graph.num_cols, graph.symmetric) == (4, True)
    one_way = simple.filter(simple.edge_index()[0] < simple.edge_index()[1], symmetric=False)
    assert not as_adjacency(one_way).symmetric


@pytest.mark.parametrize("x", [torch.ones(6, 2), SparseRows.from_dense(torch.ones(6, 2))])
def test_features_tell_the_number_of_nodes(x: Tensor | SparseRows) -> None:
    assert as_adjacency(LISTED, x).num_rows == 6
    assert as_adjacency(LISTED, x, num_nodes=8).num_rows == 8
    assert as_adjacency(LISTED, num_nodes=4).num_rows == 4


def test_edges_alone_do_not_tell_the_number_of_nodes() -> None:
    with pytest.raises(
        ValueError, match="num_nodes is needed where x is None and the graph is an edge_index"
    ):
        as_adjacency(LISTED)


@pytest.mark.parametrize(("filled", "sparse"), [(0, True), (20, True), (21, False), (100, False)])
def test_features_become_sparse_where_a_fifth_at_most_is_filled(filled: int, sparse: bool) -> None:
    x = torch.zeros(100)
    x[torch.randperm(100)[:filled]] = 2.5
    x = x.view(10, 10)
    found = as_features(x)
    assert isinstance(found, SparseRows) == sparse
    if isinstance(found, SparseRows):
        row = torch.repeat_interleave(torch.arange(10), found.rowptr.diff())
        matrix = torch.zeros(10, 10).index_put_((row, found.col.long()), found.value)
        assert torch.equal(matrix, x)
        assert (found.size(0), found.size(1)) == (10, 10)
    else:
        assert found is x


@pytest.mark.parametrize("x", [torch.zeros(3, 2, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(5)])
def test_other_features_stay_as_they_are(x: Tensor) -> None:
    assert as_features(x) is x


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 100)])
def test_a_range_of_rows_lies_in_the_graph(start: int, stop: int) -> None:
    graph = Adjacency.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3)
    with pytest.raises(IndexError, match="of a graph of 3"):
        graph.rows(start, stop)
