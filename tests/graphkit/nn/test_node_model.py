"""Stacks of convolutions: whole graph, sampled blocks and ranges of rows give the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphkit.errors import UserError
from graphkit.nn import NodeModel
from graphkit.nn.conv import Conv, GATLayer, GCNLayer, GINLayer, LinearLayer, SAGELayer
from graphkit.nn.embedding import EmbeddingConfig, TTEmbedding
from graphkit.sampling import NeighborSampler
from graphkit.sparse import Adjacency, CSRGraph, SparseRows

NODES, CHANNELS, CLASSES = 15, 6, 4
CONVS = {"gcn": GCNLayer, "sage": SAGELayer, "gin": GINLayer, "gat": GATLayer, "mlp": LinearLayer}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"norm": "none"},
    "batch normalisation": {},
    "layer normalisation": {"norm": "layer"},
    "residual": {"residual": True},
    "head": {"linear_head": True},
    "jumping": {"linear_head": True, "jumping": True},
    "all of it": {"linear_head": True, "jumping": True, "residual": True, "norm": "layer"},
    "one layer": {"num_layers": 1},
    "one layer and head": {"num_layers": 1, "linear_head": True, "residual": True, "jumping": True},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Stack(NodeModel):
    conv = GCNLayer

    def make_conv(self, in_channels: int, out_channels: int, last: bool) -> Conv:
        return self.conv(in_channels, out_channels)


def make(
    conv: str = "gcn",
    in_channels: int | None = CHANNELS,
    classes: int | None = CLASSES,
    num_nodes: int | None = NODES,
    **options: Any,
) -> Stack:
    """A model in float64 and evaluation mode with running statistics that differ from those of a start."""
    kind = type("Stack", (Stack,), {"conv": CONVS[conv]})
    model = kind(in_channels, classes, num_nodes, **{"hidden_channels": 5, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def edges(directed: bool = False) -> Tensor:
    ends = torch.randint(NODES - 1, (2, 30), generator=torch.Generator().manual_seed(3))
    return ends if directed else torch.cat([ends, ends.flip(0)], dim=1)


def graph(directed: bool = False) -> Adjacency:
    return Adjacency.from_edge_index(edges(directed), NODES)


def features() -> Tensor:
    return torch.randn(NODES, CHANNELS, dtype=torch.float64)


# --- Forward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("conv", CONVS)
def test_result_is_one_row_of_logits_a_node(conv: str, options: dict[str, Any]) -> None:
    model = make(conv, **options)
    for training in (True, False):
        out = model.train(training)(features(), graph())
        assert out.shape == (NODES, CLASSES)
        assert torch.isfinite(out).all()


def test_layers_are_applied_as_the_docstring_says() -> None:
    x, rows = features(), graph()
    model = make("gcn", residual=True, jumping=True, linear_head=True, num_layers=2)
    h, total = x, 0
    for layer in range(2):
        mapped = h @ model.residuals[layer].weight + model.residuals[layer].bias
        h = torch.relu(model.norms[layer](model.convs[layer](h, rows) + mapped))
        total = total + h
    torch.testing.assert_close(model(x, rows), model.head(total))
    plain = make("sage", norm="none", num_layers=2)
    h = plain.convs[1](torch.relu(plain.convs[0](x, rows)), rows)
    torch.testing.assert_close(plain(x, rows), h)


def test_graph_may_come_in_any_form() -> None:
    x, model = features(), make("gcn")
    expected = model(x, graph())
    assert torch.equal(model(x, edges()), expected)
    assert torch.equal(model(x, CSRGraph.from_edge_index(edges(), NODES)), expected)
    assert torch.equal(model(x, [graph()] * 3), expected)


@pytest.mark.parametrize("conv", CONVS)
def test_sparse_features_give_what_dense_ones_do(conv: str) -> None:
    x = features() * (torch.rand(NODES, CHANNELS) < 0.3)
    model = make(conv, residual=True)
    torch.testing.assert_close(model(SparseRows.from_dense(x), graph()), model(x, graph()))


def test_dropout_of_sparse_features_is_that_of_dense_ones_in_the_mean() -> None:
    x = torch.rand(NODES, CHANNELS) * (torch.rand(NODES, CHANNELS) < 0.3)
    model = make("mlp", feature_dropout=0.5).train()
    dropped = torch.stack([model.embed(SparseRows.from_dense(x)).value for _ in range(500)])
    kept = SparseRows.from_dense(x).value
    assert set((dropped / kept).round().unique().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(dropped.mean(0), kept, atol=0.2, rtol=0.2)


# --- Sampled blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("conv", CONVS)
def test_blocks_with_all_neighbours_equal_the_whole_graph(conv: str, options: dict[str, Any]) -> None:
    model, x = make(conv, **options), features()
    seeds = torch.tensor([14, 2, 9])
    batch = NeighborSampler(graph(True), [-1] * model.num_layers).sample(seeds, 0, 0)
    found = model(x[batch.n_id], batch.blocks())
    torch.testing.assert_close(found, model(x, graph(True))[seeds])


@pytest.mark.parametrize("kind", ["dense", "tensor_train", "hash", "quotient_remainder"])
def test_rows_of_an_embedding_are_found_by_n_id(kind: Any) -> None:
    model = make("sage", None, embedding=EmbeddingConfig(kind=kind, rank=3))
    assert model.embedding is not None
    whole, seeds = model(None, graph()), torch.tensor([3, 0])
    batch = NeighborSampler(graph(), [-1, -1, -1]).sample(seeds, 0, 0)
    torch.testing.assert_close(model(None, batch.blocks(), batch.n_id), whole[seeds])
    order = torch.randperm(NODES)
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(NODES))
    moved = Adjacency.from_edge_index(place[edges()], NODES)
    torch.testing.assert_close(model(None, moved, order), whole[order])
    torch.testing.assert_close(model.inference(None, moved, order, rows=4), whole[order])


def test_number_of_blocks_must_be_that_of_layers() -> None:
    batch = NeighborSampler(graph(), [-1, -1]).sample(torch.tensor([0]), 0, 0)
    with pytest.raises(ValueError, match="2 blocks for 3 layers; sample one hop for each layer"):
        make()(features()[batch.n_id], batch.blocks())


@pytest.mark.parametrize("conv", CONVS)
def test_batch_of_one_node_and_of_none_can_be_trained_on(conv: str) -> None:
    model = make(conv).train()
    for seeds in (torch.tensor([14]), torch.empty(0, dtype=torch.int64)):  # 14 has no neighbour
        batch = NeighborSampler(graph(), [2, 2, 2]).sample(seeds, 0, 0)
        out = model(features()[batch.n_id], batch.blocks())
        out.sum().backward()
        assert out.shape == (seeds.numel(), CLASSES)
        assert torch.isfinite(out).all()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# --- Inference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, NODES, None])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("conv", CONVS)
def test_inference_in_portions_equals_forward(conv: str, options: dict[str, Any], rows: int | None) -> None:
    model, x = make(conv, **options), features()
    torch.testing.assert_close(model.inference(x, graph(True), rows=rows), model(x, graph(True)))


@pytest.mark.parametrize("conv", CONVS)
def test_inference_in_portions_takes_sparse_features(conv: str) -> None:
    model, x = make(conv, residual=True), features() * (torch.rand(NODES, CHANNELS) < 0.3)
    found = model.inference(SparseRows.from_dense(x), graph(), rows=4)
    torch.testing.assert_close(found, model(x, graph()))


def test_inference_reads_an_edge_index() -> None:
    model, x = make(), features()
    torch.testing.assert_close(model.inference(x, edges(), rows=4), model(x, edges()))


@pytest.mark.parametrize("training", [True, False])
def test_inference_drops_nothing_and_leaves_the_mode_as_it_was(training: bool) -> None:
    model, x = make(dropout=0.9, feature_dropout=0.9), features()
    expected = model.eval()(x, graph())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = model.train(training).inference(x, graph(), rows=4)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_inference_that_fails_leaves_the_mode_as_it_was() -> None:
    model = make().train()
    with pytest.raises(ValueError, match="x is None"):
        model.inference(None, graph())
    assert model.training


@pytest.mark.parametrize("rows", [None, 2])
def test_inference_of_no_nodes(rows: int | None) -> None:
    none = Adjacency.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0)
    found = make().inference(features()[:0], none, rows=rows)
    assert found.shape == (0, CLASSES)


# --- Arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, "num_classes is None; this data set has no classes"),
        ({"classes": 0}, "num_classes is 0; it must be at least 1"),
        ({"hidden_channels": 0}, "hidden_channels is 0; it must be at least 1"),
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"dropout": 1.5}, r"dropout is 1.5; it must lie in \[0, 1\]"),
        ({"feature_dropout": -0.1}, r"feature_dropout is -0.1; it must lie in \[0, 1\]"),
        ({"norm": "group"}, "norm is 'group'; it must be one of batch, layer, none"),
        ({"jumping": True}, "jumping needs linear_head"),
        ({"in_channels": None, "num_nodes": None}, "in_channels is None, so num_nodes must say"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_features_that_are_missing_are_asked_for() -> None:
    with pytest.raises(ValueError, match="x is None, but this model was built with in_channels"):
        make()(None, graph())


def test_width_of_an_embedding_is_that_of_the_layers_unless_chosen() -> None:
    assert make(in_channels=None).embedding.embedding_dim == 5
    model = make(in_channels=None, embedding=EmbeddingConfig(kind="tensor_train", dim=8, rank=2))
    assert isinstance(model.embedding, TTEmbedding)
    assert model.embedding.embedding_dim == 8
    assert model.convs[0].weight.shape == (8, 5)


def test_embedding_may_be_a_mapping_as_files_hold_it() -> None:
    model = make(in_channels=None, embedding={"kind": "tensor_train", "rank": 2})
    assert isinstance(model.embedding, TTEmbedding)
    with pytest.raises(UserError, match=r"unknown key 'embedding.knd'; did you mean 'kind'\?"):
        make(in_channels=None, embedding={"knd": "dense"})


def test_reset_draws_all_parameters_anew() -> None:
    model = make("gin", None, embedding=EmbeddingConfig(kind="dense"), linear_head=True, residual=True)
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.reset_parameters()
    changed = [name for name, value in model.named_parameters() if not torch.equal(before[name], value)]
    assert changed == list(before)
