"""GRIT: batches, odd graphs, memory, compilation, published sizes and weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Data

from graphkit.models.grit import GRIT, RRWP, WalkEncoding, from_official
from graphkit.testing import check_model, edge_case_graphs, tiny_graph

EXACT = {"atol": 1e-10, "rtol": 1e-10}
SMALL: dict[str, Any] = {"hidden_channels": 8, "heads": 2, "num_layers": 3, "walk_steps": 4}
NODES, EDGES, TARGETS = 5, 4, 2  # categories and targets


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def create(seed: int = 0, **options: Any) -> GRIT:
    torch.manual_seed(seed)
    taken = {**SMALL, "attention_dropout": 0.0, **options}
    return GRIT(None, TARGETS, [NODES], [EDGES], **taken)


def batch_of(*sizes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random graphs: node categories, edges in both directions, edge categories, graph of a node, sizes."""
    generator = torch.Generator().manual_seed(seed)
    edges, first = [], 0
    for number, size in enumerate(sizes):
        index = tiny_graph(size, 2 * size, seed=seed + number).edge_index
        edges.append(index + first)
        first += size
    edge_index = torch.cat(edges, dim=1)
    x = torch.randint(NODES, (first, 1), generator=generator)
    kind = (edge_index.sum(0) + edge_index.prod(0)) % EDGES  # the same in both directions
    count = torch.tensor(sizes)
    return x, edge_index, kind[:, None], torch.repeat_interleave(torch.arange(len(sizes)), count), count


# --- The model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["san", "mlp", "node"])
def test_prediction_has_a_row_a_graph_or_a_row_a_node(head: str) -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(4, 1, 7)
    model = create(head=head, head_layers=2, head_l2norm=True).eval()
    found = model(x, edge_index, edge_attr, batch, sizes)
    assert found.shape == ((12 if head == "node" else 3), TARGETS)
    for arguments in ((batch, None), (None, sizes)):
        assert torch.equal(model(x, edge_index, edge_attr, *arguments), found)
    alone = model(x[:4], edge_index[:, edge_index[0] < 4], edge_attr[edge_index[0] < 4])
    torch.testing.assert_close(alone, found[: alone.size(0)], atol=1e-5, rtol=1e-5)


MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "layer norm": {"norm": "layer", "pooling": "mean"},
    "list of pairs": {"full_attention": False, "walk_steps": 2, "pooling": "max"},
    "shortest paths": {"walk_kind": "spd", "degree_encoding": True, "feature_init": "xavier_uniform"},
    "constant pairs": {"update_pairs": False, "head": "mlp"},
}


@pytest.mark.parametrize("case", MODEL_OPTIONS)
def test_renumbering_nodes_and_edges_changes_nothing(case: str) -> None:
    x, edge_index, edge_attr, _, sizes = batch_of(5, 6)
    model = create(**MODEL_OPTIONS[case]).double().eval()
    expected = model(x, edge_index, edge_attr, sizes=sizes)
    new_id = torch.cat([torch.randperm(5), torch.randperm(6) + 5])
    order = torch.randperm(edge_index.size(1))
    moved = model(x[new_id.argsort()], new_id[edge_index][:, order], edge_attr[order], sizes=sizes)
    torch.testing.assert_close(moved, expected, **EXACT)
    nodes = create(**{**MODEL_OPTIONS[case], "head": "node"}).double().eval()
    before = nodes(x, edge_index, edge_attr, sizes=sizes)
    after = nodes(x[new_id.argsort()], new_id[edge_index][:, order], edge_attr[order], sizes=sizes)
    torch.testing.assert_close(after[new_id], before, **EXACT)


@pytest.mark.parametrize("case", MODEL_OPTIONS)
def test_a_batch_of_graphs_equals_each_alone(case: str) -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 1, 8)
    options = MODEL_OPTIONS[case]
    model = create(**options).double()
    for training in (False, True) if options.get("norm") == "layer" else (False,):
        together = model.train(training)(x, edge_index, edge_attr, batch, sizes)
        for graph, first in enumerate((0, 5, 6)):
            own, edges = batch == graph, batch[edge_index[0]] == graph
            alone = model(x[own], edge_index[:, edges] - first, edge_attr[edges])
            torch.testing.assert_close(alone[0], together[graph], **EXACT)


