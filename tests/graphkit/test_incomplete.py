"""Incomplete knowledge graphs: which facts go missing, and that all else stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphkit.errors import UserError
from graphkit.incomplete import Scope, incomplete, kept_facts
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.questions import QuestionSet


def facts(seed: int = 0, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(100, size=(2, count))), torch.from_numpy(rng.integers(4, size=count))


def questions() -> QuestionSet:
    graph = KnowledgeGraph(*facts())
    return questions_on(graph, [[1], [2], [1]], [[5], [6], [7]], max_entities=60)


def listed(held: QuestionSet, number: int) -> list[tuple[int, int, int]]:
    """The facts of a question, in ids of the whole graph."""
    one = held.batch(torch.tensor([number]))
    ends = one.entity[one.edge_index]
    return list(zip(ends[0].tolist(), one.edge_type.tolist(), ends[1].tolist(), strict=True))


def test_a_share_goes_missing_and_more_at_a_higher_rate() -> None:
    edge_index, edge_type = facts()
    half, most = (kept_facts(edge_index, edge_type, rate) for rate in (0.5, 0.8))
    assert 0.45 < half.float().mean() < 0.55
    assert bool((half | ~most).all())
    assert kept_facts(edge_index, edge_type, 0.0).all()
    assert not torch.equal(half, kept_facts(edge_index, edge_type, 0.5, seed=1))
    assert torch.equal(half, kept_facts(edge_index.int(), edge_type.to(torch.int16), 0.5))


def test_globally_a_fact_is_missing_everywhere_or_nowhere() -> None:
    whole = questions()
    thin = incomplete(whole, 0.5, seed=3)
    kept = kept_facts(*facts(), 0.5, seed=3)
    edge_index, edge_type = facts()
    left = set(
        zip(edge_index[0][kept].tolist(), edge_type[kept].tolist(), edge_index[1][kept].tolist(), strict=True)
    )
    for number in range(3):
        assert listed(thin, number) == [fact for fact in listed(whole, number) if fact in left]


def test_by_question_each_loses_facts_of_its_own() -> None:
    whole = questions()
    thin = incomplete(whole, 0.5, scope="per_question")
    assert thin.num_graphs == 3
    assert listed(whole, 0) == listed(whole, 2)
    assert listed(thin, 0) != listed(thin, 2)
    assert 0.3 < len(listed(thin, 0)) / len(listed(whole, 0)) < 0.7


def test_the_published_way_leaves_out_every_other_fact() -> None:
    whole = questions()
    thin = incomplete(whole, 0.5, scope="published")
    assert [listed(thin, number) for number in range(3)] == [
        listed(whole, number)[1::2] for number in range(3)
    ]


@pytest.mark.parametrize("scope", ["global", "per_question", "published"])
def test_entities_seeds_and_answers_stay(scope: Scope) -> None:
    whole, ids = questions(), torch.arange(3)
    before, after = whole.batch(ids), incomplete(whole, 0.5, scope=scope).batch(ids)
    for name in ("ptr", "seed", "entity", "answer"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert incomplete(whole, 0.0, scope=scope) is whole


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"incomplete rate is 1\.0; it must be at least 0 and below 1"):
        incomplete(questions(), 1.0)
    with pytest.raises(
        UserError, match="unknown scope 'some'; it is one of: global, per_question, published"
    ):
        incomplete(questions(), 0.5, scope="some")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"with scope 'published': that one is 0\.5"):
        incomplete(questions(), 0.3, scope="published")
