"""What holds for every model that predicts from whole graphs; the registry says which there are."""

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
from torch_geometric.data import Data

from graphkit.config import RunConfig
from graphkit.data import DataSpec
from graphkit.experiment import build_model
from graphkit.graphs import GraphSet, collate
from graphkit.registry import MODELS
from graphkit.testing import edge_case_graphs, tiny_graph
from graphkit.train.tensors import load_tensors, save_tensors

FROZEN_KEYS = Path(__file__).parent / "frozen" / "graph_state_dict_keys.json"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- Models under test: every registered name, and options that lead through other code --------------------

PLAIN: dict[str, Any] = {"virtual_node": True, "walk_steps": 4, "feed_forward": True, "norm": "layer"}
EXTRA_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "grit, layer norm": ("grit", {"norm": "layer", "edge_enhance": False, "degree_scaler": False}),
    "grit, sparse": ("grit", {"full_attention": False, "update_pairs": False}),
    "graph-gin, every block": ("graph-gin", PLAIN),
    "graph-gcn, every block": ("graph-gcn", PLAIN),
    "gated-gcn, every block": ("gated-gcn", PLAIN),
}
WITHOUT_WEIGHTS = {"fingerprint"}
"""Fitted at once, not trained; tests/models/test_fingerprint.py is its."""
NAMES = [name for name in MODELS.names(task="graph") if name not in WITHOUT_WEIGHTS]
CASES = {**{name: (name, {}) for name in NAMES}, **EXTRA_CASES}
CHANNELS, CATEGORIES, EDGE_CATEGORIES, TARGETS = 5, (4, 3), (3, 2), 2
SMALL = {"hidden_channels": 16, "num_layers": 2, "heads": 2, "walk_steps": 4}
RATES = {"dropout": 0.3, "attention_dropout": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    "categories": {"node_categories": CATEGORIES, "edge_categories": EDGE_CATEGORIES},
    "numbers": {"in_channels": CHANNELS, "edge_channels": 1},
    "nothing": {},
}


def create(case: str, seed: int = 0, kind: str = "categories", **options: Any) -> nn.Module:
    """Builds a case as the framework does, small where its width can be chosen."""
    name, fixed = CASES[case]
    accepted = inspect.signature(MODELS.get(name).target).parameters
    small = {key: value for key, value in SMALL.items() if key != "walk_steps" or name == "grit"}
    taken = {key: value for key, value in {**small, **fixed, **options}.items() if key in accepted}
    config = RunConfig(model_name=name, dataset_name="none", task_name="graph", seed=seed, model=taken)
    return build_model(config, DataSpec(out_channels=TARGETS, **KINDS[kind]))


def dressed(graph: Data, seed: int, kind: str) -> Data:
    """Gives a graph random features of a kind, and targets."""
    g = torch.Generator().manual_seed(seed)
    nodes, edges = int(graph.num_nodes), graph.edge_index.size(1)
    made = Data(edge_index=graph.edge_index, num_nodes=nodes, y=torch.randn(1, TARGETS, generator=g))
    if kind == "categories":
        made.x = torch.stack([torch.randint(n, (nodes,), generator=g) for n in CATEGORIES], 1)
        made.edge_attr = torch.stack([torch.randint(n, (edges,), generator=g) for n in EDGE_CATEGORIES], 1)
    elif kind == "numbers":
        made.x, made.edge_attr = (
            torch.randn(nodes, CHANNELS, generator=g),
            torch.rand(edges, 1, generator=g),
        )
    return made


@functools.cache
def graphs(kind: str = "categories") -> tuple[Data, ...]:
    sizes = ((6, 9), (3, 2), (9, 14), (5, 5), (7, 12), (4, 4))
    return tuple(dressed(tiny_graph(n, m, seed=k), k, kind) for k, (n, m) in enumerate(sizes))


def joined(kind: str = "categories") -> Data:
    return GraphSet(collate(graphs(kind))).batch(torch.arange(len(graphs(kind))))


def predict(model: nn.Module, data: Data) -> Tensor:
    sizes = data.ptr.diff() if "ptr" in data else None
    out: Tensor = model(data.get("x"), data.edge_index, data.get("edge_attr"), data.get("batch"), sizes)
    return out


def loss_of(model: nn.Module, kind: str = "categories") -> Tensor:
    data = joined(kind)
    return (predict(model, data).float() - data.y).square().mean()


