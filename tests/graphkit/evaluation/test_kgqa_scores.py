"""Retrieved sets and their scores: against a plain loop, the reference's arrays, published predictions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphkit.errors import UserError
from graphkit.evaluation.kgqa import KgqaEvaluator, QuestionScores, rescore, retrieve, score_retrieved

METRICS = ("precision", "recall", "f1", "hit")
Question = tuple[list[float], set[int], set[int]]
"""Probabilities of the entities 0, 1, ..., the seeds among them, and the gold answers."""


def naive(question: Question, most: int, eps: float = 0.95) -> tuple[list[int], dict[str, float]]:
    """Returns the retrieved set and the scores of one question, as the definition says it."""
    p, seeds, gold = question
    kept = [e for e in range(len(p)) if e not in seeds and p[e] >= (1 - eps) / most]
    kept.sort(key=lambda e: -p[e])  # stable
    found, total = [], 0.0
    for e in kept:
        found.append(e)
        total += p[e]
        if total > eps:
            break
    if not gold:
        none = 0.0 if found else 1.0
        return found, {"hit": 1.0, "f1": none, "precision": none, "recall": 1.0, "any_hit": 0.0}
    if not found:
        return found, {"hit": 0.0, "f1": 0.0, "precision": 1.0, "recall": 0.0, "any_hit": 0.0}
    right = len(gold & set(found))
    precision, recall = right / len(found), right / len(gold)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    scores = {"hit": float(found[0] in gold), "f1": f1, "precision": precision, "recall": recall}
    return found, scores | {"any_hit": float(right > 0)}


def flat(questions: list[Question]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Lays out questions for :func:`retrieve` and :func:`score_retrieved`; entity e has the id 3e + 1."""
    sizes = [len(p) for p, _, _ in questions]
    ptr = torch.tensor(np.cumsum([0, *sizes]))
    seed = [int(ptr[q]) + e for q, (_, seeds, _) in enumerate(questions) for e in sorted(seeds)]
    gold = [sorted(answers) for *_, answers in questions]
    probability = torch.tensor([x for p, _, _ in questions for x in p], dtype=torch.float64)
    return (
        {"probability": probability, "ptr": ptr, "seed": torch.tensor(seed, dtype=torch.int64)},
        {
            "entity": torch.tensor([3 * e + 1 for size in sizes for e in range(size)], dtype=torch.int64),
            "answer": torch.tensor([3 * e + 1 for answers in gold for e in answers], dtype=torch.int64),
            "answer_ptr": torch.tensor(np.cumsum([0, *map(len, gold)])),
        },
    )


@st.composite
def question(draw: st.DrawFn) -> Question:
    size = draw(st.integers(1, 7))
    weights = draw(st.lists(st.sampled_from([0, 1, 1, 2, 5, 19, 95]), min_size=size, max_size=size))
    total = max(sum(weights), 1)
    entities = st.sets(st.integers(0, size - 1))
    outside = st.sets(st.integers(size, size + 2))  # gold answers that the subgraph lacks
    return [w / total for w in weights], draw(entities), draw(entities) | draw(outside)


@settings(max_examples=40)
@given(questions=st.lists(question(), min_size=1, max_size=5), spare=st.integers(0, 20))
def test_scores_are_those_of_the_plain_loop(questions: list[Question], spare: int) -> None:
    most = max(len(p) for p, *_ in questions) + spare
    probabilities, gold = flat(questions)
    found = retrieve(**probabilities, max_entities=most)
    scores = score_retrieved(found, **gold)
    for number, asked in enumerate(questions):
        expected, values = naive(asked, most)
        mine = found.node[found.ptr[number] : found.ptr[number + 1]] - probabilities["ptr"][number]
        assert mine.tolist() == expected
        assert int(scores.size[number]) == len(expected)
        for name, value in values.items():
            assert float(getattr(scores, name)[number]) == pytest.approx(value, abs=1e-12)


def scores_of(*questions: Question, most: int = 4) -> QuestionScores:
    probabilities, gold = flat(list(questions))
    return score_retrieved(retrieve(**probabilities, max_entities=most), **gold)


def test_the_item_that_crosses_the_sum_is_retrieved_and_none_after_it() -> None:
    assert scores_of(([0.9, 0.06, 0.04], set(), {0})).size.tolist() == [2]
    assert scores_of(([0.96, 0.03, 0.01], set(), {0})).size.tolist() == [1]


def test_entities_below_the_threshold_of_the_split_are_dropped() -> None:
    small = ([0.5, 0.449, 0.026, 0.025], set(), {3})
    assert scores_of(small, most=1).size.tolist() == [2]  # below 0.05
    assert scores_of(small, most=2).size.tolist() == [3]  # 0.025 is kept, but 0.975 is reached before


def test_what_a_seed_has_is_lost() -> None:
    assert scores_of(([0.9, 0.08, 0.02], {0}, {0})).recall.tolist() == [0.0]
    assert scores_of(([0.9, 0.08, 0.02], {0}, {1})).hit.tolist() == [1.0]


