"""Many graphs in flat arrays: gathered batches are PyG's own disjoint unions."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch, Data

from graphkit.graphs import GraphSet, collate, ragged_index
from graphkit.nn.features import CategoryEmbedding, EdgeFeatures, NodeFeatures
from graphkit.nn.readout import MLPHead, TaperedHead, pool


def graphs(per_node: bool = False) -> list[Data]:
    g = torch.Generator().manual_seed(0)
    made = []
    for nodes, edges in ((3, 4), (1, 0), (5, 9), (2, 1)):
        made.append(
            Data(
                x=torch.randn(nodes, 2, generator=g),
                edge_index=torch.randint(nodes, (2, edges), generator=g),
                edge_attr=torch.randint(4, (edges, 3), generator=g),
                y=torch.randn(nodes if per_node else 1, 2, generator=g),
                num_nodes=nodes,
            )
        )
    return made


@pytest.mark.parametrize("per_node", [False, True])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [2, 0], [1], [3, 3, 2], []])
def test_batch_is_the_disjoint_union(ids: list[int], per_node: bool) -> None:
    store = GraphSet(collate(graphs(per_node)))
    found = store.batch(torch.tensor(ids, dtype=torch.int64))
    assert store.per_node == per_node
    assert found.ptr.tolist() == [0, *torch.tensor([graphs()[i].num_nodes for i in ids]).cumsum(0).tolist()]
    if not ids:
        assert (found.num_nodes, found.edge_index.shape, found.y.shape) == (0, (2, 0), (0, 2))
        return
    wanted = Batch.from_data_list([graphs(per_node)[i] for i in ids])
    for name in ("x", "edge_index", "edge_attr", "y", "batch", "ptr"):
        assert torch.equal(found[name], wanted[name]), name


def test_one_graph_comes_back_as_it_was() -> None:
    store = GraphSet(collate(graphs()))
    assert len(store) == 4
    assert store.sizes().tolist() == [3, 1, 5, 2]
    for number, graph in enumerate(graphs()):
        assert store[number].to_dict().keys() == graph.to_dict().keys()
        for name in ("x", "edge_index", "edge_attr", "y"):
            assert torch.equal(store[number][name], graph[name])
    with pytest.raises(IndexError, match="graph 4 of 4"):
        store[4]


def test_narrow_ids_are_widened() -> None:
    data = collate(graphs())
    data.edge_index = data.edge_index.to(torch.int16)
    ids = torch.arange(4)
    wanted = GraphSet(collate(graphs())).batch(ids).edge_index
    assert torch.equal(GraphSet(data).batch(ids).edge_index, wanted)


def test_what_does_not_fit_is_refused() -> None:
    first, *rest = graphs()
    del rest[0].x
    with pytest.raises(ValueError, match="graph 1 has no 'x'"):
        collate([first, *rest])
    with pytest.raises(ValueError, match="no graphs"):
        collate([])
    data = collate(graphs())
    data.edge_attr = data.edge_attr[1:]
    with pytest.raises(ValueError, match="edge_attr has 13 rows; there are 14 edges"):
        GraphSet(data)


def test_ragged_index_lists_rows_one_after_the_other() -> None:
    items, begin = ragged_index(torch.tensor([0, 2, 2, 5]), torch.tensor([2, 1, 0]))
    assert items.tolist() == [2, 3, 4, 0, 1]
    assert begin.tolist() == [0, 3, 3, 5]


def test_categories_add_up_a_row_for_each_column() -> None:
    module = CategoryEmbedding([3, 5], 4)
    x = torch.tensor([[0, 4], [2, 0], [2, 0]], dtype=torch.int8)
    first, second = module.weight.split([3, 5])
    torch.testing.assert_close(module(x), first[x[:, 0].long()] + second[x[:, 1].long()])
    with pytest.raises(ValueError, match="row 1 has category 5 in column 1; known are 0 to 4"):
        module(torch.tensor([[0, 0], [0, 5]]))
    with pytest.raises(ValueError, match="must be integers"):
        module(torch.zeros(2, 2))


def test_features_of_every_kind_are_encoded() -> None:
    assert NodeFeatures(4, in_channels=3)(torch.randn(5, 3)).shape == (5, 4)
    assert NodeFeatures(4, categories=[7])(torch.zeros(5, 1, dtype=torch.int64)).shape == (5, 4)
    assert NodeFeatures(4)(None, 5).shape == (5, 4)
    assert EdgeFeatures(4)(None, 6) is None
    assert EdgeFeatures(4, edge_channels=1)(torch.randn(6), 6).shape == (6, 4)
    assert EdgeFeatures(4, categories=[2, 2])(torch.ones(6, 2, dtype=torch.int64), 6).shape == (6, 4)
    assert EdgeFeatures(4, constant=True)(None, 6).shape == (6, 4)
    with pytest.raises(ValueError, match="x is None"):
        NodeFeatures(4, in_channels=3)(None, 5)
    with pytest.raises(ValueError, match="edge_attr is None"):
        EdgeFeatures(4, edge_channels=2)(None, 6)


@pytest.mark.parametrize("how", ["sum", "mean", "max"])
def test_pooling_combines_the_rows_of_each_graph(how: str) -> None:
    x, batch = torch.randn(6, 3), torch.tensor([0, 0, 2, 2, 2, 3])
    found = pool(x, batch, 4, how)
    for graph in range(4):
        rows = x[batch == graph]
        combine = {"sum": lambda r: r.sum(0), "mean": lambda r: r.mean(0), "max": lambda r: r.amax(0)}
        wanted = combine[how](rows) if rows.numel() else torch.zeros(3)
        torch.testing.assert_close(found[graph], wanted)


def test_heads_are_what_their_formulas_say() -> None:
    x = torch.randn(5, 8)
    tapered = TaperedHead(8, 3)
    a, b, c = tapered.layers
    torch.testing.assert_close(tapered(x), c(b(a(x).relu()).relu()))
    assert [tuple(layer.weight.shape) for layer in tapered.layers] == [(4, 8), (2, 4), (3, 2)]
    plain, scaled = MLPHead(8, 3, 2), MLPHead(8, 3, 2, l2norm=True)
    scaled.load_state_dict(plain.state_dict())
    hidden = plain.layers[0](x).relu()
    torch.testing.assert_close(plain(x), plain.layers[1](hidden))
    torch.testing.assert_close(scaled(x), plain.layers[1](hidden / hidden.norm(dim=1, keepdim=True)))