# --- Forward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_forward_gives_one_finite_row_a_graph(case: str, kind: str) -> None:
    data = joined(kind)
    model = create(case, kind=kind, **RATES)
    if kind == "nothing":
        data = Data(edge_index=data.edge_index, batch=data.batch, ptr=data.ptr, num_nodes=data.num_nodes)
    for training in (True, False):
        out = predict(model.train(training), data)
        assert out.shape == (len(graphs()), TARGETS)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("case", CASES)
def test_a_graph_alone_gives_what_it_gives_in_a_batch(case: str) -> None:
    model = create(case).eval()
    together = predict(model, joined())
    for number, graph in enumerate(graphs()):
        alone = model(graph.x, graph.edge_index, graph.edge_attr)
        torch.testing.assert_close(alone[0], together[number], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_renumbering_nodes_and_reordering_edges_changes_nothing(case: str) -> None:
    model, graph = create(case).eval(), graphs()[2]
    g = torch.Generator().manual_seed(5)
    new = torch.randperm(graph.num_nodes, generator=g)  # of each old node
    order = torch.randperm(graph.edge_index.size(1), generator=g)
    x = torch.empty_like(graph.x).index_copy_(0, new, graph.x)
    moved = model(x, new[graph.edge_index[:, order]], graph.edge_attr[order])
    plain = model(graph.x, graph.edge_index, graph.edge_attr)
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("odd", list(edge_case_graphs()))
def test_odd_graphs_give_finite_predictions(case: str, odd: str) -> None:
    graph = dressed(edge_case_graphs()[odd], 0, "categories")
    if graph.num_nodes == 0:
        pytest.skip("a graph without nodes has nothing to predict from")
    model = create(case)
    for training in (True, False):
        out = model.train(training)(graph.x, graph.edge_index, graph.edge_attr)
        assert out.shape == (1, TARGETS)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("case", CASES)
def test_evaluation_is_deterministic_and_draws_no_random_numbers(case: str) -> None:
    model = create(case, **RATES).eval()
    before = torch.get_rng_state()
    assert torch.equal(predict(model, joined()), predict(model, joined()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("case", CASES)
def test_dropout_acts_in_training_alone(case: str) -> None:
    model = create(case, **RATES).train()
    with torch.no_grad():
        first, second = (predict(model, joined()) for _ in range(2))
    assert not torch.equal(first, second)


# --- Training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_finite_gradient(case: str, rate: float) -> None:
    model = create(case, **dict.fromkeys(RATES, rate)).train()
    loss_of(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("case", CASES)
def test_one_batch_can_be_overfitted(case: str) -> None:
    model = create(case, hidden_channels=32).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(150):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("case", CASES)
def test_seed_decides_the_weights(case: str) -> None:
    first, same, other = (create(case, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# --- Weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_names_of_weights_are_those_of_stored_checkpoints(case: str) -> None:
    """A renamed weight makes published checkpoints unreadable; if that is meant, change the file as well."""
    assert list(create(case).state_dict()) == json.loads(FROZEN_KEYS.read_text())[case]


def test_no_frozen_names_are_left_of_models_that_are_gone() -> None:
    assert sorted(json.loads(FROZEN_KEYS.read_text())) == sorted(CASES)


@pytest.mark.parametrize("case", CASES)
def test_saved_weights_give_the_same_predictions_when_loaded(case: str, tmp_path: Path) -> None:
    model, other = create(case, seed=0).eval(), create(case, seed=1).eval()
    save_tensors(tmp_path / "model.safetensors", model.state_dict())
    assert not torch.equal(predict(model, joined()), predict(other, joined()))
    other.load_state_dict(load_tensors(tmp_path / "model.safetensors"))
    assert torch.equal(predict(model, joined()), predict(other, joined()))


# --- Number formats and compilation ------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_float64_agrees_with_float32(case: str) -> None:
    model = create(case).eval()
    single = predict(model, joined())
    double = predict(model.double(), joined())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast_is_finite_forward_and_backward(case: str) -> None:
    model = create(case, **RATES).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("case", NAMES)
def test_compiled_predictions_equal_plain_ones(case: str) -> None:
    data, model = joined(), create(case).eval()
    sizes = data.ptr.diff()
    with torch.no_grad():
        plain = predict(model, data)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="aot_eager")(
            data.x, data.edge_index, data.edge_attr, data.batch, sizes
        )
    torch.testing.assert_close(compiled, plain)
