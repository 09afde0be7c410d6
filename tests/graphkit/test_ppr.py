"""Subgraphs by personalised PageRank, compared with the plain formula on dense matrices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphkit.errors import UserError
from graphkit.ppr import KnowledgeGraph, extract_subgraphs, questions_on


def random_facts(seed: int, entities: int = 30, facts: int = 60) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    ends = rng.integers(entities, size=(2, facts)) ** 2 // entities  # some have many neighbours
    return np.stack([ends[0], rng.integers(5, size=facts), ends[1]])


def graph_of(facts: npt.NDArray[np.int64], entities: int = 30) -> KnowledgeGraph:
    return KnowledgeGraph(torch.from_numpy(facts[[0, 2]]), torch.from_numpy(facts[1]), entities)


def naive_scores(
    facts: npt.NDArray[np.int64], seeds: list[int], restart: float, steps: int, tolerance: float, n: int = 30
) -> npt.NDArray[np.float64]:
    """The power series, term by term."""
    weight = np.zeros((n, n))
    for head, _, tail in facts.T:
        weight[head, tail] += 1
        if head != tail:
            weight[tail, head] += 1
    weight /= np.maximum(weight.sum(1, keepdims=True), 1)
    term = np.zeros(n)
    term[list(set(seeds))] = restart / len(set(seeds))
    total = term.copy()
    for _ in range(steps):
        term = (1 - restart) * weight.T @ term
        total += term
        if term.sum() < tolerance:
            break
    return total


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 29), min_size=1, max_size=4),
    st.sampled_from([0.2, 0.5, 0.8, 1.0]),
    st.integers(0, 6),
    st.integers(1, 32),
)
def test_the_best_entities_are_kept_with_all_facts_among_them(
    seed: int, seeds: list[int], restart: float, steps: int, most: int
) -> None:
    facts = random_facts(seed)
    found = extract_subgraphs(
        graph_of(facts),
        [[5], seeds],
        max_entities=most,
        restart=restart,
        steps=steps,
        tolerance=1e-4,
        min_score=1e-5,
    )
    expected = naive_scores(facts, seeds, restart, steps, 1e-4)
    first, last = found["ptr"][1:].tolist()
    entity, score = found["entity"][first:last].tolist(), found["score"][first:last].numpy()
    different = list(dict.fromkeys(seeds))
    assert int(found["num_seeds"][1]) == len(different)
    assert entity[: len(different)] == different
    assert len(set(entity)) == len(entity)
    np.testing.assert_allclose(score, expected[entity], rtol=1e-5, atol=1e-12)
    rest = score[len(different) :]
    assert bool((np.diff(rest) <= 1e-7).all())
    left_out = np.setdiff1d(np.arange(30), entity)
    worthy = left_out[expected[left_out] >= 1e-5 * (1 + 1e-9)]
    if len(entity) < most:
        assert worthy.size == 0
    else:
        assert len(entity) == max(most, len(different))
        if rest.size and worthy.size:
            assert expected[worthy].max() <= rest.min() * (1 + 1e-6)
    inside = np.isin(facts[0], entity) & np.isin(facts[2], entity)
    own = slice(*found["fact_ptr"][1:].tolist())
    local = np.array(entity)
    head, relation, tail = (found[name][own].numpy() for name in ("head", "relation", "tail"))
    got = np.stack([local[head], relation, local[tail]])
    assert sorted(got.T.tolist()) == sorted(facts[:, inside].T.tolist())


def test_equal_scores_are_kept_by_id() -> None:
    star = np.stack([np.zeros(20, int), np.zeros(20, int), np.arange(20, 0, -1)])
    found = extract_subgraphs(graph_of(star), [[0]], max_entities=8)
    assert found["entity"].tolist() == list(range(8))


@pytest.mark.parametrize("threads", [1, 2])
def test_neither_threads_nor_other_queries_change_a_subgraph(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphkit.ppr.num_parts", lambda work: threads)
    graph = graph_of(random_facts(1))
    together = extract_subgraphs(graph, [[3], [4, 7], [0], [29, 3, 1, 2]], max_entities=3)
    alone = extract_subgraphs(graph, [[4, 7]], max_entities=3)
    own = slice(*together["ptr"][1:3].tolist())
    assert torch.equal(together["entity"][own], alone["entity"])
    assert torch.equal(together["score"][own], alone["score"])
    own = slice(*together["fact_ptr"][1:3].tolist())
    for name in ("head", "tail", "relation"):
        assert torch.equal(together[name][own], alone[name])


def test_questions_with_the_same_seeds_share_a_subgraph() -> None:
    graph = graph_of(random_facts(2))
    questions = questions_on(graph, [[3], [4], [3]], [[1], [], [2, 1, 2]], [1, 2, 3], max_entities=10)
    assert questions.graph.tolist() == [0, 1, 0]
    assert questions.num_graphs == 2
    assert questions.answers(torch.tensor([2, 0]))[0].tolist() == [1, 2, 1]
    assert questions.hop.tolist() == [1, 2, 3]
    first, third = (questions.batch(torch.tensor([i])) for i in (0, 2))
    assert torch.equal(first.edge_index, third.edge_index)
    assert first.seed.tolist() == [0]


def test_no_question_needs_no_graph() -> None:
    assert len(questions_on(graph_of(random_facts(0)), [], [])) == 0


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        ([[]], {}, "query 0 has no seeds"),
        ([[1], [30]], {}, "query 1 starts from entity 30; known are 0 to 29"),
        ([[1]], {"restart": 0.0}, "restart is 0.0; it must lie above 0, up to 1"),
        ([[1]], {"max_entities": 0}, "max_entities is 0"),
    ],
)
def test_mistakes_are_told(seeds: list[list[int]], options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        extract_subgraphs(graph_of(random_facts(0)), seeds, **options)  # type: ignore[arg-type]


def test_a_graph_of_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[2, F\] and \[F\]"):
        KnowledgeGraph(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="holds entities outside 0 to 1"):
        KnowledgeGraph(torch.tensor([[0], [2]]), torch.tensor([0]), 2)
