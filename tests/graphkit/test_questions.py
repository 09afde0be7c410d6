"""Questions in flat arrays: what a batch holds, equals what was put in, however it is stored."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from graphkit.questions import Asked, QuestionSet, narrow


def random_questions(seed: int, count: int = 5) -> list[Asked]:
    """Questions whose entities are among 40, with repeated facts, loops, and answers outside."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        seeds = rng.integers(40, size=rng.integers(1, 4))
        entities = np.concatenate([rng.integers(40, size=rng.integers(0, 12)), seeds[:1]])
        ends = rng.choice(np.concatenate([seeds, entities]), size=(rng.integers(0, 15), 2))
        relation = rng.integers(7, size=(len(ends), 1))
        facts = np.concatenate([ends[:, :1], relation, ends[:, 1:]], axis=1)
        made.append(
            Asked(seeds, entities, facts, rng.integers(40, size=rng.integers(0, 6)), int(rng.integers(4)))
        )
    return made


def check_batch(questions: QuestionSet, asked: list[Asked], ids: list[int]) -> None:
    """Asserts that a batch holds what was asked, question by question."""
    batch = questions.batch(torch.tensor(ids, dtype=torch.int64))
    assert batch.ids.tolist() == ids
    edge = 0
    seeds_of = batch.seed.tolist()
    for place, number in enumerate(ids):
        one = asked[number]
        first, last = batch.ptr[place : place + 2].tolist()
        entity = batch.entity[first:last].tolist()
        assert entity == list(dict.fromkeys([*np.asarray(one.seeds), *np.asarray(one.entities)]))
        own = [s - first for s in seeds_of if first <= s < last]
        assert own == list(range(len(set(np.asarray(one.seeds).tolist()))))
        gold = set(np.asarray(one.answers).tolist())
        assert batch.answer[first:last].tolist() == [e in gold for e in entity]
        facts = np.asarray(one.facts)
        ends = batch.edge_index[:, edge : edge + len(facts)]
        assert batch.entity[ends].T.tolist() == facts[:, [0, 2]].tolist()
        assert bool(((ends >= first) & (ends < last)).all())
        assert batch.edge_type[edge : edge + len(facts)].tolist() == facts[:, 1].tolist()
        edge += len(facts)
        items, begin = questions.answers(torch.tensor([number]))
        assert items.tolist() == sorted(gold)
        assert begin.tolist() == [0, len(gold)]
    assert batch.edge_type.numel() == edge
    assert all(tensor.dtype in (torch.int64, torch.bool) for tensor in batch)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), max_size=6))
def test_a_batch_holds_the_questions_side_by_side(seed: int, ids: list[int]) -> None:
    asked = random_questions(seed)
    questions = QuestionSet.from_questions(asked)
    assert len(questions) == 5
    check_batch(questions, asked, ids)
    assert questions.hop.tolist() == [one.hop for one in asked]
    assert questions.num_entities(torch.tensor(ids, dtype=torch.int64)).tolist() == [
        len({*np.asarray(asked[i].seeds).tolist(), *np.asarray(asked[i].entities).tolist()}) for i in ids
    ]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 9), max_size=6))
def test_sets_joined_and_chosen_from_hold_the_same_questions(seed: int, ids: list[int]) -> None:
    asked = [random_questions(seed), random_questions(seed + 1)]
    joined = QuestionSet.join([QuestionSet.from_questions(part) for part in asked])
    check_batch(joined, [*asked[0], *asked[1]], ids)
    some = joined.select(torch.tensor(ids, dtype=torch.int64))
    check_batch(some, [[*asked[0], *asked[1]][i] for i in ids], list(range(len(ids))))


def test_questions_may_share_a_subgraph() -> None:
    asked = random_questions(3, 2)
    apart = QuestionSet.from_questions(asked)
    shared = dataclasses.replace(apart, graph=torch.tensor([1, 1], dtype=torch.int32))
    one, other = (shared.batch(torch.tensor([i])) for i in (0, 1))
    assert one.entity.tolist() == other.entity.tolist() == apart.batch(torch.tensor([1])).entity.tolist()
    assert shared.select(torch.tensor([0])).num_graphs == 1


def test_no_question_makes_an_empty_set_and_an_empty_batch() -> None:
    empty = QuestionSet.from_questions([])
    assert len(empty) == 0
    batch = empty.batch(torch.zeros(0, dtype=torch.int64))
    assert batch.ptr.tolist() == [0]
    assert batch.edge_index.shape == (2, 0)
    assert len(QuestionSet.join([])) == 0


def test_a_fact_beyond_the_subgraph_is_refused() -> None:
    with pytest.raises(ValueError, match="question 1 has a fact on entity 9"):
        QuestionSet.from_questions([Asked([0], [1], [[0, 0, 1]], []), Asked([0], [1], [[0, 0, 9]], [])])


def test_data_holds_the_arrays() -> None:
    questions = QuestionSet.from_questions(random_questions(0))
    again = QuestionSet.of(Data(num_nodes=40, **questions.tensors()))
    assert all(
        torch.equal(a, b) for a, b in zip(questions.tensors().values(), again.tensors().values(), strict=True)
    )


def test_ids_are_as_narrow_as_they_fit() -> None:
    assert narrow(torch.tensor([32767])).dtype == torch.int16
    assert narrow(torch.tensor([32768])).dtype == torch.int32
    assert narrow(torch.zeros(0, dtype=torch.int64)).dtype == torch.int16


def test_a_set_as_large_as_complexwebquestions_takes_less_than_a_gigabyte() -> None:
    # 34,689 questions of 1,305.8 entities and, by the size of the published files, some 3,450 facts; here one
    # in a thousand, stored as the whole would be
    rng = np.random.default_rng(0)
    size, whole = 35, 34_689
    asked = []
    for _ in range(size):
        entities = rng.choice(2_429_346, size=1306, replace=False)
        ends = rng.choice(entities, size=(3450, 2))
        facts = np.stack([ends[:, 0], rng.integers(6649, size=3450), ends[:, 1]], axis=1)
        asked.append(Asked(entities[:2], entities, facts, entities[:2]))
    assert QuestionSet.from_questions(asked).nbytes * whole / size < 1e9