@pytest.mark.parametrize("case", MODEL_OPTIONS)
@pytest.mark.parametrize("odd", list(edge_case_graphs()))
def test_odd_graphs_give_finite_predictions_and_gradients(case: str, odd: str) -> None:
    data = edge_case_graphs()[odd]
    x, edge_attr = torch.zeros(data.num_nodes, 1, dtype=torch.int64), torch.ones(data.num_edges, 1).long()
    model = create(**MODEL_OPTIONS[case])
    for training in (False, True):
        model.zero_grad()
        found = model.train(training)(x, data.edge_index, edge_attr)
        assert torch.isfinite(found).all()
        found.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_list_of_all_pairs_equals_full_attention() -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(6, 5)
    steps = 6  # every node of a connected graph of 6 is reached
    ring = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 6]])
    edge_index = torch.cat([ring, ring.flip(0)], dim=1)
    edge_attr = edge_index.sum(0, keepdim=True).t() % EDGES
    models = [create(full_attention=full, walk_steps=steps).double().eval() for full in (True, False)]
    full, listed = (model(x, edge_index, edge_attr, batch, sizes) for model in models)
    torch.testing.assert_close(listed, full, **EXACT)
    assert models[1].structure(edge_index, sizes).pairs.num_pairs == 36 + 25


def test_repeated_edges_count_twice_unless_the_authors_way_is_asked_for() -> None:
    x, edge_attr = torch.zeros(3, 1).long(), torch.zeros(5, 1).long()
    edge_index = torch.tensor([[0, 0, 1, 1, 2], [1, 1, 0, 2, 1]])
    walks = [
        create(duplicates=d).structure(edge_index, torch.tensor([3])).relative for d in ("add", "overwrite")
    ]
    assert walks[0][1, 1] == 1
    assert walks[1][1, 1] == 0.5
    model = create().eval()
    assert not torch.equal(model(x, edge_index, edge_attr), model(x, edge_index[:, 1:], edge_attr[1:]))


@pytest.mark.parametrize("full", [True, False])
def test_walks_computed_before_give_the_same_prediction(full: bool) -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6)
    model = create(full_attention=full).eval()
    data = Data(edge_index=edge_index, num_nodes=11, ptr=torch.tensor([0, 5, 11]))
    walks = WalkEncoding.of(RRWP(4)(data))
    found = model(x, edge_index, edge_attr, batch, sizes, walks)
    assert torch.equal(found, model(x, edge_index, edge_attr, batch, sizes))


@pytest.mark.parametrize("constant", [True, False])
def test_graphs_without_features_have_walks_and_perhaps_a_row_for_all_edges(constant: bool) -> None:
    _, edge_index, _, batch, sizes = batch_of(5, 6)
    model = GRIT(None, 3, constant_edges=constant, **SMALL).eval()
    found = model(None, edge_index, None, batch, sizes)
    assert found.shape == (2, 3)
    assert torch.equal(model(None, edge_index, sizes=sizes), found)
    assert (model.edge_features.encoder is not None) == constant
    with pytest.raises(ValueError, match="how many nodes"):
        model(None, edge_index)


def test_numeric_features_of_nodes_and_edges_are_taken() -> None:
    _, edge_index, _, batch, sizes = batch_of(5, 6)
    model = GRIT(3, 2, edge_channels=1, **SMALL)
    found = model(torch.randn(11, 3), edge_index, torch.rand(edge_index.size(1)), batch, sizes)
    assert torch.isfinite(found).all()


def test_encoders_of_walks_start_as_published() -> None:
    model = create(hidden_channels=64)
    bound = math.sqrt(6 / (64 + 4))
    for encoder in (model.absolute, model.relative):
        assert 0.8 * bound < encoder.weight.abs().max() <= bound


def test_drawing_parameters_anew_follows_the_same_rules() -> None:
    model = create(0)
    torch.manual_seed(1)
    model.reset_parameters()
    scores = [layer.score.std().item() for layer in model.layers]
    assert all(0.2 < s < 1.2 for s in scores)
    assert not torch.equal(model.layers[0].score, create(0).layers[0].score)


