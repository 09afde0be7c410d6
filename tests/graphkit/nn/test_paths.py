"""Nodes between source and target: a shortest path whatever the arrows, or all directed walks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphkit.nn.paths import path_mask, path_nodes


def index(edges: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t()


def shortest(edges: list[tuple[int, int]], nodes: int, start: int) -> list[int]:
    """Lengths of shortest paths by relaxing all edges until nothing changes, -1 where there is none."""
    far = nodes + 1
    length = [far] * nodes
    length[start] = 0
    for _ in range(nodes):
        for u, v in edges:
            length[v] = min(length[v], length[u] + 1)
            length[u] = min(length[u], length[v] + 1)
    return [-1 if value == far else value for value in length]


def nodes_of(n: int) -> st.SearchStrategy[int]:
    return st.integers(0, n - 1)


def edge_lists(n: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.tuples(nodes_of(n), nodes_of(n)), max_size=14)


@given(st.integers(2, 8).flatmap(lambda n: st.tuples(st.just(n), edge_lists(n), nodes_of(n), nodes_of(n))))
def test_nodes_are_those_of_a_shortest_path(case: tuple[int, list[tuple[int, int]], int, int]) -> None:
    nodes, edges, s, t = case
    found = path_nodes(index(edges), torch.tensor([s]), torch.tensor([t]), num_nodes=nodes)
    wanted = shortest(edges, nodes, s)[t]
    assert found.length.tolist() == [wanted]
    if wanted < 0:
        assert sorted(found.node.tolist()) == sorted({s, t})
        return
    from_s, to_t = shortest(edges, nodes, s), shortest(edges, nodes, t)
    assert len(found.node) == wanted + 1
    assert sorted(from_s[v] for v in found.node.tolist()) == list(range(wanted + 1))
    assert all(from_s[v] + to_t[v] == wanted for v in found.node.tolist())


def test_all_walks_follow_the_arrows() -> None:
    edges = index([(0, 1), (1, 3), (0, 2), (2, 3), (4, 3), (3, 0)])
    found = path_nodes(edges[:, :5], torch.tensor([0]), torch.tensor([3]), num_nodes=5, every=True)
    assert found.node.tolist() == [0, 1, 2, 3]


def test_mask_marks_a_path_in_every_graph_of_a_set() -> None:
    edges = index([(0, 1), (1, 2), (2, 0), (1, 0)])
    mask = path_mask(
        edges,
        torch.tensor([0, 3, 4]),
        torch.tensor([0, 4, 7]),
        torch.tensor([0, 0]),
        torch.tensor([2, 2]),
    )
    assert mask.tolist() == [True, False, True, False, True, False, True]  # the second graph's ends alone
    with pytest.raises(ValueError, match="source holds an id outside its graph"):
        path_mask(edges, torch.tensor([0, 4]), torch.tensor([0, 3]), torch.tensor([3]), torch.tensor([2]))


def test_what_does_not_fit_is_refused() -> None:
    edges, ends = index([(0, 1)]), torch.tensor([0])
    with pytest.raises(ValueError, match="outside"):
        path_nodes(index([(0, 5)]), ends, ends, num_nodes=2)
    with pytest.raises(ValueError, match=r"must be \[2, E\]"):
        path_nodes(torch.zeros(3, 1, dtype=torch.int64), ends, ends, num_nodes=2)
    with pytest.raises(ValueError, match=r"both must be \[B\]"):
        path_nodes(edges, ends, torch.tensor([0, 1]), num_nodes=2)
