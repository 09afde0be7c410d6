"""What holds for every node classifier of the zoo; the registry says which there are."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.config import RunConfig
from graphkit.data import DataSpec
from graphkit.experiment import build_model
from graphkit.nn.embedding import Embedding
from graphkit.registry import MODELS
from graphkit.sampling import NeighborSampler
from graphkit.sparse import Adjacency
from graphkit.tasks.node import NodeModelProtocol
from graphkit.testing import edge_case_graphs, tiny_graph
from graphkit.train.tensors import load_tensors, save_tensors

FROZEN_KEYS = Path(__file__).parent / "frozen" / "node_state_dict_keys.json"
KINDS = ("dense", "tensor_train", "hash", "quotient_remainder")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- Models under test: every registered name, and options that lead through other code --------------------

EVERY_BLOCK: dict[str, Any] = {"residual": True, "jumping": True, "linear_head": True, "norm": "layer"}
EXTRA_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gcn, every block": ("gcn", EVERY_BLOCK),
    "gat, every block": ("gat", EVERY_BLOCK),
    "tt-gnn, sage": ("tt-gnn", {"conv": "sage", "norm": "none"}),
    "tt-gnn, gat": ("tt-gnn", {"conv": "gat", "heads": 2}),
}
CASES = {**{name: (name, {}) for name in MODELS.names(task="node")}, **EXTRA_CASES}
CHANNELS, NODES, CLASSES = 5, 14, 3
RATES = {"dropout": 0.4, "feature_dropout": 0.4}


def create(
    case: str, seed: int = 0, in_channels: int | None = CHANNELS, nodes: int = NODES, **options: Any
) -> nn.Module:
    """Builds a case as the framework does, small where its width can be chosen."""
    name, fixed = CASES[case]
    accepted = inspect.signature(MODELS.get(name).target).parameters
    small = {"hidden_channels": 8, "heads": 2, "embedding": {"kind": "tensor_train", "dim": 8, "rank": 2}}
    taken = {key: value for key, value in {**small, **fixed, **options}.items() if key in accepted}
    config = RunConfig(model_name=name, dataset_name="none", task_name="node", seed=seed, model=taken)
    return build_model(config, DataSpec(num_nodes=nodes, in_channels=in_channels, num_classes=CLASSES))


def learns_rows(model: nn.Module) -> bool:
    return any(isinstance(module, Embedding) for module in model.modules())


@functools.cache
def tiny() -> tuple[Tensor, Adjacency, Tensor]:
    """Features, graph and classes."""
    data = tiny_graph(NODES, 26, CHANNELS, CLASSES)
    return data.x, Adjacency.from_edge_index(data.edge_index, NODES), data.y


def label_loss(model: nn.Module) -> Tensor:
    x, graph, y = tiny()
    return F.cross_entropy(model(x, graph).float(), y)


# --- Forward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_model_has_what_the_node_task_calls(case: str) -> None:
    model = create(case)
    assert isinstance(model, NodeModelProtocol)
    assert model.num_layers == 3


@pytest.mark.parametrize("case", CASES)
def test_forward_gives_one_finite_row_a_node(case: str) -> None:
    x, graph, _ = tiny()
    model = create(case, **RATES)
    for training in (True, False):
        logits = model.train(training)(x, graph)
        assert logits.shape == (NODES, CLASSES)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("case", CASES)
def test_edge_index_may_be_given_as_in_pytorch_geometric(case: str) -> None:
    x, graph, _ = tiny()
    model = create(case).eval()
    assert torch.equal(model(x, graph.edge_index().flip(1)), model(x, graph))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_without_features_rows_are_learnt(case: str, kind: str) -> None:
    _, graph, y = tiny()
    model = create(case, in_channels=None, embedding={"kind": kind, "dim": 6, "rank": 2})
    assert model.embedding.kind == kind
    logits = model(None, graph)
    F.cross_entropy(logits, y).backward()
    assert logits.shape == (NODES, CLASSES)
    for parameter in model.embedding.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any()


@pytest.mark.parametrize("case", CASES)
def test_evaluation_is_deterministic_and_draws_no_random_numbers(case: str) -> None:
    x, graph, _ = tiny()
    model = create(case, **RATES).eval()
    before = torch.get_rng_state()
    first = model(x, graph)
    assert torch.equal(first, model(x, graph))
    assert torch.equal(first, model.inference(x, graph))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("case", CASES)
def test_dropout_acts_in_training_alone(case: str, rate: str) -> None:
    x, graph, _ = tiny()
    model = create(case, **{**dict.fromkeys(RATES, 0.0), rate: 0.4})
    first, second = (model.train()(x, graph) for _ in range(2))
    assert not torch.equal(first, second)
    without = create(case, **dict.fromkeys(RATES, 0.0))
    without.load_state_dict(model.state_dict())  # running statistics
    assert torch.equal(model.eval()(x, graph), without.eval()(x, graph))


@pytest.mark.parametrize("case", CASES)
def test_renumbering_nodes_renumbers_logits(case: str) -> None:
    x, graph, _ = tiny()
    model = create(case).eval()
    new_id = torch.randperm(NODES)  # of each old node
    old_id = torch.argsort(new_id)
    moved = Adjacency.from_edge_index(new_id[graph.edge_index()], NODES)
    n_id = old_id if learns_rows(model) else None
    torch.testing.assert_close(model(x[old_id], moved, n_id), model(x, graph)[old_id], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_self_loops_and_duplicate_edges_change_nothing(case: str) -> None:
    x, graph, _ = tiny()
    model = create(case).eval()
    edges = graph.edge_index()
    messy = torch.cat([edges, torch.arange(NODES).expand(2, -1), edges[:, ::3]], dim=1)
    assert torch.equal(model(x, messy), model(x, edges))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("odd", list(edge_case_graphs()))
def test_odd_graphs_give_finite_logits(case: str, odd: str) -> None:
    data = edge_case_graphs(CHANNELS)[odd]
    model = create(case, nodes=data.num_nodes)
    for training in (True, False):
        logits = model.train(training)(data.x, data.edge_index)
        assert logits.shape == (data.num_nodes, CLASSES)
        assert torch.isfinite(logits).all()
    logits.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_sampled_blocks_and_portions_equal_the_whole(case: str) -> None:
    x, graph, _ = tiny()
    model, seeds = create(case).eval(), torch.tensor([5, 13, 0])
    whole = model(x, graph)
    batch = NeighborSampler(graph, [-1, -1, -1]).sample(seeds, 0, 0)
    found = model(x[batch.n_id], batch.blocks(), batch.n_id)
    torch.testing.assert_close(found, whole[seeds], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.inference(x, graph, rows=4), whole, atol=1e-5, rtol=1e-4)


# --- Training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [{}, RATES], ids=["default", "much dropout"])
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_finite_gradient(case: str, rates: dict[str, float]) -> None:
    model = create(case, **rates).train()
    label_loss(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("case", CASES)
def test_no_parameter_is_idle(case: str) -> None:
    """Biases before batch normalisation have no effect, so it is left out."""
    model = create(case, seed=1, norm="layer", dropout=0.0).train()
    label_loss(model).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize("case", CASES)
def test_one_batch_can_be_overfitted(case: str) -> None:
    sizes = {"hidden_channels": 32, "num_layers": 2, "residual": True, "linear_head": True}
    model = create(case, dropout=0.0, **sizes).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        loss = label_loss(model)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("case", CASES)
def test_seed_decides_the_weights(case: str) -> None:
    first, same, other = (create(case, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("case", CASES)
def test_building_a_model_leaves_the_random_state_alone(case: str) -> None:
    before = torch.get_rng_state()
    create(case)
    assert torch.equal(before, torch.get_rng_state())


# --- Weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_names_of_weights_are_those_of_stored_checkpoints(case: str) -> None:
    """A renamed weight makes published checkpoints unreadable; if that is meant, change the file as well."""
    assert list(create(case).state_dict()) == json.loads(FROZEN_KEYS.read_text())[case]


def test_no_frozen_names_are_left_of_models_that_are_gone() -> None:
    assert sorted(json.loads(FROZEN_KEYS.read_text())) == sorted(CASES)


@pytest.mark.parametrize("case", CASES)
def test_saved_weights_give_the_same_logits_when_loaded(case: str, tmp_path: Path) -> None:
    x, graph, _ = tiny()
    model, other = create(case, seed=0).eval(), create(case, seed=1).eval()
    for module in model.modules():
        if isinstance(module, Embedding) and module.row_factors is not None:
            module.set_order(torch.randperm(NODES))  # belongs to the weights
    save_tensors(tmp_path / "model.safetensors", model.state_dict())
    assert not torch.equal(model(x, graph), other(x, graph))
    other.load_state_dict(load_tensors(tmp_path / "model.safetensors"))
    assert torch.equal(model(x, graph), other(x, graph))


# --- Number formats and compilation ------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_float64_agrees_with_float32(case: str) -> None:
    x, graph, _ = tiny()
    model = create(case).eval()
    single = model(x, graph)
    double = model.double()(x.double(), graph)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast_is_finite_forward_and_backward(case: str) -> None:
    model = create(case, **RATES).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = label_loss(model)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("case", MODELS.names(task="node"))
def test_compiled_model_gives_the_same_logits(case: str) -> None:
    x, graph, _ = tiny()
    model = create(case, num_layers=1, linear_head=True).eval()
    with torch.no_grad():
        plain = model(x, graph)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="aot_eager")(x, graph)
    torch.testing.assert_close(compiled, plain)
