"""What holds for every link predictor of the zoo; the registry says which there are."""

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
from graphkit.registry import MODELS
from graphkit.sparse import CSRGraph
from graphkit.testing import edge_case_graphs, tiny_graph
from graphkit.train.tensors import load_tensors, save_tensors

FROZEN_KEYS = Path(__file__).parent / "frozen" / "state_dict_keys.json"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- Models under test: every registered name, and options that lead through other code --------------------

EVERY_BLOCK: dict[str, Any] = {
    "num_layers": 2,
    "jumping": True,
    "two_layer_head": True,
    "node_mlp": True,
}
EXTRA_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gae, weighted convolutions": ("gae", {"conv": "gcn", "num_layers": 3, "residual": True}),
    "ncn, every block": ("ncn", EVERY_BLOCK),
    "ncn, maximum": ("ncn", {"conv": "max", "num_layers": 2, "tail_activation": True}),
    "ncnc, every block": ("ncnc", EVERY_BLOCK),
    "ncnc, depth 2": ("ncnc", {"depth": 2, "node_mlp": True}),
    "ncnc, learnt prior": ("ncnc", {"learn_prior": True, "predictor_norm": False}),
    **{
        f"ncn-ablation, {variant}": ("ncn-ablation", {"variant": variant, "node_mlp": True})
        for variant in ("gae-cn-concat", "gae-cnc", "ncn2", "ncn-diff")
    },
}
CASES = {**{name: (name, {}) for name in MODELS.names()}, **EXTRA_CASES}
LINK = [case for case, (name, _) in CASES.items() if "link" in MODELS.get(name).tasks]
CHANNELS, NODES = 5, 14
DROPOUTS = ("feature_dropout", "dropout", "tail_dropout", "edge_dropout", "predictor_dropout")


def create(case: str, seed: int = 0, in_channels: int | None = CHANNELS, **options: Any) -> nn.Module:
    """Builds a case as the framework does, small where its width can be chosen."""
    name, fixed = CASES[case]
    accepted = inspect.signature(MODELS.get(name).target).parameters
    small = {"hidden_channels": 8} if "hidden_channels" in accepted else {}
    taken = {key: value for key, value in options.items() if key in accepted}
    config = RunConfig(
        model_name=name,
        dataset_name="none",
        task_name="link",
        seed=seed,
        model={**small, **fixed, **taken},
    )
    return build_model(config, DataSpec(num_nodes=NODES, in_channels=in_channels))


def trained(cases: list[str]) -> list[str]:
    return [case for case in cases if any(True for _ in create(case).parameters())]


TRAINED = trained(LINK)


def tiny() -> tuple[Tensor, CSRGraph, Tensor]:
    """Features, graph and pairs: edges, other pairs, and both orders of some."""
    data = tiny_graph(NODES, 26, CHANNELS)
    graph = CSRGraph.from_edge_index(data.edge_index, NODES)
    ends = torch.arange(NODES)
    pairs = torch.cat([graph.edges[:, ::2], torch.stack([ends, (ends * 5 + 3) % NODES])], dim=1)
    return data.x, graph, pairs


def scores(model: nn.Module, x: Tensor, graph: CSRGraph, pairs: Tensor) -> Tensor:
    return model.score(model.encode(x, graph), graph, pairs)