def test_model_can_be_trained() -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6, 7)
    y = torch.randn(3, TARGETS)
    model = create(dropout=0.1, attention_dropout=0.2)
    check_model(model, lambda m: F.mse_loss(m(x, edge_index, edge_attr, batch, sizes), y))


def test_every_parameter_has_an_effect_on_the_prediction() -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6)
    model = create(norm="layer", use_bias=True, activation="gelu")
    model(x, edge_index, edge_attr, batch, sizes).square().sum().backward()
    # not even the bias of keys, which other attention ignores
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_alone_and_torch_s_seed_decides(rate: str) -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6)
    model = create(**{rate: 0.4}, norm="layer")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(x, edge_index, edge_attr, batch, sizes))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    without = create(norm="layer")
    without.load_state_dict(model.state_dict())
    arguments = (x, edge_index, edge_attr, batch, sizes)
    assert torch.equal(model.eval()(*arguments), without.eval()(*arguments))


def test_attention_of_every_layer_can_be_looked_at() -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(4, 3)
    model = create(attention_dropout=0.5).train()
    pairs, alpha = model.pair_attention(x, edge_index, edge_attr, batch, sizes)
    assert model.training
    assert alpha.shape == (3, 16 + 9, 2)
    total = alpha.new_zeros(3, 7, 2).index_add(1, pairs[1], alpha)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (batch[pairs[0]] == batch[pairs[1]]).all()
    assert not alpha.requires_grad


# --- Memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("memory_bytes", [1, 3000])
def test_recomputed_layers_give_the_same_step(norm: str, memory_bytes: int) -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6)
    found = []
    for budget in (None, memory_bytes):
        rates = {"dropout": 0.3, "attention_dropout": 0.3}
        model = create(norm=norm, num_layers=4, memory_bytes=budget, **rates).train()
        torch.manual_seed(3)
        prediction = model(x, edge_index, edge_attr, batch, sizes)
        prediction.square().sum().backward()
        after = torch.rand(1)  # as many random numbers are drawn
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append((prediction, gradients, dict(model.named_buffers()), after))
    torch.testing.assert_close(found[1], found[0], atol=0, rtol=0)


# --- Number formats and compilation ------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_bfloat16_autocast_keeps_pairs_in_float32(norm: str) -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6)
    model = create(norm=norm, dropout=0.2, attention_dropout=0.2, sqrt_floor=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        structure = model.structure(edge_index, sizes)
        h, state = model.encode(x, edge_attr, structure)
        for layer in model.layers:
            h, state = layer(h, state, structure.pairs, structure.log_degree)
            assert state.value.dtype == torch.float32
        loss = model.readout(h, batch, sizes).float().square().sum()
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name


def test_float64_agrees_with_float32() -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6)
    model = create().eval()
    single = model(x, edge_index, edge_attr, batch, sizes)
    double = model.double()(x, edge_index, edge_attr, batch, sizes)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


def test_compiled_model_gives_the_same_predictions_and_gradients() -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6)
    model = create(num_layers=2).double().train()
    other = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(other, backend="aot_eager")
    found = []
    for run in (model, compiled):
        prediction = run(x, edge_index, edge_attr, batch, sizes)
        prediction.square().sum().backward()
        found.append(prediction)
    torch.testing.assert_close(found[1], found[0], **EXACT)
    for (name, expected), parameter in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-8, rtol=1e-8, msg=name)


# --- Published sizes and weights ---------------------------------------------------------------------------

