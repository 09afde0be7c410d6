"""Convolutions with edge features against PyG and against loops in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GINEConv

from graphkit.nn.graph_conv import EdgeConv, EdgeRows, EdgeStates, GatedGCNLayer, GCNEdgeLayer, GINELayer

DOUBLE = torch.float64
ODD = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 0, 2, 1, 2, 1, 1]])  # repeats, a loop, node 4 alone


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE).requires_grad_()


def layers(width: int = 6) -> dict[str, EdgeConv]:
    made: dict[str, EdgeConv] = {
        "gine": GINELayer(width, width),
        "gcn": GCNEdgeLayer(width, width),
        "gated": GatedGCNLayer(width, width),
    }
    for layer in made.values():
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        layer.double()
    return made


def test_edges_are_sorted_by_target_and_keep_their_order() -> None:
    rows = EdgeRows.from_edge_index(ODD, 5)
    assert rows.rowptr.tolist() == [0, 2, 6, 8, 8, 8]
    assert rows.entry.tolist() == [1, 2, 0, 4, 6, 7, 3, 5]
    assert rows.col.tolist() == ODD[0, rows.entry.long()].tolist()


def test_gine_equals_pyg() -> None:
    ours, x, edge_attr = layers()["gine"], leaf(5, 6), leaf(8, 6)
    assert isinstance(ours, GINELayer)
    nn.init.constant_(ours.epsilon, 0.3)
    mlp = nn.Sequential(ours.first, ours.norm, nn.ReLU(), ours.second)
    theirs = GINEConv(mlp, eps=0.3, train_eps=True).double()
    results = []
    for conv, epsilon in ((ours, ours.epsilon), (theirs, theirs.eps)):
        y = conv(x, ODD, edge_attr)
        grads = torch.autograd.grad(y.square().sum(), (x, edge_attr, epsilon, *mlp.parameters()))
        results.append((y, grads[0], grads[1], grads[2].view(1), *grads[3:]))
    torch.testing.assert_close(results[0], results[1])


def test_gcn_equals_the_formula() -> None:
    layer, x, edge_attr = layers()["gcn"], torch.randn(5, 6, dtype=DOUBLE), torch.randn(8, 6, dtype=DOUBLE)
    assert isinstance(layer, GCNEdgeLayer)
    assert layer.own is not None
    h, degree = layer.linear(x), torch.bincount(ODD[1], minlength=5) + 1.0
    wanted = torch.stack([F.relu(h[i] + layer.own) / degree[i] for i in range(5)])
    for e, (j, i) in enumerate(ODD.T.tolist()):
        wanted[i] += F.relu(h[j] + edge_attr[e]) / math.sqrt(degree[i] * degree[j])
    torch.testing.assert_close(layer(x, ODD, edge_attr), wanted)


def test_gcn_without_edge_features_is_the_plain_layer() -> None:
    layer, x = GCNEdgeLayer(6, 4, edges=False).double(), torch.randn(5, 6, dtype=DOUBLE)
    adjacency = torch.eye(5, dtype=DOUBLE)
    for j, i in ODD.T.tolist():
        adjacency[i, j] += 1
    factor = adjacency.sum(1).rsqrt()
    torch.testing.assert_close(
        layer(x, ODD), factor[:, None] * adjacency @ (factor[:, None] * layer.linear(x))
    )


def test_gine_without_edge_features_is_the_plain_layer() -> None:
    layer, x = layers()["gine"], torch.randn(5, 6, dtype=DOUBLE)
    assert isinstance(layer, GINELayer)
    total = (1 + layer.epsilon) * x
    total = total.index_add(0, ODD[1], x[ODD[0]])
    torch.testing.assert_close(layer(x, ODD), layer.second(F.relu(layer.norm(layer.first(total)))))


@pytest.mark.parametrize("featured", [True, False])
def test_gated_gcn_equals_the_formula_for_nodes_and_edges(featured: bool) -> None:
    layer, x = layers()["gated"], torch.randn(5, 6, dtype=DOUBLE)
    edge_attr = torch.randn(8, 6, dtype=DOUBLE) if featured else None
    assert isinstance(layer, GatedGCNLayer)
    own, value, to, of = layer.nodes(x).chunk(4, 1)
    z = to[ODD[1]] + of[ODD[0]] + (0 if edge_attr is None else layer.edges(edge_attr))
    gate, zero = z.sigmoid(), torch.zeros(5, 6, dtype=DOUBLE)
    weight = zero.index_add(0, ODD[1], gate) + 1e-6
    wanted = own + zero.index_add(0, ODD[1], gate * value[ODD[0]]) / weight
    torch.testing.assert_close(layer(x, ODD, edge_attr), wanted)
    rows = EdgeRows.from_edge_index(ODD, 5)
    _, new = layer.propagate(x, rows, None if edge_attr is None else EdgeStates(edge_attr, rows.entry))
    assert new is not None
    assert layer.edge_norm is not None
    updated = F.relu(layer.edge_norm(z)) + (0 if edge_attr is None else edge_attr)
    torch.testing.assert_close(new.expand(), updated[rows.entry.long()])


@pytest.mark.parametrize("name", ["gine", "gcn", "gated"])
def test_layers_take_what_has_no_edges(name: str) -> None:
    layer = layers()[name]
    for nodes in (1, 3):
        x = leaf(nodes, 6)
        y = layer(x, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 6, dtype=DOUBLE))
        y.sum().backward()
        assert y.shape == (nodes, 6)
        assert torch.isfinite(y).all()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", ["gine", "gcn", "gated"])
def test_half_precision_is_computed_in_float32(name: str) -> None:
    layer = layers()[name].float().eval()
    x, edge_attr = torch.randn(5, 6), torch.randn(8, 6)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x, ODD, edge_attr)
    torch.testing.assert_close(half.float(), layer(x, ODD, edge_attr), atol=0.2, rtol=0.05)


def test_layers_refuse_what_does_not_fit() -> None:
    x, edge_attr = torch.zeros(5, 6), torch.zeros(8, 6)
    layer = GINELayer(6, 6)
    with pytest.raises(ValueError, match=r"edge_index has shape \(3, 8\)"):
        layer(x, torch.zeros(3, 8, dtype=torch.int64), edge_attr)
    with pytest.raises(ValueError, match=r"edge_attr has shape \(7, 6\)"):
        layer(x, ODD, edge_attr[:7])
    with pytest.raises(ValueError, match="outside"):
        layer(x[:3], ODD, edge_attr)
    with pytest.raises(ValueError, match="norm is 'group'"):
        GINELayer(6, 6, norm="group")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="edge_attr is None"):
        GCNEdgeLayer(6, 6)(x, ODD)
    with pytest.raises(ValueError, match="edge_attr is given"):
        GCNEdgeLayer(6, 6, edges=False)(x, ODD, edge_attr)


def test_drawing_anew_changes_all_matrices() -> None:
    for layer in (GINELayer(6, 6), GCNEdgeLayer(6, 6), GatedGCNLayer(6, 6)):
        before = {name: p.detach().clone() for name, p in layer.named_parameters() if p.dim() > 1}
        layer.reset_parameters()
        assert before
        assert all(not torch.equal(p, before[n]) for n, p in layer.named_parameters() if n in before)
