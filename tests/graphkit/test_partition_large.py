"""Orders of graphs that are gone through in portions and hashed in places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graphkit import partition
from graphkit.sparse import Adjacency

EDGES = torch.randint(40, (2, 90), generator=torch.Generator().manual_seed(0))
BOTH = torch.cat([EDGES, EDGES.flip(0)], dim=1)


@pytest.mark.parametrize("entries", [1, 7, 10_000])
def test_portions_are_the_edges_in_their_order(entries: int) -> None:
    rows = Adjacency.from_edge_index(EDGES, 40)
    for graph, whole in ((EDGES, EDGES), (rows, rows.edge_index())):
        portions = list(partition._edge_portions(graph, entries))
        assert torch.equal(torch.cat(portions, dim=1), whole)
    empty = Adjacency.from_edge_index(EDGES[:, :0], 40)
    assert sum(portion.size(1) for portion in partition._edge_portions(empty, entries)) == 0


def test_a_stored_order_of_large_rows_is_found_without_reading_them_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "_SAMPLED", 10)
    rows = Adjacency.from_edge_index(BOTH, 40)
    first = partition.cached_order(tmp_path, rows, 40, (4, 12))
    assert torch.equal(first, partition.hierarchical_order(BOTH, 40, (4, 12)))
    monkeypatch.setattr(partition, "undirected_rows", None)  # what reads them
    assert torch.equal(partition.cached_order(tmp_path, rows, 40, (4, 12)), first)
    other = Adjacency.from_edge_index(BOTH[:, 2:], 40)
    with pytest.raises(TypeError):  # of another graph nothing is stored
        partition.cached_order(tmp_path, other, 40, (4, 12))