ATOMS, BONDS = [119, 5, 12, 12, 10, 6, 6, 2, 2], [5, 6, 2]
SUPERPIXELS = {"num_layers": 3, "hidden_channels": 52, "heads": 4, "walk_steps": 18, "head": "mlp"}
PEPTIDES = {"num_layers": 4, "hidden_channels": 96, "head": "mlp"}
# Sizes by the data, options, and the number of parameters of the authors' model; spec of each as shipped.
PUBLISHED: dict[str, tuple[tuple, dict[str, Any], int]] = {
    "ZINC-12k": ((None, 1, [21], [4]), {}, 473_473),
    "ZINC-full": ((None, 1, [28], [4]), {}, 473_921),
    "MNIST": ((3, 10, None, None, 1), {**SUPERPIXELS, "head_layers": 3}, 102_138),
    "CIFAR10": ((5, 10, None, None, 1), {**SUPERPIXELS, "head_layers": 2}, 99_486),
    "PATTERN": ((3, 1), {"head": "node", "head_layers": 3}, 477_953),
    "CLUSTER": (
        (7, 6),
        {"num_layers": 16, "hidden_channels": 48, "walk_steps": 32, "head": "node", "head_layers": 3},
        431_670,
    ),
    "PCQM4Mv2": (
        (None, 1, ATOMS, BONDS),
        {"num_layers": 16, "hidden_channels": 256, "walk_steps": 16, "activation": "gelu"},
        11_832_321,
    ),
    "peptides-func": ((None, 10, ATOMS, BONDS), {**PEPTIDES, "heads": 4, "walk_steps": 17}, 443_434),
    "peptides-struct": (
        (None, 11, ATOMS, BONDS),
        {**PEPTIDES, "heads": 8, "walk_steps": 24, "head_layers": 2},
        449_579,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_is_that_of_the_authors_code(name: str) -> None:
    sizes, options, expected = PUBLISHED[name]
    with torch.device("meta"):
        complete, lean = (GRIT(*sizes, unused_parameters=u, **options) for u in (True, False))
    count = sum(p.numel() for p in complete.parameters())
    assert count == expected
    d = options.get("hidden_channels", 64)
    unused = d * d + d + 2 * d  # the last layer's output map and norm of pairs
    assert sum(p.numel() for p in lean.parameters()) == count - unused


def test_unused_parameters_change_no_prediction() -> None:
    x, edge_index, edge_attr, batch, sizes = batch_of(5, 6)
    for options in ({}, {"walk_kind": "spd"}, {"update_pairs": False}):
        lean, complete = create(**options), create(unused_parameters=True, **options)
        missing, unexpected = complete.load_state_dict(lean.state_dict(), strict=False)
        assert missing
        assert not unexpected
        arguments = (x, edge_index, edge_attr, batch, sizes)
        assert torch.equal(lean.eval()(*arguments), complete.eval()(*arguments))
        complete(*arguments).sum().backward()
        assert all(
            complete.get_parameter(n).grad is None for n in missing if "running" not in n and "num_" not in n
        )


def test_authors_tables_of_categories_are_put_together() -> None:
    parts = [torch.randn(n, 8) for n in (3, 2)]
    state = {
        f"model.encoder.{kind}_encoder.{what}_embedding_list.{k}.weight": parts[k]
        for kind, what in (("node", "atom"), ("edge", "bond"))
        for k in (1, 0)
    }
    made = from_official({**state, "rrwp_rel_encoder.padding": torch.zeros(1, 8)})
    assert sorted(made) == ["edge_features.encoder.weight", "node_features.encoder.weight"]
    assert torch.equal(made["node_features.encoder.weight"], torch.cat(parts))
    with pytest.raises(ValueError, match=r"'layers\.0\.alpha' is no weight of GRIT"):
        from_official({"layers.0.alpha": parts[0]})


# --- Refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_channels": 10, "heads": 4}, "channels is 10; it must be a multiple of heads, 4"),
        ({"heads": 0}, "heads is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"walk_steps": 0}, "walk_steps is 0"),
        ({"walk_kind": "far"}, "walk_kind is 'far'"),
        ({"duplicates": "mean"}, "duplicates is 'mean'"),
        ({"norm": "none"}, "norm is 'none'"),
        ({"activation": "elu"}, "activation is 'elu'"),
        ({"attention_activation": "gelu"}, "attention_activation is 'gelu'"),
        ({"pooling": "min"}, "pooling is 'min'"),
        ({"head": "linear"}, "head is 'linear'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"memory_bytes": 0}, "memory_bytes is 0"),
        ({"feature_init": "zeros"}, "init is 'zeros'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**options)


def test_data_without_targets_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="out_channels is None"):
        GRIT(3, None)
    x, edge_index, edge_attr, _, _ = batch_of(5, 6)
    with pytest.raises(ValueError, match="sizes sum to 10; there are 11 nodes"):
        create()(x, edge_index, edge_attr, sizes=torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="joins nodes of two graphs"):
        create()(x, torch.tensor([[0], [7]]), edge_attr[:1], sizes=torch.tensor([5, 6]))
