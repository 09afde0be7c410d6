"""Ranks among all entities and among sampled ones, against loops over them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphkit.errors import UserError
from graphkit.evaluation import hits_at_k, mrr
from graphkit.evaluation.ranking import (
    Ranks,
    expected_hits,
    filtered_ranks,
    ranking_metrics,
    sampled_ranks,
)

seeds = st.integers(0, 2**31)


def problem(queries: int, entities: int, seed: int) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Scores of a few values, so that ties are the rule; an answer and other right answers each."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (queries, entities), generator=draw).double()
    answer = torch.randint(entities, (queries,), generator=draw)
    known = []
    for _ in range(queries):
        some = torch.rand(entities, generator=draw) < 0.3
        known.append(torch.randperm(entities, generator=draw)[some].tolist())
    return scores, answer, known


def flat(known: list[list[int]]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([0, *(len(items) for items in known)])
    return sizes.cumsum(0), torch.tensor([item for items in known for item in items], dtype=torch.int64)


@given(queries=st.integers(1, 6), entities=st.integers(1, 9), seed=seeds)
def test_filtered_ranks_are_those_of_a_loop(queries: int, entities: int, seed: int) -> None:
    scores, answer, known = problem(queries, entities, seed)
    found = filtered_ranks(scores, answer, *flat(known))
    for q, (row, right) in enumerate(zip(scores.tolist(), answer.tolist(), strict=True)):
        others = [row[e] for e in range(entities) if e != right and e not in known[q]]
        assert int(found.above[q]) == sum(value > row[right] for value in others)
        assert int(found.ties[q]) == sum(value == row[right] for value in others)
        assert int(found.candidates[q]) == len(others)


@given(queries=st.integers(1, 6), entities=st.integers(1, 9), seed=seeds)
def test_nothing_is_left_out_without_known_answers(queries: int, entities: int, seed: int) -> None:
    scores, answer, _ = problem(queries, entities, seed)
    found = filtered_ranks(scores, answer)
    empty = filtered_ranks(scores, answer, *flat([[] for _ in range(queries)]))
    for column, other in zip(found, empty, strict=True):
        assert torch.equal(column, other)
    assert found.candidates.tolist() == [entities - 1] * queries


@given(queries=st.integers(1, 5), entities=st.integers(2, 9), count=st.integers(1, 12), seed=seeds)
@pytest.mark.filterwarnings("ignore:all .* scores are")
def test_metrics_are_those_of_link_prediction(queries: int, entities: int, count: int, seed: int) -> None:
    scores, answer, _ = problem(queries, entities, seed)
    draw = torch.Generator().manual_seed(seed)
    negatives = torch.randint(entities, (queries, count), generator=draw)
    found = ranking_metrics(sampled_ranks(scores, answer, negatives), (1, count))
    positive, negative = scores.gather(1, answer[:, None])[:, 0], scores.gather(1, negatives)
    assert found["mrr"] == pytest.approx(mrr(positive, negative), abs=1e-12)
    assert found["hits@1"] == hits_at_k(positive, negative, 1)
    assert found[f"hits@{count}"] == hits_at_k(positive, negative, count)


def test_tie_counts_half_a_place_and_never_favours_the_answer() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    ranks = filtered_ranks(scores, torch.tensor([0, 0]))
    assert ranks.mean.tolist() == [1.5, 1]
    assert ranks.worst.tolist() == [2, 1]
    assert ranking_metrics(ranks, (1, 2)) == {
        "mrr": pytest.approx((1 / 1.5 + 1) / 2),
        "hits@1": 0.5,
        "hits@2": 1,
    }


def test_constant_scores_are_worth_chance_not_perfection() -> None:
    ranks = filtered_ranks(torch.zeros(4, 101), torch.arange(4))
    assert ranking_metrics(ranks)["hits@10"] == 0
    assert expected_hits(ranks, 10, 50) == 0
    assert ranking_metrics(ranks)["mrr"] == pytest.approx(1 / 51)


def test_portions_join_to_the_whole() -> None:
    scores, answer, known = problem(7, 8, 0)
    whole = filtered_ranks(scores, answer, *flat(known))
    parts = [
        filtered_ranks(scores[part], answer[part], *flat([known[q] for q in part]))
        for part in ([0, 1, 2], [3], [4, 5, 6])
    ]
    for column, other in zip(whole, Ranks.join(parts), strict=True):
        assert torch.equal(column, other)


@given(above=st.integers(0, 60), candidates=st.integers(60, 80), k=st.integers(1, 10))
def test_expected_hits_are_a_sum_over_outcomes(above: int, candidates: int, k: int) -> None:
    ranks = Ranks(*(torch.tensor([value]) for value in (above, 0, candidates)))
    p = above / candidates
    naive = sum(math.comb(50, i) * p**i * (1 - p) ** (50 - i) for i in range(k))
    assert expected_hits(ranks, k, 50) == pytest.approx(naive, abs=1e-12)


def test_expected_hits_are_the_mean_of_sampled_ones() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 200, generator=draw)
    answer = scores.argsort(descending=True)[:, 35]
    others = torch.arange(200)[torch.arange(200) != answer]
    negatives = others[torch.randint(199, (4000, 50), generator=draw)]
    sampled = sampled_ranks(scores.expand(4000, -1), answer.expand(4000), negatives)
    found = expected_hits(filtered_ranks(scores, answer), 10, 50)
    assert ranking_metrics(sampled)["hits@10"] == pytest.approx(found, abs=0.03)
    assert 0.1 < found < 0.9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scores_of_any_precision_are_ranked(dtype: torch.dtype) -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0]], dtype=dtype, requires_grad=True)
    assert filtered_ranks(scores, torch.tensor([3])).worst.tolist() == [2]


def test_what_cannot_be_ranked_is_refused() -> None:
    answer = torch.tensor([0])
    with pytest.raises(UserError, match="1 of 2 scores aren't finite"):
        filtered_ranks(torch.tensor([[0.0, math.nan]]), answer)
    with pytest.raises(UserError, match="1 of 2 scores aren't finite"):
        sampled_ranks(torch.tensor([[0.0, math.inf]]), answer, torch.tensor([[1]]))
    empty = Ranks(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    with pytest.raises(UserError, match="there is nothing to rank"):
        ranking_metrics(empty)
    with pytest.raises(UserError, match="there is nothing to rank"):
        expected_hits(empty, 10, 50)
    ranks = filtered_ranks(torch.zeros(1, 3), answer)
    with pytest.raises(ValueError, match=r"ks is \(0,\); each must be at least 1"):
        ranking_metrics(ranks, (0,))
    with pytest.raises(ValueError, match="k is 51; it must lie between 1 and the 50 samples"):
        expected_hits(ranks, 51, 50)
