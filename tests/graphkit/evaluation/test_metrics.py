"""Metrics against naive references, and what they refuse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphkit.errors import UserError
from graphkit.evaluation import LinkEvaluator, NodeEvaluator, accuracy, auc, hits_at_k, mrr

# A few values only, so that ties are the rule.
scores = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=12)


@given(scores, scores, st.integers(1, 12))
@pytest.mark.filterwarnings("ignore:all .* scores are")
def test_against_definitions(pos: list[float], neg: list[float], k: int) -> None:
    p, n = torch.tensor(pos), torch.tensor(neg)
    ranks = [1 + (sum(b > a for b in neg) + sum(b >= a for b in neg)) / 2 for a in pos]
    assert mrr(p, n) == pytest.approx(sum(1 / r for r in ranks) / len(pos), abs=1e-12)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in pos for b in neg]
    assert auc(p, n) == sum(pairs) / len(pairs)
    if k <= len(neg):
        kth = sorted(neg, reverse=True)[k - 1]
        assert hits_at_k(p, n, k) == sum(a > kth for a in pos) / len(pos)
    own = n.repeat(len(pos), 1)  # everybody's own negatives, the same for all
    assert mrr(p, own) == mrr(p, n)
    if k <= len(neg):
        assert hits_at_k(p, own, k) == hits_at_k(p, n, k)


def test_against_sklearn() -> None:
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    pos = (torch.randn(700, generator=generator) + 0.5).mul(10).round()
    neg = torch.randn(1300, generator=generator).mul(10).round()
    truth = torch.cat([torch.ones(700), torch.zeros(1300)])
    assert auc(pos, neg) == pytest.approx(roc_auc_score(truth, torch.cat([pos, neg])), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types_and_shapes(dtype: torch.dtype) -> None:
    pos = torch.tensor([3.0, 1.0], dtype=dtype, requires_grad=True)
    neg = torch.tensor([2.0, 0.0, -1.0], dtype=dtype)
    assert (hits_at_k(pos, neg, 1), mrr(pos, neg), auc(pos, neg)) == (0.5, 0.75, 5 / 6)
    assert mrr(pos[:, None], neg[:, None]) == 0.75


def test_own_negatives() -> None:
    pos = torch.tensor([2.0, 2.0])
    neg = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 1.5]])
    assert mrr(pos, neg) == (1 / 2 + 1) / 2
    assert hits_at_k(pos, neg, 1) == 0.5
    assert hits_at_k(pos, neg, 2) == 1.0
    with pytest.raises(UserError, match=r"shape \[3, 2\]; they must be \[N\] \(shared\) or \[2, K\]"):
        mrr(pos, neg.T)


METRICS: list[Callable[[Tensor, Tensor], object]] = [
    lambda pos, neg: hits_at_k(pos, neg, 1),
    mrr,
    auc,
    LinkEvaluator((1,)),
]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_are_refused(metric: Callable[..., object], value: float) -> None:
    good, bad = torch.randn(6), torch.randn(6)
    bad[2] = bad[4] = value
    with pytest.raises(UserError, match=r"2 of 6 positive scores aren't finite, the first \(.*\) at index 2"):
        metric(bad, good)
    with pytest.raises(UserError, match="2 of 6 negative scores aren't finite"):
        metric(good, bad)
    with pytest.raises(UserError, match="at index 0, 2"):
        metric(torch.randn(2), bad.view(2, 3))


@pytest.mark.parametrize("metric", METRICS)
def test_empty_splits_are_refused(metric: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="no positive scores: the split is empty"):
        metric(torch.empty(0), torch.randn(3))
    with pytest.raises(UserError, match="no negative scores"):
        metric(torch.randn(3), torch.empty(0))


def test_fewer_negatives_than_k() -> None:
    with pytest.raises(UserError, match="hits@4 needs at least 4 negatives; there are 3"):
        hits_at_k(torch.randn(2), torch.randn(3), 4)
    with pytest.raises(UserError, match="4 negatives for each positive; there are 3"):
        hits_at_k(torch.randn(2), torch.randn(2, 3), 4)
    with pytest.raises(UserError, match="hits@100"):
        LinkEvaluator()(torch.randn(200), torch.randn(99))
    with pytest.raises(ValueError, match="k is 0"):
        hits_at_k(torch.randn(2), torch.randn(3), 0)
    with pytest.raises(ValueError, match="at least 1"):
        LinkEvaluator((0,))


@pytest.mark.parametrize("metric", METRICS)
def test_constant_scores_warn_and_are_worth_nothing(metric: Callable[..., object]) -> None:
    with pytest.warns(UserWarning, match="all 300 scores are 0.5: this ranks nothing"):
        metric(torch.full((100,), 0.5), torch.full((200,), 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric(torch.ones(100), torch.zeros(200))


@pytest.mark.filterwarnings("ignore:all .* scores are")
def test_ties_never_help() -> None:
    same = torch.zeros(50)
    result = LinkEvaluator((1, 20))(same, same)
    assert result == {"hits@1": 0.0, "hits@20": 0.0, "mrr": 1 / 26, "auc": 0.5}


def test_evaluator_keys() -> None:
    pos, neg = torch.randn(200), torch.randn(150)
    assert list(LinkEvaluator()(pos, neg)) == ["hits@20", "hits@50", "hits@100", "mrr", "auc"]
    assert list(LinkEvaluator((10,), mrr=False, auc=False)(pos, neg)) == ["hits@10"]
    result = LinkEvaluator()(pos, neg)
    assert result["hits@50"] == hits_at_k(pos, neg, 50)
    assert (result["mrr"], result["auc"]) == (mrr(pos, neg), auc(pos, neg))


def test_fitting() -> None:
    assert LinkEvaluator.fitting("hits@100", 1000).ks == (20, 50, 100)
    assert LinkEvaluator.fitting("hits@10", 60).ks == (10, 20, 50)
    assert LinkEvaluator.fitting("mrr", 7).ks == ()
    with pytest.raises(
        UserError, match="hits@100 needs at least 100 negatives, and the smallest split has 60"
    ):
        LinkEvaluator.fitting("hits@100", 60)
    for name in ("hits@", "hits@0", "hits@x", "ndcg"):
        with pytest.raises(UserError, match="unknown link metric"):
            LinkEvaluator.fitting(name, 60)


def test_metrics_ignore_the_scale() -> None:
    pos, neg = torch.randn(300, dtype=torch.float64), torch.randn(400, dtype=torch.float64)
    assert LinkEvaluator()(pos, neg) == LinkEvaluator()(pos.exp() * 1e-20, neg.exp() * 1e-20)


def test_accuracy() -> None:
    y = torch.tensor([0, 1, 2, 1])
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 9, 0], [0, 1, 0]])
    assert accuracy(logits, y) == accuracy(logits.argmax(1), y[:, None]) == 0.75
    assert NodeEvaluator()(logits, y) == {"accuracy": 0.75}
    logits[1, 2] = math.nan
    with pytest.raises(UserError, match=r"1 of 12 class scores aren't finite, .* at index 1, 2"):
        accuracy(logits, y)
    with pytest.raises(UserError, match="3 predictions for 4 nodes"):
        accuracy(y[:3], y)
    with pytest.raises(UserError, match="the split is empty"):
        accuracy(logits[:0], y[:0])
    with pytest.raises(UserError, match=r"must be \[n, C\]"):
        accuracy(torch.randn(4), y)
    with pytest.warns(UserWarning, match="decides nothing"):
        accuracy(torch.zeros(4, 3), y)