def test_gold_answers_outside_the_subgraph_count_in_recall() -> None:
    assert scores_of(([1.0, 0.0], set(), {0, 2, 3, 4})).recall.tolist() == [0.25]


def test_means_come_for_all_and_by_hop() -> None:
    scores = scores_of(([1.0, 0.0], set(), {0}), ([1.0, 0.0], set(), {1}), ([1.0, 0.0], set(), {0, 1}))
    found = KgqaEvaluator()(scores, torch.tensor([1, 2, 2], dtype=torch.int8))
    assert found["hits@1"] == pytest.approx(2 / 3)
    assert (found["hits@1@hop1"], found["hits@1@hop2"]) == (1.0, 0.5)
    assert found["f1@hop2"] == pytest.approx((0 + 2 / 3) / 2)
    unknown = KgqaEvaluator()(scores, torch.zeros(3, dtype=torch.int8))
    assert set(unknown) == set(KgqaEvaluator.metrics)


def test_nothing_is_scored_of_nothing_or_of_no_number() -> None:
    with pytest.raises(UserError, match="no questions"):
        KgqaEvaluator()(scores_of())
    with pytest.raises(UserError, match="1 of 2 probabilities aren't finite"):
        scores_of(([float("nan"), 1.0], set(), {0}))
    for name, value in (("eps", 1.0), ("max_entities", 0)):
        with pytest.raises(ValueError, match=name):
            retrieve(
                torch.ones(1), torch.tensor([0, 1]), torch.tensor([0]), **{"max_entities": 1, name: value}
            )


# --- The reference ----------------------------------------------------------------------------------------


def test_scores_are_those_of_the_reference(golden_dir: Path) -> None:
    files = sorted((golden_dir / "rearev").glob("*.npz"))
    if not files:
        pytest.skip("no arrays of rearev here")
    for file in files:
        with np.load(file) as held:
            arrays = {key: held[key] for key in held if key.startswith(("eval.", "in.", "out.dist"))}
        sizes, most = arrays["in.num_local_entity"], arrays["in.local_entity"].shape[1]
        inside = np.arange(most) < sizes[:, None]
        seeds = np.flatnonzero(arrays["in.query_entities"][inside])
        gold = arrays["in.answer_entity_ids"]
        found = retrieve(
            torch.from_numpy(arrays["out.dist"][inside]),
            torch.tensor(np.cumsum([0, *sizes])),
            torch.from_numpy(seeds),
            max_entities=most,
            eps=float(arrays["eval.eps"]),
        )
        entity = torch.from_numpy(arrays["in.local_entity"][inside].astype(np.int64))
        answers = torch.from_numpy(gold[gold >= 0].astype(np.int64))
        scores = score_retrieved(found, entity, answers, torch.tensor(np.cumsum([0, *(gold >= 0).sum(1)])))
        for name in METRICS:
            expected = torch.from_numpy(arrays[f"eval.{name}"].astype(np.float64))
            torch.testing.assert_close(getattr(scores, name), expected, rtol=0, atol=1e-7)
        expected_ids = arrays["eval.retrieved_ids"]
        assert entity[found.node].tolist() == expected_ids[expected_ids >= 0].tolist()


# --- Files of predictions ---------------------------------------------------------------------------------


def published(name: str, folder: Path) -> Path:
    return folder / "kgqa_predictions" / f"{name}_sbert_test.info.gz"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("webqsp", {"questions": 1639, "hits@1": 76.39, "f1": 70.82, "precision": 68.3, "any_hit": 88.2}),
        ("cwq", {"questions": 3531, "hits@1": 52.90, "f1": 47.82, "recall": 65.7, "any_hit": 68.7}),
    ],
)
def test_published_predictions_give_the_published_figures(
    test_data: Path, name: str, expected: dict[str, float]
) -> None:
    found = rescore(published(name, test_data))
    assert found["questions"] == expected.pop("questions")
    for metric, value in expected.items():
        digits = 0.005 if metric in ("hits@1", "f1") else 0.051  # 68.65 is printed as 68.7
        assert 100 * found[metric] == pytest.approx(value, abs=digits)


def test_every_published_line_has_its_own_scores(test_data: Path) -> None:
    with gzip.open(published("webqsp", test_data), "rt") as file:
        lines = list(file)[:100]
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        found = rescore([line])
        stored = (row["precison"], row["recall"], row["f1"], row["hit"])
        assert tuple(found[m] for m in ("precision", "recall", "f1", "hits@1")) == pytest.approx(stored)


@pytest.mark.parametrize("line", ["{", "[]", '{"answers": ["a"]}', '{"answers": [], "cand": [["a", "x"]]}'])
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "predictions.info"
    file.write_text('{"answers": ["a"], "cand": [["a", 1.0]]}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2: no prediction with 'answers' and 'cand'"):
        rescore(file)
    with pytest.raises(UserError, match="can't read"):
        rescore(tmp_path / "missing.gz")
