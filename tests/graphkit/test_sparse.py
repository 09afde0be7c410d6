"""Graphs as rows: edges each once, and their ids before and after some are removed."""

from __future__ import annotations

import torch

from graphkit.sparse import CSRGraph, undirected_edges

LISTED = torch.tensor([[3, 1, 1, 2, 2, 0], [1, 3, 1, 0, 0, 2]])


def test_undirected_edges() -> None:
    assert undirected_edges(LISTED, 4).tolist() == [[0, 1], [2, 3]]
    assert undirected_edges(torch.empty(2, 0, dtype=torch.int64), 0).shape == (2, 0)
    graph = CSRGraph.from_edge_index(LISTED, 4)
    assert graph.edges.tolist() == [[0, 1], [2, 3]]
    assert graph.edge_index().tolist() == [[0, 1, 2, 3], [2, 3, 0, 1]]


def test_edges_are_found_in_either_direction() -> None:
    graph = CSRGraph.from_edge_index(LISTED, 4)
    pairs = torch.tensor([[2, 1, 3, 0, 1], [0, 3, 1, 1, 1]])
    assert graph.find_edges(pairs).tolist() == [0, 1, 1, -1, -1]
    empty = CSRGraph.from_edge_index(LISTED[:, :0], 4)
    assert empty.find_edges(pairs).tolist() == [-1] * 5


def test_removed_edges_are_not_found() -> None:
    graph = CSRGraph.from_edge_index(torch.tensor([[0, 0, 1, 2], [1, 2, 2, 3]]), 4)
    without = graph.without_edges(torch.tensor([False, True, False, True]))
    assert without.find_edges(graph.edges).tolist() == [0, -1, 2, -1]
    assert without.find_edges(graph.edges.flip(0)).tolist() == [0, -1, 2, -1]
    one_way = graph.filter(graph.edge_index()[0] < graph.edge_index()[1], symmetric=False)
    assert one_way.find_edges(graph.edges).tolist() == [0, 1, 2, 3]
    assert graph.without_edges(torch.ones(4, dtype=torch.bool)).find_edges(graph.edges).tolist() == [-1] * 4
