"""OGB's evaluators: equal to their own on good scores, and safe where they aren't."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from graphkit.compat import import_ogb
from graphkit.errors import UserError
from graphkit.evaluation import hits_at_k, mrr
from graphkit.evaluation.ogb import OGBEvaluator, OGBLinkEvaluator, ogb_evaluator

SHARED = ["ogbl-collab", "ogbl-ddi", "ogbl-ppa", "ogbl-vessel"]
OWN = ["ogbl-citation2", "ogbl-wikikg2", "ogbl-biokg"]


def plain(name: str) -> Any:
    family = {"ogbl": "linkproppred", "ogbn": "nodeproppred", "ogbg": "graphproppred"}[name[:4]]
    return import_ogb(f"ogb.{family}").Evaluator(name)


@pytest.mark.parametrize("name", SHARED)
def test_shared_negatives_as_ogb(name: str) -> None:
    pos, neg = torch.randn(300).mul(5).round(), torch.randn(400).mul(5).round()
    evaluator = OGBLinkEvaluator(name)
    result = evaluator(pos[:, None], neg)
    assert result == plain(name).eval({"y_pred_pos": pos, "y_pred_neg": neg})
    assert evaluator.metric in result
    if evaluator.k:
        assert result[evaluator.metric] == hits_at_k(pos, neg, evaluator.k)


@pytest.mark.parametrize("name", OWN)
def test_own_negatives_as_ogb(name: str) -> None:
    pos, neg = torch.randn(100).mul(5).round(), torch.randn(100, 30).mul(5).round()
    result = OGBLinkEvaluator(name)(pos, neg)
    theirs = plain(name).eval({"y_pred_pos": pos, "y_pred_neg": neg})
    assert set(result) == {"mrr", "hits@1", "hits@3", "hits@10"}
    for key, value in result.items():
        assert value == pytest.approx(float(theirs[f"{key}_list"].mean()), abs=1e-6)
    assert result["mrr"] == pytest.approx(mrr(pos, neg), abs=1e-6)


def test_unguarded_ogb_rewards_nan_and_too_few_negatives() -> None:
    nan = torch.full((5,), math.nan)
    theirs = plain("ogbl-citation2").eval({"y_pred_pos": nan, "y_pred_neg": torch.randn(5, 9)})
    assert theirs["mrr_list"].tolist() == [1.0] * 5
    with pytest.raises(UserError, match="5 of 5 positive scores aren't finite"):
        OGBLinkEvaluator("ogbl-citation2")(nan, torch.randn(5, 9))

    few = {"y_pred_pos": torch.zeros(5), "y_pred_neg": torch.ones(49)}
    assert plain("ogbl-collab").eval(few) == {"hits@50": 1.0}
    with pytest.raises(UserError, match="hits@50 needs at least 50 negatives; there are 49"):
        OGBLinkEvaluator("ogbl-collab")(torch.zeros(5), torch.ones(49))


def test_links_refused() -> None:
    collab, citation = OGBLinkEvaluator("ogbl-collab"), OGBLinkEvaluator("ogbl-citation2")
    with pytest.raises(UserError, match="no positive scores"):
        collab(torch.empty(0), torch.randn(60))
    with pytest.raises(UserError, match="negative scores aren't finite"):
        collab(torch.randn(3), torch.full((60,), math.inf))
    with pytest.raises(
        UserError, match=r"takes positives \[P\] and negatives \[N\], not \[3\] and \[6, 10\]"
    ):
        collab(torch.randn(3), torch.randn(6, 10))
    for shape in ((60,), (4, 15)):
        with pytest.raises(UserError, match=r"\[P, K\] with the positives' P"):
            citation(torch.randn(3), torch.randn(shape))
    with pytest.warns(UserWarning, match="ranks nothing"):
        assert collab(torch.ones(3), torch.ones(60)) == {"hits@50": 0.0}


def test_nodes_and_graphs_as_ogb() -> None:
    truth = torch.randint(0, 40, (200,))
    logits = torch.randn(200, 40)
    arxiv = OGBEvaluator("ogbn-arxiv")
    theirs = plain("ogbn-arxiv").eval({"y_true": truth[:, None], "y_pred": logits.argmax(1)[:, None]})
    assert arxiv(logits, truth) == arxiv(logits.argmax(1), truth[:, None]) == theirs
    assert arxiv.metric == "acc"

    many = (torch.rand(300, 128) < 0.4).float()
    many[torch.rand(300, 128) < 0.3] = math.nan  # molecules without a measurement
    guess = torch.randn(300, 128)
    for name in ("ogbg-molpcba", "ogbg-molhiv", "ogbg-molesol"):
        y, p = (many, guess) if name == "ogbg-molpcba" else (many[:, :1].nan_to_num(), guess[:, :1])
        evaluator = OGBEvaluator(name)
        assert evaluator(p, y) == pytest.approx(plain(name).eval({"y_true": y, "y_pred": p}))
        assert list(evaluator(p, y)) == [evaluator.metric]

    words = [["a", "b"], ["c"]]
    assert OGBEvaluator("ogbg-code2")(words, words)["F1"] == 1.0


def test_nodes_and_graphs_refused() -> None:
    hiv = OGBEvaluator("ogbg-molhiv")
    with pytest.raises(UserError, match="no label of this split has both positives and negatives"):
        hiv(torch.randn(4, 1), torch.tensor([[1.0], [1.0], [math.nan], [1.0]]))
    with pytest.raises(UserError, match="1 of 4 predictions aren't finite"):
        hiv(torch.tensor([[0.0], [1], [math.nan], [2]]), torch.tensor([[0], [1], [1], [0]]))
    with pytest.raises(UserError, match="the split is empty"):
        hiv(torch.empty(0, 1), torch.empty(0, 1))
    with pytest.raises(UserError, match=r"shape \[4, 2\], the truth \[4, 1\]"):
        hiv(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    with pytest.warns(UserWarning, match="ranks nothing"):
        assert hiv(torch.zeros(4, 1), torch.tensor([0, 1, 1, 0])) == {"rocauc": 0.5}
    with pytest.raises(UserError, match="0 predicted sequences"):
        OGBEvaluator("ogbg-code2")([], [])


def test_names() -> None:
    assert isinstance(ogb_evaluator("ogbl-ddi"), OGBLinkEvaluator)
    assert isinstance(ogb_evaluator("ogbn-arxiv"), OGBEvaluator)
    with pytest.raises(UserError, match="did you mean 'ogbl-collab'"):
        OGBLinkEvaluator("ogbl-colab")
    for name in ("cora", "ogbn-arxiv"):
        with pytest.raises(UserError, match="is no OGB name"):
            OGBLinkEvaluator(name)
