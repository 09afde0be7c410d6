"""NCNC where it is easily wrong: targets that are edges, degree caps, extreme priors, no dropout."""

from __future__ import annotations

import pytest
import torch

from graphkit.models.ncnc import NCNCPredictor
from graphkit.sparse import CSRGraph


@pytest.mark.parametrize("node_mlp", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_an_edge_of_the_graph_scores_the_same_alone_and_in_company(node_mlp: bool, depth: int) -> None:
    graph = CSRGraph.from_edge_index(torch.randint(60, (2, 150)), 60)
    predictor = NCNCPredictor(8, node_mlp=node_mlp, depth=depth).double().eval()
    h = torch.randn(60, 8, dtype=torch.float64)
    with torch.no_grad():
        together = predictor(h, graph, graph.edges)
        alone = torch.cat([predictor(h, graph, pair.unsqueeze(1)) for pair in graph.edges.t()])
    torch.testing.assert_close(alone, together)


def test_capped_scores_are_symmetric_and_reproducible_in_evaluation() -> None:
    graph = CSRGraph.from_edge_index(torch.randint(40, (2, 300)), 40)
    predictor = NCNCPredictor(8, node_mlp=True, max_common=2, max_candidates_eval=3).double().eval()
    h, pairs = torch.randn(40, 8, dtype=torch.float64), torch.randint(40, (2, 50))
    pairs = pairs[:, pairs[0] != pairs[1]]
    with torch.no_grad():
        once, again = predictor(h, graph, pairs), predictor(h, graph, pairs.flip(0))
    torch.testing.assert_close(once, again)


def test_a_learnt_prior_near_zero_keeps_its_gradients_finite() -> None:
    graph = CSRGraph.from_edge_index(torch.randint(20, (2, 60)), 20)
    predictor = NCNCPredictor(8, learn_prior=True)
    assert predictor.prior_mlp is not None
    predictor.prior_mlp[-1].bias.data.fill_(-200.0)
    predictor(torch.randn(20, 8), graph, torch.randint(20, (2, 30))).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in predictor.prior_mlp.parameters())


@pytest.mark.parametrize(
    "option", ["max_common", "max_candidates_train", "max_candidates_eval", "chunk_bytes"]
)
def test_limits_below_one_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        NCNCPredictor(8, **{option: 0})


def test_completion_without_dropout_keeps_the_targets_own_dropout_and_training_limits() -> None:
    graph = CSRGraph.from_edge_index(torch.randint(30, (2, 120)), 30)
    predictor = NCNCPredictor(8, dropout=0.5, completion_dropout=False).train()
    h, pairs = torch.randn(30, 8), torch.randint(30, (2, 20))
    assert not torch.equal(predictor(h, graph, pairs), predictor(h, graph, pairs))
    assert predictor.has_dropout
    assert all(module.training for module in predictor.modules())
