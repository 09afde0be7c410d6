"""The support of a path: what an answer's probability loses without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graphkit.data import Benchmark
from graphkit.datasets.kgqa_benchmark import kgqa_benchmark
from graphkit.ppr import KnowledgeGraph, questions_on
from graphkit.tasks import kgqa_support
from graphkit.tasks.kgqa import KgqaTask
from graphkit.tasks.kgqa_paths import Reason
from graphkit.tasks.kgqa_support import supports

NAMES = ["France", "Germany", "Spain", "Portugal", "Euro", "French", "German", "Spanish", "Paris"]
FRANCE, GERMANY, SPAIN, PORTUGAL, EURO, FRENCH, GERMAN, SPANISH, PARIS = range(len(NAMES))
CAPITAL, LANGUAGE, BORDERS, CURRENCY = range(4)
FACTS = [
    (FRANCE, CAPITAL, PARIS),
    (FRANCE, LANGUAGE, FRENCH),
    (FRANCE, BORDERS, GERMANY),
    (FRANCE, BORDERS, SPAIN),
    (SPAIN, BORDERS, PORTUGAL),
    (GERMANY, LANGUAGE, GERMAN),
    (SPAIN, LANGUAGE, SPANISH),
    (FRANCE, CURRENCY, EURO),
    (GERMANY, CURRENCY, EURO),
    (SPAIN, CURRENCY, EURO),
]
ANY = 1 / len(NAMES)  # the probability of each where nothing is known


class Follows(nn.Module):
    """Answers with all that a chain of relations leads to from the seeds, with anything if there is none."""

    def __init__(self, *chain: int) -> None:
        super().__init__()
        self.chain = chain

    def forward(
        self, edge_index: Tensor, edge_type: Tensor, ptr: Tensor, seed: Tensor, *texts: Tensor
    ) -> Tensor:
        head, tail = edge_index
        reached = torch.zeros(int(ptr[-1]), dtype=torch.bool)
        reached[seed] = True
        for relation in self.chain:
            along = tail[(edge_type == relation) & reached[head]]
            reached = torch.zeros_like(reached).index_fill(0, along, True)
        graph = torch.repeat_interleave(torch.arange(ptr.numel() - 1), ptr.diff())
        weight = reached + 1e-6
        return weight / torch.zeros(ptr.numel() - 1).index_add(0, graph, weight)[graph]


def europe() -> Benchmark:
    facts = torch.tensor(FACTS)
    graph = (facts[:, [0, 2]].t().contiguous(), facts[:, 1].contiguous())
    questions = questions_on(KnowledgeGraph(*graph, len(NAMES)), [[FRANCE]], [[PARIS]], [1], max_entities=99)
    every = {"index": torch.zeros(1, dtype=torch.int64)}
    relations = ["capital", "language", "borders", "currency"]
    splits = dict.fromkeys(("train", "valid", "test"), every)
    return kgqa_benchmark("europe", questions, splits, ["of France"], NAMES, relations, info={}, graph=graph)


def support_of(model: nn.Module, *paths: tuple[int, ...]) -> list[float]:
    """Of paths by the ids of their entities."""
    task = KgqaTask(europe(), 0, 1, 1, encoder="hash:8")
    union = task.questions.batch(torch.zeros(1, dtype=torch.int64))
    place = {entity: number for number, entity in enumerate(union.entity.tolist())}
    reasons = [Reason(tuple(place[entity] for entity in path), (), ()) for path in paths]
    return supports(task, model, union, task.text_states(model, ["of France"]), reasons)


def test_the_fact_that_says_it_has_all_the_support() -> None:
    paths = (FRANCE, PARIS), (FRANCE, EURO, GERMANY, GERMAN)
    assert support_of(Follows(CAPITAL), *paths) == pytest.approx([1 - ANY, 0], abs=1e-4)


def test_a_path_by_other_relations_to_the_same_last_fact_has_none() -> None:
    paths = (FRANCE, SPAIN, SPANISH), (FRANCE, EURO, SPAIN, SPANISH)
    assert support_of(Follows(BORDERS, LANGUAGE), *paths) == pytest.approx([0.5, 0], abs=1e-4)
    assert support_of(Follows(BORDERS, BORDERS), (FRANCE, SPAIN, PORTUGAL)) == pytest.approx(
        [1 - ANY], abs=1e-4
    )


def test_portions_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, paths = Follows(BORDERS, LANGUAGE), ((FRANCE, SPAIN, SPANISH), (FRANCE, GERMANY, GERMAN))
    whole = support_of(model, *paths)
    monkeypatch.setattr(kgqa_support, "_ENTITIES", 1)
    assert support_of(model, *paths) == whole
    assert support_of(model) == []
