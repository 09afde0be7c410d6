"""The encoder's convolutions against dense matrices in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graphkit.nn.encoder import CONVOLUTIONS, FeatureLinear, GraphEncoder, drop_edges, propagate
from graphkit.sparse import CSRGraph, SparseRows

NODES, FEATURES, WIDTH = 11, 7, 5
WEIGHTED = ("gcn", "sage", "gin", "max")
PURE = ("puregcn", "puresum", "puremean", "puremax")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def graph() -> CSRGraph:
    """A random graph whose last node is isolated."""
    ends = torch.randint(NODES - 1, (2, 24), generator=torch.Generator().manual_seed(1))
    return CSRGraph.from_edge_index(ends, NODES)


@pytest.fixture
def x() -> Tensor:
    """Features with many zeros."""
    dense = torch.randn(NODES, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return dense * (dense > 0)


def adjacency(graph: CSRGraph) -> Tensor:
    a = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    a[tuple(graph.edge_index())] = 1.0
    return a


def dense_propagate(x: Tensor, a: Tensor, aggregation: str) -> Tensor:
    if aggregation == "gcn":
        loops = a + torch.eye(len(a), dtype=a.dtype)
        scale = loops.sum(1).rsqrt()
        return (scale[:, None] * loops * scale) @ x
    if aggregation == "max":
        rows = [x[row.bool()].amax(0) if row.any() else torch.zeros_like(x[0]) for row in a]
        return torch.stack(rows)
    total = a @ x
    return total / a.sum(1, keepdim=True).clamp(min=1) if aggregation == "mean" else total


AGGREGATION = {"sage": "mean", "gin": "sum", **{name: name.removeprefix("pure") for name in PURE}}


def dense_encode(encoder: GraphEncoder, x: Tensor, a: Tensor, conv: str) -> Tensor:
    """The formula in evaluation mode, layer by layer."""
    kind = AGGREGATION.get(conv, conv)
    h = x @ encoder.input.weight + encoder.input.bias if encoder.pure else x
    outputs = []
    for layer in range(encoder.num_layers):
        if encoder.pure:
            y = dense_propagate(h, a, kind)
        else:
            y = dense_propagate(h @ encoder.convs[layer].weight, a, kind) + encoder.convs[layer].bias
            if layer < len(encoder.norms):
                norm = encoder.norms[layer]
                y = F.layer_norm(y, (WIDTH,), norm.weight, norm.bias) if hasattr(norm, "weight") else y
                y = F.relu(y)
        h = y + h if encoder.residual and h.shape == y.shape else y
        outputs.append(h)
    if encoder.jumping is not None:
        return sum(weight * output for weight, output in zip(encoder.jumping, outputs, strict=True))
    return h


def encoder_of(conv: str, layers: int = 2, **options: Any) -> GraphEncoder:
    encoder = GraphEncoder(FEATURES, WIDTH, layers, conv, **options).double().eval()
    for norm in encoder.norms:  # not the identity
        if hasattr(norm, "weight"):
            torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
            torch.nn.init.normal_(norm.bias)
    return encoder


@pytest.mark.parametrize("aggregation", ["sum", "mean", "max", "gcn"])
def test_propagation_equals_the_dense_product(graph: CSRGraph, x: Tensor, aggregation: str) -> None:
    torch.testing.assert_close(
        propagate(x, graph, aggregation), dense_propagate(x, adjacency(graph), aggregation)
    )


@pytest.mark.parametrize("aggregation", ["sum", "mean", "max", "gcn"])
def test_propagation_has_the_dense_products_gradient(graph: CSRGraph, x: Tensor, aggregation: str) -> None:
    x = torch.randn_like(x).requires_grad_()
    weight = torch.randn_like(x)
    ours = torch.autograd.grad((propagate(x, graph, aggregation) * weight).sum(), x)[0]
    dense = dense_propagate(x, adjacency(graph), aggregation)
    torch.testing.assert_close(ours, torch.autograd.grad((dense * weight).sum(), x)[0])


def test_value_of_an_edge_scales_sums_and_counts_in_gcn_degrees(graph: CSRGraph, x: Tensor) -> None:
    a, value = adjacency(graph), 1.5
    for aggregation in ("sum", "gcn"):
        expected = dense_propagate(x, a * value, aggregation)
        torch.testing.assert_close(propagate(x, graph, aggregation, value), expected)
    for aggregation in ("mean", "max"):
        expected = value * dense_propagate(x, a, aggregation)
        torch.testing.assert_close(propagate(x, graph, aggregation, value), expected)


@pytest.mark.parametrize("conv", [*WEIGHTED, *PURE, "none"])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_encoder_equals_its_dense_formula(graph: CSRGraph, x: Tensor, conv: str, layers: int) -> None:
    encoder = encoder_of(conv, layers)
    torch.testing.assert_close(encoder(x, graph), dense_encode(encoder, x, adjacency(graph), conv))


@pytest.mark.parametrize("conv", [*WEIGHTED, *PURE])
@pytest.mark.parametrize("option", ["residual", "jumping", "layer_norm"])
def test_encoder_with_an_option_equals_its_dense_formula(
    graph: CSRGraph, x: Tensor, conv: str, option: str
) -> None:
    encoder = encoder_of(conv, 3, **{option: option != "layer_norm"})
    torch.testing.assert_close(encoder(x, graph), dense_encode(encoder, x, adjacency(graph), conv))


def test_every_convolution_is_compared() -> None:
    assert sorted(CONVOLUTIONS) == sorted([*WEIGHTED, *PURE, "none"])


def test_edge_index_is_taken_in_place_of_rows(graph: CSRGraph, x: Tensor) -> None:
    encoder = encoder_of("gcn")
    assert torch.equal(encoder(x, graph.edges), encoder(x, graph))


def test_jumping_weights_start_as_a_mean_and_in_parity_at_random() -> None:
    assert GraphEncoder(4, 4, 4, jumping=True).jumping.tolist() == [0.25] * 4
    assert GraphEncoder(4, 4, 4, jumping=True, parity=True).jumping.unique().numel() == 4


# --- Features ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("conv", ["gcn", "puregcn"])
def test_sparse_features_equal_dense_ones(graph: CSRGraph, x: Tensor, conv: str) -> None:
    encoder = encoder_of(conv)
    expected = encoder(x, graph)
    torch.testing.assert_close(encoder(SparseRows.from_dense(x), graph), expected)
    torch.testing.assert_close(encoder(x.to_sparse_csr(), graph), expected)


@pytest.mark.parametrize("form", [SparseRows.from_dense, Tensor.to_sparse_csr])
def test_sparse_features_give_the_weights_gradient_of_dense_ones(x: Tensor, form: Any) -> None:
    layer, weight = FeatureLinear(FEATURES, WIDTH).double(), torch.randn(NODES, WIDTH, dtype=torch.float64)
    gradients = []
    for features in (x, form(x)):
        gradients.append(torch.autograd.grad((layer(features) * weight).sum(), [layer.weight, layer.bias]))
    for ours, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, dense)


def test_dropout_of_sparse_features_keeps_their_mean() -> None:
    x = torch.ones(4000, 1)
    layer = FeatureLinear(1, 1, dropout=0.75).train()
    torch.nn.init.ones_(layer.weight)
    found = layer.project(SparseRows.from_dense(x))
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert abs(float(found.detach().mean()) - 1) < 0.15


def test_without_features_every_node_has_a_learnt_row(graph: CSRGraph) -> None:
    encoder = GraphEncoder(None, WIDTH, 1, "puresum", num_embeddings=NODES + 2).double().eval()
    expected = adjacency(graph) @ encoder.input.table[:NODES]
    torch.testing.assert_close(encoder(None, graph), expected)


def test_ids_choose_embedding_rows(graph: CSRGraph) -> None:
    encoder = GraphEncoder(None, WIDTH, 0, "none", num_embeddings=4).eval()
    ids = torch.randint(4, (NODES,))
    assert torch.equal(encoder(ids, graph), encoder.input.table[ids])


def test_embedding_starts_orthogonal() -> None:
    weight = GraphEncoder(None, 8, num_embeddings=8).input.table
    torch.testing.assert_close(weight @ weight.t(), torch.eye(8), atol=1e-5, rtol=0)


# --- Edge dropout ------------------------------------------------------------------------------------------


def large_graph() -> CSRGraph:
    return CSRGraph.from_edge_index(torch.randint(400, (2, 20000)), 400)


@pytest.mark.parametrize("symmetric", [True, False])
def test_edges_are_dropped_at_the_rate_asked_for(symmetric: bool) -> None:
    graph = large_graph()
    kept, value = drop_edges(graph, 0.3, True, symmetric=symmetric)
    n = graph.num_entries / (2 if symmetric else 1)
    assert abs(kept.num_entries / graph.num_entries - 0.7) < 5 * (0.21 / n) ** 0.5
    assert value == pytest.approx(1 / 0.7)


def test_both_directions_of_an_edge_are_dropped_together() -> None:
    kept, _ = drop_edges(large_graph(), 0.5, True)
    a = adjacency(kept)
    assert torch.equal(a, a.t())
    assert kept.symmetric


def test_each_direction_is_dropped_by_itself_on_request() -> None:
    kept, _ = drop_edges(large_graph(), 0.5, True, symmetric=False)
    a = adjacency(kept)
    assert not torch.equal(a, a.t())
    assert not kept.symmetric


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (1e-7, True)])
def test_no_edge_is_dropped_outside_training_or_at_rate_zero(p: float, training: bool) -> None:
    graph = large_graph()
    kept, value = drop_edges(graph, p, training)
    assert kept is graph
    assert value == 1.0


@pytest.mark.parametrize("aggregation", ["sum", "mean", "max", "gcn"])
def test_propagation_over_a_one_sided_graph_has_the_right_gradient(x: Tensor, aggregation: str) -> None:
    whole = CSRGraph.from_edge_index(torch.randint(NODES, (2, 30)), NODES)
    kept, value = drop_edges(whole, 0.5, True, symmetric=False)
    x = torch.randn_like(x).requires_grad_()
    a, weight = adjacency(kept), torch.randn_like(x)
    if aggregation in ("sum", "gcn"):
        dense = dense_propagate(x, a * value, aggregation)
    else:
        dense = value * dense_propagate(x, a, aggregation)
    ours = propagate(x, kept, aggregation, value)
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weight).sum(), x)[0], torch.autograd.grad((dense * weight).sum(), x)[0]
    )


def test_every_layer_drops_its_own_edges() -> None:
    graph = large_graph()
    encoder = GraphEncoder(4, 4, 2, "puresum", edge_dropout=0.5).train()
    x = torch.randn(400, 4)
    torch.manual_seed(5)
    found = encoder(x, graph)
    torch.manual_seed(5)
    h = encoder.input(x)
    for _ in range(2):
        kept, value = drop_edges(graph, 0.5, True)
        h = propagate(h, kept, "sum", value)
    torch.testing.assert_close(found, h)


# --- Errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv": "gat"}, "conv is 'gat'; it must be one of gcn, sage"),
        ({"hidden_channels": 0}, "hidden_channels is 0"),
        ({"num_layers": -1}, "num_layers is -1; it must be at least 0"),
        ({"in_channels": None}, "num_embeddings must say how many node ids there are"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"feature_dropout": -0.1}, "feature_dropout is -0.1"),
        ({"edge_dropout": 2.0}, "edge_dropout is 2.0"),
        ({"tail_dropout": 2.0}, "tail_dropout is 2.0"),
    ],
)
def test_bad_argument_is_named_with_its_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        GraphEncoder(**{"in_channels": 4, "hidden_channels": 4, **arguments})


def test_missing_features_are_named(graph: CSRGraph) -> None:
    with pytest.raises(ValueError, match="x is None, but this encoder was built with in_channels"):
        encoder_of("gcn")(None, graph)


def test_more_nodes_than_embedding_rows_are_refused(graph: CSRGraph) -> None:
    with pytest.raises(ValueError, match="11 nodes, the embedding 3 rows"):
        GraphEncoder(None, WIDTH, num_embeddings=3)(None, graph)