@functools.cache
def labelled() -> tuple[Tensor, CSRGraph, Tensor, Tensor]:
    """Features, graph, and as many pairs without an edge as with one, edges first; their labels."""
    x, graph, _ = tiny()
    every = torch.combinations(torch.arange(NODES)).t()
    free = every[:, graph.find_edges(every) < 0]
    pairs = torch.cat([graph.edges[:, :12], free[:, :: free.size(1) // 12][:, :12]], dim=1)
    return x, graph, pairs, torch.cat([torch.ones(12), torch.zeros(12)])


def label_loss(model: nn.Module) -> Tensor:
    x, graph, pairs, label = labelled()
    return F.binary_cross_entropy_with_logits(scores(model, x, graph, pairs).float(), label)


# --- Forward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LINK)
def test_forward_gives_one_finite_score_a_pair(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case)
    for training in (True, False):
        score = model.train(training)(x, graph.edge_index(), pairs)
        assert score.shape == (pairs.size(1),)
        assert torch.isfinite(score).all()


@pytest.mark.parametrize("case", TRAINED)
def test_without_features_node_embeddings_are_learnt(case: str) -> None:
    _, graph, pairs = tiny()
    model = create(case, in_channels=None)
    score = model(None, graph, pairs)
    score.sum().backward()
    assert score.shape == (pairs.size(1),)
    assert model.encoder.input.table.shape == (NODES, 8)
    assert torch.isfinite(model.encoder.input.table.grad).all()


@pytest.mark.parametrize("case", LINK)
def test_evaluation_is_deterministic_and_draws_no_random_numbers(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case, **dict.fromkeys((*DROPOUTS, "predictor_edge_dropout"), 0.4)).eval()
    before = torch.get_rng_state()
    first = scores(model, x, graph, pairs)
    assert torch.equal(first, scores(model, x, graph, pairs))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("case", TRAINED)
def test_dropout_acts_in_training_alone(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case, **dict.fromkeys((*DROPOUTS, "predictor_edge_dropout"), 0.4))
    with torch.no_grad():
        first, second = (scores(model.train(), x, graph, pairs) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("case", LINK)
def test_renumbering_nodes_renumbers_scores(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case).eval()
    new_id = torch.randperm(NODES)  # of each old node
    moved = CSRGraph.from_edge_index(new_id[graph.edge_index()], NODES)
    renumbered = torch.empty_like(x).index_copy_(0, new_id, x)
    torch.testing.assert_close(
        scores(model, renumbered, moved, new_id[pairs]), scores(model, x, graph, pairs), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("case", LINK)
def test_score_does_not_depend_on_the_order_of_a_pair(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case).eval()
    torch.testing.assert_close(
        scores(model, x, graph, pairs.flip(0)), scores(model, x, graph, pairs), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("case", LINK)
def test_score_does_not_depend_on_the_other_pairs_of_its_batch(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case).eval()
    halves = [scores(model, x, graph, part) for part in pairs.tensor_split(2, dim=1)]
    torch.testing.assert_close(torch.cat(halves), scores(model, x, graph, pairs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", LINK)
@pytest.mark.parametrize("odd", list(edge_case_graphs()))
def test_odd_graphs_give_finite_scores(case: str, odd: str) -> None:
    data = edge_case_graphs(CHANNELS)[odd]
    nodes = data.num_nodes
    everything = torch.cartesian_prod(torch.arange(nodes), torch.arange(nodes)).reshape(-1, 2).t()
    model = create(case)
    for training in (True, False):
        score = model.train(training)(data.x, data.edge_index, everything)
        assert score.shape == (nodes * nodes,)
        assert torch.isfinite(score).all()


@pytest.mark.parametrize("case", LINK)
@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(torch.zeros(2, 0, dtype=torch.int64), id="no pair"),
        pytest.param(torch.tensor([[3], [3]]), id="a node with itself"),
        pytest.param(torch.tensor([[2, 2, 2, 2], [5, 5, 5, 5]]), id="one pair four times"),
    ],
)
def test_odd_pairs_give_finite_scores(case: str, pairs: Tensor) -> None:
    x, graph, _ = tiny()
    model = create(case)
    for training in (True, False):
        score = scores(model.train(training), x, graph, pairs)
        assert score.shape == (pairs.size(1),)
        assert torch.isfinite(score).all()
    if pairs.size(1):
        torch.testing.assert_close(score, score[:1].expand_as(score))


@pytest.mark.parametrize("case", LINK)
def test_self_loops_and_duplicate_edges_change_nothing(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case).eval()
    edges = graph.edge_index()
    loops = torch.arange(NODES).expand(2, -1)
    messy = torch.cat([edges, loops, edges[:, ::3], graph.edges], dim=1)
    torch.testing.assert_close(model(x, messy, pairs), model(x, edges, pairs))


# --- Training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("case", TRAINED)
def test_every_parameter_gets_a_finite_gradient(case: str, rate: float) -> None:
    model = create(case, **dict.fromkeys((*DROPOUTS, "predictor_edge_dropout"), rate)).train()
    label_loss(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("case", TRAINED)
def test_no_parameter_is_idle(case: str) -> None:
    model = create(case, seed=1).train()
    label_loss(model).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize("case", TRAINED)
def test_one_batch_can_be_overfitted(case: str) -> None:
    model = create(case, hidden_channels=32).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        loss = label_loss(model)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("case", TRAINED)
def test_seed_decides_the_weights(case: str) -> None:
    first, same, other = (create(case, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("case", TRAINED)
def test_building_a_model_leaves_the_random_state_alone(case: str) -> None:
    before = torch.get_rng_state()
    create(case)
    assert torch.equal(before, torch.get_rng_state())


# --- Weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LINK)
def test_names_of_weights_are_those_of_stored_checkpoints(case: str) -> None:
    """A renamed weight makes published checkpoints unreadable; if that is meant, change the file as well."""
    assert list(create(case).state_dict()) == json.loads(FROZEN_KEYS.read_text())[case]


def test_no_frozen_names_are_left_of_models_that_are_gone() -> None:
    assert sorted(json.loads(FROZEN_KEYS.read_text())) == sorted(LINK)


@pytest.mark.parametrize("case", TRAINED)
def test_saved_weights_give_the_same_scores_when_loaded(case: str, tmp_path: Path) -> None:
    x, graph, pairs = tiny()
    model, other = create(case, seed=0).eval(), create(case, seed=1).eval()
    save_tensors(tmp_path / "model.safetensors", model.state_dict())
    assert not torch.equal(scores(model, x, graph, pairs), scores(other, x, graph, pairs))
    other.load_state_dict(load_tensors(tmp_path / "model.safetensors"))
    assert torch.equal(scores(model, x, graph, pairs), scores(other, x, graph, pairs))


# --- Number formats and compilation ------------------------------------------------------------------------


@pytest.mark.parametrize("case", TRAINED)
def test_float64_agrees_with_float32(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case).eval()
    single = scores(model, x, graph, pairs)
    double = scores(model.double(), x.double(), graph, pairs)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", TRAINED)
def test_bfloat16_autocast_is_finite_forward_and_backward(case: str) -> None:
    model = create(case, **dict.fromkeys(DROPOUTS, 0.2)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = label_loss(model)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("case", [*MODELS.names(task="link"), "ncnc, depth 2"])
def test_compiled_scores_equal_plain_ones(case: str) -> None:
    x, graph, pairs = tiny()
    model = create(case).eval()
    with torch.no_grad():
        h = model.encode(x, graph)
        structure = model.structure(graph, pairs) if hasattr(model, "structure") else None
        plain = model.score(h, graph, pairs, structure)
        torch.compiler.reset()
        compiled = torch.compile(model.score, backend="aot_eager")(h, graph, pairs, structure)
    torch.testing.assert_close(compiled, plain)
