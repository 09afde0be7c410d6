"""Nodes between source and target, against a search written plainly."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data

from graphkit.graphs import collate
from graphkit.nn.paths import path_mask, path_nodes


def distances(pairs: list[tuple[int, int]], nodes: int, start: int) -> list[int]:
    """Distances from a node along the given directions; -1 where there is no way."""
    found, queue = [-1] * nodes, deque([start])
    found[start] = 0
    while queue:
        u = queue.popleft()
        for a, b in pairs:
            if a == u and found[b] < 0:
                found[b] = found[u] + 1
                queue.append(b)
    return found


def both_ways(ends: Tensor) -> list[tuple[int, int]]:
    pairs = [(a, b) for a, b in ends.t().tolist()]
    return pairs + [(b, a) for a, b in pairs]


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(0, 14), st.data())
def test_nodes_are_those_of_a_shortest_path(nodes: int, edges: int, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 999)))
    ends = torch.randint(nodes, (2, edges))
    source, target = torch.randint(nodes, (2, 4))
    found = path_nodes(ends, source, target, num_nodes=nodes)
    assert found.graph.tolist() == sorted(found.graph.tolist())
    near = both_ways(ends)
    for b, (s, t) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        node, length = found.node[found.graph == b].tolist(), distances(near, nodes, s)[t]
        assert found.length[b] == length
        if length < 0:
            assert node == [s, t]
            continue
        assert (node[0], node[-1], len(node)) == (s, t, length + 1)
        assert all(step in near for step in pairwise(node))


@settings(max_examples=40)
@given(st.integers(1, 8), st.integers(0, 14), st.data())
def test_every_path_has_the_nodes_of_all_directed_walks(nodes: int, edges: int, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 999)))
    ends = torch.randint(nodes, (2, edges))
    source, target = torch.randint(nodes, (2, 3))
    found = path_nodes(ends, source, target, num_nodes=nodes, every=True)
    one = path_nodes(ends, source, target, num_nodes=nodes)
    assert torch.equal(found.length, one.length)
    forward = [(a, b) for a, b in ends.t().tolist()]
    for b, (s, t) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        out, back = distances(forward, nodes, s), distances([(y, x) for x, y in forward], nodes, t)
        wanted = [v for v in range(nodes) if out[v] >= 0 and back[v] >= 0]
        wanted = wanted or one.node[one.graph == b].tolist()
        assert found.node[found.graph == b].tolist() == wanted


def test_renumbering_nodes_changes_no_path() -> None:
    ends, new = torch.randint(30, (2, 45)), torch.randperm(30)
    source, target = torch.randint(30, (2, 50))
    for every in (False, True):
        found = path_nodes(ends, source, target, num_nodes=30, every=every)
        moved = path_nodes(new[ends], new[source], new[target], num_nodes=30, every=every)
        for b in range(50):
            assert set(new[found.node[found.graph == b]].tolist()) == set(
                moved.node[moved.graph == b].tolist()
            )


def test_the_source_is_on_its_path_wherever_it_is_listed() -> None:
    """A published implementation misses it here, where no edge at the source is the first."""
    ends = torch.tensor([[3, 0, 1, 0], [1, 3, 2, 4]])
    found = path_nodes(ends, torch.tensor([0]), torch.tensor([2]), num_nodes=5)
    assert found.node.tolist() == [0, 3, 1, 2]


def graph_set(count: int) -> tuple[Data, Tensor]:
    """Graphs of several sizes, and the nodes of all their paths one graph at a time."""
    graphs, masks = [], []
    for _ in range(count):
        nodes = int(torch.randint(1, 8, ()))
        ends = torch.randint(nodes, (2, int(torch.randint(0, 12, ()))))
        source, target = torch.randint(nodes, (2, 1))
        graphs.append(Data(num_nodes=nodes, edge_index=ends, source=source, target=target))
        masks.append(torch.zeros(nodes, dtype=torch.bool))
        masks[-1][path_nodes(ends, source, target, num_nodes=nodes).node] = True
    return collate(graphs), torch.cat(masks)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_set_of_graphs_is_marked_at_once(dtype: torch.dtype) -> None:
    data, wanted = graph_set(40)
    ends = (data.source.to(dtype), data.target.to(dtype))
    assert torch.equal(path_mask(data.edge_index.to(dtype), data.edge_ptr, data.ptr, *ends), wanted)


def test_a_set_may_be_empty() -> None:
    zero, none = torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    assert path_mask(torch.empty(2, 0, dtype=torch.int64), zero, zero, none, none).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_index": torch.tensor([[0, 3], [1, 2]])}, "edge_index holds an id outside its graph"),
        ({"source": torch.tensor([0, 3])}, "source holds an id outside its graph"),
        ({"target": torch.tensor([-1, 0])}, "target holds an id outside its graph"),
        ({"source": torch.tensor([0])}, "source"),
        ({"edge_ptr": torch.tensor([0, 2])}, "edge_ptr has shape"),
    ],
)
def test_wrong_sets_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "edge_index": torch.tensor([[0, 0], [1, 1]]),
        "edge_ptr": torch.tensor([0, 1, 2]),
        "ptr": torch.tensor([0, 2, 5]),
        "source": torch.tensor([0, 0]),
        "target": torch.tensor([1, 2]),
    } | change
    with pytest.raises(ValueError, match=message):
        path_mask(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_index": torch.tensor([[0, 3], [1, 2]])}, r"edge_index holds an id outside \[0, 3\)"),
        ({"edge_index": torch.tensor([0, 1])}, "edge_index has shape"),
        ({"source": torch.tensor([3])}, r"source holds an id outside \[0, 3\)"),
        ({"target": torch.tensor([-1])}, r"target holds an id outside \[0, 3\)"),
        ({"target": torch.tensor([0, 1])}, "target"),
    ],
)
def test_wrong_graphs_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "edge_index": torch.tensor([[0, 1], [1, 2]]),
        "source": torch.tensor([0]),
        "target": torch.tensor([2]),
        "num_nodes": 3,
    } | change
    with pytest.raises(ValueError, match=message):
        path_nodes(**given)
