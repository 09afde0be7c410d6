"""Plain models of graphs: their options, what doesn't matter to them, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from graphkit.models.gated_gcn import GatedGCN
from graphkit.models.graph_gcn import GraphGCN
from graphkit.models.graph_gin import GraphGIN
from graphkit.nn.graph_model import GraphModel
from graphkit.nn.readout import TaperedHead

MODELS = [GraphGIN, GraphGCN, GatedGCN]
NODE_SIZES, EDGE_SIZES = (4, 3), (3, 2)
SIZES = (6, 1, 9, 4)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer norm": {"norm": "layer"},
    "no norm": {"norm": "none"},
    "no residual": {"residual": False},
    "feed-forward": {"feed_forward": True},
    "virtual node": {"virtual_node": True},
    "walks": {"walk_steps": 5},
    "sum of layers": {"jumping": "sum"},
    "sum": {"pooling": "sum"},
    "max": {"pooling": "max"},
    "tapered head": {"head": "san"},
    "deep head": {"head_layers": 3, "head_l2norm": True},
    "nodes": {"head": "node", "head_layers": 2},
    "shared edges": {"shared_edges": True},
    "ogb's tables": {"feature_init": "xavier_uniform"},
    "one layer": {"num_layers": 1, "virtual_node": True},
    "everything": {"feed_forward": True, "virtual_node": True, "walk_steps": 3, "jumping": "sum"},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Batch:
    """Graphs of :data:`SIZES` with categories on nodes and edges, together and apart."""

    def __init__(self, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.sizes = torch.tensor(SIZES)
        self.batch = torch.repeat_interleave(torch.arange(len(SIZES)), self.sizes)
        self.parts, edges, first = [], [], 0
        for size in SIZES:
            ends = torch.randint(size, (2, 2 * size - 2), generator=g)  # loops, repeats, nodes without
            attr = torch.stack([torch.randint(n, (ends.size(1),), generator=g) for n in EDGE_SIZES], 1)
            x = torch.stack([torch.randint(n, (size,), generator=g) for n in NODE_SIZES], 1)
            self.parts.append((x, ends, attr))
            edges.append(ends + first)
            first += size
        self.x, self.edge_attr = (torch.cat([part[k] for part in self.parts]) for k in (0, 2))
        self.edge_index = torch.cat(edges, 1)

    def arguments(self) -> tuple[Tensor, ...]:
        return self.x, self.edge_index, self.edge_attr, self.batch, self.sizes


def build(kind: type[GraphModel], **options: Any) -> GraphModel:
    settings = {"hidden_channels": 12, "num_layers": 3, "dropout": 0.0, **options}
    model = kind(None, 2, NODE_SIZES, EDGE_SIZES, **settings)
    with torch.no_grad():
        model(*Batch(1).arguments())  # moves the running statistics
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # nothing stays at 0 or 1
    return model


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_option_predicts_and_reaches_every_parameter(kind: type[GraphModel], option: str) -> None:
    model, data = build(kind, **OPTIONS[option]), Batch()
    out = model(*data.arguments())
    assert out.shape == (sum(SIZES) if option == "nodes" else len(SIZES), 2)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_gives_what_its_graphs_give_alone(kind: type[GraphModel], option: str) -> None:
    model, data = build(kind, **OPTIONS[option]).double().eval(), Batch()
    together = model(*data.arguments())
    alone = torch.cat([model(*part) for part in data.parts])
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("kind", MODELS)
def test_the_order_of_nodes_and_edges_does_not_matter(kind: type[GraphModel]) -> None:
    model, (x, edge_index, edge_attr) = build(kind, **OPTIONS["everything"]).double().eval(), Batch().parts[2]
    new, order = torch.randperm(len(x)), torch.randperm(len(edge_attr))
    moved = torch.empty_like(x).index_copy_(0, new, x)
    torch.testing.assert_close(
        model(moved, new[edge_index[:, order]], edge_attr[order]), model(x, edge_index, edge_attr)
    )


@pytest.mark.parametrize("kind", MODELS)
def test_edges_and_their_features_count(kind: type[GraphModel]) -> None:
    model, data = build(kind).eval(), Batch()
    plain = model(*data.arguments())
    data.edge_attr = (data.edge_attr + 1) % torch.tensor(EDGE_SIZES)
    assert not torch.allclose(plain, model(*data.arguments()))
    model, data = build(kind).eval(), Batch()
    data.edge_index = data.edge_index.roll(1, 1)
    assert not torch.allclose(plain, model(*data.arguments()))


@pytest.mark.parametrize("kind", MODELS)
def test_batch_and_sizes_may_be_left_out(kind: type[GraphModel]) -> None:
    model, data = build(kind, **OPTIONS["everything"]).eval(), Batch()
    whole, given = model(*data.arguments()), (data.x, data.edge_index, data.edge_attr)
    assert torch.equal(model(*given, batch=data.batch), whole)
    assert torch.equal(model(*given, sizes=data.sizes), whole)


@pytest.mark.parametrize("kind", MODELS)
def test_categories_of_edges_give_what_their_encoder_gives_edge_by_edge(kind: type[GraphModel]) -> None:
    """Few combinations are encoded once; the encoder itself takes over where there are many."""
    model, data = build(kind).double(), Batch()
    results = []
    for one_hot in (model.edge_kinds.one_hot, None):
        model.edge_kinds.one_hot = one_hot
        out = model(*data.arguments())
        results.append((out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("kind", MODELS)
def test_features_may_be_numbers_or_missing(kind: type[GraphModel]) -> None:
    data, small = Batch(), {"hidden_channels": 12, "num_layers": 2}
    numbers = torch.randn(sum(SIZES), 5), torch.rand(data.edge_index.size(1))
    rest = (data.batch, data.sizes)
    out = kind(5, 2, edge_channels=1, **small)(numbers[0], data.edge_index, numbers[1], *rest)
    assert out.shape == (len(SIZES), 2)
    bare = kind(None, 2, **small).eval()
    out = bare(None, data.edge_index, None, *rest)
    assert torch.isfinite(out).all()
    assert torch.equal(out, bare(None, data.edge_index, data.edge_attr, *rest))  # not read


def test_a_virtual_node_joins_what_no_edge_joins() -> None:
    x, nothing = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)
    other = torch.tensor([[0, 0], [3, 2]])
    for virtual_node in (False, True):
        model = build(GraphGIN, virtual_node=virtual_node, head="node").eval()
        first, second = (model(nodes, nothing, torch.zeros(0, 2).long())[0] for nodes in (x, other))
        assert torch.equal(first, second) != virtual_node


def test_walks_tell_cycles_apart_that_convolutions_cannot() -> None:
    hexagon = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    triangles = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3]])
    for steps in (0, 3):
        model = GraphGIN(None, 1, hidden_channels=8, walk_steps=steps).eval()
        first, second = (
            model(None, torch.cat([e, e.flip(0)], 1), sizes=torch.tensor([6])) for e in (hexagon, triangles)
        )
        assert torch.allclose(first, second, atol=1e-6) == (steps == 0)


def test_tables_reach_the_model_unchanged_by_their_number() -> None:
    model = GraphGIN(None, 1, edge_categories=(3, 2), num_layers=4, shared_edges=True, head="san")
    assert len(model.edge_features) == 1
    assert isinstance(model.head, TaperedHead)
    assert GraphGIN(None, 1, edge_categories=(40, 40)).edge_kinds.one_hot is None
    assert len(GatedGCN(None, 1, edge_categories=(3, 2)).edge_features) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out_channels": None}, "no graph targets"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"hidden_channels": 0}, "hidden_channels is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"norm": "group"}, "norm is 'group'; it must be one of batch, layer, none"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"walk_steps": -1}, "walk_steps is -1"),
        ({"jumping": "cat"}, "jumping is 'cat'; it must be one of last, sum"),
        ({"pooling": "min"}, "pooling is 'min'"),
        ({"head": "linear"}, "head is 'linear'"),
    ],
)
@pytest.mark.parametrize("kind", MODELS)
def test_models_refuse_options_out_of_range(
    kind: type[GraphModel], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**{"in_channels": 3, "out_channels": 1, **options})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edge_attr": None}, "edge_attr is None"),
        ({"edge_attr": torch.zeros(3, 2, dtype=torch.int64)}, "3 rows for"),
        ({"edge_attr": torch.full((32, 2), 2)}, "category 2 in column 1; known are 0 to 1"),
        ({"edge_attr": torch.zeros(32, 2)}, "must be integers"),
        ({"edge_attr": torch.zeros(32, dtype=torch.int64)}, r"\[E, 2\]"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, "x has 3 rows; the graphs have 20 nodes"),
        ({"x": None, "batch": None, "sizes": None}, "one of them must say"),
    ],
)
def test_models_refuse_data_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    data = Batch()
    assert data.edge_index.size(1) == 32
    given = dict(zip(("x", "edge_index", "edge_attr", "batch", "sizes"), data.arguments(), strict=True))
    with pytest.raises(ValueError, match=words):
        build(GraphGIN)(**{**given, **change})


def test_drawing_a_model_anew_changes_it() -> None:
    model = build(GatedGCN, **OPTIONS["everything"]).eval()
    before = model(*Batch().arguments())
    model.reset_parameters()
    assert not torch.equal(before, model(*Batch().arguments()))
