"""EpiGNN: its parameters, its composition, how it draws and how it completes graphs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphkit.models.epignn import EpiGNN, wrong_relations
from graphkit.nn.epistemic import Composition, EpistemicPropagation, MLPComposition
from graphkit.registry import MODELS


def make(relations: int = 5, **options: Any) -> EpiGNN:
    """A model in double precision whose beliefs are far from uniform."""
    model = EpiGNN(relations, **{"facets": 3, "facet_channels": 4, **options}).double()
    with torch.no_grad():
        for parameter in (model.relation, model.composition.weight):
            parameter.mul_(3.0)
    return model


# --- size and start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relations", "facets", "n", "wanted"),
    [(8, 8, 4, 544), (8, 4, 8, 1824), (13, 8, 8, 3968), (20, 8, 8, 4416), (20, 32, 16, 125_440)],
)
def test_the_number_of_parameters_is_the_published_one(
    relations: int, facets: int, n: int, wanted: int
) -> None:
    model = MODELS.create("epignn", relations, facets=facets, facet_channels=n)
    assert sum(p.numel() for p in model.parameters()) == wanted
    assert wanted == relations * facets * n + facets * n * (n - 1) ** 2


def test_the_state_has_two_tensors_and_the_ablation_a_perceptron_more() -> None:
    assert list(EpiGNN(3).state_dict()) == ["relation", "composition.weight"]
    more = [f"mlp.map.{k}.{name}" for k in (0, 2, 4, 6) for name in ("weight", "bias")]
    assert list(EpiGNN(3, bilinear=False).state_dict()) == ["relation", "composition.weight", *more]


def test_parameters_start_as_published() -> None:
    model = EpiGNN(9, facets=6, facet_channels=5)
    for weight, bound in (
        (model.relation, math.sqrt(6 / ((6 + 9) * 5))),
        (model.composition.weight, math.sqrt(6 / ((5 + 6) * 4**2))),
    ):
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound


def test_inverse_relations_double_the_table_but_are_no_answers() -> None:
    model = make(inverse=True)
    assert model.relation.shape == (10, 3, 4)
    edges, kind = torch.tensor([[0, 1], [1, 0]]), torch.tensor([9, 4])
    ends = torch.tensor([0]), torch.tensor([1])
    assert model(edges, kind, *ends, num_nodes=2).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_relations": None}, "num_relations is None"),
        ({"num_relations": 0}, "num_relations is 0"),
        ({"facets": 0}, "facets is 0"),
        ({"facet_channels": 1}, "facet_channels is 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"negatives": 0}, "negatives is 0"),
        ({"margin": -1.0}, "margin is -1.0"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"readout": "left"}, "readout is 'left'"),
        ({"path": "random"}, "path is 'random'"),
        ({"score": "dot"}, "score is 'dot'"),
        ({"comp_norm": "layer"}, "norm is 'layer'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpiGNN(**{"num_relations": 4, **options})


# --- composition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["official", "softmax"])
def test_identity_on_either_side_changes_nothing_and_beliefs_stay_distributions(norm: Any) -> None:
    composition = Composition(3, 5, norm=norm).double()
    nn.init.normal_(composition.weight, std=2.0)
    x, y = torch.randn(2, 6, 3, 5, dtype=torch.float64).softmax(3)
    identity = torch.eye(5, dtype=torch.float64)[0].expand(3, 5)
    assert torch.equal(composition(identity, y), y)
    torch.testing.assert_close(composition(x, identity.expand(6, 3, 5)), x, atol=0, rtol=0)
    made = composition(x, y)
    assert (made >= 0).all()
    torch.testing.assert_close(made.sum(-1), torch.ones(6, 3, dtype=torch.float64))
    assert not torch.allclose(made, composition(y, x))


def test_normalisations_are_the_softmax_over_outcomes_and_the_official_one() -> None:
    weight = torch.randn(2, 4, 3, 3)
    for norm, wanted in (("softmax", weight.softmax(1)), ("official", weight.softmax(3))):
        composition = Composition(2, 4, norm=norm)  # type: ignore[arg-type]
        composition.weight.data.copy_(weight)
        wanted = wanted / wanted.sum(1, keepdim=True)
        torch.testing.assert_close(composition.tensor()[:, :, 1:, 1:], wanted)


def test_matrices_do_what_composition_does() -> None:
    composition = Composition(3, 4).double()
    relation, x = torch.randn(2, 5, 3, 4, dtype=torch.float64).softmax(3)
    forward, backward = composition.matrices(relation)
    torch.testing.assert_close(torch.einsum("rfpi,rfi->rfp", forward, x), composition(x, relation))
    torch.testing.assert_close(torch.einsum("rfpi,rfi->rfp", backward, x), composition(relation, x))


def test_composition_of_the_ablation_is_symmetric_and_normalised() -> None:
    composition = MLPComposition(4, 16)
    x, y = torch.rand(2, 5, 3, 4).softmax(3)
    torch.testing.assert_close(composition(x, y), composition(y, x))
    torch.testing.assert_close(composition(x, y).sum(-1), torch.ones(5, 3))
    assert sum(p.numel() for p in MLPComposition(4).parameters()) == 1500 + 2 * 90_300 + 1204


# --- wrong relations ---------------------------------------------------------------------------------------


def test_wrong_relations_are_uniform_over_all_but_the_right_one() -> None:
    y = torch.randint(8, (30_000,))
    for seed in (0, 12345, torch.randint(2**62, (30_000,))):
        drawn = wrong_relations(y, 8, 2, seed)
        assert drawn.shape == (30_000, 2)
        assert (drawn != y[:, None]).all()
        share = torch.bincount((drawn - y[:, None]).remainder(8).flatten(), minlength=8) / 60_000
        assert share[0] == 0
        assert ((share[1:] - 1 / 7).abs() < 0.01).all()
        both = (drawn[:, 0] == drawn[:, 1]).double().mean()
        assert abs(float(both) - 1 / 7) < 0.02


def test_wrong_relations_of_a_query_depend_on_its_seed_alone() -> None:
    y, seed = torch.randint(8, (50,)), torch.randint(2**62, (50,))
    drawn, take = wrong_relations(y, 8, 3, seed), torch.randperm(50)[:20]
    assert torch.equal(wrong_relations(y[take], 8, 3, seed[take]), drawn[take])
    assert torch.equal(wrong_relations(y, 8, 3, seed), drawn)
    assert not torch.equal(wrong_relations(y, 8, 3, seed + 1), drawn)
    assert not torch.equal(wrong_relations(y, 8, 3, 1), wrong_relations(y, 8, 3, 2))
    with pytest.raises(ValueError, match="num_relations is 1"):
        wrong_relations(y, 1, 3, seed)


# --- completion --------------------------------------------------------------------------------------------


def knowledge(nodes: int = 9, edges: int = 20) -> tuple[Tensor, Tensor]:
    """A graph with inverse edges."""
    ends, kind = torch.randint(nodes, (2, edges)), torch.randint(5, (edges,))
    return torch.cat([ends, ends.flip(0)], 1), torch.cat([kind, kind + 5])


@pytest.mark.parametrize("pooling", ["min", "product"])
def test_one_propagation_for_each_head_scores_all_tails_of_all_relations(pooling: str) -> None:
    model, (ends, kind) = make(pooling=pooling, inverse=True), knowledge()
    head = torch.tensor([3, 0, 7])
    state = model.propagate(ends, kind, head, num_nodes=9)
    s_index, relation = torch.tensor([2, 0, 0, 1, 2]), torch.tensor([1, 9, 0, 4, 1])
    scores = model.score_all(state, s_index, relation)
    assert scores.shape == (5, 9)
    forward = make(pooling=pooling, inverse=True, readout="forward", rounds=6)
    forward.load_state_dict(model.state_dict())
    for s, v in enumerate(head.tolist()):
        own, _ = forward.beliefs(ends, kind, torch.tensor([v]), torch.tensor([v]), num_nodes=9)
        torch.testing.assert_close(state[s], own)
    told = model.relation.softmax(2)[relation]
    wanted = torch.einsum("qfp,qnfp->qn", told, (state[s_index] + 1e-12).log())
    torch.testing.assert_close(scores, wanted)
    assert model.score_all(state, s_index[:0], relation[:0]).shape == (0, 9)


def test_a_few_tails_get_the_scores_of_all() -> None:
    model, (ends, kind) = make(inverse=True), knowledge()
    head, relation, tails = torch.tensor([4, 1, 4]), torch.tensor([0, 8, 3]), torch.randint(9, (3, 4))
    few = model.score_tails(ends, kind, head, relation, tails, num_nodes=9)
    state = model.propagate(ends, kind, head, num_nodes=9)
    all_scores = model.score_all(state, torch.arange(3), relation).gather(1, tails)
    torch.testing.assert_close(few, all_scores)
    weight = torch.randn(3, 4, dtype=torch.float64)
    ours = torch.autograd.grad((few * weight).sum(), [model.relation, model.composition.weight])
    torch.testing.assert_close(
        ours, torch.autograd.grad((all_scores * weight).sum(), [model.relation, model.composition.weight])
    )


def test_removed_edges_carry_no_messages() -> None:
    model, (ends, kind) = make(inverse=True), knowledge()
    removed = torch.rand(kind.numel()) < 0.3
    head = torch.tensor([2, 5])
    with_mask = model.propagate(ends, kind, head, num_nodes=9, removed=removed)
    without = model.propagate(ends[:, ~removed], kind[~removed], head, num_nodes=9)
    assert torch.equal(with_mask, without)
    assert not torch.equal(with_mask, model.propagate(ends, kind, head, num_nodes=9))


def test_ablations_complete_no_graphs() -> None:
    ends, kind = knowledge()
    for ablation in ({"probabilities": False}, {"bilinear": False}):
        with pytest.raises(ValueError, match="probabilities and bilinear"):
            make(inverse=True, **ablation).propagate(ends, kind, torch.tensor([0]), num_nodes=9)


# --- layers alone ------------------------------------------------------------------------------------------


def test_layers_make_a_forward_pass_by_themselves() -> None:
    composition, propagation = Composition(8, 4), EpistemicPropagation(pooling="product")
    relation = torch.randn(3, 8, 4).softmax(2)
    forward, _ = composition.matrices(relation)
    ends, kind = torch.tensor([[0, 1], [1, 2]]), torch.tensor([2, 1])
    state = propagation(forward, ends, kind, torch.tensor([0]), num_nodes=3)
    torch.testing.assert_close(state[1], relation[2])
    torch.testing.assert_close(state[2], composition(relation[2], relation[1]))


@pytest.mark.parametrize(
    ("options", "message"), [({"pooling": "mean"}, "pooling is 'mean'"), ({"rounds": -1}, "rounds is -1")]
)
def test_wrong_options_of_layers_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpistemicPropagation(**options)
